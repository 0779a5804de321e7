"""torch.compile: one graph, eager's gradients, no compilation for a mask and one for each moment of freezing."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import rankwise as rw
import toy
from rankwise.adapter import LowRank, Method
from sampled import some

STEPS = 24
SHORT: dict[str, Any] = {"warmup": 2, "cooldown": 6, "every": 2}
ADALORA = rw.AdaLoRA(rank=4, target_rank=2, **SHORT)
AFLORA = rw.AFLoRA(rank=3, scope="all", **SHORT)
METHODS = [rw.LoRA(rank=3), ADALORA, AFLORA, rw.VeRA(rank=40)]
by_name = pytest.mark.parametrize("method", some(METHODS, kept=(1, 2)), ids=lambda m: m.name)


class Counting:
    """The backend "aot_eager", counting what it compiles."""

    def __init__(self) -> None:
        self.graphs = 0
        self._compile: Callable[..., Any] = lookup_backend("aot_eager")

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return self._compile(graph, inputs)


@pytest.fixture
def backend() -> Iterator[Counting]:
    """Fresh caches and limits before, and after."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield Counting()
    torch._dynamo.reset()


def test_the_mark_of_a_constant_is_what_torch_puts_there():
    """rankwise.adapter puts it there by itself: torch's own function imports the whole compiler."""
    assert vars(torch.compiler.assume_constant_result(lambda: None)) == vars(LowRank._note_traced)


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **sizes))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()


def shaken(model: nn.Module, method: Method) -> rw.Adaptation:
    """Adapted, and away from the start, where half of the gradients are 0."""
    adaptation = rw.adapt(model, method)
    with torch.no_grad():
        for parameter in adaptation.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return adaptation


def gradients(adaptation: rw.Adaptation, call: Callable[..., Any]) -> list[Tensor]:
    ids = torch.arange(12).view(2, 6)
    call(input_ids=ids).logits.square().mean().backward()
    found = [p.grad for p in adaptation.parameters() if p.grad is not None]
    for parameter in adaptation.parameters():
        parameter.grad = None
    assert len(found) == len(adaptation.parameters())
    return found


def check_one_graph(adaptation: rw.Adaptation, backend: Any, **tolerance: float) -> None:
    compiled = torch.compile(adaptation.model, fullgraph=True, backend=backend)
    for ours, eager in zip(gradients(adaptation, compiled), gradients(adaptation, adaptation.model), strict=True):
        torch.testing.assert_close(ours, eager, **(tolerance or {"rtol": 1e-4, "atol": 1e-7}))


@by_name
def test_one_graph_with_the_gradients_of_eager(method: Method, backend: Counting):
    check_one_graph(shaken(llama(), method), backend)
    assert backend.graphs == 1


@by_name
def test_blocks_of_a_fused_weight_are_one_graph(method: Method, backend: Counting):
    on_blocks = type(method)(**(vars(method) | {"targets": ["c_attn[q,v]"]}))
    check_one_graph(shaken(gpt2(), on_blocks), backend)
    assert backend.graphs == 1


def test_gradient_checkpointing_is_one_graph(backend: Counting):
    adaptation = shaken(llama().train(), AFLORA)
    adaptation.model.config.use_cache = False  # transformers would say so, and a log line breaks the graph
    adaptation.model.activation_checkpointing_enable({"use_reentrant": False})
    adaptation.model.disable_input_require_grads()  # transformers' hook for reentrant checkpoints breaks the graph
    check_one_graph(adaptation, backend)
    assert backend.graphs == 1
    assert all(adapter.traced for adapter in adaptation.adapters.values())


