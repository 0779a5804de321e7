"""Adapter-only, atomic checkpoints and exact resume, as one mixin over transformers' trainers."""

import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rankwise.adaptation import Adaptation
from rankwise.distributed import from_all, is_first, together
from rankwise.errors import NonFiniteError, StateError
from rankwise.io.atomic import recover_all, remove_folder, write_json
from rankwise.train.by_length import ByLength
from rankwise.train.callback import AdaptationCallback
from rankwise.train.checkpoint import LOSS_SUMS, check_checkpoint, read_loss_sums, readable
from rankwise.train.hub import push_checkpoint
from rankwise.train.shared_folder import shared_folder
from rankwise.train.trackers import report_ranks

_Base = Trainer if TYPE_CHECKING else object


def complete_checkpoints(run: Path) -> list[Path]:
    """Checkpoints below `run`, oldest first. A name without the staging mark is only ever given to a whole one."""
    found = [(int(m[1]), p) for p in run.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


class AdaptationMixin(_Base):  # type: ignore[misc, valid-type]
    """A Trainer whose checkpoints are native adapter folders with the optimizer's state beside.

    It owns the adaptation's callback, so allocation cannot be left out.
    """

    def __init__(
        self,
        *args: Any,
        adaptation: Adaptation,
        history: Path | None = None,
        head_learning_rate: float | None = None,
        group_by_length: bool = False,
        **kwargs: Any,
    ) -> None:
        self.adaptation = adaptation
        self.head_learning_rate, self.group_by_length = head_learning_rate, group_by_length
        self._loss_sums: dict[str, Any] | None = None  # of the checkpoint that is being resumed
        self._began, self._earlier_seconds = time.monotonic(), 0.0
        self.optimizer: torch.optim.Optimizer | None
        super().__init__(*args, **kwargs)
        if not self._loss_shifts_labels:
            # Trainer takes a model whose forward has **kwargs for one that divides its loss by the rows of the whole
            # step. Only causal ones do: the others' loss would be as many times too large as there are passes in a
            # step, and processes.
            self.model_accepts_loss_kwargs = False
        self.adaptation_callback = AdaptationCallback(adaptation, history)
        self.adaptation_callback.saves = False
        self.add_callback(self.adaptation_callback)
        report_ranks(self, adaptation)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; a resumed run ends bit for bit where the uninterrupted one does, its training loss included."""
        if resume_from_checkpoint:
            known = complete_checkpoints(Path(self.args.output_dir))[-1:]
            for folder in known if resume_from_checkpoint is True else [Path(resume_from_checkpoint)]:
                check_checkpoint(folder)
        self._began, self._earlier_seconds = time.monotonic(), 0.0
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        except NonFiniteError:
            self._save_checkpoint(self.model_wrapped, None)  # of the last good weights
            raise
        finally:
            self.adaptation_callback.detach()
        return output._replace(training_loss=self._mean_loss())

    @property
    def seconds(self) -> float:
        """Since training began; of a resumed run, with what had passed up to its checkpoint."""
        return self._earlier_seconds + time.monotonic() - self._began

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's, but without a trace in the random state: a resumed run does not repeat past evaluations."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        numbers, arrays = random.getstate(), numpy.random.get_state()
        with torch.random.fork_rng(devices):
            scores: dict[str, float] = super().evaluate(*args, **kwargs)
        random.setstate(numbers)
        numpy.random.set_state(arrays)
        return scores

    def _mean_loss(self) -> float:
        """Mean loss over all steps of the run: Trainer's own covers only the steps since a resume."""
        return float(self._total_loss_scalar / max(1, self.state.global_step))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self._mean_loss()}
        super().log(logs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._loss_sums is not None:
            self._tr_loss.fill_(self._loss_sums["since_logged"][self.args.process_index])
            self._total_loss_scalar = self._loss_sums["total"]
            self._globalstep_last_logged = self._loss_sums["last_logged"]
            self._loss_sums = None
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.group_by_length:
            return super()._get_train_sampler(dataset)
        args = self.args
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return ByLength([len(ids) for ids in dataset["input_ids"]], rows, seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group for low-rank tensors, two for what else the method trains and two for the heads: their biases and
        norms do not decay."""
        optimizer: torch.optim.Optimizer | None = self.optimizer
        if optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate, decay, adaptation = self.args.learning_rate, self.args.weight_decay, self.adaptation
            head_rate = rate if self.head_learning_rate is None else self.head_learning_rate
            added = [p for part in adaptation.parts.values() for p in part.parameters()]
            tuned = [p for name, p in adaptation.trained.items() if name in adaptation.tuned]
            heads = [p for name, p in adaptation.trained.items() if name not in adaptation.tuned]
            others = {id(p) for p in (*added, *tuned, *heads)}
            low_rank = [p for p in adaptation.parameters() if id(p) not in others]
            groups = [
                {"params": low_rank, "weight_decay": decay},
                *_decaying([*added, *tuned], decay, rate),
                *_decaying(heads, decay, head_rate),
            ]
            self.optimizer = optimizer = cls([group for group in groups if group["params"]], **kwargs)
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter folder. Every process comes here: under FSDP2 each gives its part, and one writes."""
        folder = Path(output_dir or self.args.output_dir)
        self.adaptation.save(folder)
        if self.processing_class is not None and is_first():
            self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The whole checkpoint is staged, synced and renamed; only then are older ones removed.

        In a group of processes each adds its own random state to the folder that the first one stages.
        """
        self.adaptation_callback.flush()
        self.store_flos()
        run = Path(self._get_output_dir(trial=trial))
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.state.best_global_step and (best == folder or best.exists()):
            self.state.best_model_checkpoint = str(best)
        with shared_folder(folder) as staging:
            with together():
                self.save_model(str(staging), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(staging))
                self._save_scaler(str(staging))
                self._save_rng_state(str(staging))
            sums = {"since_logged": from_all(self._tr_loss.item()), "total": self._total_loss_scalar}
            if is_first():
                self.state.save_to_json(str(staging / TRAINER_STATE_NAME))
                rest = {"last_logged": self._globalstep_last_logged, "seconds": self.seconds}
                write_json(staging / LOSS_SUMS, sums | rest)
        if self.args.push_to_hub:
            push_checkpoint(self, folder)
        if is_first():
            self._remove_old(run)

    def _remove_old(self, run: Path) -> None:
        recover_all(run, f"{PREFIX_CHECKPOINT_DIR}-")
        if self.args.save_total_limit is None:
            return
        for folder in complete_checkpoints(run)[: -self.args.save_total_limit]:
            if str(folder) != self.state.best_model_checkpoint:
                remove_folder(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.adaptation.restore(folder)
        self._loss_sums = sums = read_loss_sums(folder)
        self._earlier_seconds = sums.get("seconds") or 0.0
        if len(sums["since_logged"]) != self.args.world_size:
            raise StateError(
                f"{folder} was written by {len(sums['since_logged'])} processes; with {self.args.world_size} the run "
                "would see other rows and would not continue where it was. Resume with as many."
            )

    def _load_callback_state(self) -> None:
        with readable(TRAINER_STATE_NAME):
            super()._load_callback_state()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        self.adaptation_callback.detach()  # the last step has been taken
        self.adaptation.restore(self.state.best_model_checkpoint)  # what had frozen then included

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Before the final phase of a budgeted method a checkpoint has more ranks than the run may end with."""
        controller = self.adaptation.controller
        if controller is not None and not controller.settled:
            return False
        is_best: bool = super()._determine_best_metric(metrics, trial)
        return is_best


def _decaying(parameters: list[nn.Parameter], decay: float, rate: float) -> list[dict[str, Any]]:
    """Their groups for an optimizer: matrices decay, vectors do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay, "lr": rate},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
    ]


class AdaptationTrainer(AdaptationMixin, Trainer):
    """For classification, regression and span question answering."""


class AdaptationSeq2SeqTrainer(AdaptationMixin, Seq2SeqTrainer):
    """For encoder-decoders, evaluated by what they generate."""
