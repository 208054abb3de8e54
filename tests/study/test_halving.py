"""Successive halving: the best of a bracket are found, whatever the order in which its trials come to a rung."""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from peft_study.errors import ConfigError
from peft_study.records import Status
from peft_study.study.costs import describe
from peft_study.study.halving import MEASURE, Bracket, State, brackets_of
from peft_study.study.plan import Plan, PlannedTrial, build_plan
from peft_study.study.sweep import Outcome, run_sweep
from peft_study.study.sweep_file import Halving, read_sweep

Write = Callable[..., Path]
Read = Callable[[Path], Any]
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2]
TOKENS = 1_200
POINTS = 12


def plan_of(write_sweep: Write, *overrides: str, **arm: Any) -> Plan:
    """Return the plan of an arm of nine cells and two seeds, that are halved."""
    common = {"training": {"tokens": TOKENS}, "evaluation": {"split": "validation"}}
    halved = {"trial": {"method": {"name": "full"}}, "grid": {"training.lr": RATES}, "halving": {}, **arm}
    path = write_sweep(trial=common, arms={"a": halved})
    return build_plan(read_sweep(str(path), overrides))


@pytest.fixture
def halved(write_sweep: Write) -> Plan:
    return plan_of(write_sweep)


def sweep(plan: Plan, runs: Path, run: Any, workers: int = 0, **options: Any) -> Outcome:
    return run_sweep(plan, runs, run=run, workers=workers, console=Console(file=io.StringIO()), **options)


def bracket_of(num_trials: int, halving: Halving) -> Bracket:
    config = build_plan(read_sweep("smoke")).trials[0].config
    training = config.training.model_copy(update={"tokens": TOKENS, "points": POINTS})
    config = config.model_copy(update={"training": training})
    return Bracket(halving, [PlannedTrial(f"t{i}", "arm", config) for i in range(num_trials)])


def whole_rungs(losses: list[list[float]], halving: Halving) -> set[int]:
    """Return who goes on to the end where every rung is waited for; `losses` are those of a trial at its rungs."""
    going = list(range(len(losses)))
    for rung in range(halving.rungs):
        going = sorted(going, key=lambda i: losses[i][rung])[: halving.kept(len(losses), rung)]
        going.sort()
    return set(going)