def test_autocast_is_one_graph(backend: Counting):
    with torch.autocast("cpu", torch.bfloat16):
        check_one_graph(shaken(llama(), ADALORA), backend, rtol=0.1, atol=1e-5)
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which inductor imports
@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: m.name)
def test_inductor_gives_the_gradients_of_eager(method: Method, backend: Counting):
    check_one_graph(shaken(llama(), method), "inductor", rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------ while training


def train(
    adaptation: rw.Adaptation, call: nn.Module, *, between: Callable[[], object] = lambda: None, **attached: Any
) -> None:
    optimizer = torch.optim.AdamW(adaptation.parameters(), lr=0.01)
    with adaptation.attached(optimizer, STEPS, **attached):
        for example in toy.stream(STEPS):
            toy.loss_of(call, example).backward()
            optimizer.step()
            optimizer.zero_grad()
            between()


def evaluator(call: nn.Module) -> Callable[[], None]:
    (x, _), *_ = toy.stream(1)

    def evaluate() -> None:
        call.eval()
        with torch.no_grad():
            call(x)
        call.train()

    return evaluate


def compiled_toy(method: Method, backend: Counting, layers: int = 3) -> tuple[rw.Adaptation, nn.Module]:
    adaptation = rw.adapt(toy.mlp(layers=layers), method)
    return adaptation, torch.compile(adaptation.model, fullgraph=True, backend=backend)  # type: ignore[return-value]


def moments(adaptation: rw.Adaptation) -> int:
    return sum(line["event"] == "froze" for line in adaptation.history.lines)


def test_a_mask_that_changes_compiles_nothing(backend: Counting):
    adaptation, compiled = compiled_toy(ADALORA, backend)
    seen = set()
    train(adaptation, compiled, between=lambda: seen.add(tuple(adaptation.ranks().values())))
    assert len(seen) > 3
    assert backend.graphs == 1


def test_compiled_training_decides_as_eager_does(backend: Counting):
    for method in (ADALORA, AFLORA):
        eager = rw.adapt(toy.mlp(), method)
        train(eager, eager.model)
        adaptation, compiled = compiled_toy(method, backend)
        train(adaptation, compiled)
        assert adaptation.ranks() == eager.ranks()
        assert [e.get("frozen") for e in adaptation.history.lines] == [e.get("frozen") for e in eager.history.lines]


def test_each_moment_of_freezing_compiles_once(backend: Counting):
    adaptation, compiled = compiled_toy(rw.AFLoRA(**(vars(AFLORA) | {"freeze_batches": 4})), backend)
    train(adaptation, compiled)
    assert moments(adaptation) >= 3
    assert backend.graphs == 1 + moments(adaptation)
    assert len(adaptation.frozen()) == 6


@pytest.mark.slow
def test_evaluations_between_do_not_reach_the_limit(backend: Counting):
    """Each moment makes a graph for training and one for evaluation, and torch keeps 8 unasked."""
    adaptation, compiled = compiled_toy(rw.AFLoRA(**(vars(AFLORA) | {"freeze_batches": 5})), backend, layers=4)
    evaluate = evaluator(compiled)
    train(adaptation, compiled, between=evaluate, compiled=True)
    assert backend.graphs == 2 * (1 + moments(adaptation)) > 8
    before = backend.graphs
    with adaptation.disabled():
        evaluate()
    assert backend.graphs == before + 1


def test_disabling_compiles_once(backend: Counting):
    adaptation, compiled = compiled_toy(ADALORA, backend)
    (x, _), *_ = toy.stream(1)
    for _ in range(3):
        compiled(x)
        with adaptation.disabled():
            compiled(x)
    assert backend.graphs == 2


def test_compaction_compiles_once(backend: Counting):
    adaptation, compiled = compiled_toy(rw.AdaLoRA(**(vars(ADALORA) | {"compact_at_end_of_budget": True})), backend)
    train(adaptation, compiled)
    assert all(adapter.rank == adaptation.ranks()[name] for name, adapter in adaptation.adapters.items())
    assert backend.graphs == 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch asks for it itself
@pytest.mark.slow
def test_layers_compiled_on_their_own_share_a_larger_room(backend: Counting):
    """Here one function is compiled anew for each layer and each state of it."""
    model = toy.mlp(layers=6)
    adaptation = rw.adapt(model, rw.AFLoRA(**(vars(AFLORA) | {"freeze_batches": 5})))
    for adapter in adaptation.adapters.values():
        adapter.compile(fullgraph=True, backend=backend)
    train(adaptation, model, between=evaluator(model))
    assert backend.graphs > 8
    assert moments(adaptation) >= 3


# ------------------------------------------------------------------ too many moments

MANY = rw.AFLoRA(**(vars(AFLORA) | {"every": 1}))  # up to 16 moments, of 16 projections
refused = pytest.raises(rw.ScheduleError, match=r"may freeze at 16 moments.* set freeze_batches=6 or fewer")


def attach(adaptation: rw.Adaptation, **attached: Any) -> None:
    optimizer = torch.optim.AdamW(adaptation.parameters())
    with adaptation.attached(optimizer, STEPS, **attached):
        raise AssertionError("attached")


def test_a_model_compiled_in_place_is_refused_when_attached(backend: Counting):
    adaptation = rw.adapt(toy.mlp(layers=8), MANY)
    adaptation.model.compile(backend=backend)
    with refused:
        attach(adaptation)


def test_a_compiled_part_is_refused_when_attached(backend: Counting):
    model = nn.Sequential(torch.compile(toy.mlp(layers=8), backend=backend))
    with refused:
        attach(rw.adapt(model, MANY))


def test_who_is_told_refuses_when_attached():
    with refused:
        attach(rw.adapt(toy.mlp(layers=8), MANY), compiled=True)


@pytest.mark.slow
def test_an_unseen_wrapper_is_refused_at_the_first_step(backend: Counting):
    adaptation, compiled = compiled_toy(MANY, backend, layers=8)
    before = [p.detach().clone() for p in adaptation.parameters()]
    with refused:
        train(adaptation, compiled)
    assert all(torch.equal(a, b) for a, b in zip(before, adaptation.parameters(), strict=True))
    assert torch._dynamo.config.recompile_limit == 8


@pytest.mark.slow
def test_few_projections_cannot_freeze_often(backend: Counting):
    adaptation = rw.adapt(toy.mlp(layers=3), MANY)  # 6 projections, each moment freezes one at least
    train(adaptation, torch.compile(adaptation.model, backend=backend), compiled=True)
    assert backend.graphs == 1 + moments(adaptation)


def test_the_wrapper_itself_can_be_adapted(backend: Counting):
    plain = toy.mlp()
    compiled = torch.compile(plain, fullgraph=True, backend=backend)
    adaptation = rw.adapt(compiled, ADALORA)
    assert adaptation.model is plain
    assert not any("_orig_mod" in name for name in adaptation.adapters)
    train(adaptation, compiled)
    assert backend.graphs == 1


def compiling_trainer(method: Method, folder: Any) -> tuple[rw.Adaptation, Trainer]:
    ids = torch.randint(3, 40, (8, 6))
    adaptation = rw.adapt(llama(), method)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=10,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return adaptation, Trainer(
        adaptation.model, arguments, train_dataset=rows, callbacks=[rw.AdaptationCallback(adaptation)]
    )


@pytest.mark.slow
def test_a_trainer_that_compiles_is_seen_when_it_attaches(tmp_path: Any, backend: Counting):
    _, trainer = compiling_trainer(rw.AFLoRA(scope="all", warmup=1, cooldown=1, every=1), tmp_path)
    with pytest.raises(rw.ScheduleError, match="freeze_batches=6 or fewer"):
        trainer.train()
    method = rw.AFLoRA(scope="all", warmup=1, cooldown=1, every=1, freeze_batches=2)
    adaptation, trainer = compiling_trainer(method, tmp_path)
    trainer.train()
    assert moments(adaptation) == 2
