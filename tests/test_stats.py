"""The statistics, against numbers worked by hand and against slow counting."""

import itertools

import numpy as np
import pytest

from peft_study import stats


def test_wilson_worked_by_hand() -> None:
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415, half 1.96 * sqrt(0.016 + 3.8415/400) / 1.38415.
    assert stats.wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert stats.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 7, 4096])
def test_wilson_stays_inside_and_is_symmetric(n: int) -> None:
    low, high = stats.wilson(0, n)
    assert low == 0.0
    assert 0 < high < 1
    assert stats.wilson(n, n) == pytest.approx((1 - high, 1.0))


@pytest.mark.parametrize("successes", [-1, 4])
def test_wilson_refuses_impossible_counts(successes: int) -> None:
    with pytest.raises(ValueError, match="0 to n = 3"):
        stats.wilson(successes, 3)


def test_mean_interval_holds_the_mean_and_depends_on_the_seed() -> None:
    values = np.random.default_rng(0).random(200)
    first, second = stats.mean_interval(values, seed=1), stats.mean_interval(values, seed=2)
    assert first == stats.mean_interval(values, seed=1)
    assert first != second
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert first == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_mean_interval_does_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(50.0)
    whole = stats.mean_interval(values, seed=0)
    monkeypatch.setattr(stats, "_ELEMENTS", 300)
    assert stats.mean_interval(values, seed=0) == whole


def test_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stats.mean_interval([], seed=0)


def test_paired_difference_is_narrower_than_its_parts() -> None:
    base = np.random.default_rng(0).normal(size=300)
    better = base + 0.1
    value, low, high = stats.paired_difference(better, base, seed=0)
    assert (value, low, high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="same items"):
        stats.paired_difference(better, base[1:], seed=0)


def count_pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the AUROC by looking at every pair."""
    won = [float(w > r) + 0.5 * float(w == r) for w, r in itertools.product(scores[labels == 1], scores[labels == 0])]
    return float(np.mean(won))


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_equals_a_count_of_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, size=60) / levels
    labels = (rng.random(60) < 0.3).astype(int)
    assert stats.auroc(scores, labels) == pytest.approx(count_pairs(scores, labels), abs=1e-12)


def test_auroc_at_its_ends() -> None:
    assert stats.auroc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1.0
    assert stats.auroc([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]) == 0.0
    assert stats.auroc([0.5, 0.5, 0.5], [0, 1, 1]) == 0.5


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_auroc_needs_both_classes(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        stats.auroc([0.5] * len(labels), labels)


def test_resampled_auroc_equals_that_of_the_points_written_out() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 5)
    scores, labels = rng.integers(0, 9, size=60) / 9, (rng.random(60) < 0.4).astype(int)
    counts = stats.resample_counts(12, 20, rng)
    areas = stats.auroc_resampled(scores, labels, groups, counts)
    for area, drawn in zip(areas, counts, strict=True):
        points = np.repeat(np.arange(60), drawn[groups].astype(int))
        assert area == pytest.approx(count_pairs(scores[points], labels[points]), abs=1e-12)


def test_resample_of_one_class_has_no_area() -> None:
    areas = stats.auroc_resampled([0.2, 0.7], [0, 1], [0, 1], np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert areas[0] == 1.0
    assert np.isnan(areas[1])


def test_auroc_interval_is_wider_for_points_that_belong_together() -> None:
    rng = np.random.default_rng(0)
    # Each problem's points are copies of one another: ten copies carry no more than one.
    labels = np.repeat(rng.random(80) < 0.4, 10).astype(int)
    scores = np.repeat(rng.random(80), 10) + 0.3 * labels
    low, high = stats.auroc_interval(scores, labels, np.repeat(np.arange(80), 10), seed=0, resamples=300)
    alone = stats.auroc_interval(scores, labels, np.arange(800), seed=0, resamples=300)
    assert low < stats.auroc(scores, labels) < high
    assert high - low > 2 * (alone[1] - alone[0])


def test_auroc_interval_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    scores, labels, groups = rng.random(100), np.arange(100) % 3 == 0, np.arange(100) // 5
    first = stats.auroc_interval(scores, labels, groups, seed=1, resamples=200)
    assert first == stats.auroc_interval(scores, labels, groups, seed=1, resamples=200)
    assert first != stats.auroc_interval(scores, labels, groups, seed=2, resamples=200)


def test_balanced_accuracy_worked_by_hand() -> None:
    scores, labels = [0.9, 0.8, 0.3, 0.6, 0.2, 0.1, 0.0], [1, 1, 1, 0, 0, 0, 0]
    assert stats.balanced_accuracy(scores, labels, 0.5) == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert stats.balanced_accuracy(scores, labels, 0.0) == 0.5


def test_best_threshold_beats_all_others() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(200) < 0.2).astype(int)
    scores = np.round(rng.random(200) * 0.7 + 0.2 * labels, 2)
    reached = stats.balanced_accuracy(scores, labels, stats.best_threshold(scores, labels))
    assert reached == max(stats.balanced_accuracy(scores, labels, threshold) for threshold in np.unique(scores))


def test_best_threshold_without_any_difference_is_the_score_itself() -> None:
    assert stats.best_threshold([0.4, 0.4, 0.4], [1, 0, 0]) == 0.4


def test_ece_worked_by_hand() -> None:
    # Two bins: 0.1 and 0.3 with no wrong (|0.4 - 0|), 0.9 and 1.0 with one wrong (|1.9 - 1|); 1.3 over 4 points.
    assert stats.ece([0.1, 0.3, 0.9, 1.0], [0, 0, 1, 0], bins=2) == pytest.approx(1.3 / 4)
    assert stats.ece([0.0, 1.0], [0, 1]) == 0.0
    with pytest.raises(ValueError, match="as many"):
        stats.ece([0.5], [0, 1])
