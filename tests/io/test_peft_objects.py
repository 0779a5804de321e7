"""PEFT's config objects in place of a method: the layers and the shapes that PEFT itself makes of them."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.vera import VeraLayer
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

import rankwise as rw
import tiny
from contract.models import ARCHITECTURES, BY_NAME, ENCODER, Architecture
from contract.runs import outputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings:UserWarning"),
]
Make = Callable[[], PeftConfig]
CONFIGS: dict[str, Make] = {
    "default": lambda: LoraConfig(),
    "all-linear": lambda: LoraConfig(r=2, target_modules="all-linear"),
    "classifier": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"),
    "one-layer": lambda: LoraConfig(r=2, target_modules=["query", "q_proj", "c_attn", "q"], layers_to_transform=1),
    "pattern": lambda: LoraConfig(r=2, target_modules=r".*\.1\..*(query|q_proj|fc1|SelfAttention\.q)"),
    "exclude": lambda: LoraConfig(r=2, target_modules="all-linear", exclude_modules=r".*\.0\..*"),
    "patterns": lambda: LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=r".*(query|key|q_proj|k_proj|c_attn|c_fc|\.q|\.k)",
        rank_pattern={r"(query|q_proj|c_attn|q)": 2},
        alpha_pattern={"1.attention.self.key": 3, "k_proj": 5},
        use_rslora=True,
    ),
    "vera": lambda: VeraConfig(r=5, projection_prng_key=7, vera_dropout=0.1),
    "adalora": lambda: AdaLoraConfig(init_r=4, target_r=2, tinit=2, tfinal=3, deltaT=2, total_step=20, lora_alpha=6),
}


def adapted_by_peft(architecture: Architecture, make: Make) -> dict[str, tuple[int, float]] | None:
    """Rank and scale of each layer; None where PEFT refuses the config for this model."""
    try:
        model: PeftModel = get_peft_model(architecture.build(), make())
    except ValueError:
        return None
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer | VeraLayer):
            scale = 1.0 if isinstance(layer, VeraLayer) else layer.scaling["default"]
            divisor = float(layer.ranknum["default"] + 1e-5) if isinstance(layer, AdaLoraLayer) else 1.0
            found[name.removeprefix("base_model.model.")] = (layer.r["default"], scale / divisor)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: row.name)
def test_adapts_what_peft_adapts(architecture: Architecture, name: str) -> None:
    theirs = adapted_by_peft(architecture, CONFIGS[name])
    model = architecture.build()
    if theirs is None:
        with pytest.raises(rw.RankwiseError):
            rw.adapt(model, CONFIGS[name]())
        return
    base = outputs(model, architecture.batch())
    adaptation = rw.adapt(model, CONFIGS[name]())
    assert torch.equal(outputs(model, architecture.batch()), base)
    assert adaptation.ranks() == {layer: rank for layer, (rank, _) in theirs.items()}
    scales = {layer: adapter.factors().scale for layer, adapter in adaptation.adapters.items()}
    assert scales == pytest.approx({layer: scale for layer, (_, scale) in theirs.items()}, rel=1e-6)


HEADS: dict[str, Make] = {
    "none": lambda: LoraConfig(r=2),
    "of-the-task": lambda: LoraConfig(r=2, task_type="SEQ_CLS"),
    "named": lambda: LoraConfig(r=2, task_type="SEQ_CLS", modules_to_save=["pooler"]),
}


def distilbert() -> PreTrainedModel:
    config = DistilBertConfig(vocab_size=50, max_position_embeddings=20, n_layers=2, n_heads=2, dim=16, hidden_dim=24)
    return DistilBertForSequenceClassification(config)


def of_distilbert() -> PeftConfig:
    """PEFT's "classifier" is the end of the pre_classifier too."""
    return LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_lin"])


CASES = {name: (ENCODER.build, make) for name, make in HEADS.items()} | {"distilbert": (distilbert, of_distilbert)}


