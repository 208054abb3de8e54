"""MLflow to the tidy table: the only reader of the runs' database.

A sweep is a parent run with `sweep.json` and `plan.json`; each trial is a child run with `result.json` and
`outcomes.npz`, or `samples.npz` where it was taken from a published table. Planned trials without a run are missing,
and are rows too.
"""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.rows import SweepRecord, TrialRecord, kept_samples, rows_of
from analysis.table import write_results
from peft_study.errors import DataError
from peft_study.records import Status
from peft_study.study.mlflow_store import EXPERIMENT, artifacts_path, open_client, runs_of
from peft_study.study.reuse import SAMPLES, read_trials
from peft_study.study.stores import MLFLOW, check_database, mlflow_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def results_path(sweep: str, runs: Path) -> Path:
    """Return where the tidy table of a sweep lies."""
    return runs / sweep / "results.csv"


def export_sweep(sweep: str, runs: Path) -> Path:
    """Write the tidy table of `sweep` and return its path; a table that says the same already is left alone."""
    return export_record(read_sweep(sweep, runs), runs)


def export_record(record: SweepRecord, runs: Path) -> Path:
    """Write the tidy table of a sweep that has been read, as `export_sweep`."""
    path = results_path(record.name, runs)
    write_results(path, rows_of(record))
    return path


class _Artifacts(NamedTuple):
    """Where the files of runs lie. MLflow stores absolute paths, which a folder of runs that was moved outlives."""

    stored: str
    here: Path

    def read(self, run: "Run", name: str, *, must: bool = True) -> bytes:
        """Return the content of a file; empty where it may be missing and is."""
        path = self.here / str(run.info.artifact_uri).removeprefix(self.stored).lstrip("/") / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            if not must:
                return b""
            remedy = "delete the trial's folder and run the sweep again"
            raise DataError(f"MLflow run {run.info.run_name} has no {name}: {path} is missing; {remedy}") from None

    def read_json(self, run: "Run", name: str, *, must: bool = True) -> Any:
        """Return what a JSON file holds; an empty mapping where it may be missing and is."""
        content = self.read(run, name, must=must)
        try:
            return json.loads(content) if content else {}
        except ValueError as error:
            raise DataError(f"{name} of MLflow run {run.info.run_name} is not JSON: {error}") from error


def read_sweep(sweep: str, runs: Path) -> SweepRecord:
    """Return everything that MLflow knows of `sweep`."""
    database = mlflow_path(runs)
    client = _client(database)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = [] if experiment is None else list(runs_of(client, experiment.experiment_id, sweep))
    parent = next((run for run in found if "trial" not in run.data.tags), None)
    if experiment is None or parent is None:
        raise DataError(f"{database} holds no sweep called {sweep!r}; `peft-study sweep {sweep}` runs it")
    artifacts = _Artifacts(experiment.artifact_location, artifacts_path(runs))
    about, plan = artifacts.read_json(parent, "sweep.json"), artifacts.read_json(parent, "plan.json")
    children: dict[str, list[Run]] = {}
    for run in found:
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id:
            children.setdefault(run.data.tags.get("trial", ""), []).append(run)
    return SweepRecord(
        name=sweep,
        question=about.get("question") or "",
        first_look=bool(about.get("first_look")),
        gap=about.get("gap") or {},
        figures=tuple(about.get("figures", ("headline",))),
        trials=tuple(_read_trial(cell, children.get(cell["trial"], []), artifacts) for cell in plan),
        overrides=tuple(about.get("overrides", ())),
    )


def _client(database: Path) -> "MlflowClient":
    """Return a client on `database`, which must be there already."""
    if not check_database(database, MLFLOW):
        raise DataError(f"no runs are stored in {database}; `peft-study sweep` makes them")
    return open_client(database)


def _read_trial(cell: dict[str, Any], runs: list["Run"], artifacts: _Artifacts) -> TrialRecord:
    """Return what is known of the planned trial `cell`, of whose runs a finished one counts before the newest."""
    runs = sorted(runs, key=lambda run: run.info.status != "FINISHED")
    result = artifacts.read_json(runs[0], "result.json", must=False) if runs else {}
    if result and result["status"] == Status.FAILED and runs[0].info.status != "FAILED":
        # Of an attempt before the one that was stopped.
        result = {}
    if result:
        status, reason = Status(result["status"]), result.get("reason", "")
    elif not runs:
        status, reason = Status.MISSING, "not yet run"
    elif runs[0].info.status == "FAILED":
        status, reason = Status.FAILED, "raised before it could write a result"
    else:
        # Without a result a run can only have been stopped, even where its status still says that it is running.
        status, reason = Status.KILLED, "stopped before it ended"
    outcomes, kept = {}, None
    if status is Status.FINISHED and "reused" in result:
        trials = read_trials(artifacts.read(runs[0], SAMPLES), source=Path(cell["trial"], SAMPLES))
        kept = kept_samples(trials[cell["trial"]])
    elif status is Status.FINISHED:
        with np.load(io.BytesIO(artifacts.read(runs[0], "outcomes.npz")), allow_pickle=False) as file:
            outcomes = dict(file)
    config = result.get("config") or cell["config"]
    alarms = tuple(cell.get("alarms", ()))
    return TrialRecord(cell["trial"], cell["arm"], status, reason, config, result, outcomes, alarms, kept)
