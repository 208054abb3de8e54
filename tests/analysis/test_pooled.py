"""Pooled values: one bootstrap over base, trial seed and problem."""

from types import SimpleNamespace

import numpy as np
import pytest

from analysis.stats import Key, Sample, TrialSample, keys_of, pool, trial_sample
from peft_study.errors import DataError
from peft_study.igsm.families import NANO

OOD = Key("accuracy", "ood", 7)


def sample_of(correct: list[int], seed: int = 0) -> Sample:
    sample = trial_sample({"correct_ood_7": np.array(correct, dtype=np.uint8)}, OOD, n=len(correct), seed=seed)
    assert sample is not None
    return sample


def test_keys_name_what_can_be_pooled_and_the_mean_over_ops(made: SimpleNamespace) -> None:
    keys = keys_of(made.outcomes("correction-r1", 0))
    assert set(keys) == {
        Key("accuracy", "id", NANO.op_max),
        *(Key("accuracy", "ood", op) for op in NANO.ood_ops),
        Key("accuracy", "ood", None),
        Key("free_auroc", "injected", NANO.headline_op),
    }


def test_mean_over_ops_is_the_mean_of_the_ops() -> None:
    outcomes = {"correct_ood_6": np.array([1, 1, 1, 0]), "correct_ood_7": np.array([1, 0, 0, 0])}
    sample = trial_sample(outcomes, Key("accuracy", "ood", None), n=4, seed=0)
    assert sample is not None
    assert sample.value == 0.5


def test_sample_without_both_classes_is_none() -> None:
    outcomes = {f"free_own_6_{part}": np.array([0, 0]) for part in ("score", "label", "problem")}
    assert trial_sample(outcomes, Key("free_auroc", "own", 6), n=2, seed=0) is None


def test_points_of_unknown_problems_are_refused() -> None:
    outcomes = {
        "free_own_6_score": np.array([0.1, 0.2]),
        "free_own_6_label": np.array([0, 1]),
        "free_own_6_problem": np.array([0, 9]),
    }
    with pytest.raises(DataError, match="below the 4 problems"):
        trial_sample(outcomes, Key("free_auroc", "own", 6), n=4, seed=0)


def test_trials_are_resampled_on_the_same_problems() -> None:
    # Right on exactly the same problems: their difference is 0 in each draw.
    first, second = sample_of([1, 0, 1, 1, 0]), sample_of([1, 0, 1, 1, 0])
    assert np.array_equal(first.draws, second.draws)
    assert not np.array_equal(first.draws, sample_of([1, 0, 1, 1, 0], seed=1).draws)


def test_pool_of_one_trial_is_the_trial() -> None:
    sample = sample_of([1, 0, 1, 1])
    pooled = pool([TrialSample(0, sample)], arm="a", bases=[0], seed=0)
    assert pooled.value == sample.value
    assert pooled.draws == pytest.approx(sample.draws)


def test_pool_takes_the_mean_and_shows_the_spread_of_seeds() -> None:
    good, bad = sample_of([1] * 40), sample_of([0] * 40)
    pooled = pool([TrialSample(0, good), TrialSample(0, bad)], arm="a", bases=[0], seed=0)
    assert pooled.value == 0.5
    # Two seeds drawn with replacement: both bad, one of each, both good.
    assert set(np.round(pooled.draws, 6)) == {0.0, 0.5, 1.0}
    assert np.mean(pooled.draws == 0.5) == pytest.approx(0.5, abs=0.06)


def test_arms_draw_seeds_apart_and_bases_together() -> None:
    trials = [TrialSample(base, sample_of([base] * 30)) for base in (0, 1)]
    first, second = (pool(trials, arm=arm, bases=[0, 1], seed=0) for arm in ("a", "b"))
    # One seed a base: only bases vary, and those are drawn for both arms at once.
    assert np.array_equal(first.draws, second.draws)
    seeds = [TrialSample(0, sample_of([value] * 30)) for value in (0, 1)]
    first, second = (pool(seeds, arm=arm, bases=[0], seed=0) for arm in ("a", "b"))
    assert not np.array_equal(first.draws, second.draws)


def test_pool_leaves_out_other_bases() -> None:
    trials = [TrialSample(0, sample_of([1, 1])), TrialSample(7, sample_of([0, 0]))]
    assert pool(trials, arm="a", bases=[0], seed=0).value == 1.0


def test_bases_weigh_the_same_however_many_trials_each_has() -> None:
    trials = [TrialSample(0, sample_of([1] * 20)) for _ in range(3)] + [TrialSample(1, sample_of([0] * 20))]
    pooled = pool(trials, arm="a", bases=[0, 1], seed=0)
    assert pooled.value == 0.5
    # Two bases drawn with replacement: one of them twice in half of the draws, and then all is right or nothing.
    assert set(np.round(pooled.draws, 6)) == {0.0, 0.5, 1.0}
    assert np.mean(pooled.draws) == pytest.approx(0.5, abs=0.06)


def test_a_base_without_a_trial_is_left_out() -> None:
    pooled = pool([TrialSample(1, sample_of([1, 1]))], arm="a", bases=[0, 1], seed=0)
    assert pooled.value == 1.0
    assert np.nanmean(pooled.draws) == 1.0
