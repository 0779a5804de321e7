"""Laws that hold for every method, on one encoder; and, where the architecture could matter, on every architecture."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from contract.methods import BASELINES, BY_NAME, ROWS, Baseline, Row
from contract.models import ARCHITECTURES, ENCODER, OFTEN, Architecture
from contract.models import BY_NAME as MODELS
from contract.runs import (
    STEPS,
    adamw,
    gradients,
    outputs,
    peft_reads,
    step,
    train,
    trained,
    transformers_reads,
)
from rankwise.adapter import FusedBlocks, LowRank, Method, is_adapted
from rankwise.methods import METHODS
from rankwise.places import STACKS
from sampled import some

each_method = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: row.name)

# every method on the encoder, and two methods (a gate, and a gate with an output vector) on every architecture
PAIRS = [(ENCODER, row) for row in ROWS]
PAIRS += [(a, BY_NAME[m]) for a in ARCHITECTURES if a is not ENCODER for m in ("adalora", "aflora-all")]


def often(pairs: list[tuple[Architecture, Any]]) -> list[Any]:
    """On every architecture in the slow proofs, on some of them every time."""
    return some(pairs, [i for i, (architecture, _) in enumerate(pairs) if architecture.name in OFTEN])


each_pair = pytest.mark.parametrize(("architecture", "row"), often(PAIRS), ids=lambda part: part.name)

# the methods that are not low-rank: all on the encoder, and those that reach into blocks wherever those are known
KNOWN = [a for a in ARCHITECTURES if a is not ENCODER and a.build().config.model_type in STACKS]
BASELINE_PAIRS = [(ENCODER, row) for row in BASELINES] + [
    (a, row) for a in KNOWN for row in BASELINES if row.everywhere
]
every_pair = pytest.mark.parametrize(("architecture", "row"), often(PAIRS + BASELINE_PAIRS), ids=lambda part: part.name)
each_baseline_pair = pytest.mark.parametrize(("architecture", "row"), often(BASELINE_PAIRS), ids=lambda part: part.name)
every_method = pytest.mark.parametrize("row", [*ROWS, *BASELINES], ids=lambda row: row.name)


def test_every_method_has_a_row():
    assert {row.method.name for row in (*ROWS, *BASELINES)} == set(METHODS)


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, bool], dict[str, nn.Module]]:
    """Values, requires_grad and module objects by name, in order."""
    state = {n: t.clone() for n, t in model.state_dict().items()}
    return state, {n: p.requires_grad for n, p in model.named_parameters()}, dict(model.named_modules())


def assert_unchanged(model: nn.Module, before: tuple[dict[str, Tensor], dict[str, bool], dict[str, nn.Module]]) -> None:
    state, requires, modules = snapshot(model)
    assert list(state) == list(before[0])
    assert all(torch.equal(state[n], t) for n, t in before[0].items())
    assert requires == before[1]
    assert list(modules) == list(before[2]) and all(modules[n] is m for n, m in before[2].items())


# ------------------------------------------------------------------ starting, disabling, merging, undoing


@every_pair
def test_starts_at_the_base(architecture: Architecture, row: Row | Baseline):
    """Exactly those start there that say so."""
    model, batch = architecture.build(), architecture.batch()
    before = outputs(model, batch)
    model.train().requires_grad_(False)  # where a weight takes a gradient, torch may choose another kernel
    loss = model(**batch).loss
    rw.adapt(model, row.method)
    assert torch.equal(outputs(model, batch), before) == row.method.starts_at_base
    assert torch.equal(model(**batch).loss, loss) or not row.method.starts_at_base


@every_pair
def test_disabled_is_the_base(architecture: Architecture, row: Row):
    batch = architecture.batch()
    adaptation = rw.adapt(architecture.build(), row.method)
    base = outputs(architecture.build(), batch)
    with adaptation.disabled():
        assert torch.equal(outputs(adaptation.model, batch), base)
    train(adaptation, batch)
    assert not torch.equal(outputs(adaptation.model, batch), base)
    with adaptation.disabled():
        assert torch.equal(outputs(adaptation.model, batch), base)
    assert not torch.equal(outputs(adaptation.model, batch), base)


@each_pair
def test_merged_is_adapted(architecture: Architecture, row: Row):
    assert row.method.cannot_merge is None
    adaptation, batch = trained(architecture, row.method), architecture.batch()
    adapted, classes = outputs(adaptation.model, batch), {n: type(m) for n, m in architecture.build().named_modules()}
    model = adaptation.merge()
    assert {n: type(m) for n, m in model.named_modules()} == classes
    torch.testing.assert_close(outputs(model, batch), adapted, rtol=1e-5, atol=1e-5)
    with pytest.raises(rw.StateError, match="nothing to save"):
        adaptation.save("nowhere")


@pytest.mark.parametrize("row", BASELINES, ids=lambda row: row.name)
def test_exporting_what_is_not_low_rank_is_refused_with_the_reason(row: Baseline, tmp_path):
    assert row.method.cannot_export is not None
    with pytest.raises(rw.StateError, match=row.method.cannot_export):
        rw.adapt(ENCODER.build(), row.method).export(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@each_baseline_pair
def test_merging_is_nothing_to_do_or_refused_with_the_reason(architecture: Architecture, row: Baseline):
    adaptation, batch = trained(architecture, row.method, steps=2), architecture.batch()
    adapted, classes = outputs(adaptation.model, batch), {n: type(m) for n, m in architecture.build().named_modules()}
    if row.method.cannot_merge is not None:
        with pytest.raises(rw.StateError, match=row.method.cannot_merge):
            adaptation.merge()
        assert torch.equal(outputs(adaptation.model, batch), adapted)
        return
    model = adaptation.merge()
    assert {n: type(m) for n, m in model.named_modules()} == classes
    assert torch.equal(outputs(model, batch), adapted)
    assert adaptation.merge_error is not None and adaptation.merge_error.largest == 0
    assert "nothing to merge" in str(adaptation.merge_error)


@every_pair
def test_undo_gives_the_original_model_back(architecture: Architecture, row: Row):
    model = architecture.build()
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)  # a pattern of the user's own, that has to come back
    before = snapshot(model)
    adaptation = rw.adapt(model, row.method)
    assert is_adapted(model)
    train(adaptation, architecture.batch(), steps=2)
    assert adaptation.undo() is model
    assert_unchanged(model, before)


# ------------------------------------------------------------------ files


@every_pair
def test_reloaded_is_saved(architecture: Architecture, row: Row, tmp_path):
    adaptation, batch = trained(architecture, row.method, steps=8), architecture.batch()
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(architecture.build(), tmp_path / "adapter")
    assert loaded.method == row.method
    assert loaded.ranks() == adaptation.ranks() and loaded.frozen() == adaptation.frozen()
    assert list(loaded.trained) == list(adaptation.trained) and loaded.tuned == adaptation.tuned
    saved = adaptation.model.state_dict()
    assert all(torch.equal(t, saved[n]) for n, t in loaded.model.state_dict().items())
    assert torch.equal(outputs(loaded.model, batch), outputs(adaptation.model, batch))
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in adaptation.parameters()]


@each_method
def test_a_compacted_adapter_is_reloaded_too(row: Row, tmp_path):
    adaptation, batch = trained(ENCODER, row.method), ENCODER.batch()
    adaptation.compact()
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(ENCODER.build(), tmp_path / "adapter")
    assert torch.equal(outputs(loaded.model, batch), outputs(adaptation.model, batch))
    assert {n: a.rank for n, a in loaded.adapters.items()} == {n: a.rank for n, a in adaptation.adapters.items()}


@each_pair
@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_exported_is_adapted(architecture: Architecture, row: Row, layout: str, tmp_path):
    """In stock PEFT, and in transformers without PEFT's wrapper."""
    adaptation, batch = trained(architecture, row.method), architecture.batch()
    adapted = outputs(adaptation.model, batch)
    adaptation.export(tmp_path / "lora", layout=layout)
    for read in (peft_reads, transformers_reads):
        base = architecture.build()
        base.load_state_dict(adaptation.trained, strict=False)  # the head, which a LoRA folder leaves out
        assert not torch.allclose(outputs(base, batch), adapted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs(read(base, tmp_path / "lora"), batch), adapted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ what trains


def declared(adaptation: rw.Adaptation, row: Row) -> set[int]:
    ids = {id(p) for p in adaptation.trained.values()}
    for name, adapter in adaptation.adapters.items():
        in_scope = not row.vectors_only or ("attention" not in name and ("output" in name or "intermediate" in name))
        tensors = adapter.tensors()
        ids |= {id(tensors[t]) for t in (row.trains if in_scope else row.vectors_only)}
    return ids


@each_method
def test_only_declared_parameters_receive_gradients(row: Row):
    model = ENCODER.build()
    adaptation = rw.adapt(model, replace(row.method, exclude=["pooler.dense"]))
    train(adaptation, ENCODER.batch(), steps=1)  # off the start, where many gradients are 0
    gradients(model, ENCODER.batch())
    with_gradient = {id(p) for p in model.parameters() if p.grad is not None}
    assert with_gradient == declared(adaptation, row) == {id(p) for p in adaptation.parameters()}
    assert all(bool(p.grad.any()) for p in adaptation.parameters())
    all_live = all(adapter.live.all() for adapter in adaptation.adapters.values())  # a gate may have closed already
    trainable = sum(p.numel() for p in adaptation.parameters())
    assert adaptation.count() == trainable if all_live else adaptation.count() < trainable


@each_baseline_pair
def test_a_baseline_gives_gradients_to_all_it_declares_and_nothing_else(architecture: Architecture, row: Baseline):
    adaptation, batch = rw.adapt(architecture.build(), row.method), architecture.batch()
    train(adaptation, batch, steps=2)
    torch.manual_seed(0)  # a random drop of 0 blocks
    gradients(adaptation.model, batch)
    with_gradient = {id(p) for p in adaptation.model.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in adaptation.parameters()}
    assert adaptation.count() == sum(p.numel() for p in adaptation.parameters())
    if row.name != "full":  # of which nothing reads the embeddings of absent words
        assert all(bool(p.grad.any()) for p in adaptation.parameters())


@each_architecture
def test_every_adapter_of_every_architecture_trains(architecture: Architecture):
    adaptation = rw.adapt(architecture.build(), rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=4, every=2))
    train(adaptation, architecture.batch(), steps=2)
    gradients(adaptation.model, architecture.batch())
    still = {n for n, a in adaptation.adapters.items() for p in a.triplet() if p.grad is None or not p.grad.any()}
    assert not still


