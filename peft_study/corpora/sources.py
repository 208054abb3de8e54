"""Rows of a data set, wherever it lies: a file, a folder, or the Hub. The door to `datasets` for what is read."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from peft_study.corpora.rows import read_rows
from peft_study.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""Names of files that are read end so."""


class Rows(NamedTuple):
    """Rows, and how to name one of them."""

    rows: Iterator[Mapping[str, Any]]
    """To be read once; DataError where one cannot be."""
    place: str
    """What stands before the number of a row, counted from 1, such as `a.jsonl, row`."""


def is_file_name(name: str) -> bool:
    """Return whether a name is that of a file that can be read, by its end."""
    return name.endswith(SUFFIXES)


def source(name: str, split: str, subset: str = "") -> Rows:
    """Return the rows of a file, of `split` in a folder (the file of that name, if there is one), or of the Hub.

    A file has no splits: `split` is not looked at. DataError where there is nothing of that name.
    """
    if is_file_name(name):
        return _file(Path(name))
    if Path(name).is_file():
        raise DataError(f"{name} must end with one of {', '.join(SUFFIXES)}, which says how to read it; rename it")
    if Path(name).is_dir():
        files = [file for suffix in SUFFIXES if (file := Path(name) / f"{split}{suffix}").is_file()]
        return _file(files[0]) if files else Rows(_dataset(name, split, subset, streaming=True), f"{name} {split}, row")
    return Rows(_dataset(name, split, subset), f"{name} {split}, row")


def _file(file: Path) -> Rows:
    if not file.is_file():
        raise DataError(f"there is no file {file}; give the path of one, or the name of a `datasets` data set")
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet}
    return Rows(readers.get(file.suffix, read_rows)(file), f"{file}, row")


def _json(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSON list; some call a file of JSON lines so too."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        yield from read_rows(file)
        return
    rows = found if isinstance(found, list) else [found]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {i + 1}: must be a JSON object, but is {str(row)[:40]!r}; list objects")
        yield row


def _csv(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table with a head; every value stays a text, so that `007` does."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        number = 0
        try:
            for row in csv.DictReader(opened, strict=True):
                if None in row or None in row.values():
                    raise ValueError("it has more values than columns, or fewer")
                yield row
                number += 1
        except (csv.Error, ValueError) as error:
            raise DataError(f"{file}, row {number + 1}: cannot be read ({error}); mend it, or use JSON lines") from None


def _parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    return _dataset("parquet", "train", "", streaming=True, data_files={"train": str(file)})


def _dataset(
    name: str, split: str, subset: str, *, streaming: bool = False, data_files: dict[str, str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a data set; what lies here is streamed, so that no copy of it is kept."""
    from datasets import load_dataset  # a second, for those who have no plain file
    from datasets.exceptions import DatasetsError

    try:
        found: Any = load_dataset(name, subset or None, split=split, streaming=streaming, data_files=data_files)
        yield from found
    except (OSError, ValueError, DatasetsError) as error:
        where = next(iter(data_files.values())) if data_files else f"{name} ({split})"
        said = " ".join(str(error).split())[:160]
        raise DataError(
            f"{where} cannot be read ({said}); check the name, subset and split, or the file, and your connection "
            "where it is on the Hub"
        ) from None
