"""Settings are checked when they are made, and a schedule when it meets a run."""

import inspect
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

import rankwise as rw
from contract.models import ENCODER
from contract.runs import adamw
from rankwise.allocation.schedule import Epochs
from rankwise.io.description import method_as_dict, method_from_dict
from rankwise.methods import METHODS

BAD = [
    (rw.LoRA, {"rank": 0}, "rank=0"),
    (rw.LoRA, {"rank": -2}, "rank=-2"),
    (rw.LoRA, {"rank": 2.5}, "rank=2.5"),
    (rw.LoRA, {"rank": "8"}, "rank='8'"),
    (rw.LoRA, {"rank": True}, "rank=True"),
    (rw.LoRA, {"dropout": 1.0}, "dropout=1.0 is a probability"),
    (rw.LoRA, {"dropout": -0.1}, "dropout=-0.1"),
    (rw.LoRA, {"dropout": float("nan")}, "dropout=nan"),
    (rw.LoRA, {"alpha": 0}, "alpha=0"),
    (rw.LoRA, {"alpha": -1.0}, "alpha=-1.0"),
    (rw.LoRA, {"alpha_pattern": {"query": 0}}, "alpha_pattern"),
    (rw.LoRA, {"init": "guassian"}, "init='guassian' is none of ['kaiming', 'normal']"),
    (rw.LoRA, {"init": "norml"}, "Did you mean 'normal'?"),
    (rw.LoRA, {"init_std": 0}, "init_std=0 must be positive"),
    (rw.LoRA, {"rank_pattern": {"query": 0}}, "rank_pattern={'query': 0}"),
    (rw.LoRA, {"targets": ""}, "targets is empty"),
    (rw.LoRA, {"targets": []}, "targets is empty"),
    (rw.LoRA, {"targets": "("}, "targets='(' is no regular expression"),
    (rw.LoRA, {"targets": ["query", ""]}, "a list of targets holds names"),
    (rw.LoRA, {"exclude": [3]}, "exclude=[3]"),
    (rw.AdaLoRA, {"rank": 6}, "target_rank=8 must be between 1 and rank=6"),
    (rw.AdaLoRA, {"target_rank": 0}, "target_rank=0"),
    (rw.AdaLoRA, {"alpha": 0}, "alpha=0"),
    (rw.AdaLoRA, {"beta1": 1.0}, "beta1=1.0"),
    (rw.AdaLoRA, {"beta2": -0.5}, "beta2=-0.5"),
    (rw.AdaLoRA, {"orthogonality": -0.1}, "orthogonality=-0.1"),
    (rw.AdaLoRA, {"budget": 0}, "budget=0"),
    (rw.AdaLoRA, {"warmup": 1.5}, "warmup=1.5 is a fraction of the run"),
    (rw.AdaLoRA, {"warmup": -3}, "warmup=-3 is too short"),
    (rw.AdaLoRA, {"cooldown": "2 weeks"}, "cooldown='2 weeks' is no span"),
    (rw.AdaLoRA, {"cooldown": "half"}, "cooldown='half' is no span"),
    (rw.AdaLoRA, {"every": None, "warmup": None}, "warmup=None is no span"),
    (rw.AdaLoRA, {"every": True}, "every=True is no span"),
    (rw.AdaLoRA, {"every": 0}, "every=0 is too short"),
    (rw.AdaLoRA, {"penalty": "sum"}, "penalty='sum' is none of"),
    (rw.AdaLoRA, {"score": "magnitudes"}, "Did you mean 'magnitude'?"),
    (rw.AdaLoRA, {"score_at": "before"}, "score_at='before' is none of"),
    (rw.AdaLoRA, {"ties": "keep"}, "ties='keep' is none of"),
    (rw.AdaLoRA, {"mask": "free"}, "mask='free' is none of"),
    (rw.AdaLoRA, {"init_std": -1}, "init_std=-1"),
    (rw.TopBlocks, {"blocks": 0}, "blocks=0"),
    (rw.HoulsbyAdapter, {"size": 0}, "size=0: it must be a whole number, 1 or more"),
    (rw.HoulsbyAdapter, {"activation": "swish"}, "activation='swish' is none of ['relu', 'gelu', 'silu']"),
    (rw.LinAdapter, {"init_std": 0}, "init_std=0 must be positive"),
    (rw.AdapterDrop, {"drop": -1}, "drop=-1: it must be a whole number of blocks"),
    (rw.AdapterDrop, {"drop_in_evaluation": 2}, "drop_in_evaluation is for random=True"),
    (rw.PrefixEmbedding, {"prefix": -1}, "prefix=-1: it must be a whole number of vectors"),
    (rw.PrefixEmbedding, {"init": "words"}, "init='words' is none of"),
    (rw.PrefixLayer, {"prefix": 0}, "prefix=0 and infix=0 leave nothing"),
    (rw.PrefixLayer, {"init_std": -1.0}, "init_std=-1.0 must be positive"),
    (rw.AFLoRA, {"scope": "mlp"}, "scope='mlp' is none of ['ffn', 'attention', 'all', 'none']"),
    (rw.AFLoRA, {"signal": "weights"}, "signal='weights' is none of"),
    (rw.AFLoRA, {"freeze_rule": "counts"}, "Did you mean 'count'?"),
    (rw.AFLoRA, {"freeze_batches": 0}, "freeze_batches=0"),
    (rw.AFLoRA, {"init_gate": 0}, "init_gate=0"),
    (rw.AFLoRA, {"beta2": 1}, "beta2=1"),
    (rw.AFLoRA, {"every": "-1 epoch"}, "every='-1 epoch' is no span"),
    (rw.AdaLoRA, {"budget": "0.3"}, "budget='0.3' has no room"),
    (rw.AdaLoRA, {"budget": "1e6"}, "budget='1e6' is no size"),
    (rw.AdaLoRA, {"budget": "3MiB", "ties": "drop"}, 'ties="drop"'),
    (rw.AdaLoRA, {"budget": "3Mi"}, "budget='3Mi' is no size"),
    (rw.AdaLoRA, {"budget": 2.5}, "budget=2.5"),
    (rw.SVDLoRA, {"orthogonality": -0.1}, "orthogonality=-0.1"),
    (rw.SVDLoRA, {"alpha": 0}, "alpha=0"),
    (rw.PrunedLoRA, {"score": "magnitude"}, "score='magnitude' is none of"),
    (rw.PrunedLoRA, {"rank": 6}, "target_rank=8 must be between 1 and rank=6"),
    (rw.LoRA, {"penalty": "cosine", "rank": 1}, "a layer of rank 1 has no pair"),
    (rw.LoRA, {"penalty": "cosine", "rank_pattern": {"query": 1}}, "a layer of rank 1 has no pair"),
    (rw.LoRA, {"penalty": "cosine", "orthogonality": 0}, "orthogonality=0 must be positive"),
    (rw.VeRA, {"rank": 2**14 + 1}, "16384 ranks are the most"),
    (rw.VeRA, {"rank_pattern": {"query": 2**20}}, "16384 ranks are the most"),
    (rw.VeRA, {"seed": -1}, "seed=-1"),
    (rw.VeRA, {"seed": "7"}, "seed='7'"),
    (rw.VeRA, {"init_gate": 0}, "init_gate=0"),
]


