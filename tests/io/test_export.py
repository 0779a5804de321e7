"""Plain LoRA folders: what they hold, and that stock PEFT and transformers read in them what was trained."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaForCausalLM, PreTrainedModel

import rankwise as rw
from contract.methods import BY_NAME as METHODS
from contract.models import BY_NAME as MODELS
from contract.runs import outputs, peft_reads, trained, transformers_reads
from rankwise.io import peft_format
from rankwise.io.peft_format import CARD, CONFIG, WEIGHTS
from rankwise.updates import updates

READERS: list[Callable[..., Any]] = [peft_reads, transformers_reads]
ADALORA = METHODS["adalora"].method
each_layout = pytest.mark.parametrize("layout", ["portable", "compact"])


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return content


def front_matter(folder: Path) -> dict[str, Any]:
    _, front, _ = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)
    content: dict[str, Any] = yaml.safe_load(front)
    return content


def pruned(architecture: str = "llama-gqa", **changes: Any) -> rw.Adaptation:
    """Trained, with layers of different ranks, the first of which has none."""
    adaptation = trained(MODELS[architecture], replace(ADALORA, **changes))
    first = next(iter(adaptation.adapters.values()))
    first.live.fill_(False)
    with torch.no_grad():
        first.lam.zero_()
    assert len(set(adaptation.ranks().values())) > 2
    return adaptation


def assert_read_as(folder: Path, adaptation: rw.Adaptation, architecture: str) -> None:
    batch = MODELS[architecture].batch()
    for read in READERS:
        got = outputs(read(MODELS[architecture].build(), folder), batch)
        torch.testing.assert_close(got, outputs(adaptation.model, batch), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ layouts


def test_portable_has_one_rank_and_zeros_where_a_layer_has_less(tmp_path: Path) -> None:
    adaptation = pruned()
    exported = adaptation.export(tmp_path / "lora")
    config, pairs = config_of(tmp_path / "lora"), peft_format.read(tmp_path / "lora").pairs()
    assert (config["r"], config["lora_alpha"], exported.rank) == (8, 8, 8)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert pairs.keys() == adaptation.adapters.keys()
    for path, rank in adaptation.ranks().items():
        assert pairs[path].down.shape[0] == pairs[path].up.shape[1] == 8
        assert not pairs[path].down[rank:].any() and not pairs[path].up[:, rank:].any()
        assert bool(pairs[path].up.any()) == (rank > 0)
    assert_read_as(tmp_path / "lora", adaptation, "llama-gqa")


def test_compact_has_true_ranks_and_leaves_out_layers_without_one(tmp_path: Path) -> None:
    adaptation = pruned()
    exported = adaptation.export(tmp_path / "lora", layout="compact")
    config, pairs = config_of(tmp_path / "lora"), peft_format.read(tmp_path / "lora").pairs()
    live = {path: rank for path, rank in adaptation.ranks().items() if rank}
    assert {path: pair.rank for path, pair in pairs.items()} == live and len(live) < len(adaptation.adapters)
    assert config["rank_pattern"] == config["alpha_pattern"] == live
    assert config["r"] == config["lora_alpha"] == exported.rank == max(live.values())
    assert {path for path in adaptation.adapters if path.endswith(tuple(config["target_modules"]))} == live.keys()
    assert_read_as(tmp_path / "lora", adaptation, "llama-gqa")


def test_compact_needs_no_patterns_for_equal_ranks(tmp_path: Path) -> None:
    trained(MODELS["llama-gqa"], rw.LoRA(rank=4)).export(tmp_path / "lora", layout="compact")
    config = config_of(tmp_path / "lora")
    assert config["rank_pattern"] == {} and config["r"] == 4
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize(("rank", "expected"), [(1, 1), (3, 8), (8, 8), (9, 16), (17, 32)])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(rank: int, expected: int, tmp_path: Path) -> None:
    adaptation = rw.adapt(MODELS["llama-gqa"].build(), rw.LoRA(rank=rank, targets=["q_proj", "down_proj"]))
    assert adaptation.export(tmp_path / "lora").rank == expected == config_of(tmp_path / "lora")["r"]


def test_the_rank_can_be_given(tmp_path: Path) -> None:
    adaptation = trained(MODELS["bert"], ADALORA)
    exported = adaptation.export(tmp_path / "lora", rank=5)
    assert exported.rank == 5 and any("vLLM has no --max-lora-rank 5" in note for note in exported.notes)
    with pytest.raises(rw.ConfigError, match="rank=3 is below the 4 ranks that live in bert"):
        adaptation.export(tmp_path / "lora", rank=3)
    assert config_of(tmp_path / "lora")["r"] == 5


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    adaptation = trained(MODELS["bert"], ADALORA, steps=1)
    with pytest.raises(rw.ConfigError, match="layout='padded' is none of"):
        adaptation.export(tmp_path / "lora", layout="padded")  # type: ignore[arg-type]
    with pytest.raises(rw.ConfigError, match="rank=8 is of the portable layout"):
        adaptation.export(tmp_path / "lora", layout="compact", rank=8)
    with pytest.raises(rw.ConfigError, match="no id on the hub"):
        adaptation.export(tmp_path / "lora", base_model="/models/minilm")
    assert not (tmp_path / "lora").exists()


@each_layout
@pytest.mark.parametrize("name", ["lora", "adalora", "aflora-all"])
def test_blocks_of_a_fused_weight_leave_as_one_layer(name: str, layout: str, tmp_path: Path) -> None:
    method = replace(METHODS[name].method, targets=["c_attn[q,v]", "c_fc"])
    adaptation = trained(MODELS["gpt2"], method)
    adaptation.export(tmp_path / "lora", layout=layout)
    config, pairs = config_of(tmp_path / "lora"), peft_format.read(tmp_path / "lora").pairs()
    assert config["fan_in_fan_out"] and config["target_modules"] == ["c_attn", "c_fc"]
    fused = pairs["transformer.h.0.attn.c_attn"]
    ranks = adaptation.ranks()
    q, v = ranks["transformer.h.0.attn.c_attn[q]"], ranks["transformer.h.0.attn.c_attn[v]"]
    assert fused.up.shape[0] == 96 and fused.rank == (8 if layout == "portable" else q + v)
    assert not fused.up[:32, q:].any() and not fused.up[32:64].any() and not fused.up[64:, :q].any()
    assert_read_as(tmp_path / "lora", adaptation, "gpt2")


def test_what_grew_back_stays_behind(tmp_path: Path) -> None:
    """Between two allocations dropped λ move again: the mask decides, and the export says how many it left out."""
    adaptation = trained(MODELS["bert"], replace(ADALORA, warmup=1, every=2), steps=6)
    exported = adaptation.export(tmp_path / "lora")
    note = next(note for note in exported.notes if "grown back" in note)
    compacted = adaptation.compact()
    assert compacted > 0 and note.startswith(f"{compacted} ranks")
    base = MODELS["bert"].build()
    base.load_state_dict(adaptation.trained, strict=False)
    got = outputs(peft_reads(base, tmp_path / "lora"), MODELS["bert"].batch())
    torch.testing.assert_close(got, outputs(adaptation.model, MODELS["bert"].batch()), rtol=1e-5, atol=1e-5)


def test_no_rank_at_all(tmp_path: Path) -> None:
    adaptation = trained(MODELS["bert"], ADALORA)
    for adapter in adaptation.adapters.values():
        adapter.live.fill_(False)
    with pytest.raises(rw.StateError, match="no layer has a rank left"):
        adaptation.export(tmp_path / "lora", layout="compact")
    assert adaptation.export(tmp_path / "lora").rank == 1
    base = MODELS["bert"].build()
    before = outputs(base, MODELS["bert"].batch())
    assert torch.equal(outputs(peft_reads(base, tmp_path / "lora"), MODELS["bert"].batch()), before)


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize(
    ("architecture", "modules"),
    [("bert", ["classifier"]), ("deberta-v2", ["pooler", "classifier"]), ("roberta", ["classifier"])],
)
def test_heads_leave_on_request(architecture: str, modules: list[str], tmp_path: Path) -> None:
    adaptation = trained(MODELS[architecture], METHODS["lora"].method)
    with pytest.warns(UserWarning, match=r"vLLM and llama\.cpp refuse"):
        adaptation.export(tmp_path / "lora", heads=True)
    config = config_of(tmp_path / "lora")
    assert config["modules_to_save"] == modules and config["task_type"] == "SEQ_CLS"
    batch = MODELS[architecture].batch()
    for read in READERS:
        got = outputs(read(MODELS[architecture].build(), tmp_path / "lora"), batch)
        torch.testing.assert_close(got, outputs(adaptation.model, batch), rtol=1e-5, atol=1e-5)


def test_heads_that_stay_behind_are_named(tmp_path: Path) -> None:
    exported = trained(MODELS["bert"], METHODS["lora"].method, steps=1).export(tmp_path / "lora")
    assert any(note.startswith("classifier.weight, classifier.bias trained in full") for note in exported.notes)
    config = config_of(tmp_path / "lora")
    assert config["modules_to_save"] is None and config["task_type"] is None  # else PEFT would look for a head
    assert "The task head is not in this folder" in (tmp_path / "lora" / CARD).read_text(encoding="utf-8")


def test_a_module_that_trained_in_part_comes_whole(tmp_path: Path) -> None:
    adaptation = trained(MODELS["bert"], replace(METHODS["lora"].method, also_train=["classifier.bias"]))
    with pytest.warns(UserWarning, match="modules_to_save"):
        adaptation.export(tmp_path / "lora", heads=True)
    head = peft_format.read(tmp_path / "lora").others()
    assert sorted(head) == ["base_model.model.classifier.bias", "base_model.model.classifier.weight"]
    assert torch.equal(head["base_model.model.classifier.bias"], adaptation.trained["classifier.bias"])


@pytest.mark.filterwarnings("ignore:modules_to_save:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_what_is_tied_leaves_with_every_module_that_has_it(tmp_path: Path) -> None:
    """PEFT gives each module of modules_to_save a copy, which is tied to nothing."""
    method = replace(METHODS["lora"].method, also_train=["embed_tokens"])
    adaptation = trained(MODELS["qwen2"], method)
    adaptation.export(tmp_path / "lora", heads=True)
    assert config_of(tmp_path / "lora")["modules_to_save"] == ["model.embed_tokens", "lm_head"]
    batch = MODELS["qwen2"].batch()
    got = outputs(peft_reads(MODELS["qwen2"].build(), tmp_path / "lora"), batch)
    torch.testing.assert_close(got, outputs(adaptation.model, batch), rtol=1e-5, atol=1e-5)
    again = rw.load(MODELS["qwen2"].build(), tmp_path / "lora")
    torch.testing.assert_close(outputs(again.model, batch), outputs(adaptation.model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:modules_to_save:UserWarning")
def test_a_head_with_two_names_of_one_tensor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForMaskedLM(BertConfig(vocab_size=30, **sizes, tie_word_embeddings=False))
    rw.adapt(model, rw.LoRA(rank=2, also_train=["cls"])).export(tmp_path / "lora", heads=True)
    heads = peft_format.read(tmp_path / "lora").others()
    start = "base_model.model.cls.predictions."
    assert torch.equal(heads[f"{start}bias"], model.cls.predictions.bias)
    assert torch.equal(heads[f"{start}decoder.weight"], model.cls.predictions.decoder.weight)


def test_a_parameter_of_an_adapted_layer_cannot_leave(tmp_path: Path) -> None:
    adaptation = trained(MODELS["bert"], replace(METHODS["lora"].method, also_train=["query.bias"], targets=["query"]))
    with pytest.raises(rw.StateError, match=r"query\.bias trained in full, and no module of its own"):
        adaptation.export(tmp_path / "lora", heads=True)


def test_a_parameter_beside_adapted_layers_cannot_leave(tmp_path: Path) -> None:
    """Its module would take the adapters along."""
    model = MODELS["bert"].build()
    model.bert.encoder.layer[0].register_parameter("extra", nn.Parameter(torch.ones(3)))
    adaptation = rw.adapt(model, rw.LoRA(rank=2, also_train=["extra"]))
    with pytest.raises(rw.StateError, match=r"layer\.0\.extra trained in full, and no module of its own"):
        adaptation.export(tmp_path / "lora", heads=True)


# ------------------------------------------------------------------ what is said of the base model


def test_the_revision_goes_with_the_name_of_the_base(tmp_path: Path) -> None:
    adaptation = rw.adapt(MODELS["bert"].build(), rw.LoRA(rank=2))
    adaptation.export(tmp_path / "named", base_model="owner/name", revision="v1")
    adaptation.export(tmp_path / "unknown", revision="v1")
    told = [(c["base_model_name_or_path"], c["revision"]) for c in map(config_of, sorted(tmp_path.iterdir()))]
    assert told == [("owner/name", "v1"), (None, None)]


def test_a_local_path_is_never_published(tmp_path: Path) -> None:
    MODELS["llama-gqa"].build().save_pretrained(tmp_path / "base")
    adaptation = rw.adapt(LlamaForCausalLM.from_pretrained(tmp_path / "base"), rw.LoRA())
    exported = adaptation.export(tmp_path / "lora")
    assert any("is a folder of this machine: give base_model='owner/name'" in note for note in exported.notes)
    assert config_of(tmp_path / "lora")["base_model_name_or_path"] is None
    assert "base_model" not in front_matter(tmp_path / "lora")
    assert all(str(tmp_path) not in (tmp_path / "lora" / name).read_text(encoding="utf-8") for name in (CONFIG, CARD))
    assert "put `base_model: owner/name`" in (tmp_path / "lora" / CARD).read_text(encoding="utf-8")


def test_the_card_has_the_front_matter_of_the_hub(tmp_path: Path) -> None:
    adaptation = rw.adapt(MODELS["llama-gqa"].build(), rw.LoRA())
    exported = adaptation.export(tmp_path / "lora", base_model="owner/name-7B")
    assert exported.notes == []
    assert front_matter(tmp_path / "lora") == {
        "base_model": "owner/name-7B",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:owner/name-7B", "lora", "rankwise", "transformers"],
    }
    config = peft.PeftConfig.from_pretrained(tmp_path / "lora")
    assert config.base_model_name_or_path == "owner/name-7B" and config.task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("architecture", "task", "tag"),
    [
        ("gpt2", "CAUSAL_LM", "text-generation"),
        ("t5", "SEQ_2_SEQ_LM", "text2text-generation"),
        ("vit", None, "image-classification"),
        ("whisper", None, "automatic-speech-recognition"),
        ("bert", None, "text-classification"),
    ],
)
def test_the_task_is_that_of_the_model_s_class(architecture: str, task: str | None, tag: str, tmp_path: Path) -> None:
    rw.adapt(MODELS[architecture].build(), rw.LoRA(rank=2)).export(tmp_path / "lora")
    assert (config_of(tmp_path / "lora")["task_type"], front_matter(tmp_path / "lora")["pipeline_tag"]) == (task, tag)


def test_the_config_says_no_more_than_readers_need(tmp_path: Path) -> None:
    """An unknown key makes an old PEFT raise; these have been there since its beginnings, but for use_dora."""
    rw.adapt(MODELS["llama-gqa"].build(), rw.LoRA(dropout=0.1)).export(tmp_path / "lora")
    config = config_of(tmp_path / "lora")
    assert config["peft_type"] == "LORA" and config["inference_mode"] and config["lora_dropout"] == 0.1
    assert not config["use_rslora"] and not config["use_dora"] and config["bias"] == "none"
    assert config.keys() <= vars(peft.LoraConfig()).keys()


# ------------------------------------------------------------------ files


def test_tensors_are_float32_whatever_the_base_is(tmp_path: Path) -> None:
    adaptation = rw.adapt(MODELS["llama-gqa"].build().bfloat16(), rw.LoRA())
    adaptation.export(tmp_path / "lora")
    with safe_open(tmp_path / "lora" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}
        assert all(re.fullmatch(r"base_model\.model\..+\.lora_[AB]\.weight", name) for name in file.keys())


def test_an_export_replaces_the_old_one_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = trained(MODELS["bert"], ADALORA)
    adaptation.export(tmp_path / "lora", layout="compact")
    (tmp_path / "lora" / "notes.txt").write_text("mine")
    before = {f.name: f.read_bytes() for f in (tmp_path / "lora").iterdir()}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(peft_format, "save_tensors", full)
        with pytest.raises(rw.FolderError, match="No space left"):
            adaptation.export(tmp_path / "lora")
    assert {f.name: f.read_bytes() for f in (tmp_path / "lora").iterdir()} == before
    adaptation.export(tmp_path / "lora")
    assert config_of(tmp_path / "lora")["rank_pattern"] == {}
    assert (tmp_path / "lora" / "notes.txt").read_text() == "mine"


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    adaptation, batch = trained(MODELS["bert"], ADALORA, steps=6), MODELS["bert"].batch()
    before, state = outputs(adaptation.model, batch), {n: t.clone() for n, t in adaptation.model.state_dict().items()}
    adaptation.export(tmp_path / "lora")
    assert all(torch.equal(t, state[n]) for n, t in adaptation.model.state_dict().items())
    assert torch.equal(outputs(adaptation.model, batch), before)


# ------------------------------------------------------------------ what cannot leave


def test_a_finished_adaptation_has_nothing_to_export(tmp_path: Path) -> None:
    for finish in (rw.Adaptation.merge, rw.Adaptation.undo):
        adaptation = trained(MODELS["bert"], ADALORA, steps=1)
        finish(adaptation)
        with pytest.raises(rw.StateError, match="no low-rank adapter to export"):
            adaptation.export(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_a_diverged_update_is_refused(tmp_path: Path) -> None:
    adaptation = trained(MODELS["bert"], METHODS["lora"].method, steps=1)
    with torch.no_grad():
        next(iter(adaptation.adapters.values())).B[0, 0] = torch.inf
    with pytest.raises(rw.StateError, match="NaN or infinite"):
        adaptation.export(tmp_path / "lora")


class Toy(nn.Module):
    """A layer whose path is the ending of another's, and one in two places."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 6)})
        self.again = self.fc if shared else nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.block["fc"](self.fc(x).relu()).relu())
        return y


