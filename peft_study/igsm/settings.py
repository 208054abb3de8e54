"""Which documents a stream gives."""

from typing import Literal

from pydantic import BaseModel, Field

from peft_study.igsm.families import FamilySettings, Order
from peft_study.igsm.mistakes import MistakeKind

Split = Literal["train", "validation", "test"]

SPLIT_BINS: dict[str, range] = {"train": range(17), "validation": range(17, 20), "test": range(20, 23)}
"""Bins of the hash modulo 23: training as in Part 2.1, Remark D.7 (the published code: 0 to 15), the rest halved."""


class StreamSettings(BaseModel, frozen=True, extra="forbid"):
    """Which documents a stream gives."""

    family: FamilySettings
    split: Split = "train"
    order: Order = "pq"
    ops: tuple[int, ...] = ()
    """Operation counts to draw from, uniformly; empty for 1 to the family's `op_max` by its own law."""
    kind: MistakeKind = "retry"
    """Kind of the mistakes."""
    retry_rate: float = Field(default=0.0, ge=0, lt=1)
    """Probability of a mistake before each solution sentence, repeated geometrically; 0 for clean data."""
    reask: bool = False
    """Whether another question is drawn for each problem, and its operations counted anew."""
    seed: int = 0


def op_law(settings: StreamSettings) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the operation counts to draw from and their weights; nothing where the official law draws them."""
    family = settings.family
    if settings.ops:
        return settings.ops, (1.0,) * len(settings.ops)
    if family.op_ratio is None:
        return (), ()
    ops = range(1, family.op_max + 1)
    return tuple(ops), tuple(family.op_ratio**op for op in ops)
