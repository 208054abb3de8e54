"""What MLflow shows: a parent run per sweep, a child run per trial, both found again by their tags.

Every call names its run, so nothing depends on MLflow's global state, and every write first looks at what is there:
a killed sweep that is started again continues its runs and never makes a second one.
"""

import filecmp
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_study.errors import StoreError
from peft_study.igsm.families import family_named
from peft_study.records import Status
from peft_study.study.config import TrialConfig, flatten
from peft_study.study.logged_model import log_model
from peft_study.study.mlflow_store import open_store, runs_of
from peft_study.study.plan import PlannedTrial
from peft_study.study.reuse import SAMPLES
from peft_study.study.stores import MLFLOW, check_database, mlflow_path, read_metrics, storage_errors
from peft_study.study.sweep_file import Sweep

if TYPE_CHECKING:
    from mlflow.entities import Run

_PARENT = "mlflow.parentRunId"
ARTIFACTS = (
    "result.json",
    "outcomes.npz",
    SAMPLES,
    "config.yaml",
    "provenance.json",
    "samples.jsonl",
    "metrics.jsonl",
    "baseline.jsonl",
)
ADAPTER = "adapter"
CARD = "README.md"
"""Of an adapter: its model card, where it has one."""
RUN_STATUS = {
    Status.FINISHED: "FINISHED",
    Status.FAILED: "FAILED",
    Status.PRUNED: "KILLED",
    Status.KILLED: "KILLED",
}
COSTS = ("tokens", "tokens_with_loss", "trainable_params", "seconds", "peak_memory_mib")
BATCH = 100
"""Parameters of a write, MLflow's limit."""
METRIC_BATCH = 1_000
"""Metrics of a write, MLflow's limit."""
FLUSH_SECONDS = 10.0
"""Seconds that metrics wait for a common write; what a kill loses is read from `metrics.jsonl` at the end."""
TAG_LIMIT = 5_000


class Tracker:
    """The runs of one sweep."""

    def __init__(self, runs: Path, sweep: Sweep) -> None:
        """Open the store in the folder `runs`, making it where there is none; raise StoreError if it is not ours."""
        self.sweep = sweep
        self.client, self.experiment_id = open_store(runs)
        self.parent: Run | None = None
        self.children: dict[str, Run] = {}
        """Trial id to its run."""
        for run in runs_of(self.client, self.experiment_id, sweep.name):
            trial = run.data.tags.get("trial")
            if trial is None:
                self.parent = run
            else:
                self.children[trial] = run

    def open_parent(self) -> "Run":
        """Return the sweep's run, set to running."""
        sweep = self.sweep
        if self.parent is None:
            note = {"mlflow.note.content": sweep.question} if sweep.question else {}
            self.parent = self.client.create_run(
                self.experiment_id, run_name=sweep.name, tags={"sweep": sweep.name, **note}
            )
        elif self.parent.info.status != "RUNNING":
            self.client.update_run(self.parent.info.run_id, "RUNNING")
        self._reload_parent()
        assert self.parent is not None
        return self.parent

    def close_parent(self, status: Status) -> None:
        """End the sweep's run with `status`, unless it is there already."""
        if self.parent is not None and self.parent.info.status != RUN_STATUS[status]:
            self.client.set_terminated(self.parent.info.run_id, RUN_STATUS[status])
            self._reload_parent()

    def stop_parent(self) -> None:
        """End the sweep's run as killed, if it runs: one that had ended stays as it was."""
        if self.parent is not None and self.parent.info.status == "RUNNING":
            self.close_parent(Status.KILLED)

    def _reload_parent(self) -> None:
        assert self.parent is not None
        self.parent = self.client.get_run(self.parent.info.run_id)

    def plan_is_logged(self, planned: Iterable[PlannedTrial]) -> bool:
        """Return whether the parent run says exactly this of the plan."""
        parent = self.parent
        return parent is not None and all(
            _artifact(parent, name) == text for name, text in self._plan_texts(planned).items()
        )

    def log_plan(self, planned: Iterable[PlannedTrial]) -> None:
        """Put the planned trials and the sweep's own settings on the parent run."""
        run_id = self.open_parent().info.run_id
        for name, text in self._plan_texts(planned).items():
            self.client.log_text(run_id, text, name)

    def _plan_texts(self, planned: Iterable[PlannedTrial]) -> dict[str, str]:
        """Return artifact to its text."""
        plan = [trial.as_json() for trial in planned]
        return {"plan.json": _json(plan), "sweep.json": _json(self.sweep.model_dump(mode="json"))}

    def kill_leftovers(self) -> None:
        """End the runs that a kill has left running."""
        for trial, run in self.children.items():
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, RUN_STATUS[Status.KILLED])
                self.children[trial] = self.client.get_run(run.info.run_id)

    def is_complete(self, result: Mapping[str, Any]) -> bool:
        """Return whether the run of a trial says what its result says, below the sweep's run."""
        run = self.children.get(result["trial"])
        if run is None or self.parent is None or run.data.tags.get(_PARENT) != self.parent.info.run_id:
            return False
        return _has_status(run, result["status"])

    def start(self, planned: PlannedTrial, optuna_number: int) -> "TrialRun":
        """Return the run of a trial, a new one or the one that was begun, set to running."""
        run = self.children.get(planned.trial)
        if run is not None and (_has_status(run, Status.FINISHED) or _has_status(run, Status.PRUNED)):
            # Its result was deleted to run it afresh: curves of two attempts do not belong in one run.
            self.client.delete_run(run.info.run_id)
            run = None
        tags = {
            "trial": planned.trial,
            "arm": planned.arm,
            "sweep": self.sweep.name,
            "optuna_trial_number": str(optuna_number),
        }
        if planned.alarms:
            tags["alarms"] = "; ".join(planned.alarms)[:TAG_LIMIT]
        opened = self.parent if self.parent and self.parent.info.status == "RUNNING" else self.open_parent()
        # Another one than the run has had where somebody has deleted that.
        tags[_PARENT] = opened.info.run_id
        if run is None:
            run = self.client.create_run(self.experiment_id, run_name=planned.trial, tags=tags)
        else:
            self.client.update_run(run.info.run_id, "RUNNING")
        self.children[planned.trial] = run
        return TrialRun(self, planned, run, tags)

    def reported(self) -> str:
        """Return what the report on the parent was made from, '' where there is none."""
        return "" if self.parent is None else self.parent.data.tags.get("reported", "")


