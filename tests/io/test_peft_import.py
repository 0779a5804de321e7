"""Folders that PEFT trained and saved: the same logits here, to be trained on, saved natively, and merged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoraConfig, PeftConfig, VeraConfig
from peft_runs import saved_by_peft

import rankwise as rw
from contract.models import BY_NAME, ENCODER, Architecture
from contract.runs import outputs, train
from rankwise.io.sources import opened

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),
]
QV = ["query", "value"]
ADALORA = {"init_r": 4, "target_r": 2, "lora_alpha": 6, "target_modules": ["query", "value", "dense"]}

Make = Callable[[], PeftConfig]  # PEFT writes into the configs that it is given
LORA: dict[str, tuple[str, Make]] = {
    "plain": ("bert", lambda: LoraConfig(r=4, lora_alpha=8, target_modules=QV)),
    "no-targets": ("llama-gqa", lambda: LoraConfig(r=4, lora_alpha=3)),
    "rslora": ("bert", lambda: LoraConfig(r=4, lora_alpha=8, target_modules=QV, use_rslora=True, lora_dropout=0.1)),
    "expression": ("bert", lambda: LoraConfig(r=2, target_modules=r".*layer\.1\.attention\.self\.(query|key)")),
    "head": ("bert", lambda: LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")),
    "pooler": ("bert", lambda: LoraConfig(r=2, target_modules=QV, modules_to_save=["pooler", "classifier"])),
    "one-layer": ("bert", lambda: LoraConfig(r=2, target_modules=QV, layers_to_transform=[1], layers_pattern="layer")),
    "gaussian": ("bert", lambda: LoraConfig(r=2, target_modules=QV, init_lora_weights="gaussian")),
    "random": ("bert", lambda: LoraConfig(r=2, target_modules=QV, init_lora_weights=False)),
    "conv1d": ("gpt2", lambda: LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "conv1d-unsaid": ("gpt2-classifier", lambda: LoraConfig(r=3, target_modules=["c_attn"], task_type="SEQ_CLS")),
    "two-stacks": ("t5", lambda: LoraConfig(r=3, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")),
    "patterns": (
        "bert",
        lambda: LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=[*QV, "dense"],
            rank_pattern={"^bert.encoder.layer.0.attention.self.query": 1, "self.query": 2, r"output\.(dense|x)": 3},
            alpha_pattern={"value": 5, r"layer\.1\..*\.value": 7, "bert.encoder.layer.1.output.dense": 1},
        ),
    ),
    "patterns-rslora": (
        "bert",
        lambda: LoraConfig(
            r=4, target_modules=QV, rank_pattern={"query": 1}, alpha_pattern={"value": 5}, use_rslora=True
        ),
    ),
}
PRUNED: dict[str, tuple[Make, int]] = {  # and for how many steps
    "finished": (lambda: AdaLoraConfig(**ADALORA, tinit=1, tfinal=3, deltaT=1, total_step=8), 8),
    "in-between": (lambda: AdaLoraConfig(**ADALORA, tinit=1, tfinal=3, deltaT=2, total_step=10), 6),
    "unpruned": (lambda: AdaLoraConfig(**ADALORA, tinit=1, tfinal=3, deltaT=50, total_step=20, task_type="SEQ_CLS"), 3),
}


def check(architecture: Architecture, folder: Path, wanted: torch.Tensor, tmp_path: Path) -> rw.Adaptation:
    """The logits are PEFT's; then training, saving, loading and merging work as after `adapt`."""
    model, batch = architecture.build(), architecture.batch()
    base = outputs(model, batch)
    adaptation = rw.load(model, folder)
    torch.testing.assert_close(outputs(model, batch), wanted, rtol=1e-6, atol=1e-6)
    assert (wanted - base).abs().max() > 1e-5  # there was something to load
    with adaptation.disabled():
        assert torch.equal(outputs(model, batch), base)
    train(adaptation, batch)
    assert (outputs(model, batch) - wanted).abs().max() > 1e-4
    adaptation.save(tmp_path / "native")
    again = architecture.build()
    rw.load(again, tmp_path / "native")
    assert torch.equal(outputs(again, batch), outputs(model, batch))
    trained = outputs(model, batch)
    torch.testing.assert_close(outputs(adaptation.merge(), batch), trained, rtol=1e-4, atol=1e-5)
    return rw.load(architecture.build(), folder)


