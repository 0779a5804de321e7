"""The methods: each with settings for tiny models, and the laws it obeys."""

from dataclasses import dataclass

import rankwise as rw
from rankwise.adapter import Method

SHORT = {"warmup": 2, "cooldown": 4, "every": 2}  # a schedule for 12 steps


@dataclass(frozen=True)
class Row:
    """One low-rank method. `trains` are the tensors that take gradients at the start, in layers that train in full."""

    name: str
    method: Method
    trains: frozenset[str]
    vectors_only: frozenset[str] = frozenset()  # what trains in the layers outside the method's scope
    compactable: bool = False  # ranks die while it trains
    freezes: bool = False  # tensors stop training while it trains
    closes_gates: bool = False  # ranks may die until the last step
    bounded_rank: bool = True  # a rank above the smaller size of a layer is refused


_LORA, _SVD = frozenset({"A", "B"}), frozenset({"P", "lam", "Q"})
_VECTORS = frozenset({"s_d", "s_b"})
_GATED = frozenset({"A", "g", "B"})
_BUDGET = {"rank": 4, "target_rank": 2, **SHORT}

ROWS = [
    Row("lora", rw.LoRA(rank=4, alpha=8), _LORA),
    Row("lora-normal-rs", rw.LoRA(rank=4, alpha=8, init="normal", rank_stabilized=True), _LORA),
    Row("lora-cosine", rw.LoRA(rank=4, penalty="cosine"), _LORA),
    Row("lora-orthogonal", rw.LoRA(rank=4, penalty="mean_norm"), _LORA),
    Row("svd-lora", rw.SVDLoRA(rank=4, alpha=8), _SVD),
    Row("adalora", rw.AdaLoRA(**_BUDGET, alpha=8), _SVD, compactable=True),
    Row(
        "adalora-paper",
        rw.AdaLoRA(**_BUDGET, penalty="sum_of_squares", score_at="before_step", mask="hold", orthogonality=0.01),
        _SVD,
        compactable=True,
    ),
    Row("adalora-parameters", rw.AdaLoRA(rank=4, budget="1.5k", **SHORT), _SVD, compactable=True),
    Row("pruned-lora", rw.PrunedLoRA(**_BUDGET), _LORA, compactable=True),
    Row(
        "pruned-lora-reset",
        rw.PrunedLoRA(**_BUDGET, alpha=8, reset_moments_on_prune=True, score="sensitivity", mask="hold"),
        _LORA,
        compactable=True,
    ),
    Row("aflora", rw.AFLoRA(rank=4, **SHORT), _VECTORS | _LORA, _VECTORS, freezes=True),
    Row("aflora-all", rw.AFLoRA(rank=4, scope="all", **SHORT), _VECTORS | _LORA, freezes=True),
    Row("aflora-none", rw.AFLoRA(rank=4, scope="none", **SHORT), _VECTORS),
    Row(
        "freezing-adalora",
        rw.FreezingAdaLoRA(**_BUDGET, freeze_cooldown=2, freeze_every=1),
        _SVD,
        compactable=True,
        freezes=True,
    ),
    Row("aflora-never", rw.AFLoRA(rank=4, scope="all", freeze_rule="never"), _VECTORS | _LORA),
    Row("sora", rw.SoRA(rank=4, threshold=0.02), _GATED, compactable=True, closes_gates=True),
    Row("sora-staged", rw.SoRA(rank=4, threshold=0.1, stages=3), _GATED, compactable=True, closes_gates=True),
    Row("vera", rw.VeRA(rank=40), frozenset({"d", "b"}), bounded_rank=False),
    Row("vera-saved", rw.VeRA(rank=6, seed=3, save_projections=True), frozenset({"d", "b"}), bounded_rank=False),
]

BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Baseline:
    """One method that is not low-rank; `Method` itself declares its laws."""

    name: str
    method: Method
    everywhere: bool = False  # tested on every architecture of which the blocks are known, and not on one alone


BASELINES = [
    Baseline("full", rw.FullFineTuning()),
    Baseline("top-blocks", rw.TopBlocks(blocks=1), everywhere=True),
    Baseline("bitfit", rw.BitFit()),
    Baseline("houlsby", rw.HoulsbyAdapter(size=4), everywhere=True),
    Baseline("houlsby-zero", rw.HoulsbyAdapter(size=4, init="zero", activation="silu")),
    Baseline("pfeiffer", rw.PfeifferAdapter(size=4, init="zero"), everywhere=True),
    Baseline("lin", rw.LinAdapter(size=4, init="zero"), everywhere=True),
    Baseline("adapter-drop", rw.AdapterDrop(size=4, drop=1)),
    Baseline("adapter-drop-random", rw.AdapterDrop(size=4, drop=1, random=True, init="zero")),
    Baseline("prefix-embedding", rw.PrefixEmbedding(prefix=3, init="normal")),
    Baseline("prefix-embedding-infix", rw.PrefixEmbedding(prefix=2, infix=2), everywhere=True),
    Baseline("prefix-layer", rw.PrefixLayer(prefix=2, infix=2), everywhere=True),
]
