"""Who is compared with whom: for an arm the other one that differs from it in one thing."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from analysis.stats import Key
from analysis.summary import ArmSummary, Role, on_curve, same_setting
from peft_study.igsm.families import FAMILIES

TRAINED = (Role.ADAPTER, Role.FULL)
SAME_SIZE = 0.03
"""Adapters whose trainable parameters differ by no more than this share count as equally large."""


class Topic(NamedTuple):
    """A thing that two arms may differ in."""

    partner: Callable[[ArmSummary, Sequence[ArmSummary]], ArmSummary | None]
    """Returns the arm that an arm is compared with."""
    keys: Callable[[ArmSummary], list[Key]]
    """Returns what of both is compared."""


def headline_key(line: ArmSummary) -> Key:
    """Return what decides of an arm: solved out of distribution, or the ranking of injected mistakes."""
    if line.skill == "detection":
        return Key(line.metric, "injected", line.op or 0)
    return Key("accuracy", "ood" if line.op else "id", line.op or 0)


def _headline(line: ArmSummary) -> list[Key]:
    return [headline_key(line)]


def _every_set(line: ArmSummary) -> list[Key]:
    """Return the headline, and of a detector the other sets too."""
    key = headline_key(line)
    others = ("own", "pairs") if line.skill == "detection" else ()
    return [key, *(key._replace(set=name) for name in others)]


def _in_distribution(line: ArmSummary) -> list[Key]:
    family = FAMILIES.get(line.row["family"])
    return [Key("accuracy", "id", family.op_max)] if family and line.skill == "correction" else []


def alike(
    lines: Sequence[ArmSummary],
    line: ArmSummary,
    *,
    role: Role | None = None,
    but: Collection[str] = (),
    **changes: object,
) -> list[ArmSummary]:
    """Return the other arms that are as `line` in all columns but those named `but`, and those that `changes` sets.

    `role` is that of `line` where it is not given; of detectors the mask says nothing. All are of one setting, and
    adapters of one scale.
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
        and same_setting(line, other)
        and (None in (_scale(line), _scale(other)) or _scale(line) == _scale(other))
        and all(other.row[column] == value for column, value in wanted.items())
    ]


def _scale(line: ArmSummary) -> float | None:
    """Return alpha / rank of an adapter."""
    return line.row["lora_alpha"] / line.row["rank"] if line.row["method"] == "lora" else None


def _of_role(line: ArmSummary, lines: Sequence[ArmSummary], role: Role) -> list[ArmSummary]:
    """Return the arms of a role, of the skill and the setting of `line`."""
    return [other for other in lines if (other.skill, other.role) == (line.skill, role) and same_setting(line, other)]


def reference(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    """Return the lower end of the skill's scale: the control that is fully trained, or the probe."""
    role = Role.CONTROL if line.skill == "correction" else Role.PROBE
    found = _of_role(line, lines, role)
    return first_of([other for other in found if on_curve(other, found)])


def upper(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    """Return the upper end of the skill's scale."""
    return first_of(_of_role(line, lines, Role.UPPER))


def _clean(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.skill == "detection" or line.role is not Role.ADAPTER:
        return None
    return first_of(alike(lines, line, role=Role.CONTROL, but=["mask"]))


def _base(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    return first_of(_of_role(line, lines, Role.BASE)) if line.skill == "correction" else None


def _full(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    of_adapters = ("method", "targets", "embeddings", "rank")
    return first_of(alike(lines, line, role=Role.FULL, but=of_adapters)) if line.role is Role.ADAPTER else None


def _lowest_rank(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    lower = [other for other in alike(lines, line, but=["rank"]) if (other.row["rank"] or 0) < (line.row["rank"] or 0)]
    return min(lower, key=lambda other: other.row["rank"], default=None)


def _highest_rank(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    ranks = {other.row["rank"] or 0: other for other in alike(lines, line, but=["rank"])}
    # The lowest is compared already, as what the highest goes beyond.
    is_between = ranks and min(ranks) < (line.row["rank"] or 0) < max(ranks)
    return ranks[max(ranks)] if is_between else None


def _all_linear(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["targets"] == "all-linear":
        return None
    return first_of(alike(lines, line, targets="all-linear"))


def _as_large(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    size = line.row["trainable_params"]
    if line.role is not Role.ADAPTER or line.row["targets"] == "all-linear" or not size:
        return None
    others = alike(lines, line, targets="all-linear", but=["rank"])
    return first_of([other for other in others if abs((other.row["trainable_params"] or 0) / size - 1) <= SAME_SIZE])


def _rows(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.role is not Role.ADAPTER or line.row["embeddings"] == "rows":
        return None
    return first_of(alike(lines, line, embeddings="rows"))


def _masked(line: ArmSummary, lines: Sequence[ArmSummary]) -> ArmSummary | None:
    if line.skill == "detection" or line.row["mask"]:
        return None
    return first_of(alike(lines, line, mask=True))


def first_of(lines: Sequence[ArmSummary]) -> ArmSummary | None:
    """Return the first of `lines`, None where there is none."""
    return next(iter(lines), None)


TOPICS: dict[str, Topic] = {
    "beyond the reference below": Topic(reference, _every_set),
    "beyond as many clean tokens": Topic(_clean, _headline),
    "beyond the base as it is": Topic(_base, _headline),
    "in distribution, beside the base as it is": Topic(_base, _in_distribution),
    "short of full fine-tuning": Topic(_full, _every_set),
    "rank": Topic(_lowest_rank, _headline),
    "short of the highest rank": Topic(_highest_rank, _headline),
    "matrices, at the same rank": Topic(_all_linear, _headline),
    "matrices, with as many parameters": Topic(_as_large, _headline),
    "rows of the new words": Topic(_rows, _headline),
    "loss on mistakes too": Topic(_masked, _headline),
}
"""What arms may differ in, in the order of the page."""
