"""The prefix methods against plain calls of the base model with longer rows, built by hand one row at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import StaticCache

import rankwise as rw
from contract.models import BY_NAME, LENGTH

L, K = 3, 2  # prefix, infix


def adapted(name: str, method: Any) -> tuple[Any, Tensor, rw.Adaptation]:
    """The model, in evaluation mode, its vectors, far from the start, and the adaptation."""
    model = BY_NAME[name].build().eval()
    adaptation = rw.adapt(model, method)
    [part] = adaptation.parts.values()
    nn.init.normal_(part.vectors, std=0.5, generator=torch.Generator().manual_seed(4))
    return model, part.vectors.detach(), adaptation


def rows(*lengths: int) -> tuple[Tensor, Tensor]:
    """Random tokens, padded on the right, with their mask."""
    longest = max(lengths)
    ids = torch.randint(3, 100, (len(lengths), longest), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def by_hand(model: Any, vectors: Tensor, ids: Tensor, end: int) -> tuple[Tensor, list[int]]:
    """Logits of one unpadded row with the vectors in place, and the place of each token in the longer row."""
    words = model.get_input_embeddings()(ids)
    embeds = torch.cat([vectors[:L], words[:end], vectors[L:], words[end:]])
    infix = len(vectors) - L
    places = [L + t + (infix if t >= end else 0) for t in range(len(ids))]
    return model(inputs_embeds=embeds[None]).logits[0], places


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa", "qwen2"])
@pytest.mark.parametrize("infix", [0, K])
def test_a_causal_model_s_logits_with_a_prompt_and_a_completion(name: str, infix: int) -> None:
    model, vectors, adaptation = adapted(name, rw.PrefixEmbedding(prefix=L, infix=infix))
    ids, mask = rows(7, 5)
    ends = [3, 2]
    labels = ids.masked_fill((torch.arange(7) < torch.tensor(ends)[:, None]) | (mask == 0), -100)
    out = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert out.logits.shape[:2] == ids.shape
    expected = []
    with adaptation.disabled():
        for row, (end, length) in enumerate(zip(ends, (7, 5), strict=True)):
            logits, places = by_hand(model, vectors, ids[row, :length], end)
            places[end - 1] += infix  # the end of the prompt answers from behind the infix
            close(out.logits[row, :length], logits[places])
            expected.append(nn.functional.cross_entropy(logits[places][:-1], labels[row, 1:length], reduction="none"))
    counted = torch.cat([loss[end - 1 :] for loss, end in zip(expected, ends, strict=True)])
    close(out.loss, counted.mean())


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "deberta-v2"])
def test_an_encoder_s_first_token_still_speaks_for_the_row(name: str) -> None:
    """The head, and BERT's pooler inside the backbone, read the caller's first token."""
    model, vectors, adaptation = adapted(name, rw.PrefixEmbedding(prefix=L, infix=K))
    ids, mask = rows(7, 4)
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert [h.shape[:2] for h in out.hidden_states] == [ids.shape] * 3
    with adaptation.disabled():
        for row, length in enumerate((7, 4)):
            words = model.get_input_embeddings()(ids[row, :length])
            embeds = torch.cat([vectors[:L], words, vectors[L:]])[None]
            hidden = model.base_model(inputs_embeds=embeds).last_hidden_state[:, L : L + length]
            close(out.hidden_states[-1][row, :length], hidden[0])
            if name == "bert":
                close(out.logits[row], model.classifier(model.bert.pooler(hidden))[0])
            elif name != "deberta-v2":
                close(out.logits[row], model.classifier(hidden)[0])
            else:
                close(out.logits[row], model.classifier(model.pooler(hidden))[0])


@torch.no_grad()
def test_bart_s_encoder_gives_back_the_states_of_the_tokens() -> None:
    model, vectors, adaptation = adapted("bart", rw.PrefixEmbedding(prefix=L))
    ids, mask = rows(7, 4)
    states = model.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    with adaptation.disabled():
        for row, length in enumerate((7, 4)):
            words = model.model.encoder.embed_tokens(ids[row, :length])
            embeds = torch.cat([vectors, words])[None]
            close(states[row, :length], model.model.encoder(inputs_embeds=embeds).last_hidden_state[0, L:])


@torch.no_grad()
@pytest.mark.parametrize("infix", [0, K])
def test_every_block_of_a_prefix_layer_reads_its_own_vectors(infix: int) -> None:
    model, vectors, adaptation = adapted("gpt2", rw.PrefixLayer(prefix=L, infix=infix))
    ids, _ = rows(6)
    logits = model(input_ids=ids).logits
    transformer = model.transformer
    at = [*range(L), *range(L + 6, L + 6 + infix)]
    tokens = list(range(L, L + 6))
    with adaptation.disabled():
        h = torch.zeros(1, L + 6 + infix, 32)
        h[:, tokens] = transformer.wte(ids) + transformer.wpe(torch.tensor(tokens))
        mask = torch.full((h.shape[1], h.shape[1]), float("-inf")).triu(1)[None, None]
        for number, block in enumerate(transformer.h):
            h[:, at] = vectors[number]
            h = block(h, attention_mask=mask)
        answers = [*tokens[:-1], tokens[-1] + infix]
        close(logits, model.lm_head(transformer.ln_f(h))[:, answers])


def test_the_vectors_of_a_layer_all_learn() -> None:
    model, _, adaptation = adapted("llama-gqa", rw.PrefixLayer(prefix=L, infix=K))
    model(**BY_NAME["llama-gqa"].batch()).loss.backward()
    [part] = adaptation.parts.values()
    assert part.vectors.shape == (2, L + K, 32)
    assert bool(part.vectors.grad.abs().sum(-1).all())


# ------------------------------------------------------------------ generation


METHODS = [
    pytest.param(cls(prefix=L, infix=infix), id=f"{cls.name}-{infix}")
    for cls in (rw.PrefixEmbedding, rw.PrefixLayer)
    for infix in (0, K)
]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_with_a_cache_is_a_row_at_a_time_without(name: str, method: Any, settings: Any) -> None:
    """A padded batch with the cache, against each prompt alone, its whole row run anew for every token."""
    model, _, _ = adapted(name, method)
    prompts = [[5, 17, 23, 42], [61, 7]]
    ids = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    batch = model.generate(ids, attention_mask=(ids != 0).long(), **asked)[:, 4:]
    for row, prompt in enumerate(prompts):
        if settings:
            alone = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), **asked)
            assert batch[row].tolist() == alone[0, len(prompt) :].tolist()
            continue
        tokens = list(prompt)
        for _ in range(5):
            labels = torch.tensor([[-100] * len(prompt) + tokens[len(prompt) :]])  # says where the prompt ends
            logits = model(input_ids=torch.tensor([tokens]), labels=labels).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert batch[row].tolist() == tokens[len(prompt) :]


@torch.no_grad()
def test_bart_generates() -> None:
    model, _, _ = adapted("bart", rw.PrefixEmbedding(prefix=L))
    ids, mask = rows(7, 4)
    asked = {"attention_mask": mask, "max_new_tokens": 6, "num_beams": 2}
    texts = model.generate(ids, **asked)
    for row, length in enumerate((7, 4)):
        alone = model.generate(ids[row : row + 1, :length], **{**asked, "attention_mask": mask[row : row + 1, :length]})
        assert texts[row, : alone.shape[1]].tolist() == alone[0].tolist()


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    model, _, adaptation = adapted("gpt2", rw.PrefixEmbedding(prefix=L))
    ids, _ = rows(6)
    with pytest.raises(rw.StateError, match="static cache"):
        model(input_ids=ids, past_key_values=StaticCache(model.config, max_cache_len=20))
    with pytest.raises(rw.StateError, match="not one of 4 dimensions"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1, 6, 6))
    with adaptation.disabled():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(rw.StateError, match="begun without the prefix"):
        model(input_ids=ids[:, :1], past_key_values=cache)
    long = torch.ones(1, 38, dtype=torch.long)
    with pytest.raises(rw.StateError, match="more than the 40 positions"):
        model(input_ids=long)


def test_the_caller_s_own_loop_may_keep_the_cache() -> None:
    model, _, _ = adapted("gpt2", rw.PrefixEmbedding(prefix=L, infix=K))
    ids, _ = rows(LENGTH)
    first = model(input_ids=ids, use_cache=True)
    token = first.logits[:, -1:].argmax(-1)
    second = model(input_ids=token, past_key_values=first.past_key_values).logits
    labels = torch.cat([torch.full_like(ids, -100), token], 1)
    close(second[:, -1], model(input_ids=torch.cat([ids, token], 1), labels=labels).logits[:, -1])
