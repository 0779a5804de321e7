"""The course of a run, against what its adapter holds and what its results counted."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from rankwise.io.folder import read
from rankwise.report import curves
from rankwise.report.course import course, sizes
from rankwise.report.grid import grid
from rankwise.report.run import read_run

Runs = Callable[[str], Path]
each_method = pytest.mark.parametrize("name", ["adalora", "aflora", "lora", "sora", "freezing-adalora", "pruned-lora"])


@each_method
def test_the_last_moment_is_the_adapter(name: str, trained: Runs):
    moments, saved = course(read_run(trained(name))), read(trained(name) / "adapter")
    assert dict(moments[-1].ranks) == saved.ranks()
    assert moments[-1].frozen == set(saved.frozen)
    assert moments[0].step == 0 and moments[0].live == 3 * len(saved.ranks())
    assert [m.step for m in moments] == sorted({m.step for m in moments})


@each_method
def test_sizes_begin_and_end_as_the_run_counted(name: str, trained: Runs):
    """The formula of the course comes to the number that the adaptation counted from its own tensors."""
    run = read_run(trained(name))
    assert run.results is not None
    found = sizes(run, course(run))
    assert found[0].trains == found[0].alive == run.results["trainable_start"]
    assert found[-1].trains == run.results["trainable_end"]
    assert found[-1].step == run.last_step == 8
    if name not in ("lora", "sora"):  # SoRA closes only what its data lets it
        assert found[-1].trains < found[0].trains
    if name == "aflora":
        assert found[-1].alive == found[0].alive  # what froze stays in the file


def test_live_ranks_are_those_of_the_history(trained: Runs):
    run = read_run(trained("adalora"))
    chart = curves.budget([run])
    assert chart is not None
    live, budget = chart.traces
    events = [e for e in tiny.lines(run.folder / "history.jsonl") if e["event"] == "allocated"]
    assert dict(zip(budget["x"], budget["y"], strict=True)) | {8: 0} == {e["step"] + 1: e["budget"] for e in events} | {
        8: 0
    }
    by_step = dict(zip(live["x"], live["y"], strict=True))
    assert all(by_step[step] == rank for step, rank in ((e["step"] + 1, e["live"]) for e in events) if step in by_step)


def test_a_grid_has_blocks_down_and_modules_across():
    names = [f"model.layers.{i}.{m}" for i in range(2) for m in ("self_attn.q_proj", "mlp.up_proj")] + ["head.dense"]
    found = grid(names)
    assert found.rows == ["layers.0", "layers.1", "(outside)"]
    assert found.columns == ["q_proj", "up_proj", "dense"]
    assert found.cells["model.layers.1.mlp.up_proj"] == (1, 1) and found.cells["head.dense"] == (2, 2)


def test_a_grid_too_wide_is_a_list():
    names = [f"branch{i}.dense" for i in range(100)]
    found = grid(names)
    assert found.rows == names and found.columns == ["layer"] and found.cells[names[7]] == (7, 0)
