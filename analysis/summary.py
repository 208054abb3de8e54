"""One line for each arm and skill: what the terminal, the report and the headline figure show."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import pandas as pd

from analysis.gap import NO_GAP
from analysis.table import arm_of, arm_rows, to_rows, trial_rows
from peft_study.igsm.families import FAMILIES
from peft_study.records import Status

CLAIM_SEEDS, CLAIM_BASES, CLAIM_PROBLEMS = 3, 2, 4096
"""What a claim needs."""
LOSS_ON_SOLUTION = frozenset({"nano", "mini"})
"""Families without loss on the problem text; the paper seems to use all tokens."""
SKILLS = ("correction", "detection")
NOT_CONVERGED = "not converged"
"""Alarm of an arm of which a trial was still learning when its tokens ended (`losses.is_converged`)."""

Row = dict[str, Any]


class Role(StrEnum):
    """What an arm is in the comparison; the value is what people read."""

    BASE = "base as it is"
    CONTROL = "control"
    PROBE = "probe"
    ADAPTER = "LoRA"
    FULL = "full fine-tuning"
    PRETRAINED = "retry pretraining"
    UPPER = "retry pretraining + t"


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class ArmSummary(NamedTuple):
    """An arm seen from one skill."""

    skill: str
    arm: str
    role: Role
    row: Row
    """The columns that the rows of the arm share."""
    metric: str
    op: int | None
    """Operations of the problems that `raw` is measured on: the family's headline; None for real texts."""
    raw: Interval | None
    gap: Interval | None
    no_gap: bool
    seeds: dict[int, int]
    """Seed of each base that was planned, and how many trials on it are finished."""
    planned: int
    """Trials in all."""
    problems: int
    alarms: tuple[str, ...]
    """What a reader must know before believing the line."""
    notes: tuple[str, ...]
    """References that rest on fewer trials than the arm."""
    budget: int | None
    """Tokens that each of its trials was to read."""

    @property
    def finished(self) -> int:
        """How many of its trials are finished."""
        return sum(self.seeds.values())


class Counts(NamedTuple):
    """What a caption says of the trials behind a figure."""

    seeds: tuple[int, int]
    """Fewest and most trial seeds of an arm on one of its bases."""
    bases: tuple[int, int]
    """Fewest and most base pairs of an arm."""
    problems: int
    planned: int
    failed: int
    unfinished: int
    """Killed, pruned or not yet run."""
    to_come: int
    """Those that a sweep which goes on would run: killed or not yet run."""
    families: tuple[str, ...]
    notes: tuple[str, ...]
    """What references rest on, where they have fewer trials than an arm."""


def role_of(row: Row, *, has_mistakes: bool = True) -> Role:
    """Return the role that a row's method, base and data give its arm.

    Clean data are a control where other arms have mistakes; else (`has_mistakes` is false) they are all there is.
    """
    method, on_retry = row["method"], row["base"] == "retry"
    if method in ("none", "pretrain"):
        return Role.PRETRAINED if on_retry else Role.BASE
    if method == "probe":
        return Role.PROBE
    if not row["retry_rate"] and has_mistakes:
        return Role.CONTROL
    if method == "full":
        return Role.UPPER if on_retry else Role.FULL
    return Role.ADAPTER


def name_of(line: ArmSummary) -> str:
    """Return what people call an arm, seen from its skill: adapters without their rank."""
    if line.metric == "free_auroc":
        return "free detector"
    row, parts = line.row, [line.role.value]
    if row["method"] == "lora":
        # Of a control it is the method that is said beside the role.
        parts += [Role.ADAPTER.value] * (line.role is not Role.ADAPTER) + [row["targets"]]
        parts += [] if row["embeddings"] == "rows" else [f"embeddings={row['embeddings']}"]
    if line.role in (Role.ADAPTER, Role.FULL) and line.skill == "correction" and not row["mask"]:
        parts.append("unmasked")
    return " ".join(parts)


_WORLD = ("family", "order")
_SETTING: dict[Role, tuple[str, ...]] = {
    **dict.fromkeys((Role.PRETRAINED, Role.UPPER), _WORLD),
    **dict.fromkeys((Role.BASE, Role.PROBE), (*_WORLD, "base")),
    Role.CONTROL: (*_WORLD, "base", "tokens"),
    **dict.fromkeys((Role.ADAPTER, Role.FULL), (*_WORLD, "base", "tokens", "kind", "retry_rate")),
}
"""Columns that arms must share to be compared, by what they are; of two kinds of arms, those of both."""


