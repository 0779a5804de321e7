"""Plans against what really happens: real passes, real runs, real files."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig

import rankwise as rw
import toy
from rankwise.adapter import Method
from rankwise.methods.vera import MOST_RANK
from rankwise.planning.plan import in_words
from rankwise.planning.planner import parse_bytes
from rankwise.planning.trace import _Ledger
from rankwise.planning.weightless import loss_of
from sampled import some

BERT = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=3
)
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=500, architectures=["GPT2LMHeadModel"])
SCHEDULE = {"warmup": 4, "cooldown": 6, "every": 2}
METHODS = [
    rw.LoRA(rank=4),
    rw.LoRA(rank=4, dropout=0.1),
    rw.AdaLoRA(rank=6, target_rank=4, **SCHEDULE),
    rw.AFLoRA(rank=4, **SCHEDULE),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.dropout}")
ROWS, LENGTH, STEPS = 4, 12, 20


def real(config: BertConfig | GPT2Config) -> tuple[nn.Module, str]:
    if isinstance(config, GPT2Config):
        return GPT2LMHeadModel(config), "causal-lm"
    return BertForSequenceClassification(config), "classification"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [BERT, GPT2], ids=["bert", "gpt2"])
@each_method
def test_a_real_pass_holds_what_was_planned(config: BertConfig | GPT2Config, method: Method, precision: str):
    """Byte for byte, counted over the storages of real tensors; and each of the other rows likewise."""
    memory = rw.plan(
        config, method, batch_size=ROWS, sequence_length=LENGTH, total_steps=STEPS, precision=precision
    ).memory
    model, task = real(config)
    adaptation = rw.adapt(model.train(), method)
    loss = loss_of(model, task, ROWS, LENGTH)
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with adaptation.attached(optimizer, STEPS):
        with _Ledger([*model.parameters(), *model.buffers()]) as ledger:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            value.backward()
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        optimizer.step()
        moments = sum(t.nbytes for s in optimizer.state.values() for n, t in s.items() if n != "step")
        state = {} if adaptation.controller is None else adaptation.controller.state_dict()["tensors"]
    assert memory.gradients == gradients
    assert memory.moments == moments
    assert memory.weights == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    assert memory.state == sum(t.nbytes for t in state.values())
    assert memory.copies == sum(t.nbytes for t in adaptation._originals.values())
    assert memory.copies_on_cpu == 0
    assert memory.activations == max(ledger.alive) - gradients


BASELINES = [
    rw.FullFineTuning(),
    rw.TopBlocks(blocks=1),
    rw.BitFit(),
    rw.HoulsbyAdapter(size=4),
    rw.PrefixLayer(prefix=2),
]


@pytest.mark.parametrize("method", [*METHODS, *BASELINES], ids=lambda m: m.name)
def test_a_checkpoint_is_as_large_as_planned(method: Method, tmp_path: Path):
    """The tensors of the adapter's files and of the optimizer's, after the first step."""
    memory = rw.plan(BERT, method, batch_size=ROWS, sequence_length=LENGTH).memory
    model, task = real(BERT)
    adaptation = rw.adapt(model.train(), method)
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with adaptation.attached(optimizer, STEPS):
        loss_of(model, task, ROWS, LENGTH)().backward()
        optimizer.step()
    adaptation.save(tmp_path)
    files = {file.name: sum(t.nbytes for t in load_file(file).values()) for file in tmp_path.glob("*.safetensors")}
    moments = sum(t.nbytes for s in optimizer.state_dict()["state"].values() for n, t in s.items() if n != "step")
    assert memory.adapter_file == files["adapter.safetensors"]
    assert memory.checkpoint == sum(files.values()) + moments


@pytest.mark.parametrize("method", BASELINES, ids=lambda m: m.name)
def test_copies_that_are_kept_by_the_processor_are_not_in_the_peak(method: Method):
    """The device has the model, its gradients and its moments, byte for byte."""
    plan = rw.plan(BERT, method, batch_size=ROWS, sequence_length=LENGTH)
    adaptation = rw.adapt(real(BERT)[0], method)
    model, memory = [*adaptation.model.parameters(), *adaptation.model.buffers()], plan.memory
    assert memory.activations is not None
    assert memory.copies_on_cpu == sum(t.nbytes for t in adaptation._originals.values()) > 0
    trained = sum(p.nbytes for p in adaptation.parameters())
    assert memory.peak == sum(t.nbytes for t in model) + 3 * trained + memory.activations
    assert f", and {in_words(memory.copies_on_cpu)} in the processor's memory" in str(plan)


FORECAST = [
    rw.AdaLoRA(rank=6, target_rank=3, **SCHEDULE),
    rw.AdaLoRA(rank=6, target_rank=3, budget=5, **SCHEDULE),
    rw.AFLoRA(rank=3, scope="all", **SCHEDULE),
    rw.AFLoRA(rank=3, scope="all", freeze_batches=2, **SCHEDULE),
    rw.AFLoRA(rank=3, scope="all", freeze_rule="elementwise_quantile", **SCHEDULE),
    rw.FreezingAdaLoRA(rank=6, target_rank=3, freeze_cooldown=2, freeze_every=1, **SCHEDULE),
    rw.FreezingAdaLoRA(rank=6, target_rank=3, freeze_cooldown=2, freeze_every=1, budget=5, **SCHEDULE),
]


class Blocks(nn.Module):
    """The regression's matrices in repeated blocks, which have roles."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.ModuleDict({"ffn": layer}) for layer in toy.mlp() if isinstance(layer, nn.Linear)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer["ffn"](x))
        return x


