"""The entries of a comparison: every method, at every budget, on every task."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankwise.compare.grid import SEARCH, Entry
from rankwise.compare.search_rows import search_data
from rankwise.compare.sizing import Sized, Sizer, with_scale
from rankwise.compare.spec import Counted, Size, Spec
from rankwise.errors import ConfigError, RankwiseError, nearest
from rankwise.planning.weightless import model_of
from rankwise.train.config import RunConfig
from rankwise.train.outline import Outline, outline
from rankwise.train.scorers import score_names


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method on a task, before it has a size."""

    task: str
    method: str
    config: RunConfig
    says_alpha: bool
    """Whether its settings name an alpha, which then is not the comparison's."""
    counted: Counted
    rates: tuple[float, ...]
    metric: str | None
    higher_is_better: bool | None


def entries_of(spec: Spec, contenders: Sequence[Contender]) -> list[Entry]:
    """In the order in which they are run. Reads the rows; raises what does not fit model or data, with its place."""
    entries: dict[str, Entry] = {}
    for task in spec.tasks:
        of_task = [contender for contender in contenders if contender.task == task]
        known = outline(of_task[0].config)
        _check_metric(of_task[0], known)
        bare, _ = model_of(known.model_config, known.task, None)
        budgets: Sequence[Size | None] = spec.budgets or [None]
        for budget in budgets:
            for contender in of_task:
                steps, per_epoch = contender.config.training.length(known.rows)
                sizer = Sizer(bare=bare, total_steps=steps, steps_per_epoch=per_epoch, counted=contender.counted)
                method = contender.config.method
                method = method if contender.says_alpha else with_scale(method, spec.alpha_over_rank)
                try:
                    sized = sizer.own(method) if budget is None else sizer.at(method, budget)
                except RankwiseError as error:
                    raise type(error)(f"methods.{contender.method} on {task}: {error}") from error
                entry = _entry(spec, contender, sized)
                entries.setdefault(entry.name, entry)
    return list(entries.values())


def _check_metric(contender: Contender, known: Outline) -> None:
    metric, classes = contender.metric, known.model_config.num_labels
    possible = score_names(known.task, classes, contender.config.generation)
    if metric is not None and metric not in possible:
        raise ConfigError(
            f"tasks.{contender.task}.metric={metric!r} is none of the scores of its runs, which are {possible}."
            + nearest(metric, possible)
        )


def _entry(spec: Spec, contender: Contender, sized: Sized) -> Entry:
    return Entry(
        task=contender.task,
        method=contender.method,
        sized=sized,
        config=replace(contender.config, method=sized.method),
        rates=contender.rates,
        search=spec.search,
        search_data=search_data(contender.config.data, Path(spec.output) / SEARCH / contender.task),
        metric=contender.metric,
        higher_is_better=contender.higher_is_better,
    )
