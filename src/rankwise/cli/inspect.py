"""rankwise inspect RUN|ADAPTER|MODEL"""

from pathlib import Path

from rich.table import Table

from rankwise.base_layers import sizes
from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.cli.tables import layer_table
from rankwise.errors import ConfigError, FolderError
from rankwise.heads import read_config
from rankwise.io.folder import Saved
from rankwise.io.sources import read
from rankwise.io.untrusted import brief
from rankwise.planning.weightless import model_of
from rankwise.targets import ModelView
from rankwise.train import record

MOST_NAMES = 100


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "inspect",
        description="Live ranks and frozen projections of a run or adapter; of a model, its linear layers and their "
        "roles, which are the names that `targets` takes.",
        epilog=examples("rankwise inspect runs/reviews", "rankwise inspect sentence-transformers/all-MiniLM-L6-v2"),
    )
    parser.add_argument(
        "what", type=str, help="a run folder, an adapter folder (PEFT's too), a model folder or a model's hub id"
    )
    what = str(parse_arguments(parser, arguments).what)
    adapter = record.adapter_in(Path(what))
    return show_model(what) if adapter is None else show_adapter(adapter)


def show_adapter(folder: Path) -> int:
    saved = read(folder)
    console = make_console()
    ranks = saved.ranks()
    named = saved.base_model["name"]
    base = "a base that it does not name" if named is None else brief(named)  # whoever made the folder chose it
    console.print(f"{saved.method.name} on {base}: {_contents(saved)}", markup=False)
    if ranks:
        console.print(layer_table(ranks, saved.frozen))
    for what, names in (("added", saved.parts), ("trained in full", saved.trained)):
        if names:
            more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
            console.print(f"{what}: {', '.join(names[:MOST_NAMES])}{more}", markup=False)
    return 0


def _contents(saved: Saved) -> str:
    if saved.layers:
        return f"{len(saved.layers)} layers, {sum(saved.ranks().values())} ranks live"
    return f"{sum(t.numel() for t in saved.tensors.values()):,} numbers in {len(saved.tensors)} tensors"


def show_model(name: str) -> int:
    try:
        config = read_config(name)
    except ConfigError as error:
        raise FolderError(f"{name!r} is neither a run, an adapter nor a model: {error}") from error
    model, _ = model_of(config, None, None)
    view = ModelView(model)
    table = Table("linear layer", "role", "out × in", title=f"{name}, as {type(model).__name__} names its layers")
    for layer, module in view.linears().items():
        d_in, d_out = sizes(module)
        table.add_row(layer, view.role(layer), f"{d_out} × {d_in}")
    make_console().print(table)
    return 0
