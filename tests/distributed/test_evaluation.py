"""The final scores of a causal run: of all validation rows, whichever process has read them."""

import os
from pathlib import Path

import pytest
import torch.distributed as dist
from pair import Pair

import rankwise as rw
import tiny
from rankwise.train.build import build_trainer
from rankwise.train.config import RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig
from rankwise.train.evaluation import evaluate
from rankwise.train.job import make_job

ROWS = 11  # two processes of four rows a batch read 8 and 8: five are read twice


def scores_in_pair(folder: str) -> dict[str, float]:
    """As a launcher would have started this process."""
    rank = str(dist.get_rank())
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
    return scores(folder)


def scores(folder: str) -> dict[str, float]:
    rows = f"{folder}/rows.jsonl"
    config = RunConfig(
        model=f"{folder}/model",
        method=rw.LoRA(rank=2),
        data=DataConfig(train=rows, validation=rows, max_length=48),
        output=f"{folder}/run",
        training=TrainingConfig(batch_size=2),
    )
    job = make_job(config)
    return evaluate(job, build_trainer(job, Path(config.output), None))


def test_two_processes_score_all_rows_once(pair: Pair, tmp_path: Path) -> None:
    tiny.save_model("llama", tmp_path / "model")
    rows = [{"prompt": "Who?", "completion": " the crab pots" * (i + 1)} for i in range(ROWS)]
    tiny.write_rows(tmp_path / "rows.jsonl", rows)
    alone = scores(str(tmp_path))
    first, second = pair.run(scores_in_pair, str(tmp_path))
    assert first == second == pytest.approx(alone, rel=1e-5)