@every_pair
def test_gradient_checkpointing_gives_the_same_gradients(architecture: Architecture, row: Row):
    adaptation, batch = trained(architecture, row.method, steps=2), architecture.batch()
    if not adaptation.model.supports_gradient_checkpointing:
        assert architecture.name == "mpnet"  # in transformers
        return
    torch.manual_seed(0)
    plain = gradients(adaptation.model, batch)
    adaptation.model.activation_checkpointing_enable({"use_reentrant": False})
    assert adaptation.model.is_activation_checkpointing
    torch.manual_seed(0)
    checkpointed = gradients(adaptation.model, batch)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-7, msg=name)


# ------------------------------------------------------------------ all or nothing


FAILING = {
    "targets": lambda m: replace(m, targets=["query", "nowhere"]),
    "exclude": lambda m: replace(m, exclude=["nowhere"]),
    "everything excluded": lambda m: replace(m, targets=["query"], exclude=["query"]),
    "rank": lambda m: replace(m, rank=33),
    "rank_pattern": lambda m: replace(m, rank_pattern={"query": 33}),
    "rank_pattern for nothing": lambda m: replace(m, rank_pattern={"nowhere": 2}),
    "also_train": lambda m: replace(m, also_train=["nowhere"]),
    "block": lambda m: replace(m, targets=["query[q]"]),
}


