"""rankwise convert IN OUT --to METHOD"""

from pathlib import Path
from typing import Any

import yaml

from rankwise.cli.arguments import check_new, make_parser, parse_arguments
from rankwise.cli.console import make_console
from rankwise.errors import ConfigError
from rankwise.io.folder import write
from rankwise.io.loralib import Loralib
from rankwise.io.sources import opened
from rankwise.io.untrusted_yaml import parse_yaml
from rankwise.train import record


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "convert",
        description="Write an adapter as a native folder of another method, with the same update in every layer. Reads "
        "a run, a native folder, a folder of PEFT's, or a checkpoint of loralib's. Needs no model.",
    )
    parser.add_argument("source", type=str, help="the run, the folder, or the checkpoint")
    parser.add_argument("out", type=str, help="the folder to write, which must not hold anything yet")
    parser.add_argument(
        "--to",
        type=str,
        help="the method, by name (lora, adalora) or with settings: '{name: adalora, target_rank: 4}'; ranks that "
        "are not given are those there are. Without it only the format changes",
    )
    parser.add_argument("--alpha", type=float, help="for loralib's checkpoints, which do not say it: lora_alpha")
    parser.add_argument("--blocks", type=str, help="for their merged linears: '{c_attn: [q, v]}'")
    parser.add_argument("--trained", type=str, help="for them: modules that trained in full, '[classifier]'")
    given = parse_arguments(parser, arguments)
    source, out = _source(given), Path(given.out)
    check_new(out)
    _, saved, words = opened(source, _method(given.to))
    write(out, saved)
    console = make_console()
    for line in [*words, f"{saved.method.name}, {len(saved.layers)} layers: {out}"]:
        console.print(line, markup=False, highlight=False)
    return 0


def _source(given: Any) -> Path | Loralib:
    path = Path(given.source)
    if path.is_file():
        if given.alpha is None:
            raise ConfigError(f"{path} is a file, so a checkpoint of loralib's, which does not say its alpha: --alpha.")
        facts = {name: _parsed(name, vars(given)[name]) for name in ("blocks", "trained") if vars(given)[name]}
        return Loralib(path, alpha=given.alpha, **facts)
    for name in ("alpha", "blocks", "trained"):
        if vars(given)[name] is not None:
            raise ConfigError(f"--{name} is for checkpoints of loralib's, and {path} is none; a folder says it itself.")
    return record.adapter_in(path) or path


def _method(to: str | None) -> dict[str, Any] | None:
    if to is None:
        return None
    if not to.lstrip().startswith("{"):
        return {"name": to}
    parsed: dict[str, Any] = _parsed("to", to)
    return parsed


def _parsed(option: str, text: str) -> Any:
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--{option} {text!r} is not YAML: {' '.join(str(error).split())}.") from error
    return value
