"""The page as a text: what it holds, what it refuses, and what a hostile run folder cannot put into it."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import yaml
from plotly.offline import get_plotlyjs_version

import rankwise
import tiny
from rankwise.cli import main
from rankwise.report import bundle

Runs = Callable[[str], Path]
SOURCE = Path(rankwise.__file__).parent


class Parsed(HTMLParser):
    """Tags with their attributes, in order; the visible text; the content of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._inside = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.scripts[0])
        return data


def report(folder: Path, *names: Path | str) -> Parsed:
    """What `rankwise report NAMES` writes."""
    output = folder / "report.html"
    assert main(["report", *map(str, names), "-o", str(output)]) == 0
    return Parsed(output.read_text(encoding="utf-8"))


def headings(parsed: Parsed) -> list[str]:
    return [attributes["id"] or "" for tag, attributes in parsed.tags if tag == "section"]


def figures(parsed: Parsed) -> list[dict[str, Any]]:
    return [*parsed.data["charts"], *(found["chart"] for found in parsed.data["maps"])]


def test_a_run_is_shown_whole(trained: Runs, tmp_path: Path):
    parsed = report(tmp_path, trained("adalora"))
    assert headings(parsed) == ["results", "ranks", "learning", "cost", "settings", "data"]
    charts = [chart["id"] for chart in parsed.data["charts"]]
    assert charts == ["budget", "loss", "metrics", "orthogonality", "parameters", "bytes"]
    results = tiny.strict_json(trained("adalora") / "results.json")
    assert f"{results['scores']['accuracy']:.4f}" in parsed.text and f"{results['trainable_end']:,}" in parsed.text
    assert "training.learning_rate" in parsed.text and "packages.torch" in parsed.text


def test_a_baseline_says_its_metric(copied: Runs, tmp_path: Path):
    """That of a regression is no pearson."""
    for name in ("lora", "adalora"):
        file = copied(name) / "results.json"
        results = tiny.strict_json(file) | {"task": "regression", "primary": "pearson", "scores": {"pearson": 0.5}}
        file.write_text(json.dumps(results | {"baseline": {"name": "always 2.5", "metric": "mse", "value": 1.25}}))
    alone = report(tmp_path, tmp_path / "lora").text
    assert "baseline: always 2.5" in alone and "mse 1.2500" in alone
    assert "always 2.5: mse 1.2500" in report(tmp_path, tmp_path / "lora", tmp_path / "adalora").text


def test_freezing_has_its_section(trained: Runs, tmp_path: Path):
    parsed = report(tmp_path, trained("aflora"))
    assert "freezing" in headings(parsed)
    assert {"frozen-share", "freezing-0-0", "freezing-0-1"} <= {chart["id"] for chart in parsed.data["charts"]}
    assert parsed.data["maps"][0]["frames"][-1]["text"][0][0].startswith("3 ")


def test_frames_are_the_decisions(trained: Runs, tmp_path: Path):
    [found] = report(tmp_path, trained("adalora")).data["maps"]
    events = [e for e in tiny.lines(trained("adalora") / "history.jsonl") if e["event"] == "allocated"]
    live = [sum(rank or 0 for row in frame["z"] for rank in row) for frame in found["frames"]]
    assert live[0] == sum(tiny.lines(trained("adalora") / "history.jsonl")[0]["ranks"].values())
    assert live[-1] == events[-1]["live"] and found["frames"][-1]["step"] <= found["end"] == 8


def test_several_runs_share_their_charts(trained: Runs, tmp_path: Path):
    parsed = report(tmp_path, *(trained(name) for name in ("adalora", "aflora", "lora")))
    assert [found["run"] for found in parsed.data["maps"]] == ["adalora", "aflora", "lora"]
    loss = next(chart for chart in parsed.data["charts"] if chart["id"] == "loss")
    assert {"adalora, training", "aflora, training", "lora, training"} <= {t["name"] for t in loss["traces"]}
    assert "Settings: what differs" in parsed.text
    assert {"quality-0-parameters", "quality-0-time"} <= {chart["id"] for chart in parsed.data["charts"]}


def test_runs_called_alike_are_told_apart(trained: Runs, tmp_path: Path):
    runs = [Path(shutil.copytree(trained("lora"), tmp_path / name / "run")) for name in ("one", "two")]
    parsed = report(tmp_path, *runs)
    assert [found["run"] for found in parsed.data["maps"]] == [str(run) for run in runs]


def test_every_figure_is_one_that_plotly_knows(trained: Runs, comparison: Path, tmp_path: Path):
    runs = [trained(name) for name in ("adalora", "aflora", "lora", "sora", "freezing-adalora")]
    found = figures(report(tmp_path, *runs)) + figures(report(tmp_path, comparison))
    assert len(found) > 15
    for chart in found:
        go.Figure(data=chart["traces"], layout=chart["layout"])  # raises for an unknown attribute or value
        assert chart["says"].endswith(".") and chart["title"]


