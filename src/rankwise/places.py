"""Where a block can be reached into: one table, by family of architectures, for the methods that add modules.

A family that is not here is refused by those methods; nothing is guessed from names or shapes. Low-rank methods,
full fine-tuning and BitFit need no places.
"""

from dataclasses import dataclass, replace

from torch import nn

from rankwise.errors import TargetError


@dataclass(frozen=True)
class Stack:
    """One stack of equal blocks. `reads` and `blocks` are names below the backbone, the others below a block."""

    blocks: str  # the list of blocks
    sublayers: tuple[str, ...]  # whose outputs are added to the residual, each after its dropout where that is a module
    norm_after: str | None  # the LayerNorm that takes the sum of feed-forward and residual; None: it normalises before
    reads: str = ""  # the module that is given the tokens; "" is the backbone
    pooler: str | None = None  # below `reads`: reads one position of the last block's output
    causal: bool = False
    first_position: int = 0  # of the first token, in the table of position embeddings


_BERT = Stack("encoder.layer", ("attention.output.dropout", "output.dropout"), "output.LayerNorm")
_POOLED = replace(_BERT, pooler="pooler")
_MPNET = replace(_POOLED, sublayers=("attention.dropout", "output.dropout"), first_position=2)
_DISTILBERT = Stack("transformer.layer", ("attention", "ffn"), "output_layer_norm")
_GPT2 = Stack("h", ("attn.resid_dropout", "mlp.dropout"), None, causal=True)
_LLAMA = Stack("layers", ("self_attn", "mlp"), None, causal=True)
_PHI3 = replace(_LLAMA, sublayers=("resid_attn_dropout", "resid_mlp_dropout"))
# BART drops out its sub-layers' outputs by a function call, which nothing can hang behind: adapters stand before it.
_ENCODER = Stack("encoder.layers", ("self_attn", "fc2"), "final_layer_norm", reads="encoder")
_DECODER = Stack(
    "decoder.layers", ("self_attn", "encoder_attn", "fc2"), "final_layer_norm", reads="decoder", causal=True
)

STACKS: dict[str, tuple[Stack, ...]] = {
    **dict.fromkeys(("bert", "ernie"), (_POOLED,)),
    **dict.fromkeys(("electra", "deberta", "deberta-v2"), (_BERT,)),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), (replace(_POOLED, first_position=2),)),
    "mpnet": (_MPNET,),
    "distilbert": (_DISTILBERT,),
    "gpt2": (_GPT2,),
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), (_LLAMA,)),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "smollm3", "granite", "starcoder2"), (_LLAMA,)),
    "phi3": (_PHI3,),
    "bart": (_ENCODER, _DECODER),
}


def stacks_of(model_type: str, method: str) -> tuple[Stack, ...]:
    """The stacks of a family, the one that reads the input first. Raises TargetError for a family that is not known."""
    if model_type not in STACKS:
        raise TargetError(
            f"{method} does not know the blocks of a {model_type or 'custom'!s} model; it knows those of "
            f"{sorted(STACKS)}. Full fine-tuning, BitFit and the low-rank methods take any model."
        )
    return STACKS[model_type]


def blocks_in(backbone: nn.Module, stack: Stack) -> list[nn.Module]:
    """The blocks of a stack from the lowest to the highest."""
    return list(backbone.get_submodule(stack.blocks).children())
