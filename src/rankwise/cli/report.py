"""rankwise report RUN... [-o report.html]"""

from pathlib import Path

from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.console import make_console
from rankwise.cli.help_page import examples
from rankwise.report.page import write_report


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "report",
        description="One HTML page of a run, of several runs, or of a comparison: where the ranks went, what froze "
        "when, what it cost. It needs no network and no model; of one that still trains it shows how far it has come.",
        epilog=examples(
            "rankwise report runs/reviews",
            "rankwise report runs/adalora runs/aflora runs/lora -o three.html",
            "rankwise report runs/comparison -o comparison.html",
        ),
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or the folder of one comparison")
    parser.add_argument("-o", "--output", type=str, default="report.html", help="the HTML file to write")
    parser.add_argument(
        "--latency", type=str | None, default=None, help="a latency.json that benchmarks/latency.py wrote, to show too"
    )
    given = parse_arguments(parser, arguments)
    output = Path(given.output)
    write_report([Path(name) for name in given.runs], output, latency=Path(given.latency) if given.latency else None)
    make_console().print(f"report: {output} ({output.stat().st_size / 2**20:.1f} MiB)", soft_wrap=True)
    return 0
