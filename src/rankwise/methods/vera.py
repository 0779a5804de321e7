"""VeRA, or ELoRA:  Δ = diag(b) B diag(d) A    A (r, d_in), d (r,), B (d_out, r), b (d_out,)    (Kopiczko et al., 2023).

One random pair A (r, largest d_in), B (largest d_out, r) is drawn from a seed for the whole model and never trains.
Each layer takes the corner of it that fits its shape, and learns its own two vectors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rankwise.adapter import LowRank
from rankwise.base_layers import device_of, dtype_of, sizes
from rankwise.errors import ConfigError
from rankwise.low_rank_op import Factors
from rankwise.methods.low_rank import LowRankMethod
from rankwise.plain import Plain
from rankwise.targets import Site

MOST_RANK = 2**14  # a folder that claims more would fill the memory with random numbers


class Pair(nn.Module):
    """The projections that all layers of a device share: a submodule of each, so that it moves and is copied with them,
    once. They are in the type that the layers compute in, for a cast would be a copy for each layer. No state dict has
    them.
    """

    A: Tensor  # (r, largest d_in)
    B: Tensor  # (largest d_out, r)

    def __init__(self, rank: int, d_in: int, d_out: int, seed: int, like: tuple[torch.device, torch.dtype]) -> None:
        super().__init__()
        device, dtype = like
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
            matrix = torch.empty(shape, device="meta" if device.type == "meta" else "cpu")
            # U(±√(6/fan_in)), in the order of operations that gives PEFT's numbers to the last bit
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
            matrix.uniform_(-bound, bound, generator=None if matrix.is_meta else generator)
            self.register_buffer(name, matrix.to(device, dtype), persistent=False)


class VeRALayer(LowRank):
    """Trains d and b."""

    rank_dims: ClassVar[Mapping[str, int]] = {"d": 0}

    pair: Pair  # given to it when all layers are built

    def __init__(self, base: nn.Module, rank: int, settings: "VeRA") -> None:
        device = device_of(base)
        super().__init__(base, rank, settings.dropout, device)
        self.d_in, self.d_out = sizes(base)
        self.saves_pair = False
        self.d = nn.Parameter(torch.full((rank,), settings.init_gate, device=device))
        self.b = nn.Parameter(torch.zeros(self.d_out, device=device))

    def factors(self) -> Factors:
        A, B = self.pair.A[: self.rank, : self.d_in], self.pair.B[: self.d_out, : self.rank]  # views: nothing is copied
        return Factors(B, A, gate=self.d, out=self.b)

    def take_over(self, update: Plain) -> None:
        raise ConfigError(
            "a VeRA cannot express the update of another method exactly: its A and B are drawn from a seed and the "
            "same for all layers, and a layer's own two vectors do not reach every update. Convert to lora, sora, "
            "aflora or one of the others."
        )

    def shared(self) -> dict[str, Tensor]:
        return {"A": self.pair.A, "B": self.pair.B} if self.saves_pair else {}


@dataclass(frozen=True, kw_only=True)
class VeRA(LowRankMethod):
    """Vectors around one pair of frozen random projections that all layers share."""

    name: ClassVar[str] = "vera"
    learning_rate: ClassVar[float] = 1e-2
    size_setting: ClassVar[str | None] = None  # b is as long as the layer is wide, whatever the rank
    bounded_rank: ClassVar[bool] = False  # a random projection may be wider than the layer

    rank: int = 256
    """Number of ranks of the shared pair, and of every update."""
    seed: int = 0
    """What the shared pair is drawn from."""
    init_gate: float = 0.1
    """d at the start; b starts at 0."""
    save_projections: bool = False
    """Write the shared pair into the adapter file too, once, instead of trusting the seed on another machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.rank, *self.rank_pattern.values(), 0) > MOST_RANK:
            raise ConfigError(f"rank={self.rank}, rank_pattern={self.rank_pattern}: {MOST_RANK} ranks are the most.")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed!r} must be a whole number from 0 to 2⁶³ − 1.")
        if not math.isfinite(self.init_gate) or self.init_gate == 0:
            raise ConfigError(f"init_gate={self.init_gate}: d = 0 together with b = 0 would never learn; 0.1 is usual.")

    def build(self, base: nn.Module, site: Site) -> VeRALayer:
        return VeRALayer(base, self.initial_rank(site.name), self)

    def connect(self, adapters: Mapping[str, LowRank]) -> None:
        """One pair as large as the largest layer needs, once on each device and in each type."""
        layers = [a for a in adapters.values() if isinstance(a, VeRALayer)]
        if not layers:
            return
        rank, d_in, d_out = max(a.rank for a in layers), max(a.d_in for a in layers), max(a.d_out for a in layers)
        pairs: dict[tuple[torch.device, torch.dtype], Pair] = {}
        for layer in layers:
            like = (layer.d.device, dtype_of(layer.base) or torch.float32)
            if like not in pairs:
                pairs[like] = Pair(rank, d_in, d_out, self.seed, like)
            layer.pair = pairs[like]
        layers[0].saves_pair = self.save_projections
