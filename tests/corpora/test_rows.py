"""Rows of JSON lines: plain or packed, and an error that says where."""

import gzip
from pathlib import Path

import pytest

from peft_study.corpora.rows import find_split, read_rows, texts
from peft_study.errors import DataError


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_read_plain_or_packed(tmp_path: Path, packed: bool) -> None:
    text = '{"a": "ü"}\n{"a": "2"}\n'
    file = tmp_path / ("test.jsonl.gz" if packed else "test.jsonl")
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert find_split(tmp_path, "test") == file
    assert list(read_rows(file)) == [{"a": "ü"}, {"a": "2"}]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold train.jsonl or train.jsonl.gz, but has neither"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize("line", ["{", "3", "", '["a"]'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(DataError, match=r"test.jsonl, line 2: every line must be a JSON object"):
        list(read_rows(file))


@pytest.mark.parametrize("damage", ["cut", "no gzip", "no text"])
def test_a_damaged_file_is_an_error(tmp_path: Path, damage: str) -> None:
    file = tmp_path / ("test.jsonl" if damage == "no text" else "test.jsonl.gz")
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    file.write_bytes({"cut": whole[: len(whole) // 2], "no gzip": b"{}\n", "no text": b'{"a": "\xff"}\n'}[damage])
    with pytest.raises(DataError, match=r"line [0-9]+: every line .* get the file anew"):
        list(read_rows(file))


@pytest.mark.parametrize("value", [None, "", "  \n", 3, ["a"]])
def test_a_field_must_be_a_text(value: object) -> None:
    assert texts({"a": " x\n", "b": "y"}, "here", "a", "b") == ["x", "y"]
    with pytest.raises(DataError, match="here: `a` must be a text, but is "):
        texts({"a": value}, "here", "a")