@pytest.mark.parametrize("method", FORECAST, ids=repr)
def test_a_run_stays_within_its_forecast(method: Method):
    torch.manual_seed(0)
    course = rw.plan(Blocks(), method, total_steps=STEPS).trainable
    adaptation = rw.adapt(Blocks(), method)
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=1e-2)
    counts = []
    with adaptation.attached(optimizer, STEPS):
        for example in toy.stream(STEPS):
            counts.append(adaptation.count())
            toy.step(adaptation, optimizer, example)
    assert counts[0] == course.start and counts[-1] < course.start
    for step, count in enumerate([*counts, adaptation.count()]):
        told = course.during(step)
        assert told.least <= count <= told.most, f"step {step}: {count} is not in {told}"
    assert course.average == pytest.approx(sum(course.during(step).expected for step in range(STEPS)) / STEPS)
    assert min(course.during(s).least for s in range(STEPS)) <= sum(counts) / STEPS <= course.start


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (rw.AdaLoRA(warmup=60, cooldown=50), "leave no step of total_steps=100"),
        (rw.AFLoRA(warmup=rw.epochs(1)), "steps per epoch is not known"),
    ],
)
def test_impossible_schedules_are_refused(method: Method, reason: str):
    with pytest.raises(rw.ScheduleError, match=reason):
        rw.plan(BERT, method, total_steps=100)


def test_without_steps_a_schedule_is_not_told():
    plan = rw.plan(BERT, rw.AdaLoRA())
    assert plan.trainable.average is None and plan.trainable.end is None
    assert "give total_steps" in str(plan)


STATEFUL = [
    *METHODS,
    rw.AdaLoRA(rank=6, target_rank=4, warmup=1000, cooldown="2 epochs"),
    rw.AFLoRA.paper(),
    rw.FreezingAdaLoRA(cooldown=30),  # of which a fifth of a long run leaves nothing
    rw.SoRA(stages=5),
]


@pytest.mark.parametrize("method", some(STATEFUL, kept=(2, 5, 6)), ids=repr)
def test_bytes_are_counted_without_steps_too(method: Method):
    """Whatever the schedule, and though no one length of run has room for all of them."""
    steps = {"total_steps": 60 if isinstance(method, rw.FreezingAdaLoRA) else 4000, "steps_per_epoch": 1000}
    known, unknown = (rw.plan(BERT, method, batch_size=ROWS, sequence_length=LENGTH, **s) for s in (steps, {}))
    assert unknown.memory == known.memory


def test_a_budget_that_cannot_be_is_refused_without_steps_too():
    with pytest.raises(rw.ConfigError, match="budget=9999 must be between"):
        rw.plan(BERT, rw.AdaLoRA(budget=9999))


