"""A whole run: job, baseline, training, evaluation, files."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from rankwise import base_layers
from rankwise.distributed import is_first, together
from rankwise.io.atomic import recover_all, write_json
from rankwise.train import record
from rankwise.train.build import build_trainer
from rankwise.train.config import RunConfig
from rankwise.train.evaluation import Scores, check_room, evaluate, generate, sample_prompts
from rankwise.train.job import Job, make_job
from rankwise.train.progress import MetricsFile, ProgressCallback
from rankwise.train.trackers import check_installed
from rankwise.train.trained import head_parameters, trainable_average
from rankwise.train.trainer import complete_checkpoints


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run reached, and at what cost."""

    task: str
    primary: str
    scores: Scores
    before: Scores  # the untouched model, or empty where the majority class says more
    baseline: dict[str, float | str] | None  # name, metric, value
    steps: int
    training_loss: float
    trainable_start: int
    trainable_end: int
    trainable_average: float  # over the steps of the run
    head_parameters: int  # of the trainable ones, those that train in full beside what the method is about
    total_parameters: int
    seconds: float  # of training, up to a checkpoint and from there on where the run was resumed
    peak_memory: int  # bytes
    samples: list[dict[str, str]]  # prompt, before, after; of causal models that generate
    labels: list[str] | None  # names of the classes, in the order of the model's outputs


def train(config: RunConfig, console: Console, *, resume: bool = False) -> Result:
    """Train, evaluate and save. Everything is checked before the run folder is made.

    With `resume`, continue the unfinished run in `config.output` from its last checkpoint, or begin if there is none.
    """
    folder = Path(config.output)
    _join_processes()
    console.quiet = console.quiet or not is_first()
    with together():
        record.check_output(folder, config, resume=resume)
        check_installed(config.training.report_to)
    job = make_job(config)
    _check_schedule(job)
    check_room(job)
    _say_what(job, console)
    with together():
        if is_first():
            record.begin(folder, config, resume=resume)
    trainer = build_trainer(job, folder, folder / record.HISTORY)
    progress = ProgressCallback(job.adaptation, console)
    trainer.add_callback(progress)
    if is_first():
        trainer.add_callback(MetricsFile(folder / record.METRICS))
    prompts = sample_prompts(job)
    with job.adaptation.disabled():
        before = evaluate(job, trainer) if job.prepared.baseline is None else {}
        before_texts = generate(job, trainer, prompts)
    start_count = job.adaptation.count()
    try:
        output = _trained(trainer, folder / record.CHECKPOINTS)
    finally:
        progress.close()
    seconds = trainer.seconds
    scores = evaluate(job, trainer)
    result = Result(
        task=job.task,
        primary=job.metrics.primary,
        scores=scores,
        before=before,
        baseline=None if job.prepared.baseline is None else vars(job.prepared.baseline),
        steps=trainer.state.global_step,
        training_loss=output.training_loss,
        trainable_start=start_count,
        trainable_end=job.adaptation.count(),
        trainable_average=trainable_average(job.adaptation, trainer.state.global_step),
        head_parameters=head_parameters(job.adaptation),
        total_parameters=base_layers.count(job.model),
        seconds=round(seconds, 3),
        peak_memory=record.peak_memory(),
        samples=[
            {"prompt": str(p), "before": b, "after": a}
            for p, b, a in zip(prompts, before_texts, generate(job, trainer, prompts), strict=True)
        ],
        labels=None if job.prepared.labels is None else list(job.prepared.labels.names),
    )
    with together():
        job.adaptation.save(folder / record.ADAPTER)
        if is_first():
            write_json(folder / record.RESULTS, record.finite(vars(result)))
    return result


def _trained(trainer: Trainer, folder: Path) -> TrainOutput:
    """Train, from the last complete checkpoint in the folder if there is one."""
    with together():
        if is_first():
            recover_all(folder, "checkpoint-")
    checkpoints = complete_checkpoints(folder)
    output: TrainOutput = trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
    return output


def _join_processes() -> None:
    """Under a launcher, become one of its processes at once: transformers does so only when the trainer is made."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.accelerator.is_available())


def evaluate_run(folder: Path, config: RunConfig) -> Scores:
    """The metrics of a finished run's adapter, computed anew from its files. No tracker hears of them."""
    config = replace(config, training=replace(config.training, report_to=[]))
    job = make_job(config, folder / record.ADAPTER)
    return evaluate(job, build_trainer(job, folder, None))


def _check_schedule(job: Job) -> None:
    """Make the run's controller and let it go: a schedule that leaves no room is refused before anything is written.

    On several devices there are fewer steps than this counts; the trainer, which knows, refuses then.
    """
    adaptation = job.adaptation
    steps, steps_per_epoch = job.config.training.length(len(job.prepared.train))
    adaptation.method.controller(adaptation.adapters, steps, steps_per_epoch)


def _say_what(job: Job, console: Console) -> None:
    rows = f"{len(job.prepared.train):,} rows to train on, {len(job.prepared.validation):,} to evaluate on"
    console.print(f"task: {job.task}, because {job.task_reason}; {rows}")
    console.print(f"learning rate: {job.config.training.learning_rate:g}")
    length = f"max_length={job.config.data.max_length} tokens"
    cut, left_out = _counted(job.prepared.truncated), _counted(job.prepared.left_out)
    if cut:
        done = "split into windows of" if job.task == "span-qa" else "cut to"
        console.print(f"{done} {length}: {cut}")
    if left_out:
        console.print(f"left out, for {length} leave nothing of the completion: {left_out}")
    console.print(str(job.adaptation), highlight=False)


def _counted(rows: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split} rows" for split, count in rows.items() if count)
