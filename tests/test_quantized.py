"""Quantised bases: every kind trains, saves and loads under every method, stays as it was, and is merged on request."""

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

import rankwise as rw
import tiny
from rankwise.adapter import Method
from rankwise.base_layers import Block, device_of, is_packed, kind_of, sizes, weight
from rankwise.cli import main

STEPS = 10
SHORT: dict[str, Any] = {"warmup": 2, "cooldown": 3, "every": 1}
METHODS = [
    rw.LoRA(rank=3),
    rw.AdaLoRA(rank=4, target_rank=2, **SHORT),
    rw.AFLoRA(rank=3, scope="all", **SHORT),
]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def torchao() -> Any:
    """torchao's quantisation, or the reason why the test is skipped. Its import warns of kernels it has not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-quantized")


def bitsandbytes() -> Any:
    reason = "bitsandbytes is not installed: make test-quantized"
    return pytest.importorskip("bitsandbytes", reason=reason)


def by_torchao(config: Callable[[Any], Any]) -> Callable[[nn.Linear], nn.Linear]:
    def quantised(linear: nn.Linear) -> nn.Linear:
        ao = torchao()
        ao.quantize_(linear, config(ao))
        return linear

    return quantised


def in_8_bit(linear: nn.Linear) -> nn.Linear:
    bnb = bitsandbytes()
    new = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
    new.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    new.bias = linear.bias
    return new.to("cpu")


def in_4_bit(linear: nn.Linear) -> nn.Linear:
    bnb = bitsandbytes()
    new = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4")
    new.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    new.bias = linear.bias
    return new.to("cpu")


KINDS: dict[str, Callable[[nn.Linear], nn.Linear]] = {
    "torchao-int8": by_torchao(lambda ao: ao.Int8WeightOnlyConfig()),
    "torchao-int4": by_torchao(lambda ao: ao.IntxWeightOnlyConfig(torch.int4, ao.PerGroup(16))),
    "bitsandbytes-8bit": in_8_bit,
    "bitsandbytes-4bit": in_4_bit,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# LLM.int8 rounds activations too, which the plain layer that takes its place does not
TOLERANCE = {"bitsandbytes-8bit": 0.03}


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "head" not in n and "score" not in n}


def quantise(model: nn.Module, kind: str) -> nn.Module:
    for name, linear in linears(model).items():
        model.set_submodule(name, KINDS[kind](linear))
    return model


def llama(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return quantise(LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype), kind)


IDS = torch.arange(24).view(3, 8) + 3


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def stored(model: nn.Module) -> dict[str, bytes]:
    """Every byte of the quantised weights, and what they stand for."""
    found = {}
    for name, module in model.named_modules():
        if is_packed(module) and not isinstance(module, Block):
            parts = (
                [v for v in vars(module.weight).values() if isinstance(v, Tensor)]
                if "torchao" in name_of_kind(module)
                else []
            )
            parts = [*(parts or [module.weight.data]), weight(module)]
            plain = name.removesuffix(".base")
            found |= {f"{plain}.{i}": t.contiguous().view(torch.uint8).numpy().tobytes() for i, t in enumerate(parts)}
    assert found
    return found


def name_of_kind(module: nn.Module) -> str:
    found = kind_of(module)
    assert found is not None
    return found.name


def train(adaptation: rw.Adaptation, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=0.05)
    losses = []
    with adaptation.attached(optimizer, STEPS):
        for _ in range(steps):
            loss = adaptation.model(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses


@every_kind
def test_sizes_are_those_of_the_layer(kind: str):
    layer = KINDS[kind](nn.Linear(32, 64))
    assert is_packed(layer)
    assert sizes(layer) == (32, 64)
    assert device_of(layer) == torch.device("cpu")
    assert sizes(Block(layer, 8, 24)) == (32, 16)
    assert is_packed(Block(layer, 8, 24))


@every_kind
@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_is_the_one_it_computes_with(kind: str, bias: bool):
    torch.manual_seed(0)
    layer = KINDS[kind](nn.Linear(32, 64, bias=bias))
    x = torch.randn(5, 32)
    for _ in range(2):  # the first call moves bitsandbytes' scales
        ours = nn.functional.linear(x, weight(layer), layer.bias)
        assert float((ours - layer(x)).detach().norm() / ours.detach().norm()) < TOLERANCE.get(kind, 1e-6)


def test_torchao_agrees_on_the_weight():
    for kind in ("torchao-int8", "torchao-int4"):
        layer = KINDS[kind](nn.Linear(32, 64))
        assert torch.equal(weight(layer), layer.weight.dequantize())


def test_kinds_are_known_by_their_names_alone():
    packed = type("Linear4bit", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})(32, 64)
    packed.weight = nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)
    kind = kind_of(packed)
    assert kind is not None
    assert kind.packed
    assert sizes(packed) == (32, 64)
    unknown = nn.Linear(32, 64)
    unknown.weight = nn.Parameter(torch.zeros(1024, 1, dtype=torch.uint8), requires_grad=False)
    assert kind_of(unknown) is None


@every_kind
@by_name
def test_trains_saves_and_loads_and_leaves_the_base(kind: str, method: Method, tmp_path: Path):
    model = llama(kind)
    before, plain = stored(model), logits(model)
    adaptation = rw.adapt(model, method)
    assert len(adaptation.adapters) == 7
    assert torch.equal(logits(model), plain)
    losses = train(adaptation)
    assert losses[-1] < losses[0] - 0.02
    if method.name == "adalora":
        assert sum(adaptation.ranks().values()) == 2 * 7
    if method.name == "aflora":
        assert len(adaptation.frozen()) == 2 * 7
    assert stored(model) == before
    with adaptation.disabled():
        assert torch.equal(logits(model), plain)
    adaptation.save(tmp_path / "adapter")
    other = llama(kind)
    loaded = rw.load(other, tmp_path / "adapter")
    assert torch.equal(logits(other), logits(model))
    assert loaded.ranks() == adaptation.ranks()
    adaptation.compact()
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(adaptation.undo()), plain)


@every_kind
def test_merging_is_refused_and_changes_nothing(kind: str):
    adaptation = rw.adapt(llama(kind), METHODS[0])
    train(adaptation)
    before, adapted = stored(adaptation.model), logits(adaptation.model)
    with pytest.raises(rw.StateError, match=r"7 of 7 layers have a quantised weight.*merge\(dequantize=True\)"):
        adaptation.merge()
    assert stored(adaptation.model) == before
    assert torch.equal(logits(adaptation.model), adapted)


@every_kind
@by_name
def test_merging_on_request_puts_plain_layers_and_tells_the_error(kind: str, method: Method):
    adaptation = rw.adapt(llama(kind), method)
    train(adaptation)
    adapted = logits(adaptation.model)
    names = set(adaptation.adapters)
    model = adaptation.merge(dequantize=True)
    assert all(type(m) is nn.Linear and not is_packed(m) for m in linears(model).values())
    error = adaptation.merge_error
    assert error is not None
    assert set(error.layers) == names
    assert error.median <= error.largest <= TOLERANCE.get(kind, 1e-5)
    assert str(error).startswith("relative error of 7 merged layers: median ")
    distance = (logits(model) - adapted).norm() / adapted.norm()
    assert float(distance) < 3 * TOLERANCE.get(kind, 1e-5)


@pytest.mark.parametrize("kind", ["torchao-int8", "bitsandbytes-4bit", "bitsandbytes-8bit"])
def test_a_model_in_bfloat16_stays_in_it(kind: str):
    model = llama(kind, torch.bfloat16)
    adaptation = rw.adapt(model, METHODS[0])
    train(adaptation)
    adapted = logits(model)
    merged = adaptation.merge(dequantize=True)
    assert {m.weight.dtype for m in linears(merged).values()} == {torch.bfloat16}
    assert float((logits(merged) - adapted).norm() / adapted.norm()) < 0.05
    assert adaptation.merge_error is not None
    assert 1e-4 < adaptation.merge_error.largest < 0.03  # one rounding of the weights, and LLM.int8's of activations


def test_merging_plain_layers_measures_too():
    torch.manual_seed(0)
    adaptation = rw.adapt(LlamaForCausalLM(LlamaConfig(**SIZES)), METHODS[0])
    train(adaptation)
    originals = linears(adaptation.model)
    merged = adaptation.merge()
    assert adaptation.merge_error is not None
    assert 0 < adaptation.merge_error.largest < 1e-6
    assert all(originals[f"{name}.base"] is layer for name, layer in linears(merged).items())


@every_kind
def test_blocks_of_a_fused_layer(kind: str):
    torch.manual_seed(0)
    model = quantise(Phi3ForCausalLM(Phi3Config(**SIZES)), kind)
    before = stored(model)
    adaptation = rw.adapt(model, rw.AdaLoRA(rank=3, target_rank=2, targets=["qkv_proj[q,v]"], **SHORT))
    train(adaptation)
    assert stored(model) == before
    adapted = logits(model)
    merged = adaptation.merge(dequantize=True)
    assert float((logits(merged) - adapted).norm() / adapted.norm()) < TOLERANCE.get(kind, 1e-5)
    assert [n for n, m in linears(merged).items() if not is_packed(m)] == ["model.layers.0.self_attn.qkv_proj"]
    assert adaptation.merge_error is not None
    assert [n[-3:] for n in adaptation.merge_error.layers] == ["[q]", "[v]"]


@every_kind
def test_a_quantised_head_cannot_train(kind: str):
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES))
    model.score = KINDS[kind](nn.Linear(32, 64, bias=False))
    with pytest.raises(rw.TargetError, match=r"score is to be trained in full, but its weight is quantised"):
        rw.adapt(model, METHODS[0])
    assert not any("LoRA" in type(m).__name__ for m in model.modules())
    rw.adapt(model, rw.LoRA(rank=2, also_train=[]))


@every_kind
def test_a_layer_quantised_after_loading_is_not_taken_for_a_fresh_one(kind: str, tmp_path: Path):
    """transformers marks what it loads, and quantising drops the mark."""
    LlamaForSequenceClassification(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    adaptation = rw.adapt(quantise(model, kind), METHODS[0])
    assert len(adaptation.adapters) == 7
    assert list(adaptation.trained) == ["score.weight"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_stock_trainer_trains_what_transformers_quantised(bits: int, tmp_path: Path):
    bitsandbytes()
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "model")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config)
    before = stored(model)
    adaptation = rw.adapt(model, METHODS[1])
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=STEPS,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[rw.AdaptationCallback(adaptation)])
    assert model.is_quantized
    trainer.train()
    assert sum(adaptation.ranks().values()) == 2 * 7
    assert stored(model) == before


def test_counts_are_of_weights_and_not_of_bytes():
    plain = repr(rw.adapt(LlamaForCausalLM(LlamaConfig(**SIZES)), METHODS[0]))
    assert repr(rw.adapt(llama("bitsandbytes-4bit"), METHODS[0])) == plain


def test_a_compiled_quantised_model_is_one_graph():
    torchao()
    adaptation = rw.adapt(llama("torchao-int8"), METHODS[0])
    twin = copy.deepcopy(adaptation.model)
    losses = train(adaptation, 2)
    assert losses[1] < losses[0]
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    compiled(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in twin.parameters() if p.requires_grad)


def test_merge_on_the_command_line_needs_to_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A base that transformers quantises as it loads; what is written has nothing quantised, the head included."""
    ao = torchao()
    base = tiny.save_model("llama", tmp_path / "plain")
    settings = TorchAoConfig(ao.Int8WeightOnlyConfig())
    quantised = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings)
    quantised.save_pretrained(tmp_path / "base")
    for file in base.glob("*token*"):
        shutil.copy(file, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adaptation = rw.adapt(model, rw.LoRA(rank=3, targets=["q_proj", "v_proj"]))  # the others stay packed until the end
    for adapter in adaptation.adapters.values():
        nn.init.normal_(adapter.B, std=0.1)
    adaptation.save(tmp_path / "adapter")
    words = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted = model.eval()(words).logits
    arguments = ["merge", str(tmp_path / "adapter"), str(tmp_path / "merged"), "--model", str(tmp_path / "base")]
    assert main(arguments) == 2
    assert "quantised weight" in capsys.readouterr().err and not (tmp_path / "merged").exists()
    assert main([*arguments, "--dequantize"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any(is_packed(m) for m in merged.modules() if isinstance(m, nn.Linear))
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(words).logits, adapted, rtol=1e-2, atol=1e-2)
    assert "same first choice" in capsys.readouterr().out
