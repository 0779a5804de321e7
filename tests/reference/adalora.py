"""AdaLoRA, literally: W = W0 + c · P diag(λ) Q, with triplets {P_*i, λ_i, Q_i*} pruned by importance.

Sections, equations and Algorithm 1 are those of the AdaLoRA paper, "Adaptive Budget Allocation for
Parameter-Efficient Fine-Tuning". Where it differs from its published code, the code's form is the default.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reference.schedules import budget_schedule


class Triplets(NamedTuple):
    """One adapted matrix: its factors, or anything that has their shapes (gradients, importance)."""

    P: Tensor  # (d_out, r)
    lam: Tensor  # (r,)
    Q: Tensor  # (r, d_in)


def copied(matrices: Iterable[Sequence[Tensor]]) -> list[Triplets]:
    return [Triplets(*(w.detach().clone() for w in matrix)) for matrix in matrices]


class AdaLoRATwin:
    """The n adapted matrices of one run, their importance, and the masks decided so far.

    `matrices` are the initial (P, λ, Q), in the order in which ties are broken; the twin keeps copies of
    them, leaves that require gradients. `target` is bT, the number of live triplets at the end; b0 is the sum
    of the ranks.

    `masks` is the last mask that was decided (all true before the first), `masked` says whether the last step
    applied it, `budget` is b of the last step.
    """

    def __init__(
        self,
        matrices: Iterable[Sequence[Tensor]],
        *,
        total: int,
        warmup: int,
        cooldown: int,
        every: int,
        target: int,
        gamma: float = 0.1,
        penalty: str = "mean_norm",
        score: str = "sensitivity_uncertainty",
        score_at: str = "after_step",
        ties: str = "exact",
        mask: str = "release",
        beta1: float = 0.85,
        beta2: float = 0.85,
    ) -> None:
        assert penalty in ("mean_norm", "sum_of_squares")
        assert score in ("sensitivity_uncertainty", "sensitivity", "raw_sensitivity", "magnitude")
        assert score_at in ("after_step", "before_step")
        assert ties in ("exact", "drop")
        assert mask in ("release", "hold")
        self.matrices = copied(matrices)
        for matrix in self.matrices:
            for w in matrix:
                w.requires_grad_(True)
        self.total, self.warmup, self.cooldown, self.every = total, warmup, cooldown, every
        self.start = sum(len(matrix.lam) for matrix in self.matrices)
        self.target = target
        self.gamma, self.penalty_form = gamma, penalty
        self.score, self.score_at, self.ties, self.mask = score, score_at, ties, mask
        self.beta1, self.beta2 = beta1, beta2

        # I, Ī and Ū begin at zero, without bias correction; float32 whatever the weights are.
        self.impact = self._zeros()  # I of the last update
        self.impact_mean = self._zeros()  # Ī
        self.uncertainty = self._zeros()  # Ū
        self.magnitude = self._zeros()  # |w| of the last update

        self.budget = self.start
        self.masked = False
        self.masks = [torch.ones(len(matrix.lam), dtype=torch.bool) for matrix in self.matrices]

    def _zeros(self) -> list[Triplets]:
        return [Triplets(*(torch.zeros(w.shape) for w in matrix)) for matrix in self.matrices]

    # ------------------------------------------------------------------ "SVD-based adaptation"

    def parameters(self) -> list[Tensor]:
        """P_1, λ_1, Q_1, P_2, ...: what an optimizer is to move."""
        return [w for matrix in self.matrices for w in matrix]

    def delta(self, k: int, scale: float) -> Tensor:
        """c · P diag(λ) Q of matrix k. c = α / r0 for the whole run (PEFT: α / (r0 + 1e-5))."""
        P, lam, Q = self.matrices[k]
        return scale * (P @ torch.diag(lam) @ Q)

    # ------------------------------------------------------------------ orthogonality

    def penalty(self, form: str | None = None) -> Tensor:
        """R(P, Q) as a graph.

        "sum_of_squares" (the paper):      R = Σ_k ( ‖P_kᵀP_k - I‖_F² + ‖Q_kQ_kᵀ - I‖_F² )
        "mean_norm" (the published code):  R = 1/(2n) Σ_k ( ‖P_kᵀP_k - I‖_F + ‖Q_kQ_kᵀ - I‖_F )
        """
        form = form or self.penalty_form
        n = len(self.matrices)
        R = torch.zeros(())
        for P, lam, Q in self.matrices:
            identity = torch.eye(len(lam), dtype=P.dtype)
            norm_P = torch.linalg.norm(P.T @ P - identity)
            norm_Q = torch.linalg.norm(Q @ Q.T - identity)
            if form == "sum_of_squares":
                R = R + norm_P**2 + norm_Q**2
            else:
                R = R + (norm_P + norm_Q) / (2 * n)
        return R

    def penalty_gradient(self, form: str | None = None) -> list[Triplets]:
        """∂R/∂(P, λ, Q) by autograd on the formula itself, without γ; the part of λ is zero."""
        factors = [w for P, _, Q in self.matrices for w in (P, Q)]
        gradients = torch.autograd.grad(self.penalty(form), factors)
        return [
            Triplets(gradients[2 * k], torch.zeros_like(matrix.lam), gradients[2 * k + 1])
            for k, matrix in enumerate(self.matrices)
        ]

    # ------------------------------------------------------------------ "Importance-aware rank allocation"

    def update_importance(self, weights: Iterable[Sequence[Tensor]], grads: Iterable[Sequence[Tensor]]) -> None:
        """For every element w of every P, λ, Q, with g the gradient of loss + γR:

        I = |w · g|                        (8)
        Ī ← β1 Ī + (1 - β1) I              (9)
        Ū ← β2 Ū + (1 - β2) |I - Ī|        (10), with the Ī just updated
        """
        for k, (matrix, gradient) in enumerate(zip(weights, grads, strict=True)):
            impact, mean, uncertainty, magnitude = [], [], [], []
            for j, (w, g) in enumerate(zip(matrix, gradient, strict=True)):
                w, g = w.detach().float(), g.detach().float()
                i = (w * g).abs()
                i_bar = self.beta1 * self.impact_mean[k][j] + (1 - self.beta1) * i
                u_bar = self.beta2 * self.uncertainty[k][j] + (1 - self.beta2) * (i - i_bar).abs()
                impact.append(i)
                mean.append(i_bar)
                uncertainty.append(u_bar)
                magnitude.append(w.abs())
            self.impact[k] = Triplets(*impact)
            self.impact_mean[k] = Triplets(*mean)
            self.uncertainty[k] = Triplets(*uncertainty)
            self.magnitude[k] = Triplets(*magnitude)

    def element_scores(self, k: int) -> Triplets:
        """s(w) of every element of matrix k."""
        if self.score == "sensitivity_uncertainty":  # s = Ī · Ū
            return Triplets(*(i * u for i, u in zip(self.impact_mean[k], self.uncertainty[k], strict=True)))
        if self.score == "sensitivity":  # s = Ī
            return self.impact_mean[k]
        if self.score == "raw_sensitivity":  # s = I
            return self.impact[k]
        return self.magnitude[k]  # s = |w|

    def scores(self) -> list[Tensor]:
        """S_ki of every triplet, one (r,) tensor per matrix.

        S_ki = s(λ_ki) + 1/d_out Σ_j s(P_k,ji) + 1/d_in Σ_j s(Q_k,ij)      (7)
        score="magnitude": S_ki = |λ_ki| alone, P and Q ignored

        Every score, |λ| too, is that of the last `update_importance`: in the final phase all stand still.
        """
        S = []
        for k in range(len(self.matrices)):
            s = self.element_scores(k)
            S_k = torch.zeros(len(s.lam))
            for i in range(len(s.lam)):
                S_k[i] = s.lam[i]
                if self.score != "magnitude":
                    S_k[i] = s.lam[i] + s.P[:, i].mean() + s.Q[i, :].mean()
            S.append(S_k)
        return S

    # ------------------------------------------------------------------ selection

    @staticmethod
    def top_b(scores: Sequence[Tensor], b: int, ties: str = "exact") -> list[Tensor]:
        """Which triplets survive a budget of b: one boolean (r,) tensor per matrix.

        "exact": precisely b, highest score first; equal scores in the order of matrices, then of triplets.
        "drop" (the published code): those strictly above the (total - b)-th smallest score, so that ties at
        the threshold all fall and fewer than b survive. At b == total the published code raises; here all
        survive.
        """
        triplets = [(float(S), k, i) for k, S_k in enumerate(scores) for i, S in enumerate(S_k)]
        total = len(triplets)
        keep = [torch.zeros(len(S_k), dtype=torch.bool) for S_k in scores]
        if ties == "exact" or b == total:
            survivors = sorted(triplets, key=lambda triplet: (-triplet[0], triplet[1], triplet[2]))[:b]
        else:
            threshold = sorted(S for S, _, _ in triplets)[total - b - 1]
            survivors = [triplet for triplet in triplets if triplet[0] > threshold]
        for _, k, i in survivors:
            keep[k][i] = True
        return keep

    # ------------------------------------------------------------------ a step

    def step(
        self,
        t: int,
        grads: Iterable[Sequence[Tensor]],
        weights_before: Iterable[Sequence[Tensor]],
        weights_after: Iterable[Sequence[Tensor]],
    ) -> list[Tensor]:
        """What follows the optimizer's step t (Algorithm 1, in the code's order). Returns the masks in force.

        `grads` are those that the optimizer was given, γ ∂R included. The twin takes over `weights_after`
        (what the optimizer left, before any mask), then:

        1. t < T - t_f: update the importance, with the weights after the step, or before it
        2. (b, masks) = schedule(t)
        3. masks: λ ← 0 outside the top b. From t = T - t_f on the scores stand still and every step masks.

        mask="release": between two masks λ is free, a pruned triplet may return
        mask="hold": the last mask is applied at every step
        """
        weights_before, weights_after = copied(weights_before), copied(weights_after)
        if t < self.total - self.cooldown:
            self.update_importance(weights_after if self.score_at == "after_step" else weights_before, grads)

        self.budget, decide = budget_schedule(
            t,
            total=self.total,
            warmup=self.warmup,
            cooldown=self.cooldown,
            start=self.start,
            end=self.target,
            every=self.every,
        )
        if decide:
            self.masks = self.top_b(self.scores(), self.budget, self.ties)

        self.masked = decide or self.mask == "hold"
        with torch.no_grad():
            for k, matrix in enumerate(self.matrices):
                for w, after in zip(matrix, weights_after[k], strict=True):
                    w.copy_(after)
                if self.masked:
                    for i, alive in enumerate(self.masks[k].tolist()):
                        if not alive:
                            matrix.lam[i] = 0.0
        return [mask.clone() for mask in self.masks]

    def train_step(
        self, t: int, loss: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None
    ) -> list[Tensor]:
        """A whole step of training: task gradient → clip → + γ ∂R → optimizer → `step`.

        `loss` is the task's alone, computed from `delta`; `optimizer` holds `parameters()`, and maybe others.
        """
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            everything = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(everything, clip)
        for matrix, gradient in zip(self.matrices, self.penalty_gradient(), strict=True):
            for w, dR in zip(matrix, gradient, strict=True):
                w.grad = w.grad + self.gamma * dR
        grads = [Triplets(*(w.grad.clone() for w in matrix)) for matrix in self.matrices]
        before = copied(self.matrices)
        optimizer.step()
        return self.step(t, grads, before, self.matrices)
