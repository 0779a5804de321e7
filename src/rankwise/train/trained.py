"""How much trained over a run, from the decisions in its history:

average = (1/T) Σ_t n(t)        n(t) the parameters that train in step t, alive and not frozen
"""

from collections.abc import Iterator
from math import prod

from rankwise.adaptation import Adaptation


def trainable_average(adaptation: Adaptation, steps: int) -> float:
    """Of a run of `steps` optimizer steps that has just ended. What is decided after step t holds from t + 1 on."""
    total, since, now = 0, 0, adaptation.count()
    for step, count in _counts(adaptation):
        total += now * (step - since)
        since, now = step, count
    return (total + now * (steps - since)) / steps


def head_parameters(adaptation: Adaptation) -> int:
    """Parameters that train in full beside what the method is about."""
    return sum(p.numel() for name, p in adaptation.trained.items() if name not in adaptation.tuned)


def _counts(adaptation: Adaptation) -> Iterator[tuple[int, int]]:
    """(first step, parameters that train from it on), for the start and after each decision."""
    layers = adaptation.adapters
    others = adaptation.count() - sum(layer.count() for layer in layers.values())  # heads and parts: they stay
    ranks, frozen = {name: layer.rank for name, layer in layers.items()}, set(adaptation.frozen())
    sizes = [
        (f"{name}.{tensor}", name, layer.rank_dims.get(tensor), layer.own_parameter(tensor).shape)
        for name, layer in layers.items()
        for tensor in layer.own_parameters()
        if layer.trains(tensor) or f"{name}.{tensor}" in frozen
    ]
    frozen = set()
    for event in adaptation.history.lines:
        ranks |= event.get("ranks", {})
        frozen |= set(event.get("frozen", ()))
        count = sum(
            prod(ranks[name] if d == dim else n for d, n in enumerate(shape))
            for tensor, name, dim, shape in sizes
            if tensor not in frozen
        )
        yield (0 if event["event"] == "started" else event["step"] + 1), others + count
