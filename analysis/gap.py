"""Gap closed: how far an arm gets from the lower to the upper reference, the scale both skills share."""

from typing import NamedTuple

import numpy as np

from analysis.stats import Sample
from peft_study.errors import DataError
from peft_study.stats import percentile_interval

NO_GAP = "no gap"


class Gap(NamedTuple):
    """(value - lower) / (upper - lower) with its interval; None, with the reason, where there is no gap."""

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


def gap_closed(value: Sample, lower: Sample, upper: Sample) -> Gap:
    """Return the gap closed; negative where the arm is below the lower reference.

    Where the interval of upper - lower holds 0 or lies below it, a ratio would mean nothing.
    """
    found = gap_draws(value, lower, upper)
    if found is None:
        high = percentile_interval(upper.draws - lower.draws)[1]
        reason = NO_GAP if high >= 0 else f"{NO_GAP}: the upper reference is below the lower"
        return Gap(None, None, None, reason)
    return Gap(found.value, *found.interval())


def gap_draws(value: Sample, lower: Sample, upper: Sample) -> Sample | None:
    """Return the gap closed with its draws, each with value, lower and upper on the same bases and problems.

    None where the interval of upper - lower holds 0 or lies below it.
    """
    if not value.problems == lower.problems == upper.problems:
        sizes = (value.problems, lower.problems, upper.problems)
        raise DataError(f"gap closed needs the same problems for value, lower and upper, but they have {sizes}")
    width = upper.draws - lower.draws
    if percentile_interval(width)[0] <= 0:
        return None
    # A draw without a gap has no ratio; fewer than one in forty can be so here.
    ratios = np.divide(value.draws - lower.draws, width, out=np.full(len(width), np.nan), where=width > 0)
    return Sample((value.value - lower.value) / (upper.value - lower.value), ratios, value.problems)
