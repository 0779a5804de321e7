"""Ways to break a folder of PEFT's, and a checkpoint of loralib's, by name; each must be refused."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hostile_files import PLACES
from hostile_folder import SHAPES, Cases, Payload, Spoil, change_tensor, change_tensors, length_of, rewrite, with_value

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LAYER = f"{PREFIX}0"  # 10 → 16
TENSORS = {
    "lora": (f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"),
    "adalora": (f"{LAYER}.lora_A", f"{LAYER}.lora_B", f"{LAYER}.lora_E"),
    "vera": (f"{LAYER}.vera_lambda_b", f"{LAYER}.vera_lambda_d", "base_model.vera_A", "base_model.vera_B"),
}


def put(key: str, value: Any) -> Spoil:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {key: value}))

    return change


def _files() -> Cases:
    for file in (CONFIG, WEIGHTS):
        for name, make in PLACES.items():
            yield f"{name}-{file}", "lora", lambda f, file=file, m=make: ((f / file).unlink(), m(f / file))
        yield f"empty-{file}", "lora", lambda f, file=file: rewrite(f / file, lambda b: b"")
        yield f"pickle-{file}", "lora", lambda f, file=file: (f / file).write_bytes(pickle.dumps(Payload(f)))
        yield f"torch-{file}", "lora", lambda f, file=file: torch.save(Payload(f), f / file)
        yield f"cut-{file}", "lora", lambda f, file=file: rewrite(f / file, lambda b: b[: len(b) // 2])
    yield "pickled-weights-alone", "lora", _pickled_weights
    for length in (2**20, 2**31, 2**63):
        change = lambda b, n=length: n.to_bytes(8, "little") + b[8:]  # noqa: E731
        yield f"header-{length}", "lora", lambda f, c=change: rewrite(f / WEIGHTS, c)
    for name, text in {"deep": b"[" * 100_000, "list": b"[]", "nothing": b"{}"}.items():
        yield f"header-{name}", "lora", lambda f, t=text: (f / WEIGHTS).write_bytes(length_of(t) + t)


def _pickled_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(Payload(folder), folder / "adapter_model.bin")


def _tensors() -> Cases:
    for good, names in TENSORS.items():
        for name in names:
            yield f"missing-{name}", good, lambda f, n=name: change_tensors(f, lambda t: t.pop(n), WEIGHTS)
            for kind, change in SHAPES.items():
                if (kind, name) != ("longer", "base_model.vera_A") and (kind, name) != ("longer", "base_model.vera_B"):
                    yield f"shape-{name}-{kind}", good, lambda f, n=name, c=change: change_tensor(f, n, c, WEIGHTS)
            for value in (float("nan"), float("inf")):
                spoil = lambda f, n=name, v=value: change_tensor(f, n, with_value(v), WEIGHTS)  # noqa: E731
                yield f"{value}-{name}", good, spoil
            spoil = lambda f, n=name: change_tensor(f, n, lambda t: t.to(torch.int32), WEIGHTS)  # noqa: E731
            yield f"integers-{name}", good, spoil
    for name in (
        "",
        "lora_A.weight",
        PREFIX,
        f"{PREFIX}.lora_A.weight",
        f"{PREFIX}9.lora_A.weight",
        f"{PREFIX}0[q].lora_A.weight",
        f"{PREFIX}0::A",
        f"{PREFIX}../../x.lora_A.weight",
        f"{PREFIX}\x1b]0;x\x07.lora_A.weight",
        f"{PREFIX}0.lora_magnitude_vector",
        f"{PREFIX}0.lora_embedding_A",
        f"{PREFIX}0.lora_C.weight",
        f"{PREFIX}0.base_layer.weight",
        f"{PREFIX}0.weight",
        PREFIX + "a." * 700 + "lora_A.weight",
    ):
        extra = {name: torch.zeros(3, 10)}
        yield f"extra-{name[:40]!a}", "lora", lambda f, e=extra: change_tensors(f, lambda t: t.update(e), WEIGHTS)
    for head in (torch.zeros(3, 12), torch.full((7, 12), float("nan"))):
        name = f"{PREFIX}4.weight"
        yield f"head-{list(head.shape)}", "lora", lambda f, n=name, h=head: change_tensor(f, n, lambda _: h, WEIGHTS)


WRONG: dict[str, list[Any]] = {
    "peft_type": [None, 5, [], "LOHA", "lora", {"a": 1}],
    "r": [0, -1, "8", True, 1.5, 2, 2**40, [3]],
    "lora_alpha": [0, -3, "16", True, [], {"a": 1}],
    "lora_dropout": [1.0, -0.1, "0", True],
    "use_rslora": ["yes", 1],
    "rank_pattern": [[], "x", {"0": 0}, {"0": 5}, {"0": "3"}, {"0": True}, {"(a+)+$": 3, "0": 2}, {"(": 3}],
    "alpha_pattern": [[], {"0": -1}, {"0": "8"}, {"(" * 400: 3}, {"x" * 10_000 + "*": 1}],
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "os.system", 5, ["gaussian"]],
    "modules_to_save": ["4", [5], {"4": 1}, [], None],
    "bias": ["all", "lora_only", 5],
    "use_dora": [True, "yes", 1],
    "trainable_token_indices": [[1], {"a": [1]}],
    "target_parameters": [["0.weight"]],
    "layer_replication": [[[0, 1]]],
    "lora_bias": [True],
    "unknown_field": [True, 1, "os.system", [1], {"a": 1}],
    "__class__": ["os.system"],
}


def _configs() -> Cases:
    for key, values in WRONG.items():
        for value in values:
            yield f"{key}-{str(value)[:24]}", "lora", put(key, value)
    marks = {"0.lora_E": [True] * 4, "2.lora_E": [True] * 4}
    for name, value in {
        "list": [],
        "count": {"0.lora_E": 4, "2.lora_E": 4},
        "numbers": {"0.lora_E": [1, 1, 1, 1]},
        "short": marks | {"0.lora_E": [True] * 3},
        "long": marks | {"0.lora_E": [True] * 5},
        "another-layer": marks | {"9.lora_E": [True] * 4},
        "no-lora_E": marks | {"0": [True] * 4},
        "fewer": marks | {"0.lora_E": [True, True, True, False]},
    }.items():
        yield f"marks-{name}", "adalora", put("rank_pattern", value)
    for key, value in {
        "init_r": 5,
        "target_r": 9,
        "tinit": -1,
        "beta1": 2,
        "lora_alpha": 0,
        "use_rslora": True,
    }.items():
        yield f"adalora-{key}", "adalora", put(key, value)
    for key, value in {
        "r": 7,
        "projection_prng_key": -1,
        "d_initial": 0,
        "save_projection": "no",
        "bias": "all",
    }.items():
        yield f"vera-{key}", "vera", put(key, value)
    for text in ("", "[]", "null", "{} {}", '{"r": NaN}', '{"r": 1, "r": 2}', "[" * 100_000, '{"a":' * 50_000):
        yield f"text-{text[:12]}", "lora", lambda f, t=text: (f / CONFIG).write_text(t)
    yield "large", "lora", lambda f: (f / CONFIG).write_text('{"r": "' + "x" * 20_000_000 + '"}')


def corpus() -> dict[str, tuple[str, Spoil]]:
    """{name: (good folder to start from, what to do to it)}."""
    found: dict[str, tuple[str, Spoil]] = {}
    for part in (_files, _tensors, _configs):
        for name, good, spoil in part():
            found[name if name not in found else f"{name}-{len(found)}"] = (good, spoil)
    return found


# ------------------------------------------------------------------ loralib's checkpoints

Change = Callable[[dict[str, Any]], object]


def _saved(change: Change, **settings: Any) -> Spoil:
    def spoil(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path, **settings)

    return spoil


def checkpoints() -> Iterator[tuple[str, Spoil]]:
    yield "pickle", lambda p: p.write_bytes(pickle.dumps(Payload(p)))
    yield "code", lambda p: torch.save(Payload(p), p)
    yield "code-inside", _saved(lambda s: s.update(x=Payload(Path("/tmp"))))
    yield "old", _saved(lambda s: None, _use_new_zipfile_serialization=False)
    yield "empty", lambda p: p.write_bytes(b"")
    yield "cut", lambda p: rewrite(p, lambda b: b[: len(b) // 2])
    yield "zip", lambda p: zipfile.ZipFile(p, "w").writestr("a", "b")
    yield "bomb", _bomb
    yield "list", lambda p: torch.save([torch.zeros(2)], p)
    yield "number", lambda p: torch.save({"a.lora_A": 3}, p)
    yield "nothing", lambda p: torch.save({}, p)
    yield "pipe", lambda p: (p.unlink(), os.mkfifo(p))
    yield "device", lambda p: (p.unlink(), p.symlink_to("/dev/zero"))
    for value in (float("nan"), float("inf")):
        yield f"{value}", _saved(lambda s, v=value: s["0.lora_A"].fill_(v))
    for kind, change in SHAPES.items():
        yield f"shape-{kind}", _saved(lambda s, c=change: s.update({"0.lora_A": c(s["0.lora_A"])}))
    yield "expanded", _saved(lambda s: s.update({"0.lora_A": torch.zeros(1).expand(3, 10)}))
    yield "sparse", _saved(lambda s: s.update({"0.lora_A": torch.zeros(3, 10).to_sparse()}))
    yield "integers", _saved(lambda s: s.update({"0.lora_A": torch.zeros(3, 10, dtype=torch.int64)}))
    yield "half", _saved(lambda s: s.pop("0.lora_B"))
    for name in ("../x.lora_A", "0[q].lora_A", "\x1b]0;.lora_A", "9.lora_A", "0.weight", "x" * 5000, "0::A", 5, None):
        yield f"name-{str(name)[:12]!a}", _saved(lambda s, n=name: s.update({n: torch.zeros(3, 10)}))


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"\0" * 400_000_000)
