"""What of a model low-rank updates do not reach, though it holds much of it: expert stacks and embeddings."""

from collections.abc import Iterable

from torch import nn

from rankwise.base_layers import count

_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)


def left_out(model: nn.Module, adapted: Iterable[nn.Module], trained: Iterable[nn.Parameter]) -> list[str]:
    """A sentence for each kind that is neither adapted nor trained in full, with its share of the parameters."""
    reached = {p for module in adapted for p in module.parameters()} | set(trained)
    experts: set[nn.Parameter] = set()
    embeddings: set[nn.Parameter] = set()
    for module in model.modules():
        own = {p for p in module.parameters(recurse=False) if p not in reached}
        if isinstance(module, nn.Embedding):
            embeddings |= own
        elif not isinstance(module, _CONVOLUTION):
            # transformers keeps the matrices of all experts of a layer in one tensor (experts, d_out, d_in); a position
            # embedding or a class token has three dimensions too, the first of length 1
            experts |= {p for p in own if p.ndim == 3 and p.shape[0] > 1}
    total = count(model)
    notes = []
    if experts:
        stacks = f"{len(experts)} fused expert weight{'s' if len(experts) > 1 else ''}, each a stack of matrices"
        notes.append(f"left out: {stacks}: {_share(experts, total)}")
    if embeddings:
        notes.append(f"left out: embeddings: {_share(embeddings, total)}")
    return notes


def _share(parameters: Iterable[nn.Parameter], total: int) -> str:
    size = sum(p.numel() for p in parameters)
    return f"{size:,} of {total:,} parameters ({100 * size / total:.1f} %)"
