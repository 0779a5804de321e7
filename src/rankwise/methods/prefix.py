"""What the prefix methods share: the longer rows that the blocks see, and their way back to the caller's length.

    p_1 … p_l   t_1 … t_e   i_1 … i_k   t_{e+1} … t_T        l prefix and k infix vectors, t the caller's T tokens

The infix stands behind the prompt, which is the first e tokens: all that the attention mask leaves; or, for a causal
model that is given labels, those in front of the first label that counts. Outputs are given back for the tokens alone;
with an infix, the last token of a causal model's prompt answers with the output at i_k, which has seen all before it.
"""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import ConfigError, StateError, TargetError
from rankwise.methods.installing import AddingMethod
from rankwise.methods.rows import Rows, gathered
from rankwise.part import Part
from rankwise.places import Stack
from rankwise.targets import ModelView

IGNORED = -100  # the label that no loss counts


class Prefix(Part):
    """Hangs in the module that is given the tokens: lengthens what goes in, and shortens what comes out."""

    label: ClassVar[str] = "adapter_prefix"

    def __init__(self, settings: "PrefixMethod", view: ModelView, stack: Stack) -> None:
        super().__init__()
        self.prefix, self.infix = settings.prefix, settings.infix
        self.causal, self.pooler = stack.causal, stack.pooler
        self.longest = int(view.config.max_position_embeddings) - stack.first_position
        if self.prefix + self.infix >= self.longest:
            raise TargetError(
                f"{self.prefix + self.infix} prefix and infix vectors leave no room for tokens: the model has "
                f"{self.longest} positions."
            )
        self.rows: Rows | None = None  # of the batch that is on its way
        self._labels: Tensor | None = None
        self._prompts: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()  # cache -> (B,) e
        self._model = (view.model,)  # in a tuple, for it is not inside this part

    @abstractmethod
    def vectors_before(self, x: Tensor) -> Tensor:
        """What is put beside the tokens' embeddings `x` (B, T, d): (l + k, d)."""

    @abstractmethod
    def attach_to_blocks(self) -> list[RemovableHandle]:
        """Hooks on the blocks, for methods that reach into them."""

    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        handles = [
            self._model[0].register_forward_pre_hook(self._note_labels, with_kwargs=True),
            place.register_forward_pre_hook(self._lengthen, with_kwargs=True),
            place.register_forward_hook(self._shorten, prepend=True),
            *self.attach_to_blocks(),
        ]
        pooler = None if self.pooler is None else place._modules.get(self.pooler)
        if pooler is not None:  # it reads the first position, inside the module; some models are made without
            handles.append(pooler.register_forward_pre_hook(self._shorten_for_pooler))
        return handles

    def _note_labels(self, model: nn.Module, given: Any, named: Mapping[str, Any]) -> None:
        self._labels = named.get("labels")

    def _lengthen(self, place: Any, given: Any, named: Mapping[str, Any]) -> Any:
        called = dict(zip(inspect.signature(place.forward).parameters, given, strict=False)) | dict(named)
        x, ids = called.get("inputs_embeds"), called.pop("input_ids", None)
        if not self.enabled or (x is None and ids is None):
            return None
        x = place.get_input_embeddings()(ids) if x is None else x
        mask = called.get("attention_mask")
        rows = self._rows(x, mask, called.get("past_key_values"))
        if mask is not None:
            called["attention_mask"] = rows.lengthened_mask(mask)
        for name, lengthened in (("position_ids", rows.positions), ("token_type_ids", rows.types)):
            if called.get(name) is not None:
                called[name] = lengthened(called[name])
        called["inputs_embeds"] = rows.join(x, self.vectors_before(x))
        self.rows = rows
        return (), called

    def _rows(self, x: Tensor, mask: Tensor | None, cache: Any) -> Rows:
        if mask is not None and mask.ndim != 2:
            raise StateError(
                f"the prefix needs an attention mask (batch, tokens), not one of {mask.ndim} dimensions. Packed rows "
                "and compiled caches bring such; train unpacked, generate with the default cache."
            )
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and cache.is_compileable:
            raise StateError("the prefix does not fit into a static cache. Generate with the default, dynamic one.")
        if past and cache not in self._prompts:
            raise StateError("this cache was begun without the prefix. Begin anew, with an empty one.")
        ends = self._prompts[cache] if past else self._prompt_ends(x, mask)
        rows = Rows(ends, x.shape[1], self.prefix, self.infix, cached=bool(past), through_infix=self.causal)
        if past + rows.length > self.longest:
            raise StateError(
                f"{x.shape[1]} tokens, {past} before them and {self.prefix + self.infix} prefix and infix vectors are "
                f"more than the {self.longest} positions of the model. Shorten the rows (max_length) or the prefix."
            )
        return rows

    def _prompt_ends(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B,) e: how many tokens stand before the infix."""
        batch, length = x.shape[:2]
        ends = torch.full((batch,), length, device=x.device)
        if mask is not None:
            ends = length - mask.flip(1).int().argmax(1)
        labels = self._labels
        if self.causal and labels is not None and labels.shape == (batch, length):
            counts = labels != IGNORED
            ends = torch.where(counts.any(1), counts.int().argmax(1), ends)
        return ends

    def _shorten(self, place: nn.Module, given: Any, output: Any) -> Any:
        rows, self.rows, self._labels = self.rows, None, None
        if rows is None:
            return None
        if isinstance(output, tuple):
            return tuple(_shortened(value, rows) for value in output)
        for name, value in list(output.items()):
            output[name] = _shortened(value, rows)
        cache = output.get("past_key_values")
        if cache is not None:
            self._prompts[cache] = rows.ends
        return output

    def _shorten_for_pooler(self, pooler: nn.Module, given: tuple[Any, ...]) -> Any:
        return None if self.rows is None else (gathered(given[0], self.rows.answers), *given[1:])


def _shortened(value: Any, rows: Rows) -> Any:
    """Hidden states (B, N, d), alone or in a tuple, without the added places; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_shortened(v, rows) for v in value)
    is_hidden = isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == rows.length
    return gathered(value, rows.answers) if is_hidden else value


@dataclass(frozen=True, kw_only=True)
class PrefixMethod(AddingMethod):
    """Settings common to the prefix methods."""

    size_setting: ClassVar[str | None] = "prefix"

    prefix: int = 16
    """l: trained vectors in front of every row."""
    infix: int = 0
    """k: trained vectors behind the prompt."""
    init_std: float = 0.02
    """Standard deviation of a normal start."""

    def __post_init__(self) -> None:
        for setting, number in (("prefix", self.prefix), ("infix", self.infix)):
            if type(number) is not int or number < 0:
                raise ConfigError(f"{setting}={number!r}: it must be a whole number of vectors, 0 or more.")
        if not self.prefix + self.infix:
            raise ConfigError("prefix=0 and infix=0 leave nothing that could learn.")
        if not self.init_std > 0:
            raise ConfigError(f"init_std={self.init_std} must be positive.")

    @property
    def starts_at_base(self) -> bool:
        return False  # attention sees the new vectors at once, whatever they are