@pytest.mark.parametrize("name", CASES)
def test_trains_in_full_what_peft_trains(name: str) -> None:
    build, make = CASES[name]
    theirs = get_peft_model(build(), make())
    names = {n for n, p in theirs.named_parameters() if p.requires_grad and ".modules_to_save." in n}
    adaptation = rw.adapt(build(), make())
    plain = {n.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for n in names}
    assert set(adaptation.trained) == plain


def test_a_module_to_save_that_is_not_there() -> None:
    with pytest.raises(rw.TargetError, match="also_train='poolr' is no module"):
        rw.adapt(ENCODER.build(), LoraConfig(r=2, target_modules=["query"], modules_to_save=["poolr"]))


def test_one_line_says_what_each_field_became() -> None:
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, use_rslora=True, task_type="SEQ_CLS")
    adaptation = rw.adapt(ENCODER.build(), config)
    note = adaptation.notes[0]
    assert note == (
        "LoraConfig: r=4 is rank=4; lora_alpha=6 is alpha=6; lora_dropout=0.1 is dropout=0.1; use_rslora=True is "
        "rank_stabilized=True; 4 layers; trained in full: ['classifier']"
    )
    assert note in repr(adaptation)
    note = rw.adapt(ENCODER.build(), CONFIGS["adalora"]()).notes[0]
    assert "tinit=2 is warmup=2; tfinal=3 is cooldown=3; deltaT=2 is every=2" in note
    assert "total_step=20 is attached(..., total_steps=20)" in note


REFUSED: dict[str, tuple[Make, str]] = {
    "dora": (lambda: LoraConfig(use_dora=True), "use_dora=True cannot be honoured: DoRA"),
    "bias": (lambda: LoraConfig(bias="all"), "bias='all' cannot be honoured"),
    "start": (lambda: LoraConfig(init_lora_weights="olora"), "init_lora_weights='olora' cannot be honoured"),
    "random": (lambda: LoraConfig(init_lora_weights=False), "starts at the base model"),
    "gaussian": (lambda: LoraConfig(init_lora_weights="gaussian", rank_pattern={"query": 2}), "leave rank_pattern out"),
    "tokens": (lambda: LoraConfig(trainable_token_indices=[1]), "trainable_token_indices=.* cannot be honoured"),
    "replication": (lambda: LoraConfig(layer_replication=[(0, 1)]), "changes the base model"),
    "alpha-pattern": (lambda: AdaLoraConfig(total_step=9, alpha_pattern={"query": 3}), "PEFT's own AdaLoRA ignores"),
    "budget": (lambda: AdaLoraConfig(total_step=9, init_r=4, target_r=6), "a budget only falls"),
    "embedding": (lambda: LoraConfig(target_modules=["query", "word_embeddings"]), "an? Embedding; .* linear layers"),
    "nothing": (lambda: LoraConfig(target_modules=["q_proj"]), "matches no layer"),
    "another-method": (lambda: IA3Config(), "IA3Config cannot be taken over"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_an_error(name: str) -> None:
    make, reason = REFUSED[name]
    model = ENCODER.build()
    modules = dict(model.named_modules())
    with pytest.raises((rw.ConfigError, rw.TargetError), match=reason):
        rw.adapt(model, make())
    assert dict(model.named_modules()) == modules and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("thing", [None, "lora", 5, {"r": 8}, rw.LoRA], ids=repr)
def test_anything_else_is_no_method(thing: object) -> None:
    with pytest.raises(rw.ConfigError, match="is no method"):
        rw.adapt(ENCODER.build(), thing)


def test_gaussian_is_drawn_as_peft_draws_it() -> None:
    adaptation = rw.adapt(BY_NAME["llama-gqa"].build(), LoraConfig(r=5, init_lora_weights="gaussian"))
    assert adaptation.method.init == "normal" and adaptation.method.init_std == 1 / 5  # N(0, (1/r)²)


@pytest.mark.slow
def test_peft_is_not_imported_for_it() -> None:
    """rankwise works where PEFT is not installed. Where it is, transformers imports it for itself."""
    code = "import sys; sys.modules['peft'] = None; import rankwise, rankwise.cli.convert, rankwise.cli.inspect"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=tiny.HANGS)
