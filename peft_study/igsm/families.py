"""Families: named settings of the one generator."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from peft_study.errors import ConfigError

Order = Literal["pq", "qp"]


class FamilySettings(BaseModel):
    """What a problem may look like. Symbols in brackets are those of Part 2.1, Algorithm 7."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    modulus: int = Field(ge=5, le=23)
    """All arithmetic is modulo this number; values are 0 to modulus - 1."""
    op_max: int = Field(ge=1)
    """Largest number of operations of a training problem."""
    op_ratio: float = Field(gt=0, le=1)
    """How often a training problem has op + 1 operations, in relation to op; 1 makes all equally frequent."""
    ood_ops: tuple[int, ...]
    """Operation counts of the out-of-distribution test sets."""
    headline_op: int
    """The one of them that skills are compared at."""
    ip_max: int = Field(ge=2)
    """Most instance parameters, that is edges of the structure graph."""
    parents_max: int = Field(ge=2)
    """Most things an instance parameter is computed from, a constant included (the paper: 4)."""
    abstract_parents_max: int | None = Field(ge=2)
    """Most things an abstract parameter is computed from; None for as many as its items make (the paper)."""
    sizes: tuple[int, ...]
    """Values that the number of layers [d] and the items per layer [w0, w1] are drawn from."""
    chains: int = Field(ge=1, le=4)
    """How many of the four chains of categories are in use."""
    subcategories: int = Field(ge=1, le=5)
    """How many of the five sub-categories of item names are in use."""
    letter_pool: int = Field(ge=1, le=52)
    """How many letters there are; each problem uses a random subset, at least one per operation."""
    max_tokens: int = Field(ge=64)
    """Length of a training window, at least that of the longest out-of-distribution problem, in tokens."""


NANO = FamilySettings(
    name="nano",
    modulus=5,
    op_max=4,
    # Where many problems have the largest op, a model learns to come to the end there, and is lost beyond (LOG.md).
    op_ratio=0.65,
    ood_ops=(5, 6),
    headline_op=5,
    ip_max=6,
    # Two: every step is one operation. Steps of more are too rare at these op to be learned in minutes (LOG.md).
    parents_max=2,
    abstract_parents_max=2,
    sizes=(2, 3),
    chains=1,
    subcategories=1,
    # Few, so that taking one twice is soon unlearned.
    letter_pool=8,
    max_tokens=256,
)

FAMILIES: dict[str, FamilySettings] = {NANO.name: NANO}


def family_named(name: str) -> FamilySettings:
    """Return the family called `name`; raise ConfigError with the known names otherwise."""
    if name not in FAMILIES:
        raise ConfigError(f"family must be one of {', '.join(FAMILIES)}, but got {name!r}")
    return FAMILIES[name]
