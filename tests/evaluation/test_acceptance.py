"""The rule that a base must meet, on made-up reports."""

from typing import Any

import pytest

from peft_study.evaluation.acceptance import acceptance
from peft_study.igsm.families import NANO

KNOWN, HEADLINE = str(NANO.op_max), str(NANO.headline_op)
REPORT: dict[str, Any] = {
    "accuracy": {KNOWN: [0.90, 0.88, 0.92], HEADLINE: [0.60, 0.57, 0.63]},
    "departures": {"right": 600, "not computable": 60, "unnecessary": 40, "lookup": 200, "arithmetic": 100},
    "perfect_detector_gain": [0.05, 0.01, 0.09],
}


def changed(**changes: Any) -> dict[str, Any]:
    accuracy = REPORT["accuracy"] | changes.pop("accuracy", {})
    return REPORT | {"accuracy": accuracy} | changes


def failing(report: dict[str, Any]) -> set[str]:
    verdict = acceptance(report, NANO)
    names = {name for name, condition in verdict["conditions"].items() if not condition["holds"]}
    assert verdict["accepted"] == (not names)
    return names


def test_a_base_that_just_meets_everything() -> None:
    assert failing(REPORT) == set()
    assert acceptance(REPORT, NANO)["conditions"]["wrong_choices"]["figure"] == pytest.approx(100 / 400)


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({"accuracy": {KNOWN: [0.95, 0.879, 0.99]}}, "accuracy_known"),  # the lower bound counts
        ({"accuracy": {HEADLINE: [0.39, 0.3, 0.5]}}, "accuracy_headline"),
        ({"accuracy": {HEADLINE: [0.86, 0.8, 0.9]}}, "accuracy_headline"),
        ({"departures": {"right": 0, "not computable": 24, "lookup": 76}}, "wrong_choices"),
        ({"departures": {"right": 0, "not computable": 20, "repeated": 20, "lookup": 60}}, "wrong_choices"),
        ({"perfect_detector_gain": [0.049, 0.02, 0.08]}, "perfect_detector"),
        ({"perfect_detector_gain": [0.06, 0.0, 0.12]}, "perfect_detector"),  # the interval must not touch 0
    ],
)
def test_each_condition_can_fail_alone(changes: dict[str, Any], condition: str) -> None:
    assert failing(changed(**changes)) == {condition}
