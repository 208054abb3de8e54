"""Files that must survive anything: atomic writes, and databases that may belong to something else."""

import errno
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from peft_study.errors import PeftStudyError, StoreError
from peft_study.files import locked


class Kind(NamedTuple):
    """How a tool's SQLite file is recognised."""

    tool: str
    tables: frozenset[str]
    """Tables that every version of the tool has."""
    revision: str
    """Pattern of the tool's schema revisions, in the table that both tools call `alembic_version`."""


OPTUNA = Kind("Optuna", frozenset({"studies", "trials", "version_info", "alembic_version"}), r"v\d.*")
MLFLOW = Kind("MLflow", frozenset({"experiments", "runs", "metrics", "params", "alembic_version"}), r"[0-9a-f]{12}")


def optuna_path(runs: Path) -> Path:
    """Return Optuna's database in the folder `runs`."""
    return runs.resolve() / "optuna.db"


def mlflow_path(runs: Path) -> Path:
    """Return MLflow's database in the folder `runs`."""
    return runs.resolve() / "mlflow.db"


def check_stores(runs: Path) -> None:
    """Raise StoreError, before anything is touched, where a database under `runs` is not ours."""
    if runs.exists() and not runs.is_dir():
        raise StoreError(f"{runs} must be a folder, but is a file; choose another folder with --runs")
    check_database(optuna_path(runs), OPTUNA)
    check_database(mlflow_path(runs), MLFLOW)


def _tables(path: Path) -> tuple[set[str], str]:
    """Return the tables of a SQLite file and its schema revision, without touching anything beside it."""
    # `immutable` keeps SQLite from making files of its own and from wanting to roll back what a kill left half done;
    # it would not see what is still in a write-ahead log.
    wal = path.with_name(path.name + "-wal")
    mode = "mode=ro" if wal.exists() and wal.stat().st_size else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
    try:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        revision = ""
        if "alembic_version" in names:
            row = connection.execute("SELECT * FROM alembic_version").fetchone()
            revision = str(row[0]) if row else ""
        return names, revision
    finally:
        connection.close()


def check_database(path: Path, kind: Kind) -> bool:
    """Return whether `path` is a database of `kind`; False where there is none yet.

    Raises StoreError, before anything is touched, where the file belongs to something else.
    """
    remedy = "move the file away or choose another folder with --runs"
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return False
    try:
        names, revision = _tables(path)
    except sqlite3.Error:
        raise StoreError(f"{path} must be the SQLite file of {kind.tool}, but is no SQLite file; {remedy}") from None
    if not names:
        return False
    other = OPTUNA if kind is MLFLOW else MLFLOW
    if (other.tables - {"alembic_version"}) <= names:
        raise StoreError(f"{path} must be the database of {kind.tool}, but holds tables of {other.tool}; {remedy}")
    missing = sorted(kind.tables - names)
    if missing or not re.fullmatch(kind.revision, revision):
        shown = ", ".join(sorted(names)[:4])
        raise StoreError(
            f"{path} must be the database of {kind.tool}, but belongs to something else (tables: {shown}); {remedy}"
        )
    return True


def create_database(path: Path, create: Callable[[Path], object]) -> None:
    """Make the database `path` with `create` in a file beside it, so that a kill leaves a whole one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with locked(path.with_name(f".{path.name}.lock"), wait=True):
        if path.exists() and path.stat().st_size:
            return
        for left in path.parent.glob(f"{new.name}*"):
            left.unlink()
        create(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of the trial in `folder`; None where it has not ended."""
    path = folder / "result.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreError(f"{path} is no JSON ({error}); delete it to run the trial again") from error


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (tokens, metrics) of each line of a trial's `metrics.jsonl`."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            return  # A kill may have cut the last line; the trial wrote it again after its last checkpoint.
        yield int(record.pop("tokens")), {key: value for key, value in record.items() if isinstance(value, int | float)}


_FULL = "no space left on the disk under {place}; free some and run the same command again, it goes on where it stopped"
_DENIED = "cannot write under {place}: {error}; make it writable or choose another folder with --runs"
_LOCKED = "a database under {place} is held by another program; close it and run the same command again"
_BY_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), _DENIED),
}
_BY_TEXT = {
    "database or disk is full": _FULL,
    "readonly database": _DENIED,
    "unable to open database": _DENIED,
    "database is locked": _LOCKED,
    "out-of-date database schema": "{error}",
    "no longer compatible with the table schema": "{error}",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def as_store_error(error: BaseException, place: Path) -> StoreError | None:
    """Return what `error` means to the user where it is about disk or database, else None."""
    if isinstance(error, PeftStudyError):
        return error if isinstance(error, StoreError) else None
    for link in _chain(error):
        template = _BY_ERRNO.get(link.errno or 0) if isinstance(link, OSError) else None
        if template is None:
            template = next((found for text, found in _BY_TEXT.items() if text in str(link)), None)
        if template is not None:
            # SQLAlchemy says first what it was doing; the database says what is wrong.
            said = next((each for each in _chain(error) if isinstance(each, sqlite3.Error)), link)
            shown = str(said).splitlines()[0]
            return StoreError(template.format(place=place, error=shown))
    return None


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Turn errors of disk and databases under `place` into StoreError with its remedy."""
    try:
        yield
    except Exception as error:
        meant = as_store_error(error, place)
        if meant is None or meant is error:
            raise
        raise meant from error


@contextmanager
def best_effort() -> Iterator[None]:
    """Try to leave things tidy on the way out of an error, which must not be hidden by a second one."""
    with suppress(Exception):
        yield
