"""rankwise train CONFIG.yaml [--FIELD VALUE ...]"""

import shlex
import sys
from pathlib import Path

import yaml
from rich.console import Console

from rankwise.cli.config_file import full_help, parse
from rankwise.cli.console import make_console
from rankwise.cli.tables import layer_table, result_table
from rankwise.io.folder import read
from rankwise.train import record
from rankwise.train.config import RunConfig
from rankwise.train.quiet import quiet_libraries
from rankwise.train.run import Result, train


def run(arguments: list[str]) -> int:
    if not arguments or {"-h", "--help"} & set(arguments):
        print(full_help("train", arguments))
        return 0
    given = parse("train", arguments)
    if given.print_config:
        yaml.safe_dump(record.config_as_dict(given.config), sys.stdout, sort_keys=False, allow_unicode=True)
        return 0
    quiet_libraries()
    console = make_console()
    report(given.config, train(given.config, console, resume=given.resume), console)
    return 0


def report(config: RunConfig, result: Result, console: Console) -> None:
    """The closing tables of a run, and where everything is."""
    console.print(result_table(result))
    for sample in result.samples:
        console.print(f"  {sample['prompt']!r}\n    before: {sample['before']!r}\n    after:  {sample['after']!r}")
    folder = Path(config.output)
    saved = read(folder / record.ADAPTER)
    if config.method.decides_while_training:
        console.print(layer_table(saved.ranks(), saved.frozen))
    console.print(f"run folder: {folder}; adapter: {folder / record.ADAPTER}", soft_wrap=True)
    console.print(f"to look at it: rankwise report {shlex.quote(str(folder))}", soft_wrap=True)
