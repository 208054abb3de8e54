"""Databases that are migrated once for all tests, a fake trial in place of training, and a table of tuned rates."""

import csv
import importlib.util
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from sqlalchemy import event
from sqlalchemy.engine import Engine

from peft_study.records import COLUMNS
from peft_study.study.ledger import Ledger
from peft_study.study.plan import Plan, build_plan
from peft_study.study.sweep_file import Sweep, read_sweep
from peft_study.study.tracking import Tracker

SWEEP: dict[str, Any] = {
    "question": "Does it run?",
    "trial": {"training": {"tokens": 1_200, "lr": 0.001}, "evaluation": {"n": 8}},
    "seeds": [0, 1],
    "arms": {
        "correction-lora": {
            "trial": {"skill": {"name": "correction"}, "method": {"name": "lora"}},
            "grid": {"method.rank": [1, 4]},
        },
        "detection-full": {"trial": {"skill": {"name": "detection"}, "method": {"name": "full"}}},
    },
}


@pytest.fixture(scope="session", autouse=True)
def _hurry() -> Iterator[None]:
    """Let databases not wait for the disk: a test that is killed loses nothing that matters."""

    def hurry(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """Return the module of the fake trial, which is also a program."""
    path = Path(__file__).with_name("fake_sweep.py")
    spec = importlib.util.spec_from_file_location("fake_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_sweep"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both databases, made once: making MLflow's takes seconds."""
    runs = tmp_path_factory.mktemp("databases")
    Tracker(runs, Sweep(name="template"))
    Ledger(runs, "template").close()
    return runs


@pytest.fixture
def runs(tmp_path: Path, databases: Path) -> Path:
    """Return an empty folder of runs, with databases that only have their tables."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for name in ("optuna.db", "mlflow.db"):
        shutil.copy(databases / name, folder / name)
    return folder


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a sweep file: SWEEP, with other top-level values."""

    def write(name: str = "made_up", **changes: Any) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture
def plan(write_sweep: Callable[..., Path]) -> Plan:
    """Return the plan of SWEEP: three cells with two seeds."""
    return build_plan(read_sweep(str(write_sweep())))


class TunedRow(NamedTuple):
    """One row of a table of tried learning rates."""

    lr: float
    value: float
    skill: str = "correction"
    method: str = "lora"
    rank: int | str = 4
    targets: str = "all-linear"
    seed: int | str = 0
    split: str = "validation"
    status: str = "finished"
    set: str = "ood"
    op: int = 6
    metric: str = "accuracy"
    family: str = "nano"
    tokens: int = 524_288
    base: str = "error-free"
    retry_rate: float = 0.5
    mask: str = "true"


@pytest.fixture
def write_rates(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a table of tried learning rates."""

    def write(*rows: TunedRow) -> Path:
        path = tmp_path / "lr.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(row._asdict() for row in rows)
        return path

    return write


@pytest.fixture
def tuned_row() -> type[TunedRow]:
    """Return the maker of rows for `write_rates`."""
    return TunedRow


class Database(NamedTuple):
    """What the databases of a folder say, read without their tools."""

    optuna: list[tuple[str, str, float | None]]
    """(trial id, state, value), sorted."""
    runs: list[tuple[str, str]]
    """(run name, status) of the runs that are not deleted, sorted."""
    metrics: list[tuple[str, str, int, float]]
    """(run name, key, step, value), sorted."""


@pytest.fixture
def read_databases() -> Callable[[Path], Database]:
    """Return a function that reads the databases of a folder of runs."""

    def read(folder: Path) -> Database:
        optuna = _select(
            folder / "optuna.db",
            "SELECT json_extract(a.value_json, '$'), t.state, v.value FROM trials t"
            " JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'trial'"
            " LEFT JOIN trial_values v ON v.trial_id = t.trial_id",
        )
        active = "FROM runs r WHERE r.lifecycle_stage = 'active'"
        runs = _select(folder / "mlflow.db", f"SELECT name, status {active}")
        metrics = _select(
            folder / "mlflow.db",
            f"SELECT r.name, m.key, m.step, m.value {active.replace('WHERE', 'JOIN metrics m USING (run_uuid) WHERE')}",
        )
        return Database(sorted(optuna), sorted(runs), sorted(metrics))

    return read


def _select(database: Path, query: str) -> list[Any]:
    connection = sqlite3.connect(database)
    try:
        return list(connection.execute(query))
    finally:
        connection.close()
