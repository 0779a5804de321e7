"""Causal language models: rows stay text, in the shapes that trl.SFTTrainer reads."""

from collections.abc import Callable
from typing import Any

import datasets

from rankwise.errors import ConfigError, DataError
from rankwise.train.generation_rows import SPLITS, Batch, cut_rows, hold_text, mapped
from rankwise.train.prepared import Prepared, Source


def prepare_causal(source: Source) -> Prepared:
    """Columns messages; or prompt and completion, trained on the completion only; or text."""
    if source.columns.messages is not None:
        encode, completion_only = conversations(source), False
    elif source.columns.prompt is not None:
        encode, completion_only = prompts_and_completions(source), True
    else:
        encode, completion_only = plain_texts(source), False
    encoded = {split: mapped(source, split, encode) for split in SPLITS}
    rows = {split: learnable(source, split, each) for split, each in encoded.items()}
    return Prepared(
        task="causal-lm",
        **{split: each.remove_columns(["cut", "masked"]) for split, each in rows.items()},
        collator=None,
        truncated=cut_rows(rows),
        left_out={split: len(each) - len(rows[split]) for split, each in encoded.items()},
        completion_only=completion_only,
    )


def learnable(source: Source, split: str, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows of which max_length leaves a token to predict; TRL would leave out the others without a word.

    Raises DataError when there are none.
    """
    kept = [place for place, masked in enumerate(rows["masked"]) if not masked]
    if not kept:
        raise DataError(
            f"max_length={source.config.max_length} tokens leave nothing of the completion of any {split} row: the "
            "prompts take them all. Raise data.max_length, or shorten the prompts."
        )
    return rows if len(kept) == len(rows) else rows.select(kept)


def plain_texts(source: Source) -> Callable[[Batch], Batch]:
    column = source.columns.column("text")
    room = source.config.max_length - 1  # SFTTrainer adds the end token

    def encode(batch: Batch) -> Batch:
        ids = source.tokenizer(batch[column], verbose=False)["input_ids"]
        return {"text": batch[column], "cut": [len(each) > room for each in ids], "masked": [False] * len(ids)}

    return encode


def conversations(source: Source) -> Callable[[Batch], Batch]:
    column = source.columns.column("messages")
    require_template(source)

    def encode(batch: Batch) -> Batch:
        for messages in batch[column]:
            check_messages(messages, column)
        cut = [len(rendered(source, each)) > source.config.max_length for each in batch[column]]
        return {"messages": batch[column], "cut": cut, "masked": [False] * len(cut)}

    return encode


def prompts_and_completions(source: Source) -> Callable[[Batch], Batch]:
    prompt, completion = source.columns.column("prompt"), source.columns.column("completion")
    if not hold_text(source):
        make = message_pairs
    else:
        make = chat_pairs if source.config.chat else text_pairs
    if make is not text_pairs:
        require_template(source)
    return lambda batch: make(source, batch[prompt], batch[completion])


def text_pairs(source: Source, prompts: list[str], completions: list[str]) -> Batch:
    """Text as it is trained on. A prompt that leaves no room is cut at its end: TRL would cut the completion away."""
    between = separator(source)
    texts = [source.config.prompt_prefix + text for text in prompts]
    lengths = [len(ids) for ids in source.tokenizer(completions, verbose=False)["input_ids"]]
    encoded = source.tokenizer(texts, verbose=False)["input_ids"]
    room = [room_for_prompt(source, between, length) for length in lengths]
    cut = [len(ids) > most for ids, most in zip(encoded, room, strict=True)]
    shortened = [
        first_tokens(source, text, most) if long else text for text, most, long in zip(texts, room, cut, strict=True)
    ]
    over = [length > source.config.max_length - most for length, most in zip(lengths, room, strict=True)]
    return {
        "prompt": [joined(text, between) for text in shortened],
        "completion": completions,
        "cut": [a or b for a, b in zip(cut, over, strict=True)],
        "masked": [False] * len(prompts),
    }


def joined(prompt: str, between: str) -> str:
    """A blank before the separator would melt into one token with it, which generation would not see."""
    return prompt.rstrip() + between if between else prompt


def separator(source: Source) -> str:
    if source.config.separator is not None:
        return source.config.separator
    native = (source.columns.prompt, source.columns.completion) == ("prompt", "completion")
    return "" if native else "\n"


def room_for_prompt(source: Source, between: str, completion: int) -> int:
    """Tokens of max_length that the prompt may take: what the completion leaves, but never less than half.

    Two tokens more than counted are left free: the end token, and one where text is split otherwise at the seam.
    """
    most = source.config.max_length
    taken = completion + len(source.tokenizer(between, verbose=False)["input_ids"]) + 2
    return max(most - taken, most // 2)


def first_tokens(source: Source, text: str, count: int) -> str:
    """The beginning of `text` that is at most `count` tokens long."""
    if not source.tokenizer.is_fast:
        return str(source.tokenizer.decode(source.tokenizer(text)["input_ids"][:count], skip_special_tokens=True))
    offsets = source.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: max(end for _, end in offsets[:count])]


def chat_pairs(source: Source, prompts: list[str], completions: list[str]) -> Batch:
    prefix = source.config.prompt_prefix
    asked = [[{"role": "user", "content": prefix + text}] for text in prompts]
    answered = [[{"role": "assistant", "content": text}] for text in completions]
    return message_pairs(source, asked, answered)


def message_pairs(source: Source, prompts: list[Any], completions: list[Any]) -> Batch:
    for messages in (*prompts, *completions):
        check_messages(messages, "prompt or completion")
    whole = [rendered(source, prompt + answer) for prompt, answer in zip(prompts, completions, strict=True)]
    asked = [rendered(source, prompt, add_generation_prompt=True) for prompt in prompts]
    most = source.config.max_length
    return {
        "prompt": prompts,
        "completion": completions,
        "cut": [len(ids) > most for ids in whole],
        "masked": [shared_beginning(*both) >= min(most, len(both[1])) for both in zip(asked, whole, strict=True)],
    }


def shared_beginning(one: list[int], other: list[int]) -> int:
    """Tokens that both begin with: where a prompt and the prompt with its completion part, TRL has the latter begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def check_messages(messages: Any, column: str) -> None:
    if not messages or not all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages):
        raise DataError(
            f"column {column!r} holds {str(messages)[:80]!r}; every row needs a list of "
            "{'role': 'user' | 'assistant' | 'system', 'content': '...'}."
        )


def rendered(source: Source, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> list[int]:
    ids: list[int] = source.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
    )
    return ids


def require_template(source: Source) -> None:
    if source.tokenizer.chat_template is None:
        raise ConfigError(
            "messages need a chat template and the tokenizer has none. Choose an instruction-tuned model, set "
            "tokenizer.chat_template, or use prompt and completion columns with text."
        )