@each_method
@pytest.mark.parametrize("breakage", FAILING)
def test_adapt_is_all_or_nothing(row: Row, breakage: str):
    if breakage in ("rank", "rank_pattern") and not row.bounded_rank:
        rw.adapt(ENCODER.build(), FAILING[breakage](row.method))
        return
    model = ENCODER.build()
    before = snapshot(model)
    with pytest.raises(rw.TargetError):
        rw.adapt(model, FAILING[breakage](row.method))
    assert_unchanged(model, before)


@each_method
def test_a_failure_while_building_changes_nothing(row: Row, monkeypatch):
    model, built = ENCODER.build(), []
    before = snapshot(model)
    build = type(row.method).build

    def breaks(self: Method, *args: object) -> LowRank:
        if len(built) == 5:
            raise MemoryError
        built.append(build(self, *args))
        return built[-1]

    monkeypatch.setattr(type(row.method), "build", breaks)
    with pytest.raises(MemoryError):
        rw.adapt(model, row.method)
    assert_unchanged(model, before)


@every_method
def test_adapting_twice_is_refused(row: Row | Baseline):
    model = ENCODER.build()
    adaptation = rw.adapt(model, row.method)
    before = snapshot(model)
    with pytest.raises(rw.StateError, match="adapted already"):
        rw.adapt(model, row.method)
    assert_unchanged(model, before)
    adaptation.undo()
    rw.adapt(model, row.method)


