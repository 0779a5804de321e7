"""Merging with proof: W ← round(W + Δ), added in float32 and rounded once, and three figures of what that costs.

of each layer     ‖merged(x) − (base(x) + Δx)‖ / ‖base(x) + Δx‖             x random
of each update    ‖(round(W + Δ) − W) − Δ‖ / ‖Δ‖                            what rounding takes from it
end to end        outputs of the merged model against the adapted one's     on samples, if there are any
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.base_layers import add_to_weight_, device_of, dtype_of, holder, is_packed, on, sizes, unpacked, weight
from rankwise.errors import StateError
from rankwise.low_rank_op import low_rank_branch
from rankwise.surgery import replace_modules

Sample = Mapping[str, Tensor]
MOST_LOST = 0.1  # share of an update that rounding may take without a warning


@dataclass(frozen=True)
class EndToEnd:
    """How far the outputs of the merged model are from those of the adapted one, over all samples."""

    difference: float  # largest of any logit
    relative: float  # over the largest logit
    kl_mean: float  # KL(adapted ‖ merged) of the distributions over the last dimension, in nats
    kl_largest: float
    same_top: float  # share of distributions whose likeliest entry is the same
    distributions: int

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.difference:.1e} ({self.relative:.1e} of the largest), KL mean "
            f"{self.kl_mean:.1e}, largest {self.kl_largest:.1e}, same first choice in {self.same_top:.2%} of "
            f"{self.distributions:,} distributions"
        )


@dataclass(frozen=True)
class MergeError:
    """How far the merged layers, their updates, and the outputs on samples are from what they were."""

    layers: dict[str, float]
    lost: dict[str, float] = field(default_factory=dict)
    end_to_end: EndToEnd | None = None

    @property
    def largest(self) -> float:
        return max(self.layers.values(), default=0.0)

    @property
    def median(self) -> float:
        return median(self.layers.values() or [0.0])

    def warning(self) -> str | None:
        """What rounding took, if it took more than MOST_LOST of some update."""
        much = {name: share for name, share in self.lost.items() if share > MOST_LOST}
        if not much:
            return None
        worst = max(much, key=much.__getitem__)
        return (
            f"rounding loses more than {MOST_LOST:.0%} of the update in {len(much)} of {len(self.lost)} layers "
            f"(median {median(self.lost.values()):.0%}, largest {much[worst]:.0%} in {worst}). "
            "Merge into float32 weights, or keep the adapter beside its base."
        )

    def __str__(self) -> str:
        if not self.layers:
            return "nothing to merge: the weights of the model itself were trained"
        name = max(self.layers, key=self.layers.__getitem__)
        figures = f"median {self.median:.1e}, largest {self.largest:.1e} in {name}"
        lines = [f"relative error of {len(self.layers)} merged layers: {figures}"]
        if self.lost:
            worst = max(self.lost, key=self.lost.__getitem__)
            figures = f"median {median(self.lost.values()):.2%}, largest {self.lost[worst]:.2%} in {worst}"
            lines.append(f"lost of the updates in rounding: {figures}")
        return "\n".join(lines + ([f"end to end: {self.end_to_end}"] if self.end_to_end else []))


class How(NamedTuple):
    """What a merge may do, and what it is measured on."""

    dequantize: bool  # whether quantised layers may get ordinary successors
    dtype: torch.dtype | None  # to round to; None: each layer's own
    samples: Sequence[Sample]


def merge(
    model: nn.Module,
    adapters: Mapping[str, LowRank],
    take_out: Callable[[], object],
    how: How,
) -> MergeError:
    """Add every update to its weight, `take_out` the adapters, and measure. Warns where rounding loses much.

    Raises StateError, with nothing merged, if a base is quantised and `dequantize` is off, or an update is not finite.
    """
    _check_packed(adapters, how.dequantize)
    _check_finite(adapters)
    before = [logits(model, sample) for sample in how.samples]
    error, successors = _add_updates(model, adapters, how.dtype)
    take_out()
    replace_modules(model, successors)
    if how.dtype is not None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(how.dtype)
    if how.samples:
        error = replace(error, end_to_end=compared(before, [logits(model, sample) for sample in how.samples]))
    told = error.warning()
    if told:
        warnings.warn(told, stacklevel=3)
    return error


def _check_packed(adapters: Mapping[str, LowRank], dequantize: bool) -> None:
    packed = [name for name, adapter in adapters.items() if is_packed(adapter.base)]
    if packed and not dequantize:
        raise StateError(
            f"{len(packed)} of {len(adapters)} layers have a quantised weight, {packed[0]} first, and most of an "
            "update would be lost in rounding to it. merge(dequantize=True) puts ordinary linears in their places, "
            "which take more memory; or save() the adapter and keep it beside the quantised model."
        )


def _check_finite(adapters: Mapping[str, LowRank]) -> None:
    broken = [n for n, a in adapters.items() if not all(torch.isfinite(t).all() for t in a.tensors().values())]
    if broken:
        raise StateError(
            f"{len(broken)} of {len(adapters)} layers hold values that are NaN or infinite, {broken[0]} first, and "
            "merging would destroy the weights beneath. The run diverged; load an earlier checkpoint."
        )


@torch.no_grad()
def _add_updates(
    model: nn.Module, adapters: Mapping[str, LowRank], dtype: torch.dtype | None
) -> tuple[MergeError, dict[nn.Module, nn.Module]]:
    """The updates are in the weights, but for those of quantised layers, which have ordinary linears as successors."""
    parts: dict[nn.Module, dict[str, LowRank]] = {}  # the blocks of a fused layer together: it is unpacked once
    for name, adapter in adapters.items():
        parts.setdefault(holder(adapter.base), {})[name] = adapter
    others_dtype = _dtype_outside(model, adapters)
    errors, lost = dict[str, float](), dict[str, float]()
    successors: dict[nn.Module, nn.Module] = {}
    for layer, blocks in parts.items():
        merged = _merged(layer, blocks, dtype_of(layer) or others_dtype, dtype, errors, lost)
        if merged is not layer:
            successors[layer] = merged
    return MergeError(errors, lost), successors


def _merged(
    layer: nn.Module,
    blocks: Mapping[str, LowRank],
    computes_in: torch.dtype,
    rounds_to: torch.dtype | None,
    errors: dict[str, float],
    lost: dict[str, float],
) -> nn.Module:
    """The layer with its updates added, itself or a successor; the figures of each block go into the two dicts."""
    x = _probe(layer, computes_in)
    expected = {
        n: a.base(x).float() + low_rank_branch(x, a.factors().to(computes_in)).float() for n, a in blocks.items()
    }
    packed = is_packed(layer)
    if packed:
        merged: nn.Module = unpacked(layer)
    else:  # in float32 where it is rounded to another type than its own
        merged = layer if rounds_to is None else layer.float()
    end = rounds_to or (computes_in if packed else weight(merged).dtype)
    for name, adapter in blocks.items():
        base, delta = on(merged, adapter.base), adapter.delta()
        W = weight(base).float() + delta.to(device_of(base))
        lost[name] = _share(W.to(end).float() - W, delta)
        add_to_weight_(base, delta)
        weight(base).copy_(weight(base).to(end))
    if packed:
        merged = merged.to(computes_in)
    for name, adapter in blocks.items():
        y, base = expected[name], on(merged, adapter.base)
        errors[name] = _share(base(x.to(weight(base).dtype)).float() - y, y)
    return merged


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.norm() / whole.norm().clamp_min(1e-30)) if part.any() else 0.0


def _probe(layer: nn.Module, dtype: torch.dtype, rows: int = 32) -> Tensor:
    """Normal inputs, the same each time and without touching the global generator."""
    x = torch.randn(rows, sizes(layer)[0], generator=torch.Generator().manual_seed(0))
    return x.to(device_of(layer), dtype)


def _dtype_outside(model: nn.Module, adapters: Mapping[str, LowRank]) -> torch.dtype:
    """The type of the model around its adapters, for layers that do not say theirs."""
    own = {p for adapter in adapters.values() for p in adapter.parameters(recurse=False)}
    return next((p.dtype for p in model.parameters() if p not in own and p.is_floating_point()), torch.float32)


@torch.no_grad()
def logits(model: nn.Module, sample: Sample) -> Tensor:
    """What the model says of a sample, in evaluation mode: (distributions, entries), float32; padding left out."""
    training = model.training
    model.eval()
    try:
        output: Any = model(**sample)
    finally:
        model.train(training)
    if "logits" in output:
        found = output.logits
    elif "start_logits" in output:  # spans: two distributions over the tokens
        found = torch.stack([output.start_logits, output.end_logits], dim=1)
    else:
        raise StateError(f"a {type(model).__name__} gives no logits, so samples cannot be compared. Leave them out.")
    mask = sample.get("attention_mask")
    if mask is not None and found.shape[:-1] == mask.shape:
        found = found[mask.bool()]
    return found.reshape(-1, found.shape[-1]).float().cpu()  # type: ignore[no-any-return]


def compared(adapted: Sequence[Tensor], merged: Sequence[Tensor]) -> EndToEnd:
    """Of what `logits` gave for the same samples before and after."""
    before, after = list(adapted), list(merged)
    gaps = [(b - a).abs().max() for b, a in zip(before, after, strict=True)]
    difference, largest = float(torch.stack(gaps).max()), max(float(b.abs().max()) for b in before)
    kl = torch.cat([_kl(b, a) for b, a in zip(before, after, strict=True)])
    same = torch.cat([b.argmax(-1) == a.argmax(-1) for b, a in zip(before, after, strict=True)])
    return EndToEnd(
        difference=difference,
        relative=difference / max(largest, 1e-30),
        kl_mean=float(kl.mean()),
        kl_largest=float(kl.max()),
        same_top=float(same.float().mean()),
        distributions=kl.numel(),
    )


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of each row of logits, in float64: near 0 it is a difference of large numbers."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
