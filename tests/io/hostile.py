"""Ways to break a saved adapter, by name. Each takes a good folder and leaves one that must be refused.

Made from rules rather than kept as files: every rule says what is wrong, and new settings are broken as they come.
"""

import copy
import gzip
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], object]
DESCRIPTION, ADAPTER, STATE = FILES = ("rankwise.json", "adapter.safetensors", "state.safetensors")
GOOD = ("lora", "adalora", "aflora")  # the good folders; the last two were saved in the middle of a run
LAYER = "0"  # a layer of the toy model, 10 → 16
RANKS = [10**12, -1, "8", True, None, 1.5, 2**64, [4], {"a": 4}, 17]
CANARY = "canary"  # a file beside the folder that only code from the folder would write


class Payload:
    """Unpickled, it writes the canary."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / CANARY}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def corpus() -> dict[str, tuple[str, Spoil]]:
    """{name: (good folder to start from, what to do to it)}."""
    found: dict[str, tuple[str, Spoil]] = {}
    for part in (_cut, _headers, _tensors, _descriptions, _json, _methods, _states, _files, _pickles):
        for name, good, spoil in part():
            found[name if name not in found else f"{name}-{len(found)}"] = (good, spoil)
    return found


Cases = Iterator[tuple[str, str, Spoil]]


def _cut() -> Cases:
    """Each file, cut at many places; and with bytes in front."""
    shares = random.Random(0)
    for good, file in (("lora", DESCRIPTION), ("adalora", ADAPTER), ("aflora", STATE)):
        for k in range(12):
            share = shares.random() * 0.98
            yield f"cut-{file}-{k}", good, lambda f, file=file, share=share: _bytes(f / file, _first(share))
        for front in (b"\0", b"\xef\xbb\xbf", b"PK\x03\x04", b"\xff" * 8):
            yield f"before-{file}-{front!r}", good, lambda f, file=file, x=front: _bytes(f / file, lambda b: x + b)
        yield f"empty-{file}", good, lambda f, file=file: _bytes(f / file, lambda b: b"")
        yield f"zeros-{file}", good, lambda f, file=file: _bytes(f / file, lambda b: b"\0" * len(b))


def _first(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


def _bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _headers() -> Cases:
    """Headers of safetensors that lie."""
    for file in (ADAPTER, STATE):
        good = "adalora"
        for length in (0, 1, 2**20, 100_000_001, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
            change = lambda b, n=length: n.to_bytes(8, "little") + b[8:]  # noqa: E731
            yield f"length-{file}-{length}", good, lambda f, file=file, c=change: _bytes(f / file, c)
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
            yield f"header-{file}-{name}", good, lambda f, file=file, t=text: (f / file).write_bytes(_length(t) + t)
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
    layers = {f"layer{i}": {"rank": 1, "shape": [1, 1]} for i in range(24_000)}
    _describe(folder, lambda d: d.update(layers=layers, trained=[], frozen=[]))
    for file in (ADAPTER, STATE):
        names = [f"layer{i}::{t}" for i in range(24_000) for t in ("live", "A")]
        kinds = {name: torch.ones(1, dtype=torch.bool if name.endswith("live") else torch.float32) for name in names}
        save_file(kinds if file == ADAPTER else {n: t.float() for n, t in kinds.items() if "A" in n}, folder / file)


def _length(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little")


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
    path.write_bytes(_length(text) + text + data)


def _change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = _read_header(path)
    change(header[f"{LAYER}::A"])
    _write_header(path, header, data)


def _same_tensor_twice(folder: Path) -> None:
    header, data = _read_header(folder / ADAPTER)
    text = json.dumps(header)
    again = json.dumps({f"{LAYER}::A": header["2::A"]})
    text = (text[:-1] + "," + again[1:]).encode()
    (folder / ADAPTER).write_bytes(_length(text) + text + data)


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
            yield f"missing-{good}-{name}", good, lambda f, n=full: _change(f, lambda t: t.pop(n))
            for kind, change in SHAPES.items():
                yield f"shape-{good}-{name}-{kind}", good, lambda f, n=full, c=change: _change_one(f, n, c)
            for dtype in (torch.int32, torch.uint8, torch.complex64, torch.float8_e4m3fn):
                label = f"dtype-{good}-{name}-{str(dtype).removeprefix('torch.')}"
                yield label, good, lambda f, n=full, d=dtype: _change_one(f, n, lambda t: t.to(d))
            if name != "live":
                for value in (float("nan"), float("inf"), float("-inf")):
                    yield f"{value}-{good}-{name}", good, lambda f, n=full, v=value: _change_one(f, n, _with(v))
        yield f"{good}-nan-in-the-head", good, lambda f: _change_one(f, "4.bias", _with(float("nan")))
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
        yield f"extra-{name[:20]!r}", "lora", lambda f, n=name: _change(f, lambda t: t.update({n: torch.zeros(2)}))
    yield "missing-head", "lora", lambda f: _change(f, lambda t: t.pop("4.weight"))
    yield "other-head", "lora", lambda f: _change_one(f, "4.weight", lambda t: torch.zeros(3, 12))
    yield "all-missing", "lora", lambda f: _change(f, lambda t: t.clear())


SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.flatten()[0],
    "longer": lambda t: torch.cat([t, t]),
    "deeper": lambda t: t[None],
}


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        return changed

    return put


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], file: str = ADAPTER) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)


def _change_one(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], file: str = ADAPTER) -> None:
    _change(folder, lambda tensors: tensors.update({name: change(tensors[name])}), file)


def _describe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / DESCRIPTION
    data = copy.deepcopy(json.loads(path.read_text()))
    change(data)
    path.write_text(json.dumps(data))


def _put(*keys: str) -> Callable[[Any], Spoil]:
    """_put("run", "steps")(value) is what sets that entry of the description."""

    def to(value: Any) -> Spoil:
        def change(data: dict[str, Any]) -> None:
            for key in keys[:-1]:
                data = data[key]
            data[keys[-1]] = value

        return lambda folder: _describe(folder, change)

    return to


def _descriptions() -> Cases:
    """Values of the wrong type, absurd numbers, names that are none."""
    for value in RANKS:
        yield f"rank-{value}", "lora", _put("layers", LAYER, "rank")(value)
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
        yield f"layer-shape-{value}", "lora", _put("layers", LAYER, "shape")(value)
    for value in ([], None, "layers", {LAYER: None}, {LAYER: {}}, {"9": {"rank": 3, "shape": [16, 10]}}, {}):
        yield f"layers-{value}", "lora", _put("layers")(value)
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
            lambda f, n=name, e=layer: _describe(f, lambda d: d["layers"].update({n: e})),
        )
    for key in ("trained", "frozen"):
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
            yield f"{key}-{value}", "lora", _put(key)(value)
    for value in ([f"{LAYER}.live"], ["9.A"], ["A"], [f"{LAYER}.C"], [""]):
        yield f"frozen-name-{value}", "aflora", _put("frozen")(value)
    for value in (2, 0, "1", True, 1.5, None, [1], 10**400):
        yield f"format-{str(value)[:10]}", "lora", _put("format")(value)
    for value in (None, [], "bert", {}, {"name": 5, "model_type": None}, {"name": [], "model_type": {}}):
        yield f"base-{value}", "lora", _put("base_model")(value)
    for key in ("format", "method", "base_model", "layers", "trained", "frozen", "run"):
        yield f"without-{key}", "lora", lambda f, k=key: _describe(f, lambda d: d.pop(k))
    for key in ("unknown", "__class__", "code", "class_path"):
        yield f"with-{key}", "lora", _put(key)("os.system")
    for key in ("total_steps", "steps_per_epoch", "steps"):
        for value in (-1, 1.5, "8", True, [], 10**30):
            yield f"run-{key}-{value}", "adalora", _put("run", key)(value)
    yield "run-short", "adalora", _put("run", "total_steps")(5)
    yield "run-none", "adalora", _put("run", "total_steps")(None)
    for value in (0, "run", [], {"steps": 3}):
        yield f"run-{value}", "adalora", _put("run")(value)


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
        yield f"method-name-{name}", "lora", _put("method", "name")(name)
    yield "method-of-another", "lora", _put("method", "name")("aflora")
    for value in (None, "lora", [], {}, {"class_path": "os.system", "init_args": {"command": "id"}}):
        yield f"method-{value}", "lora", _put("method")(value)
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
            yield f"setting-{setting}-{str(value)[:24]}", "lora", _put("method", setting)(value)
    spans = ["1e9 epochs", "9" * 400 + " epochs", "import os", True, [], {"count": 1}, -1, 1.5, 10**300]
    for value in spans:
        yield f"setting-warmup-{str(value)[:24]}", "adalora", _put("method", "warmup")(value)
    for setting in ("score", "penalty", "ties", "mask"):
        yield f"setting-{setting}", "adalora", _put("method", setting)("__import__('os').system('id')")


def _states() -> Cases:
    """The state that training continues from."""
    for good in ("adalora", "aflora"):
        yield f"{good}-state-missing", good, lambda f: (f / STATE).unlink()
        yield f"{good}-state-lacks", good, lambda f: _change(f, lambda t: t.pop(_filled(t)), STATE)
        for kind, change in SHAPES.items():
            yield f"{good}-state-{kind}", good, lambda f, c=change: _change_filled(f, c)
        for dtype in (torch.int64, torch.bool):
            yield f"{good}-state-{dtype}", good, lambda f, d=dtype: _change_filled(f, lambda t: t.to(d))
        yield f"{good}-state-nan", good, lambda f: _change_filled(f, _with(float("nan")))
        for name in ("mean.99", "mean.-1", "mean", "../mean.0", "mean." + "9" * 30):
            put = lambda t, n=name: t.update({n: torch.zeros(2)})  # noqa: E731
            yield f"{good}-state-extra-{name}", good, lambda f, c=put: _change(f, c, STATE)
        for value in (-1, "3", None, 1.5, True, 10**9, [3]):
            yield f"{good}-step-{value}", good, _put("run", "numbers", "step")(value)
        for value in (None, [], {}, {"step": 3}, {"step": 3, "code": "import os"}):
            yield f"{good}-numbers-{value}", good, _put("run", "numbers")(value)
    for value in ([99], [-1], ["0"], "0", None, [[0]], [True], [2**70]):
        yield f"state-frozen-{value}", "aflora", _put("run", "numbers", "frozen")(value)
    for value in ([], [0], [0] * 99, ["0"] * 4, [-1] * 4, None):
        yield f"state-seen-{str(value)[:12]}", "aflora", _put("run", "numbers", "seen")(value)
    for value in ("yes", 1, None):
        yield f"state-allocated-{value}", "adalora", _put("run", "numbers", "allocated")(value)


def _filled(tensors: dict[str, torch.Tensor]) -> str:
    """A state tensor of something that still trains: of what is frozen nothing is kept."""
    return next(name for name, tensor in sorted(tensors.items()) if tensor.numel())


def _change_filled(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    _change(folder, lambda tensors: tensors.update({_filled(tensors): change(tensors[_filled(tensors)])}), STATE)


def _files() -> Cases:
    """Links, devices and folders where files should be."""
    for file in FILES:
        for name, make in PLACES.items():
            yield f"{name}-{file}", "adalora", lambda f, file=file, m=make: (_remove(f / file), m(f / file))
        yield f"no-{file}", "adalora", lambda f, file=file: _remove(f / file)
    yield "folder-is-a-file", "lora", lambda f: (f.rename(f.with_name("away")), f.write_text("{}"))
    yield "folder-is-empty", "lora", lambda f: [(_remove(f / file)) for file in FILES]
    yield "folder-is-a-circle", "lora", lambda f: (f.rename(f.with_name("away")), f.symlink_to(f))
    yield "folder-is-a-pipe", "lora", lambda f: (f.rename(f.with_name("away")), os.mkfifo(f))
    yield "new-files-are-a-link", "lora", _linked_new_files


def _linked_new_files(folder: Path) -> None:
    """Under the name that marks files on their way in; the folder itself is no adapter."""
    away = folder.with_name("away")
    folder.rename(away)
    folder.mkdir()
    (folder / ".rankwise-new").symlink_to(away)


PLACES: dict[str, Callable[[Path], object]] = {
    "passwd": lambda p: p.symlink_to("/etc/passwd"),
    "huge": lambda p: p.symlink_to(_huge(p.parent.parent / "huge")),
    "large-file": lambda p: _huge(p),
    "zeros": lambda p: p.symlink_to("/dev/zero"),
    "memory": lambda p: p.symlink_to("/proc/self/mem"),
    "nowhere": lambda p: p.symlink_to("/nowhere/at/all"),
    "circle": lambda p: p.symlink_to(p),
    "sibling": lambda p: (p.parent.with_name("secret").write_text("{}"), p.symlink_to("../secret")),
    "pipe": lambda p: os.mkfifo(p),
    "directory": lambda p: p.mkdir(),
    "link-to-directory": lambda p: p.symlink_to("."),
}


def _huge(path: Path) -> Path:
    path.touch()
    os.truncate(path, 2**40)
    return path


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _pickles() -> Cases:
    """Code that would run when it is unpickled, under every name."""
    for file in FILES:
        yield f"pickle-{file}", "adalora", lambda f, file=file: (f / file).write_bytes(pickle.dumps(Payload(f)))
        yield f"torch-{file}", "adalora", lambda f, file=file: torch.save(Payload(f), f / file)
        yield f"old-torch-{file}", "adalora", lambda f, file=file: _torch_save_old(f, file)
        yield f"zip-{file}", "adalora", lambda f, file=file: zipfile.ZipFile(f / file, "w").writestr("a", "b")
        yield f"gzip-{file}", "adalora", lambda f, file=file: _bytes(f / file, gzip.compress)


def _torch_save_old(folder: Path, file: str) -> None:
    buffer = io.BytesIO()
    torch.save(Payload(folder), buffer, _use_new_zipfile_serialization=False)
    (folder / file).write_bytes(buffer.getvalue())
