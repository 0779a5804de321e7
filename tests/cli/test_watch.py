"""rankwise watch: a picture of a run that another process trains, from files that are being written."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

import tiny
from rankwise.cli import main, watch
from rankwise.cli.growing import Growing
from rankwise.cli.rank_map import curve, model_map
from rankwise.cli.standing import Standing
from rankwise.errors import FolderError

Model = Callable[[str], Path]
LONG = {"steps": 60, "log_every": 2, "evaluate_every": 20}
ADALORA = {"name": "adalora", "rank": 3, "target_rank": 2, "warmup": 4, "cooldown": 20, "every": 2}


def terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=100, height=50, color_system="standard"), file


def text_of(picture: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps of an AFLoRA, whose projections froze."""
    folder = tmp_path_factory.mktemp("watched")
    model = tiny.save_model("bert", folder / "model")
    rows = tiny.write_rows(folder / "rows.jsonl", tiny.topic_rows(16))
    assert tiny.train(folder, tiny.config(model, rows, folder / "run", method=tiny.AFLORA)) == 0
    return folder / "run"


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """The same, as it was before its results were there."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "results.json").unlink()
    return run


@pytest.fixture
def training(model: Model, topics: str, tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[bytes]"]]:
    """A run that a process of its own is training, from the moment that its folder is there."""
    run = tmp_path / "run"
    file = tiny.write_config(
        tmp_path / "run.yaml", tiny.config(model("bert"), topics, run, method=ADALORA, training=LONG)
    )
    command = [sys.executable, "-m", "rankwise", "train", file]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while not (run / "config.yaml").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield run, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_beside_a_training_process(training: tuple[Path, "subprocess.Popen[bytes]"]) -> None:
    """Watching begins while nothing is logged, shows steps, ranks and time left as they come, and ends with the run."""
    run, process = training
    console, file = terminal()
    watch.follow(watch.Watched(run), console)
    assert (run / "results.json").exists()
    assert process.wait(timeout=60) == 0
    shown = file.getvalue()
    steps = sorted({int(step) for step in re.findall(r"step (\d+) of 60", shown)})
    assert len(steps) >= 3 and steps[-1] == 60, steps
    assert re.search(r"about \d+ s left", shown) and "accuracy" in shown
    ranks = [event["live"] for event in tiny.lines(run / "history.jsonl") if event["event"] == "allocated"]
    assert f"{ranks[-1]} of 39; budget 26" in shown
    assert any(f"{live} of 39" in shown for live in ranks[:-1]), "the ranks were seen to fall"
    assert "finished: " in shown


def test_without_a_terminal_there_is_one_picture(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(unfinished)]) == 0
    told = capsys.readouterr()
    assert told.err == "" and "\x1b" not in told.out
    assert "'aflora' on" in told.out and "step 8 of 8" in told.out and "trained; evaluating and saving" in told.out
    assert "100% of the projections" in told.out
    assert re.search(r"projections that learn.*\nquery +··   0 of 4", told.out)


def test_once_on_a_terminal(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = terminal()
    monkeypatch.setattr(watch, "make_console", lambda: console)
    assert main(["watch", str(unfinished), "--once"]) == 0
    assert file.getvalue().count("step 8 of 8") == 1


def test_ctrl_c_ends_the_watching(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = terminal()
    monkeypatch.setattr(watch, "make_console", lambda: console)
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    assert main(["watch", str(unfinished)]) == 0
    assert "step 8 of 8" in file.getvalue()


def interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def test_a_finished_run_shows_its_scores_and_stops(finished: Path) -> None:
    console, file = terminal()
    watch.follow(watch.Watched(finished), console)
    scores = json.loads((finished / "results.json").read_text())["scores"]
    assert f"accuracy {scores['accuracy']:.4f}" in file.getvalue().rpartition("finished: ")[2]


def test_silence_is_told(unfinished: Path) -> None:
    for name in ("history.jsonl", "metrics.jsonl"):
        os.utime(unfinished / name, (0, time.time() - 3700))
    watched = watch.Watched(unfinished)
    watched.look()
    assert "nothing new for 1 h 1 min: does it still run?" in text_of(watched.picture(100))


# files that grow


def test_a_line_is_given_once_and_when_it_is_whole(tmp_path: Path) -> None:
    growing = Growing(tmp_path / "lines.jsonl")
    assert growing.new_lines() == []
    with (tmp_path / "lines.jsonl").open("a") as file:
        for piece, there in (
            ('{"step": 1}\n{"st', [{"step": 1}]),
            ('ep": 2', []),
            ('}\n{"step": 3}\n', [{"step": 2}, {"step": 3}]),
            ("", []),
        ):
            file.write(piece)
            file.flush()
            assert growing.new_lines() == there


def test_a_resumed_run_is_read_anew(unfinished: Path) -> None:
    """It replaces both files by what its checkpoint kept of them."""
    watched = watch.Watched(unfinished)
    watched.look()
    assert watched.standing.step == 8 and watched.standing.frozen
    for name in ("history.jsonl", "metrics.jsonl"):
        lines = (unfinished / name).read_text().splitlines(keepends=True)
        (unfinished / "new").write_text("".join(line for line in lines if json.loads(line)["step"] <= 2))
        (unfinished / "new").replace(unfinished / name)
    watched.look()
    assert watched.standing.step == 2 and not watched.standing.frozen and len(watched.standing.losses) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no json\n", "line 1 is not JSON"),
        ('{"step": "two"}\n', "is not what rankwise writes"),
        ('{"event": "married", "step": 1}\n', "none that this version knows"),
        ('{"event": "allocated", "step": 1, "budget": 3, "ranks": [1]}\n', "none that this version knows"),
    ],
)
def test_a_file_that_is_not_ours(line: str, told: str, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (unfinished / "history.jsonl").write_text(line)
    assert main(["watch", str(unfinished)]) == 2
    assert told in capsys.readouterr().err


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.cli.growing.MOST_LINE", 100)
    (tmp_path / "lines.jsonl").write_text("x" * 200)
    with pytest.raises(FolderError, match="line 1: longer than any line"):
        Growing(tmp_path / "lines.jsonl").new_lines()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "is no run: it has no config.yaml" in capsys.readouterr().err


# what is drawn


def test_time_left_counts_from_the_process_that_runs() -> None:
    """Its clock begins at 0 again when a run is resumed; the hours before must not count."""
    standing = Standing(total_steps=100)
    for step, seconds in ((10, 1000.0), (20, 2000.0), (30, 5.0), (40, 25.0)):
        standing.logged({"step": step, "seconds": seconds, "loss": 1.0})
    assert standing.seconds_per_step == 2.0 and standing.seconds_left == 120.0


def test_a_loss_that_is_no_number_is_left_out() -> None:
    standing = Standing()
    for loss in (2.0, None, 1.0):
        standing.logged({"step": 1, "seconds": 0.0, "loss": loss})
    assert standing.losses == [2.0, 1.0]


def test_curves_begin_at_nothing_and_fit() -> None:
    assert curve([0, 1, 4, 8], 10) == "·▁▄█"
    assert curve([8, 0, 4, 4], 2) == "██"
    assert curve([], 10) == ""


def test_a_deep_model_fits_into_the_terminal() -> None:
    most = {f"layers.{block}.{name}": 8 for block in range(126) for name in ("q_proj", "down_proj")}
    half = {name: 8 if int(name.split(".")[1]) < 63 else 4 for name in most}
    told = text_of(model_map("live ranks", half, most, 80), width=80)
    assert all(len(line) <= 80 for line in told.splitlines())
    assert "q_proj" in told and "756 of 1,008" in told and "3 of 126 blocks, layers.0 to layers.125" in told
    assert re.search(r"q_proj +█{21}▄{21} ", told)


def test_layers_outside_of_blocks_have_a_place() -> None:
    told = text_of(model_map("live ranks", {"pooler": 0, "h.0.a": 2}, {"pooler": 4, "h.0.a": 2}, 80))
    assert re.search(r"^pooler +·   0 of 4", told, flags=re.MULTILINE) and re.search(
        r"^a +█  2 of 2", told, flags=re.MULTILINE
    )
