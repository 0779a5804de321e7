"""BLEU, NIST, METEOR, ROUGE-L and CIDEr against values worked out by hand; CIDEr against its formula done slowly."""

import math
import random

import numpy as np
import pytest

from rankwise.train.nlg_scores import _plain_words, cider, meteor, nist, nlg_scores, rouge_l

Words = list[str]


def words(text: str) -> Words:
    return text.split()


def test_words_without_punctuation() -> None:
    text = '"The Vaults", near Café Adriatic. It\'s a family-friendly pub (£20-25)!'
    assert _plain_words(text) == words("the vaults near café adriatic it 's a family-friendly pub £20-25")


def test_bleu_of_several_references_in_lower_case() -> None:
    texts = ["A b c d e", "x y Z w"]
    references = [["a b c d q", "p b c d e", "a b c d e f g h i j"], ["x y z w v"]]
    # every n-gram of the texts is in some reference; the nearest lengths are 5 and 5 for texts of 9 words
    assert nlg_scores(texts, references)["bleu"] == pytest.approx(math.exp(1 - 10 / 9))


def test_nist() -> None:
    found = nist([words("a b")], [[words("a b"), words("a c c")]])
    one = (math.log2(5 / 2) + math.log2(5 / 1)) / 2  # five words: a twice, b once
    two = math.log2(2 / 1)  # of two a, one goes on with b
    brevity = math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(2 / 2.5) ** 2)
    assert found == pytest.approx((one + two) * brevity)


def test_nist_of_two_thirds_of_the_length_is_halved() -> None:
    # of three equal words only the pair and the triple carry information: log2(3/2) for a pair
    assert nist([words("a a")], [[words("a a a")]]) == pytest.approx(0.5 * math.log2(3 / 2))


def test_nist_takes_an_ngram_from_any_reference_once() -> None:
    # a from one, b from the other, and the second a from none; eight words in all
    found = nist([words("a b a")], [[words("a x y"), words("b x y z w")]])
    assert found == pytest.approx(
        (math.log2(8) + math.log2(8)) / 3 * math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(3 / 4) ** 2)
    )


def test_meteor() -> None:
    assert meteor(words("rain fell on hills"), [words("rain fell on hills")]) == pytest.approx(1 - 0.5 / 4**3)
    assert meteor(words("cats"), [words("dog"), words("cat")]) == pytest.approx(0.5)  # by its stem
    assert meteor(words("large"), [words("big")]) == 0.0  # synonyms count for nothing
    # two of three words and of four, in one chunk
    mean = (2 / 3) * (1 / 2) / (0.9 * 2 / 3 + 0.1 / 2)
    assert meteor(words("a b c"), [words("a b d e")]) == pytest.approx(mean * (1 - 0.5 * (1 / 2) ** 3))


def test_rouge_l() -> None:
    assert rouge_l(words("a x"), [words("a y z")]) == pytest.approx((2.44 / 6) / (1 / 3 + 1.44 / 2))
    # all of the first reference, and all of the text in the second one
    assert rouge_l(words("a b c"), [words("a c"), words("a b c d")]) == pytest.approx(1.0)
    assert rouge_l(words("a b c d"), [words("d c b a")]) == pytest.approx(1 / 4)


def test_cider_by_hand() -> None:
    assert cider([words("a"), words("b")], [[words("a")], [words("c")]]) == pytest.approx(10 * (1 / 4 + 0) / 2)
    # two a against one: half the cosine of single words, one pair more
    found = cider([words("a a"), words("b")], [[words("a")], [words("c")]])
    assert found == pytest.approx(10 * (1 / 4 * 1 / 2 * math.exp(-1 / 72)) / 2)
    # a word in every input's references weighs nothing
    assert cider([words("the"), words("the")], [[words("the")], [words("the")]]) == 0.0
    # the mean over references, not the best
    found = cider([words("a"), words("b")], [[words("a"), words("q")], [words("c")]])
    assert found == pytest.approx(10 * (1 / 4 + 0) / 2 / 2)
    assert math.isnan(cider([words("a")], [[words("a")]]))


def slow_cider(texts: list[Words], references: list[list[Words]]) -> float:
    """As its paper has it, with a whole vector over all n-grams for every text."""

    def occurrences(text: Words, gram: tuple[str, ...]) -> int:
        return sum(tuple(text[i : i + len(gram)]) == gram for i in range(len(text)))

    everything = [*texts, *(r for each in references for r in each)]
    scores = []
    for text, each in zip(texts, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            grams = sorted({tuple(t[i : i + n]) for t in everything for i in range(len(t) - n + 1)})
            rarity = np.array(
                [
                    np.log(len(texts)) - np.log(max(1, sum(any(occurrences(r, g) for r in rs) for rs in references)))
                    for g in grams
                ]
            )
            h = rarity * [occurrences(text, g) for g in grams]
            for reference in each:
                r = rarity * [occurrences(reference, g) for g in grams]
                norm = np.linalg.norm(h) * np.linalg.norm(r)
                cosine = np.minimum(h, r) @ r / norm if norm else 0.0
                total += cosine * np.exp(-((len(text) - len(reference)) ** 2) / 72) / len(each) / 4
        scores.append(10 * total)
    return float(np.mean(scores))


@pytest.mark.parametrize("seed", range(5))
def test_cider_is_its_formula(seed: int) -> None:
    draw = random.Random(seed)

    def sentence() -> Words:
        return draw.choices("abcdef", k=draw.randint(1, 9))

    references = [[sentence() for _ in range(draw.randint(1, 4))] for _ in range(6)]
    texts = [draw.choice([sentence(), draw.choice(each)]) for each in references]
    assert cider(texts, references) == pytest.approx(slow_cider(texts, references)) and cider(texts, references) > 0


def test_identical_texts_in_any_script() -> None:
    texts = ["Θάλασσα και ουρανός μαζί πάντα", "雨 が 静か に 降る", "naïve café owners smile today 😀"]
    scores = nlg_scores(texts, [[texts[0], "άλλο"], [texts[1]], [texts[2], "x", "y z"]])
    assert scores["bleu"] == pytest.approx(1.0) and scores["rougeL"] == pytest.approx(1.0)
    assert scores["meteor"] > 0.99 and scores["nist"] > 3
    assert scores["cider"] == pytest.approx(10 * (1 / 2 + 1 + 1 / 3) / 3)


def test_nothing_generated() -> None:
    scores = nlg_scores(["", "  "], [["a pub by the river", "a river pub"], ["it is cheap"]])
    assert scores == dict.fromkeys(("bleu", "nist", "meteor", "rougeL", "cider"), 0.0)
    partly = nlg_scores(["", "it is cheap"], [["a pub by the river"], ["it is cheap"]])
    assert all(0 < partly[name] < math.inf for name in ("nist", "meteor", "rougeL", "cider"))