# ------------------------------------------------------------------ types


@every_method
def test_adapters_are_float32_in_any_model(row: Row | Baseline):
    adaptation = rw.adapt(ENCODER.build().bfloat16(), row.method)
    own = {id(p) for p in adaptation.parameters()} - {id(p) for p in adaptation.trained.values()}
    assert all(p.dtype == torch.float32 for p in adaptation.parameters() if id(p) in own)


@every_pair
@pytest.mark.parametrize("mode", ["model", "autocast"])
def test_bfloat16_is_near_float32(architecture: Architecture, row: Row, mode: str):
    """Forward and backward are finite and near, with weights in bfloat16 and under autocast."""
    adaptation, batch = trained(architecture, row.method, steps=3), architecture.batch()
    torch.manual_seed(0)
    exact_logits, exact = outputs(adaptation.model, batch), gradients(adaptation.model, batch)
    torch.manual_seed(0)
    if mode == "model":
        adapters = {id(p) for p in adaptation.parameters()} - {id(p) for p in adaptation.trained.values()}
        for parameter in adaptation.model.parameters():
            if id(parameter) not in adapters:
                parameter.data = parameter.data.bfloat16()
        batch = {n: t.bfloat16() if t.is_floating_point() else t for n, t in batch.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        logits, near = outputs(adaptation.model, batch), gradients(adaptation.model, batch)
    torch.testing.assert_close(logits.float(), exact_logits, rtol=0.1, atol=0.1)
    assert near.keys() == exact.keys()
    total = torch.stack([g.float().square().sum() for g in exact.values()]).sum().sqrt()
    error = torch.stack([(near[n].float() - g).square().sum() for n, g in exact.items()]).sum().sqrt()
    assert torch.isfinite(error) and error < 0.15 * total


# ------------------------------------------------------------------ repetition


@every_method
def test_same_seed_same_run(row: Row | Baseline):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        adaptation = trained(ENCODER, replace(row.method, dropout=0.2) if isinstance(row, Row) else row.method)
        states.append((adaptation.model.state_dict(), adaptation.history.lines))
    assert all(torch.equal(t, states[1][0][n]) for n, t in states[0][0].items())
    assert states[0][1] == states[1][1]


@each_method
@pytest.mark.parametrize("at", [5, 9])
def test_a_resumed_run_is_the_uninterrupted_one(row: Row, at: int, tmp_path):
    """Bit for bit, from what is saved: adapters, the state of the decisions, and the optimizer's."""
    batch = ENCODER.batch()
    adaptation = rw.adapt(ENCODER.build(), row.method)
    adaptation.model.train()
    optimizer = adamw(adaptation)
    with adaptation.attached(optimizer, total_steps=STEPS):
        for t in range(STEPS):
            if t == at:
                adaptation.save(tmp_path)
                saved = copy.deepcopy(optimizer.state_dict())
            step(adaptation, optimizer, batch)
    again = rw.load(ENCODER.build(), tmp_path)
    again.model.train()
    resumed = adamw(again)
    resumed.load_state_dict(saved)
    with again.attached(resumed, total_steps=STEPS):
        for _ in range(at, STEPS):
            step(again, resumed, batch)
    assert again.frozen() == adaptation.frozen()
    state = adaptation.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in again.model.state_dict().items())
    told = [[line for line in a.history.lines if line["step"] >= at] for a in (adaptation, again)]
    assert told[0] == told[1]


