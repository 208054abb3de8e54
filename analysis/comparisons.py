"""Arms beside arms: paired differences with intervals, and what may be said of them.

Two arms are compared that differ in one thing, and a difference is of the same problems and bases in every draw.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from analysis.rows import BOOTSTRAP_SEED
from analysis.stats import Key, TrialSample, pool
from analysis.summary import ArmSummary, Interval, Role, name_of
from peft_study.stats import percentile_interval

Samples = Mapping[str, Mapping[Key, Sequence[TrialSample]]]
"""Arm to what was measured of its trials."""
TRAINED = (Role.ADAPTER, Role.FULL)
_NOTICING = "noticing: a correction model's own [BACK] beside a detector"
SAME_SIZE = 0.03
"""Adapters whose trainable parameters differ by no more than this share count as equally large."""


class Comparison(NamedTuple):
    """The difference of two arms."""

    topic: str
    """What the two differ in."""
    first: str
    second: str
    measure: str
    """Metric and set."""
    values: tuple[float, float]
    difference: Interval
    """First less second."""
    seeds: int
    """Fewest trials of either arm on the bases that both have."""

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.difference.low > 0:
            return "higher"
        return "lower" if self.difference.high < 0 else "not distinguishable"


class Side(NamedTuple):
    """One arm of a comparison, and what is measured of it."""

    line: ArmSummary
    key: Key


def full_name(line: ArmSummary) -> str:
    """Return how an arm is called among all others of its sweep."""
    rank = f" rank {line.row['rank']}" if line.role is Role.ADAPTER else ""
    return f"{name_of(line)}{rank}"


def headline_key(line: ArmSummary) -> Key:
    """Return what decides of an arm: solved out of distribution, or the ranking of injected mistakes."""
    if line.skill == "detection":
        return Key(line.metric, "injected", line.op or 0)
    return Key("accuracy", "ood" if line.op else "id", line.op or 0)


def compare(lines: Sequence[ArmSummary], samples: Samples) -> list[Comparison]:
    """Return all comparisons of the arms of a sweep, by topic; where no base has a trial of both, there is none."""
    found: list[Comparison] = []
    for topic, partner in _TOPICS.items():
        for line in lines:
            other = partner(line, lines) if line.role in TRAINED else None
            if other is not None:
                found += _difference(topic, Side(line, headline_key(line)), Side(other, headline_key(other)), samples)
    return found + _noticing(lines, samples)


def _noticing(lines: Sequence[ArmSummary], samples: Samples) -> list[Comparison]:
    """Return how a correction model's own [BACK] ranks mistakes beside a detector that was trained alike."""
    found = []
    for line in lines:
        corrects = line.skill == "correction" and line.role in TRAINED and line.op is not None
        twin = _other(lines, line, skill="detection") if corrects else None
        if twin is None:
            continue
        for where in ("injected", "own"):
            free, trained = (Key(metric, where, line.op) for metric in ("free_auroc", "detect_auroc"))
            found += _difference(_NOTICING, Side(line, free), Side(twin, trained), samples)
    return found


def _difference(topic: str, first: Side, second: Side, samples: Samples) -> list[Comparison]:
    trials = [samples.get(side.line.arm, {}).get(side.key, ()) for side in (first, second)]
    bases = sorted(set.intersection(*({trial.base_seed for trial in of_arm} for of_arm in trials)))
    if not bases:
        return []
    a, b = (
        pool(of_arm, arm=side.line.arm, bases=bases, seed=BOOTSTRAP_SEED)
        for side, of_arm in zip((first, second), trials, strict=True)
    )
    metric = " / ".join(dict.fromkeys((first.key.metric, second.key.metric)))
    measure = f"{metric}, {first.key.set}" + (f" op {first.key.op}" if first.key.op else "")
    difference = Interval(a.value - b.value, *percentile_interval(a.draws - b.draws))
    fewest = min(sum(trial.base_seed in bases for trial in of_arm) for of_arm in trials)
    names = full_name(first.line), full_name(second.line)
    return [Comparison(topic, *names, measure, (a.value, b.value), difference, fewest)]


# ---- who is compared with whom


def _other(lines: Sequence[ArmSummary], line: ArmSummary, **changes: object) -> ArmSummary | None:
    """Return the arm that is as `line` but for `changes` of its columns; of detectors the mask says nothing."""
    alike_in = ("skill", "method", "targets", "embeddings", "rank", "mask", "base")
    wanted = {key: line.row[key] for key in alike_in} | changes
    if wanted["skill"] == "detection":
        wanted.pop("mask")
    alike = (
        other
        for other in lines
        if other.arm != line.arm
        and other.role is line.role
        and other.skill == wanted["skill"]
        and all(other.row[key] == value for key, value in wanted.items())
    )
    return next(alike, None)


def _reference(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    role = Role.CONTROL if line.skill == "correction" else Role.PROBE
    return next((other for other in lines if (other.skill, other.role) == (line.skill, role)), None)


def _full(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER:
        return None
    alike = (
        other
        for other in lines
        if (other.skill, other.role) == (line.skill, Role.FULL)
        and (line.skill == "detection" or other.row["mask"] == line.row["mask"])
    )
    return next(alike, None)


def _lowest_rank(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER:
        return None
    kind = ("skill", "targets", "embeddings", "mask")
    ranks = [
        other.row["rank"]
        for other in lines
        if other.role is Role.ADAPTER and all(other.row[key] == line.row[key] for key in kind)
    ]
    lowest = min(ranks)
    return _other(lines, line, rank=lowest) if line.row["rank"] != lowest else None


def _all_linear(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["targets"] == "all-linear":
        return None
    return _other(lines, line, targets="all-linear")


def _as_large(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["targets"] == "all-linear" or not line.row["trainable_params"]:
        return None
    alike = (
        other
        for other in lines
        if other.role is Role.ADAPTER
        and other.row["targets"] == "all-linear"
        and all(other.row[key] == line.row[key] for key in ("skill", "embeddings", "mask"))
        and other.row["trainable_params"]
        and abs(other.row["trainable_params"] / line.row["trainable_params"] - 1) <= SAME_SIZE
    )
    return next(alike, None)


def _rows(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["embeddings"] == "rows":
        return None
    return _other(lines, line, embeddings="rows")


def _masked(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.skill == "detection" or line.row["mask"]:
        return None
    return _other(lines, line, mask=True)


_TOPICS: dict[str, Callable[[ArmSummary, Sequence[ArmSummary]], ArmSummary | None]] = {
    "beyond the reference below": _reference,
    "short of full fine-tuning": _full,
    "rank": _lowest_rank,
    "matrices, at the same rank": _all_linear,
    "matrices, with as many parameters": _as_large,
    "rows of the new words": _rows,
    "loss on mistakes too": _masked,
}
"""Topic to the arm that an arm is compared with."""
