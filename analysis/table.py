"""The tidy table on disk: its columns' types, and how a cell is written and read.

A row is a measure of a trial, or of an arm (all its trials pooled): then `trial` names the arm and `seed` is empty.
A trial or arm without numbers is one row whose `metric` is empty.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from peft_study.errors import DataError
from peft_study.files import replacing
from peft_study.records import COLUMNS, METRICS, Status

INTEGERS = frozenset(
    {"rank", "base_seed", "seed", "tokens", "tokens_with_loss", "trainable_params", "op", "n"},
)
BOOLEANS = frozenset({"mask", "converged"})
FLOATS = frozenset({"lora_alpha", "lr", "retry_rate", "value", "low", "high", "seconds", "peak_memory_mib"})
_TRIAL_TAIL = re.compile(r"-s\d+-b\d+-[0-9a-f]+$")


def arm_of(trial: str) -> str:
    """Return the arm of a trial id or arm name.

    >>> arm_of("correction-lora-r4-s0-b1-1a2b3c4d5e"), arm_of("control")
    ('correction-lora-r4', 'control')
    """
    return _TRIAL_TAIL.sub("", trial)


def trial_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of single trials."""
    return frame.loc[frame["seed"].notna()]


def arm_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of arms, all their trials pooled."""
    return frame.loc[frame["seed"].isna()]


def dtype_of(column: str) -> str:
    """Return the pandas dtype of a column; integers and booleans are the nullable ones."""
    if column in INTEGERS:
        return "Int64"
    if column in BOOLEANS:
        return "boolean"
    return "float64" if column in FLOATS else "str"


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the table of `rows`; a key that a row lacks is an empty cell."""
    series = {}
    for column in COLUMNS:
        cells = [_empty_if_none(column, row.get(column)) for row in rows]
        series[column] = pd.Series(cells, dtype=dtype_of(column))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return pd.DataFrame(series, columns=list(COLUMNS))


def to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table; an empty cell that is no text is None."""
    return [
        {column: None if cell is not None and cell != "" and pd.isna(cell) else cell for column, cell in row.items()}
        for row in frame.to_dict("records")
    ]  # pyright: ignore[reportReturnType]


def format_cell(column: str, value: Any) -> str:
    """Return the text of a cell: the same value always gives the same text.

    >>> format_cell("value", 1 / 3), format_cell("mask", True), format_cell("op", None)
    ('0.333333', 'true', '')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column in INTEGERS:
        return str(int(value))
    if column in BOOLEANS:
        return "true" if value else "false"
    if column in ("seconds", "peak_memory_mib"):
        return f"{value:.1f}"
    if column in FLOATS:
        return f"{value:.6g}"
    return " ".join(str(value).split())


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Write `rows` to `path` in one move; return False, and leave the file alone, where it says so already."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([format_cell(column, row.get(column)) for column in COLUMNS] for row in rows)
    return write_if_changed(path, text.getvalue().encode())


def write_if_changed(path: Path, content: bytes) -> bool:
    """Put `content` at `path` in one move; return False where it is there already."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        new.write_bytes(content)
    return True


def read_results(path: Path) -> pd.DataFrame:
    """Return the table in `path` with declared types; raise DataError with file and line where a row is malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no such table: {path}; `peft-study sweep` makes it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    try:
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            missing = [column for column in COLUMNS if column not in header]
            raise DataError(
                f"{path}:1: the header must hold the {len(COLUMNS)} columns of a result, but lacks {missing}"
            )
        for cells in reader:
            rows.append(_parse_row(cells, where=f"{path}:{reader.line_num}"))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    return to_frame(rows)


def _parse_row(cells: list[str], *, where: str) -> dict[str, Any]:
    if len(cells) != len(COLUMNS):
        raise DataError(f"{where}: a row must have {len(COLUMNS)} cells, but has {len(cells)}")
    row = {column: _parse_cell(column, cell, where) for column, cell in zip(COLUMNS, cells, strict=True)}
    if row["status"] not in tuple(Status):
        raise DataError(f"{where}: status must be one of {', '.join(Status)}, but is {row['status']!r}")
    if row["metric"] and row["metric"] not in METRICS:
        raise DataError(f"{where}: metric must be one of {', '.join(METRICS)}, but is {row['metric']!r}")
    return row


def _parse_cell(column: str, cell: str, where: str) -> Any:
    kind = "an integer" if column in INTEGERS else "a number" if column in FLOATS else "true or false"
    try:
        if column in BOOLEANS:
            return {"true": True, "false": False, "": None}[cell]
        if column in INTEGERS:
            return int(cell) if cell else None
        if column in FLOATS:
            return float(cell) if cell else None
    except (ValueError, KeyError):
        raise DataError(f"{where}: {column} must be {kind} or empty, but is {cell!r}") from None
    return cell


def _empty_if_none(column: str, value: Any) -> Any:
    if value is not None:
        return value
    if column in FLOATS:
        return math.nan
    return pd.NA if column in INTEGERS or column in BOOLEANS else ""
