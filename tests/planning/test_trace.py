"""The traced pass: bytes known by hand, depth by extrapolation, the fused path taken."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import BertConfig, GPT2Config, LlamaConfig, PretrainedConfig, T5Config

import rankwise as rw
from rankwise.adapter import LowRank, Method
from rankwise.planning.trace import peak_of_pass, timeline
from rankwise.planning.weightless import loss_of, model_of, recompute_activations
from sampled import some

_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
DEEP: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**_SIZES, num_hidden_layers=10),
    "gpt2": GPT2Config(n_embd=32, n_layer=10, n_head=4, vocab_size=50, architectures=["GPT2LMHeadModel"]),
    "llama": LlamaConfig(**_SIZES, num_hidden_layers=10, num_key_value_heads=2, architectures=["LlamaForCausalLM"]),
    # a vocabulary whose logits outweigh any block
    "gpt2-wide": GPT2Config(n_embd=32, n_layer=10, n_head=4, vocab_size=5000, architectures=["GPT2LMHeadModel"]),
}


class Everything(Method):
    """Trains the whole model."""

    name = "everything"

    def install(self, model: nn.Module) -> rw.adapter.Installed:
        return rw.adapter.Installed({}, dict(model.named_parameters()), {}, lambda: None)


@contextmanager
def installed(config: PretrainedConfig, method: Method, *, recompute: bool = False) -> Iterator[tuple]:
    model, task = model_of(config, None, None)
    if recompute:
        recompute_activations(model)
    method.install(model)
    yield model, loss_of(model, task, 4, 16)


def test_bytes_known_by_hand():
    """y = relu(x W): the forward pass makes two (N, d) activations and a scalar; relu's result is kept."""
    layer = nn.Linear(8, 8, bias=False, device="meta")

    def loss() -> torch.Tensor:
        return layer(torch.zeros(16, 8)).relu().sum()

    line = timeline(layer, loss)
    activation, weight = 4 * 16 * 8, 4 * 8 * 8
    assert line.alive[line.turn - 1] == 2 * activation + 4  # x and relu(x) are kept, x W is not
    assert line.alive[-1] == weight + 8  # its gradient, the loss and the loss's own gradient
    assert line.peak >= 3 * activation
    assert all(p.is_meta and p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("method", [rw.AFLoRA(), Everything()], ids=lambda m: m.name)
@pytest.mark.parametrize(("name", "recompute"), some([(n, r) for n in DEEP for r in (False, True)], kept=[0, 5]))
def test_a_deep_stack_is_told_from_a_short_one(name: str, recompute: bool, method: Method):
    with installed(DEEP[name], method, recompute=recompute) as (model, loss):
        assert peak_of_pass(model, loss) == timeline(model, loss).peak


@pytest.mark.parametrize(
    "method", some([rw.LoRA(rank_pattern={"layer.3.output.dense": 4}), rw.LoRA(exclude=r".*\.9\..*")])
)
def test_blocks_that_differ_are_passed_one_by_one(method: Method):
    with installed(DEEP["bert"], method) as (model, loss):
        assert peak_of_pass(model, loss) == timeline(model, loss).peak


@pytest.mark.slow
def test_two_stacks_are_passed_whole():
    config = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=9, num_heads=4, vocab_size=50, decoder_start_token_id=0)
    config.architectures = ["T5ForConditionalGeneration"]
    with installed(config, rw.LoRA(rank=2)) as (model, loss):
        assert peak_of_pass(model, loss) == timeline(model, loss).peak > 0


def test_the_fused_path_is_the_one_that_is_traced():
    """The plain path keeps what `s_b` multiplies, (N, d_out), in each layer; a hook on the base leads there."""
    with installed(DEEP["bert"], rw.AFLoRA(rank=2)) as (model, loss):
        fused = peak_of_pass(model, loss)
        for adapter in model.modules():
            if isinstance(adapter, LowRank):
                adapter.base.register_forward_hook(lambda *_: None)
        assert peak_of_pass(model, loss) > 1.05 * fused


def test_recomputing_takes_less():
    with installed(DEEP["llama"], rw.LoRA(rank=2)) as (model, loss):
        kept = peak_of_pass(model, loss)
    with installed(DEEP["llama"], rw.LoRA(rank=2), recompute=True) as (model, loss):
        assert peak_of_pass(model, loss) < kept / 2
