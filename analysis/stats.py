"""Pooled values of an arm: one bootstrap over base, trial seed and problem.

Problems are crossed with trials: a resample draws one set of problems, and every trial of every arm is measured on
it, so that differences and ratios of arms are paired. Bases are drawn next, then trial seeds inside an arm.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from peft_study.errors import DataError
from peft_study.rng import derive_seed
from peft_study.stats import RESAMPLES, auroc, auroc_resampled, percentile_interval, resample_counts

Arrays = dict[str, NDArray]
PREFIXES = {"correct": "accuracy", "detect": "detect_auroc", "free": "free_auroc"}
"""Prefix of an array in `outcomes.npz`, and the metric that comes of it."""


class Key(NamedTuple):
    """What is pooled."""

    metric: str
    set: str
    op: int | None
    """None for the mean over the operation counts of the set."""


class Sample(NamedTuple):
    """A value and its bootstrap draws; draw i of two samples is on the same problems and bases."""

    value: float
    draws: NDArray[np.float64]
    problems: int

    def interval(self) -> tuple[float, float]:
        """Return the percentile interval."""
        return percentile_interval(self.draws)


class TrialSample(NamedTuple):
    """The sample of one trial, problems resampled."""

    base_seed: int
    sample: Sample


@functools.lru_cache(maxsize=4)
def problem_counts(n: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Return how often each of `n` problems is drawn: the same for all trials."""
    return resample_counts(n, resamples, np.random.default_rng(derive_seed(seed, "problems", n)))


def keys_of(outcomes: Arrays) -> list[Key]:
    """Return what can be pooled from the arrays of a trial, sets of several operation counts as a mean too."""
    keys: list[Key] = []
    for name in outcomes:
        prefix, _, rest = name.partition("_")
        rest = rest if prefix == "correct" else rest.removesuffix("_score")
        set_name, _, op = rest.rpartition("_")
        if prefix in PREFIXES and set_name and op.isdecimal():
            keys.append(Key(PREFIXES[prefix], set_name, int(op)))
    mixtures = [
        Key(metric, set_name, None)
        for metric, set_name in dict.fromkeys((key.metric, key.set) for key in keys)
        if sum((key.metric, key.set) == (metric, set_name) for key in keys) > 1
    ]
    return keys + mixtures


def trial_sample(outcomes: Arrays, key: Key, *, n: int | None, seed: int) -> Sample | None:
    """Return the sample of `key` over `n` problems, None for as many as have a point; None where a class is missing.

    >>> trial_sample({"correct_ood_6": np.array([1, 0, 1, 1])}, Key("accuracy", "ood", 6), n=4, seed=0).value
    0.75
    """
    if key.op is None:
        ops = [other for other in keys_of(outcomes) if other[:2] == key[:2] and other.op is not None]
        parts = [trial_sample(outcomes, part, n=n, seed=seed) for part in ops]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return Sample(
            value=float(np.mean([part.value for part in known])),
            draws=np.mean([part.draws for part in known], axis=0),
            problems=known[0].problems,
        )
    prefix = next(prefix for prefix, metric in PREFIXES.items() if metric == key.metric)
    name = f"{prefix}_{key.set}_{key.op}"
    if prefix == "correct":
        correct = outcomes[name].astype(np.float64)
        counts = problem_counts(len(correct), seed)
        return Sample(float(correct.mean()), counts @ correct / len(correct), len(correct))
    scores, labels, problems = (outcomes[f"{name}_{part}"] for part in ("score", "label", "problem"))
    if not 0 < np.count_nonzero(labels) < len(labels):
        return None
    size = int(problems.max()) + 1 if n is None else n
    if problems.max() >= size:
        raise DataError(f"{name}_problem must be below the {n} problems of the trial, but holds {problems.max()}")
    draws = auroc_resampled(scores, labels, problems, problem_counts(size, seed))
    return Sample(auroc(scores, labels), draws, len(np.unique(problems)) if n is None else n)


def samples_of(outcomes: Arrays, *, n: int | None, seed: int) -> dict[Key, Sample]:
    """Return all that can be pooled from the arrays of a trial; `n` as in `trial_sample`."""
    found = {key: trial_sample(outcomes, key, n=n, seed=seed) for key in keys_of(outcomes)}
    return {key: sample for key, sample in found.items() if sample is not None}


def pool(trials: Sequence[TrialSample], *, arm: str, bases: Sequence[int], seed: int) -> Sample:
    """Return the mean over `bases` of the mean over the `trials` on each; a base without a trial is left out.

    Every base weighs the same, however many of its trials are finished: arms of which some trials are missing would
    else differ by their bases. Bases are drawn alike for all arms, trial seeds for each `arm` on its own.
    """
    rows: list[NDArray[np.float64]] = []
    on_base: list[int] = []
    means: list[float] = []
    kept = [trial for trial in trials if trial.base_seed in bases]
    resamples = len(kept[0].sample.draws)
    base_rng = np.random.default_rng(derive_seed(seed, "bases", *bases))
    base_counts = resample_counts(len(bases), resamples, base_rng)
    for index, base in enumerate(bases):
        samples = [trial.sample for trial in kept if trial.base_seed == base]
        if samples:
            seed_rng = np.random.default_rng(derive_seed(seed, "seeds", arm, base))
            shares = resample_counts(len(samples), resamples, seed_rng) / len(samples)
            rows.append(np.einsum("rt,tr->r", shares, np.stack([sample.draws for sample in samples])))
            on_base.append(index)
            means.append(float(np.mean([sample.value for sample in samples])))
    weights = base_counts[:, on_base]
    total = weights.sum(axis=1)
    draws = np.einsum("rb,br->r", weights, np.stack(rows))
    return Sample(
        value=float(np.mean(means)),
        draws=np.divide(draws, total, out=np.full(resamples, np.nan), where=total > 0),
        problems=kept[0].sample.problems,
    )
