"""rankwise evaluate RUN"""

from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from rankwise.cli.config_file import config_from_dict
from rankwise.train import record
from rankwise.train.quiet import quiet_libraries
from rankwise.train.run import evaluate_run


def run(arguments: list[str]) -> int:
    parser = ArgumentParser(prog="rankwise evaluate", description="Compute the metrics of a finished run anew.")
    parser.add_argument("run", type=str, help="the run folder")
    folder = Path(parser.parse_args(arguments).run)
    saved = record.read_run(folder)
    quiet_libraries()
    scores = evaluate_run(folder, config_from_dict(saved["config"]))
    before = saved["results"]["scores"]
    table = Table("metric", "now", "at the end of the run")
    for name, value in scores.items():
        table.add_row(name, f"{value:.6f}", f"{before[name]:.6f}")
    console = Console()
    console.print(table)
    primary = saved["results"]["primary"]
    same = scores[primary] == before[primary]
    console.print(f"{primary} is {'exactly' if same else 'NOT'} what the run reported.")
    return 0 if same else 1