@pytest.mark.parametrize("name", LORA)
def test_lora(name: str, tmp_path: Path) -> None:
    architecture, config = BY_NAME[LORA[name][0]], LORA[name][1]()
    wanted = saved_by_peft(architecture, config, tmp_path / "peft")
    adaptation = check(architecture, tmp_path / "peft", wanted, tmp_path)
    assert adaptation.method.name == "lora"
    heads = {"head": ["classifier"], "pooler": ["bert.pooler.dense", "classifier"], "conv1d-unsaid": ["score"]}
    assert {n.rpartition(".")[0] for n in adaptation.trained} == set(heads.get(name, []))


@pytest.mark.parametrize("name", PRUNED)
def test_adalora(name: str, tmp_path: Path) -> None:
    make, steps = PRUNED[name]
    wanted = saved_by_peft(ENCODER, make(), tmp_path / "peft", steps)
    adaptation = check(ENCODER, tmp_path / "peft", wanted, tmp_path)
    marks = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["rank_pattern"]
    if name == "unpruned":
        assert marks is None and set(adaptation.ranks().values()) == {4}
    else:
        assert adaptation.ranks() == {key.removesuffix(".lora_E"): sum(mask) for key, mask in marks.items()}
        assert len(set(adaptation.ranks().values())) > 1
    model = ENCODER.build()
    as_lora = rw.load(model, tmp_path / "peft", method="lora")
    torch.testing.assert_close(outputs(model, ENCODER.batch()), wanted, rtol=1e-6, atol=1e-6)
    assert as_lora.ranks() == {layer: rank for layer, rank in adaptation.ranks().items() if rank}
    settings = {"rank": 4, "target_rank": 2, "cooldown": 3, "orthogonality": 0.5, "beta1": 0.85}
    assert {name: vars(adaptation.method)[name] for name in settings} == settings


