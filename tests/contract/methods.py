"""The methods: each with settings for tiny models, and the laws it obeys."""

from dataclasses import dataclass

import rankwise as rw
from rankwise.adapter import Method

SHORT = {"warmup": 2, "cooldown": 4, "every": 2}  # a schedule for 12 steps


@dataclass(frozen=True)
class Row:
    """One row. `trains` are the adapter tensors that take gradients at the start, in layers that train in full."""

    name: str
    method: Method
    trains: frozenset[str]
    vectors_only: frozenset[str] = frozenset()  # what trains in the layers outside the method's scope
    starts_at_base: bool = True
    mergeable: bool = True
    compactable: bool = False  # ranks die while it trains
    freezes: bool = False  # tensors stop training while it trains
    bounded_rank: bool = True  # a rank above the smaller size of a layer is refused


_LORA, _SVD = frozenset({"A", "B"}), frozenset({"P", "lam", "Q"})
_VECTORS = frozenset({"s_d", "s_b"})
_BUDGET = {"rank": 4, "target_rank": 2, **SHORT}

ROWS = [
    Row("lora", rw.LoRA(rank=4, alpha=8), _LORA),
    Row("lora-normal-rs", rw.LoRA(rank=4, alpha=8, init="normal", rank_stabilized=True), _LORA),
    Row("adalora", rw.AdaLoRA(**_BUDGET, alpha=8), _SVD, compactable=True),
    Row(
        "adalora-paper",
        rw.AdaLoRA(**_BUDGET, penalty="sum_of_squares", score_at="before_step", mask="hold", orthogonality=0.01),
        _SVD,
        compactable=True,
    ),
    Row("aflora", rw.AFLoRA(rank=4, **SHORT), _VECTORS | _LORA, _VECTORS, freezes=True),
    Row("aflora-all", rw.AFLoRA(rank=4, scope="all", **SHORT), _VECTORS | _LORA, freezes=True),
    Row("aflora-none", rw.AFLoRA(rank=4, scope="none", **SHORT), _VECTORS),
    Row("vera", rw.VeRA(rank=40), frozenset({"d", "b"}), bounded_rank=False),
    Row("vera-saved", rw.VeRA(rank=6, seed=3, save_projections=True), frozenset({"d", "b"}), bounded_rank=False),
]

BY_NAME = {row.name: row for row in ROWS}
