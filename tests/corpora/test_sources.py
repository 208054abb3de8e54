"""Rows of every kind of file give the same rows, without the net; what cannot be read says where."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from peft_study.corpora.sources import Rows, source
from peft_study.errors import DataError

ROWS = [{"text": 'a\nü, "b"', "answer": "007"}, {"text": "c", "answer": ""}]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write(folder: Path, name: str) -> str:
    """Write ROWS in the way that the name says."""
    file = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".jsonl"):
        file.write_text(lines)
    elif name.endswith(".json"):
        file.write_text(json.dumps(ROWS, indent=1))
    elif name.endswith(".csv"):
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, ["text", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        Dataset.from_list(ROWS).to_parquet(str(file))
    return str(file)


def read(rows: Rows) -> list[dict[str, object]]:
    return [dict(row) for row in rows.rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = source(write(tmp_path, name), "train")
    assert read(rows) == ROWS
    assert rows.place == f"{tmp_path / name}, row"


def test_lines_may_be_called_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read(source(str(tmp_path / "a.json"), "")) == ROWS
    (tmp_path / "one.json").write_text('{"text": "a"}')
    assert read(source(str(tmp_path / "one.json"), "")) == [{"text": "a"}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_folder_has_splits(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, f"train.{suffix}")
    assert read(source(str(tmp_path), "train")) == ROWS


def test_a_folder_can_be_a_data_set(tmp_path: Path) -> None:
    """Its files are called as `datasets` does it."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "train-00000-of-00001.parquet")
    assert read(source(str(tmp_path), "train")) == ROWS
    with pytest.raises(DataError, match=r"\(test\) cannot be read .*check the name, subset and split"):
        read(source(str(tmp_path), "test"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n3\n', "a.jsonl, line 2: every line must be a JSON object"),
        ("a.json", '[{"text": "a"}, 3]', "a.json, row 2: must be a JSON object, but is '3'"),
        ("a.csv", "text,answer\na,b\nc\n", "a.csv, row 2: cannot be read .*more values than columns, or fewer"),
        ("a.csv", "text,answer\na,b,c\n", "a.csv, row 1: cannot be read"),
        ("a.parquet", "none", "a.parquet cannot be read"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(source(str(tmp_path / name), "train"))


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*a.jsonl; give the path of one"):
        source(str(tmp_path / "a.jsonl"), "train")
    (tmp_path / "a.txt").write_text("Two and two.")
    with pytest.raises(DataError, match=r"a.txt must end with one of .jsonl, .*; rename it"):
        source(str(tmp_path / "a.txt"), "train")
    with pytest.raises(DataError, match=r"nobody/nothing \(train\) cannot be read"):
        read(source("nobody/nothing", "train"))
