"""MLflow says what the results say: once, with the right status, wherever the folder lies."""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from peft_study.errors import StoreError
from peft_study.igsm.families import NANO
from peft_study.records import Status
from peft_study.study.config import build_config, flatten
from peft_study.study.mlflow_store import ui_address, ui_command
from peft_study.study.plan import Plan
from peft_study.study.stores import read_metrics
from peft_study.study.tracking import Tracker, dataset_of, log_parent_artifacts, summary

Read = Callable[[Path], Any]


def finish(plan: Plan, runs: Path, fake: Any, which: int = 0) -> Tracker:
    """Run one trial by hand, as the sweep does."""
    planned, tracker = plan.trials[which], Tracker(runs, plan.sweep)
    tracker.log_plan(plan.trials)
    tracked = tracker.start(planned, which)
    folder = runs / plan.sweep.name / planned.trial
    result = fake.FakeTrial()(
        planned.config,
        folder,
        trial=planned.trial,
        arm=planned.arm,
        sweep=plan.sweep.name,
        on_progress=lambda report: None,
        on_metrics=tracked.log,
    )
    tracked.finish(result, folder)
    return tracker


def test_a_run_holds_config_metrics_dataset_and_artifacts(plan: Plan, runs: Path, fake: Any) -> None:
    tracker, planned = finish(plan, runs, fake), plan.trials[0]
    run = tracker.children[planned.trial]
    assert tracker.parent is not None
    assert run.info.status == "FINISHED"
    assert run.info.run_name == planned.trial
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    assert tags == {
        "trial": planned.trial,
        "arm": planned.arm,
        "sweep": "made_up",
        "status": "finished",
        "optuna_trial_number": "0",
    }
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent.info.run_id
    assert run.data.params == {key: str(value) for key, value in flatten(planned.config.model_dump()).items()}
    result = json.loads((runs / "made_up" / planned.trial / "result.json").read_text())
    assert summary(result).items() <= run.data.metrics.items()
    assert run.data.metrics[f"ood_op{NANO.headline_op}/accuracy"] == result["measures"][1]["value"]
    history = tracker.client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == [100 * i for i in range(1, 13)]
    assert run.inputs is not None
    (read,) = run.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == dataset_of(planned.config)[:2]
    artifacts = {artifact.path for artifact in tracker.client.list_artifacts(run.info.run_id)}
    assert artifacts == {"result.json", "outcomes.npz", "metrics.jsonl", "adapter"}


def test_the_parent_holds_plan_and_sweep(plan: Plan, runs: Path) -> None:
    tracker = Tracker(runs, plan.sweep)
    assert not tracker.plan_is_logged(plan.trials)
    tracker.log_plan(plan.trials)
    assert tracker.plan_is_logged(plan.trials)
    assert not tracker.plan_is_logged(plan.trials[1:])
    again = Tracker(runs, plan.sweep)
    assert again.parent is not None
    assert again.plan_is_logged(plan.trials)
    assert again.parent.data.tags["mlflow.note.content"] == plan.sweep.question
    folder = Path(again.parent.info.artifact_uri or "")
    assert json.loads((folder / "plan.json").read_text())[0] == {
        "trial": plan.trials[0].trial,
        "arm": "correction-lora-r1",
        "alarms": [],
        "config": plan.trials[0].config.model_dump(mode="json"),
    }
    assert json.loads((folder / "sweep.json").read_text())["question"] == plan.sweep.question


def test_what_is_logged_is_not_logged_again(plan: Plan, runs: Path, fake: Any, read_databases: Read) -> None:
    finish(plan, runs, fake)
    planned, before = plan.trials[0], read_databases(runs)
    tracker = Tracker(runs, plan.sweep)
    result = json.loads((runs / "made_up" / planned.trial / "result.json").read_text())
    tracker.client.set_tag(tracker.children[planned.trial].info.run_id, "status", "killed")
    tracker = Tracker(runs, plan.sweep)
    assert not tracker.is_complete(result)
    tracker.start(planned, 0).finish(result, runs / "made_up" / planned.trial)
    assert tracker.is_complete(result)
    assert read_databases(runs) == before


def test_metrics_that_a_kill_lost_are_read_from_the_trial(plan: Plan, runs: Path, fake: Any) -> None:
    planned, folder = plan.trials[0], runs / "made_up" / plan.trials[0].trial
    tracker = Tracker(runs, plan.sweep)
    tracked = tracker.start(planned, 0)
    result = fake.FakeTrial()(
        planned.config,
        folder,
        trial=planned.trial,
        arm=planned.arm,
        sweep="made_up",
        on_progress=lambda report: None,
        on_metrics=lambda step, metrics: None,
    )
    tracked.log(100, {"train/loss": 1.0})  # and never flushed
    tracker = Tracker(runs, plan.sweep)
    tracker.start(planned, 0).finish(result, folder)
    history = tracker.client.get_metric_history(tracker.children[planned.trial].info.run_id, "train/loss")
    assert [point.step for point in history] == [100 * i for i in range(1, 13)]


def test_a_cut_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_metrics(path)) == []
    path.write_text('{"tokens": 5, "a": 1.5, "note": "x"}\n{"tokens": 10, "a"')
    assert list(read_metrics(path)) == [(5, {"a": 1.5})]


@pytest.mark.parametrize(
    ("status", "shown"), [("finished", "FINISHED"), ("failed", "FAILED"), ("pruned", "KILLED"), ("killed", "KILLED")]
)
def test_statuses_are_those_of_mlflow(plan: Plan, runs: Path, status: str, shown: str) -> None:
    tracker = Tracker(runs, plan.sweep)
    tracker.start(plan.trials[0], 0).end(status)
    assert Tracker(runs, plan.sweep).children[plan.trials[0].trial].info.status == shown


