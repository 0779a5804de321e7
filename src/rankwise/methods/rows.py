"""Where tokens and trained vectors stand in the rows that a prefix makes longer. `prefix.py` draws it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def spread(x: Tensor, places: Tensor, onto: Tensor) -> Tensor:
    """`onto` (B, N, …) with the rows of `x` (B, n, …) at their places (B, n)."""
    index = places.reshape(*places.shape, *[1] * (x.ndim - 2)).expand_as(x)
    return onto.scatter(1, index, x)


def gathered(x: Tensor, places: Tensor) -> Tensor:
    """(B, N, d) -> (B, n, d), those at the places."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


@dataclass(frozen=True)
class Rows:
    """The rows of one batch. With a filled cache they hold new tokens only, and prefix and infix lie behind them."""

    ends: Tensor  # (B,) e, how many tokens stand before the infix
    tokens: int  # T, that the caller gave now
    prefix: int
    infix: int
    cached: bool
    through_infix: bool  # whether the last token of the prompt answers with the output at the end of the infix

    @property
    def length(self) -> int:
        return self.tokens if self.cached else self.tokens + self.prefix + self.infix

    def _shift(self, tokens: int) -> Tensor:
        """(B, T): how far each of so many tokens from the row's beginning is moved."""
        behind = torch.arange(tokens, device=self.ends.device) >= self.ends[:, None]
        return self.prefix + self.infix * behind

    def _moved(self, tokens: int) -> Tensor:
        return torch.arange(tokens, device=self.ends.device) + self._shift(tokens)

    @cached_property
    def places(self) -> Tensor:
        """(B, T) of the tokens given now."""
        if self.cached:
            return torch.arange(self.tokens, device=self.ends.device).expand(len(self.ends), -1)
        return self._moved(self.tokens)

    @cached_property
    def answers(self) -> Tensor:
        """(B, T): whose output is given back for each token."""
        if self.cached or not (self.infix and self.through_infix):
            return self.places
        last = torch.arange(self.tokens, device=self.ends.device) == self.ends[:, None] - 1
        return torch.where(last, self.places + self.infix, self.places)

    @cached_property
    def vectors(self) -> Tensor:
        """(B, l + k) places of the trained vectors, where they are not in the cache already."""
        prefix = torch.arange(self.prefix, device=self.ends.device).expand(len(self.ends), -1)
        infix = self.prefix + self.ends[:, None] + torch.arange(self.infix, device=self.ends.device)
        return torch.cat([prefix, infix], 1)

    def join(self, x: Tensor, vectors: Tensor) -> Tensor:
        """Embeddings (B, T, d) and vectors (l + k, d) in their places: (B, length, d), in the type of `x`."""
        if self.cached:
            return x
        onto = x.new_zeros(x.shape[0], self.length, x.shape[-1])
        onto = spread(vectors.to(x.dtype).expand(x.shape[0], -1, -1), self.vectors, onto)
        return spread(x, self.places, onto)

    def lengthened_mask(self, mask: Tensor) -> Tensor:
        """(B, tokens so far) -> with 1 for prefix and infix."""
        onto = mask.new_ones(mask.shape[0], mask.shape[1] + self.prefix + self.infix)
        return spread(mask, self._moved(mask.shape[1]), onto)

    def positions(self, position_ids: Tensor) -> Tensor:
        """(1 or B, T) -> (B, length): the tokens make way for the vectors, which count on from what is before them."""
        ids = position_ids.expand(len(self.ends), -1)
        if self.cached:
            return ids + self.prefix + self.infix
        ids = ids + self._shift(self.tokens)
        before = ids.gather(1, (self.ends[:, None] - 1).clamp_min(0)) + (self.ends[:, None] > 0)
        prefix = torch.arange(self.prefix, device=ids.device).expand(len(ids), -1)
        infix = before + torch.arange(self.infix, device=ids.device)
        onto = ids.new_zeros(len(ids), self.length)
        return spread(ids, self.places, spread(torch.cat([prefix, infix], 1), self.vectors, onto))

    def types(self, token_type_ids: Tensor) -> Tensor:
        """(1 or B, T) -> (B, length): the vectors are of type 0."""
        if self.cached:
            return token_type_ids
        ids = token_type_ids.expand(len(self.ends), -1)
        return spread(ids, self.places, ids.new_zeros(len(ids), self.length))
