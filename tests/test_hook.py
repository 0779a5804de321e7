"""The hook: once per real step, void on skipped ones, blind to the loss scale, and impossible to forget."""

import gc
import json
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

import rankwise as rw
from contract.methods import ROWS
from contract.models import ENCODER
from contract.runs import STEPS
from contract.runs import adamw as encoder_adamw
from contract.runs import step as encoder_step
from rankwise import hook
from rankwise.adapter import Method
from reference.schedules import budget_schedule, frozen_fraction
from sampled import some
from toy import loss_of, mlp, step, stream

TOTAL = 24
ADALORA = rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=8, every=2)
AFLORA = rw.AFLoRA(rank=4, scope="none", warmup=2, cooldown=8, every=2)
METHODS = {
    "adalora": ADALORA,
    "adalora-before": replace(ADALORA, score_at="before_step", mask="hold"),
    "adalora-raw": replace(ADALORA, score="raw_sensitivity"),
    "aflora": replace(AFLORA, scope="all"),
    "aflora-sensitivity": replace(AFLORA, scope="all", signal="sensitivity"),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_optimizer = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


def adapted(method: Method, fused: bool = False) -> tuple[rw.Adaptation, torch.optim.AdamW]:
    adaptation = rw.adapt(mlp(), method)
    return adaptation, torch.optim.AdamW(adaptation.parameters(), lr=1e-2, fused=fused)


def state(adaptation: rw.Adaptation) -> dict[str, Tensor]:
    """Of the controller, and of the adapters."""
    tensors = adaptation.controller.state_dict()["tensors"]
    adapters = {f"{n}::{t}": v for n, a in adaptation.adapters.items() for t, v in a.tensors().items()}
    return {n: t.detach().clone() for n, t in (tensors | adapters).items()}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], msg=name, **({"rtol": 0, "atol": 0} | tolerance))


# ------------------------------------------------------------------ once per real step


