"""A sweep runs every trial once, whatever happens to it."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from analysis.export import export_sweep
from analysis.table import read_results, to_rows, trial_rows
from peft_study.errors import ConfigError, StoreError
from peft_study.files import locked
from peft_study.models.places import base_folder, fingerprint
from peft_study.records import Status
from peft_study.study.plan import Plan, build_plan
from peft_study.study.progress import SweepProgress
from peft_study.study.stores import check_stores
from peft_study.study.sweep import Outcome, run_sweep
from peft_study.study.sweep_file import read_sweep
from peft_study.study.tracking import Tracker

Write = Callable[..., Path]
Read = Callable[[Path], Any]
VALIDATION = {"training": {"tokens": 1_200}, "evaluation": {"split": "validation"}}
SEARCH: dict[str, Any] = {
    "trials": 12,
    "metric": "loss",
    "space": {"training.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    "pruner": "none",
}


def sweep(plan: Plan, runs: Path, run: Any, **options: Any) -> Outcome:
    """Run a sweep in this process."""
    return run_sweep(plan, runs, run=run, workers=0, console=Console(file=io.StringIO()), **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(runs: Path, plan: Plan) -> dict[str, Any]:
    return {
        planned.trial: json.loads((runs / plan.sweep.name / planned.trial / "result.json").read_text())
        for planned in plan.trials
    }


def test_every_trial_is_run_and_told_once(plan: Plan, runs: Path, fake: Any, read_databases: Read) -> None:
    trial = fake.FakeTrial()
    outcome = sweep(plan, runs, trial)
    ids = [planned.trial for planned in plan.trials]
    assert trial.ran == ids
    assert outcome.statuses == dict.fromkeys(ids, Status.FINISHED)
    found = read_databases(runs)
    headline = {i: result["measures"][1]["value"] for i, result in results(runs, plan).items()}
    assert found.optuna == sorted((i, "COMPLETE", headline[i]) for i in ids)
    assert found.runs == sorted([("made_up", "FINISHED"), *((i, "FINISHED") for i in ids)])


def test_a_finished_sweep_is_left_as_it_is(plan: Plan, runs: Path, fake: Any) -> None:
    first = sweep(plan, runs, fake.FakeTrial())
    before = contents(runs)
    again = fake.FakeTrial()
    second = sweep(plan, runs, again)
    assert again.ran == []
    assert contents(runs) == before
    assert (first.changed, second.changed) == (True, False)
    assert (first.statuses, first.digest) == (second.statuses, second.digest)


def test_a_base_that_has_changed_stops_the_sweep_and_harms_nothing(
    plan: Plan, runs: Path, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(plan, runs, fake.FakeTrial())
    planned = plan.trials[0]
    weights = base_folder(planned.config.base, planned.config.data.family) / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"old")
    begun = {"base_weights": fingerprint(weights.parent)}
    (runs / plan.sweep.name / planned.trial / "provenance.json").write_text(json.dumps(begun))
    before = contents(runs)
    assert not sweep(plan, runs, fake.FakeTrial()).changed

    weights.write_bytes(b"new")
    with pytest.raises(StoreError, match=f"was made from other weights .{begun['base_weights']}."):
        sweep(plan, runs, fake.FakeTrial())
    assert contents(runs) == before

    weights.unlink()  # what is finished needs no base
    assert not sweep(plan, runs, fake.FakeTrial()).changed


def test_a_failed_trial_does_not_stop_the_sweep(plan: Plan, runs: Path, fake: Any, read_databases: Read) -> None:
    failing = fake.FakeTrial(failing=("correction-lora-r4",))
    outcome = sweep(plan, runs, failing)
    failed = [planned.trial for planned in plan.trials if planned.arm == "correction-lora-r4"]
    assert len(failing.ran) == 6
    assert outcome.reasons == dict.fromkeys(failed, "RuntimeError: loss is nan")
    found = read_databases(runs)
    assert {(i, state) for i, state, _ in found.optuna if state != "COMPLETE"} == {(i, "FAIL") for i in failed}
    assert {name for name, status in found.runs if status == "FAILED"} == {"made_up", *failed}

    untouched = fake.FakeTrial()
    assert sweep(plan, runs, untouched).reasons == outcome.reasons
    assert untouched.ran == []

    retried = fake.FakeTrial()
    assert sweep(plan, runs, retried, retry_failed=True).reasons == {}
    assert retried.ran == failed
    found = read_databases(runs)
    # Optuna cannot open an ended trial again, so a retried one has two: the newest counts.
    assert [(i, state) for i, state, _ in found.optuna if i == failed[0]] == [
        (failed[0], "COMPLETE"),
        (failed[0], "FAIL"),
    ]
    assert found.runs == sorted([("made_up", "FINISHED"), *((p.trial, "FINISHED") for p in plan.trials)])


def test_a_stopped_sweep_says_so_and_goes_on(plan: Plan, runs: Path, fake: Any, read_databases: Read) -> None:
    stopped = fake.FakeTrial()

    def stop(trial: str, step: int) -> None:
        if trial == plan.trials[2].trial and step == 6:
            raise KeyboardInterrupt

    stopped.at_step = stop
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, runs, stopped)
    found = read_databases(runs)
    assert [state for _, state, _ in found.optuna].count("WAITING") == 4
    assert dict(found.runs)[plan.trials[2].trial] == dict(found.runs)["made_up"] == "KILLED"
    assert "RUNNING" not in {status for _, status in found.runs}

    rest = fake.FakeTrial()
    sweep(plan, runs, rest)
    assert rest.ran == [planned.trial for planned in plan.trials[2:]]
    found = read_databases(runs)
    assert [state for _, state, _ in found.optuna] == ["COMPLETE"] * 6
    points = [(key, step) for name, key, step, _ in found.metrics if name == plan.trials[2].trial]
    assert len(points) == len(set(points))
    assert len([key for key, _ in points if key == "train/loss"]) == fake.NUM_STEPS


def test_a_result_that_no_database_knows_is_told(
    plan: Plan, runs: Path, databases: Path, fake: Any, read_databases: Read
) -> None:
    sweep(plan, runs, fake.FakeTrial())
    before = read_databases(runs)
    for name in ("optuna.db", "mlflow.db"):
        shutil.copy(databases / name, runs / name)
    again = fake.FakeTrial()
    sweep(plan, runs, again)
    assert again.ran == []
    after = read_databases(runs)
    assert after == before


def test_trials_that_left_the_plan_are_left_alone(
    write_sweep: Write, plan: Plan, runs: Path, fake: Any, read_databases: Read
) -> None:
    sweep(plan, runs, fake.FakeTrial())
    before = contents(runs / "made_up")
    fewer = build_plan(read_sweep(str(write_sweep(seeds=[0])), ["training.tokens=2400"]))
    outcome = sweep(fewer, runs, fake.FakeTrial())
    assert list(outcome.statuses) == [planned.trial for planned in fewer.trials]
    assert not set(outcome.statuses) & {planned.trial for planned in plan.trials}
    assert before.items() <= contents(runs / "made_up").items()
    assert len(read_databases(runs).optuna) == 9
    back = fake.FakeTrial()
    assert sweep(plan, runs, back).statuses.keys() == {planned.trial for planned in plan.trials}
    assert back.ran == []


def test_two_processes_cannot_run_the_same_sweep(plan: Plan, runs: Path, fake: Any) -> None:
    with locked(runs / "made_up" / ".lock"), pytest.raises(StoreError, match="sweep made_up is already running"):
        sweep(plan, runs, fake.FakeTrial())
    assert not (runs / "made_up" / plan.trials[0].trial).exists()


def test_a_full_disk_is_an_error_of_one_line_and_the_sweep_goes_on(
    plan: Plan, runs: Path, fake: Any, read_databases: Read
) -> None:
    full = fake.FakeTrial()

    def fill(trial: str, step: int) -> None:
        if trial == plan.trials[1].trial:
            raise OSError(errno.ENOSPC, "No space left on device")

    full.at_step = fill
    with pytest.raises(StoreError, match=r"no space left on the disk under .*run the same command again"):
        sweep(plan, runs, full)
    assert sweep(plan, runs, fake.FakeTrial()).reasons == {}
    assert {state for _, state, _ in read_databases(runs).optuna} == {"COMPLETE"}


def sqlite_with(*statements: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        import sqlite3

        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return make


FOREIGN = {
    "text": lambda path: path.write_text("not a database, but long enough to have a header of a hundred bytes" * 4),
    "tables of its own": sqlite_with("CREATE TABLE songs (title TEXT)", "INSERT INTO songs VALUES ('x')"),
    "alembic of another tool": sqlite_with(
        "CREATE TABLE alembic_version (v TEXT)", "INSERT INTO alembic_version VALUES ('q')"
    ),
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("name", ["optuna.db", "mlflow.db"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_database_of_something_else_is_not_touched(
    plan: Plan, tmp_path: Path, fake: Any, name: str, kind: str
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    FOREIGN[kind](runs / name)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=f"{name} must be .*--runs"):
        sweep(plan, runs, fake.FakeTrial())
    assert contents(tmp_path) == before
    assert sorted(path.name for path in runs.iterdir()) == [name]


def test_the_databases_of_both_tools_cannot_change_places(runs: Path, plan: Plan, fake: Any) -> None:
    (runs / "mlflow.db").rename(runs / "other.db")
    (runs / "optuna.db").rename(runs / "mlflow.db")
    (runs / "other.db").rename(runs / "optuna.db")
    with pytest.raises(StoreError, match=r"optuna.db must be the database of Optuna, but holds tables of MLflow"):
        sweep(plan, runs, fake.FakeTrial())


def test_a_database_that_a_kill_left_in_the_middle_of_a_write_is_ours(runs: Path) -> None:
    (runs / "optuna.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    check_stores(runs)


def test_a_search_draws_the_same_trials_whether_stopped_or_not(
    write_sweep: Write, tmp_path: Path, runs: Path, fake: Any
) -> None:
    arms = {"full": {"trial": {"method": {"name": "full"}}}}
    plan = build_plan(read_sweep(str(write_sweep(search=SEARCH, trial=VALIDATION, seeds=[0], arms=arms))))
    straight = sweep(plan, Path(shutil.copytree(runs, tmp_path / "straight")), fake.FakeTrial())
    assert len(straight.statuses) == 12

    stopped = fake.FakeTrial()

    def stop(trial: str, step: int) -> None:
        if len(stopped.ran) in (3, 12) and step == 5 and trial not in stops:
            stops.append(trial)
            raise KeyboardInterrupt

    stops: list[str] = []
    stopped.at_step = stop
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sweep(plan, runs, stopped)
    outcome = sweep(plan, runs, stopped)
    assert outcome.statuses == straight.statuses
    assert len(stopped.ran) == 12 + 2
    again = fake.FakeTrial()
    assert not sweep(plan, runs, again).changed
    assert again.ran == []


def test_what_a_search_has_drawn_is_not_drawn_and_run_again(
    write_sweep: Write, runs: Path, databases: Path, fake: Any, read_databases: Read
) -> None:
    """Neither where its study is lost, nor where another pruner has another one; but what a pruner stopped is."""
    arms = {"full": {"trial": {"method": {"name": "full"}}}}

    def plan(pruner: str) -> Plan:
        search = {**SEARCH, "pruner": pruner}
        return build_plan(read_sweep(str(write_sweep(search=search, trial=VALIDATION, seeds=[0], arms=arms))))

    first = sweep(plan("none"), runs, fake.FakeTrial())
    before = read_databases(runs)
    for name in ("optuna.db", "mlflow.db"):
        shutil.copy(databases / name, runs / name)
    # The fifth was never finished.
    lost = list(first.statuses)[4]
    (runs / "made_up" / lost / "result.json").unlink()
    again = fake.FakeTrial()
    assert sweep(plan("none"), runs, again).statuses == first.statuses
    assert again.ran == [lost]
    assert read_databases(runs) == before
    pruned = [i for i, each in sweep(plan("median"), runs, again).statuses.items() if each is Status.PRUNED]
    whole = fake.FakeTrial()
    for name in ("optuna.db", "mlflow.db"):
        shutil.copy(databases / name, runs / name)
    sweep(plan("none"), runs, whole)
    assert set(whole.ran) == set(pruned) & set(first.statuses)
    # Nor is what was made on other weights taken.
    shutil.copy(databases / "optuna.db", runs / "optuna.db")
    for trial in first.statuses:
        (runs / "made_up" / trial / "provenance.json").write_text('{"base_weights": "those"}')
    with pytest.MonkeyPatch.context() as other:
        other.setattr("peft_study.study.weights.fingerprint", lambda _: "others")
        with pytest.raises(StoreError, match="made from other weights"):
            sweep(plan("none"), runs, fake.FakeTrial())


def test_trials_that_a_search_will_draw_are_expected(write_sweep: Write, runs: Path, fake: Any) -> None:
    arms = {"full": {"trial": {"method": {"name": "full"}}}}
    plan = build_plan(read_sweep(str(write_sweep(search=SEARCH, trial=VALIDATION, seeds=[0], arms=arms))))
    seen: list[tuple[int, int]] = []
    trial = fake.FakeTrial()
    with pytest.MonkeyPatch.context() as patched:

        def left(progress: SweepProgress) -> None:
            seen.append((progress.ended_trials, sum(progress.expected.values())))

        patched.setattr(SweepProgress, "seconds_left", left)
        patched.setattr("peft_study.study.progress.LINE_SECONDS", 0.0)
        sweep(plan, runs, trial)
    assert {tokens for _, tokens in seen} == {12 * 1_200}


def test_a_grid_over_a_section_that_a_trial_has_not_is_run(write_sweep: Write, runs: Path, fake: Any) -> None:
    arms = {"a": {"trial": {"method": {"name": "full"}}, "grid": {"method.dropout": [0.0]}}}
    plan = build_plan(read_sweep(str(write_sweep(arms=arms))))
    trials = [each._replace(config=each.config.model_copy(update={"testing": None})) for each in plan.trials]
    arms = {"a": plan.sweep.arms["a"].model_copy(update={"grid": {"testing.max_new_tokens": [4]}})}
    plan = plan._replace(trials=trials, sweep=plan.sweep.model_copy(update={"arms": arms}))
    assert set(sweep(plan, runs, fake.FakeTrial()).statuses.values()) == {Status.FINISHED}


def test_a_bank_that_cannot_be_is_refused_before_anything_is_written(
    write_sweep: Write, runs: Path, fake: Any, read_databases: Read
) -> None:
    arms = {"a": {"trial": {"method": {"name": "lora", "rank": 1, "dropout": 0.1}}}}
    plan = build_plan(read_sweep(str(write_sweep(arms=arms))))
    with pytest.raises(ConfigError, match=r"has dropout, .* leave --bank out"):
        sweep(plan, runs, fake.FakeTrial(), bank=2)
    assert read_databases(runs) == ([], [], [])


def test_a_run_of_the_sweep_that_was_deleted_is_made_anew(plan: Plan, runs: Path, fake: Any) -> None:
    sweep(plan, runs, fake.FakeTrial())
    tracker = Tracker(runs, plan.sweep)
    assert tracker.parent is not None
    tracker.client.delete_run(tracker.parent.info.run_id)
    assert sweep(plan, runs, fake.FakeTrial()).changed
    rows = to_rows(trial_rows(read_results(export_sweep(plan.sweep.name, runs))))
    assert {row["status"] for row in rows} == {"finished"}
    assert not sweep(plan, runs, fake.FakeTrial()).changed


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_search_prunes(write_sweep: Write, runs: Path, fake: Any, read_databases: Read, pruner: str) -> None:
    arms = {"full": {"trial": {"method": {"name": "full"}}}}
    search = {**SEARCH, "pruner": pruner}
    plan = build_plan(read_sweep(str(write_sweep(search=search, trial=VALIDATION, seeds=[0], arms=arms))))
    trial = fake.FakeTrial()
    outcome = sweep(plan, runs, trial)
    pruned = {i for i, status in outcome.statuses.items() if status is Status.PRUNED}
    assert 0 < len(pruned) < 12
    assert outcome.reasons == {}
    found = read_databases(runs)
    assert {i for i, state, _ in found.optuna if state == "PRUNED"} == pruned
    assert {name for name, status in found.runs if status == "KILLED"} == pruned
    again = fake.FakeTrial()
    assert not sweep(plan, runs, again).changed
    assert again.ran == []


def test_a_study_of_somebody_else_by_the_same_name_is_left_alone(plan: Plan, runs: Path, fake: Any) -> None:
    study = optuna.create_study(storage=f"sqlite:///{runs / 'optuna.db'}", study_name=plan.sweep.name)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    trial = fake.FakeTrial()
    with pytest.raises(StoreError, match=r"the study made_up in .*optuna.db has trials that no sweep .*; move .* away"):
        sweep(plan, runs, trial)
    assert trial.ran == []
    assert len(study.get_trials()) == 2


def test_a_sweep_killed_at_any_moment_ends_as_an_undisturbed_one(
    write_sweep: Write, tmp_path: Path, runs: Path, fake: Any, read_databases: Read
) -> None:
    path = write_sweep()
    plan = build_plan(read_sweep(str(path)))
    thread = threading.Thread(target=sweep, args=(plan, runs, fake.FakeTrial()))
    thread.start()
    killed = tmp_path / "killed"
    steps = ["1", "13", "8", "17"]  # of 72 in all
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]  # that it forks with threads
    command = [sys.executable, *warnings, str(Path(fake.__file__)), str(killed), str(path), *steps]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=env)
    thread.join()
    assert ended.stdout.split() == ["-9"] * 5 + ["0"], ended.stderr
    assert "Warning" not in ended.stderr
    assert results(killed, plan) == results(runs, plan)
    assert read_databases(killed) == read_databases(runs)
    assert {status for _, status in read_databases(killed).runs} == {"FINISHED"}
    artifacts = [sorted(path.name for path in (f / "mlartifacts").rglob("*") if path.is_file()) for f in (killed, runs)]
    assert artifacts[0] == artifacts[1]
    assert not list(killed.glob(".*.new"))
