"""Statistics of the metrics: intervals, ranking, thresholds, calibration. Pure functions of arrays.

All intervals are 95 %. A label of 1 means "wrong", the class a detector is to find; a score is its P(wrong). What is
resampled takes a seed, so that an interval is the same each time it is computed.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
RESAMPLES = 1000
_ELEMENTS = 250_000
"""Largest array of a bootstrap: it stays in the cache, however many resamples are asked for."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share; (0, 1) where nothing was seen.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0 to n = {n}, but got {successes}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    # At its ends the formula gives 0 and 1 only up to rounding.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def resample_counts(n: int, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how often each of `n` items is drawn in each of `resamples` bootstrap samples: [resamples, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile_interval(draws: ArrayLike) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of bootstrap draws; nan marks a draw without a value and is left out."""
    array = np.asarray(draws, dtype=np.float64)
    kept = array[~np.isnan(array)]
    if kept.size == 0:
        raise ValueError("no bootstrap draw has a value")
    low, high = np.quantile(kept, (0.025, 0.975))
    return float(low), float(high)


def mean_interval(values: ArrayLike, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("a mean needs at least one value, but got none")
    rng = np.random.default_rng(seed)
    draws = [resample_counts(array.size, size, rng) @ array / array.size for size in _chunks(resamples, array.size)]
    return percentile_interval(np.concatenate(draws))


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int) -> tuple[float, float, float]:
    """Return (value, low, high) of mean(first - second), items resampled in pairs.

    >>> paired_difference([1, 1, 0], [0, 0, -1], seed=0)
    (1.0, 1.0, 1.0)
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be of the same items, but got {a.size} and {b.size}")
    low, high = mean_interval(a - b, seed)
    return float(np.mean(a - b)), low, high


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the interval of sum(numerators) / sum(denominators), groups resampled: each has one of either.

    >>> ratio_interval([1.0, 2.0], [2.0, 4.0], seed=0)
    (0.5, 0.5)
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.shape != below.shape or not below.sum() > 0:
        raise ValueError(f"a ratio needs as many of both, below more than 0, but got {above.size} and {below.size}")
    counts = resample_counts(above.size, resamples, np.random.default_rng(seed))
    total = counts @ below
    return percentile_interval(np.divide(counts @ above, total, out=np.full(resamples, np.nan), where=total > 0))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the chance that a random wrong point scores above a random right one; a tie counts half.

    >>> auroc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0])
    0.875
    """
    scores_array, labels_array = _points(scores, labels)
    problems = np.zeros(scores_array.size, dtype=np.intp)
    return float(auroc_resampled(scores_array, labels_array, problems, np.ones((1, 1)))[0])


def auroc_resampled(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the AUROC of each resample; nan where a resample has one class only.

    `groups` gives each point's row of `counts` [resamples, groups], which says how often the group was drawn.
    The points are sorted once; an area is then two running sums over them.
    """
    from peft_study.ranking import areas_of  # numba, for those who rank

    scores_array, labels_array = _points(scores, labels)
    order = np.argsort(scores_array, kind="stable")
    ordered = scores_array[order]
    level = np.concatenate(([0], np.cumsum(ordered[1:] != ordered[:-1])))
    groups_array = np.asarray(groups, dtype=np.int64)[order]
    return areas_of(level, labels_array[order].astype(np.float64), groups_array, np.ascontiguousarray(counts))


def auroc_interval(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the interval of the AUROC, whole groups (problems) resampled: points of a problem are no independent
    draws."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    counts = resample_counts(len(names), resamples, np.random.default_rng(seed))
    return percentile_interval(auroc_resampled(scores, labels, group_of, counts))


def balanced_accuracy(scores: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Return the mean of both recalls, where a score of at least `threshold` says "wrong".

    >>> balanced_accuracy([0.9, 0.4, 0.6, 0.1], [1, 1, 0, 0], threshold=0.5)
    0.5
    """
    scores_array, labels_array = _points(scores, labels)
    says_wrong, is_wrong = scores_array >= threshold, labels_array.astype(bool)
    return float((np.mean(says_wrong[is_wrong]) + np.mean(~says_wrong[~is_wrong])) / 2)


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the threshold of largest balanced accuracy: half way between two scores, the lowest such one.

    >>> best_threshold([0.75, 0.5, 0.25], [1, 1, 0])
    0.375
    """
    scores_array, labels_array = _points(scores, labels)
    levels, level_of = np.unique(scores_array, return_inverse=True)
    is_wrong = labels_array.astype(bool)
    wrong = np.bincount(level_of[is_wrong], minlength=len(levels))
    right = np.bincount(level_of[~is_wrong], minlength=len(levels))
    # At threshold level i, the wrong at or above it and the right below it are told rightly.
    found = (wrong.sum() - np.cumsum(wrong) + wrong) / wrong.sum()
    spared = (np.cumsum(right) - right) / right.sum()
    best = int(np.argmax(found + spared))
    return float(levels[best] if best == 0 else (levels[best - 1] + levels[best]) / 2)


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Return the expected calibration error of P(wrong): mean |P - share| over bins of equal width, by their size.

    >>> round(ece([0.75, 0.75, 0.25], [1, 0, 0]), 4)
    0.25
    """
    array, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if array.size == 0 or array.shape != truth.shape:
        raise ValueError(f"probabilities and labels must be as many and some, but got {array.size} and {truth.size}")
    place = np.minimum((array * bins).astype(np.intp), bins - 1)
    surplus = np.bincount(place, weights=array - truth, minlength=bins)
    return float(np.abs(surplus).sum() / array.size)


def _points(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return both as arrays; raise ValueError unless they fit and both classes are there."""
    scores_array, labels_array = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if scores_array.shape != labels_array.shape:
        raise ValueError(f"each score needs a label, but got {scores_array.size} and {labels_array.size}")
    wrong = int(np.count_nonzero(labels_array))
    if wrong in (0, labels_array.size):
        raise ValueError(f"ranking needs both classes, but {wrong} of {labels_array.size} points are wrong")
    return scores_array, labels_array


def _chunks(resamples: int, n: int) -> list[int]:
    """Return sizes that sum to `resamples`, each times `n` a bounded array."""
    rows = max(1, _ELEMENTS // max(n, 1))
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]
