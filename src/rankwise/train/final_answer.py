"""Whether generated text ends in the right answer: a number, as GSM8K's, or a whole query, as WikiSQL's."""

import re
from collections.abc import Sequence
from decimal import Decimal

Scores = dict[str, float]

MARK = "####"
NUMBER = re.compile(r"(?:(?<!\w)[-−])?(?:\d+(?:\.\d+)?|(?<!\d)\.\d+)")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
AROUND_SIGNS = re.compile(r"\s*([=<>!(),;]+)\s*")
QUOTES = str.maketrans('"`“”‘’', "''''''")


def number_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """accuracy: share of texts whose final number is that of a reference."""
    numbers = [final_number(text) for text in texts]
    accepted = [{final_number(reference) for reference in each} - {None} for each in references]
    return {"accuracy": _share([number in each for number, each in zip(numbers, accepted, strict=True)])}


def query_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """accuracy: share of texts that are a reference's whole query."""
    accepted = [{same_query(reference) for reference in each} for each in references]
    return {"accuracy": _share([same_query(text) in each for text, each in zip(texts, accepted, strict=True)])}


def final_number(text: str) -> Decimal | None:
    """The first number behind the first ####; without either, the last number of the text; None if there is none.

    $ and the commas of thousands are taken out: "$1,250.00." is 1250.
    """
    plain = THOUSANDS.sub("", text.replace("$", ""))
    marked = NUMBER.search(plain.partition(MARK)[2])
    found = [marked.group()] if marked else NUMBER.findall(plain)
    return Decimal(found[-1].replace("−", "-")) if found else None


def same_query(text: str) -> str:
    """As it is compared: lower case, one kind of quote, one blank, none around signs, no semicolon at the end."""
    return AROUND_SIGNS.sub(r"\1", " ".join(text.translate(QUOTES).lower().split())).rstrip("; ")


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
