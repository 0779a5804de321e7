"""Sequence-to-sequence: a prompt to read, a completion to generate."""

from transformers import DataCollatorForSeq2Seq

from rankwise.errors import DataError
from rankwise.train.generation_rows import SPLITS, Batch, cut_rows, hold_text, mapped
from rankwise.train.prepared import Prepared, Source, require_padding, too_long


def prepare_seq2seq(source: Source) -> Prepared:
    """Columns input_ids, attention_mask and labels; the collator pads labels with -100."""
    require_padding(source.tokenizer)
    if not hold_text(source):
        raise DataError("seq2seq needs prompts and completions as text; these are lists of messages, for causal-lm.")
    encoded = {split: mapped(source, split, lambda batch: encode_pairs(source, batch)) for split in SPLITS}
    return Prepared(
        task="seq2seq",
        **{split: rows.remove_columns("cut") for split, rows in encoded.items()},
        collator=DataCollatorForSeq2Seq(source.tokenizer),
        truncated=cut_rows(encoded),
    )


def encode_pairs(source: Source, batch: Batch) -> Batch:
    config, tokenizer = source.config, source.tokenizer
    prompts = [config.prompt_prefix + text for text in batch[source.columns.column("prompt")]]
    targets = batch[source.columns.column("completion")]
    inputs = tokenizer(prompts, truncation=True, max_length=config.max_length)
    labels = tokenizer(text_target=targets, truncation=True, max_length=config.max_target_length)["input_ids"]
    long_prompt = too_long(
        inputs["input_ids"], lambda row: len(tokenizer(prompts[row], verbose=False)["input_ids"]), config.max_length
    )
    long_target = too_long(
        labels,
        lambda row: len(tokenizer(text_target=targets[row], verbose=False)["input_ids"]),
        config.max_target_length,
    )
    return {**inputs, "labels": labels, "cut": [a or b for a, b in zip(long_prompt, long_target, strict=True)]}