@pytest.mark.parametrize(("cls", "settings", "says"), BAD, ids=lambda part: str(part)[:40])
def test_bad_settings_are_refused_when_made(cls, settings, says):
    with pytest.raises(rw.ConfigError) as raised:
        cls(**settings)
    assert says in str(raised.value)


def test_settings_are_frozen_and_keyword_only():
    with pytest.raises(FrozenInstanceError):
        rw.LoRA().rank = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        rw.LoRA(8)  # type: ignore[misc]


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_every_setting_says_what_it_is(cls):
    """A string right behind each field: the documentation, and the help of the command line."""
    for parent in cls.__mro__[:-3]:
        own = [f.name for f in fields(parent) if f.name in vars(parent).get("__annotations__", {})]
        source = inspect.getsource(parent)
        assert all(re.search(rf'^    {n}: .*\n    """', source, re.MULTILINE) for n in own)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1 epoch", rw.epochs(1)), ("2.5 epochs", Epochs(2.5)), (" 3 epochs ", rw.epochs(3))],
)
def test_spans_in_epochs(first, second):
    assert str(Epochs(1)) == "1 epoch" and str(Epochs(2.5)) == "2.5 epochs"
    data = [method_as_dict(rw.AFLoRA(warmup=s)) for s in (first, second)]
    assert method_from_dict(data[0]).controller is not None
    assert data[1]["warmup"] == str(second)


@pytest.mark.parametrize(
    "method",
    [
        rw.LoRA(rank=3, targets=["query"], alpha_pattern={"query": 2.0}),
        rw.AdaLoRA(warmup=5, cooldown=0.25, every="1 epoch", budget=30),
        rw.AFLoRA.paper(scope="all"),
    ],
)
def test_a_method_survives_its_dict(method):
    again = method_from_dict(method_as_dict(method))
    assert method_as_dict(again) == method_as_dict(method) and type(again) is type(method)


def test_unknown_methods_and_settings_name_the_nearest():
    with pytest.raises(rw.ConfigError, match=r"unknown method 'adaLora'.*Did you mean 'adalora'"):
        method_from_dict({"name": "adaLora"})
    with pytest.raises(rw.ConfigError, match=r"lora has no setting 'rnak'.*Did you mean 'rank'"):
        method_from_dict({"name": "lora", "rnak": 3})


