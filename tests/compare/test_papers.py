"""The papers' experiments parse as the command line reads them, with every method of every task."""

from pathlib import Path

import pytest

from rankwise.cli.spec_file import parse
from rankwise.errors import ConfigError
from rankwise.methods.adalora import AdaLoRA

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers"
SPECS = sorted(PAPERS.glob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_parses_with_every_method_on_every_task(path: Path) -> None:
    asked = parse([str(path)])
    spec = asked.spec
    assert len(asked.contenders) == len(spec.tasks) * len(spec.methods)
    assert all(number.method in spec.methods for number in spec.published)


SPEC = """
base: {model: a/model, data: {train: rows}, training: {epochs: 2, batch_size: 8}}
tasks: {one: {methods: %s}, two: {}}
methods: {adalora: {alpha: 16, learning_rates: [0.001], training: {warmup: 0.1}}}
output: runs/here
"""


def write_spec(folder: Path, of_task: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(SPEC % of_task)
    return str(path)


def test_a_task_has_its_own_settings_of_a_method(tmp_path: Path) -> None:
    of_task = "{adalora: {orthogonality: 0.3, learning_rates: [0.002], training: {epochs: 5}}}"
    one, two = parse([write_spec(tmp_path, of_task)]).contenders
    assert (one.rates, two.rates) == ((0.002,), (0.001,))
    assert (one.config.training.epochs, two.config.training.epochs) == (5, 2)
    assert (one.config.training.warmup, one.config.training.batch_size) == (0.1, 8)  # of the method and of base
    assert one.config.method == AdaLoRA(alpha=16, orthogonality=0.3)
    assert two.config.method == AdaLoRA(alpha=16)


def test_settings_of_an_unknown_method_on_a_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'tasks\.one\.methods\.adalra'.*adalora"):
        parse([write_spec(tmp_path, "{adalra: {alpha: 16}}")])