# ------------------------------------------------------------------ compaction


def moments(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[torch.Size | None]:
    return [optimizer.state[p]["exp_avg"].shape if p in optimizer.state else None for p in parameters]


@each_method
@pytest.mark.parametrize("fused", [False, True])
def test_compaction_keeps_the_outputs_and_training_goes_on(row: Row, fused: bool):
    adaptation, batch = rw.adapt(ENCODER.build(), row.method), ENCODER.batch()
    optimizer = adamw(adaptation, fused=fused)
    with adaptation.attached(optimizer, total_steps=STEPS):
        for _ in range(STEPS - 2):
            step(adaptation, optimizer, batch)
        alive = adaptation.model(**batch).loss  # a graph that recorded the old shapes
        before, live, size = outputs(adaptation.model, batch), adaptation.ranks(), adaptation.count()
        assert adaptation.compact() == 0
        torch.testing.assert_close(outputs(adaptation.model, batch), before, rtol=1e-6, atol=1e-6)
        assert {n: a.rank for n, a in adaptation.adapters.items()} == live == adaptation.ranks()
        training = [p for p in adaptation.parameters() if p.requires_grad]
        assert adaptation.count() == size == sum(p.numel() for p in training)
        assert (min(live.values()) < row.method.rank) == row.compactable
        del alive
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in adaptation.parameters()} <= {id(p) for p in held}
        assert moments(optimizer, training) == [p.shape for p in training]
        step(adaptation, optimizer, batch)
        assert not torch.equal(outputs(adaptation.model, batch), before)
        step(adaptation, optimizer, batch)
    assert row.closes_gates or adaptation.ranks() == live
    assert all(rank <= live[name] for name, rank in adaptation.ranks().items())


@pytest.mark.parametrize("moment", ["before backward", "before step", "after step"])
def test_compaction_at_any_moment_of_a_step(moment: str):
    """A compacted run goes on exactly as one that was not, whatever part of a step it was compacted in."""
    results = []
    for compacts in (False, True):
        adaptation, batch = rw.adapt(ENCODER.build(), BY_NAME["adalora"].method), ENCODER.batch()
        optimizer = adamw(adaptation)
        torch.manual_seed(0)
        with adaptation.attached(optimizer, total_steps=STEPS):
            for t in range(STEPS):
                now = compacts and t == 9
                loss = adaptation.model(**batch).loss
                if now and moment == "before backward":
                    adaptation.compact()
                    loss = adaptation.model(**batch).loss
                loss.backward()
                if now and moment == "before step":
                    adaptation.compact()
                optimizer.step()
                if now and moment == "after step":
                    adaptation.compact()
                optimizer.zero_grad(set_to_none=False)
        results.append(outputs(adaptation.model, batch))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_compaction_zeroes_what_grew_back_and_says_so():
    """Between allocations dropped λ grow again; the last mask decides."""
    adaptation = trained(ENCODER, replace(BY_NAME["adalora"].method, warmup=1, every=2), steps=6)
    dead = {n: ~a.live for n, a in adaptation.adapters.items()}
    regrown = sum(int((a.lam[dead[n]] != 0).sum()) for n, a in adaptation.adapters.items())
    assert regrown > 0
    kept = {n: a.lam[a.live].clone() for n, a in adaptation.adapters.items()}
    assert adaptation.compact() == regrown
    assert all(torch.equal(a.lam, kept[n]) for n, a in adaptation.adapters.items())