def test_the_scripts_are_plotly_s_own_and_the_page_s(trained: Runs, tmp_path: Path):
    parsed = report(tmp_path, trained("lora"))
    assert f"plotly.js v{get_plotlyjs_version()}" in parsed.scripts[1][:200]
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    hashes = re.findall(r"'sha256-(.+?)'", policy or "")
    assert hashes == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in parsed.scripts[1:]]
    assert "default-src 'none'" in (policy or "") and "unsafe-inline" not in (policy or "").split("style-src")[0]
    assert not [a for _, a in parsed.tags if "src" in a or str(a.get("href", "#"))[0] != "#"]  # it fetches nothing


def test_the_files_are_in_the_page(trained: Runs, tmp_path: Path):
    packed = report(tmp_path, trained("adalora")).data["bundle"]
    for file in packed["files"]:
        original = (trained("adalora") / file["name"]).read_bytes()
        assert gzip.decompress(base64.b64decode(file["packed"])) == original
    assert {f["name"] for f in packed["files"]} >= {"config.yaml", "history.jsonl", "metrics.jsonl", "results.json"}


def test_what_is_too_large_for_the_page_is_named(trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bundle, "MOST_PACKED", 1000)
    parsed = report(tmp_path, trained("adalora"))
    assert parsed.data["bundle"]["left"] and "adalora/history.jsonl" in parsed.text


# ------------------------------------------------------------------ comparisons


def test_a_comparison_gives_its_answer(comparison: Path, tmp_path: Path):
    parsed = report(tmp_path, comparison)
    assert headings(parsed)[:4] == ["answer", "results", "not-run", "runs"]
    assert "Both reach the same accuracy." in parsed.text and "topics/aflora/1k" in parsed.text
    assert "0.9000 (the paper, table 2)" in parsed.text
    chart = next(c for c in parsed.data["charts"] if c["id"] == "quality-0-parameters")
    assert [t["name"] for t in chart["traces"]] == ["lora", "adalora"]
    assert all(above == pytest.approx(0.1) for t in chart["traces"] for above in t["error_y"]["array"])


def test_a_comparison_that_still_runs_says_so(comparison: Path, tmp_path: Path):
    (comparison / "comparison.json").unlink()
    text = (comparison / "runs.jsonl").read_text()
    (comparison / "runs.jsonl").write_text(text[:-20])  # the last line is being written
    parsed = report(tmp_path, comparison)
    assert "Not finished: 3 runs have ended so far." in parsed.text and "there is no answer yet" in parsed.text


def test_a_run_that_failed_is_told_and_one_that_was_tried_again_is_not(comparison: Path, tmp_path: Path):
    lines = tiny.lines(comparison / "runs.jsonl")
    failed = {key: lines[0][key] for key in ("cell", "purpose", "task", "method", "budget", "seed", "learning_rate")}
    failed |= {"score": None, "error": "the disk is full"}
    tiny.write_rows(comparison / "runs.jsonl", [failed, *lines, failed | {"cell": "topics/other"}])
    parsed = report(tmp_path, comparison)
    assert "topics/other: the disk is full" in parsed.text and "in 4 runs" in parsed.text
    assert parsed.text.count("the disk is full") == 1


def test_a_comparison_does_not_lead_elsewhere(comparison: Path, tmp_path: Path, capsys: Any):
    lines = tiny.lines(comparison / "runs.jsonl")
    tiny.write_rows(comparison / "runs.jsonl", [lines[0] | {"folder": "../../elsewhere"}])
    assert main(["report", str(comparison), "-o", str(tmp_path / "r.html")]) == 2
    assert "leads out of the comparison" in capsys.readouterr().err


def test_a_latency_table_is_shown(trained: Runs, tmp_path: Path):
    row = {"case": "LoRA r=8", "ms": 3.25, "ratio": 1.125, "ratio_quartiles": [1.1, 1.2], "trainable": 8}
    (tmp_path / "latency.json").write_text(json.dumps({"machine": {"device": "a CPU"}, "BERT, 1 × 128": [row]}))
    options = ["--latency", str(tmp_path / "latency.json")]
    parsed = report(tmp_path, trained("lora"), *options)
    assert "latency" in headings(parsed) and "1.125" in parsed.text and "BERT, 1 × 128" in parsed.text
    assert "latency" not in headings(report(tmp_path, trained("lora")))


# ------------------------------------------------------------------ unfinished, broken, hostile


def test_a_run_that_still_trains_is_shown_as_far_as_it_is(copied: Runs, tmp_path: Path):
    run = copied("adalora")
    (run / "results.json").unlink()
    history = (run / "history.jsonl").read_text()
    (run / "history.jsonl").write_text(history[:-30])
    parsed = report(tmp_path, run)
    assert "Not finished: adalora." in parsed.text and "8 of 8" in parsed.text
    assert "ranks" in headings(parsed) and "results" not in headings(parsed)


def test_a_run_that_has_hardly_begun_is_shown_too(copied: Runs, tmp_path: Path):
    run = copied("adalora")
    for name in ("results.json", "history.jsonl", "metrics.jsonl"):
        (run / name).unlink()
    parsed = report(tmp_path, run)
    assert headings(parsed) == ["settings", "data"] and parsed.data["charts"] == [] == parsed.data["maps"]


