"""The exact loss per token of a causal model: Trainer's eval_loss is a mean of batch means instead."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rankwise.errors import DataError

IGNORED = -100


def token_losses(
    logits: Tensor,  # (batch, tokens, vocabulary)
    labels: Tensor,  # (batch, tokens), -100: not counted
) -> tuple[Tensor, Tensor]:
    """(sum of -log p in float64, number of tokens); token t is predicted from those before it."""
    kept = labels[:, 1:] != IGNORED
    # only counted positions become float32: a whole batch of logits would not fit twice
    losses = nn.functional.cross_entropy(logits[:, :-1][kept].float(), labels[:, 1:][kept], reduction="none")
    return losses.double().sum(), kept.sum()


@torch.no_grad()
def mean_token_loss(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Mean over all counted tokens of `batches`, which lie on the model's device and hold "labels".

    The model is in evaluation mode meanwhile. Raises DataError when no token counts.
    """
    total, count = 0.0, 0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            loss, tokens = token_losses(model(**inputs).logits, batch["labels"])
            total, count = total + float(loss), count + int(tokens)
    finally:
        model.train(training)
    if count == 0:
        raise DataError("no token of the validation rows counts: max_length cuts every completion away. Raise it.")
    return total / count
