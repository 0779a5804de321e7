"""Where commands print."""

from rich.console import Console


def make_console() -> Console:
    """As wide as the terminal. Where there is none, tables and lines are not folded to 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
