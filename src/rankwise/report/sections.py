"""What a page shows, in its order: of runs, and of a comparison. Nothing empty is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rankwise.report import curves, tables
from rankwise.report.chart import Chart
from rankwise.report.comparison import MOST_DRAWN, Comparison
from rankwise.report.freezing import freezing_maps, frozen_share
from rankwise.report.quality import of_runs, quality
from rankwise.report.rank_map import RankMap, rank_map
from rankwise.report.run import Run
from rankwise.report.tables import Table

CURVES_OF = (
    f"Curves and maps are of one run, the first that ended, of each of at most {MOST_DRAWN} methods and budgets: "
)


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it. `maps` are shown one at a time, with the slider."""

    id: str
    title: str
    texts: Sequence[str] = ()
    maps: Sequence[RankMap] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = field(default=())  # behind a line that opens them

    @property
    def empty(self) -> bool:
        return not (self.texts or self.maps or self.charts or self.tables or self.folded)


def of_several(runs: Sequence[Run]) -> list[Section]:
    """The sections on one run or several."""
    if len(runs) == 1:
        scores = tables.scores_table(runs[0])
        results = Section("results", "Results", tables=[scores] if scores else [])
    else:
        results = Section("results", "Results", tables=[tables.results_table(runs)], charts=of_runs(runs))
    return _shown([results, *_courses(runs), _settings(runs)])


def of_comparison(comparison: Comparison) -> list[Section]:
    runs = comparison.drawn
    texts = comparison.answer or ["This comparison has not finished: there is no answer yet."]
    answer = Section("answer", "Answer", texts=texts)
    charts = [chart for i, task in enumerate(comparison.tasks) for chart in quality(task, i)]
    reached = [task for task in comparison.tasks if any(row["mean"] is not None for row in task.rows)]
    by_task = [tables.task_table(task, comparison.baseline) for task in reached]
    results = Section("results", "Results", charts=charts, tables=by_task)
    left = Section("not-run", "Not run", texts=[*comparison.failed, *comparison.not_run])
    told = Section("runs", "Runs", texts=[CURVES_OF + ", ".join(run.name for run in runs) + "."] if runs else [])
    spec = tables.settings_tables([(comparison.name, comparison.spec)], "The comparison's settings")
    machine = tables.settings_tables([(comparison.name, comparison.environment)], "Environment")
    settings = Section("settings", "Settings and environment", folded=[*spec, *machine])
    return _shown([answer, results, left, told, *_courses(runs), settings])


def _courses(runs: Sequence[Run]) -> list[Section]:
    maps = [found for run in runs if (found := rank_map(run)) is not None]
    maps.sort(key=lambda found: len(found.data["frames"]) == 1)  # those in which something happens come first
    freezing = [frozen_share(runs), *(chart for i, run in enumerate(runs) for chart in freezing_maps(run, i))]
    learning = [curves.loss(runs), curves.metrics(runs), curves.orthogonality(runs)]
    return [
        Section("ranks", "Ranks", maps=maps, charts=_drawn([curves.budget(runs)])),
        Section("freezing", "Freezing", charts=_drawn(freezing)),
        Section("learning", "Learning", charts=_drawn(learning)),
        Section("cost", "What it takes", charts=_drawn([curves.parameters(runs), curves.bytes_(runs)])),
    ]


def _settings(runs: Sequence[Run]) -> Section:
    settings = tables.settings_tables([(run.name, run.config) for run in runs], "Settings")
    machines = tables.settings_tables([(run.name, run.environment) for run in runs], "Environment")
    return Section("settings", "Settings and environment", folded=[*settings, *machines])


def _drawn(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _shown(sections: Sequence[Section]) -> list[Section]:
    return [section for section in sections if not section.empty]
