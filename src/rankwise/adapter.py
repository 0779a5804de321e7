"""The core: what an adapter layer and a method are. Imports torch and nothing else.

A method is a frozen dataclass of settings. It installs modules into a model (`Method.install`); the low-rank ones build
one `LowRank` for each targeted layer and inherit everything else. What changes while training besides the weights is a
`Controller`, which only the optimizer's hook calls.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rankwise.controller import Controller
from rankwise.distributed import grouped, is_split
from rankwise.dropout import draw
from rankwise.errors import ConfigError
from rankwise.fake import is_fake
from rankwise.low_rank_op import Factors, hold, low_rank_branch, low_rank_linear
from rankwise.part import Part
from rankwise.plain import Plain


class LowRank(nn.Module, ABC):
    """y = base(x) + Δ x, where a method says only what the thin factors of Δ are.

    The base is frozen by whoever puts the layer into a model. Adapter parameters are float32 whatever the base is, and
    are cast at the matrix product.
    """

    # Where the rank lies in each tensor of the layer, so that compaction is written once: {"P": 1, "lam": 0, "Q": 0}.
    rank_dims: ClassVar[Mapping[str, int]]

    live: Tensor  # (r,) bool: which ranks the last allocation kept

    def __init__(self, base: nn.Module, rank: int, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.base = base
        self.dropout = dropout
        self.enabled = True
        self.traced = False  # whether torch.compile has been through here
        self.held: frozenset[str] = frozenset()  # tensors that froze and yet have to stay in the graph
        self.register_buffer("live", torch.ones(rank, dtype=torch.bool, device=device))

    @abstractmethod
    def factors(self) -> Factors:
        """up (d_out, r), down (r, d_in) and the vectors between and after them; Δ with its scale."""

    def freeze(self, name: str) -> None:
        """The named tensor stops training, for good: no product is computed for its gradient.

        In a group of processes it keeps `requires_grad`, for the reducer of DistributedDataParallel counts on it, and
        may be given a gradient of zeros; who steps it must drop that. FSDP2 has no such reducer.
        """
        parameter = self.get_parameter(name)
        parameter.grad = None  # a stale gradient would let the optimizer move a frozen weight
        if grouped() and not is_split(parameter):
            self.held |= {name}
        else:
            self.held -= {name}
            parameter.requires_grad_(False)

    def unfreeze(self, name: str) -> None:
        """The named tensor trains again: its layer goes back to where it did."""
        self.held -= {name}
        self.own_parameter(name).requires_grad_(True)

    def trains(self, name: str) -> bool:
        """Whether the named parameter trains (still)."""
        return self.own_parameter(name).requires_grad and name not in self.held

    def count(self) -> int:
        """Parameters that train and are alive."""
        dead, total = self.rank - int(self.live.sum()), 0
        for name, p in self.named_parameters(recurse=False):
            if self.trains(name):
                per_rank = p.numel() // self.rank if name in self.rank_dims and self.rank else 0
                total += p.numel() - dead * per_rank
        return total

    @property
    def rank(self) -> int:
        """How many ranks the tensors hold, dead ones included."""
        return self.live.shape[0]

    @property
    def weight(self) -> Any:
        """The frozen base's weight: some models read a layer's weight (its type, its device) instead of calling it."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    @property
    def active(self) -> bool:
        return self.enabled and self.rank > 0

    def forward(self, x: Tensor) -> Tensor:  # (..., d_in) -> (..., d_out)
        if not self.active:
            y: Tensor = self.base(x)
            return y
        if self._can_fuse():
            dropout = draw(self.dropout) if self.dropout and self.training else None
            base: Any = self.base
            return low_rank_linear(x, base.weight, base.bias, self._factors(), dropout)
        y = self.base(x)
        return y + self.branch(x).to(y.dtype)

    def branch(self, x: Tensor) -> Tensor:
        """Δ x alone, in the type of `x`: (..., d_in) -> (..., d_out)."""
        if torch.compiler.is_compiling():
            self._note_traced()
        if self.dropout and self.training:
            x = torch.nn.functional.dropout(x, self.dropout)
        return low_rank_branch(x, self._factors().to(x.dtype))

    def _note_traced(self) -> None:
        """Runs while the layer is traced, and is no part of the graph."""
        self.traced = True

    # what torch.compiler.assume_constant_result does, which would import torch's compiler, and that takes seconds
    _note_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _factors(self) -> Factors:
        factors = self.factors()
        return hold(factors, [self.get_parameter(name) for name in sorted(self.held)]) if self.held else factors

    def delta(self) -> Tensor:
        """Δ as one float32 matrix (d_out, d_in)."""
        return self.factors().delta()

    def own_parameter(self, name: str) -> nn.Parameter:
        """As get_parameter, which looks through the base's modules first."""
        parameter = self._parameters[name]
        assert parameter is not None
        return parameter

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """By short name, without the base's."""
        return dict(self.named_parameters(recurse=False))

    def take_over(self, update: Plain) -> None:
        """Set the tensors so that Δ is `update`, of at most as many ranks; the other ranks add nothing.

        Raises ConfigError where no setting of the tensors gives any low-rank update.
        """
        raise ConfigError(f"a {type(self).__name__} cannot express the update of another method exactly.")

    def tensors(self) -> dict[str, Tensor]:
        """The layer's own parameters and buffers by short name, without the base's, and what it saves for others."""
        return dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False)) | self.shared()

    def shared(self) -> dict[str, Tensor]:
        """Tensors of several layers that are saved with this one. Most methods have none."""
        return {}

    def _can_fuse(self) -> bool:
        """Only an exact nn.Linear, frozen, plain and without hooks: anything else must see its own forward called."""
        base = self.base
        if type(base) is not nn.Linear:
            return False
        weight = base.weight
        return (
            (type(weight) is nn.Parameter or is_fake(weight))  # which stands for a plain one
            and not weight.requires_grad
            and not (base._forward_hooks or base._forward_pre_hooks or base._backward_hooks)
            and not (base._backward_pre_hooks or "forward" in vars(base))  # which accelerate's offloading puts there
            and not torch.compiler.is_compiling()
        )


