"""The trainer for a job."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig as HFGenerationConfig
from transformers import PrinterCallback, Seq2SeqTrainingArguments, TrainingArguments

from rankwise.train.job import Job
from rankwise.train.record import TENSORBOARD
from rankwise.train.trackers import write_tensorboard_to
from rankwise.train.trainer import AdaptationMixin, AdaptationSeq2SeqTrainer, AdaptationTrainer


def build_trainer(job: Job, output: Path, history: Path | None) -> AdaptationMixin:
    """The task's trainer over the job's model and rows. It writes below `output` only."""
    cls, arguments_cls, extra = _kind(job)
    arguments = arguments_cls(**_arguments(job, output), **extra)
    metrics = {} if job.metrics.compute is None else {"compute_metrics": job.metrics.compute}
    collator = {} if job.prepared.collator is None else {"data_collator": job.prepared.collator}
    trainer: AdaptationMixin = cls(
        model=job.model,
        args=arguments,
        train_dataset=job.prepared.train,
        eval_dataset=job.prepared.validation,
        processing_class=job.tokenizer,
        adaptation=job.adaptation,
        history=history,
        head_learning_rate=job.config.training.head_learning_rate,
        group_by_length=job.config.training.group_by_length,
        **metrics,
        **collator,
    )
    trainer.remove_callback(PrinterCallback)  # one progress bar is enough
    write_tensorboard_to(trainer, output / TENSORBOARD)
    return trainer


def _kind(job: Job) -> tuple[Any, Any, dict[str, Any]]:
    if job.task == "causal-lm":
        from trl import SFTConfig  # seconds to import, and only causal models need it

        from rankwise.train.sft import AdaptationSFTTrainer

        extra = {
            "max_length": job.config.data.max_length,
            "completion_only_loss": job.prepared.completion_only,
            "packing": False,
            "loss_type": "nll",
            "gradient_checkpointing": job.config.training.gradient_checkpointing,  # trl's default is on
        }
        return AdaptationSFTTrainer, SFTConfig, extra
    if job.task == "seq2seq":
        generation = {"predict_with_generate": True, "generation_config": generation_config(job)}
        return AdaptationSeq2SeqTrainer, Seq2SeqTrainingArguments, generation
    return AdaptationTrainer, TrainingArguments, {}


def generation_config(job: Job) -> HFGenerationConfig:
    """The model's own generation settings with the run's on top; never sampled, so that evaluation repeats."""
    settings = job.config.generation
    config = HFGenerationConfig.from_dict(job.model.generation_config.to_dict())
    config.update(
        max_new_tokens=settings.max_new_tokens,
        max_length=None,
        num_beams=settings.beams,
        length_penalty=settings.length_penalty,
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=job.tokenizer.pad_token_id,
    )
    return config


def _arguments(job: Job, output: Path) -> dict[str, Any]:
    t = job.config.training
    given: dict[str, Any] = {
        "output_dir": str(output / "checkpoints"),
        "learning_rate": t.learning_rate,
        "num_train_epochs": t.epochs,
        "max_steps": -1 if t.steps is None else t.steps,
        "per_device_train_batch_size": t.batch_size,
        "per_device_eval_batch_size": 2 * t.batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation,
        "weight_decay": t.weight_decay,
        "warmup_steps": t.warmup,
        "lr_scheduler_type": t.scheduler,
        "max_grad_norm": t.clip,
        "optim": t.optimizer,
        "bf16": t.precision == "bf16",
        "fp16": t.precision == "fp16",
        "seed": t.seed,
        "data_seed": t.seed,
        "logging_steps": t.log_every,
        "report_to": list(t.report_to),
        "run_name": str(
            output
        ),  # a tracker that is asked again, for the last scores or on resume, goes on with the run
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),  # bf16 is refused otherwise where there is no accelerator
        "save_total_limit": t.keep_checkpoints,
        "load_best_model_at_end": t.load_best,
        "metric_for_best_model": "eval_loss" if job.metrics.compute is None else f"eval_{job.metrics.primary}",
        "greater_is_better": job.metrics.higher_is_better,
        "activation_checkpointing": t.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if t.gradient_checkpointing else None,
    }
    return given | _when("eval", t.evaluate_every) | _when("save", t.save_every)


def _when(what: str, every: int | str) -> dict[str, Any]:
    if every in ("epoch", "never"):
        return {f"{what}_strategy": "no" if every == "never" else "epoch"}
    return {f"{what}_strategy": "steps", f"{what}_steps": every}
