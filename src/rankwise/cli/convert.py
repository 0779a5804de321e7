"""rankwise convert IN OUT --to METHOD"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from rankwise.cli.arguments import check_new, make_parser, parse_arguments
from rankwise.cli.base_model import Base, Needs, adapter_and_base, weightless
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.errors import ConfigError
from rankwise.io.description import fits
from rankwise.io.fitting import check_fits
from rankwise.io.folder import describe_base, write
from rankwise.io.hub import located
from rankwise.io.loralib import Loralib
from rankwise.io.peft_import import outline
from rankwise.io.sources import is_peft, opened
from rankwise.io.untrusted_yaml import parse_yaml
from rankwise.train import record
from rankwise.train.quiet import quiet_libraries

FACTS = {"blocks": (dict[str, list[str]], "'{c_attn: [q, v]}'"), "trained": (list[str], "'[classifier]'")}


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "convert",
        description="Write an adapter as a rankwise folder of another method, with the same update in every layer. "
        "Reads a run, a rankwise or PEFT folder, or a checkpoint of loralib's. Only PEFT's VeRA needs its model.",
        epilog=examples(
            "rankwise convert from-peft native",
            "rankwise convert runs/reviews plain --to lora",
            "rankwise convert runs/reviews start --to '{name: adalora, target_rank: 4}'",
            "rankwise convert gpt2-lora.pt start --to adalora --alpha 32 --blocks '{c_attn: [q, v]}'",
        ),
    )
    parser.add_argument(
        "source", type=str, help="a run folder, an adapter folder (PEFT's too), a hub id or a checkpoint of loralib's"
    )
    parser.add_argument("out", type=str, help="the folder to write, new or empty")
    parser.add_argument(
        "--to",
        type=str,
        help="the method, by name (lora, adalora) or with settings: '{name: adalora, target_rank: 4}'. Ranks stay as "
        "they are unless given. None: only the format changes",
    )
    parser.add_argument(
        "--alpha", type=float, help="loralib only, required there: the lora_alpha that it was trained with"
    )
    parser.add_argument(
        "--blocks", type=str, help="loralib only: the adapted blocks of its MergedLinear, '{c_attn: [q, v]}'"
    )
    parser.add_argument("--trained", type=str, help="loralib only: modules that trained in full, '[classifier]'")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="hub id or folder of the base model, to check against and to name in the new folder; required for a VeRA "
        "of PEFT's that names none. Its config is read, its weights are not",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    given = parse_arguments(parser, arguments)
    source, out = _source(given), Path(given.out)
    check_new(out)
    quiet_libraries()
    model = _model(given, source)
    path, saved, words = opened(source, _method(given.to), model)
    if model is not None:
        check_fits(path, saved, model)
        saved = replace(saved, base_model=describe_base(model))
    write(out, saved)
    console = make_console()
    for line in [*words, f"{saved.method.name}, {len(saved.layers)} layers: {out}"]:
        console.print(line, markup=False, highlight=False)
    return 0


def _source(given: Any) -> Path | Loralib:
    path = Path(given.source)
    if path.is_file():
        if given.alpha is None:
            raise ConfigError(
                f"{path} is a file, so a checkpoint of loralib's, which does not say its alpha. Give it with --alpha."
            )
        facts = {name: _fact(name, vars(given)[name]) for name in FACTS if vars(given)[name] is not None}
        return Loralib(path, alpha=given.alpha, **facts)
    for name in ("alpha", *FACTS):
        if vars(given)[name] is not None:
            raise ConfigError(
                f"--{name} is for checkpoints of loralib's, and {path} is none. Leave it out: a folder says it itself."
            )
    path = located(given.source)
    return record.adapter_in(path) or path


def _fact(name: str, text: str) -> Any:
    value, (kind, example) = _parsed(name, text), FACTS[name]
    if not fits(value, kind):
        raise ConfigError(f"--{name} {text!r} is not possible; write it as in {example}.")
    return value


def _model(given: Any, source: Path | Loralib) -> nn.Module | None:
    """The base without weights, where it is given, or the folder alone does not say enough."""
    if given.model is None and (isinstance(source, Loralib) or not is_peft(source) or outline(source).tells_widths):
        return None
    if isinstance(source, Loralib):
        return weightless(Base(given.model, trust_remote_code=given.trust_remote_code), Needs.of_adapter(source.read()))
    adapter, base = adapter_and_base(given.source, given.model, trusts=given.trust_remote_code)
    return weightless(base, Needs.of_folder(adapter))


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
        said = error.problem if isinstance(error, yaml.MarkedYAMLError) else " ".join(str(error).split())
        raise ConfigError(f"--{option} {text!r} is not YAML ({said}).") from error
    return value
