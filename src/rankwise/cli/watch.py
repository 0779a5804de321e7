"""rankwise watch RUN [--once]"""

import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rankwise.cli.arguments import make_parser, parse_arguments
from rankwise.cli.console import make_console
from rankwise.cli.growing import Growing
from rankwise.cli.help_page import examples
from rankwise.cli.rank_map import curve, model_map
from rankwise.cli.standing import Standing
from rankwise.errors import FolderError
from rankwise.io.untrusted import brief
from rankwise.train import record

INTERVAL = 0.5  # seconds between two looks
SILENCE = 60.0  # seconds without a new line that are worth a word
CURVE = 40  # characters
PROJECTIONS = 2  # of a layer, up and down


def run(arguments: list[str]) -> int:
    parser = make_parser(
        "watch",
        description="Budget, ranks, loss and time left of a run that another process is training, until it ends. "
        "Ctrl-C stops watching; the training goes on.",
        epilog=examples("rankwise watch runs/reviews", "rankwise watch runs/reviews --once"),
    )
    parser.add_argument("run", type=str, help="the run folder: `output` of its configuration")
    parser.add_argument(
        "--once", action="store_true", help="print the state once and stop; the default where there is no terminal"
    )
    given = parse_arguments(parser, arguments)
    watched = Watched(Path(given.run))
    console = make_console()
    if given.once or not console.is_terminal:
        watched.look()
        console.print(watched.picture(console.width))
    else:
        follow(watched, console)
    return 0


class Watched:
    """A run folder and what its files have told so far."""

    def __init__(self, folder: Path) -> None:
        if not (folder / record.CONFIG).is_file():
            raise FolderError(
                f"{folder} is no run: it has no {record.CONFIG}. `rankwise train` writes it when the model is loaded "
                "and training begins; give the folder that is its `output`."
            )
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self.history, self.metrics = Growing(self.folder / record.HISTORY), Growing(self.folder / record.METRICS)
        self.standing = Standing()

    @property
    def finished(self) -> bool:
        return (self.folder / record.RESULTS).is_file()

    def look(self) -> None:
        """Read what was written since the last time."""
        if self.history.replaced or self.metrics.replaced:
            self._begin()
        for event in self.history.new_lines():
            self.standing.decided(event)
        for line in self.metrics.new_lines():
            self.standing.logged(line)

    def picture(self, width: int) -> RenderableType:
        standing = self.standing
        parts: list[RenderableType] = [self._title(), _progress(standing, self.finished), _numbers(standing)]
        if standing.ranks:
            parts.append(model_map("live ranks", standing.ranks, standing.starting, width))
        if standing.frozen:
            froze = Counter(name.rpartition(".")[0] for name in standing.frozen)
            both = {layer: PROJECTIONS for layer in standing.starting if layer in froze}
            learning = {layer: PROJECTIONS - froze[layer] for layer in both}
            parts.append(model_map("projections that learn", learning, both, width))
        return Group(*parts, Text(self._ending()))

    def _title(self) -> Text:
        config = record.read_config(self.folder)
        method = config.get("method")
        name = method.get("name") if isinstance(method, dict) else method
        return Text(f"{self.folder}: {brief(name)} on {brief(config.get('model'))}", style="bold")

    def _ending(self) -> str:
        if self.finished:
            results = record.read_results(self.folder)
            scores = [f"{n} {v:.4f}" for n, v in results["scores"].items() if v is not None]
            return f"finished: {' · '.join(scores)}"
        files = [path for path in (self.history.path, self.metrics.path) if path.exists()]
        silent = time.time() - max((path.stat().st_mtime for path in files), default=time.time())
        return f"nothing new for {_time(silent)}: does it still run?" if silent > SILENCE else ""


def follow(watched: Watched, console: Console) -> None:
    """Redraw until the run has finished or somebody presses Ctrl-C; the last picture stays."""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                finished = watched.finished  # asked first: what was written before it is in the last picture
                watched.look()
                live.update(watched.picture(console.width), refresh=True)
                if finished:
                    return
                time.sleep(INTERVAL)
        except KeyboardInterrupt:
            return


def _progress(standing: Standing, finished: bool) -> RenderableType:
    total = standing.total_steps
    if total is None:
        nothing = "nothing is logged yet; the first lines come after training.log_every steps"
        return Text(f"step {standing.step:,}" if standing.step else nothing)
    left = standing.seconds_left
    if finished:
        when = "done"
    elif standing.step >= total:
        when = "trained; evaluating and saving"
    else:
        when = "time left unknown" if left is None else f"about {_time(left)} left"
    grid = Table.grid(padding=(0, 1))
    grid.add_row(f"step {standing.step:,} of {total:,}", ProgressBar(total, standing.step, width=CURVE), when)
    return grid


def _numbers(standing: Standing) -> Table:
    grid = Table.grid(padding=(0, 2))
    if standing.losses:
        grid.add_row("loss", curve(standing.losses, CURVE), f"{standing.losses[-1]:.4f}")
    if standing.live:
        start = sum(standing.starting.values())
        budget = "" if standing.budget is None else f"; budget {standing.budget:,}"
        grid.add_row("live ranks", curve(standing.live, CURVE), f"{standing.live[-1]:,} of {start:,}{budget}")
    if standing.share is not None:
        grid.add_row("frozen", "", f"{standing.share:.0%} of the projections")
    if standing.evaluated:
        scores = [f"{name} {value:.4f}" for name, value in standing.evaluated.items() if name != "epoch"]
        grid.add_row("evaluated", "", " · ".join(scores))
    if standing.skipped:
        grid.add_row("skipped", "", f"{standing.skipped:,} steps, whose gradients were NaN or infinite")
    return grid


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
