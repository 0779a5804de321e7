"""Prefix layer, PreLayer:  h_b[places of prefix and infix] ← V_b     before every block b     (Hu et al., 2021)
V_b (l + k, d) trained: L · d · (l + k) parameters. What a block makes at those places is thrown away."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.methods.installing import Placed
from rankwise.methods.prefix import Prefix, PrefixMethod
from rankwise.methods.rows import spread
from rankwise.places import Stack, blocks_in, stacks_of
from rankwise.targets import ModelView


class LayeredPrefix(Prefix):
    """Trains the inputs of all blocks at the added places."""

    def __init__(self, settings: "PrefixLayer", view: ModelView, stack: Stack) -> None:
        super().__init__(settings, view, stack)
        self._blocks = tuple(blocks_in(view.backbone, stack))  # in a tuple, for they are not inside this part
        shape = (len(self._blocks), self.prefix + self.infix, int(view.config.hidden_size))
        self.vectors = nn.Parameter(torch.empty(shape, device=next(self._blocks[0].parameters()).device))
        nn.init.normal_(self.vectors, std=settings.init_std)

    def vectors_before(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.prefix + self.infix, x.shape[-1])  # the lowest block's input is replaced too

    def attach_to_blocks(self) -> list[RemovableHandle]:
        hooks = enumerate(self._blocks)
        return [block.register_forward_pre_hook(partial(self._replace, number)) for number, block in hooks]

    def _replace(self, number: int, block: nn.Module, given: tuple[Any, ...]) -> Any:
        if self.rows is None or self.rows.cached:
            return None
        h = given[0]
        V = self.vectors[number].to(h.device, h.dtype).expand(h.shape[0], -1, -1)
        return (spread(V, self.rows.vectors, h), *given[1:])


@dataclass(frozen=True, kw_only=True)
class PrefixLayer(PrefixMethod):
    """Trained activations at added places of every block, in front of every row and behind its prompt."""

    name: ClassVar[str] = "prefix-layer"

    def parts(self, view: ModelView) -> list[Placed]:
        stack = stacks_of(view.model_type, self.name)[0]
        place = view.backbone.get_submodule(stack.reads)
        return [Placed(view.names[id(place)], place, LayeredPrefix(self, view, stack))]
