"""Adapter files of llama.cpp: names, shapes, order of rows, and what is refused; read back with the gguf package."""

from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

import rankwise as rw
from contract.methods import BY_NAME as METHODS
from contract.models import BY_NAME as MODELS
from contract.runs import trained
from rankwise.io import gguf_adapter, peft_format
from rankwise.io.gguf_adapter import convert, in_rotated_order

LLAMA = MODELS["llama-gqa"]


def read(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    # the reader's shapes are in ggml's order, fastest dimension first
    tensors = {t.name: torch.from_numpy(t.data.copy()).view(*reversed(t.shape.tolist())) for t in reader.tensors}
    return fields, tensors


def rotated_by_hand(rows: Tensor, heads: int) -> Tensor:
    """Row 2i of a head is its row i, row 2i + 1 is its row i + h."""
    size = rows.shape[0] // heads
    order = [head * size + i + half for head in range(heads) for i in range(size // 2) for half in (0, size // 2)]
    return rows[order]


def test_a_file_holds_every_layer_under_llama_cpp_s_names(tmp_path: Path) -> None:
    adaptation = trained(LLAMA, METHODS["adalora"].method)
    adaptation.export(tmp_path / "lora")
    convert(tmp_path / "lora", adaptation.model.config, tmp_path / "lora.gguf")
    fields, tensors = read(tmp_path / "lora.gguf")
    assert fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    ours = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    ours |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    expected = {}
    for path, pair in peft_format.read(tmp_path / "lora").pairs().items():
        block, layer = path.split(".")[2], path.rpartition(".")[2]
        heads = {"q_proj": 4, "k_proj": 2}.get(layer)
        expected[f"blk.{block}.{ours[layer]}.weight.lora_a"] = pair.down
        expected[f"blk.{block}.{ours[layer]}.weight.lora_b"] = rotated_by_hand(pair.up, heads) if heads else pair.up
    assert tensors.keys() == expected.keys() and len(tensors) == 28
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_rows_are_reordered_as_the_weight_s_are() -> None:
    B, A = torch.randn(32, 3), torch.randn(3, 5)
    torch.testing.assert_close(in_rotated_order(B, 4) @ A, rotated_by_hand(B @ A, 4), rtol=1e-6, atol=1e-6)


def test_what_llama_cpp_would_misread_is_refused(tmp_path: Path) -> None:
    adaptation = trained(LLAMA, METHODS["adalora"].method)
    adaptation.export(tmp_path / "lora", layout="compact")
    with pytest.raises(rw.FolderError, match="depends on patterns"):
        convert(tmp_path / "lora", adaptation.model.config, tmp_path / "lora.gguf")
    with pytest.raises(rw.ConfigError, match="the base model is a gpt2"):
        convert(tmp_path / "lora", MODELS["gpt2"].build().config, tmp_path / "lora.gguf")
    assert not list(tmp_path.glob("*gguf*"))


def test_without_gguf_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_adapter, "find_spec", lambda name: None)
    with pytest.raises(rw.ConfigError, match=r"needs the package gguf, .*rankwise\[gguf\]"):
        convert(tmp_path, LLAMA.build().config, tmp_path / "lora.gguf")