def test_a_pruned_run_is_not_taken_for_a_killed_one(plan: Plan, runs: Path) -> None:
    tracker, trial = Tracker(runs, plan.sweep), plan.trials[0].trial
    tracker.start(plan.trials[0], 0).end(Status.KILLED)
    assert not tracker.is_complete({"trial": trial, "status": "pruned"})
    tracker.start(plan.trials[0], 0).end(Status.PRUNED)
    assert tracker.is_complete({"trial": trial, "status": "pruned"})


def test_leftovers_of_a_kill_are_ended(plan: Plan, runs: Path, read_databases: Read) -> None:
    Tracker(runs, plan.sweep).start(plan.trials[0], 0)
    Tracker(runs, plan.sweep).kill_leftovers()
    assert read_databases(runs).runs == [(plan.trials[0].trial, "KILLED"), ("made_up", "RUNNING")]


def test_a_run_killed_while_it_was_being_ended_goes_on(
    plan: Plan, runs: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan.trials[0]

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_terminated", kill)
    with pytest.raises(KeyboardInterrupt):
        finish(plan, runs, fake)
    monkeypatch.undo()
    tracker = Tracker(runs, plan.sweep)
    tracker.kill_leftovers()
    before = tracker.children[planned.trial]
    assert (before.info.status, before.data.tags["status"]) == ("KILLED", "finished")
    assert not tracker.is_complete({"trial": planned.trial, "status": "finished"})
    tracker.start(planned, 0).end(Status.FINISHED)
    assert tracker.is_complete({"trial": planned.trial, "status": "finished"})
    assert tracker.children[planned.trial].info.run_id == before.info.run_id


def test_a_trial_run_afresh_has_one_run_that_counts(plan: Plan, runs: Path, fake: Any, read_databases: Read) -> None:
    first = finish(plan, runs, fake).children[plan.trials[0].trial].info.run_id
    shutil.rmtree(runs / "made_up" / plan.trials[0].trial)
    tracker = finish(plan, runs, fake)
    assert tracker.children[plan.trials[0].trial].info.run_id != first
    assert [name for name, _ in read_databases(runs).runs].count(plan.trials[0].trial) == 1


def test_both_skills_of_a_pair_read_the_same_dataset() -> None:
    one, two = (build_config({"skill.name": name}) for name in ("correction", "detection"))
    assert dataset_of(one) == dataset_of(two)
    assert dataset_of(one)[0] == "nano/pq/retry/0.5"
    others = [
        build_config({key: value}) for key, value in {"seed": 1, "data.retry_rate": 0, "data.order": "qp"}.items()
    ]
    assert len({dataset_of(config)[1] for config in (one, *others)}) == 4


def test_a_moved_folder_finds_its_artifacts(plan: Plan, runs: Path, fake: Any, tmp_path: Path) -> None:
    finish(plan, runs, fake)
    moved = tmp_path / "elsewhere" / "100% of_my runs"
    moved.parent.mkdir()
    runs.rename(moved)
    tracker = Tracker(moved, plan.sweep)
    run = tracker.children[plan.trials[0].trial]
    downloaded = tracker.client.download_artifacts(run.info.run_id, "result.json", str(tmp_path))
    assert json.loads(Path(downloaded).read_text())["trial"] == plan.trials[0].trial
    assert tracker.plan_is_logged(plan.trials)
    tracker.start(plan.trials[1], 1)
    uri = tracker.children[plan.trials[1].trial].info.artifact_uri
    assert Path(uri or "").is_relative_to(moved)
    assert not runs.exists()


def test_report_files_go_to_the_parent_once(plan: Plan, runs: Path, fake: Any, tmp_path: Path) -> None:
    finish(plan, runs, fake)
    page, figures = tmp_path / "report.md", tmp_path / "figures"
    page.write_text("one")
    figures.mkdir()
    (figures / "headline.png").write_text("picture")
    log_parent_artifacts("made_up", [page, figures], runs, reported="abc")
    parent = Tracker(runs, plan.sweep).parent
    assert parent is not None
    there = Path(parent.info.artifact_uri or "")
    assert (there / "figures" / "headline.png").read_text() == "picture"
    assert Tracker(runs, plan.sweep).reported() == "abc"
    before = (there / "report.md").stat().st_mtime_ns
    log_parent_artifacts("made_up", [page], runs, reported="abc")
    assert (there / "report.md").stat().st_mtime_ns == before
    page.write_text("two")
    log_parent_artifacts("made_up", [page], runs)
    assert (there / "report.md").read_text() == "two"


def test_a_report_of_no_sweep_says_what_to_run(runs: Path) -> None:
    with pytest.raises(StoreError, match=r"sweep other has no run in .*make sweep SWEEP=other"):
        log_parent_artifacts("other", [], runs)
    nowhere = runs / "nowhere"
    with pytest.raises(StoreError, match="sweep other has no run"):
        log_parent_artifacts("other", [], nowhere)
    assert not nowhere.exists()


def test_ui_command_is_for_this_machine_only(runs: Path) -> None:
    command = ui_command(runs, port=5_005)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert command[4:8] == ["--host", "127.0.0.1", "--port", "5005"]
    assert f"sqlite:///{runs.resolve() / 'mlflow.db'}" in command


def test_the_address_is_that_of_the_runs(plan: Plan, runs: Path) -> None:
    number = Tracker(runs, plan.sweep).experiment_id
    expected = f"http://127.0.0.1:5005/#/experiments/{number}?workflowType=machine_learning"
    assert ui_address(runs, port=5_005) == expected


def test_ui_without_runs_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run `make sweep` first"):
        ui_command(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ui_of_a_foreign_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="belongs to something else"):
        ui_command(tmp_path)
