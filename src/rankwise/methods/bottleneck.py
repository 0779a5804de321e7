"""What the bottleneck adapters share:  f(x) = U act(D x + b_D) + b_U     D (m, d), U (d, m): 2dm + m + d parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rankwise.errors import ConfigError, TargetError
from rankwise.methods.installing import AddingMethod, Placed
from rankwise.methods.settings import check_choices, is_count
from rankwise.part import Part
from rankwise.places import Stack, blocks_in, stacks_of
from rankwise.targets import ModelView

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Bottleneck(Part):
    """f and where it is added; a subclass says where, by the hook that it attaches."""

    label: ClassVar[str] = "adapter_bottleneck"

    def __init__(self, settings: "BottleneckMethod", width: int, block: nn.Module) -> None:
        super().__init__()
        device = next(block.parameters()).device
        self.skipped = False  # by whoever leaves adapters out of a batch
        self.down = nn.Linear(width, settings.size, device=device)  # starts uniform in ±1/√d, as every nn.Linear
        self.up = nn.Linear(settings.size, width, device=device)
        self.activation = settings.activation
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if settings.init == "zero":
            nn.init.zeros_(self.up.weight)
        else:
            std = settings.init_std
            for linear in (self.down, self.up):
                nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)

    @property
    def active(self) -> bool:
        return self.enabled and not self.skipped

    def f(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), in the type of `x`."""
        hidden = ACTIVATIONS[self.activation](_linear(self.down, x))
        return _linear(self.up, hidden)


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype))


class OutputAdapter(Bottleneck):
    """Hangs in a module, to whose output it is added."""

    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        return [place.register_forward_hook(self._add, prepend=True)]

    def _add(self, place: nn.Module, given: Any, output: Any) -> Any:
        if not self.active:
            return None
        s = first_of(output)
        return with_first(output, s + self.f(s))


def with_first(output: Any, first: Tensor) -> Any:
    """A module's output, of which the hidden states are all or the first, with others in their place."""
    return (first, *output[1:]) if isinstance(output, tuple) else first


def first_of(output: Any) -> Tensor:
    """The hidden states in a module's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@dataclass(frozen=True, kw_only=True)
class BottleneckMethod(AddingMethod):
    """Settings common to the bottleneck adapters."""

    size_setting: ClassVar[str | None] = "size"

    size: int = 16
    """Width m of the bottleneck."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Between the two matrices."""
    init: Literal["normal", "zero"] = "normal"
    """Both matrices truncated normal, which is near the base ("normal"), or the upper one 0, which is the base."""
    init_std: float = 1e-3
    """Standard deviation of the normal start."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not is_count(self.size):
            raise ConfigError(f"size={self.size!r}: it must be a whole number, 1 or more.")
        if not self.init_std > 0:
            raise ConfigError(f"init_std={self.init_std} must be positive: two matrices of zeros never learn.")

    @property
    def starts_at_base(self) -> bool:
        return self.init == "zero"


def in_every_block(
    view: ModelView, settings: BottleneckMethod, of_block: Callable[[nn.Module, Stack, int], dict[str, Bottleneck]]
) -> list[Placed]:
    """The adapters of all blocks, lowest first, an encoder's before its decoder's.

    `of_block` makes those of one block of a given width, by the names below it of the modules that they hang in.
    """
    stacks, width = stacks_of(view.model_type, settings.name), int(view.config.hidden_size)
    if settings.size > width:
        raise TargetError(f"size={settings.size} is wider than the {width} of the model's states: no bottleneck.")
    blocks = [(stack, view.names[id(block)], block) for stack in stacks for block in blocks_in(view.backbone, stack)]
    return [
        Placed(f"{path}.{name}" if name else path, block.get_submodule(name), adapter)
        for stack, path, block in blocks
        for name, adapter in of_block(block, stack, width).items()
    ]