@each_method
@each_optimizer
def test_once_per_real_step_under_accumulation(method: Method, fused: bool):
    """accelerate's wrapper steps four times as often as the optimizer; the decisions follow the optimizer."""
    accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
    adaptation, optimizer = adapted(method, fused)
    _, wrapped = accelerator.prepare(adaptation.model, optimizer)
    with adaptation.attached(wrapped, total_steps=TOTAL):
        for i, example in enumerate(stream(10 * 4)):
            with accelerator.accumulate(adaptation.model):
                accelerator.backward(loss_of(adaptation.model, example))
                wrapped.step()
                wrapped.zero_grad()
            assert adaptation.controller.step == (i + 1) // 4

    plain, optimizer = adapted(method, fused)
    micro = stream(10 * 4)
    with plain.attached(optimizer, total_steps=TOTAL):
        for _ in range(10):
            for _ in range(4):
                (loss_of(plain.model, next(micro)) / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_equal(state(adaptation), state(plain), rtol=1e-5, atol=1e-7)
    assert adaptation.history.lines == plain.history.lines


@each_method
@each_optimizer
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_loss_scale_is_not_seen(method: Method, fused: bool, clip: float | None):
    runs = []
    for scale in (None, 2.0**6):
        adaptation, optimizer = adapted(method, fused)
        # it doubles as it goes: a constant one would leave the order of scores as it is
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=3, enabled=scale is not None)
        states = []
        with adaptation.attached(optimizer, total_steps=TOTAL):
            for example in stream(TOTAL):
                scaler.scale(loss_of(adaptation.model, example)).backward()
                if clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(adaptation.parameters(), clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                states.append(state(adaptation))
        assert adaptation.controller.step == TOTAL
        decisions = [(e["step"], e.get("masks"), e.get("frozen")) for e in adaptation.history.lines]
        runs.append((states, decisions))
    for unscaled, scaled in zip(runs[0][0], runs[1][0], strict=True):
        assert_equal(unscaled, scaled, rtol=1e-4, atol=1e-6)
    assert runs[0][1] == runs[1][1]


@each_method
@each_optimizer
def test_a_skipped_step_is_void(method: Method, fused: bool):
    adaptation, optimizer = adapted(method, fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for i, example in enumerate(stream(TOTAL)):
            before, count = state(adaptation), adaptation.controller.step
            overflow = i in (0, 5, 6)
            scaler.scale(loss_of(adaptation.model, example) * (torch.inf if overflow else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert adaptation.controller.step == count + (not overflow)
            if overflow:
                assert_equal(state(adaptation), before)
        assert adaptation.attachment.steps == TOTAL - 3
    assert not [e for e in adaptation.history.lines if e["event"] == "skipped_non_finite"]


def test_the_learning_rate_scheduler_may_wrap_the_optimizer():
    adaptation, optimizer = adapted(ADALORA)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / TOTAL)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            step(adaptation, optimizer, example)
            scheduler.step()
    assert sum(adaptation.ranks().values()) == 6


# ------------------------------------------------------------------ impossible to forget


@pytest.mark.parametrize("method", [ADALORA, METHODS["aflora"]], ids=lambda m: m.name)
def test_an_unattached_optimizer_raises_at_its_first_step(method: Method):
    adaptation, optimizer = adapted(method)
    values = state_of_model(adaptation)
    loss_of(adaptation.model, next(stream(1))).backward()
    with pytest.raises(rw.StateError, match=r"AdamW is about to step.*attached"):
        optimizer.step()
    assert not optimizer.state
    assert_equal(state_of_model(adaptation), values)

    with adaptation.attached(optimizer, total_steps=TOTAL):
        optimizer.step()
    values = state_of_model(adaptation)
    loss_of(adaptation.model, next(stream(1))).backward()
    with pytest.raises(rw.StateError, match="not attached"):  # again, outside the block
        optimizer.step()
    assert_equal(state_of_model(adaptation), values)
    other = torch.optim.SGD([adaptation.parameters()[0]], lr=1.0)  # and for any other optimizer
    with pytest.raises(rw.StateError, match="SGD is about to step"):
        other.step()


def state_of_model(adaptation: rw.Adaptation) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in adaptation.model.state_dict().items()}


def test_other_optimizers_step_freely():
    adapted(ADALORA)
    stranger = nn.Linear(3, 3)
    stranger(torch.randn(2, 3)).sum().backward()
    torch.optim.AdamW(stranger.parameters()).step()
    adaptation, optimizer = adapted(rw.LoRA(rank=2))  # decides nothing
    step(adaptation, optimizer, next(stream(1)))


def test_the_hook_is_one_and_its_layers_leave_with_their_model():
    for _ in range(5):
        adapted(ADALORA)
        gc.collect()
    hooks = list(torch_optimizer._global_optimizer_pre_hooks.values())
    assert hooks.count(hook._refuse_unattached) == 1
    before = len(hook._GUARDED)
    adaptation, optimizer = adapted(ADALORA)
    assert len(hook._GUARDED) == before + 3
    del adaptation, optimizer
    gc.collect()
    assert len(hook._GUARDED) == before


def test_two_adapted_models_on_one_optimizer():
    first, second = rw.adapt(mlp(0), ADALORA), rw.adapt(mlp(1), ADALORA)
    optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()])
    with first.attached(optimizer, total_steps=TOTAL):
        with second.attached(optimizer, total_steps=TOTAL):
            step(first, optimizer, next(stream(1)))
        assert (first.controller.step, second.controller.step) == (1, 1)
        step(first, optimizer, next(stream(1)))
        assert (first.controller.step, second.controller.step) == (2, 1)
        before = state_of_model(second)
        with pytest.raises(rw.StateError, match="not attached"):  # it would train, and nothing would decide
            step(second, optimizer, next(stream(1)))
        assert_equal(state_of_model(second), before)


def test_compacted_parameters_are_guarded_too():
    adaptation, optimizer = adapted(ADALORA)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(20):
            step(adaptation, optimizer, example)
        adaptation.compact()
    with pytest.raises(rw.StateError, match="not attached"):
        optimizer.step()


