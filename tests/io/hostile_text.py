"""Broken descriptions and states: values of other types, absurd numbers, names of code, text that parsers choke on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_folder import DESCRIPTION, LAYER, SHAPES, STATE, Cases, Spoil, change_tensors, describe, put, with_value

RANKS = [10**12, -1, "8", True, None, 1.5, 2**64, [4], {"a": 4}, 17]


def _descriptions() -> Cases:
    """Values of the wrong type, absurd numbers, names that are none."""
    for value in RANKS:
        yield f"rank-{value}", "lora", put("layers", LAYER, "rank")(value)
    for value in (
        [16],
        [16, 10, 1],
        ["16", "10"],
        [True, 10],
        [0, 10],
        [-16, 10],
        [1e300, 10],
        [2**40, 2**40],
        5,
        None,
    ):
        yield f"layer-shape-{value}", "lora", put("layers", LAYER, "shape")(value)
    for value in ([], None, "layers", {LAYER: None}, {LAYER: {}}, {"9": {"rank": 3, "shape": [16, 10]}}, {}):
        yield f"layers-{value}", "lora", put("layers")(value)
    for name in (
        "../../x",
        "/etc/passwd",
        "",
        "0[q]",
        "0]",
        "[",
        "4[0]",
        "\x1b]0;x\x07",
        "\ud800",
        "a" * 2000,
        "0.",
        ".",
    ):
        layer = {"rank": 3, "shape": [16, 10]}
        yield (
            f"layer-name-{name[:12]!a}",
            "lora",
            lambda f, n=name, e=layer: describe(f, lambda d: d["layers"].update({n: e})),
        )
    for key in ("parts", "trained", "frozen"):
        for value in (
            None,
            "4.weight",
            {"4.weight": 1},
            [1],
            [None],
            [["4.weight"]],
            ["4.weight", "4.weight"],
            ["../x"],
        ):
            yield f"{key}-{value}", "lora", put(key)(value)
    for value in ([f"{LAYER}.live"], ["9.A"], ["A"], [f"{LAYER}.C"], [""]):
        yield f"frozen-name-{value}", "aflora", put("frozen")(value)
    for value in (2, 0, "1", True, 1.5, None, [1], 10**400):
        yield f"format-{str(value)[:10]}", "lora", put("format")(value)
    for value in (None, [], "bert", {}, {"name": 5, "model_type": None}, {"name": [], "model_type": {}}):
        yield f"base-{value}", "lora", put("base_model")(value)
    for key in ("format", "method", "base_model", "layers", "parts", "trained", "frozen", "run"):
        yield f"without-{key}", "lora", lambda f, k=key: describe(f, lambda d: d.pop(k))
    for name in ("full", "bitfit", "houlsby", "prefix-embedding"):
        yield f"method-{name}", "lora", put("method")({"name": name})
    for key in ("unknown", "__class__", "code", "class_path"):
        yield f"with-{key}", "lora", put(key)("os.system")
    for key in ("total_steps", "steps_per_epoch", "steps"):
        for value in (-1, 1.5, "8", True, [], 10**30):
            yield f"run-{key}-{value}", "adalora", put("run", key)(value)
    yield "run-short", "adalora", put("run", "total_steps")(5)
    yield "run-none", "adalora", put("run", "total_steps")(None)
    for value in (0, "run", [], {"steps": 3}):
        yield f"run-{value}", "adalora", put("run")(value)


def _text(text: str | bytes) -> Spoil:
    return lambda f: (f / DESCRIPTION).write_bytes(text.encode() if isinstance(text, str) else text)


def _json() -> Cases:
    """Files that parsers choke on."""
    texts: dict[str, str | bytes] = {
        "lists": "[" * 100_000 + "]" * 100_000,
        "open-lists": "[" * 5_000_000,
        "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "bomb-of-lists": '{"layers": [' + "[]," * 1_300_000 + "[]]}",
        "bomb-of-objects": '{"layers": [' + "{}," * 1_300_000 + "{}]}",
        "bomb-of-keys": "{" + ",".join(f'"{i}":{i}' for i in range(250_000)) + "}",
        "large": '{"layers": [' + "[]," * 20_000_000 + "[]]}",
        "long-text": '{"format": "' + "x" * 50_000_000 + '"}',
        "top-list": "[]",
        "top-text": '"rankwise"',
        "top-null": "null",
        "nothing": "",
        "two": "{} {}",
        "comment": "// no\n{}",
        "html": "<html><script>alert(1)</script></html>",
        "bom": b"\xef\xbb\xbf{}",
        "utf16": '{"format": 1}'.encode("utf-16"),
        "latin1": '{"format": "\xe9"}'.encode("latin-1"),
    }
    for name, text in texts.items():
        yield f"json-{name}", "lora", _text(text)
    raw = {
        "digits": "9" * 100_000,
        "exponent": "1e999",
        "nan": "NaN",
        "infinity": "-Infinity",
        "hex": "0x8",
        "zeros": "08",
    }
    for name, number in raw.items():
        yield f"json-number-{name}", "lora", lambda f, n=number: _replace(f, '"rank": 3', f'"rank": {n}')
        yield f"json-alpha-{name}", "lora", lambda f, n=number: _replace(f, '"alpha": null', f'"alpha": {n}')
    yield "json-key-twice", "lora", lambda f: _replace(f, '"format": 1,', '"format": 1, "format": 1,')
    yield "json-layer-twice", "lora", lambda f: _replace(f, '"trained": [', '"layers": {}, "trained": [')
    yield "json-setting-twice", "lora", lambda f: _replace(f, '"rank": 3', '"rank": 3, "rank": 4')


def _replace(folder: Path, old: str, new: str) -> None:
    text = (folder / DESCRIPTION).read_text()
    assert old in text
    (folder / DESCRIPTION).write_text(text.replace(old, new, 1))


def _methods() -> Cases:
    """Settings of other types, other ranks, and names of code."""
    for name in (
        "os.system",
        "builtins.eval",
        "rankwise.methods.lora.LoRA",
        "__class__",
        "",
        None,
        5,
        ["lora"],
        {"a": 1},
    ):
        yield f"method-name-{name}", "lora", put("method", "name")(name)
    yield "method-of-another", "lora", put("method", "name")("aflora")
    for value in (None, "lora", [], {}, {"class_path": "os.system", "init_args": {"command": "id"}}):
        yield f"method-{value}", "lora", put("method")(value)
    wrong: dict[str, list[Any]] = {
        "rank": [*RANKS, 2],
        "alpha": ["16", [], True, -1, 0, 10**400],
        "dropout": ["0", None, 1.0, -0.1, True],
        "targets": [
            {"a": 1},
            [1],
            [None],
            5,
            None,
            "",
            [],
            [""],
            "(" * 20_000,
            "(" * 5_000 + ")" * 5_000,
            "[",
            "a{1,99999999999}",
            "x" * 10**6,
        ],
        "exclude": [{"a": 1}, 5, "(", [1]],
        "also_train": [{"a": 1}, 5, None, [1]],
        "rank_pattern": [[], "x", {"a": 0}, {"a": "8"}, {"a": True}, {"no such layer": 2}, None],
        "alpha_pattern": [[], {"a": -1}, {"a": "8"}, {"no such layer": 2}],
        "rank_stabilized": ["yes", 1, None],
        "init": ["os.system", 5, None, ["normal"]],
        "init_std": [-1, 0, "0.02", None],
        "__init__": ["os.system"],
        "unknown": [1],
    }
    for setting, values in wrong.items():
        for value in values:
            yield f"setting-{setting}-{str(value)[:24]}", "lora", put("method", setting)(value)
    spans = ["1e9 epochs", "9" * 400 + " epochs", "import os", True, [], {"count": 1}, -1, 1.5, 10**300]
    for value in spans:
        yield f"setting-warmup-{str(value)[:24]}", "adalora", put("method", "warmup")(value)
    for setting in ("score", "penalty", "ties", "mask"):
        yield f"setting-{setting}", "adalora", put("method", setting)("__import__('os').system('id')")


def _states() -> Cases:
    """The state that training continues from."""
    for good in ("adalora", "aflora"):
        yield f"{good}-state-missing", good, lambda f: (f / STATE).unlink()
        yield f"{good}-state-lacks", good, lambda f: change_tensors(f, lambda t: t.pop(_filled(t)), STATE)
        for kind, change in SHAPES.items():
            yield f"{good}-state-{kind}", good, lambda f, c=change: _change_filled(f, c)
        for dtype in (torch.int64, torch.bool):
            yield f"{good}-state-{dtype}", good, lambda f, d=dtype: _change_filled(f, lambda t: t.to(d))
        yield f"{good}-state-nan", good, lambda f: _change_filled(f, with_value(float("nan")))
        for name in ("mean.99", "mean.-1", "mean", "../mean.0", "mean." + "9" * 30):
            add = lambda t, n=name: t.update({n: torch.zeros(2)})  # noqa: E731
            yield f"{good}-state-extra-{name}", good, lambda f, c=add: change_tensors(f, c, STATE)
        for value in (-1, "3", None, 1.5, True, 10**9, [3]):
            yield f"{good}-step-{value}", good, put("run", "numbers", "step")(value)
        for value in (None, [], {}, {"step": 3}, {"step": 3, "code": "import os"}):
            yield f"{good}-numbers-{value}", good, put("run", "numbers")(value)
    for value in ([99], [-1], ["0"], "0", None, [[0]], [True], [2**70]):
        yield f"state-frozen-{value}", "aflora", put("run", "numbers", "frozen")(value)
    for value in ([], [0], [0] * 99, ["0"] * 4, [-1] * 4, None):
        yield f"state-seen-{str(value)[:12]}", "aflora", put("run", "numbers", "seen")(value)
    for value in ("yes", 1, None):
        yield f"state-allocated-{value}", "adalora", put("run", "numbers", "allocated")(value)


def _filled(tensors: dict[str, torch.Tensor]) -> str:
    """A state tensor of something that still trains: of what is frozen nothing is kept."""
    return next(name for name, tensor in sorted(tensors.items()) if tensor.numel())


def _change_filled(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    change_tensors(folder, lambda tensors: tensors.update({_filled(tensors): change(tensors[_filled(tensors)])}), STATE)


PARTS = (_descriptions, _json, _methods, _states)