@given(st.data(), st.integers(1, 3), st.integers(2, 3), st.integers(1, 2), st.randoms(use_true_random=False))
def test_the_best_of_each_rung_go_on_whatever_the_order(
    data: st.DataObject, slots: int, factor: int, rungs: int, rng: random.Random
) -> None:
    halving = Halving(factor=factor, rungs=rungs)
    row = st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0]), min_size=rungs, max_size=rungs)
    losses = data.draw(st.lists(row, min_size=1, max_size=12))
    bracket = bracket_of(len(losses), halving)
    at = [round(share * POINTS) for share in halving.shares]
    points = dict.fromkeys(bracket.tokens, 0)
    active: list[str] = []
    while True:
        free = [i for i, state in bracket.states.items() if state is State.RUNS and points[i] < POINTS]
        waiting = [trial for trial in free if trial not in active]
        while waiting and len(active) < slots:
            active.append(waiting.pop(rng.randrange(len(waiting))))
        if not active:
            break
        trial = rng.choice(active)
        points[trial] += 1
        rung = sum(place < points[trial] for place in at)
        loss = losses[int(trial[1:])][min(rung, rungs - 1)]
        arrived = bracket.hear(trial, points[trial] * TOKENS // POINTS, {MEASURE: loss})
        assert arrived == (points[trial] in at)
        if bracket.states[trial] is not State.RUNS or points[trial] == POINTS:
            active.remove(trial)
    finished = {int(trial[1:]) for trial, count in points.items() if count == POINTS}
    assert finished == whole_rungs(losses, halving)
    assert {int(trial[1:]) for trial in bracket.losers()} == set(range(len(losses))) - finished
    trained = sum(points.values()) / POINTS / len(losses)
    exact = halving.share_trained(len(losses))
    assert trained == pytest.approx(exact, abs=rungs * 0.5 / POINTS + 1e-9)


def test_shares_and_counts_are_those_of_the_paper() -> None:
    halving = Halving(factor=3, rungs=2)
    assert halving.shares == (1 / 9, 1 / 3)
    assert [halving.kept(16, rung) for rung in range(2)] == [6, 2]
    assert halving.share_trained(9) == pytest.approx((9 / 9 + 3 * 2 / 9 + 1 * 2 / 3) / 9)
    assert halving.share_trained(9, passed=1) == pytest.approx(1 / 9 + (3 * 2 / 9 + 2 / 3) / 3)
    assert halving.share_trained(9, passed=2) == 1


def test_a_failed_trial_is_not_waited_for() -> None:
    bracket = bracket_of(3, Halving(factor=3, rungs=1))
    bracket.hear("t0", 400, {MEASURE: 1.0})
    bracket.hear("t1", 400, {MEASURE: 2.0})
    assert list(bracket.states.values()) == [State.WAITS, State.OUT, State.RUNS]
    bracket.fail("t2")
    assert bracket.states["t0"] is State.RUNS
    assert list(bracket.losers()) == ["t1"]


@pytest.mark.parametrize(("workers", "bank"), [(0, 1), (3, 1), (0, 4), (2, 3)])
def test_a_sweep_trains_only_the_best_to_the_end(
    halved: Plan, runs: Path, fake: Any, read_databases: Read, workers: int, bank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # where worker processes find the fake trial
    trial = fake.FakeTrial()
    outcome = sweep(halved, runs, trial, workers=workers, bank=bank)
    for seed in (0, 1):
        of_seed = [planned for planned in halved.trials if planned.config.seed == seed]
        worth = {planned.trial: fake.worth(planned.config) for planned in of_seed}
        best = min(worth, key=worth.__getitem__)
        assert {i for i in worth if outcome.statuses[i] is Status.FINISHED} == {best}
        assert {i for i in worth if outcome.statuses[i] is Status.PRUNED} == set(worth) - {best}
        second = sorted(worth, key=worth.__getitem__)[1]
        result = json.loads((runs / "made_up" / second / "result.json").read_text())
        assert (result["tokens"], result["measures"]) == (TOKENS // 3, [])
        assert result["reason"].startswith("not among the best 1 of 9 at 33% of the tokens: loss 2.")
    lengths = [len(path.read_text().splitlines()) for path in runs.glob("made_up/*/metrics.jsonl")]
    assert sorted(lengths) == [1] * 12 + [4] * 4 + [12] * 2
    assert not list(runs.glob("made_up/*/checkpoint"))

    found = read_databases(runs)
    assert sorted(state for _, state, _ in found.optuna) == ["COMPLETE"] * 2 + ["PRUNED"] * 16
    assert sorted(status for _, status in found.runs) == ["FINISHED"] * 3 + ["KILLED"] * 16
    logged = [(name, step) for name, key, step, _ in found.metrics if key == MEASURE]
    assert len(logged) == len(set(logged)) == sum(lengths)
    again = fake.FakeTrial()
    assert not sweep(halved, runs, again).changed
    assert again.ran == []


@pytest.mark.parametrize("stop_at", [(7, 0), (10, 2), (11, 6)])
def test_a_stopped_sweep_goes_on_where_it_was(
    halved: Plan, tmp_path: Path, runs: Path, fake: Any, read_databases: Read, stop_at: tuple[int, int]
) -> None:
    """Stopped in its n-th sitting of a trial, at a step: before a rung is full, at it, and after it."""
    straight = Path(shutil.copytree(runs, tmp_path / "straight"))
    undisturbed, trial = fake.FakeTrial(), fake.FakeTrial()
    expected = sweep(halved, straight, undisturbed)

    def stop(_: str, step: int) -> None:
        if (len(trial.ran) - 1, step) >= stop_at:
            raise KeyboardInterrupt

    trial.at_step = stop
    with pytest.raises(KeyboardInterrupt):
        sweep(halved, runs, trial)
    assert "RUNNING" not in {status for _, status in read_databases(runs).runs}
    rest = fake.FakeTrial()
    assert sweep(halved, runs, rest) == expected
    assert read_databases(runs) == read_databases(straight)
    # Nobody begins anew what had come to its rung.
    assert len(trial.ran) + len(rest.ran) <= len(undisturbed.ran) + 1


@pytest.mark.parametrize("number", [10, 15, 27])
def test_a_sweep_with_more_cells_ends_as_if_it_had_had_them_before(
    write_sweep: Write, tmp_path: Path, runs: Path, fake: Any, number: int
) -> None:
    """What was out among few may be among the best of many."""
    more = plan_of(write_sweep, grid={"training.lr": RATES + [i * 1.1e-3 for i in range(1, number - 8)]})
    fewer = plan_of(write_sweep)
    straight = sweep(more, Path(shutil.copytree(runs, tmp_path / "straight")), fake.FakeTrial())
    sweep(fewer, runs, fake.FakeTrial())
    widened = sweep(more, runs, fake.FakeTrial())
    finished = {i for i, status in straight.statuses.items() if status is Status.FINISHED}
    assert {i for i, status in widened.statuses.items() if status is Status.FINISHED} >= finished
    again = fake.FakeTrial()
    assert not sweep(more, runs, again).changed
    assert again.ran == []


def test_a_failed_trial_of_a_sweep_leaves_its_place_to_others(halved: Plan, runs: Path, fake: Any) -> None:
    of_seed = [planned for planned in halved.trials if planned.config.seed == 0]
    best = min(of_seed, key=lambda planned: fake.worth(planned.config))
    outcome = sweep(halved, runs, fake.FakeTrial(failing=(best.arm,)))
    statuses = [outcome.statuses[planned.trial] for planned in of_seed]
    assert statuses.count(Status.FINISHED) == 1
    assert statuses.count(Status.FAILED) == 1
    assert sweep(halved, runs, fake.FakeTrial(), retry_failed=True).reasons == {}


@pytest.mark.parametrize(
    ("overrides", "arm", "said"),
    [
        (("evaluation.split=test",), {}, "may not see test problems"),
        (("training.points=8",), {}, r"at 1/9 of the tokens, but the loss is measured 8 times; set training.points=9"),
        ((), {"grid": {"skill.mask": [True, False]}}, r"which skill\.mask changes the meaning of"),
        ((), {"grid": {"evaluation.loss_windows": [8, 16]}}, r"which evaluation\.loss_windows changes the meaning of"),
        ((), {"grid": {"training.tokens": [600, 1_200]}}, r"which training\.tokens changes the meaning of"),
        ((), {"halving": {"factr": 3}}, r"unknown key 'arms\.a\.halving\.factr'; the nearest known key is 'factor'"),
        ((), {"halving": {"factor": 1}}, r"arms\.a\.halving\.factor: .*greater than or equal to 2, but got 1"),
    ],
)
def test_what_cannot_be_halved_is_refused(
    write_sweep: Write, overrides: tuple[str, ...], arm: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(write_sweep, *overrides, **arm)


def test_a_search_is_not_halved(write_sweep: Write) -> None:
    search = {"trials": 3, "space": {"training.lr": {"low": 1e-4, "high": 1e-1}}}
    validation = {"evaluation": {"split": "validation"}}
    path = write_sweep(trial=validation, seeds=[0], arms={"a": {"halving": {}}}, search=search)
    with pytest.raises(ConfigError, match=r"halving is for a grid, but the sweep has a search; set search\.pruner"):
        build_plan(read_sweep(str(path)))


def test_arms_without_halving_all_train_to_the_end(write_sweep: Write) -> None:
    assert brackets_of(plan_of(write_sweep, halving=None)) == {}


def test_the_plan_counts_what_halving_saves(write_sweep: Write, tmp_path: Path) -> None:
    tokens = "training.tokens=1200000"  # so many that training is all that counts
    whole = describe(plan_of(write_sweep, tokens, halving=None), tmp_path)
    halved = describe(plan_of(write_sweep, tokens), tmp_path)
    ratio = sum(row.minutes for row in halved) / sum(row.minutes for row in whole)
    assert ratio == pytest.approx(Halving().share_trained(9), rel=0.1)