def test_an_optimizer_from_before_adapt_is_refused():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    adaptation = rw.adapt(model, ADALORA)
    message = "holds 6 parameters but not 9 of the adapters'.*built before adapt"
    with pytest.raises(rw.StateError, match=message), adaptation.attached(optimizer, total_steps=TOTAL):
        pass
    assert adaptation.controller is None
    later = torch.optim.AdamW(model.parameters())
    with adaptation.attached(later, total_steps=TOTAL):
        step(adaptation, later, next(stream(1)))


def test_what_cannot_be_attached():
    adaptation, optimizer = adapted(ADALORA)
    with pytest.raises(rw.StateError, match=r"torch.optim.Optimizer, got list"), adaptation.attached([], total_steps=9):
        pass
    with (
        adaptation.attached(optimizer, total_steps=TOTAL),
        pytest.raises(rw.StateError, match="attached already"),
        adaptation.attached(optimizer, total_steps=TOTAL),
    ):
        pass
    with (
        pytest.raises(rw.StateError, match=r"run 0 steps .* total_steps=24; it cannot continue with total_steps=30"),
        adaptation.attached(optimizer, total_steps=30),
    ):
        pass


@pytest.mark.parametrize("leave", ["undo", "merge"])
def test_the_adapters_stay_while_an_optimizer_is_attached(leave: str):
    adaptation, optimizer = adapted(ADALORA)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(4):
            step(adaptation, optimizer, example)
        before = state_of_model(adaptation)
        with pytest.raises(rw.StateError, match="leave its `with` block"):
            getattr(adaptation, leave)()
        assert_equal(state_of_model(adaptation), before)
    getattr(adaptation, leave)()


def test_a_block_left_by_an_error_is_left_in_order():
    adaptation, optimizer = adapted(ADALORA)
    with pytest.raises(KeyboardInterrupt), adaptation.attached(optimizer, total_steps=TOTAL):
        step(adaptation, optimizer, next(stream(1)))
        raise KeyboardInterrupt
    assert adaptation.attachment is None and not hook._ATTACHED
    with adaptation.attached(optimizer, total_steps=TOTAL):  # and goes on where it was
        step(adaptation, optimizer, next(stream(1)))
    assert adaptation.controller.step == 2


# ------------------------------------------------------------------ gradients that are not finite, or not there


@each_method
@each_optimizer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_step_with_a_non_finite_gradient_moves_and_teaches_nothing(method: Method, fused: bool, bad: float):
    adaptation, optimizer = adapted(replace(method, warmup=8), fused)  # no decision falls in between
    name, adapter = list(adaptation.adapters.items())[1]
    spoilt = (0, 3, 4, 7)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for t, example in enumerate(stream(TOTAL)):
            loss_of(adaptation.model, example).backward()
            before, weights = importance(adaptation), state_of_model(adaptation)
            if t in spoilt:
                next(adapter.parameters(recurse=False)).grad[0] = bad
            optimizer.step()
            optimizer.zero_grad()
            assert adaptation.controller.step == t + 1
            if t in spoilt:
                assert_equal(state_of_model(adaptation), weights)
                if method.name == "adalora" or t % 2:  # at even steps AFLoRA closes a window, of steps before this one
                    assert_equal(importance(adaptation), before)
            assert all(torch.isfinite(v).all() for v in state(adaptation).values()), t
    events = [e for e in adaptation.history.lines if e["event"] == "skipped_non_finite"]
    first = next(n for n, _ in adapter.named_parameters(recurse=False))
    assert events == [{"event": "skipped_non_finite", "step": t, "names": [f"{name}.{first}"]} for t in spoilt]


def test_a_skipped_step_closes_no_gate():
    adaptation, optimizer = adapted(rw.SoRA(rank=4, threshold=0.1))
    with adaptation.attached(optimizer, total_steps=TOTAL):
        before = state_of_model(adaptation)
        x, y = next(stream(1))
        step(adaptation, optimizer, (x * torch.nan, y))
        assert_equal(state_of_model(adaptation), before)
        step(adaptation, optimizer, (x, y))
    assert (adaptation.adapters["0"].g.abs() < before["0.g"].abs()).any()


