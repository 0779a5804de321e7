"""What a method that is not low-rank adds to a model. Imports torch and nothing else."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Part(nn.Module, ABC):
    """A module that a method adds to a model: a bottleneck, a prefix. It hangs in the module beside which it works, and
    is called from that module's hooks, so that every other module keeps its class, its name and its place.

    Its parameters are float32 whatever the model is, and are cast where they are used.
    """

    label: ClassVar[str]  # its name in the module that it hangs in

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    @abstractmethod
    def attach(self, place: nn.Module) -> list[RemovableHandle]:
        """Have the module call this part; it does nothing while `enabled` is off."""

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """By name within the part."""
        return dict(self.named_parameters())

    def trains(self, name: str) -> bool:
        """Whether the named parameter trains."""
        return self.get_parameter(name).requires_grad

    def count(self) -> int:
        """Parameters that train."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, by name within the part."""
        return dict(self.named_parameters()) | dict(self.named_buffers())
