"""Gap closed on made-up tables."""

import numpy as np
import pytest

from analysis.gap import NO_GAP, gap_closed
from analysis.stats import Key, Sample, trial_sample
from peft_study.errors import DataError

N = 400


def solves(share: float, *, seed: int = 0, n: int = N) -> Sample:
    """Return the sample of a trial that solves the easiest `share` of the problems, with a little luck."""
    rng = np.random.default_rng(seed)
    correct = (np.linspace(0, 1, n) + 0.05 * rng.normal(size=n) < share).astype(np.uint8)
    sample = trial_sample({"correct_ood_7": correct}, Key("accuracy", "ood", 7), n=n, seed=0)
    assert sample is not None
    return sample


def test_gap_closed_is_the_share_of_the_way() -> None:
    value, lower, upper = solves(0.6, seed=1), solves(0.5, seed=2), solves(0.9, seed=3)
    gap = gap_closed(value, lower, upper)
    assert gap.value == pytest.approx((value.value - lower.value) / (upper.value - lower.value))
    assert gap.value == pytest.approx(0.25, abs=0.05)
    assert gap.value is not None
    assert gap.low is not None
    assert gap.high is not None
    assert 0 < gap.low < gap.value < gap.high < 0.5
    assert gap.reason == ""


def test_gap_closed_is_negative_below_the_lower_reference() -> None:
    gap = gap_closed(solves(0.3), solves(0.5), solves(0.9))
    assert gap.value == pytest.approx(-0.5, abs=0.05)
    assert gap.high is not None
    assert gap.high < 0


def test_there_is_no_ratio_without_a_gap() -> None:
    gap = gap_closed(solves(0.6), solves(0.5, seed=1), solves(0.5, seed=2))
    assert gap == (None, None, None, NO_GAP)


def test_an_upper_reference_below_the_lower_is_no_gap() -> None:
    gap = gap_closed(solves(0.6), solves(0.9), solves(0.5))
    assert gap.value is None
    assert gap.reason.startswith(NO_GAP)
    assert gap.reason != NO_GAP


def test_the_references_themselves_close_nothing_and_all_in_every_draw() -> None:
    lower, upper = solves(0.5), solves(0.9)
    assert gap_closed(lower, lower, upper)[:3] == (0.0, 0.0, 0.0)
    assert gap_closed(upper, lower, upper)[:3] == (1.0, 1.0, 1.0)


def test_problems_are_drawn_for_numerator_and_denominator_together() -> None:
    value, lower, upper = solves(0.7), solves(0.5), solves(0.9)
    paired = gap_closed(value, lower, upper)
    shuffled = value._replace(draws=np.random.default_rng(0).permutation(value.draws))
    unpaired = gap_closed(shuffled, lower, upper)
    assert paired.value == unpaired.value
    assert paired.low is not None
    assert paired.high is not None
    assert unpaired.low is not None
    assert unpaired.high is not None
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_other_problems_are_refused() -> None:
    with pytest.raises(DataError, match="same problems"):
        gap_closed(solves(0.6, n=100), solves(0.5), solves(0.9))