def test_a_finite_gradient_whose_norm_overflows_is_finite():
    adaptation, optimizer = adapted(rw.LoRA(rank=2))
    with adaptation.attached(optimizer, total_steps=1):
        for p in adaptation.parameters():
            p.grad = torch.full_like(p, 1e30)
            assert not torch.isfinite(torch.linalg.vector_norm(p.grad))
        optimizer.step()
    assert [line["event"] for line in adaptation.history.lines] == ["started"]
    assert all(p.grad is not None for p in adaptation.parameters())


@pytest.mark.parametrize("method", [ADALORA, METHODS["aflora"], rw.LoRA(rank=2)], ids=lambda m: m.name)
def test_twenty_non_finite_steps_in_a_row_end_the_run(method: Method):
    adaptation, optimizer = adapted(method)
    steps = 0
    with pytest.raises(rw.NonFiniteError, match="20 steps in a row"), adaptation.attached(optimizer, total_steps=100):
        for steps, example in enumerate(stream(100)):
            bad = steps != 7  # one good step begins the count anew
            (loss_of(adaptation.model, example) * (torch.nan if bad else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert steps == 7 + 20
    assert all(torch.isfinite(p).all() for p in adaptation.parameters())


def test_a_step_without_any_gradient_is_a_step():
    for method in METHODS.values():
        adaptation, optimizer = adapted(method)
        with adaptation.attached(optimizer, total_steps=TOTAL):
            for _ in range(TOTAL):
                optimizer.step()
        assert adaptation.controller.step == TOTAL


def importance(adaptation: rw.Adaptation) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in adaptation.controller.state_dict()["tensors"].items()}


@pytest.mark.parametrize("name", ["adalora", "adalora-before", "aflora"])
def test_a_layer_without_gradient_keeps_its_state(name: str):
    adaptation, optimizer = adapted(replace(METHODS[name], warmup=14))  # so that none freezes meanwhile
    adapter = list(adaptation.adapters.values())[1]
    with adaptation.attached(optimizer, total_steps=TOTAL):
        parameters = {id(p): i for i, p in enumerate(adaptation.controller.parameters())}
        own = [parameters[id(p)] for p in adapter.parameters(recurse=False) if id(p) in parameters]
        for t, example in enumerate(stream(14)):
            loss_of(adaptation.model, example).backward()
            if t >= 4:
                adapter.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
            if t == 5:  # by now AFLoRA has closed the last window with a gradient in it
                before = importance(adaptation)
        after = importance(adaptation)
    for kind in ("mean", "uncertainty"):
        same = {i for i in parameters.values() if torch.equal(before[f"{kind}.{i}"], after[f"{kind}.{i}"])}
        assert same == set(own)


# ------------------------------------------------------------------ what is frozen is gone


@each_optimizer
def test_frozen_projections_hold_nothing_and_stand_still(fused: bool):
    adaptation = rw.adapt(mlp(), METHODS["aflora"])
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-2, weight_decay=0.5, fused=fused)
    values: dict[str, Tensor] = {}
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            step(adaptation, optimizer, example)
            tensors = {f"{n}.{t}": p for n, a in adaptation.adapters.items() for t, p in a.tensors().items()}
            for name in adaptation.frozen():
                parameter = tensors[name]
                assert not parameter.requires_grad and parameter.grad is None and parameter not in optimizer.state
                assert torch.equal(values.setdefault(name, parameter.detach().clone()), parameter), name
        assert len(values) == 6
    assert all(name.endswith((".A", ".B")) for name in values)


# ------------------------------------------------------------------ the history


def run(method: Method, path: Any) -> rw.Adaptation:
    adaptation, optimizer = adapted(method)
    with adaptation.attached(optimizer, total_steps=TOTAL, history=path):
        for example in stream(TOTAL):
            step(adaptation, optimizer, example)
    return adaptation


