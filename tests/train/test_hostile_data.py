"""Data files that nobody can mean: refused with the file and, where there are lines, the line."""

import pickle
import time
from pathlib import Path

import pytest

import rankwise as rw
from rankwise.train.files import MOST_LINE, Wanted, read_file

SECONDS = 2.0  # of the processor
GOOD = {
    ".jsonl": b'{"text": "a", "label": "b"}\n',
    ".csv": b"text,label\na,b\n",
    ".tsv": b"text\tlabel\na\tb\n",
}
LONG = b"x" * 100_000_000
DATA: dict[str, tuple[str, bytes, str]] = {
    "jsonl-long": (".jsonl", b'{"text": "' + LONG + b'"}\n', "line 2: longer than"),
    "csv-long": (".csv", LONG + b",b\n", "line 3: longer than"),
    "tsv-long": (".tsv", LONG + b"\tb\n", "line 3: longer than"),
    "jsonl-utf8": (".jsonl", b'{"text": "\xff"}\n', r"line 2: not UTF-8 \(byte 0xff"),
    "csv-utf8": (".csv", b"c,d\n\xff\xfe,b\n", r"line 4: not UTF-8 \(byte 0xff"),
    "tsv-utf8": (".tsv", b"c\td\n\xff\xfe\tb\n", r"line 4: not UTF-8 \(byte 0xff"),
    "jsonl-deep": (".jsonl", b'{"text": ' + b"[" * 200_000 + b"}\n", "line 2: cannot be read as JSON"),
    "jsonl-digits": (".jsonl", b'{"label": ' + b"9" * 10_000 + b"}\n", "line 2: cannot be read as JSON"),
    "jsonl-nul": (".jsonl", b"\0" * 1000 + b"\n", "line 2: not JSON"),
}


@pytest.mark.parametrize("how", DATA)
def test_a_data_file(how: str, tmp_path: Path) -> None:
    suffix, content, says = DATA[how]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(GOOD[suffix] + content)
    began = time.process_time()
    with pytest.raises(rw.DataError, match=says) as error:
        read_file(path, Wanted(label="label", names=["text", "label"]))
    assert time.process_time() - began < SECONDS
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


FILES: dict[str, tuple[str, bytes]] = {
    "json-deep": (".json", b"[" * 200_000),
    "json-utf8": (".json", b'[{"text": "a"},\n{"text": "\xff"}]'),
    "json-digits": (".json", b'[{"label": ' + b"9" * 10_000 + b"}]"),
    "csv-nul": (".csv", b"\0" * 1000),
    "csv-names": (".csv", b"te\xffxt,label\na,b\n"),
    "csv-quote": (".csv", b'text,label\n"a,b\n' + b"x,y\n" * 100_000),
    "parquet-zeros": (".parquet", b"PAR1" + b"\0" * 100 + b"PAR1"),
    "parquet-noise": (".parquet", b"PAR1" + bytes(range(256)) * 9 + b"\xe8\x03\0\0PAR1"),
    "parquet-pickle": (".parquet", pickle.dumps([1, 2])),
    "parquet-empty": (".parquet", b""),
}


@pytest.mark.parametrize("how", FILES)
def test_another_data_file(how: str, tmp_path: Path) -> None:
    suffix, content = FILES[how]
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(rw.DataError) as error:
        read_file(path, Wanted(label="label", names=["text", "label"]))
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


def test_long_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD[".jsonl"] + b'{"text": "' + b"x" * (MOST_LINE - 100) + b'", "label": "b"}\n')
    assert read_file(path, Wanted(label="label", names=["text", "label"])).num_rows == 2
