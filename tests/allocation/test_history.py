"""Events as lines: typed, flushed when asked, and cut back when a run continues."""

import json

import pytest
import torch

from rankwise.allocation.history import Allocated, Froze, History, SkippedNonFinite, Started, as_json, quantiles


def allocated(step: int) -> Allocated:
    masks = (torch.tensor([True, False, True]), torch.tensor([False, False]))
    return Allocated(step, 2, ("a", "b[q]"), masks, torch.arange(5.0), torch.tensor(0.5))


def test_events_as_json():
    assert as_json(allocated(7)) == {
        "event": "allocated",
        "step": 7,
        "budget": 2,
        "live": 2,
        "orthogonality": 0.5,
        "masks": {"a": "101", "b[q]": "00"},
        "ranks": {"a": 2, "b[q]": 0},
        "score_quantiles": [0.0, 1.0, 2.0, 3.0, 4.0],
    }
    assert as_json(Started(0, "lora", None, {"a": 4})) == {
        "event": "started",
        "step": 0,
        "method": "lora",
        "total_steps": None,
        "ranks": {"a": 4},
    }
    froze = as_json(Froze(3, 0.5, ("a.A",), torch.zeros(5)))
    assert froze == {"event": "froze", "step": 3, "share": 0.5, "frozen": ["a.A"], "score_quantiles": [0.0] * 5}
    assert as_json(SkippedNonFinite(3, ("a.A",))) == {"event": "skipped_non_finite", "step": 3, "names": ["a.A"]}
    json.dumps([as_json(allocated(1)), froze])


@pytest.mark.parametrize("n", [1, 2, 5, 9, 100])
def test_quantiles_are_of_the_scores_themselves(n: int):
    scores = torch.randperm(n).float()
    five = quantiles(scores).tolist()
    assert five == sorted(five) and set(five) <= set(scores.tolist())
    assert five[0] == 0 and five[-1] == n - 1 and abs(five[2] - (n - 1) / 2) <= 0.5


def test_lines_are_written_when_flushed(tmp_path):
    path = tmp_path / "deep" / "history.jsonl"
    history = History()
    history.write_to(path, 0)
    history.add(allocated(1))
    assert path.read_text() == "" and history.lines == []
    history.flush()
    history.flush()
    assert [json.loads(line) for line in path.read_text().splitlines()] == history.lines == [as_json(allocated(1))]


def test_a_new_run_begins_its_file_anew(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"event": "old", "step": 0}\n')
    History().write_to(path, 0)
    assert path.read_text() == ""


def test_a_continued_run_is_cut_back_to_where_it_continues(tmp_path):
    path = tmp_path / "history.jsonl"
    first = History()
    first.write_to(path, 0)
    for step in (0, 4, 8, 12):
        first.add(allocated(step))
    first.flush()
    with path.open("a") as file:
        file.write('{"event": "allocated", "st')  # it died in the middle of a line
    second = History()
    second.write_to(path, 8)  # steps 0 to 7 are done
    assert [line["step"] for line in second.lines] == [0, 4]
    second.add(allocated(8))
    second.flush()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 4, 8]


def test_without_a_file_events_stay_in_memory():
    history = History()
    history.write_to(None, 0)
    history.add(allocated(1))
    history.flush()
    assert len(history.lines) == 1
