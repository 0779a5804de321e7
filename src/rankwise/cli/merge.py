"""rankwise merge RUN|ADAPTER OUT"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankwise.adapting import load
from rankwise.cli import base_model
from rankwise.cli.arguments import check_new, make_parser, parse_arguments
from rankwise.cli.base_model import Needs
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.errors import DataError
from rankwise.io.atomic import replaced_folder
from rankwise.merging import EndToEnd, compared, logits
from rankwise.train.plain_model import as_plain, samples
from rankwise.train.quiet import quiet_libraries

PROMPTS = (
    "The committee met on Tuesday to discuss the budget for the coming year, and",
    "Q: What is the capital of France?\nA:",
    "def largest(numbers):\n    best = numbers[0]\n",
    "I had expected more of this film, but the last half hour was worth the wait.",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "merge",
        description="Write a plain model with the adapter's updates in its weights, and say how far its outputs are "
        "from the adapted one's.",
        epilog=examples(
            "rankwise merge runs/reviews merged",
            "rankwise merge runs/reviews/adapter merged --model sentence-transformers/all-MiniLM-L6-v2",
            "rankwise merge runs/reviews merged --dtype bfloat16",
        ),
    )
    parser.add_argument("adapter", type=str, help="a run folder, an adapter folder or an adapter's hub id")
    parser.add_argument("out", type=str, help="the model folder to write, new or empty")
    parser.add_argument(
        "--model", type=str, help="hub id or folder of the base model. None: the one that the adapter names"
    )
    parser.add_argument(
        "--dtype", type=Literal["float32", "bfloat16", "float16"], help="type of the weights. None: the base's"
    )
    parser.add_argument("--max_shard_size", type=str, default="5GB", help="largest weight file, such as 2GB")
    parser.add_argument(
        "--prompts", type=str, help="file of texts, one a line, to compare the outputs on. None: four built-in ones"
    )
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="turn a quantised base into ordinary weights to merge into it; else it is refused",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    given = parse_arguments(parser, arguments)
    check_new(Path(given.out))
    prompts = list(PROMPTS) if given.prompts is None else read_prompts(Path(given.prompts))
    quiet_libraries()
    adapter, base = base_model.adapter_and_base(given.adapter, given.model, trusts=given.trust_remote_code)
    # read in float32 where the type changes, so that the sum is rounded once
    dtype = None if given.dtype is None else torch.float32
    model, tokenizer = base_model.load(base, Needs.of_folder(adapter), dtype), base_model.load_tokenizer(base)
    return merge(adapter, model, tokenizer, given, prompts)


def merge(
    adapter: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, given: Any, prompts: list[str]
) -> int:
    adaptation = load(model, adapter, resume=False)
    inputs = [] if tokenizer is None else samples(tokenizer, model, prompts)
    adapted = [logits(model, sample) for sample in inputs]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="rounding loses")  # it is printed below
        adaptation.merge(dequantize=given.dequantize, dtype=None if given.dtype is None else DTYPES[given.dtype])
    plain = as_plain(model)
    found: EndToEnd | None = None
    with replaced_folder(Path(given.out)) as staging:
        plain.save_pretrained(staging, max_shard_size=given.max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        if inputs:
            written = type(model).from_pretrained(staging, dtype="auto").to(model.device)
            found = compared(adapted, [logits(written, sample) for sample in inputs])
        weights = sorted(staging.glob("*.safetensors"))
        size, count = sum(file.stat().st_size for file in weights), len(weights)
    console, error = make_console(), adaptation.merge_error
    assert error is not None
    console.print(
        f"{given.out}: {size / 2**20:,.1f} MiB in {count} file{'s' * (count > 1)}", markup=False, soft_wrap=True
    )
    console.print(str(error), markup=False, soft_wrap=True)
    told = "not compared, for the model has no tokenizer" if found is None else str(found)
    console.print(f"end to end, as read from {given.out}: {told}", markup=False, soft_wrap=True)
    if error.warning():
        console.print(f"warning: {error.warning()}", markup=False, soft_wrap=True)
    return 0


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts={str(path)!r} cannot be read: {error}.") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"prompts={str(path)!r} holds no text. Write one prompt a line.")
    return prompts
