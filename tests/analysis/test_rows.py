"""From records to rows."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis.rows import SweepRecord, config_columns, overrides_of, rows_of
from analysis.table import arm_rows, to_frame, to_rows, trial_rows
from peft_study.igsm.families import NANO
from peft_study.records import COLUMNS, Status
from peft_study.study.config import build_config, config_hash, overrides_layer

HEADLINE = NANO.headline_op


def rows_with(frame: pd.DataFrame, **wanted: object) -> list[dict]:
    return [row for row in to_rows(frame) if all(row[key] == value for key, value in wanted.items())]


def test_every_trial_and_every_arm_has_rows(sweep: SweepRecord, frame: pd.DataFrame) -> None:
    assert tuple(frame.columns) == COLUMNS
    assert list(dict.fromkeys(trial_rows(frame)["trial"])) == [record.trial for record in sweep.trials]
    assert set(arm_rows(frame)["trial"]) == {record.arm for record in sweep.trials}


def test_a_failed_trial_is_one_row_without_a_number(frame: pd.DataFrame) -> None:
    (row,) = rows_with(trial_rows(frame), status="failed")
    assert row["metric"] == ""
    assert row["value"] is None
    assert row["reason"] == "RuntimeError: loss is nan"


def test_a_missing_trial_is_one_row(made: SimpleNamespace) -> None:
    record = replace(made.trial("full", 0), status=Status.MISSING, result={}, outcomes={}, reason="not yet run")
    rows = rows_of(made.sweep([record]))
    assert [(row["trial"], row["status"], row.get("metric")) for row in rows] == [
        (record.trial, "missing", None),
        ("full", "missing", None),
    ]
    assert rows[1]["reason"] == "1 of 1 trials missing"


def test_an_arm_names_the_base_pairs_it_is_not_measured_on(made: SimpleNamespace) -> None:
    first = made.trial("full", 0)
    config = first.config | {"base": first.config["base"] | {"seed": 1}}
    other = replace(first, config=config, status=Status.MISSING, result={}, outcomes={})
    reasons = {row["reason"] for row in rows_of(made.sweep([first, other])) if row["trial"] == "full"}
    assert reasons == {"1 of 2 trials missing; none on base pair 1"}


def test_arm_rows_pool_the_trials(sweep: SweepRecord, frame: pd.DataFrame) -> None:
    outcomes = [record.outcomes[f"correct_ood_{HEADLINE}"] for record in sweep.trials if record.arm == "correction-r4"]
    (row,) = rows_with(arm_rows(frame), trial="correction-r4", metric="accuracy", set="ood", op=HEADLINE)
    assert row["value"] == pytest.approx(sum(one.mean() for one in outcomes) / 2)
    assert row["low"] < row["value"] < row["high"]
    assert (row["seed"], row["base_seed"], row["n"], row["split"]) == (None, 0, 128, "test")
    assert row["seconds"] == pytest.approx(42.0)


def test_gap_closed_is_between_the_references(frame: pd.DataFrame) -> None:
    def pooled(arm: str, metric: str, set_name: str) -> float:
        (row,) = rows_with(arm_rows(frame), trial=arm, metric=metric, set=set_name, op=HEADLINE)
        return row["value"]

    for arm, lower, metric, best, set_name in (
        ("correction-r16", "control", "accuracy", "accuracy", "ood"),
        ("detection-r4", "probe", "detect_auroc", "free_auroc", "injected"),
    ):
        (row,) = rows_with(arm_rows(frame), trial=arm, metric="gap_closed")
        low, high = pooled(lower, metric, set_name), pooled("upper", best, set_name)
        assert row["value"] == pytest.approx((pooled(arm, metric, set_name) - low) / (high - low))
        assert (row["set"], row["op"]) == (set_name, HEADLINE)


def test_references_have_no_gap_closed_and_few_seeds_are_said(frame: pd.DataFrame) -> None:
    closed = rows_with(arm_rows(frame), metric="gap_closed")
    assert not {"control", "probe", "upper"} & {row["trial"] for row in closed}
    (row,) = [row for row in closed if row["trial"] == "detection-r1"]
    assert row["reason"] == "reference probe rests on 1 of 2 trials; reference upper rests on 1 of 2 trials"


def test_no_gap_has_no_value(made: SimpleNamespace) -> None:
    same = made.outcomes("control", 0)
    trials = [made.trial("control", 0), made.trial("upper", 0, outcomes=same), made.trial("full", 0)]
    (row,) = [row for row in rows_of(made.sweep(trials)) if row.get("metric") == "gap_closed"]
    assert row["value"] is None
    assert row["reason"] == "no gap"


def test_a_missing_reference_gives_no_gap_row(made: SimpleNamespace) -> None:
    rows = rows_of(made.sweep([made.trial("control", 0), made.trial("full", 0)]))
    assert not [row for row in rows if row.get("metric") == "gap_closed"]


def test_alarms_of_the_plan_stand_with_the_arm(made: SimpleNamespace) -> None:
    records = [replace(made.trial("full", seed), alarms=("lr 0.003 on the edge",)) for seed in (0, 1)]
    rows = [row for row in rows_of(made.sweep(records)) if row["seed"] is None]
    assert {row["reason"] for row in rows} == {"lr 0.003 on the edge"}


def test_columns_hide_what_a_method_has_not() -> None:
    full = config_columns(build_config({"method.name": "full"}).model_dump(mode="json"))
    assert [full[key] for key in ("rank", "targets", "embeddings", "lora_alpha")] == [None] * 4
    lora = config_columns(build_config({"method.name": "lora", "method.rank": 8}).model_dump(mode="json"))
    assert lora["lora_alpha"] == 16
    assert json.loads(lora["config"])["method.lora_alpha"] == 0.0


def test_overrides_of_a_row_make_the_same_trial(sweep: SweepRecord, frame: pd.DataFrame) -> None:
    rows = {row["trial"]: row for row in to_rows(trial_rows(frame))}
    for record in sweep.trials:
        config = build_config(overrides_layer(overrides_of(rows[record.trial])))
        assert config.model_dump(mode="json") == record.config
        assert record.trial.endswith(config_hash(config))


def test_rows_are_the_same_each_time(sweep: SweepRecord, frame: pd.DataFrame) -> None:
    assert to_frame(rows_of(sweep)).equals(frame)