def spoil_line(run: Path, name: str, **changes: Any) -> None:
    first, *rest = (run / name).read_text().splitlines(keepends=True)
    (run / name).write_text(json.dumps(json.loads(first) | changes) + "\n" + "".join(rest))


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config is no YAML": (write("config.yaml", "a: [1"), "config.yaml"),
    "config is a list": (write("config.yaml", "[1, 2]"), "config.yaml"),
    "results are half written": (write("results.json", '{"scores": {"acc'), "results.json"),
    "results lack a field": (write("results.json", "{}"), "results.json: task is None, not a text"),
    "history is none": (write("history.jsonl", "hello\n"), "history.jsonl, line 1"),
    "history of other events": (write("history.jsonl", '{"event": "sung", "step": 1}\n'), "'sung' is no event"),
    "ranks are words": (lambda run: spoil_line(run, "history.jsonl", ranks={"a": "b"}), "history.jsonl, line 1: ranks"),
    "a step below 0": (lambda run: spoil_line(run, "metrics.jsonl", step=-1), "metrics.jsonl, line 1: step"),
    "a number too large": (write("metrics.jsonl", '{"step": 1, "seconds": 1e999}\n'), "metrics.jsonl, line 1"),
    "environment is a list": (write("environment.json", "[]"), "environment.json"),
    "shapes are words": (write("adapter/rankwise.json", '{"layers": {"a": {"shape": "b"}}}'), "rankwise.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_one_clear_error(name: str, copied: Runs, tmp_path: Path, capsys: Any):
    run = copied("adalora")
    spoil, told = BROKEN[name]
    spoil(run)
    capsys.readouterr()
    assert main(["report", str(run), "-o", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("rankwise report: ") and error.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_a_link_out_of_the_run_is_not_followed(copied: Runs, tmp_path: Path, capsys: Any):
    run = copied("adalora")
    (tmp_path / "secret").write_text("secret")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "secret")
    assert main(["report", str(run), "-o", str(tmp_path / "r.html")]) == 2
    assert "leads out of its folder" in capsys.readouterr().err


REFUSED = {
    ("nowhere",): "nowhere is not there",
    (".",): "is neither a run (config.yaml) nor a comparison",
    ("{run}", "-o", "report.txt"): "ends in .html",
    ("{run}", "-o", "no/such/report.html"): "a folder that exists",
    ("{run}", "{run}"): "was given twice",
    ("{run}", "{comparison}"): "which is reported alone",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_cannot_be_reported_is_refused(
    arguments: tuple[str, ...], trained: Runs, comparison: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
):
    (tmp_path / "empty").mkdir()
    run = trained("lora")
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["report", *(a.format(run=run, comparison=comparison) for a in arguments)]) == 2
    assert REFUSED[arguments] in capsys.readouterr().err
    assert not list((tmp_path / "empty").iterdir())


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\"'&\u2028"


def hostile(run: Path) -> Path:
    """A run whose every free text tries to be markup or code; its folder's name too."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"model": EVIL, EVIL: EVIL, "method": config["method"] | {EVIL: EVIL}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "environment.json").write_text(json.dumps({EVIL: {EVIL: EVIL}}))
    results = tiny.strict_json(run / "results.json")
    results |= {"task": EVIL, "primary": EVIL, "scores": {EVIL: 0.5}, "baseline": {"name": EVIL, "value": EVIL}}
    (run / "results.json").write_text(json.dumps(results))
    spoil_line(run, "metrics.jsonl", **{f"eval_{EVIL}": 0.5})
    name = EVIL.replace("\u2028", "")  # of a module, and printable
    for file in ("history.jsonl", "adapter/rankwise.json"):
        text = (run / file).read_text().replace("encoder.layer.0.intermediate.dense", json.dumps(name)[1:-1])
        (run / file).write_text(text)
    return run.rename(run.with_name("<img src=x onerror=alert(3)>"))


def test_a_hostile_run_puts_nothing_into_the_page(copied: Runs, tmp_path: Path):
    innocent = report(tmp_path, copied("aflora"))
    parsed = report(tmp_path, hostile(copied("adalora")))
    assert len(parsed.scripts) == len(innocent.scripts) == 3 and parsed.scripts[1:] == innocent.scripts[1:]
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in innocent.tags} | {"p", "thead"}
    assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on") or a == "src"]
    assert EVIL in parsed.text  # shown as what it is
    for chart in figures(parsed):  # Plotly's labels know some HTML: none of theirs comes from the run
        shown = json.dumps([chart["traces"], chart["layout"]])
        assert "<img" not in shown and "<script" not in shown


def test_reading_needs_neither_torch_nor_a_model(trained: Runs, tmp_path: Path):
    """With everything that `import rankwise` brings taken away, the package's own modules still write the page."""
    code = f"""
import sys, types
from pathlib import Path
sys.modules |= dict.fromkeys(("torch", "transformers"), None)
for name in ("rankwise", "rankwise.io"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(SOURCE)!r} + name.removeprefix("rankwise").replace(".", "/")]
from rankwise.report.page import write_report
write_report([Path({str(trained("adalora"))!r})], Path({str(tmp_path / "r.html")!r}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "r.html").stat().st_size > 1e6
