"""What is known of a run before its model is loaded is what training finds."""

from pathlib import Path

import pytest

import rankwise as rw
import tiny
from rankwise.train.config import RunConfig
from rankwise.train.data_config import DataConfig
from rankwise.train.job import make_job
from rankwise.train.outline import outline


@pytest.mark.parametrize("max_length", [24, 120])
def test_the_rows_of_span_qa_are_windows(max_length: int, tmp_path: Path) -> None:
    """The eight questions have contexts of some fifty tokens."""
    data = tiny.squad_file(tmp_path / "squad.json")
    config = RunConfig(
        model=str(tiny.save_model("bert", tmp_path / "model")),
        method=rw.LoRA(rank=2),
        data=DataConfig(train=data, validation=data, max_length=max_length, document_stride=4),
        output=str(tmp_path / "run"),
    )
    counted = outline(config).rows
    assert counted == len(make_job(config).prepared.train)
    assert (counted > 8) is (max_length == 24)