VERA: dict[str, tuple[str, Make]] = {
    "saved": ("bert", lambda: VeraConfig(r=40, target_modules=[*QV, "dense"], projection_prng_key=5, d_initial=0.5)),
    "seed": ("bert", lambda: VeraConfig(r=6, target_modules=[*QV, "dense"], save_projection=False)),
    "conv1d": ("gpt2", lambda: VeraConfig(r=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "head": ("bert", lambda: VeraConfig(r=6, target_modules=QV, task_type="SEQ_CLS")),
}


@pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A:UserWarning")
@pytest.mark.parametrize("name", VERA)
def test_vera(name: str, tmp_path: Path) -> None:
    architecture, config = BY_NAME[VERA[name][0]], VERA[name][1]()
    wanted = saved_by_peft(architecture, config, tmp_path / "peft")
    assert check(architecture, tmp_path / "peft", wanted, tmp_path).method.name == "vera"
    with pytest.raises(rw.FolderError, match="how wide"):
        opened(tmp_path / "peft", "lora")
    model = architecture.build()
    rw.load(model, tmp_path / "peft", method="lora")
    torch.testing.assert_close(outputs(model, architecture.batch()), wanted, rtol=1e-5, atol=1e-6)


def test_a_folder_of_transformers_own(tmp_path: Path) -> None:
    """`model.add_adapter` and `model.save_pretrained`, without a PeftModel."""
    model = ENCODER.build()
    model.add_adapter(LoraConfig(r=4, target_modules=QV, init_lora_weights=False))
    model.save_pretrained(tmp_path)
    mine = ENCODER.build()
    rw.load(mine, tmp_path)
    torch.testing.assert_close(outputs(mine, ENCODER.batch()), outputs(model, ENCODER.batch()), rtol=1e-6, atol=1e-6)


REFUSED: dict[str, tuple[Make, str]] = {
    "dora": (lambda: LoraConfig(target_modules=QV, use_dora=True), "DoRA"),
    "bias": (lambda: LoraConfig(target_modules=QV, bias="lora_only"), "bias"),
    "bias-of-b": (lambda: LoraConfig(target_modules=QV, lora_bias=True), "bias"),
    "embedding": (lambda: LoraConfig(target_modules=[*QV, "word_embeddings"]), "adapts linear layers"),
    "tokens": (lambda: LoraConfig(target_modules=QV, trainable_token_indices=[1, 2]), "rows of an embedding"),
    "pissa": (lambda: LoraConfig(target_modules=QV, init_lora_weights="pissa"), "changed the base weights"),
    "parameters": (
        lambda: LoraConfig(target_parameters=["query.weight"], target_modules=["value"]),
        "does not hold|cannot be honoured|cannot be represented",
    ),
    "no-alpha": (lambda: AdaLoraConfig(**ADALORA | {"lora_alpha": 0}, total_step=8), "scales by a rank"),
    "another-method": (lambda: LoHaConfig(target_modules=QV), "LOHA.*cannot be read"),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:All adapters have been loaded:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    saved_by_peft(ENCODER, make(), tmp_path)
    model = ENCODER.build()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(rw.FolderError, match=reason):
        rw.load(model, tmp_path)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_another_model_is_refused(tmp_path: Path) -> None:
    saved_by_peft(ENCODER, LoraConfig(target_modules=QV), tmp_path)
    with pytest.raises(rw.FolderError, match="made for another architecture"):
        rw.load(BY_NAME["llama-gqa"].build(), tmp_path)


def test_a_resized_vocabulary_is_refused(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = ENCODER.build()
    peft_model = get_peft_model(model, LoraConfig(target_modules=QV))
    peft_model.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(rw.FolderError, match="vocabulary"):
        rw.load(ENCODER.build(), tmp_path)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("ties", [False, True], ids=["apart", "tied"])
def test_what_the_model_ties(ties: bool, tmp_path: Path) -> None:
    """PEFT trains a copy of tied embeddings, unless it is told to keep them tied."""
    model = BY_NAME["qwen2"]
    given = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": ties}
    expected = saved_by_peft(model, LoraConfig(r=2, **given), tmp_path / "lora")
    if not ties:
        message = r"model.embed_tokens.weight' trained apart from 'lm_head.weight'"
        with pytest.raises(rw.FolderError, match=message):
            rw.load(model.build(), tmp_path / "lora")
        with pytest.raises(rw.TargetError, match=r"ties one of them to lm_head.weight.*ensure_weight_tying"):
            rw.adapt(model.build(), LoraConfig(r=2, **given))
        return
    adaptation = rw.load(model.build(), tmp_path / "lora")
    torch.testing.assert_close(outputs(adaptation.model, model.batch()), expected, rtol=1e-5, atol=1e-5)
    assert list(rw.adapt(model.build(), LoraConfig(r=2, **given)).trained) == ["model.embed_tokens.weight"]


def test_more_ranks_than_a_layer_has(tmp_path: Path) -> None:
    """PEFT does not mind: a rank of 4 on an output of 3."""
    given = {"r": 4, "target_modules": ["query", "classifier"]}
    expected = saved_by_peft(ENCODER, LoraConfig(**given), tmp_path / "lora")
    adaptation = rw.load(ENCODER.build(), tmp_path / "lora")
    torch.testing.assert_close(outputs(adaptation.model, ENCODER.batch()), expected, rtol=1e-5, atol=1e-5)
    adaptation.save(tmp_path / "native")
    again = rw.load(ENCODER.build(), tmp_path / "native")
    torch.testing.assert_close(outputs(again.model, ENCODER.batch()), expected, rtol=1e-5, atol=1e-5)
    assert rw.adapt(ENCODER.build(), LoraConfig(**given)).ranks() == adaptation.ranks()
    with pytest.raises(rw.TargetError, match="rank=4 is above the largest possible rank 3 of classifier"):
        rw.adapt(ENCODER.build(), rw.LoRA(rank=4, targets=["query", "classifier"], also_train=[]))