def test_a_model_that_is_given_stays_as_it_is():
    model, _ = real(BERT)
    model.eval()
    before = {name: (p, p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    plan = rw.plan(model, rw.LoRA(rank=4), batch_size=ROWS, sequence_length=LENGTH)
    assert plan.memory == rw.plan(BERT, rw.LoRA(rank=4), batch_size=ROWS, sequence_length=LENGTH).memory
    assert not model.training
    for name, p in model.named_parameters():
        assert before[name][0] is p and torch.equal(before[name][1], p) and before[name][2] == p.requires_grad


def test_a_model_without_text_has_no_activations_planned():
    plan = rw.plan(toy.mlp(), rw.LoRA(rank=2, targets=r"\d"))
    assert plan.memory.activations is None
    assert "activations not counted" in str(plan)


@pytest.mark.parametrize("method", some([rw.LoRA(), rw.AdaLoRA(rank=8, target_rank=6)]), ids=lambda m: m.name)
def test_the_largest_rank_is_the_last_that_fits(method: Method):
    settings = {"batch_size": 2, "sequence_length": 8, "total_steps": STEPS}
    rank = 17
    peak = rw.plan(BERT, replace(method, rank=rank), **settings).memory.peak
    rooms = {peak: rank, peak - 1: rank - 1, 10**12: BERT.hidden_size, 1000: None}
    assert {room: rw.plan(BERT, method, device_memory=room, **settings).largest_rank for room in rooms} == rooms
    assert rw.plan(BERT, method, device_memory=peak, **settings).fits
    assert not rw.plan(BERT, method, device_memory=1000, **settings).fits


@pytest.mark.parametrize("given", [5, 64])
def test_a_rank_above_the_layers_sizes_may_be_the_largest(given: int):
    """VeRA's projections may be wider than the layers."""
    settings = {"batch_size": 2, "sequence_length": 8}
    peak = rw.plan(BERT, rw.VeRA(rank=1000), **settings).memory.peak
    rooms = {peak: 1000, peak - 1: 999, 10**12: MOST_RANK, 1000: None}
    assert {r: rw.plan(BERT, rw.VeRA(rank=given), device_memory=r, **settings).largest_rank for r in rooms} == rooms


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device_memory": "24 potatoes"}, "no amount of memory"),
        ({"device_memory": "0GB"}, "no amount of memory"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"optimizer": "lion"}, "'lion' is none of"),
        ({"precision": "fp8"}, "'fp8' is none of"),
        ({"task": "causal"}, "Did you mean 'causal-lm'"),
        ({"task": "seq2seq"}, "a bert model has no head"),
    ],
)
def test_what_cannot_be_planned_is_said(settings: dict[str, object], reason: str):
    with pytest.raises(rw.ConfigError, match=reason):
        rw.plan(BERT, rw.LoRA(), **settings)


def test_a_name_that_is_no_model_is_said():
    with pytest.raises(rw.ConfigError, match="is no model"):
        rw.plan("no/such-model-anywhere", rw.LoRA())


def test_amounts_of_memory():
    assert [parse_bytes(a) for a in (5, "24GB", "24 GiB", "0.5kB")] == [5, 24 * 10**9, 24 * 2**30, 500]


@pytest.mark.parametrize("method", [rw.LoRA(rank=8), rw.AdaLoRA()], ids=lambda m: m.name)
def test_175_billion_parameters_take_seconds(method: Method):
    """Of the processor's time, so that a busy machine does not count."""
    gpt3 = GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048, architectures=["GPT2LMHeadModel"])
    began = time.process_time()
    plan = rw.plan(gpt3, method, batch_size=1, sequence_length=2048, total_steps=10_000)
    assert time.process_time() - began < 5
    assert plan.total == 174_604_259_328


def test_a_printed_plan_shows_the_course():
    text = str(rw.plan(BERT, rw.AdaLoRA(rank=6, target_rank=4), total_steps=200, device_memory="1GB"))
    for told in ("adapted layers", "at the end", "between", "step 0", "█", "peak", "The run fits into 1 GB", "largest"):
        assert told in text
    assert "█" not in str(rw.plan(LlamaConfig(num_hidden_layers=1, hidden_size=64, vocab_size=10), rw.LoRA(rank=2)))