def test_scales():
    def scales(method):
        adaptation = rw.adapt(ENCODER.build(), method)
        return {n.rpartition(".")[2]: a.factors().scale for n, a in adaptation.adapters.items()}

    qv = {"targets": ["query", "value"], "also_train": []}
    assert scales(rw.LoRA(rank=4, **qv)) == {"query": 1, "value": 1}
    assert scales(rw.LoRA(rank=4, alpha=8, **qv)) == {"query": 2, "value": 2}
    assert scales(rw.LoRA(rank=4, alpha=8, rank_stabilized=True, **qv)) == {"query": 4, "value": 4}
    assert scales(rw.LoRA(rank=4, rank_stabilized=True, **qv)) == {"query": 2, "value": 2}
    assert scales(rw.LoRA(rank=4, rank_pattern={"query": 8}, alpha_pattern={"value": 6}, alpha=8, **qv)) == {
        "query": 1,
        "value": 1.5,
    }
    assert scales(rw.LoRA(rank=4, rank_pattern={"query": 8}, **qv)) == {"query": 1, "value": 1}
    assert scales(rw.AdaLoRA(rank=4, target_rank=2, alpha=8, **qv)) == {"query": 2, "value": 2}
    assert scales(rw.AFLoRA(rank=4, **qv)) == {"query": 1, "value": 1}


def test_starts():
    torch.manual_seed(0)
    lora = next(iter(rw.adapt(ENCODER.build(), rw.LoRA(rank=32)).adapters.values()))
    assert 0.9 * 32**-0.5 < lora.A.abs().max() <= 32**-0.5 and not lora.B.any()
    normal = next(iter(rw.adapt(ENCODER.build(), rw.LoRA(rank=32, init="normal", init_std=0.5)).adapters.values()))
    assert normal.A.std().item() == pytest.approx(0.5, rel=0.1)
    svd = next(iter(rw.adapt(ENCODER.build(), rw.AdaLoRA(rank=32)).adapters.values()))
    assert svd.P.std().item() == pytest.approx(0.02, rel=0.1) and not svd.lam.any()
    assert svd.Q.std().item() == pytest.approx(0.02, rel=0.1)
    free = next(iter(rw.adapt(ENCODER.build(), rw.AFLoRA(rank=8)).adapters.values()))
    assert 0.9 * (6 / 32) ** 0.5 < free.A.abs().max() <= (6 / 32) ** 0.5
    assert 0.9 * (6 / 8) ** 0.5 < free.B.abs().max() <= (6 / 8) ** 0.5
    assert free.s_d.tolist() == pytest.approx([0.1] * 8) and not free.s_b.any()


# ------------------------------------------------------------------ a schedule meets a run


def attach(method, **run):
    adaptation = rw.adapt(ENCODER.build(), method)
    with adaptation.attached(adamw(adaptation), **run):
        pass
    return adaptation


@pytest.mark.parametrize(
    ("method", "run", "numbers"),
    [
        (rw.AdaLoRA(warmup=60, cooldown=40), {"total_steps": 100}, ["warmup=60", "cooldown=40", "total_steps=100"]),
        (rw.AdaLoRA(warmup=0.5, cooldown=0.5), {"total_steps": 10}, ["warmup=5", "cooldown=5", "total_steps=10"]),
        (rw.AFLoRA.paper(), {"total_steps": 30, "steps_per_epoch": 10}, ["warmup=10", "cooldown=21", "total_steps=30"]),
        (rw.AFLoRA.paper(), {"total_steps": 30}, ["1 epoch", "steps_per_epoch"]),
        (rw.AdaLoRA(every=0.001), {"total_steps": 100}, ["every=0"]),
        (rw.AdaLoRA(), {"total_steps": 0}, ["total_steps=0"]),
        (rw.AdaLoRA(), {"total_steps": 1}, ["total_steps=1"]),
    ],
)
def test_an_impossible_schedule_is_refused_with_its_numbers(method, run, numbers, tmp_path):
    adaptation = rw.adapt(ENCODER.build(), method)
    with (
        pytest.raises(rw.ScheduleError) as raised,
        adaptation.attached(adamw(adaptation), history=tmp_path / "history.jsonl", **run),
    ):
        pass
    assert all(n in str(raised.value) for n in numbers), str(raised.value)
    assert not list(tmp_path.iterdir())
    # and the adaptation is as it was: a run with room can begin
    fine = replace(method, warmup=0.1, cooldown=0.5, every=1)
    adaptation.method = fine
    with adaptation.attached(adamw(adaptation), total_steps=100):
        pass


def test_a_budget_that_cannot_be_is_refused():
    with pytest.raises(rw.ConfigError, match="budget=500 must be between 1 and the 156 ranks"):
        attach(rw.AdaLoRA(budget=500), total_steps=100)


def test_a_scope_that_is_not_among_the_targets_is_refused():
    with pytest.raises(rw.ConfigError, match=r"scope='ffn'.*nothing can freeze"):
        attach(rw.AFLoRA(targets="attention"), total_steps=100)


def test_total_steps_are_needed_by_methods_that_decide():
    with pytest.raises(rw.StateError, match=r"adalora.*total_steps"):
        attach(rw.AdaLoRA())
    attach(rw.LoRA())
    attach(rw.LoRA(), total_steps=10)


def test_the_default_spacing_is_a_two_hundredth_of_the_run():
    assert attach(rw.AdaLoRA(), total_steps=1000).controller.phases.every == 5
    assert attach(rw.AdaLoRA(), total_steps=100).controller.phases.every == 1
    phases = attach(rw.AFLoRA.paper(), total_steps=100, steps_per_epoch=10).controller.phases
    assert (phases.warmup, phases.cooldown, phases.every) == (10, 70, 10)
