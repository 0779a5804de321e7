"""Broken files of tensors: headers that lie, and tensors that are of no adapter."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_folder import (
    ADAPTER,
    LAYER,
    SHAPES,
    STATE,
    Cases,
    change_tensor,
    change_tensors,
    describe,
    length_of,
    rewrite,
    with_value,
)
from safetensors.torch import load_file, save_file


def _headers() -> Cases:
    """Headers of safetensors that lie."""
    for file in (ADAPTER, STATE):
        good = "adalora"
        for length in (0, 1, 2**20, 100_000_001, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
            change = lambda b, n=length: n.to_bytes(8, "little") + b[8:]  # noqa: E731
            yield f"length-{file}-{length}", good, lambda f, file=file, c=change: rewrite(f / file, c)
        texts = {
            "no-json": b"{",
            "list": b"[]",
            "number": b"17",
            "null": b"null",
            "deep": b"[" * 100_000 + b"]" * 100_000,
            "deep-object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            "no-utf8": b'{"\xff\xfe": 1}',
            "nothing": b"{}",
            "metadata": b'{"__metadata__": {"a": 1}}',
            "metadata-list": b'{"__metadata__": [1, 2]}',
            "many": _many_tensors(400_000),
            "long-name": b'{"' + b"x" * 9_000_000 + b'": {"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        }
        for name, text in texts.items():
            yield f"header-{file}-{name}", good, lambda f, file=file, t=text: (f / file).write_bytes(length_of(t) + t)
    for name, change in ENTRIES.items():
        yield f"entry-{name}", "lora", lambda f, c=change: _change_header(f / ADAPTER, c)
    yield "entry-twice", "lora", _same_tensor_twice
    yield "as-large-as-can-be", "adalora", _as_large_as_can_be
    yield "sparse", "lora", lambda f: _sparse(f / ADAPTER, f"{LAYER}::A", 2**34)
    yield "sparse-live", "lora", lambda f: _sparse(f / ADAPTER, f"{LAYER}::live", 2**34, "BOOL", 1)


def _many_tensors(count: int) -> bytes:
    return b"{" + b",".join(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)) + b"}"


def _as_large_as_can_be(folder: Path) -> None:
    """Every bound is just kept, and the layers are of no model."""
    layers = {f"layer{i}": {"rank": 1, "shape": [1, 1]} for i in range(8_000)}
    describe(folder, lambda d: d.update(layers=layers, trained=[], frozen=[]))
    for file in (ADAPTER, STATE):
        names = [f"layer{i}::{t}" for i in range(8_000) for t in ("live", "A")]
        kinds = {name: torch.ones(1, dtype=torch.bool if name.endswith("live") else torch.float32) for name in names}
        save_file(kinds if file == ADAPTER else {n: t.float() for n, t in kinds.items() if "A" in n}, folder / file)


ENTRIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "overlap": lambda e: e.update(data_offsets=[e["data_offsets"][0] - 4, e["data_offsets"][1] - 4]),
    "behind-the-end": lambda e: e.update(data_offsets=[10**9, 10**9 + 4]),
    "far-behind": lambda e: e.update(data_offsets=[2**63, 2**63 + 4]),
    "backwards": lambda e: e.update(data_offsets=e["data_offsets"][::-1]),
    "negative": lambda e: e.update(data_offsets=[-8, -4]),
    "text-offsets": lambda e: e.update(data_offsets=["0", "4"]),
    "three-offsets": lambda e: e.update(data_offsets=[*e["data_offsets"], 9]),
    "no-offsets": lambda e: e.pop("data_offsets"),
    "no-dtype": lambda e: e.pop("dtype"),
    "no-shape": lambda e: e.pop("shape"),
    "unknown-dtype": lambda e: e.update(dtype="os.system"),
    "number-dtype": lambda e: e.update(dtype=5),
    "other-dtype": lambda e: e.update(dtype="F64"),
    "small-dtype": lambda e: e.update(dtype="I8"),
    "huge-shape": lambda e: e.update(shape=[2**40, 2**40]),
    "negative-shape": lambda e: e.update(shape=[-4, -10]),
    "text-shape": lambda e: e.update(shape=["4", "10"]),
    "deep-shape": lambda e: e.update(shape=[1] * 10_000 + e["shape"]),
    "flat-shape": lambda e: e.update(shape=[e["shape"][0] * e["shape"][1]]),
    "turned-shape": lambda e: e.update(shape=e["shape"][::-1]),
    "null": lambda e: e.clear(),
}


def _read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _write_header(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(length_of(text) + text + data)


def _change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = _read_header(path)
    change(header[f"{LAYER}::A"])
    _write_header(path, header, data)


def _same_tensor_twice(folder: Path) -> None:
    header, data = _read_header(folder / ADAPTER)
    text = json.dumps(header)
    again = json.dumps({f"{LAYER}::A": header["2::A"]})
    text = (text[:-1] + "," + again[1:]).encode()
    (folder / ADAPTER).write_bytes(length_of(text) + text + data)


def _sparse(path: Path, name: str, size: int, kind: str = "F32", width: int = 4) -> None:
    """A tensor of gigabytes that takes no room on the disk."""
    header = {name: {"dtype": kind, "shape": [size // width], "data_offsets": [0, size]}}
    tensors = load_file(path)
    for other, tensor in tensors.items():
        if other != name:
            bytes_ = tensor.numel() * tensor.element_size()
            kinds = {torch.float32: "F32", torch.bool: "BOOL"}
            offsets = [size, size + bytes_]
            header[other] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            size += bytes_
    _write_header(path, header, b"")
    os.truncate(path, path.stat().st_size + size)


def _tensors() -> Cases:
    """Well-formed files with the wrong tensors in them."""
    for good, names in (("lora", ("A", "B")), ("adalora", ("P", "lam", "Q")), ("aflora", ("A", "s_d", "B", "s_b"))):
        for name in (*names, "live"):
            full = f"{LAYER}::{name}"
            yield f"missing-{good}-{name}", good, lambda f, n=full: change_tensors(f, lambda t: t.pop(n))
            for kind, change in SHAPES.items():
                yield f"shape-{good}-{name}-{kind}", good, lambda f, n=full, c=change: change_tensor(f, n, c)
            for dtype in (torch.int32, torch.uint8, torch.complex64, torch.float8_e4m3fn):
                label = f"dtype-{good}-{name}-{str(dtype).removeprefix('torch.')}"
                yield label, good, lambda f, n=full, d=dtype: change_tensor(f, n, lambda t: t.to(d))
            if name != "live":
                for value in (float("nan"), float("inf"), float("-inf")):
                    yield f"{value}-{good}-{name}", good, lambda f, n=full, v=value: change_tensor(f, n, with_value(v))
        yield f"{good}-nan-in-the-head", good, lambda f: change_tensor(f, "4.bias", with_value(float("nan")))
    for name in (
        "../../../etc/passwd",
        "/etc/passwd",
        "0::../A",
        "x" * 20_000,
        "\x1b[31m::A",
        "::",
        "__class__",
        "9::A",
    ):
        yield (
            f"extra-{name[:20]!r}",
            "lora",
            lambda f, n=name: change_tensors(f, lambda t: t.update({n: torch.zeros(2)})),
        )
    yield "missing-head", "lora", lambda f: change_tensors(f, lambda t: t.pop("4.weight"))
    yield "other-head", "lora", lambda f: change_tensor(f, "4.weight", lambda t: torch.zeros(3, 12))
    yield "all-missing", "lora", lambda f: change_tensors(f, lambda t: t.clear())


PARTS = (_headers, _tensors)
