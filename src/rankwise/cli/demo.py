"""rankwise demo [--causal]"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from rankwise import demo
from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.cli.train import report
from rankwise.train.quiet import quiet_libraries
from rankwise.train.run import train


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "demo",
        description="AdaLoRA on a real model and real data that pip installs: MiniLM learns the topics of BBC news; "
        "with --causal, SmolLM2-135M learns one-digit sums.",
        epilog=examples("rankwise demo", "rankwise watch runs/demo    # in another terminal, while it trains"),
    )
    parser.add_argument("--causal", action="store_true", help="train the language model instead of the classifier")
    parser.add_argument(
        "--output", type=str, default="runs", help="the folder for the run: runs/demo, then runs/demo-2, ..."
    )
    options = parse_arguments(parser, arguments)
    quiet_libraries()
    name = "demo-causal" if options.causal else "demo"
    folder = next(f for f in _names(Path(options.output), name) if not f.exists())
    config = (demo.sums if options.causal else demo.topics)(folder, Path(options.output) / "demo-data")
    console = make_console()
    report(config, train(config, console), console)
    return 0


def _names(parent: Path, name: str) -> Iterator[Path]:
    return (parent / (name if n == 1 else f"{name}-{n}") for n in count(1))
