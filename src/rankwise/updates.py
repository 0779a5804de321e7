"""What adapters add to the layers of a model, in plain form: the ranks that live, and nothing of the others."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from rankwise.adapter import LowRank
from rankwise.base_layers import Block, sizes
from rankwise.plain import Plain


@torch.no_grad()
def update(adapter: LowRank, dtype: torch.dtype = torch.float32) -> Plain:
    """Of one adapter: for a block, of its rows alone."""
    up, down = adapter.factors().folded(dtype)
    return Plain(up[:, adapter.live], down[adapter.live])


@torch.no_grad()
def updates(adapters: Mapping[str, LowRank]) -> dict[str, Plain]:
    """In float32, by the layer's path in the base model. The blocks of one fused layer are one update of it:
    block-diagonal up, stacked down."""
    parts: dict[str, list[Plain]] = {}
    for name, adapter in adapters.items():
        part, base, path = update(adapter), adapter.base, name
        if isinstance(base, Block):
            path, below = name.partition("[")[0], sizes(base.fused)[1] - base.stop
            part = Plain(F.pad(part.up, (0, 0, base.start, below)), part.down)
        parts.setdefault(path, []).append(part)
    return {path: _side_by_side(found) for path, found in parts.items()}


def _side_by_side(parts: list[Plain]) -> Plain:
    return Plain(torch.cat([part.up for part in parts], dim=1), torch.cat([part.down for part in parts]))
