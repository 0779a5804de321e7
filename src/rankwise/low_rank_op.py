"""The hot path: a frozen linear and its low-rank branch as one differentiable operation, with its plain twin.

    y = W x + b + out ⊙ (up @ (scale · gate ⊙ (down @ x)))

Automatic differentiation of the plain form keeps four activations a layer and runs the branch as separate kernels.
Written as one function, the branch is added into the base's own output, and only `x` (which siblings such as q, k and
v share) and the rank-sized product `h = down xᵀ` are kept for the backward pass. Dropout keeps a seed.
With X (N, d_in) the rows of x, g = ∂L/∂y (N, d_out) and U = out ⊙ up (d_out, r):

    h = down Xᵀ   (r, N)       z = scale · gate ⊙ h       y = X Wᵀ + b + zᵀ Uᵀ
    M = z g       (r, d_out)   ∂up = (M ⊙ out)ᵀ           ∂out = colsum(upᵀ ⊙ M)
    dz = Uᵀ gᵀ    (r, N)       ∂gate = scale · rowsum(dz ⊙ h)
    dh = scale · gate ⊙ dz     ∂down = dh X               ∂X = g W + dhᵀ down

Everything of rank size has its ranks first: products with eight rows run three to four times faster on a CPU than
the same products with eight columns. Nothing is computed for a factor that takes no gradient, so a frozen projection
costs its forward product only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rankwise.dropout import Dropout
from rankwise.plain import Plain


class Factors(NamedTuple):
    """What a method says about its update: Δ = diag(out) · up · diag(scale · gate) · down."""

    up: Tensor  # (d_out, r)
    down: Tensor  # (r, d_in)
    gate: Tensor | None = None  # (r,)
    out: Tensor | None = None  # (d_out,)
    scale: float = 1.0  # kept apart from `gate`: a number is folded into the matrix product for nothing

    def to(self, dtype: torch.dtype) -> "Factors":
        up, down, gate, out = (_cast(t, dtype) for t in self[:4])
        return Factors(up, down, gate, out, self.scale)  # type: ignore[arg-type]

    def delta(self) -> Tensor:
        """The update as one float32 matrix (d_out, d_in), scale included."""
        up, down, gate, out, scale = self.to(torch.float32)
        inner = up * scale if gate is None else up * (gate * scale)
        product = inner @ down
        return product if out is None else out[:, None] * product

    def folded(self, dtype: torch.dtype = torch.float64) -> Plain:
        """The same update as two matrices alone, scale and vectors folded into `up`."""
        up, down, gate, out, scale = self.to(dtype)
        up = up * scale if gate is None else up * (gate * scale)
        return Plain(up if out is None else out[:, None] * up, down)


def hold(factors: Factors, held: Sequence[Tensor]) -> Factors:
    """`factors` with the held tensors as constants, which cost no gradient, but not out of the graph.

    They hang on a vector that trains, and are given no gradient from there. DistributedDataParallel waits for every
    parameter it knows in every backward pass, and one that has left the graph would stop the run.
    """
    fixed = [None if t is None else t.detach() if any(t is h for h in held) else t for t in factors[:4]]
    up, down, gate, out = fixed
    if out is not None and out.requires_grad:
        out = _Held.apply(out, *held)  # type: ignore[no-untyped-call]
    elif gate is not None and gate.requires_grad:
        gate = _Held.apply(gate, *held)  # type: ignore[no-untyped-call]
    return Factors(up, down, gate, out, factors.scale)  # type: ignore[arg-type]


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, *held: Tensor) -> Tensor:
        ctx.count = len(held)
        return vector.view_as(vector)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (gradient, *[None] * ctx.count)


def low_rank_branch(x: Tensor, factors: Factors) -> Tensor:
    """The branch alone, by plain operations: x (..., d_in) -> (..., d_out). The twin every kind of base can use."""
    up, down, gate, out, scale = factors
    h = F.linear(x, down)
    z = h * scale if gate is None else h * (gate * scale)
    y = F.linear(z, up)
    return y if out is None else y * out


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors, dropout: Dropout | None = None
) -> Tensor:
    """Frozen linear plus branch, fused: x (..., d_in) -> (..., d_out). `dropout` is of the branch's input alone.

    Under autocast everything is cast to the autocast type here, so that the backward pass, which runs outside autocast,
    works in that same type; otherwise the factors follow `x`.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    up, down, gate, out, scale = factors
    tensors = [_cast(t, dtype) for t in (x, weight, bias, up, down, gate, out)]
    apply: Callable[..., Tensor] = _LowRankLinear.apply
    return apply(*tensors, scale, dropout)


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Asking first is cheaper than a conversion that converts nothing, and there are seven in every layer."""
    return t if t is None or t.dtype == dtype else t.to(dtype)


def _by_rank(gate: Tensor | None, scale: float) -> Tensor | float:
    """scale · gate as a column (r, 1), or the number alone."""
    if gate is None:
        return scale
    return gate.unsqueeze(1) if scale == 1 else gate.unsqueeze(1) * scale


def _times(h: Tensor, by: Tensor | float) -> Tensor:
    return h if not isinstance(by, Tensor) and by == 1 else h * by


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., d_in)
        weight: Tensor,  # (d_out, d_in), frozen
        bias: Tensor | None,  # (d_out,)
        up: Tensor,  # (d_out, r)
        down: Tensor,  # (r, d_in)
        gate: Tensor | None,  # (r,)
        out: Tensor | None,  # (d_out,)
        scale: float,
        dropout: Dropout | None,
    ) -> Tensor:
        X = x.reshape(-1, x.shape[-1])  # (N, d_in)
        h = down @ (X if dropout is None else dropout.apply(X)).T  # (r, N)
        # of `x` as it came: for `X` of a non-contiguous x another kernel is taken, which is not the base bit for bit
        y = F.linear(x, weight, bias)  # (..., d_out)
        Y = y.view(-1, y.shape[-1])  # (N, d_out)
        z = _times(h, _by_rank(gate, scale))  # (r, N)
        if out is None or _is_thin(up, X):
            Y.addmm_(z.T, _through(out, up).T)
        else:
            Y.addcmul_(z.T @ up.T, out)
        _, _, _, needs_up, needs_down, needs_gate, needs_out, *_ = ctx.needs_input_grad
        kept_X = X if needs_down else None
        kept_h = h if needs_up or needs_gate or needs_out else None
        ctx.save_for_backward(kept_X, kept_h, weight, up, down, gate, out)
        ctx.scale, ctx.dropout, ctx.shape = scale, dropout, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        X, h, weight, up, down, gate, out = ctx.saved_tensors
        needs_x, _, needs_bias, needs_up, needs_down, needs_gate, needs_out, *_ = ctx.needs_input_grad
        dropout: Dropout | None = ctx.dropout
        g = dy.reshape(-1, dy.shape[-1])  # (N, d_out)
        d_up = d_out = d_gate = d_down = dX = None
        by_rank = _by_rank(gate, ctx.scale)
        if needs_up or needs_out:
            M = _times(h, by_rank) @ g  # (r, d_out)
            if needs_out:
                d_out = (up.T * M).sum(dim=0)
            if needs_up:
                d_up = (M if out is None else M.mul_(out)).T
        if needs_x or needs_down or needs_gate:
            thin = out is None or _is_thin(up, g)
            dz = _through(out, up).T @ g.T if thin else up.T @ (g * out).T  # (r, N)
            if needs_gate:
                d_gate = _times((dz * h).sum(dim=1), ctx.scale)
            dh = _times(dz, by_rank)
            if needs_down:
                d_down = dh @ (X if dropout is None else dropout.apply(X))
            if needs_x:
                dX = _add_branch(g @ weight, dh, down, dropout).view(ctx.shape)
        d_bias = g.sum(dim=0) if needs_bias else None
        return dX, None, d_bias, d_up, d_down, d_gate, d_out, None, None


def _is_thin(up: Tensor, rows: Tensor) -> bool:
    """Whether a vector along d_out is cheaper to fold into the factor (d_out, r) than into the N rows."""
    return up.shape[1] < rows.shape[0]


def _through(out: Tensor | None, up: Tensor) -> Tensor:
    return up if out is None else out.unsqueeze(1) * up


def _add_branch(dX: Tensor, dh: Tensor, down: Tensor, dropout: Dropout | None) -> Tensor:
    """dX (N, d_in) plus what comes through the branch, in place."""
    if dropout is None:
        return dX.addmm_(dh.T, down)
    return dX.addcmul_(dh.T @ down, dropout.mask(dX), value=dropout.survivors_scale)
