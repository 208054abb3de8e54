"""MLflow's database in a folder of runs: opened, made, moved and shown."""

import logging
import os
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_study.errors import StoreError
from peft_study.study.stores import MLFLOW, check_database, create_database, mlflow_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "peft_study"


def artifacts_path(runs: Path) -> Path:
    """Return the folder of MLflow's artifacts in the folder `runs`."""
    return runs.resolve() / "mlartifacts"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep MLflow off the network, and its and its libraries' chatter off the terminal."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings():
        # MLflow 3 uses a loader strategy that SQLAlchemy 2.1 announces to remove.
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")
        # Of a type in MLflow itself.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
        yield


def open_client(database: Path) -> "MlflowClient":
    """Return a client on `database`; check first that it is there, for MLflow makes tables in any file it is given."""
    with quiet():
        from mlflow import MlflowClient

        # MLflow sets these levels itself when it is imported.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        uri = f"sqlite:///{database.resolve()}"
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create(database: Path) -> None:
    """Make MLflow's tables, without waiting for the disk after each of its hundred steps."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    try:
        open_client(database)
    finally:
        event.remove(Engine, "connect", hurry)


def _move_artifacts(database: Path, old: str, new: str) -> None:
    """Make the runs of a folder that was moved find their artifacts again: MLflow stores absolute paths."""
    connection = sqlite3.connect(database, timeout=20)
    try:
        with connection:
            places = (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
            )
            for table, column in places:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column} || '/', 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
    finally:
        connection.close()


def open_store(runs: Path) -> tuple["MlflowClient", str]:
    """Return a client on the store in the folder `runs` and the experiment's id; make both where there are none.

    Raises StoreError, before anything is touched, where the database belongs to something else.
    """
    database, location = mlflow_path(runs), str(artifacts_path(runs))
    if not check_database(database, MLFLOW):
        create_database(database, _create)
    client = open_client(database)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return client, client.create_experiment(EXPERIMENT, artifact_location=location)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if experiment.artifact_location != location:
        _move_artifacts(database, experiment.artifact_location, location)
    return client, experiment.experiment_id


def runs_of(client: "MlflowClient", experiment_id: str, sweep: str) -> Iterator["Run"]:
    """Yield all runs of `sweep`, its parent and those of its trials, the newest first."""
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.sweep = '{sweep}'",
            max_results=1_000,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def ui_command(runs: Path, *, port: int = 5000) -> list[str]:
    """Return the command that shows the runs in a browser, on this machine only."""
    database = mlflow_path(runs)
    if not check_database(database, MLFLOW):
        raise StoreError(f"there are no runs in {database} yet; run `make sweep` first")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    return [
        *command,
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(artifacts_path(runs)),
    ]


def ui_address(runs: Path, *, port: int = 5000) -> str:
    """Return where that command shows the runs: by itself MLflow 3 opens among traces and prompts."""
    experiment = open_client(mlflow_path(runs)).get_experiment_by_name(EXPERIMENT)
    assert experiment is not None, "whoever makes the database makes the experiment"
    return f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}?workflowType=machine_learning"
