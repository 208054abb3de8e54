"""Correction measured on made-up attempts, worked out by hand."""

import pytest

from peft_study.evaluation.problems import Attempt
from peft_study.evaluation.solving import departures, outcomes, solving_measures
from peft_study.igsm.verify import Judgement, Verdict
from peft_study.records import METRICS
from peft_study.stats import wilson

R, U, B = Verdict.RIGHT, Verdict.UNNECESSARY, Verdict.RETRACTED


def attempt(*steps: Verdict, published: bool | None = None) -> Attempt:
    strict = Judgement(steps, "", steps.count(B), steps.count(U))
    loose = strict if published is None else Judgement((R,) if published else (Verdict.ANSWER,), "", 0, 0)
    return Attempt([], "", None, strict, loose)


ATTEMPTS = [
    attempt(R, R),
    attempt(R, B, B, R),  # two retractions
    attempt(R, B, U, R),  # one retraction, one unnecessary step
    attempt(U, B, Verdict.NOT_COMPUTABLE),  # left the way at the unnecessary step
    attempt(R, Verdict.LOOKUP, published=True),
    attempt(Verdict.UNPARSABLE),
    attempt(R, Verdict.TRUNCATED),
    attempt(B, B, B, Verdict.TRUNCATED),
]
BASELINE = [
    attempt(R, R),
    attempt(Verdict.ARITHMETIC),
    attempt(Verdict.TRUNCATED),
    attempt(R),
    *[attempt(Verdict.LOOKUP)] * 4,
]


def measured(baseline: list[Attempt] | None = None) -> dict[str, tuple[float, int]]:
    measures = solving_measures(ATTEMPTS, split="test", name="ood", op=6, baseline=baseline)
    assert all((measure.split, measure.set, measure.op) == ("test", "ood", 6) for measure in measures)
    assert all(measure.low <= measure.value <= measure.high for measure in measures)
    assert {measure.metric for measure in measures} <= METRICS.keys()
    return {measure.metric: (measure.value, measure.n) for measure in measures}


def test_measures_by_hand() -> None:
    assert measured() == {
        "accuracy": (3 / 8, 8),
        "accuracy_published": (4 / 8, 8),
        "unparsable": (1 / 8, 8),
        "truncated": (2 / 8, 8),
        "retries_right": ((0 + 2 + 1) / 3, 3),
        "retries_wrong": (pytest.approx((1 + 0 + 0 + 0 + 3) / 5), 5),
        "unnecessary_steps": (pytest.approx(1 / 3), 3),
    }


def test_won_by_retraction_counts_what_the_base_lost() -> None:
    """Won are problems 1 and 2 (0 was right before); both with a retraction. With problem 0 lost, one without."""
    assert measured(BASELINE)["won_by_retraction"] == (1.0, 2)
    assert measured([attempt(Verdict.LOOKUP), *BASELINE[1:]])["won_by_retraction"] == (pytest.approx(2 / 3), 3)
    assert "won_by_retraction" not in measured([attempt(R)] * 8)


def test_intervals_of_shares_are_those_of_wilson() -> None:
    accuracy = solving_measures(ATTEMPTS, split="test", name="id", op=4)[0]
    assert (accuracy.low, accuracy.high) == wilson(3, 8)


def test_means_are_left_out_where_there_is_nothing_to_average() -> None:
    metrics = {m.metric for m in solving_measures([attempt(R)] * 2, split="test", name="id", op=4)}
    assert "retries_right" in metrics
    assert "retries_wrong" not in metrics


def test_outcomes_and_departures() -> None:
    assert outcomes(ATTEMPTS).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert departures(ATTEMPTS) == {"right": 3, "unnecessary": 1, "lookup": 1, "unparsable": 1, "truncated": 2}