def _has_status(run: "Run", status: str) -> bool:
    """Return whether a run was ended with `status`; a kill may come between its tag and its end."""
    return run.data.tags.get("status") == status and run.info.status == RUN_STATUS[Status(status)]


class TrialRun:
    """The run of one trial."""

    def __init__(self, tracker: Tracker, planned: PlannedTrial, run: "Run", tags: dict[str, str]) -> None:
        self.client, self.tracker, self.planned, self.run_id = tracker.client, tracker, planned, run.info.run_id
        self.logged = self._logged(run)
        """(key, step) to the value that is already there."""
        self.waiting: dict[tuple[str, int], float] = {}
        self.flushed = time.monotonic()
        self._describe(run, {key: value for key, value in tags.items() if run.data.tags.get(key) != value})
        if "reason" in run.data.tags:
            # Of an attempt that failed; this one has none so far.
            self.client.delete_tag(self.run_id, "reason")

    def _logged(self, run: "Run") -> dict[tuple[str, int], float]:
        return {
            (key, point.step): point.value
            for key in run.data.metrics
            for point in self.client.get_metric_history(self.run_id, key)
        }

    def _describe(self, run: "Run", tags: dict[str, str]) -> None:
        """Log parameters, dataset and changed tags, unless a killed attempt has."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        config = self.planned.config
        flat = flatten(config.model_dump(mode="json"))
        params = [Param(key, str(value)) for key, value in flat.items() if key not in run.data.params]
        for i in range(0, len(params), BATCH):
            self.client.log_batch(self.run_id, params=params[i : i + BATCH])
        if tags:
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if run.inputs is None or not run.inputs.dataset_inputs:
            name, digest, source = dataset_of(config)
            dataset = Dataset(name=name, digest=digest, source_type="code", source=source)
            self.client.log_inputs(
                self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])], models=None
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log `metrics` at `step` (tokens read), together with others a little later."""
        self._collect(step, metrics)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _collect(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, number in metrics.items():
            before, value = self.logged.get((key, step)), float(number)
            if before is None or not (before == value or (math.isnan(before) and math.isnan(value))):
                self.waiting[key, step] = value

    def flush(self, tags: Mapping[str, str] | None = None) -> None:
        """Write the metrics that wait, and `tags`."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1_000)
        metrics = [Metric(key, value, now, step) for (key, step), value in self.waiting.items()]
        named = [RunTag(key, value) for key, value in (tags or {}).items()]
        for i in range(0, max(len(metrics), len(named)), METRIC_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[i : i + METRIC_BATCH], tags=named[i : i + METRIC_BATCH])
        self.logged.update(self.waiting)
        self.waiting.clear()
        self.flushed = time.monotonic()

    def finish(self, result: Mapping[str, Any], folder: Path) -> None:
        """Log what the trial has left in `folder` and end the run; may be repeated."""
        for step, metrics in read_metrics(folder / "metrics.jsonl"):
            self._collect(step, metrics)
        self._collect(int(result.get("tokens") or 0), summary(result))
        for name in ARTIFACTS:
            if (folder / name).exists():
                self.client.log_artifact(self.run_id, str(folder / name))
        finished = result["status"] == Status.FINISHED
        if finished and (folder / ADAPTER).is_dir():
            self.client.log_artifacts(self.run_id, str(folder / ADAPTER), ADAPTER)
        tags = {"reason": result["reason"][:TAG_LIMIT]} if result["reason"] else {}
        # The adapters of the study have no card of ours, but one of peft's that says nothing.
        if finished and self.planned.config.pretrained is not None and (card := folder / ADAPTER / CARD).is_file():
            tags["mlflow.note.content"] = card.read_text().split("---\n", 2)[-1][:TAG_LIMIT]
            log_model(
                self.client, self.tracker.experiment_id, self.run_id, self.planned.config, result, folder / ADAPTER
            )
        self.end(result["status"], tags)

    def end(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """Write what waits and end the run with `status`; the tag tells apart what MLflow calls KILLED alike."""
        self.flush({"status": str(status), **(tags or {})})
        self.client.set_terminated(self.run_id, RUN_STATUS[Status(status)])
        self.tracker.children[self.planned.trial] = self.client.get_run(self.run_id)


def dataset_of(config: TrialConfig) -> tuple[str, str, str]:
    """Return (name, digest, source) of what a trial reads: the same for both skills of a pair."""
    if config.corpus is not None:
        text = _json({"corpus": config.corpus.model_dump(mode="json"), "data": config.data.model_dump(mode="json")})
        name = f"{config.corpus.name}/{config.corpus.split}"
        return name, hashlib.sha256(text.encode()).hexdigest()[:32], text
    data = config.data
    settings = {"family": family_named(data.family).model_dump(mode="json"), **data.model_dump(mode="json")}
    settings["family_name"], settings["seed"] = data.family, config.seed
    text = _json(settings)
    name = f"{data.family}/{data.order}/{data.kind}/{data.retry_rate:g}"
    return name, hashlib.sha256(text.encode()).hexdigest()[:32], text


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """Return a result's numbers under the names they have in MLflow: `<set>_op<k>/<metric>` and `cost/<name>`."""
    named = {f"cost/{name}": result.get(name) for name in COSTS}
    for measure in result["measures"]:
        op = "" if measure["op"] is None else f"_op{measure['op']}"
        named[f"{measure['set']}{op}/{measure['metric']}"] = measure["value"]
    return {name: float(value) for name, value in named.items() if value is not None}


def _json(tree: object) -> str:
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def _artifact(run: "Run", name: str) -> str | None:
    """Return the text of an artifact, None where it is missing."""
    path = Path(run.info.artifact_uri or "", name)
    return path.read_text() if path.is_file() else None


def log_parent_artifacts(sweep: str, files: Iterable[Path], runs: Path, *, reported: str = "") -> None:
    """Put the report's files (and folders of files) on the parent run of `sweep`, those that are new or changed.

    `reported` names what they were made from, so that the next run of the sweep need not make them again.
    """
    with storage_errors(runs):
        tracker = Tracker(runs, Sweep(name=sweep)) if check_database(mlflow_path(runs), MLFLOW) else None
        if tracker is None or tracker.parent is None:
            raise StoreError(f"sweep {sweep} has no run in {mlflow_path(runs)}; run `make sweep SWEEP={sweep}` first")
        run = tracker.parent
        for file in files:
            there = Path(run.info.artifact_uri or "", file.name)
            if file.is_dir():
                tracker.client.log_artifacts(run.info.run_id, str(file), file.name)
            elif not (there.is_file() and filecmp.cmp(file, there, shallow=False)):
                tracker.client.log_artifact(run.info.run_id, str(file))
        if reported and tracker.reported() != reported:
            tracker.client.set_tag(run.info.run_id, "reported", reported)
