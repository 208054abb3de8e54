"""The tidy table on disk."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.table import dtype_of, read_results, write_if_changed, write_results
from peft_study.errors import DataError
from peft_study.records import COLUMNS


@pytest.fixture
def path(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    target = tmp_path / "quick" / "results.csv"
    assert write_results(target, rows)
    return target


def test_table_reads_back_as_it_was_written(path: Path, frame: pd.DataFrame) -> None:
    back = read_results(path)
    assert {column: str(dtype) for column, dtype in back.dtypes.items()} == {c: dtype_of(c) for c in COLUMNS}
    pd.testing.assert_frame_equal(back, frame, rtol=1e-5)


def test_an_unchanged_table_is_not_written_again(path: Path, rows: list[dict[str, Any]]) -> None:
    before = path.stat().st_mtime_ns
    assert not write_results(path, rows)
    assert path.stat().st_mtime_ns == before
    assert write_results(path, rows[:-1])
    assert [file.name for file in path.parent.iterdir()] == ["results.csv"]


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "results.csv"
    target.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_if_changed(target, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("value", "high", "value must be a number or empty, but is 'high'"),
        ("op", "6.5", "op must be an integer or empty, but is '6.5'"),
        ("mask", "yes", "mask must be true or false or empty, but is 'yes'"),
        ("status", "done", "status must be one of finished"),
        ("metric", "acuracy", "metric must be one of accuracy"),
    ],
)
def test_a_malformed_cell_is_named_with_file_and_line(path: Path, column: str, cell: str, message: str) -> None:
    lines = path.read_text().splitlines()
    cells = lines[2].split(",", COLUMNS.index("config"))
    cells[COLUMNS.index(column)] = cell
    lines[2] = ",".join(cells)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"results\.csv:3: {message}"):
        read_results(path)


def test_a_row_that_was_cut_is_named(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:3]) + "\nmade-up,full\n")
    with pytest.raises(DataError, match=r"results\.csv:4: a row must have 36 cells, but has 2"):
        read_results(path)


def test_another_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"x\.csv:1: the header"):
        read_results(tmp_path / "x.csv")
    with pytest.raises(DataError, match="no such table"):
        read_results(tmp_path / "y.csv")