@each_layout
@pytest.mark.parametrize("targets", [["fc"], "fc", r"block\.fc", r"fc|again", r"block\.fc|again"])
def test_the_config_means_the_adapted_layers_and_no_others(targets: Any, layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Toy(shared=False), torch.randn(5, 6)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    adaptation = rw.adapt(model, rw.LoRA(rank=3, targets=targets, rank_pattern={}))
    for at, adapter in enumerate(adaptation.adapters.values()):
        nn.init.normal_(adapter.B)
        adapter.live[: at % 2] = False  # different ranks
        with torch.no_grad():
            adapter.B[:, ~adapter.live] = 0
    adaptation.export(tmp_path / "lora", layout=layout)
    plain = Toy(shared=False)
    plain.load_state_dict(state)
    read = peft.PeftModel.from_pretrained(plain, tmp_path / "lora")
    layers = [n for n, m in read.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert {n.removeprefix("base_model.model.") for n in layers} == adaptation.adapters.keys()
    torch.testing.assert_close(read(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_layer_in_two_places_is_refused(tmp_path: Path) -> None:
    adaptation = rw.adapt(Toy(shared=True), rw.LoRA(rank=2))
    with pytest.raises(rw.StateError, match="one layer in several places"):
        adaptation.export(tmp_path / "lora")


def test_padding_and_folding_keep_the_update() -> None:
    adaptation = pruned()
    for path, plain in updates(adaptation.adapters).items():
        wide = plain.padded(11)
        delta = adaptation.adapters[path].delta()
        torch.testing.assert_close(plain.up @ plain.down, delta, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(wide.up @ wide.down, delta, rtol=1e-6, atol=1e-7)


def test_one_model_class_is_enough_to_build_it(tmp_path: Path) -> None:
    """What the card tells a reader to write is a class of transformers."""
    adaptation = rw.adapt(MODELS["t5"].build(), rw.LoRA())
    adaptation.export(tmp_path / "lora")
    text = (tmp_path / "lora" / CARD).read_text(encoding="utf-8")
    [name] = re.findall(r"from transformers import (\w+)", text)
    assert issubclass(getattr(__import__("transformers"), name), PreTrainedModel)
