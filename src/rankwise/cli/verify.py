"""rankwise verify FOLDER --model M [--against RUN]"""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from rankwise.adapting import load
from rankwise.cli import base_model
from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.base_model import Base, Needs
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.errors import ConfigError
from rankwise.io import peft_format
from rankwise.io.sample import sample_inputs
from rankwise.io.verify import READERS, Reference, Verdict, logits_of, verify
from rankwise.train.quiet import quiet_libraries
from rankwise.updates import updates


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "verify",
        description="Read a LoRA folder as PEFT, transformers, vLLM, SGLang, TGI and llama.cpp do, and compare what "
        "each makes of it. Exit status 1 if one that accepts the folder, or one that --engines names, gets it wrong.",
        epilog=examples(
            "rankwise verify lora --against runs/reviews",
            "rankwise verify lora --model sentence-transformers/all-MiniLM-L6-v2 --engines '[peft, vllm]'",
        ),
    )
    parser.add_argument("folder", type=str, help="the LoRA folder")
    parser.add_argument(
        "--model",
        type=str | None,
        default=None,
        help="hub id or folder of the base model. None: the one that the folder names",
    )
    parser.add_argument(
        "--against",
        type=str | None,
        default=None,
        help="the run or adapter that it was exported from. None: compare with what PEFT makes of it",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    parser.add_argument(
        "--engines", type=list[str] | None, default=None, help=f"check these alone, of {', '.join(READERS)}. None: all"
    )
    given = parse_arguments(parser, arguments)
    folder = Path(given.folder)
    named = peft_format.read(folder).config.get("base_model_name_or_path")
    model = given.model or (named if isinstance(named, str) else None)
    quiet_libraries()
    if given.against is not None:
        against, base = base_model.adapter_and_base(given.against, model, trusts=given.trust_remote_code)
        return judge(folder, base, against=against, engines=given.engines)
    if model is None:
        raise ConfigError(f"{folder} does not say which model it was made for. Give it with --model.")
    base = Base(model, trust_remote_code=given.trust_remote_code)
    return judge(folder, base, against=None, engines=given.engines)


def judge(folder: Path, base: Base, *, against: Path | None, engines: Sequence[str] | None = None) -> int:
    """Verify and print. Returns the exit status."""
    content = peft_format.read(folder)
    if against is None:
        model, reference = base_model.load(base, Needs.of_peft(content), torch.float32), None
    else:
        model, reference = _adapted(base, against, with_heads=not content.config.get("modules_to_save"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by old names
        verdicts = verify(folder, model, sample_inputs(model), reference, engines)
    make_console().print(_table(folder, verdicts))
    wrong = [v for v in verdicts if not v.agrees and (engines or v.refused is None)]
    return 1 if wrong else 0


@torch.no_grad()
def _adapted(base: Base, adapter: Path, *, with_heads: bool) -> tuple[nn.Module, Reference]:
    """The base model, and what the adapter makes of it; with the adapter's heads where the folder brings none."""
    model = base_model.load(base, Needs.of_folder(adapter), torch.float32)
    adaptation = load(copy.deepcopy(model), adapter, resume=False)
    reference = Reference(logits_of(adaptation.model.eval(), sample_inputs(model)), updates(adaptation.adapters))
    for name, parameter in adaptation.trained.items() if with_heads else ():
        model.get_parameter(name).copy_(parameter)
    return model, reference


def _table(folder: Path, verdicts: Sequence[Verdict]) -> Table:
    table = Table("engine", "the folder", "largest logit difference", "layer furthest off", "error of its update")
    table.title = str(folder)
    for verdict in verdicts:
        if verdict.refused is not None:
            table.add_row(verdict.engine, escape(f"refused: {verdict.refused}"), "", "", "")
        else:
            word = "read as meant" if verdict.agrees else "MISREAD"
            table.add_row(
                verdict.engine, word, f"{verdict.difference:.1e}", escape(verdict.worst), f"{verdict.error:.1e}"
            )
    return table
