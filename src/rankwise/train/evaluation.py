"""The final evaluation of a job: the same function after training and in `rankwise evaluate`."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer

from rankwise.errors import ConfigError
from rankwise.train.build import generation_config
from rankwise.train.job import Job
from rankwise.train.metrics import perplexity
from rankwise.train.scorers import content, references_by_prompt
from rankwise.train.tasks import positions_of
from rankwise.train.token_loss import mean_token_loss

Scores = dict[str, float]


def evaluate(job: Job, trainer: Trainer) -> Scores:
    """The task's metrics over the validation rows, the primary one among them."""
    if job.task != "causal-lm":
        found = trainer.evaluate(metric_key_prefix="eval")
        kept = {k.removeprefix("eval_"): v for k, v in found.items() if isinstance(v, int | float)}
        return {k: v for k, v in kept.items() if k not in _CLOCKS}
    with trainer.accelerator.autocast():  # as the trainer's own evaluations, whether it has trained or not
        # the loader deals rows out to the processes, and repeats some where they do not come out even
        loss = mean_token_loss(job.model, _batches(trainer), trainer.accelerator.gather_for_metrics)
    scores = {"loss": loss, "perplexity": perplexity(loss)}
    return scores | (generated_scores(job, trainer) if job.config.generation.rows else {})


_CLOCKS = ("runtime", "samples_per_second", "steps_per_second", "epoch", "model_preparation_time", "num_tokens")


def _batches(trainer: Trainer) -> Iterator[dict[str, torch.Tensor]]:
    for batch in trainer.get_eval_dataloader():
        moved = trainer._prepare_inputs(batch)
        yield {k: v for k, v in moved.items() if k in ("input_ids", "attention_mask", "labels", "position_ids")}


def generated_scores(job: Job, trainer: Trainer) -> Scores:
    """Scores of what a causal model writes after the first `generation.rows` validation prompts."""
    prompts, references = asked(job)
    texts = generate(job, trainer, prompts)
    return job.scorer.scores([text.strip() for text in texts], references)


def asked(job: Job) -> tuple[list[Any], list[list[str]]]:
    """(prompts, the accepted texts of each): one a row, or one for all rows that share it, as the scorer has it."""
    rows, most = job.prepared.validation, job.config.generation.rows
    prompts, completions = list(rows["prompt"]), [content(each).strip() for each in rows["completion"]]
    if not job.scorer.by_prompt:
        return prompts[:most], [[each] for each in completions[:most]]
    references = references_by_prompt(prompts, completions)
    return [prompts[place] for place in references][:most], list(references.values())[:most]


def sample_prompts(job: Job, count: int = 3) -> list[Any]:
    """The first validation prompts of a causal model that generates, to show what it writes; else none."""
    if job.task != "causal-lm" or not job.config.generation.rows:
        return []
    return asked(job)[0][:count] if job.scorer.by_prompt else list(job.prepared.validation["prompt"][:count])


@torch.no_grad()
def generate(job: Job, trainer: Trainer, prompts: list[Any]) -> list[str]:
    """What the model writes after each prompt (text, or a list of messages), batch by batch."""
    if not prompts:
        return []
    tokenizer, model = job.tokenizer, job.model
    config = generation_config(job)
    training = model.training
    model.eval()
    written: list[str] = []
    size = 2 * job.config.training.batch_size
    try:
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            # padding on the left: what is generated must follow the prompt itself
            inputs = _encoded(tokenizer, batch, return_tensors="pt", padding=True, padding_side="left").to(model.device)
            with trainer.accelerator.autocast():
                out = model.generate(**inputs, generation_config=config)
            written += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    finally:
        model.train(training)
    return written


def check_room(job: Job) -> None:
    """Raise ConfigError if a causal model has too few positions for a prompt and what is to be written after it."""
    positions, prompts = positions_of(job.model.config), sample_prompts(job, job.config.generation.rows)
    if positions is None or not prompts:
        return
    longest = max(map(len, _encoded(job.tokenizer, prompts, verbose=False)["input_ids"]))
    most = job.config.generation.max_new_tokens
    if longest + most > positions:
        raise ConfigError(
            f"generation.max_new_tokens={most} after a prompt of {longest} tokens exceeds the {positions} positions of "
            f"this {job.model.config.model_type}. Lower it, or data.max_length, which limits the prompts."
        )


def _encoded(tokenizer: Any, prompts: list[Any], **settings: Any) -> Any:
    texts = [_as_text(tokenizer, p) for p in prompts]
    plain = isinstance(prompts[0], str)  # a chat template writes its special tokens itself: <bos> would stand twice
    return tokenizer(texts, add_special_tokens=plain, **settings)


def _as_text(tokenizer: Any, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    text: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return text
