"""Arms beside arms: paired differences with intervals, and what may be said of them.

Two arms are compared that differ in one thing, and a difference is of the same problems and bases in every draw.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
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
    trials: int
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
        twin = _first(_alike(lines, line, skill="detection")) if corrects else None
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


def _alike(
    lines: Sequence[ArmSummary],
    line: ArmSummary,
    *,
    role: Role | None = None,
    but: Collection[str] = (),
    **changes: object,
) -> list[ArmSummary]:
    """Return the other arms that are as `line` in all columns but those named `but`, and those that `changes` sets.

    `role` is that of `line` where it is not given; of detectors the mask says nothing.
    """
    columns = {"skill", "method", "targets", "embeddings", "rank", "mask", "base"}
    wanted = {column: line.row[column] for column in columns.difference(but)} | changes
    if wanted["skill"] == "detection":
        wanted.pop("mask", None)
    skill = wanted.pop("skill")
    return [
        other
        for other in lines
        if other.arm != line.arm
        and (other.skill, other.role) == (skill, role or line.role)
        and all(other.row[column] == value for column, value in wanted.items())
    ]


def _reference(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    role = Role.CONTROL if line.skill == "correction" else Role.PROBE
    return next((other for other in lines if (other.skill, other.role) == (line.skill, role)), None)


def _base(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    of_role = (other for other in lines if (other.skill, other.role) == ("correction", Role.BASE))
    return next(of_role, None) if line.skill == "correction" else None


def _full(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    of_adapters = ("method", "targets", "embeddings", "rank")
    return _first(_alike(lines, line, role=Role.FULL, but=of_adapters)) if line.role is Role.ADAPTER else None


def _lowest_rank(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    lower = [other for other in _alike(lines, line, but=["rank"]) if (other.row["rank"] or 0) < (line.row["rank"] or 0)]
    return min(lower, key=lambda other: other.row["rank"], default=None)


def _all_linear(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["targets"] == "all-linear":
        return None
    return _first(_alike(lines, line, targets="all-linear"))


def _as_large(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    size = line.row["trainable_params"]
    if line.role is not Role.ADAPTER or line.row["targets"] == "all-linear" or not size:
        return None
    alike = _alike(lines, line, targets="all-linear", but=["rank"])
    return _first([other for other in alike if abs((other.row["trainable_params"] or 0) / size - 1) <= SAME_SIZE])


def _rows(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["embeddings"] == "rows":
        return None
    return _first(_alike(lines, line, embeddings="rows"))


def _masked(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.skill == "detection" or line.row["mask"]:
        return None
    return _first(_alike(lines, line, mask=True))


def _first(lines: Sequence[ArmSummary]) -> ArmSummary | None:
    return next(iter(lines), None)


_TOPICS: dict[str, Callable[[ArmSummary, Sequence[ArmSummary]], ArmSummary | None]] = {
    "beyond the reference below": _reference,
    "beyond the base as it is": _base,
    "short of full fine-tuning": _full,
    "rank": _lowest_rank,
    "matrices, at the same rank": _all_linear,
    "matrices, with as many parameters": _as_large,
    "rows of the new words": _rows,
    "loss on mistakes too": _masked,
}
"""Topic to the arm that an arm is compared with."""
