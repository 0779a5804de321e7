"""The exact loss per token of a causal model: Trainer's eval_loss is a mean of batch means instead."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from rankwise.errors import DataError

IGNORED = -100
Rows = tuple[Tensor, Tensor]  # (batch,) each: what token_losses returns
Gather = Callable[[Rows], Rows]


def _own(rows: Rows) -> Rows:
    """In a single process its own rows are all."""
    return rows


def token_losses(
    logits: Tensor,  # (batch, tokens, vocabulary)
    labels: Tensor,  # (batch, tokens), -100: not counted
) -> Rows:
    """(sum of -log p in float64, number of tokens) of each row; token t is predicted from those before it."""
    kept = labels[:, 1:] != IGNORED
    losses = torch.zeros(kept.shape, dtype=torch.float64, device=logits.device)
    # only counted positions become float32: a whole batch of logits would not fit twice
    counted = nn.functional.cross_entropy(logits[:, :-1][kept].float(), labels[:, 1:][kept], reduction="none")
    losses[kept] = counted.double()
    return losses.sum(1), kept.sum(1)


@torch.no_grad()
def mean_token_loss(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], gather: Gather = _own) -> float:
    """Mean over all counted tokens of `batches`, which lie on the model's device and hold "labels".

    `gather` makes the rows of this process's batch those of every process's, each once. The model is in evaluation mode
    meanwhile. Raises DataError when no token counts.
    """
    total, count = 0.0, 0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            losses, tokens = gather(token_losses(model(**inputs).logits, batch["labels"]))
            total, count = total + float(losses.sum()), count + int(tokens.sum())
    finally:
        model.train(training)
    if count == 0:
        raise DataError("no token of the validation rows counts: max_length cuts every completion away. Raise it.")
    return total / count
