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
from rankwise.cli.console import make_console
from rankwise.errors import ConfigError
from rankwise.io import peft_format
from rankwise.io.folder import read
from rankwise.io.sample import sample_inputs
from rankwise.io.verify import READERS, Reference, Verdict, logits_of, verify
from rankwise.train.quiet import quiet_libraries
from rankwise.updates import updates


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "verify",
        description="Read a LoRA folder as PEFT, transformers, vLLM, SGLang, TGI and llama.cpp do, and compare what "
        "each makes of it. Exit status 1 if one that accepts the folder, or one that --engines names, gets it wrong.",
    )
    parser.add_argument("folder", type=str, help="the LoRA folder")
    parser.add_argument("--model", type=str | None, default=None, help="the base model, where the folder names none")
    parser.add_argument("--against", type=str | None, default=None, help="the run or adapter that it was exported from")
    parser.add_argument("--engines", type=list[str] | None, default=None, help=f"some of {', '.join(READERS)}")
    given = parse_arguments(parser, arguments)
    folder = Path(given.folder)
    model = given.model or peft_format.read(folder).config.get("base_model_name_or_path")
    if not isinstance(model, str):
        raise ConfigError(f"{folder} names no base model; give it with --model.")
    quiet_libraries()
    against = None if given.against is None else base_model.adapter_folder(given.against)
    return judge(folder, model, against=against, engines=given.engines)


def judge(folder: Path, model: str, *, against: Path | None, engines: Sequence[str] | None = None) -> int:
    """Verify and print. Returns the exit status."""
    content = peft_format.read(folder)
    if against is None:
        base, reference = base_model.load(model, base_model.Needs.of_peft(content)), None
    else:
        base, reference = _adapted(model, against, with_heads=not content.config.get("modules_to_save"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by old names
        verdicts = verify(folder, base, sample_inputs(base), reference, engines)
    make_console().print(_table(folder, verdicts))
    wrong = [v for v in verdicts if not v.agrees and (engines or v.refused is None)]
    return 1 if wrong else 0


@torch.no_grad()
def _adapted(model: str, adapter: Path, *, with_heads: bool) -> tuple[nn.Module, Reference]:
    """The base model, and what the adapter makes of it; with the adapter's heads where the folder brings none."""
    base = base_model.load(model, base_model.Needs.of_adapter(read(adapter)))
    adaptation = load(copy.deepcopy(base), adapter, resume=False)
    reference = Reference(logits_of(adaptation.model.eval(), sample_inputs(base)), updates(adaptation.adapters))
    for name, parameter in adaptation.trained.items() if with_heads else ():
        base.get_parameter(name).copy_(parameter)
    return base, reference


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