def test_a_layer_may_lose_every_rank():
    adaptation, batch = rw.adapt(ENCODER.build(), BY_NAME["adalora"].method), ENCODER.batch()
    optimizer = adamw(adaptation)
    name, adapter = next(iter(adaptation.adapters.items()))
    with adaptation.attached(optimizer, total_steps=STEPS):
        for _ in range(10):
            step(adaptation, optimizer, batch)
        loss = adaptation.model(**batch).loss
        loss.backward()
        with torch.no_grad():
            adapter.lam.zero_()
        adapter.live.zero_()
        before = outputs(adaptation.model, batch)
        adaptation.compact()
        assert adaptation.ranks()[name] == adapter.rank == 0
        torch.testing.assert_close(outputs(adaptation.model, batch), before, rtol=1e-6, atol=1e-6)
        optimizer.step()  # with gradients of the size 0
        optimizer.zero_grad()
        step(adaptation, optimizer, batch)
    adaptation.merge()


# ------------------------------------------------------------------ fused weights


@pytest.mark.parametrize("row", [r for r in ROWS if r.name in ("lora", "adalora", "aflora-all")], ids=lambda r: r.name)
def test_blocks_of_a_fused_weight(row: Row, tmp_path):
    gpt2 = MODELS["gpt2"]
    batch = gpt2.batch()
    base = outputs(gpt2.build(), batch)
    method = replace(row.method, targets=["c_attn[q,v]", "c_fc"])
    adaptation = rw.adapt(gpt2.build(), method)
    assert torch.equal(outputs(adaptation.model, batch), base)
    assert list(adaptation.adapters)[:3] == [
        "transformer.h.0.attn.c_attn[q]",
        "transformer.h.0.attn.c_attn[v]",
        "transformer.h.0.mlp.c_fc",
    ]
    train(adaptation, batch)
    adapted = outputs(adaptation.model, batch)
    with adaptation.disabled():
        assert torch.equal(outputs(adaptation.model, batch), base)
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(gpt2.build(), tmp_path / "adapter")
    assert torch.equal(outputs(loaded.model, batch), adapted)
    fused = adaptation.model.transformer.h[0].attn.c_attn
    assert isinstance(fused, FusedBlocks)
    W, ranks = fused.weight.clone(), adaptation.ranks()
    model = adaptation.merge()
    torch.testing.assert_close(outputs(model, batch), adapted, rtol=1e-5, atol=1e-5)
    q, k, v = (model.transformer.h[0].attn.c_attn.weight - W).split(32, dim=1)
    assert bool(q.any()) == (ranks["transformer.h.0.attn.c_attn[q]"] > 0)
    assert bool(v.any()) == (ranks["transformer.h.0.attn.c_attn[v]"] > 0)
    assert not k.any()  # it was not named


def test_a_fused_update_is_block_diagonal():
    """Adapting every block is adapting the whole weight with block-diagonal `up` and stacked `down`."""
    gpt2 = MODELS["gpt2"]
    model, batch = gpt2.build(), gpt2.batch()
    adaptation = rw.adapt(model, rw.LoRA(rank=2, targets=["h.0.attn.c_attn[q,k,v]"]))
    adapters = list(adaptation.adapters.values())
    for adapter in adapters:
        nn.init.normal_(adapter.B, std=0.1)
    adapted = outputs(model, batch)
    up = torch.block_diag(*(a.B for a in adapters))
    down = torch.cat([a.A for a in adapters])
    plain = gpt2.build()
    with torch.no_grad():
        plain.transformer.h[0].attn.c_attn.weight += (up @ down).T
    torch.testing.assert_close(outputs(plain, batch), adapted, rtol=1e-5, atol=1e-5)
