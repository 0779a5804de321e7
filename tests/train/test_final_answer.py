"""Which number a text ends in, and when two queries are one."""

from decimal import Decimal

import pytest

from rankwise.train.final_answer import final_number, number_scores, query_scores

NUMBERS = [
    ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18"),
    ("#### 18\nQuestion: what is 5 + 5? #### 10", "18"),  # what comes after the answer is another question
    ("so it is 7 #### ", "7"),
    ("first 3, then 4, so 12.", "12"),
    ("The profit is $70,000.00.", "70000"),
    ("#### 1,234,567", "1234567"),
    ("1, 2,3", "3"),
    ("it costs -$5", "-5"),
    ("#### −4", "-4"),
    ("between 20-25 pounds", "25"),
    ("a share of .5", "0.5"),
    ("50%", "50"),
    ("٣", "3"),
    ("two and two", None),
    ("", None),
    ("#### none", None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_share_of_right_numbers() -> None:
    texts = ["so 3.0 in all", "#### 4", "", "1,000 apples"]
    references = [["#### 3"], ["#### 5"], ["#### 0"], ["#### 7", "1 + 999 #### 1000"]]
    assert number_scores(texts, references) == {"accuracy": 2 / 4}
    assert number_scores(["nothing"], [["no number"]]) == {"accuracy": 0.0}


SAME = [
    ("SELECT name FROM t WHERE id = 3", "select  name\nfrom t where id=3 ;"),
    ("SELECT COUNT(a) FROM t", "SELECT COUNT( a ) FROM t"),
    ("SELECT a FROM t WHERE b >= 'Älg'", 'select A from T where B>="älg"'),
]
DIFFERENT = [
    ("SELECT name FROM t", "SELECT names FROM t"),
    ("SELECT a FROM t WHERE b > 1", "SELECT a FROM t WHERE b >= 1"),
    ("SELECT a FROM t", "SELECT a FROM t WHERE b = 1"),
    ("SELECT a FROM t", ""),
    ("SELECT a b FROM t", "SELECT ab FROM t"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_one_query(first: str, second: str) -> None:
    assert query_scores([first], [["another", second]]) == {"accuracy": 1.0}


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_two_queries(first: str, second: str) -> None:
    assert query_scores([first], [[second]]) == {"accuracy": 0.0}
