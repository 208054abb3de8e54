"""MLflow to the tidy table."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from analysis.export import export_sweep, read_sweep, results_path
from analysis.rows import SweepRecord
from analysis.table import read_results, trial_rows, write_results
from peft_study.errors import DataError, StoreError


def test_export_says_what_the_records_say(
    runs: Path, sweep: SweepRecord, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = export_sweep(sweep.name, runs)
    assert path == results_path(sweep.name, runs) == runs / sweep.name / "results.csv"
    write_results(tmp_path / "expected.csv", rows)
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_second_export_changes_nothing(runs: Path, sweep: SweepRecord) -> None:
    path = export_sweep(sweep.name, runs)
    before = path.stat().st_mtime_ns
    export_sweep(sweep.name, runs)
    assert path.stat().st_mtime_ns == before


def test_sweep_is_read_with_its_question_and_roles(runs: Path, sweep: SweepRecord) -> None:
    read = read_sweep(sweep.name, runs)
    assert (read.question, read.first_look, read.gap, read.figures) == (sweep.question, True, sweep.gap, ("headline",))
    assert [(record.trial, record.status) for record in read.trials] == [
        (record.trial, record.status) for record in sweep.trials
    ]


def test_trials_without_a_result_are_rows(runs: Path) -> None:
    rows = trial_rows(read_results(export_sweep("broken", runs)))
    unfinished = rows.loc[rows["status"] != "finished"]
    assert list(unfinished["status"]) == ["killed", "failed", "missing"]
    assert unfinished["value"].isna().all()
    assert list(unfinished["reason"]) == [
        "stopped before it ended",
        "raised before it could write a result",
        "not yet run",
    ]


def test_a_folder_of_runs_may_be_moved(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(runs, moved)
    for file in moved.glob("mlartifacts/**/result.json"):
        # What is read is what lies here, not at the absolute paths that MLflow has stored.
        file.write_text(file.read_text().replace('"seconds": 41.5', '"seconds": 77.5'))
    assert ",77.5," in export_sweep("broken", moved).read_text()


def test_a_finished_trial_without_outcomes_is_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    for file in (tmp_path / "runs").glob("mlartifacts/**/outcomes.npz"):
        file.unlink()
    with pytest.raises(DataError, match=r"has no outcomes\.npz"):
        export_sweep("broken", tmp_path / "runs")


def test_an_unknown_sweep_is_named(runs: Path) -> None:
    with pytest.raises(DataError, match="no sweep called 'slow'"):
        export_sweep("slow", runs)


def test_nothing_is_made_where_there_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no runs are stored"):
        export_sweep("quick", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    connection = sqlite3.connect(database)
    connection.execute("create table recipes (name text)")
    connection.commit()
    connection.close()
    before = database.read_bytes()
    with pytest.raises(StoreError, match="must be the database of MLflow"):
        export_sweep("quick", tmp_path)
    assert database.read_bytes() == before