class FusedBlocks(nn.Module):
    """A fused linear of which some blocks are adapted: y = base(x), then y[rows of a block] += Δ_block x.

    As one matrix the update has a block-diagonal `up` and a stacked `down`, but each block stays an adapter of its own,
    so that a budget can move between q and v of one fused layer.
    """

    def __init__(self, base: nn.Module, blocks: Mapping[str, LowRank], rows: Mapping[str, slice]) -> None:
        super().__init__()
        self.base = base
        self.blocks = nn.ModuleDict(blocks)
        self.rows = rows

    @property
    def weight(self) -> Any:
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        for block, adapter in self.blocks.items():
            assert isinstance(adapter, LowRank)
            if adapter.active:
                y[..., self.rows[block]] += adapter.branch(x).to(y.dtype)
        return y


def is_adapted(model: nn.Module) -> bool:
    """Whether a method is in the model."""
    return any(isinstance(module, LowRank | FusedBlocks | Part) for module in model.modules())


@dataclass
class Installed:
    """What a method put into a model, and how to take it out again."""

    adapters: dict[str, LowRank]  # by module name; empty for methods that are not low-rank
    trained: dict[str, nn.Parameter]  # the model's own parameters that train, by parameter name
    originals: dict[str, Tensor]  # values of `trained` before training, so that the base can be had back
    undo: Callable[[], None]
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    parts: dict[str, Part] = field(default_factory=dict)  # what was added that is not low-rank, by module name
    tuned: frozenset[str] = frozenset()  # those of `trained` that the method is about; the others are heads
    originals_on_cpu: bool = False  # wherever the model is; else each is where its parameter is


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """The settings of one method. Immutable, validated when made."""

    name: ClassVar[str]
    cannot_merge: ClassVar[str | None] = None  # why the trained model is no plain model, where it is none
    cannot_export: ClassVar[str | None] = None  # why no LoRA folder can hold what it learns, where none can
    size_setting: ClassVar[str | None] = None  # the whole number that makes it larger or smaller, where one does
    learning_rate: ClassVar[float] = 1e-3  # of a run that names none; an order of magnitude, for alpha/rank = 1

    @property
    def decides_while_training(self) -> bool:
        """Whether it has a controller, so that training it without one is an error."""
        return False

    @property
    def starts_at_base(self) -> bool:
        """Whether an adapted model gives its base's outputs bit for bit until training moves it."""
        return True

    @property
    def compacts(self) -> bool:
        """Whether dead ranks are removed inside a run, as soon as nothing will be decided any more."""
        return False

    def resized(self, size: int) -> Self:
        """With another `size_setting`, and what goes with it. Raises ConfigError if that cannot be."""
        if self.size_setting is None:
            raise ConfigError(f"{self.name} comes in one size.")
        changed: dict[str, Any] = {self.size_setting: size}
        return replace(self, **changed)

    def filling(self, parameters: int) -> Self:
        """As given, but for methods that fill a budget of parameters by themselves: with that budget."""
        return self

    @abstractmethod
    def install(self, model: nn.Module) -> Installed:
        """Check everything, then change the model: whole, or not at all."""

    def install_saved(self, model: nn.Module, layers: Sequence[str], trained: list[str]) -> Installed:
        """As `install`, for the layers and parameters that a saved adapter lists."""
        return self.install(model)

    def controller(
        self, adapters: Mapping[str, LowRank], total_steps: int, steps_per_epoch: int | None
    ) -> Controller | None:
        """The controller for a run of `total_steps` optimizer steps; None when nothing is decided while training."""
        return None