@each_method
def test_history_is_one_json_object_a_line_and_the_same_again(method: Method, tmp_path):
    first, second = (run(method, tmp_path / name / "history.jsonl") for name in ("a", "b"))
    text = (tmp_path / "a" / "history.jsonl").read_text()
    assert text == (tmp_path / "b" / "history.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == first.history.lines == second.history.lines
    assert lines[0] == {
        "event": "started",
        "step": 0,
        "method": method.name,
        "total_steps": TOTAL,
        "ranks": dict.fromkeys(("0", "2", "4"), 4),
    }
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert not {"time", "loss"} & {key for line in lines for key in line}


@pytest.mark.parametrize("name", ["adalora", "adalora-before", "adalora-raw"])
def test_history_of_a_budget_is_complete(name: str, tmp_path):
    adaptation = run(METHODS[name], tmp_path / "history.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()[1:]]
    schedule = {"total": TOTAL, "warmup": 2, "cooldown": 8, "start": 12, "end": 6, "every": 2}
    expected = {t: budget_schedule(t, **schedule) for t in range(TOTAL - 8 + 1)}
    assert [(e["step"], e["budget"]) for e in lines] == [(t, b) for t, (b, decided) in expected.items() if decided]
    for e in lines:
        assert e.keys() == {
            *("event", "step", "budget", "score_quantiles", "orthogonality", "masks", "ranks", "live"),
        }
        assert e["event"] == "allocated" and type(e["orthogonality"]) is float
        assert e["live"] == e["budget"] == sum(e["ranks"].values())
        assert e["ranks"] == {n: mask.count("1") for n, mask in e["masks"].items()}
        assert all(len(mask) == 4 and set(mask) <= {"0", "1"} for mask in e["masks"].values())
        assert len(e["score_quantiles"]) == 5 and e["score_quantiles"] == sorted(e["score_quantiles"])
    assert lines[-1]["ranks"] == adaptation.ranks()


@pytest.mark.parametrize("name", ["aflora", "aflora-sensitivity"])
def test_history_of_freezing_is_complete(name: str, tmp_path):
    adaptation = run(METHODS[name], tmp_path / "history.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()[1:]]
    frozen: list[str] = []
    for e in lines:
        assert e.keys() == {"event", "step", "share", "frozen", "score_quantiles"} and e["event"] == "froze"
        assert e["frozen"] and not set(e["frozen"]) & set(frozen)
        frozen += e["frozen"]
        assert e["share"] == len(frozen) / 6 == int(6 * frozen_fraction(e["step"], TOTAL, 2, 8)) / 6
    assert sorted(frozen) == sorted(adaptation.frozen()) and lines[-1]["share"] == 1.0


def test_freezing_in_batches():
    """At no more than that many moments, the last of them at the end of the deciding phase."""
    for batches in (1, 2, 3):
        adaptation = run(replace(METHODS["aflora"], freeze_batches=batches), None)
        steps = [e["step"] for e in adaptation.history.lines if e["event"] == "froze"]
        assert 1 <= len(steps) <= batches and steps[-1] == TOTAL - 8
        assert len(adaptation.frozen()) == 6


# ------------------------------------------------------------------ continuing


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("stop", some([7, 3, 9]))
def test_an_interrupted_run_continues_bit_for_bit(row, stop: int, tmp_path):
    batch = ENCODER.batch()
    whole = rw.adapt(ENCODER.build(), row.method)
    optimizer = encoder_adamw(whole)
    with whole.attached(optimizer, total_steps=STEPS, history=tmp_path / "whole.jsonl"):
        for t in range(STEPS):
            if t == stop:
                whole.save(tmp_path / "adapter")
                saved = optimizer.state_dict()
                torch.save(saved, tmp_path / "optimizer.pt")
                whole.history.flush()
                (tmp_path / "part.jsonl").write_text((tmp_path / "whole.jsonl").read_text())
            encoder_step(whole, optimizer, batch)

    part = rw.load(ENCODER.build(), tmp_path / "adapter")
    optimizer = encoder_adamw(part)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    with part.attached(optimizer, total_steps=STEPS, history=tmp_path / "part.jsonl"):
        for _ in range(stop, STEPS):
            encoder_step(part, optimizer, batch)
    assert_equal(state_of_model(part), state_of_model(whole))
    assert (tmp_path / "part.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert part.frozen() == whole.frozen() and part.ranks() == whole.ranks()


def test_loading_without_resume_begins_a_new_run(tmp_path):
    adaptation = run(ADALORA, None)
    adaptation.save(tmp_path / "adapter")
    with pytest.raises(rw.StateError, match=r"run 24 steps .* total_steps=24; it cannot continue with total_steps=50"):
        begin(rw.load(mlp(), tmp_path / "adapter"), 50)
    fresh = rw.load(mlp(), tmp_path / "adapter", resume=False)
    begin(fresh, 50)
    assert fresh.controller.step == 0


def begin(adaptation: rw.Adaptation, total: int) -> None:
    with adaptation.attached(torch.optim.AdamW(adaptation.parameters()), total_steps=total):
        pass


# ------------------------------------------------------------------ beyond the planned run, and in parts


@pytest.mark.parametrize("method", [rw.LoRA(rank=2), ADALORA], ids=lambda m: m.name)
def test_a_run_that_goes_on_behind_its_steps_warns_once_and_is_saved(method: Method, tmp_path):
    adaptation, optimizer = adapted(method)
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL):
            step(adaptation, optimizer, example)
        with pytest.warns(UserWarning, match=r"total_steps=24, and goes on behind") as told:
            for example in stream(3):
                step(adaptation, optimizer, example)
    assert len(told) == 1
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(mlp(), tmp_path / "adapter")
    assert loaded.ranks() == adaptation.ranks()
    optimizer = torch.optim.AdamW(loaded.parameters())
    with loaded.attached(optimizer, total_steps=TOTAL):
        step(loaded, optimizer, next(stream(1)))


def test_the_history_goes_along_to_another_file(tmp_path):
    adaptation, optimizer = adapted(ADALORA)
    examples = list(stream(TOTAL))
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in examples[:10]:
            step(adaptation, optimizer, example)
    with adaptation.attached(optimizer, total_steps=TOTAL, history=tmp_path / "history.jsonl"):
        for example in examples[10:]:
            step(adaptation, optimizer, example)
    whole = run(ADALORA, tmp_path / "whole.jsonl")
    assert adaptation.ranks() == whole.ranks()
    assert (tmp_path / "history.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_run_in_epochs_goes_on_with_epochs_of_its_length(tmp_path):
    method = replace(ADALORA, warmup=rw.epochs(1), cooldown=rw.epochs(4))
    adaptation, optimizer = adapted(method)
    with adaptation.attached(optimizer, total_steps=TOTAL, steps_per_epoch=2):
        step(adaptation, optimizer, next(stream(1)))
    adaptation.save(tmp_path / "adapter")
    loaded = rw.load(mlp(), tmp_path / "adapter")
    for continued in (adaptation, loaded):
        optimizer = torch.optim.AdamW(continued.parameters())
        with (
            pytest.raises(rw.StateError, match=r"steps_per_epoch=2; it cannot continue with steps_per_epoch=5"),
            continued.attached(optimizer, total_steps=TOTAL, steps_per_epoch=5),
        ):
            pass
        with continued.attached(optimizer, total_steps=TOTAL):
            assert continued.controller.phases.warmup == 2


# ------------------------------------------------------------------ compaction inside a run


def test_compaction_lets_the_old_parameters_go():
    adaptation, optimizer = adapted(replace(ADALORA, compact_at_end_of_budget=True))
    old = [weakref.ref(p) for p in adaptation.parameters()]
    before = {name: adapter.rank for name, adapter in adaptation.adapters.items()}
    with adaptation.attached(optimizer, total_steps=TOTAL):
        for example in stream(TOTAL - 2):
            step(adaptation, optimizer, example)
        gc.collect()
        left = {id(ref()) for ref in old if ref() is not None}
        assert sum(adapter.rank for adapter in adaptation.adapters.values()) < sum(before.values())
        assert left <= {id(p) for p in adaptation.parameters()}  # of layers that lost nothing
        x, y = next(stream(1))
        step(adaptation, optimizer, (x * torch.nan, y))
    assert adaptation.history.lines[-1]["names"][0] == "0.P"  # new parameters have names too
