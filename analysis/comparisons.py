"""Arms beside arms: paired differences with intervals, and what may be said of them.

Two arms are compared that differ in one thing, and a difference is of the same problems and bases in every draw.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from analysis.gap import gap_draws
from analysis.partners import TOPICS, TRAINED, alike, first_of, headline_key, reference, upper
from analysis.rows import BOOTSTRAP_SEED, TrialRecord, arm_samples
from analysis.stats import Key, Sample, TrialSample, pool
from analysis.summary import ArmSummary, Interval, name_of
from peft_study.stats import percentile_interval

NOTICING = "noticing: a correction model's own [BACK] beside a detector"
CONTRAST = "gap closed by detection beside that by correction"


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
    by_base: tuple[float, ...]
    """The difference on each base alone, in the order of their seeds."""
    trials: int
    """Fewest trials of either arm on the bases that both have."""
    notes: tuple[str, ...]
    """What a reader must know before believing the verdict."""

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
    """Return how an arm is called among all others of its skill."""
    rank = f" rank {line.row['rank']}" if line.row["method"] == "lora" else ""
    return f"{name_of(line)}{rank}"


def _names(lines: Sequence[ArmSummary]) -> dict[tuple[str, str], str]:
    """Return (skill, arm) to its name; where several arms of a skill have one, as of two families, theirs is added."""
    counts = Counter((line.skill, full_name(line)) for line in lines)
    return {
        (line.skill, line.arm): full_name(line) + f" ({line.arm})" * (counts[line.skill, full_name(line)] > 1)
        for line in lines
    }


def compare(lines: Sequence[ArmSummary], trials: Sequence[TrialRecord]) -> list[Comparison]:
    """Return all comparisons of the arms of a sweep, by topic; where no base has a trial of both, there is none."""
    return Comparer(lines, trials).all()


class Comparer:
    """Compares the arms of one sweep."""

    def __init__(self, lines: Sequence[ArmSummary], trials: Sequence[TrialRecord]) -> None:
        self.lines = lines
        self.names = _names(lines)
        self.samples = arm_samples(trials)
        self.precisions: dict[str, set[str]] = {}
        """Arm to what its trials were trained in."""
        for trial in trials:
            if precision := trial.result.get("precision"):
                self.precisions.setdefault(trial.arm, set()).add(precision)

    def all(self) -> list[Comparison]:
        """Return all comparisons, by topic."""
        found: list[Comparison] = []
        for topic, (partner, keys) in TOPICS.items():
            for line in self.lines:
                other = partner(line, self.lines) if line.role in TRAINED else None
                if other is not None:
                    names = self.names[line.skill, line.arm], self.names[other.skill, other.arm]
                    for key in keys(line):
                        found += self._difference(topic, names, Side(line, key), Side(other, key))
        return found + self._noticing() + self._contrast()

    def _noticing(self) -> list[Comparison]:
        """Return how a correction model's own [BACK] ranks mistakes beside a detector that was trained alike."""
        found = []
        for line, twin in self._twins():
            names = f"correction: {self.names[line.skill, line.arm]}", f"detection: {self.names[twin.skill, twin.arm]}"
            for where in ("injected", "own") if line.op is not None else ():
                free, trained = (Key(metric, where, line.op) for metric in ("free_auroc", "detect_auroc"))
                found += self._difference(NOTICING, names, Side(line, free), Side(twin, trained))
        return found

    def _contrast(self) -> list[Comparison]:
        """Return how much more of its gap detection closes than correction does, trained alike."""
        found = []
        for line, twin in self._twins():
            if line.gap is None or twin.gap is None or not line.row["mask"]:
                continue
            ends = [end(of, self.lines) for of in (twin, line) for end in (reference, upper)]
            sides = [Side(of, headline_key(of)) for of in (twin, line, *ends) if of is not None]
            bases = self._bases(*sides)
            if len(sides) < 6 or not bases:
                continue
            detected, solved, probe, free, control, best = (self._pooled(side, bases) for side in sides)
            detection, correction = gap_draws(detected, probe, free), gap_draws(solved, control, best)
            if detection is None or correction is None:
                continue
            names = f"detection: {self.names[twin.skill, twin.arm]}", f"correction: {self.names[line.skill, line.arm]}"
            by_base = tuple(self._gap_on(sides, base) for base in bases)
            found.append(
                self._comparison(CONTRAST, names, "gap closed", (detection, correction), by_base, sides[:2], bases)
            )
        return found

    def _gap_on(self, sides: Sequence[Side], base: int) -> float:
        """Return by how much the gaps closed differ on one base; nan where there is none to close."""
        detected, solved, probe, free, control, best = (self._pooled(side, [base]).value for side in sides)
        if free <= probe or best <= control:
            return float("nan")
        return (detected - probe) / (free - probe) - (solved - control) / (best - control)

    def _twins(self) -> list[tuple[ArmSummary, ArmSummary]]:
        """Return the trained correction arms and the detectors that were trained alike."""
        correcting = [line for line in self.lines if line.skill == "correction" and line.role in TRAINED]
        pairs = [(line, first_of(alike(self.lines, line, skill="detection"))) for line in correcting]
        return [(line, twin) for line, twin in pairs if twin is not None]

    def _difference(self, topic: str, names: tuple[str, str], one: Side, other: Side) -> list[Comparison]:
        bases = self._bases(one, other)
        if not bases:
            return []
        a, b = (self._pooled(side, bases) for side in (one, other))
        metric = " / ".join(dict.fromkeys((one.key.metric, other.key.metric)))
        measure = f"{metric}, {one.key.set}" + (f" op {one.key.op}" if one.key.op else "")
        by_base = tuple(self._pooled(one, [base]).value - self._pooled(other, [base]).value for base in bases)
        return [self._comparison(topic, names, measure, (a, b), by_base, (one, other), bases)]

    def _comparison(
        self,
        topic: str,
        names: tuple[str, str],
        measure: str,
        samples: tuple[Sample, Sample],
        by_base: tuple[float, ...],
        sides: Sequence[Side],
        bases: Sequence[int],
    ) -> Comparison:
        a, b = samples
        difference = Interval(a.value - b.value, *percentile_interval(a.draws - b.draws))
        counts = [sum(trial.base_seed in bases for trial in self._trials(side)) for side in sides]
        values = a.value, b.value
        return Comparison(
            topic, *names, measure, values, difference, by_base, min(counts), self._notes(*(x.line for x in sides))
        )

    def _notes(self, one: ArmSummary, other: ArmSummary) -> tuple[str, ...]:
        notes = [
            f"{line.finished} of {line.planned} trials of the {which}"
            for which, line in (("first", one), ("second", other))
            if line.finished < line.planned
        ]
        kinds = [" and ".join(sorted(self.precisions.get(line.arm, ()))) for line in (one, other)]
        if all(kinds) and kinds[0] != kinds[1]:
            notes.append(f"{kinds[0]} beside {kinds[1]}")
        return tuple(notes)

    def _trials(self, side: Side) -> Sequence[TrialSample]:
        return self.samples.get(side.line.arm, {}).get(side.key, ())

    def _bases(self, *sides: Side) -> list[int]:
        """Return the bases that all `sides` have trials on."""
        return sorted(set.intersection(*({trial.base_seed for trial in self._trials(side)} for side in sides)))

    def _pooled(self, side: Side, bases: Sequence[int]) -> Sample:
        return pool(self._trials(side), arm=side.line.arm, bases=bases, seed=BOOTSTRAP_SEED)
