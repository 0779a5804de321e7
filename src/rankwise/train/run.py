"""A whole run: job, baseline, training, evaluation, files."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rankwise.train import record
from rankwise.train.build import build_trainer
from rankwise.train.config import RunConfig
from rankwise.train.evaluation import Scores, evaluate, generate, sample_prompts
from rankwise.train.job import Job, make_job
from rankwise.train.progress import MetricsFile, ProgressCallback


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run reached, and at what cost."""

    task: str
    primary: str
    scores: Scores
    before: Scores  # the untouched model, or empty where the majority class says more
    baseline: dict[str, float | str] | None  # name, metric, value
    steps: int
    trainable_start: int
    trainable_end: int
    total_parameters: int
    seconds: float
    peak_memory: int  # bytes
    samples: list[dict[str, str]]  # prompt, before, after; of causal models that generate


def train(config: RunConfig, console: Console) -> Result:
    """Train, evaluate and save. Everything is checked before the run folder is made."""
    folder = Path(config.output)
    job = make_job(config)
    _say_what(job, console)
    record.begin(folder, config)
    trainer = build_trainer(job, folder, folder / record.HISTORY)
    trainer.add_callback(ProgressCallback(job.adaptation, console))
    trainer.add_callback(MetricsFile(folder / record.METRICS))
    prompts = sample_prompts(job)
    with job.adaptation.disabled():
        before = evaluate(job, trainer) if job.prepared.baseline is None else {}
        before_texts = generate(job, prompts)
    start_count = job.adaptation.count()
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    scores = evaluate(job, trainer)
    result = Result(
        task=job.task,
        primary=job.metrics.primary,
        scores=scores,
        before=before,
        baseline=None if job.prepared.baseline is None else vars(job.prepared.baseline),
        steps=trainer.state.global_step,
        trainable_start=start_count,
        trainable_end=job.adaptation.count(),
        total_parameters=sum(p.numel() for p in job.model.parameters()),
        seconds=round(seconds, 3),
        peak_memory=record.peak_memory(),
        samples=[
            {"prompt": str(p), "before": b, "after": a}
            for p, b, a in zip(prompts, before_texts, generate(job, prompts), strict=True)
        ],
    )
    job.adaptation.save(folder / record.ADAPTER)
    record.write_json(folder / record.RESULTS, vars(result))
    return result


def evaluate_run(folder: Path, config: RunConfig) -> Scores:
    """The metrics of a finished run's adapter, computed anew from its files."""
    job = make_job(config, folder / record.ADAPTER)
    return evaluate(job, build_trainer(job, folder, None))


def _say_what(job: Job, console: Console) -> None:
    rows = f"{len(job.prepared.train):,} rows to train on, {len(job.prepared.validation):,} to evaluate on"
    console.print(f"task: {job.task}, because {job.task_reason}; {rows}")
    cut = {split: count for split, count in job.prepared.truncated.items() if count}
    if cut:
        console.print(f"cut to max_length={job.config.data.max_length}: {cut}")
    console.print(str(job.adaptation), highlight=False)
