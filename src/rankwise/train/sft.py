"""The trainer for causal models. A file of its own, for importing trl takes seconds."""

from trl import SFTTrainer

from rankwise.train.trainer import AdaptationMixin


class AdaptationSFTTrainer(AdaptationMixin, SFTTrainer):
    """For causal language models, with trl's data shapes and prompt masking."""
