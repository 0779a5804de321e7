"""rankwise evaluate RUN"""

from pathlib import Path

from rich.table import Table

from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.config_file import config_of_run
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.errors import FolderError
from rankwise.train import record
from rankwise.train.quiet import quiet_libraries
from rankwise.train.run import evaluate_run


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "evaluate",
        description="Load the model and the adapter of a finished run and compute its metrics again. Exit status 0 if "
        "the deciding one is exactly what the run reported, 1 if not.",
        epilog=examples("rankwise evaluate runs/reviews"),
    )
    parser.add_argument("run", type=str, help="the run folder: `output` of its configuration")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with the model")
    given = parse_arguments(parser, arguments)
    folder = Path(given.run)
    saved = record.read_run(folder)
    config = config_of_run(folder, saved["config"], trusts=given.trust_remote_code)
    quiet_libraries()
    scores = evaluate_run(folder, config)
    before = saved["results"]["scores"]
    table = Table("metric", "now", "at the end of the run")
    for name, value in scores.items():
        table.add_row(name, f"{value:.6f}", "-" if before.get(name) is None else f"{before[name]:.6f}")
    console = make_console()
    console.print(table)
    primary = saved["results"]["primary"]
    if primary not in scores:
        raise FolderError(
            f"{folder} reports {primary!r}, which its task has not; it has {list(scores)}. Was results.json edited?"
        )
    same = record.finite(scores[primary]) == before[primary]
    console.print(f"{primary} is {'exactly' if same else 'NOT'} what the run reported.")
    return 0 if same else 1
