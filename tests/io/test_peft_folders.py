"""PEFT's own folders, wherever a saved adapter is asked for: converted, inspected, merged, exported, in a bank."""

import json
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig
from peft_runs import saved_by_peft
from transformers import AutoModelForSequenceClassification

import rankwise as rw
from contract.models import ENCODER
from contract.runs import outputs, peft_reads, trained
from rankwise.cli import main
from rankwise.io import folder as files

pytestmark = [
    pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),
]

QV = ["query", "value"]
KINDS = ["lora", "adalora", "vera", "head"]


def config(kind: str) -> PeftConfig:
    match kind:
        case "lora":
            return LoraConfig(r=4, lora_alpha=8, target_modules=QV, rank_pattern={"query": 2}, use_rslora=True)
        case "adalora":
            return AdaLoraConfig(init_r=4, target_r=2, target_modules=QV, tinit=1, tfinal=3, deltaT=1, total_step=8)
        case "vera":
            return VeraConfig(r=8, target_modules=QV, save_projection=False)
        case _:
            return LoraConfig(r=2, target_modules=["dense"], task_type="SEQ_CLS")


def made(kind: str, place: Path) -> tuple[Path, Path, torch.Tensor]:
    """PEFT's folder, that of its base model, and the logits that PEFT reads from the two."""
    ENCODER.build().save_pretrained(place / "base")
    wanted = saved_by_peft(ENCODER, config(kind), place / "peft", steps=8)
    return place / "peft", place / "base", wanted


@pytest.mark.parametrize("kind", KINDS)
def test_converted_inspected_and_merged(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, base, wanted = made(kind, tmp_path)
    (base / "model.safetensors").rename(base / "gone")  # only its config is needed
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "adalora", "--model", str(base)]) == 0
    assert "became adalora" in capsys.readouterr().out or kind == "adalora"
    assert files.read(tmp_path / "out").base_model == {"name": str(base), "model_type": "bert"}
    (base / "gone").rename(base / "model.safetensors")
    model = ENCODER.build()
    rw.load(model, tmp_path / "out")
    torch.testing.assert_close(outputs(model, ENCODER.batch()), wanted, rtol=1e-5, atol=1e-5)
    if kind != "vera":
        assert main(["inspect", str(folder)]) == 0
        assert "layers" in capsys.readouterr().out
    assert main(["merge", str(folder), str(tmp_path / "merged"), "--model", str(base)]) == 0
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(outputs(merged, ENCODER.batch()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "adalora", "vera"])
def test_exported_for_engines_that_cannot_read_it(kind: str, tmp_path: Path) -> None:
    """Rank stabilisation, patterns, λ and shared projections become a plain LoRA of one scale."""
    folder, base, wanted = made(kind, tmp_path)
    assert main(["export", str(folder), str(tmp_path / "plain"), "--model", str(base), "--verify"]) == 0
    got = outputs(peft_reads(ENCODER.build(), tmp_path / "plain"), ENCODER.batch())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_bank(kind: str, tmp_path: Path) -> None:
    """Beside an adapter that rankwise exported: rows are what each alone makes of them."""
    folder, _, wanted = made(kind, tmp_path)
    other = trained(ENCODER, rw.AdaLoRA(rank=4, target_rank=2, warmup=2, cooldown=4, every=2, also_train=()))
    other.export(tmp_path / "exported")
    bank = rw.Bank(ENCODER.build())
    bank.add("peft", folder)
    bank.add("exported", tmp_path / "exported")
    batch = ENCODER.batch()
    with bank.rows(["peft", "exported"]):
        mixed = outputs(bank.model, batch)
    torch.testing.assert_close(mixed[0], wanted[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], outputs(other.model, batch)[1], rtol=1e-5, atol=1e-5)


def test_a_vera_that_names_its_base_needs_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, base, _ = made("vera", tmp_path)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "lora"]) == 2
    assert "does not say which model it was made for. Give it with --model" in capsys.readouterr().err
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "lora"]) == 0


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, base, _ = made("lora", tmp_path)
    text = (base / "config.json").read_text()
    (base / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 64'))
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "sora", "--model", str(base)]) == 2
    assert "was made for another model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
