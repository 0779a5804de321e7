"""Pruned LoRA, literally: W = W0 + c · B A, with doublets {B_*i, A_i*} pruned by AdaLoRA's importance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.adalora import AdaLoRATwin
from reference.schedules import budget_schedule

Doublets = tuple[Tensor, Tensor]  # B (d_out, r), A (r, d_in)


class PrunedLoRATwin:
    """What is decided over n matrices; it is told gradients and weights, and says what the weights are then.

    `size` is the final budget in parameters, where a doublet costs d_out + d_in; None: `target` doublets.
    """

    def __init__(
        self,
        matrices: Sequence[Doublets],
        *,
        total: int,
        warmup: int,
        cooldown: int,
        every: int,
        target: int = 0,
        size: int | None = None,
        mask: str = "release",
        beta1: float = 0.85,
        beta2: float = 0.85,
    ) -> None:
        self.schedule = {"total": total, "warmup": warmup, "cooldown": cooldown, "every": every}
        self.costs = [B.shape[0] + A.shape[1] if size is not None else 1 for B, A in matrices]
        self.start = sum(cost * B.shape[1] for cost, (B, _) in zip(self.costs, matrices, strict=True))
        self.end = target if size is None else size
        self.sized, self.mask, self.beta1, self.beta2 = size is not None, mask, beta1, beta2
        self.mean = [[torch.zeros(w.shape) for w in pair] for pair in matrices]  # Ī
        self.uncertainty = [[torch.zeros(w.shape) for w in pair] for pair in matrices]  # Ū
        self.masks = [torch.ones(B.shape[1], dtype=torch.bool) for B, _ in matrices]
        self.budget = self.start

    def scores(self) -> list[Tensor]:
        """S_ki = 1/d_out Σ_j s(B_k,ji) + 1/d_in Σ_j s(A_k,ij), s = Ī · Ū."""
        S = []
        for mean, uncertainty in zip(self.mean, self.uncertainty, strict=True):
            s_B, s_A = (i * u for i, u in zip(mean, uncertainty, strict=True))
            S.append(torch.tensor([float(s_B[:, i].mean() + s_A[i].mean()) for i in range(s_B.shape[1])]))
        return S

    def step(self, t: int, grads: Sequence[Doublets], after: Sequence[Doublets]) -> list[Doublets]:
        """After the optimizer's step t: the weights, of which the doublets that were dropped are 0 in both vectors."""
        if t < self.schedule["total"] - self.schedule["cooldown"]:
            for k, (pair, gradients) in enumerate(zip(after, grads, strict=True)):
                for j, (w, g) in enumerate(zip(pair, gradients, strict=True)):
                    impact = (w * g).abs()
                    self.mean[k][j] = self.beta1 * self.mean[k][j] + (1 - self.beta1) * impact
                    deviation = (impact - self.mean[k][j]).abs()
                    self.uncertainty[k][j] = self.beta2 * self.uncertainty[k][j] + (1 - self.beta2) * deviation
        self.budget, decide = budget_schedule(t, **self.schedule, start=self.start, end=self.end)
        decided = any(not mask.all() for mask in self.masks)
        if decide:
            self.masks = (
                greedy(self.scores(), self.costs, self.budget)
                if self.sized
                else AdaLoRATwin.top_b(self.scores(), self.budget)
            )
        if not (decide or (self.mask == "hold" and decided)):
            return [(B.clone(), A.clone()) for B, A in after]
        return [(B * mask, A * mask[:, None]) for (B, A), mask in zip(after, self.masks, strict=True)]


def greedy(scores: Sequence[Tensor], costs: Sequence[int], budget: int) -> list[Tensor]:
    """One after the other by score per cost, equal ones in order; each is kept if the rest of the budget can pay it."""
    keep = [torch.zeros(len(S), dtype=torch.bool) for S in scores]
    units = [(float(S[i] / costs[k]), k, i) for k, S in enumerate(scores) for i in range(len(S))]
    for _, k, i in sorted(units, key=lambda unit: (-unit[0], unit[1], unit[2])):
        if costs[k] <= budget:
            keep[k][i] = True
            budget -= costs[k]
    return keep
