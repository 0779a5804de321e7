"""Prefix embedding, PreEmbed:  [p_1 … p_l, W_e t_1 … W_e t_e, i_1 … i_k, …]     p, i (d,) trained among the embeddings
(Hu et al., 2021, after Li & Liang, 2021): d · (l + k) parameters."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.methods.installing import Placed
from rankwise.methods.prefix import Prefix, PrefixMethod
from rankwise.methods.settings import check_choices
from rankwise.places import Stack, stacks_of
from rankwise.targets import ModelView


class EmbeddedPrefix(Prefix):
    """Trains the vectors that the lowest block's input is made from."""

    def __init__(self, settings: "PrefixEmbedding", view: ModelView, stack: Stack, place: Any) -> None:
        super().__init__(settings, view, stack)
        embedding = place.get_input_embeddings()
        words = torch.randint(embedding.num_embeddings, (self.prefix + self.infix,))
        with torch.no_grad():
            start = embedding(words.to(embedding.weight.device)).float()
        self.vectors = nn.Parameter(start)
        if settings.init == "normal":
            nn.init.normal_(self.vectors, std=settings.init_std)

    def vectors_before(self, x: Tensor) -> Tensor:
        return self.vectors

    def attach_to_blocks(self) -> list[RemovableHandle]:
        return []


@dataclass(frozen=True, kw_only=True)
class PrefixEmbedding(PrefixMethod):
    """Trained vectors among the embeddings, in front of every row and behind its prompt."""

    name: ClassVar[str] = "prefix-embedding"

    init: Literal["vocabulary", "normal"] = "vocabulary"
    """The vectors start as the embeddings of words drawn at random, or normal with standard deviation init_std."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)

    def parts(self, view: ModelView) -> list[Placed]:
        stack = stacks_of(view.model_type, self.name)[0]
        place = view.backbone.get_submodule(stack.reads)
        return [Placed(view.names[id(place)], place, EmbeddedPrefix(self, view, stack, place))]
