"""The bank while it runs: adding, removing, replacing, generating; and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SwitchTransformersConfig, SwitchTransformersEncoderModel, XLNetConfig, XLNetModel

import rankwise as rw
from contract.methods import BY_NAME
from contract.models import BY_NAME as MODELS
from contract.models import ENCODER, Architecture
from contract.runs import outputs, train, trained

LLAMA, BART = MODELS["llama-gqa"], MODELS["bart"]


def filled(
    architecture: Architecture = ENCODER, count: int = 3, **settings: Any
) -> tuple[rw.Bank, list[rw.Adaptation]]:
    """A bank of the LoRAs "0", "1", ... and their adaptations, each on a model of its own."""
    bank, adaptations = rw.Bank(architecture.build()), []
    for seed in range(count):
        torch.manual_seed(seed)
        adaptations.append(trained(architecture, rw.LoRA(rank=2 + seed, alpha=8, **settings)))
        bank.add(str(seed), adaptations[-1])
    return bank, adaptations


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_adding_removing_and_replacing_inside_a_block():
    bank, adaptations = filled()
    batch = ENCODER.batch()
    with bank.rows(["0", None]):
        before = outputs(bank.model, batch)
        with pytest.raises(rw.StateError, match="used by the rows"):
            bank.remove("0")
        bank.remove("1")
        bank.add("new", adaptations[1])
        assert torch.equal(outputs(bank.model, batch), before)
        bank.replace("0", adaptations[2])
        after = outputs(bank.model, batch)
    torch.testing.assert_close(after[0], outputs(adaptations[2].model, batch)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(after[1], before[1])
    assert bank.names == ["0", "2", "new"]


def test_a_block_in_a_block_and_an_error_in_one():
    bank, _ = filled()
    batch = ENCODER.batch()
    base = outputs(bank.model, batch)
    with bank.rows(["0", "1"]):
        before = outputs(bank.model, batch)
        with bank.rows(["2", "2"]):
            assert not torch.equal(outputs(bank.model, batch), before)
        assert torch.equal(outputs(bank.model, batch), before)
    with pytest.raises(ZeroDivisionError), bank.rows(["0", "1"]):
        raise ZeroDivisionError
    assert torch.equal(outputs(bank.model, batch), base)


def test_the_model_keeps_no_trace():
    model = ENCODER.build()
    modules, state = dict(model.named_modules()), {n: t.clone() for n, t in model.state_dict().items()}
    assert hooks(model) == 0
    bank = rw.Bank(model)
    bank.add("a", trained(ENCODER, rw.LoRA(rank=2)))
    assert hooks(model) > 10
    with bank.rows(["a", None]):
        outputs(model, ENCODER.batch())
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    bank.remove("a")
    assert hooks(model) == 1
    bank.close()
    assert hooks(model) == 0 and dict(model.named_modules()) == modules
    rw.adapt(model, rw.LoRA(rank=2))


def test_rows_without_an_adapter_are_the_base_bit_for_bit():
    bank, _ = filled(LLAMA)
    batch = LLAMA.batch()
    base = outputs(LLAMA.build(), batch)
    for names in (["0", None], [None, "1"], [None, None]):
        with bank.rows(names):
            mixed = outputs(bank.model, batch)
        for row, name in enumerate(names):
            assert torch.equal(mixed[row], base[row]) == (name is None)


@pytest.mark.parametrize("mode", ["model", "autocast"])
def test_bfloat16(mode: str):
    bank, adaptations = filled(LLAMA)
    batch, names = LLAMA.batch(), ["0", "1"]
    models = [a.model for a in adaptations]
    if mode == "model":
        for model in (bank.model, *models):
            model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        alone = torch.stack([outputs(models[i], batch)[i] for i in range(2)])
        with bank.rows(names):
            mixed = outputs(bank.model, batch)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), alone.float(), rtol=0.05, atol=0.05)


# ------------------------------------------------------------------ generating


GREEDY = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}


@pytest.mark.parametrize("architecture", [LLAMA, MODELS["gpt2"], BART, MODELS["t5"]], ids=lambda a: a.name)
@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=["greedy", "beams", "several"]
)
def test_generate_gives_each_row_what_its_adapter_alone_gives(architecture: Architecture, settings: dict[str, int]):
    bank, adaptations = filled(architecture)
    ids = architecture.batch()["input_ids"]
    names, given = ["1", "2", None, "0"], {"input_ids": torch.cat([ids, ids.flip(1)]), **GREEDY, **settings}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    copies = settings.get("num_beams", 1)
    with bank.rows(names, copies=copies):
        mixed = bank.model.eval().generate(**given)
    per_row = settings.get("num_return_sequences", 1)
    for row, name in enumerate(names):
        model = architecture.build() if name is None else adaptations[int(name)].model
        alone = model.eval().generate(**given)
        mine = slice(row * per_row, (row + 1) * per_row)
        assert torch.equal(mixed[mine], alone[mine])
    assert len({tuple(tokens.tolist()) for tokens in mixed}) > 1


def test_copies_of_rows_have_to_be_said():
    bank, _ = filled(LLAMA)
    ids = LLAMA.batch()["input_ids"]
    with bank.rows(["0", "1"]), pytest.raises(rw.StateError, match=r"6 rows.*names 2.*copies="):
        bank.model.generate(ids, **GREEDY, num_beams=3)


# ------------------------------------------------------------------ heads


def test_each_row_takes_the_head_of_its_adapter():
    """Rows of adapters that trained a head have theirs; a row of one that did not has the base's."""
    bank, (first, second) = filled(count=2)
    bank.add("headless", trained(ENCODER, rw.LoRA(rank=2, also_train=())))
    batch = ENCODER.batch()
    names = ["0", "1"]
    with bank.rows(names):
        mixed = outputs(bank.model, batch)
    alone = [outputs(a.model, batch)[i] for i, a in enumerate((first, second))]
    torch.testing.assert_close(mixed, torch.stack(alone), rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # what the adapters share now are their heads
        for adaptation in (first, second):
            for adapter in adaptation.adapters.values():
                adapter.B.zero_()
    seen: list[Tensor] = []
    handle = bank.model.classifier.register_forward_hook(lambda _m, given, y: seen.append(given[0]))
    with bank.rows(["1", "headless"]):
        logits = outputs(bank.model, batch)
    handle.remove()
    torch.testing.assert_close(logits[0], second.model.classifier(seen[0][0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[1], ENCODER.build().classifier(seen[0][1]), rtol=1e-5, atol=1e-5)


def test_heads_have_no_sum_and_can_be_named(tmp_path: Path):
    bank, (first, _) = filled(count=2)
    with pytest.raises(rw.ConfigError, match="trained_of"):
        bank.combine("sum", {"0": 1.0, "1": 1.0})
    bank.combine("same", {"0": 1.0}, trained_of="0")
    bank.save("same", tmp_path / "same")
    loaded = rw.load(ENCODER.build(), tmp_path / "same")
    batch = ENCODER.batch()
    torch.testing.assert_close(outputs(loaded.model, batch), outputs(first.model, batch), rtol=1e-5, atol=1e-5)
    assert list(loaded.trained) == list(first.trained)


def test_what_no_row_can_have_for_itself_is_refused():
    llama = trained(LLAMA, rw.LoRA(rank=2, also_train=["input_layernorm"]))  # of a kind that only this model knows
    with pytest.raises(rw.StateError, match="LlamaRMSNorm"):
        rw.Bank(LLAMA.build()).add("norms", llama)
    tied = trained(MODELS["qwen2"], rw.LoRA(rank=2, also_train=["embed_tokens"]))
    bank = rw.Bank(MODELS["qwen2"].build())
    with pytest.raises(rw.StateError, match="several modules"):
        bank.add("tied", tied)
    assert bank.names == [] and hooks(bank.model) == 1


# ------------------------------------------------------------------ refusals


def test_names_and_numbers_that_do_not_fit():
    bank, adaptations = filled()
    batch = ENCODER.batch()
    for names, message in ((["0", "3"], "no adapter '3'"), ("0", "give a list"), ([], "give a list")):
        with pytest.raises(rw.ConfigError, match=message), bank.rows(names):
            pass
    with pytest.raises(rw.ConfigError, match="copies=0"), bank.rows(["0", "1"], copies=0):
        pass
    for names in (["0"], ["0", "1", None], ["0", "0", "0"], [None]):
        with bank.rows(names), pytest.raises(rw.StateError, match=f"2 rows, and bank.rows names {len(names)}"):
            outputs(bank.model, batch)
    with pytest.raises(rw.ConfigError, match="taken"):
        bank.add("0", adaptations[0])
    for call in (bank.remove, lambda n: bank.replace(n, adaptations[0]), lambda n: bank.save(n, "x")):
        with pytest.raises(rw.ConfigError, match="no adapter 'new'"):
            call("new")
    for weights, message in (({}, "is empty"), ({"0": float("nan")}, "finite"), ({"new": 1.0}, "no adapter 'new'")):
        with pytest.raises(rw.ConfigError, match=message):
            bank.combine("sum", weights)


def test_adapters_that_do_not_fit_leave_the_bank_as_it_was(tmp_path: Path):
    bank, _ = filled(count=1)
    trained(LLAMA, rw.LoRA(rank=2)).save(tmp_path / "llama")
    with pytest.raises(rw.FolderError, match="another architecture"):
        bank.add("llama", tmp_path / "llama")
    with pytest.raises(rw.StateError, match="has not"):
        bank.replace("0", trained(LLAMA, rw.LoRA(rank=2)))
    with pytest.raises(rw.FolderError, match=r"no rankwise adapter"):
        bank.add("nothing", tmp_path)
    gone = trained(ENCODER, rw.LoRA(rank=2))
    gone.merge()
    with pytest.raises(rw.StateError, match="merged or taken out"):
        bank.add("gone", gone)
    assert bank.names == ["0"]
    with bank.rows(["0", None]):
        outputs(bank.model, ENCODER.batch())


def test_an_adapter_whose_dropped_ranks_grew_back_is_not_finished(tmp_path: Path):
    adaptation = rw.adapt(ENCODER.build(), BY_NAME["adalora"].method)
    train(adaptation, ENCODER.batch())
    adapter = next(a for a in adaptation.adapters.values() if not a.live.all())
    with torch.no_grad():
        adapter.lam[~adapter.live] = 0.5
    bank = rw.Bank(ENCODER.build())
    with pytest.raises(rw.StateError, match="grown back"):
        bank.add("a", adaptation)
    adaptation.compact()
    bank.add("a", adaptation)


def test_models_that_cannot_have_a_bank():
    model = ENCODER.build()
    adaptation = rw.adapt(model, rw.LoRA(rank=2))
    with pytest.raises(rw.StateError, match="adapted"):
        rw.Bank(model)
    adaptation.undo()
    bank = rw.Bank(model)
    bank.add("a", trained(ENCODER, rw.LoRA(rank=2)))
    rw.adapt(model, rw.LoRA(rank=2))
    with pytest.raises(rw.StateError, match="adapted"), bank.rows(["a", "a"]):
        pass


def test_a_model_with_tokens_before_rows_is_refused():
    sizes = {"vocab_size": 30, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    with pytest.raises(rw.StateError, match="tokens before rows"):
        rw.Bank(XLNetModel(XLNetConfig(**sizes)))


def test_a_layer_that_does_not_see_the_rows_is_refused():
    deberta = MODELS["deberta-v2"]
    adaptation = trained(deberta, rw.LoRA(rank=2))
    bank, batch = rw.Bank(deberta.build()), deberta.batch()
    bank.add("a", adaptation)
    with bank.rows(["a", None]), pytest.raises(rw.StateError, match=r"pos_\w+_proj was given 1 rows"):
        outputs(bank.model, batch)
    with bank.rows(["a", "a"]):
        torch.testing.assert_close(outputs(bank.model, batch), outputs(adaptation.model, batch), rtol=1e-5, atol=1e-5)


def test_experts_are_given_tokens_and_no_rows():
    """How many a router sends to an expert may divide by the rows all the same, and would be taken for them."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2}
    config = SwitchTransformersConfig(**sizes, num_experts=2, num_sparse_encoder_layers=1, expert_capacity=64)
    model, other = SwitchTransformersEncoderModel(config).eval(), SwitchTransformersEncoderModel(config).eval()
    other.load_state_dict(model.state_dict())
    adaptation = rw.adapt(other, rw.LoRA(rank=2, targets=["wi"]))
    for adapter in adaptation.adapters.values():
        torch.nn.init.normal_(adapter.B)
    bank, ids = rw.Bank(model), torch.randint(1, 30, (2, 6))
    bank.add("a", adaptation)
    with bank.rows(["a", None]), pytest.raises(rw.StateError, match=r"experts.expert_\d.wi was given .* by a router"):
        model(input_ids=ids)
    with bank.rows(["a", "a"]):
        together = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(together, other(input_ids=ids).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_ranks_of_layers_whose_names_end_alike_are_saved_as_they_are(tmp_path: Path):
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"fc": nn.Linear(8, 8), "enc": nn.ModuleDict({"fc": nn.Linear(8, 8)})})

    adaptation = rw.adapt(build(), rw.LoRA(rank=2, rank_pattern={"enc.fc": 4}))
    bank = rw.Bank(build())
    bank.add("a", adaptation)
    bank.save("a", tmp_path / "a")
    assert rw.load(build(), tmp_path / "a").ranks() == {"fc": 2, "enc.fc": 4}