def same_setting(one: ArmSummary, other: ArmSummary) -> bool:
    """Return whether two arms are of the same problems, mistakes and budget, as far as that applies to both.

    The budget is what was asked for: what is read of it depends on the size of a step.
    """
    columns = [column for column in _SETTING[one.role] if column in _SETTING[other.role]]
    is_budget = "tokens" in columns
    same = all(one.row[column] == other.row[column] for column in columns if column != "tokens")
    return same and (not is_budget or one.budget == other.budget)


def shown_setting(lines: Sequence[ArmSummary]) -> ArmSummary | None:
    """Return an arm of the setting that text and headline figure are about: that of most trained arms; else None."""
    trained = [line for line in lines if line.role in (Role.ADAPTER, Role.FULL)]
    trained = [line for line in trained if line.raw] or trained
    return max(trained, key=lambda line: sum(same_setting(line, other) for other in trained), default=None)


def other_settings(lines: Sequence[ArmSummary]) -> str:
    """Return what is to be said where `lines` have other settings than that which is shown; '' where they have not."""
    found = {line.skill: shown_setting([x for x in lines if x.skill == line.skill]) for line in lines}
    others = [line for line in lines if (shown := found[line.skill]) and not same_setting(line, shown)]
    if not others:
        return ""
    first = next(line for line in found.values() if line)
    rate = f", mistakes at {first.row['retry_rate']:g}" if first.row["retry_rate"] else ""
    return f"Shown is {first.row['family']}{rate}; arms of other problems, mistakes or budgets are in the tables alone."


def on_curve(line: ArmSummary, lines: Sequence[ArmSummary]) -> bool:
    """Return whether an arm is on the curve over ranks, which text and headline figure are about.

    Where adapters on all matrices are among `lines`, those on some are in the tables alone, and so are other ways to
    train the rows of the new words, controls with adapters beside one without, and settings other than most arms'.
    """
    shown = shown_setting([other for other in lines if other.skill == line.skill])
    if shown is not None and not same_setting(line, shown):
        return False
    if line.role is Role.CONTROL:
        methods = {other.row["method"] for other in lines if other.role is Role.CONTROL}
        return "full" not in methods or line.row["method"] == "full"
    if line.role is not Role.ADAPTER:
        return True
    kinds = {(other.row["targets"], other.row["embeddings"]) for other in lines if other.role is Role.ADAPTER}
    usual = ("all-linear", "rows")
    return usual not in kinds or (line.row["targets"], line.row["embeddings"]) == usual


def summarize(frame: pd.DataFrame) -> list[ArmSummary]:
    """Return the arms of a table, correction first, in the order of roles and ranks.

    The free detector of the upper reference is a line of detection too.
    """
    trials = to_rows(trial_rows(frame))
    grouped: dict[str, list[Row]] = {}
    for row in to_rows(arm_rows(frame)):
        grouped.setdefault(row["trial"], []).append(row)
    summaries = []
    mistaken = {row["skill"] for row in trials if row["retry_rate"]}
    for arm, rows in grouped.items():
        of_arm = [row for row in trials if arm_of(row["trial"]) == arm]
        role = role_of(rows[0], has_mistakes=rows[0]["skill"] in mistaken)
        summaries.append(_summary(rows[0]["skill"], arm, role, rows, of_arm))
        if role is Role.UPPER and any(row["skill"] == "detection" for row in trials):
            summaries.append(_summary("detection", arm, role, rows, of_arm))
    roles = list(Role)
    return sorted(
        summaries,
        key=lambda line: (
            *(SKILLS.index(line.skill), roles.index(line.role), line.row["targets"] or ""),
            *(line.row["rank"] or 0, line.row["lr"] or 0),
        ),
    )


def counts_of(frame: pd.DataFrame) -> Counts:
    """Return what a caption says of the trials in a table."""
    rows = to_rows(trial_rows(frame))
    status = {row["trial"]: Status(row["status"]) for row in rows}
    lines = [line for line in summarize(frame) if line.raw is not None]
    # Where nothing is trained, nothing differs between seeds: such an arm needs no more than one.
    trained = [line for line in lines if line.row["method"] != "none"]
    seeds = [finished for line in trained or lines for finished in line.seeds.values()] or [0]
    bases = [sum(map(bool, line.seeds.values())) for line in lines] or [0]
    return Counts(
        seeds=(min(seeds), max(seeds)),
        bases=(min(bases), max(bases)),
        problems=min((line.problems for line in lines), default=0),
        planned=len(status),
        failed=sum(value is Status.FAILED for value in status.values()),
        unfinished=sum(value not in (Status.FAILED, Status.FINISHED) for value in status.values()),
        to_come=sum(value in (Status.KILLED, Status.MISSING) for value in status.values()),
        families=tuple(sorted({row["family"] for row in rows})),
        notes=tuple(dict.fromkeys(note for line in lines for note in line.notes)),
    )


