"""What low-rank updates do not reach is said, with its share: stacks of experts and embeddings."""

import pytest
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import rankwise as rw
from contract.models import BY_NAME
from rankwise.base_layers import count

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
MOE = {
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(vocab_size=64, intermediate_size=48, num_local_experts=4, **SIZES)
    ),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(vocab_size=64, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, **SIZES)
    ),
}


@pytest.mark.parametrize("build", MOE.values(), ids=MOE)
def test_fused_experts_and_embeddings_are_reported_with_their_share(build) -> None:
    model = build()
    experts = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 3 and ".experts." in n)
    embeddings = model.get_input_embeddings().weight.numel()
    total = count(model)
    said = str(rw.adapt(model, rw.LoRA(rank=2)))
    share = f"{experts:,} of {total:,} parameters ({100 * experts / total:.1f} %)"
    assert experts > 0.4 * total
    assert f"left out: 4 fused expert weights, each a stack of matrices: {share}" in said
    assert f"left out: embeddings: {embeddings:,} of {total:,} parameters ({100 * embeddings / total:.1f} %)" in said


def test_what_trains_in_full_is_not_left_out() -> None:
    model = BY_NAME["bert"].build()
    names = ["word_embeddings", "position_embeddings", "token_type_embeddings", "classifier"]
    assert "left out" not in str(rw.adapt(model, rw.LoRA(rank=2, also_train=names)))
    model = BY_NAME["bert"].build()
    words = model.bert.embeddings.word_embeddings.weight.numel()
    said = str(rw.adapt(model, rw.LoRA(rank=2, also_train=names[1:])))
    assert f"left out: embeddings: {words:,} of " in said


@pytest.mark.parametrize("name", ["vit", "whisper", "t5"])
def test_no_other_three_dimensions_pass_for_experts(name: str) -> None:
    """A convolution's kernels and a table of positions have three as well."""
    assert "expert" not in str(rw.adapt(BY_NAME[name].build(), rw.LoRA(rank=2)))


@pytest.mark.parametrize("method", [rw.LinAdapter(size=2), rw.FullFineTuning()], ids=lambda m: m.name)
def test_methods_that_adapt_no_single_weights_leave_none_out(method) -> None:
    assert "left out" not in str(rw.adapt(MOE["mixtral"](), method))
