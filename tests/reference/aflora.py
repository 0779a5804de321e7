"""AFLoRA, literally: y = W0 x + s_b ⊙ B(s_d ⊙ (A x)), whole projections A and B frozen by a running score.

The twin decides what is frozen and when; it neither trains nor holds weights. The window and the running
means are the published code's, and so is the freezing rule "elementwise_quantile"; "count" is the paper's rule.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from reference.schedules import check_room, frozen_fraction


class AFLoRATwin:
    """The M initially trainable projections of one run (A and B apart), their scores, the frozen ones.

    `shapes` names them in the order in which ties are broken. `events` lists (step, name) as they froze.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        total: int,
        warmup: int,
        cooldown: int,
        every: int = 10,
        beta1: float = 0.85,
        beta2: float = 0.95,
        signal: str = "gradient",
        freeze_rule: str = "count",
    ) -> None:
        assert signal in ("gradient", "sensitivity", "relative_gradient")
        assert freeze_rule in ("count", "elementwise_quantile")
        check_room(total, warmup, cooldown)
        self.names = list(shapes)
        self.total, self.warmup, self.cooldown, self.every = total, warmup, cooldown, every
        self.beta1, self.beta2 = beta1, beta2
        self.signal, self.freeze_rule = signal, freeze_rule
        self.window = {name: torch.zeros(shape) for name, shape in shapes.items()}  # J
        self.signal_mean = {name: torch.zeros(shape) for name, shape in shapes.items()}  # Ī
        self.uncertainty = {name: torch.zeros(shape) for name, shape in shapes.items()}  # Ū
        self.frozen: set[str] = set()
        self.events: list[tuple[int, str]] = []

    def trainable(self) -> list[str]:
        return [name for name in self.names if name not in self.frozen]

    # ------------------------------------------------------------------ score

    def element_signal(self, p: Tensor, g: Tensor) -> Tensor:
        """Of every element p with gradient g: |g|, |p · g| or |g / p| (0 where p is exactly 0).

        The published code writes sign(p) · g, which is 0 where p is exactly 0; "gradient" is |g| there too.
        No element of a Kaiming-uniform projection is exactly 0.
        """
        p, g = p.detach().float(), g.detach().float()
        if self.signal == "gradient":
            return g.abs()
        if self.signal == "sensitivity":
            return (p * g).abs()
        return torch.where(p == 0, torch.zeros_like(g), (g / p).abs())

    def update_scores(self, t: int, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """Step t enters the window; at its border the window that has just ended enters the running means.

        With τ = t mod ΔT, for every element of every projection still trainable, j its signal at step t:

        τ = 0    Ī ← β1 Ī + (1 - β1) J
                 Ū ← β2 Ū + (1 - β2) |J - Ī|       with the Ī just updated
                 J ← j
        τ > 0    J ← (τ J + j) / (τ + 1)           the mean over the window so far

        At t = 0 the window that "ended" is empty, J = 0: Ī and Ū stay 0; the first window counts at t = ΔT.
        The score at a border t knows the steps before t, never step t itself.
        """
        tau = t % self.every
        for name in self.trainable():
            j = self.element_signal(weights[name], grads[name])
            J = self.window[name]
            if tau == 0:
                i_bar = self.beta1 * self.signal_mean[name] + (1 - self.beta1) * J
                u_bar = self.beta2 * self.uncertainty[name] + (1 - self.beta2) * (J - i_bar).abs()
                self.signal_mean[name] = i_bar
                self.uncertainty[name] = u_bar
                self.window[name] = j
            else:
                self.window[name] = (J * tau + j) / (tau + 1)

    def element_scores(self, name: str) -> Tensor:
        """Ī ∘ Ū"""
        return self.signal_mean[name] * self.uncertainty[name]

    def scores(self) -> dict[str, float]:
        """mean(Ī ∘ Ū) of each projection still trainable."""
        return {name: float(self.element_scores(name).mean()) for name in self.trainable()}

    # ------------------------------------------------------------------ freezing

    def lowest_by_count(self, t: int) -> list[str]:
        """So many that ⌊r(t) M⌋ of all M are frozen: lowest score first, equal scores in order."""
        wanted = math.floor(frozen_fraction(t, self.total, self.warmup, self.cooldown) * len(self.names))
        scores = self.scores()
        order = sorted(scores, key=lambda name: (scores[name], self.names.index(name)))
        return order[: max(0, wanted - len(self.frozen))]

    def below_quantile(self, t: int) -> list[str]:
        """The published code: mean(Ī ∘ Ū) < θ, the ⌊N r(t)⌋-th smallest of the N elements still trainable.

        r(t) is applied anew to what remains, and θ is a quantile of elements, not of means: this is not the
        paper's "lowest k %". ⌊N r(t)⌋ = 0 freezes none. If all elements are equal nothing is below θ, even
        at r(t) = 1.
        """
        elements = sorted(e for name in self.trainable() for e in self.element_scores(name).flatten().tolist())
        rank = math.floor(len(elements) * frozen_fraction(t, self.total, self.warmup, self.cooldown))
        if rank == 0:
            return []
        theta = elements[rank - 1]
        return [name for name, score in self.scores().items() if score < theta]

    def step(self, t: int, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> set[str]:
        """Step t: `grads` as the optimizer sees them, `weights` before it moves. Returns all that is frozen.

        What freezes at t still receives the optimizer's update of step t, and none after it; frozen
        projections need not be among `weights` and `grads`.

        t mod ΔT = 0    freeze by the rule (r(t) = 0 up to t_i: none)
        t >= T - t_f    freeze everything left, whatever t mod ΔT is

        One deviation: the published code writes t > T - t_f. At t = T - t_f its r(t) is 1 already, so that "count"
        freezes everything there whenever ΔT divides t; here it does not depend on ΔT, and t_f steps are a full t_f.
        """
        self.update_scores(t, weights, grads)
        freezing: list[str] = []
        if t >= self.total - self.cooldown:
            freezing = self.trainable()
        elif t % self.every == 0 and self.freeze_rule == "count":
            freezing = self.lowest_by_count(t)
        elif t % self.every == 0:
            freezing = self.below_quantile(t)
        for name in freezing:
            self.frozen.add(name)
            self.events.append((t, name))
        return set(self.frozen)