def needed_for_claim(counts: Counts) -> list[tuple[int, int, str]]:
    """Return what a claim needs as (how many, how many the arm with the fewest has, of what).

    A model that somebody else has pretrained has no pair, and a published set has the problems that it has.
    """
    if not is_synthetic(counts):
        return [(CLAIM_SEEDS, counts.seeds[0], "seeds")]
    return [
        (CLAIM_SEEDS, counts.seeds[0], "seeds on each base pair"),
        (CLAIM_BASES, counts.bases[0], "base pairs"),
        (CLAIM_PROBLEMS, counts.problems, "problems a cell"),
    ]


def missing_for_claim(counts: Counts) -> list[str]:
    """Return what a claim would need more of, e.g. '3 seeds (an arm has 2)'."""
    missing = [f"{need:,} {what} (an arm has {got:,})" for need, got, what in needed_for_claim(counts) if got < need]
    return missing + [f"{counts.to_come:,} of the {counts.planned:,} trials planned"] * bool(counts.to_come)


def is_synthetic(counts: Counts) -> bool:
    """Return whether the trials are on problems of a family, on bases of the study, rather than on real texts."""
    return not set(counts.families).isdisjoint(FAMILIES)


def caption(counts: Counts, *, first_look: bool) -> str:
    """Return what must stand under every figure: how sure it is, and what it rests on."""
    pairs = f"{_range(counts.bases, 'base pair')}, " if is_synthetic(counts) else ""
    parts = [
        f"{_range(counts.seeds, 'seed')}, {pairs}{counts.problems:,} problems a cell.",
        "Intervals: 95 % percentile bootstrap over base, trial seed and problem.",
        f"{counts.failed} of {counts.planned} trials failed"
        + (f", {counts.unfinished} not finished." if counts.unfinished else "."),
    ]
    if set(counts.families) & LOSS_ON_SOLUTION:
        parts.append(f"Trials learn from the loss on the solution alone ({', '.join(counts.families)}).")
    notes = [f"{note[0].upper()}{note[1:]}." for note in counts.notes]
    return " ".join((["First look."] if first_look else []) + parts + notes)


def _range(ends: tuple[int, int], what: str) -> str:
    """Return how many there are, from the fewest to the most.

    >>> _range((1, 1), "seed"), _range((0, 3), "seed")
    ('1 seed', '0 to 3 seeds')
    """
    fewest, most = ends
    return f"{most} {what}{'s' * (most != 1)}" if fewest == most else f"{fewest} to {most} {what}s"


def _summary(skill: str, arm: str, role: Role, rows: Sequence[Row], trials: Sequence[Row]) -> ArmSummary:
    own_skill = rows[0]["skill"] == skill
    metric = "accuracy" if skill == "correction" else "detect_auroc" if own_skill else "free_auroc"
    family = FAMILIES.get(rows[0]["family"])
    op = family.headline_op if family else None
    where = "injected" if skill == "detection" else "ood" if family else "id"
    measured = [row for row in rows if row["metric"] == metric and row["set"] == where]
    headline = next((row for row in measured if row["op"] == op), None)
    gap_row = next((row for row in rows if own_skill and row["metric"] == "gap_closed"), None)
    status = {row["trial"]: (row["base_seed"], row["status"] == Status.FINISHED) for row in trials}
    seeds = dict.fromkeys(sorted({base for base, _ in status.values()}), 0)
    for base, is_finished in status.values():
        seeds[base] += is_finished
    alarms, notes = _alarms(rows[0], gap_row)
    return ArmSummary(
        skill=skill,
        arm=arm,
        role=role,
        row=rows[0],
        metric=metric,
        op=op,
        raw=_interval(headline),
        gap=_interval(gap_row),
        no_gap=gap_row is not None and gap_row["value"] is None,
        seeds=seeds,
        planned=len(status),
        problems=headline["n"] if headline else 0,
        alarms=alarms,
        notes=notes,
        budget=json.loads(rows[0]["config"] or "{}").get("training.tokens"),
    )


def _interval(row: Row | None) -> Interval | None:
    return None if row is None or row["value"] is None else Interval(row["value"], row["low"], row["high"])


def _alarms(row: Row, gap_row: Row | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the alarms and the notes of a line."""
    reasons = [reason for reason in (gap_row or row)["reason"].split("; ") if reason]
    notes = tuple(reason for reason in reasons if reason.startswith("reference "))
    alarms = [reason for reason in reasons if reason not in notes and not reason.startswith(NO_GAP)]
    if row["converged"] is False:
        alarms.append(NOT_CONVERGED)
    return tuple(alarms), notes
