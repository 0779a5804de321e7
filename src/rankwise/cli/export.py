"""rankwise export RUN|ADAPTER OUT"""

import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from rankwise.adaptation import Adaptation
from rankwise.adapting import load
from rankwise.cli import base_model
from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.base_model import Base, Needs
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.cli.verify import judge
from rankwise.errors import ConfigError
from rankwise.io import gguf_adapter
from rankwise.io.export import Layout
from rankwise.io.plain_names import in_part
from rankwise.io.rank_pattern import write_rank_pattern
from rankwise.train.quiet import quiet_libraries


def _parser() -> ArgumentParser:
    parser = make_parser(
        "export",
        description="Write a run or an adapter as a plain LoRA folder, which PEFT, transformers, vLLM, SGLang and "
        "llama.cpp read. The base model's config is read; its weights are only for a head that trained in part.",
        epilog=examples(
            "rankwise export runs/reviews lora",
            "rankwise export runs/reviews lora --verify",
            "rankwise export runs/sums lora --gguf lora.gguf",
            "rankwise export runs/reviews --rank-pattern ranks.json",
        ),
    )
    parser.add_argument("adapter", type=str, help="a run folder, an adapter folder or an adapter's hub id")
    parser.add_argument("out", type=str, nargs="?", help="the folder to write; may be left out with --rank-pattern")
    parser.add_argument(
        "--layout", type=Layout, default="portable", help="portable: for every engine; compact: for PEFT, smaller"
    )
    parser.add_argument(
        "--rank",
        type=int | None,
        default=None,
        help="the one rank of all layers in a portable folder. None: the smallest that is enough",
    )
    parser.add_argument(
        "--heads", action="store_true", help="also write the trained task head, which only PEFT and transformers read"
    )
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="hub id or folder of the base model. None: the one that the adapter names",
    )
    parser.add_argument(
        "--base-model",
        type=str | None,
        default=None,
        help="the base model's hub id to write into the folder and its model card",
    )
    parser.add_argument(
        "--rank-pattern",
        type=str | None,
        default=None,
        help="a file to write the learned ranks to: .json for PEFT, .yaml for axolotl",
    )
    parser.add_argument(
        "--gguf",
        type=str | None,
        default=None,
        help="a .gguf file to write for llama.cpp too; the base must be a Llama",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    parser.add_argument(
        "--verify", action="store_true", help="then check the folder, as `rankwise verify OUT --against ADAPTER` does"
    )
    return parser


def run(arguments: list[str]) -> int:
    given = parse_arguments(_parser(), arguments)
    if given.out is None and (given.verify or given.gguf is not None or given.rank_pattern is None):
        raise ConfigError(
            "out is missing. Write `rankwise export ADAPTER OUT`; only --rank-pattern FILE alone goes without OUT."
        )
    quiet_libraries()
    adapter, base = base_model.adapter_and_base(given.adapter, given.model, trusts=given.trust_remote_code)
    adaptation = _without_weights(adapter, base)
    if given.heads and in_part(adaptation.model, adaptation.trained):  # what did not train goes along
        adaptation = load(base_model.load(base, Needs.of_folder(adapter), None), adapter, resume=False)
    if given.rank_pattern is not None:
        write_rank_pattern(Path(given.rank_pattern), adaptation.model, adaptation.adapters)
    if given.out is not None:
        _export(adaptation, given, base.revision)
    if given.gguf is not None:
        gguf_adapter.convert(Path(given.out), adaptation.model.config, Path(given.gguf))
    return judge(Path(given.out), base, against=adapter) if given.verify else 0


def _without_weights(adapter: Path, base: Base) -> Adaptation:
    return load(base_model.weightless(base, Needs.of_folder(adapter)), adapter, resume=False)


def _export(adaptation: Adaptation, given: Any, revision: str | None) -> None:
    settings = {name: given[name] for name in ("layout", "rank", "heads", "base_model")} | {"revision": revision}
    with warnings.catch_warnings():  # the notes say it too
        warnings.simplefilter("ignore", UserWarning)
        exported = adaptation.export(given.out, **settings)
    make_console().print(str(exported), markup=False, highlight=False)
