"""Scores of text generated from data, against several references each, as E2E NLG is scored.

BLEU and NIST count as mteval-v13a, in lower case with punctuation; METEOR, ROUGE-L and CIDEr count words without it, as
coco-caption. A text h has references r ∈ R(h), of which there may be more for one text than for another.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.meteor_score import meteor_score
from torchmetrics.functional.text import sacre_bleu_score
from torchmetrics.functional.text.sacre_bleu import _SacreBLEUTokenizer

Scores = dict[str, float]
Words = list[str]
Grams = Counter[tuple[str, ...]]
Weights = dict[tuple[str, ...], float]

PUNCTUATION = frozenset(["''", "'", "``", "`", '"', "(", ")", "[", "]", "{", "}", *".?!,:;-", "--", "..."])


def nlg_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """bleu, nist, meteor, rougeL, cider. nist and cider are no shares: they begin at 0 and have no fixed end."""
    several = [list(each) for each in references]
    counted, counted_references = [_mteval_words(t) for t in texts], [[_mteval_words(r) for r in e] for e in several]
    plain, plain_references = [_plain_words(t) for t in texts], [[_plain_words(r) for r in e] for e in several]
    return {
        "bleu": float(sacre_bleu_score(list(texts), several, lowercase=True)),
        "nist": nist(counted, counted_references),
        "meteor": _mean(meteor(h, r) for h, r in zip(plain, plain_references, strict=True)),
        "rougeL": _mean(rouge_l(h, r) for h, r in zip(plain, plain_references, strict=True)),
        "cider": cider(plain, plain_references),
    }


def nist(texts: Sequence[Words], references: Sequence[Sequence[Words]], longest: int = 5) -> float:
    """Information of the n-grams that are in a reference, for a mean n-gram of each length, less for short texts:

    info(w₁…wₙ) = log₂(count(w₁…wₙ₋₁) / count(w₁…wₙ))      counts over all references; of no word: all words
    NIST = Σₙ (Σ info of matches / n-grams of the texts) · exp(−β·log²(min(1, L / L_ref)))     β: half at L = 2/3·L_ref

    L_ref sums the mean length of each text's references.
    """
    seen: Grams = Counter()
    for reference in (r for each in references for r in each):
        seen.update(gram for n in range(longest + 1) for gram in _grams(reference, n))
    information, total = [0.0] * longest, [0] * longest
    for text, each in zip(texts, references, strict=True):
        for n in range(1, longest + 1):
            written = Counter(_grams(text, n))
            accepted: Grams = Counter()
            for reference in each:
                accepted |= Counter(_grams(reference, n))
            total[n - 1] += written.total()
            matches = written & accepted
            information[n - 1] += sum(c * math.log2(seen[gram[:-1]] / seen[gram]) for gram, c in matches.items())
    wanted = sum(sum(map(len, each)) / len(each) for each in references)
    return sum(i / max(t, 1) for i, t in zip(information, total, strict=True)) * _brevity(total[0], wanted)


def _brevity(length: int, wanted: float) -> float:
    if length >= wanted:
        return 1.0
    beta = math.log(2) / math.log(1.5) ** 2
    return math.exp(-beta * math.log(length / wanted) ** 2) if length else 0.0


class _NoSynonyms:
    """In WordNet's place, whose data is no package: METEOR then matches equal words and equal stems only."""

    def synsets(self, word: str) -> list[str]:
        return []


def meteor(text: Words, references: Sequence[Words]) -> float:
    """METEOR of Lavie and Agarwal (2007), best reference: α 0.9, β 3, γ 0.5, without its stage of synonyms."""
    return float(meteor_score(references, text, wordnet=_NoSynonyms()))


def rouge_l(text: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """(1 + β²)·P·R / (R + β²·P), P and R the largest shares of text and of reference in a common subsequence."""
    common = [_common_subsequence(text, reference) for reference in references]
    precision = max(common) / max(len(text), 1)
    recall = max(c / max(len(reference), 1) for c, reference in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_subsequence(first: Words, second: Words) -> int:
    """Length of the longest."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for place, other in enumerate(second):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
    return row[-1]


def cider(texts: Sequence[Words], references: Sequence[Sequence[Words]], longest: int = 4, sigma: float = 6.0) -> float:
    """CIDEr-D: cosines of n-gram counts in which rare n-grams weigh more, no word counts more often than referred to.

    w(g) = count(g)·log(N / max(1, d(g)))                     d(g) of N inputs have g in a reference
    cos_n(h, r) = Σ min(w_h, w_r)·w_r / (|w_h|·|w_r|) · exp(−(l_h − l_r)² / 2σ²)        l: number of pairs of words
    CIDEr-D = 10 · mean over texts, references and n = 1…4 of cos_n

    nan for a single input, for which every weight is 0.
    """
    if len(texts) == 1:
        return math.nan
    spread = Counter(
        gram for each in references for gram in {g for r in each for n in range(longest) for g in _grams(r, n + 1)}
    )

    def weights(words: Words, n: int) -> Weights:
        counts = Counter(_grams(words, n))
        return {gram: count * math.log(len(texts) / max(1, spread[gram])) for gram, count in counts.items()}

    def likeness(text: Words, reference: Words) -> float:
        gap = max(len(text) - 1, 0) - max(len(reference) - 1, 0)
        cosines = (_clipped_cosine(weights(text, n), weights(reference, n)) for n in range(1, longest + 1))
        return _mean(cosines) * math.exp(-(gap**2) / (2 * sigma**2))

    pairs = zip(texts, references, strict=True)
    return 10 * _mean(_mean(likeness(text, reference) for reference in each) for text, each in pairs)


def _clipped_cosine(text: Weights, reference: Weights) -> float:
    lengths = math.hypot(*text.values()) * math.hypot(*reference.values())
    products = (min(w, reference[gram]) * reference[gram] for gram, w in text.items() if gram in reference)
    return sum(products) / lengths if lengths else 0.0


def _grams(words: Words, n: int) -> Iterator[tuple[str, ...]]:
    """All n-grams; for n = 0 the empty one, once a word."""
    return (tuple(words[place : place + n]) for place in range(len(words) - max(n, 1) + 1))


def _mteval_words(text: str) -> Words:
    return list(_SacreBLEUTokenizer.tokenize(text, "13a", lowercase=True))


def _plain_words(text: str) -> Words:
    """Lower case, without punctuation; the tokenizer takes a full stop off a word only at the end of what it gets."""
    pieces = re.split(r"(?<=[.!?])\s+", text.lower())
    return [word for piece in pieces for word in TreebankWordTokenizer().tokenize(piece) if word not in PUNCTUATION]


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
