"""What a run is, as settings: the whole of config.yaml and of the command line of `rankwise train`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rankwise.adapter import Method
from rankwise.errors import ConfigError
from rankwise.train.data_config import DataConfig


def check_least(section: str, settings: Any, least: int, names: Iterable[str]) -> None:
    """Raise ConfigError for a number below `least`, infinite or NaN. Words and None pass."""
    for name in names:
        value = vars(settings)[name]
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise ConfigError(f"{section}.{name}={value} is not possible; it must be a number, {least} or more.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how fast, how precisely."""

    learning_rate: float | None = None
    """Peak learning rate of the adapters. None: the method's own."""
    head_learning_rate: float | None = None
    """Peak learning rate of what trains in full beside them. None: the same."""
    epochs: float = 3.0
    """Passes over the training rows, unless `steps` is given."""
    steps: int | None = None
    """Optimizer steps of the whole run. None: as `epochs` says."""
    batch_size: int = 16
    """Rows per forward pass, in each process."""
    gradient_accumulation: int = 1
    """Forward passes per optimizer step."""
    group_by_length: bool = False
    """Put rows of about one length into one batch: faster where lengths differ, and a less random order."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices and adapter tensors."""
    warmup: float = 0.06
    """Share of the steps, from the first, in which the learning rate rises."""
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """Course of the learning rate after its warmup."""
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    optimizer: Literal["adamw_torch_fused", "adamw_torch"] = "adamw_torch_fused"
    """AdamW: fused, or as a loop over the tensors, which takes longer."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward pass; fp16 also scales the loss. Adapters stay in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, less memory."""
    evaluate_every: int | Literal["epoch", "never"] = "epoch"
    """Optimizer steps between evaluations, "epoch" or "never"; the end is always evaluated."""
    save_every: int | Literal["epoch", "never"] = "epoch"
    """Optimizer steps between checkpoints, "epoch" or "never"."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints to keep."""
    load_best: bool = False
    """End with the best evaluated checkpoint; for a budgeted method, the best of the final phase."""
    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)
    """Trackers that get what is logged, with ranks, budget and frozen share; each is a package to install."""
    seed: int = 0
    """Seed of adapters, heads, dropout and the order of the rows."""

    def __post_init__(self) -> None:
        at_least_1 = ("steps", "batch_size", "gradient_accumulation", "keep_checkpoints", "log_every")
        check_least("training", self, 1, (*at_least_1, "evaluate_every", "save_every"))
        check_least("training", self, 0, ("learning_rate", "head_learning_rate", "weight_decay", "clip", "seed"))
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"training.warmup={self.warmup} is a share of the steps and must be in [0, 1).")
        if not 0 < self.epochs < math.inf:
            raise ConfigError(
                f"training.epochs={self.epochs} is not possible; it must be a number above 0, such as 0.5 or 3."
            )
        if self.seed >= 2**32:
            raise ConfigError(f"training.seed={self.seed} is too large; the largest is {2**32 - 1}.")
        if self.load_best:
            self._check_best()

    def length(self, rows: int) -> tuple[int, int]:
        """(optimizer steps of the run, those of an epoch) over so many training rows, in one process."""
        batches = math.ceil(rows / self.batch_size)
        steps_per_epoch = math.ceil(batches / self.gradient_accumulation)
        steps = math.ceil(self.epochs * steps_per_epoch) if self.steps is None else self.steps
        return steps, steps_per_epoch

    def _check_best(self) -> None:
        evaluate, save = self.evaluate_every, self.save_every
        if "never" in (evaluate, save):
            raise ConfigError(
                "training.load_best needs evaluations and checkpoints; set evaluate_every and save_every."
            )
        in_steps = isinstance(evaluate, int) and isinstance(save, int)
        if evaluate != save and not (in_steps and save % evaluate == 0):  # type: ignore[operator]
            raise ConfigError(
                f"training.load_best needs an evaluation with every checkpoint; evaluate_every={evaluate!r} and "
                f"save_every={save!r} do not meet. Make them equal, or save_every a multiple of evaluate_every."
            )


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is generated for evaluation: seq2seq always, causal models when `rows` is above 0."""

    rows: int = 0
    """Causal models: how many validation prompts are answered and scored; needs prompt and completion."""
    max_new_tokens: int = 64
    """Longest generated text in tokens."""
    beams: int = 1
    """Beams of the search; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length in the score of a beam."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice; 0 turns it off."""
    score: Literal["text", "nlg", "number", "query"] = "text"
    """What generated text is scored by: overlap of words, E2E NLG's scores, the final number or the whole query."""

    def __post_init__(self) -> None:
        check_least("generation", self, 1, ("max_new_tokens", "beams"))
        check_least("generation", self, 0, ("rows", "no_repeat_ngram_size"))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is made from; `config.yaml` in a run folder is this, complete."""

    model: str
    """Hub id or folder of the model."""
    method: Method
    """The adaptation method and its settings: {name: adalora, rank: 12}."""
    data: DataConfig
    """Rows to train on and to evaluate on."""
    output: str
    """The run folder to write."""
    task: str | None = None
    """classification, regression, span-qa, causal-lm or seq2seq; None: found from columns and model, and printed."""
    init_from: str | None = None
    """Start from this saved adapter's weights; its method and settings must be those given here."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to train."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How to generate text for evaluation."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run code that comes with the model; false: a model that needs it is refused."""

    def __post_init__(self) -> None:
        if self.training.learning_rate is None:  # written out, so that a run is made again whatever a method's will be
            training = replace(self.training, learning_rate=self.method.learning_rate)
            object.__setattr__(self, "training", training)
