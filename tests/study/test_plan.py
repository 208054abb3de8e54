"""A sweep file is read strictly and expands into the trials it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_study.errors import ConfigError
from peft_study.files import write_atomic
from peft_study.study.config import build_config, config_hash
from peft_study.study.costs import TOKENS_PER_SECOND, describe, expected_seconds, measurements
from peft_study.study.plan import Plan, build_plan, searched_trial
from peft_study.study.sweep_file import find_sweep, read_sweep
from peft_study.study.tuned import TunedRates

Write = Callable[..., Path]
SEARCH: dict[str, Any] = {"trials": 3, "space": {"training.lr": {"low": 1e-4, "high": 1e-1, "log": True}}}
VALIDATION = {"training": {"tokens": 1_200}, "evaluation": {"split": "validation"}}


def plan_of(path: Path, *overrides: str) -> Plan:
    return build_plan(read_sweep(str(path), overrides))


def test_a_plan_is_the_product_of_grid_and_seeds(plan: Plan) -> None:
    assert [planned.trial.rsplit("-", 1)[0] for planned in plan.trials] == [
        *("correction-lora-r1-s0-b0", "correction-lora-r1-s1-b0"),
        *("correction-lora-r4-s0-b0", "correction-lora-r4-s1-b0"),
        *("detection-full-s0-b0", "detection-full-s1-b0"),
    ]
    first = plan.trials[2]
    assert first.arm == "correction-lora-r4"
    assert (first.config.method.rank, first.config.seed, first.config.training.tokens) == (4, 0, 1_200)
    assert first.trial.endswith(config_hash(first.config))


def test_an_arm_has_its_own_seeds_and_base_seeds(write_sweep: Write) -> None:
    arms = {"full": {"trial": {"method": {"name": "full"}}, "seeds": [5], "base_seeds": [2, 3]}}
    configs = [planned.config for planned in plan_of(write_sweep(arms=arms)).trials]
    assert [(config.seed, config.base.seed) for config in configs] == [(5, 2), (5, 3)]


def test_cells_are_named_by_what_differs(write_sweep: Write) -> None:
    grid = {"method.name": ["full", "probe"], "training.lr": [1e-3], "skill.mask": [False]}
    plan = plan_of(write_sweep(arms={"arm": {"grid": grid}}))
    assert list(plan.cells) == ["arm-method-full-lr-0.001-mask-false", "arm-method-probe-lr-0.001-mask-false"]


def test_a_file_is_a_difference_from_the_one_it_extends(write_sweep: Write) -> None:
    write_sweep("below")
    path = write_sweep("above", extends="below", trial={"evaluation": {"n": 16}}, arms={}, seeds=[7])
    plan = plan_of(path)
    assert plan.sweep.name == "above"
    assert len(plan.trials) == 3
    assert {(p.config.evaluation.n, p.config.training.tokens, p.config.seed) for p in plan.trials} == {(16, 1_200, 7)}


def test_files_that_extend_one_another_in_a_circle_are_refused(write_sweep: Write) -> None:
    write_sweep("one", extends="two")
    with pytest.raises(ConfigError, match="circle: two -> one -> two"):
        read_sweep(str(write_sweep("two", extends="one")))


def test_overrides_hold_for_all_trials_and_replace_a_grid_axis(write_sweep: Write) -> None:
    plan = plan_of(write_sweep(), "method.rank=2", "training.tokens=64", "seeds=[3]", "base_seeds=[1]")
    assert list(plan.cells) == ["correction-lora-r2", "detection-full"]
    assert {(p.config.training.tokens, p.config.seed, p.config.base.seed) for p in plan.trials} == {(64, 3, 1)}


def test_a_sweep_is_called_as_its_file(write_sweep: Write) -> None:
    path = write_sweep()
    path.write_text(f"name: other\n{path.read_text()}")
    with pytest.raises(ConfigError, match=r"made_up\.yaml: name is no key of a sweep file: .* rename the file"):
        read_sweep(str(path))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sead": [0]}, "unknown key 'sead'; the nearest known key is 'seeds'"),
        ({"name": "other", "serch": SEARCH}, "unknown key 'serch'; the nearest known key is 'search'"),
        ({"overrides": ["seeds=[1]"]}, "overrides is no key of a sweep file: they are given on the command line"),
        ({"arms": {"a": {"gird": {}}}}, "unknown key 'arms.a.gird'; the nearest known key is 'grid'"),
        ({"gap": {"correction": {"lower": "a", "uper": "b"}}}, "gap.correction.upper: Field required"),
        ({"search": {**SEARCH, "trails": 3}}, "unknown key 'search.trails'; the nearest known key is 'trials'"),
        (
            {"search": {"trials": 3, "space": {"training.lr": {"low": 1, "high": 2, "lg": 1}}}},
            "nearest known key is 'l",
        ),
        ({"search": {"trials": 3, "space": {"training.lr": {"low": 2, "high": 1}}}}, "low must be at most high"),
        ({"search": {**SEARCH, "metric": "acuracy"}}, "is 'acuracy'; the nearest is 'accuracy'"),
        ({"search": {**SEARCH, "metric": "gap_closed"}}, "must be one that is measured, but is 'gap_closed'"),
        ({"search": {**SEARCH, "metric": "retractions"}}, "retractions is better neither way; say direction"),
        (
            {"search": {**SEARCH, "metric": "accuracy", "pruner": "median"}},
            "pruner median looks at the validation loss while training, but metric is accuracy",
        ),
        (
            {"trial": {"method": {"rnak": 2}}},
            "unknown config key 'method.rnak'; the nearest known key is 'method.rank'",
        ),
        ({"arms": {"a": {"grid": {"method.rnk": [1]}}}}, "unknown config key 'method.rnk'"),
        ({"arms": {"a": {"grid": {"method.rank": []}}}}, "grid of method.rank is empty"),
        ({"arms": {"a": {"grid": {"method.rank": 4}}}}, "valid list, but got 4"),
        ({"arms": {}}, "has no arms"),
        ({"seeds": []}, "at least 1 item"),
        ({"seeds": [0, 0]}, "plans the same trial twice"),
        ({"trial": {"seed": 3}}, "seed is set by the list 'seeds'"),
        ({"gap": {"correction": {"lower": "detection-ful", "upper": "detection-full"}}}, "nearest: 'detection-full'"),
        ({"arms": {"a": {"trial": {"method": {"name": "lora"}}}}}, "method.rank must be at least 1"),
    ],
)
def test_a_fault_in_the_file_is_named(write_sweep: Write, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(write_sweep(**changes))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_config_under_two_names_is_refused(write_sweep: Write) -> None:
    arm = {"trial": {"method": {"name": "full"}}}
    with pytest.raises(ConfigError, match=r"as one-s0.*and as two-s0"):
        plan_of(write_sweep(arms={"one": arm, "two": arm}))


def test_arms_that_are_measured_on_other_problems_are_refused(write_sweep: Write) -> None:
    """Nothing would be paired, and the gap closed could not be had, which is not to be found out after hours."""
    arms = {"control": {"trial": {"method": {"name": "full"}}}, "fewer": {"trial": {"evaluation": {"n": 999}}}}
    with pytest.raises(ConfigError, match=r"same problems, .* of control and \(999, .*\) of fewer; set them for all"):
        build_plan(read_sweep(str(write_sweep(arms=arms, gap={}))))


def test_an_override_is_remembered(write_sweep: Write) -> None:
    assert read_sweep(str(write_sweep()), ["seeds=[0]"]).overrides == ("seeds=[0]",)
    assert read_sweep(str(write_sweep())).overrides == ()


def test_an_unknown_override_names_the_nearest_key(write_sweep: Write) -> None:
    with pytest.raises(ConfigError, match=r"nearest known key is 'method.rank'"):
        plan_of(write_sweep(), "method.rang=3")
    with pytest.raises(ConfigError, match="key=value"):
        plan_of(write_sweep(), "method.rank")


def test_a_missing_file_names_those_there_are(write_sweep: Write) -> None:
    path = write_sweep("mine")
    with pytest.raises(ConfigError, match="there are mine"):
        read_sweep(str(path.with_name("thine.yaml")))


def test_a_sweep_is_found_by_name_here_first_then_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_sweep("smoke").is_absolute()
    Path("sweeps").mkdir()
    Path("sweeps", "smoke.yaml").touch()
    assert find_sweep("smoke") == Path("sweeps", "smoke.yaml")


def test_a_missing_rate_is_an_error_or_an_alarm(write_sweep: Write, tmp_path: Path) -> None:
    sweep, rates = read_sweep(str(write_sweep(trial={}))), TunedRates(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"arm correction-lora-r1: .*make sweep SWEEP=lr"):
        build_plan(sweep, rates)
    plan = build_plan(sweep, rates, strict=False)
    assert all(planned.config.training.lr is None and "SWEEP=lr" in planned.alarms[0] for planned in plan.trials)


def test_methods_that_train_nothing_need_no_rate(write_sweep: Write, tmp_path: Path) -> None:
    arms = {"base": {"trial": {"method": {"name": "none"}}}}
    plan = build_plan(read_sweep(str(write_sweep(trial={}, arms=arms))), TunedRates(tmp_path / "none.csv"))
    assert plan.trials[0].config.training.lr is None


def test_the_tuned_rate_is_part_of_the_config_and_the_id(
    write_sweep: Write, write_rates: Write, tuned_row: Callable[..., Any]
) -> None:
    arms = {"lora": {"trial": {"method": {"name": "lora", "rank": 4}}}}
    rates = TunedRates(write_rates(tuned_row(0.001, 0.3), tuned_row(0.003, 0.5), tuned_row(0.01, 0.4)))
    planned = build_plan(read_sweep(str(write_sweep(trial={}, arms=arms))), rates).trials[0]
    assert planned.config.training.lr == 0.003
    assert planned.alarms == ()
    assert planned.trial.endswith(config_hash(planned.config))


@pytest.mark.parametrize("changes", [{}, {"trial": {"evaluation": {"split": "test"}}}])
def test_a_search_may_not_see_test_problems(write_sweep: Write, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a search may not see test problems"):
        plan_of(write_sweep(search=SEARCH, seeds=[0], **changes))


def test_an_override_cannot_open_test_problems_to_a_search(write_sweep: Write) -> None:
    path = write_sweep(search=SEARCH, seeds=[0], trial=VALIDATION)
    assert plan_of(path).trials == []
    with pytest.raises(ConfigError, match="a search may not see test problems"):
        plan_of(path, "evaluation.split=test")


def test_a_search_knows_what_is_better(write_sweep: Write) -> None:
    for metric, better in (("loss", "minimize"), ("accuracy", "maximize"), ("unparsable", "minimize")):
        search = plan_of(write_sweep(search={**SEARCH, "metric": metric}, seeds=[0], trial=VALIDATION)).sweep.search
        assert search is not None
        assert search.better == better


def test_what_a_search_draws_cannot_be_set(write_sweep: Write) -> None:
    path = write_sweep(search=SEARCH, seeds=[0], trial=VALIDATION)
    with pytest.raises(ConfigError, match=r"training\.lr is drawn by the search, so it cannot be set; leave it out"):
        plan_of(path, "training.lr=0.5")


def test_a_search_takes_one_seed(write_sweep: Write) -> None:
    with pytest.raises(ConfigError, match="one seed"):
        plan_of(write_sweep(search=SEARCH, trial=VALIDATION))


def test_a_searched_trial_is_named_by_what_was_drawn(write_sweep: Write) -> None:
    plan = plan_of(write_sweep(search=SEARCH, seeds=[0], trial=VALIDATION))
    planned = searched_trial(plan, "correction-lora-r4", {"training.lr": 0.02})
    assert (planned.config.training.lr, planned.config.method.rank) == (0.02, 4)
    assert planned.trial == f"correction-lora-r4-s0-b0-{config_hash(planned.config)}"


def test_describe_counts_what_is_missing(plan: Plan, tmp_path: Path) -> None:
    done = plan.trials[0]
    folder = tmp_path / "runs" / plan.sweep.name / done.trial
    folder.mkdir(parents=True)
    write_atomic(folder / "result.json", '{"status": "failed", "seconds": 3}')
    rows = describe(plan, tmp_path / "runs")
    assert [(row.arm, row.rank, row.tokens, row.trials, row.done) for row in rows] == [
        ("correction-lora-r1", 1, 1_200, 2, 1),
        ("correction-lora-r4", 4, 1_200, 2, 0),
        ("detection-full", 0, 1_200, 2, 0),
    ]
    assert rows[0].minutes * 2 == pytest.approx(rows[1].minutes)


def test_minutes_are_those_that_the_like_has_taken(plan: Plan, tmp_path: Path, fake: Any) -> None:
    config = plan.trials[0].config
    evaluation = expected_seconds(config, []) - config.training.tokens / TOKENS_PER_SECOND
    for name, seconds, status in (("one", 30.0, "finished"), ("two", 50.0, "finished"), ("three", 9.0, "failed")):
        folder = tmp_path / "runs" / "other" / name
        folder.mkdir(parents=True)
        result = fake.make_result(config, trial=name, arm="x", sweep="other", value=0.5)
        write_atomic(folder / "result.json", json.dumps({**result, "seconds": seconds, "status": status}))
    measured = list(measurements(tmp_path / "runs"))
    assert expected_seconds(config, measured) == pytest.approx(40 + evaluation)
    assert describe(plan, tmp_path / "runs")[0].minutes == pytest.approx(2 * (40 + evaluation) / 60)
    # What was measured on 1,200 tokens says nothing about a trial of 100 times as many.
    longer = build_config({"training.tokens": 120_000, "evaluation.n": config.evaluation.n})
    assert expected_seconds(longer, measured) == pytest.approx(120_000 / TOKENS_PER_SECOND + evaluation)
