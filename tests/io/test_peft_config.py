"""Every field that PEFT's configs have has its place, and docs/import.md says the same."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from peft import AdaLoraConfig, LoraConfig, VeraConfig

import rankwise as rw
from rankwise.io.peft_config import IGNORED, KINDS, REFUSED, TARGETS, method_from
from rankwise.io.peft_patterns import Clock, Pattern, as_pattern
from rankwise.methods.low_rank import matching

CONFIGS = {"LORA": LoraConfig, "ADALORA": AdaLoraConfig, "VERA": VeraConfig}
PAGE = Path(__file__).parents[2] / "docs" / "import.md"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_peft_s_is_known(kind: str) -> None:
    """One that a later PEFT adds is refused as soon as it is set; here it shows."""
    known = {*KINDS[kind].taken, *KINDS[kind].silent, *KINDS[kind].refused, *REFUSED, *TARGETS, *IGNORED}
    assert {field.name for field in fields(CONFIGS[kind])} <= known


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_peft_s(kind: str) -> None:
    own = {field.name: field for field in fields(CONFIGS[kind])}
    for name, taken in KINDS[kind].taken.items():
        default = own[name].default if own[name].default_factory is own["r"].default_factory else {}
        assert taken.default == default or (default is None and not taken.default), name


@pytest.mark.parametrize("kind", KINDS)
def test_settings_exist(kind: str) -> None:
    settings = {field.name for field in fields(rw.METHODS[KINDS[kind].method])}
    assert {taken.setting for taken in KINDS[kind].taken.values()} - {""} <= settings


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_s_table_is_the_code_s(kind: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(f"| field of `{CONFIGS[kind].__name__}` | becomes |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (?:`(\w+)`)?.*\|$", table, flags=re.MULTILINE))
    assert told == {name: taken.setting for name, taken in KINDS[kind].taken.items()}


def test_the_page_lists_what_is_refused() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("| refused field |")[2].partition("\n\n")[0]
    told = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in text.splitlines()[2:])))
    assert told == {*REFUSED, *(name for kind in KINDS.values() for name in kind.refused)}


def test_a_field_of_a_later_peft_is_refused_once_it_is_set() -> None:
    config: dict[str, Any] = {"peft_type": "LORA", "use_tomorrow": False, "tomorrow_config": None}
    assert method_from(config, ["a.q"], [], trains=False).name == "lora"
    with pytest.raises(rw.ConfigError, match="'use_tomorrow' is no field of LORA that rankwise knows, and is set"):
        method_from(config | {"use_tomorrow": True}, ["a.q"], [], trains=False)


def test_the_first_key_that_matches_wins() -> None:
    pattern = Pattern({"b.q": 1, "q": 2, r"a\..*": 3, "k": 4}, Clock())
    assert [pattern(name, 9) for name in ("a.b.q", "a.q", "q", "a.k", "x.k", "xq", "kk")] == [1, 2, 2, 3, 4, 9, 9]


@pytest.mark.parametrize("key", ["(a+)+$", "(.*)*(.*)*(.*)*=", "(", "a{1,99999999999}", "(" * 400, "x|" * 400])
def test_a_pattern_takes_no_time(key: str) -> None:
    clock, names = Clock(), [f"{'a' * 60}{i}!" for i in range(200)]
    try:
        values = [Pattern({key: 2}, clock)(name, 1) for name in names]
    except rw.ConfigError as error:
        assert "regular expression" in str(error) or "too long" in str(error) or "longer than" in str(error)
    else:
        assert set(values) == {1}


def test_one_layer_s_name_may_end_in_another_s() -> None:
    values = {"q": 2, "a.q": 1, "b.a.q": 3, "k": 1}
    pattern = as_pattern(values, 1)
    assert {name: matching(pattern, name, 1) for name in values} == values
