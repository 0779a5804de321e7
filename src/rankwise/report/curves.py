"""Curves over the steps of runs: loss, metrics, budget, frozen share, orthogonality, parameters, bytes."""

from collections.abc import Callable, Iterator, Sequence

from rankwise.report.chart import Chart, Trace, axes, line, step_line
from rankwise.report.course import GATES, Moment, Sizes, course, sizes
from rankwise.report.run import Run
from rankwise.report.thin import Point

BYTES_OF_TRAINING = 16  # of a parameter in float32: weight, gradient, and AdamW's two moments
BYTES_IN_FILE = 4
NOT_METRICS = (
    "eval_loss",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
)

Curves = list[tuple[str, list[Point]]]


def logged(run: Run, name: str) -> list[Point]:
    """(step, value) of what the Trainer logged under a name."""
    return [(line["step"], line[name]) for line in run.metrics if isinstance(line.get(name), int | float)]


def loss(runs: Sequence[Run]) -> Chart | None:
    traces = []
    for i, run in enumerate(runs):
        before = f"{run.name}, " if len(runs) > 1 else ""
        if training := logged(run, "loss"):
            traces.append(line(f"{before}training", training, i, dash="solid"))
        if held_out := logged(run, "eval_loss"):
            traces.append(line(f"{before}held out", held_out, i if len(runs) > 1 else 1, markers=True))
    if not traces:
        return None
    lows = [f"{run.name} ends at {points[-1][1]:.4g}" for run in runs if (points := logged(run, "loss"))]
    return Chart("loss", "Loss", traces, axes(traces, "step", "loss"), f"Loss over the steps: {'; '.join(lows)}.")


def metrics(runs: Sequence[Run]) -> Chart | None:
    """Of one run every metric of its evaluations, of several the one that decides."""
    curves: Curves = []
    for run in runs:
        for name in _metrics_of(run, only_first=len(runs) > 1):
            short = name.removeprefix("eval_")
            curves.append((f"{run.name}, {short}" if len(runs) > 1 else short, logged(run, name)))
    if not curves:
        return None
    traces = [line(name, points, i, markers=True) for i, (name, points) in enumerate(curves)]
    ends = "; ".join(f"{name} {points[-1][1]:.4g} at step {points[-1][0]}" for name, points in curves)
    return Chart(
        "metrics", "Held-out metrics", traces, axes(traces, "step", ""), f"Evaluations while training: {ends}."
    )


def _metrics_of(run: Run, *, only_first: bool) -> list[str]:
    names = dict.fromkeys(n for line in run.metrics for n in line if n.startswith("eval_") and n not in NOT_METRICS)
    found = [name for name in names if logged(run, name)]
    if not only_first:
        return found
    primary = None if run.results is None else f"eval_{run.results['primary']}"
    return [primary] if primary in found else found[:1]


def budget(runs: Sequence[Run]) -> Chart | None:
    """Live ranks under the budget that was handed out; of a budget in parameters, those of the live ranks."""
    traces: list[Trace] = []
    units, words = set(), []
    for i, run in enumerate(runs):
        moments = course(run)
        price = _price(run)
        if price is None or not any("ranks" in e for e in run.events if e["event"] != "started"):
            continue
        unit, cost = price
        units.add(unit)
        before = f"{run.name}, " if len(runs) > 1 else ""
        live = [(m.step, float(cost(m))) for m in moments]
        handed = [(e["step"] + 1, float(e["budget"])) for e in run.events if e["event"] == "allocated"]
        traces.append(step_line(f"{before}live", live, run.last_step, i, dash="solid", width=3))
        if handed:
            traces.append(step_line(f"{before}budget", handed, run.last_step, i if len(runs) > 1 else 1, dash="dot"))
        words.append(f"{run.name} goes from {live[0][1]:,.0f} to {live[-1][1]:,.0f} {unit}")
    if not traces:
        return None
    layout = axes(traces, "step", " or ".join(sorted(units)), rangemode="tozero")
    return Chart("budget", "Budget and what lives", traces, layout, f"Budget over the steps: {'; '.join(words)}.")


def _price(run: Run) -> tuple[str, Callable[[Moment], int]] | None:
    """The unit that a run's budget is counted in, and what a moment comes to; None if the layers' sizes are unknown."""
    method = run.config.get("method")
    if not (isinstance(method, dict) and isinstance(method.get("budget"), str)):
        return "live ranks", lambda moment: moment.live
    shapes, gates = run.shapes, GATES.get(run.method)
    if shapes is None or gates is None:
        return None
    return "parameters", lambda moment: sum(r * (sum(shapes.get(n, (0, 0))) + gates) for n, r in moment.ranks.items())


def orthogonality(runs: Sequence[Run]) -> Chart | None:
    curves = []
    for run in runs:
        points = [(e["step"], e["orthogonality"]) for e in run.events if e.get("orthogonality") is not None]
        if points:
            curves.append((run.name, points))
    if not curves:
        return None
    traces = [line(name, points, i) for i, (name, points) in enumerate(curves)]
    ends = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves)
    note = "R, before each allocation: how far the columns of P and the rows of Q are from being orthogonal."
    layout = axes(traces, "step", "penalty R", rangemode="tozero")
    return Chart("orthogonality", "Orthogonality", traces, layout, f"Penalty over the steps: {ends}.", note)


def parameters(runs: Sequence[Run]) -> Chart | None:
    curves = [(run, found) for run in runs if (found := sizes(run, course(run)))]
    if not curves:
        return None
    traces = [
        step_line(run.name, [(s.step, float(s.trains)) for s in found], run.last_step, i, dash="solid")
        for i, (run, found) in enumerate(curves)
    ]
    words = "; ".join(f"{run.name} from {found[0].trains:,} to {found[-1].trains:,}" for run, found in curves)
    layout = axes(traces, "step", "parameters", rangemode="tozero")
    note = "Dead ranks and frozen projections do not count; heads that train do."
    return Chart("parameters", "Trainable parameters", traces, layout, f"Parameters that train: {words}.", note)


def bytes_(runs: Sequence[Run]) -> Chart | None:
    """What training takes beside the model and its activations, and what the adapter's file would."""
    traces, words = [], []
    for i, run in enumerate(runs):
        for what, points in _bytes_of(sizes(run, course(run))):
            before = f"{run.name}, " if len(runs) > 1 else ""
            dash = "solid" if what == "training" else "dot"
            at = i if len(runs) > 1 else int(what != "training")
            traces.append(step_line(f"{before}{what}", points, run.last_step, at, dash=dash))
            words.append(f"{before}{what} from {points[0][1]:,.0f} to {points[-1][1]:,.0f}")
    if not traces:
        return None
    layout = axes(traces, "step", "bytes", rangemode="tozero", tickformat=".3~s")
    note = (
        f"Training: {BYTES_OF_TRAINING} for each parameter that trains: weight, gradient and AdamW's two moments. "
        f"File: {BYTES_IN_FILE} for each that lives, frozen ones too. Dead ranks leave both with compact()."
    )
    return Chart("bytes", "Bytes", traces, layout, f"Bytes: {'; '.join(words)}.", note)


def _bytes_of(found: Sequence[Sizes]) -> Iterator[tuple[str, list[Point]]]:
    if found:
        yield "training", [(s.step, float(s.trains * BYTES_OF_TRAINING)) for s in found]
        yield "file", [(s.step, float(s.alive * BYTES_IN_FILE)) for s in found]
