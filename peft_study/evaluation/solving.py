"""Correction measured: a model's own solutions, judged step by step."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from peft_study.evaluation.problems import Attempt
from peft_study.igsm.verify import Judgement, Verdict
from peft_study.records import Measure
from peft_study.stats import mean_interval, wilson


def outcomes(attempts: Sequence[Attempt]) -> NDArray[np.uint8]:
    """Return 1 for each attempt that is right by the strict rule, shape [n]."""
    return np.array([attempt.strict.ok for attempt in attempts], np.uint8)


def departures(attempts: Sequence[Attempt]) -> dict[str, int]:
    """Return how often each verdict is where a wrong solution first left the way; RIGHT counts the right ones."""
    counts = Counter(attempt.strict.first_departure for attempt in attempts)
    return {verdict.value: counts[verdict] for verdict in Verdict if counts[verdict]}


def solving_measures(
    attempts: Sequence[Attempt], *, split: str, name: str, op: int | None, baseline: Sequence[Attempt] | None = None
) -> list[Measure]:
    """Return the correction metrics of one cell; `baseline`: the error-free base's attempts at the same problems."""
    n = len(attempts)
    judgements = [attempt.strict for attempt in attempts]

    def share(metric: str, hits: int, of: int = n) -> Measure:
        low, high = wilson(hits, of)
        return Measure(split, name, op, metric, hits / of, low, high, of)

    def mean(metric: str, chosen: list[Judgement], attribute: str) -> list[Measure]:
        values = np.array([getattr(judgement, attribute) for judgement in chosen], float)
        if not len(values):
            return []
        low, high = mean_interval(values, seed=0)
        return [Measure(split, name, op, metric, float(values.mean()), low, high, len(values))]

    right = [judgement for judgement in judgements if judgement.ok]
    wrong = [judgement for judgement in judgements if not judgement.ok]
    measures = [
        share("accuracy", len(right)),
        share("accuracy_published", sum(attempt.published.ok for attempt in attempts)),
        share("unparsable", sum(judgement.outcome == Verdict.UNPARSABLE for judgement in judgements)),
        share("truncated", sum(judgement.outcome == Verdict.TRUNCATED for judgement in judgements)),
        *mean("retries_right", right, "retries"),
        *mean("retries_wrong", wrong, "retries"),
        *mean("unnecessary_steps", right, "unnecessary"),
    ]
    if baseline is not None:
        won = [
            ours.strict.retries > 0
            for ours, theirs in zip(attempts, baseline, strict=True)
            if ours.strict.ok and not theirs.strict.ok
        ]
        if won:
            measures.append(share("won_by_retraction", sum(won), len(won)))
    return measures
