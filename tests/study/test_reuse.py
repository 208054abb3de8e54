"""A sweep goes on from its published table, on a machine that has never run it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis.export import export_sweep
from analysis.report import publish
from peft_study.errors import ConfigError, DataError, StoreError
from peft_study.records import Status
from peft_study.study.plan import Plan
from peft_study.study.reuse import read_trials, trials_path
from peft_study.study.sweep import Outcome, run_sweep
from peft_study.study.sweep_file import Halving, Search


def sweep(plan: Plan, runs: Path, run: Any, reuse_from: Path | None = None) -> Outcome:
    """Run a sweep in this process."""
    return run_sweep(plan, runs, run=run, workers=0, reuse_from=reuse_from, console=Console(file=io.StringIO()))


def half(plan: Plan) -> Plan:
    """Return the plan of the first seed alone."""
    return plan._replace(trials=tuple(planned for planned in plan.trials if planned.config.seed == 0))


@pytest.fixture
def published(plan: Plan, runs: Path, fake: Any, tmp_path: Path) -> Path:
    """Return a folder with the published table of half of the plan."""
    sweep(half(plan), runs, fake.FakeTrial())
    publish_of(plan, runs, tmp_path / "results")
    return tmp_path / "results"


def publish_of(plan: Plan, runs: Path, results: Path) -> Path:
    export_sweep(plan.sweep.name, runs)
    results.mkdir(exist_ok=True)
    return publish(plan.sweep.name, runs, results)


def test_only_what_is_not_published_is_run(plan: Plan, fake: Any, published: Path, tmp_path: Path) -> None:
    elsewhere, trial = tmp_path / "elsewhere", fake.FakeTrial()
    outcome = sweep(plan, elsewhere, trial, published)
    done = {planned.trial for planned in half(plan).trials}
    assert trial.ran == [planned.trial for planned in plan.trials if planned.trial not in done]
    assert set(outcome.statuses.values()) == {Status.FINISHED}
    # What comes of it is what one sitting gives, intervals over all trials included.
    at_once = tmp_path / "at-once"
    sweep(plan, at_once, fake.FakeTrial())
    tables = [publish_of(plan, runs, tmp_path / f"results-{runs.name}") for runs in (elsewhere, at_once)]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert trials_path(tables[0]).read_bytes() == trials_path(tables[1]).read_bytes()
    # Again, and nothing is left to do.
    assert not sweep(plan, elsewhere, fake.FakeTrial(), published).changed


def test_a_result_that_is_there_is_kept(plan: Plan, fake: Any, published: Path, runs: Path) -> None:
    before = {path: path.read_bytes() for path in runs.glob("*/*/result.json")}
    sweep(plan, runs, fake.FakeTrial(), published)
    assert {path: path.read_bytes() for path in before} == before


def test_trials_of_another_config_are_not_taken(plan: Plan, fake: Any, published: Path, tmp_path: Path) -> None:
    path = trials_path(published / f"{plan.sweep.name}.csv")
    kept = read_trials(path.read_bytes(), source=path)
    assert set(kept) == {planned.trial for planned in half(plan).trials}
    others = plan._replace(trials=tuple(planned for planned in plan.trials if planned.trial not in kept))
    trial = fake.FakeTrial()
    sweep(others, tmp_path / "elsewhere", trial, published)
    assert trial.ran == [planned.trial for planned in others.trials]


def test_trials_of_another_base_are_refused(
    plan: Plan, fake: Any, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is put anywhere: the sweep goes on without them."""
    elsewhere, trial = tmp_path / "elsewhere", fake.FakeTrial()
    with monkeypatch.context() as other:
        other.setattr("peft_study.study.weights.fingerprint", lambda _: "other weights")
        with pytest.raises(
            StoreError, match=r"published .* made from other weights .* \(other weights\); .*leave REUSE"
        ):
            sweep(plan, elsewhere, fake.FakeTrial(), published)
    assert set(sweep(plan, elsewhere, trial).statuses.values()) == {Status.FINISHED}
    assert len(trial.ran) == len(plan.trials)


def test_failed_trials_that_are_published_are_not_run_again(
    plan: Plan, fake: Any, published: Path, tmp_path: Path, read_databases: Any
) -> None:
    elsewhere, again = tmp_path / "elsewhere", fake.FakeTrial()
    sweep(half(plan), elsewhere, fake.FakeTrial(failing=("detection-full",)))
    assert Status.FAILED in sweep(half(plan), elsewhere, again, published).statuses.values()
    outcome = run_sweep(
        half(plan),
        elsewhere,
        run=again,
        workers=0,
        retry_failed=True,
        reuse_from=published,
        console=Console(file=io.StringIO()),
    )
    assert set(outcome.statuses.values()) == {Status.FINISHED}
    assert again.ran == []
    states = dict.fromkeys(planned.trial for planned in half(plan).trials)
    states |= {trial: state for trial, state, _ in read_databases(elsewhere).optuna if state != "FAIL"}
    assert set(states.values()) == {"COMPLETE"}


def test_what_was_changed_on_the_command_line_is_not_published(
    plan: Plan, fake: Any, published: Path, tmp_path: Path
) -> None:
    """It would take the place of the sweep of that name."""
    before = {path: path.read_bytes() for path in published.iterdir()}
    changed = plan._replace(sweep=plan.sweep.model_copy(update={"overrides": ("seeds=[0]",)}))
    sweep(changed, tmp_path / "elsewhere", fake.FakeTrial())
    with pytest.raises(DataError, match=r"was last run with seeds=\[0\], .* give what you ran a sweep file of its own"):
        publish_of(changed, tmp_path / "elsewhere", published)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("chooses", ["halving", "a search"])
def test_trials_that_depend_on_others_are_not_reused(
    plan: Plan, fake: Any, published: Path, tmp_path: Path, chooses: str
) -> None:
    arms = {name: arm.model_copy(update={"halving": Halving()}) for name, arm in plan.sweep.arms.items()}
    search = Search.model_validate({"trials": 1, "space": {"training.lr": {"low": 1e-4, "high": 1e-2}}})
    changes = {"arms": arms} if chooses == "halving" else {"search": search}
    other = plan._replace(sweep=plan.sweep.model_copy(update=changes))
    with pytest.raises(ConfigError, match=rf"has {chooses}, .* leave REUSE \(--reuse\) out"):
        sweep(other, tmp_path / "elsewhere", fake.FakeTrial(), published)


def test_what_was_published_is_not_lost(plan: Plan, fake: Any, published: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    rest = plan._replace(trials=tuple(planned for planned in plan.trials if planned.config.seed == 1))
    sweep(rest, elsewhere, fake.FakeTrial())
    sweep(plan, elsewhere, fake.FakeTrial(failing=("correction-lora-r1",)))
    first = next(planned.trial for planned in half(plan).trials)
    with pytest.raises(DataError, match=f"finished trials that .* lacks, such as {first}; .*REUSE=1"):
        publish_of(plan, elsewhere, published)


def test_nothing_published_and_damage_are_said(plan: Plan, fake: Any, published: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no published trials to reuse: .* is missing"):
        sweep(plan, tmp_path / "elsewhere", fake.FakeTrial(), tmp_path)
    path = trials_path(published / f"{plan.sweep.name}.csv")
    for content in (b"", path.read_bytes()[:-100], b"PK" + bytes(100), json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read .* restore it"):
            sweep(plan, tmp_path / "elsewhere", fake.FakeTrial(), published)
