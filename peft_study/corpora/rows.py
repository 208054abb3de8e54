"""Rows of a data set: JSON lines, plain or packed with gzip, and the texts in them."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft_study.errors import DataError


def find_split(folder: Path, split: str) -> Path:
    """Return the file of a split in a folder; DataError if there is none."""
    files = [folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"]
    for file in files:
        if file.is_file():
            return file
    raise DataError(
        f"{folder} must hold {files[0].name} or {files[1].name}, but has neither; give the folder that "
        "does as corpus.path"
    )


def read_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file of JSON lines; DataError at a line that is none."""
    number = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it holds {line.strip()[:40]!r}")
                yield row
    except (ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{file}, line {max(number, 1)}: every line must be a JSON object ({error}); get the file anew"
        ) from None


def texts(row: Mapping[str, Any], place: str, *names: str) -> list[str]:
    """Return fields of a row, stripped; DataError where one is no text or empty. `place` says where the row stands."""
    for name in names:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: `{name}` must be a text, but is {str(value)[:40]!r}; give the published rows")
    return [row[name].strip() for name in names]
