"""Families: named settings of the one generator."""

from typing import Literal

from pydantic import BaseModel, Field

from peft_study.errors import ConfigError

Order = Literal["pq", "qp"]


class FamilySettings(BaseModel, frozen=True, extra="forbid"):
    """What a problem may look like. Symbols in brackets are those of Part 2.1, Algorithm 7."""

    name: str
    modulus: int = Field(ge=5, le=23)
    """All arithmetic is modulo this number; values are 0 to modulus - 1."""
    op_max: int = Field(ge=1)
    """Largest number of operations of a training problem."""
    op_ratio: float | None = Field(gt=0, le=1)
    """How often a training problem has op + 1 operations, in relation to op; 1 makes all equally frequent.

    None is the official law: a target, the smaller of two uniform draws, and problems drawn until one has it
    (Part 2.1, Algorithm 7, and the published code).
    """
    ood_ops: tuple[int, ...]
    """Operation counts of the out-of-distribution test sets."""
    headline_op: int
    """The one of them that skills are compared at."""
    style: Literal["light", "middle"]
    """How operations are granted, two styles of the published code: `light` (the paper's), or `middle`, with more steps
    of several operations."""
    ip_max: int = Field(ge=2)
    """Most instance parameters, that is edges of the structure graph."""
    parents_max: int = Field(ge=2)
    """Most things an instance parameter is computed from, a constant included (the paper: 4)."""
    abstract_parents_max: int | None = Field(ge=2)
    """Most things an abstract parameter is computed from; None for as many as its items make (the paper)."""
    empty_abstract: bool
    """Whether there are abstract parameters of items that hold nothing: `so p = 0`, as in the published code."""
    sizes: tuple[int, ...]
    """Values that the number of layers [d] and the items per layer [w0, w1] are drawn from."""
    shape_tries: int = Field(ge=1)
    """How often a problem is tried before another shape is drawn (the published code: 1000)."""
    chains: int = Field(ge=1, le=4)
    """How many of the four chains of categories are in use."""
    subcategories: int = Field(ge=1, le=5)
    """How many of the five sub-categories of item names are in use."""
    names: int = Field(ge=4, le=20)
    """How many of the twenty names of a sub-category are in use."""
    letter_pool: int = Field(ge=1, le=52)
    """How many letters there are; each problem uses a random subset, at least one per operation."""
    split_by: Literal["problem", "template"]
    """What is hashed to tell training from test: the whole problem, or the solution's template alone (the paper)."""
    max_tokens: int = Field(ge=64)
    """Length of a training window, at least that of the longest out-of-distribution problem, in tokens."""


NANO = FamilySettings(
    name="nano",
    modulus=5,
    op_max=5,
    op_ratio=1.0,
    ood_ops=(6, 7),
    headline_op=6,
    style="light",
    ip_max=7,
    # Two: every step is one operation. Steps of more are too rare at these op to be learned in hours (LOG.md).
    parents_max=2,
    abstract_parents_max=2,
    empty_abstract=False,
    sizes=(2, 3),
    shape_tries=1_000,
    chains=1,
    subcategories=1,
    names=8,
    # Few, so that taking one twice is soon unlearned.
    letter_pool=8,
    split_by="problem",
    max_tokens=256,
)

MINI = FamilySettings(
    name="mini",
    modulus=23,
    op_max=8,
    op_ratio=1.0,
    ood_ops=(9, 10, 12),
    headline_op=10,
    style="light",
    ip_max=12,
    parents_max=4,
    abstract_parents_max=None,
    empty_abstract=False,
    sizes=(2, 3),
    shape_tries=1_000,
    chains=4,
    subcategories=5,
    names=8,
    letter_pool=26,
    split_by="problem",
    max_tokens=512,
)

MED = FamilySettings(
    name="med",
    modulus=23,
    op_max=15,
    op_ratio=None,
    ood_ops=(20, 21, 22, 23),
    headline_op=20,
    style="light",
    ip_max=20,
    parents_max=4,
    abstract_parents_max=None,
    empty_abstract=True,
    sizes=(2, 3, 4),
    shape_tries=1_000,
    chains=4,
    subcategories=5,
    names=20,
    letter_pool=52,
    split_by="template",
    max_tokens=768,
)

HARD = MED.model_copy(
    update={
        "name": "hard",
        "op_max": 21,
        "ood_ops": (28, 29, 30, 31, 32),
        "headline_op": 28,
        "ip_max": 28,
        "max_tokens": 1024,
    }
)

FAMILIES: dict[str, FamilySettings] = {family.name: family for family in (NANO, MINI, MED, HARD)}


def family_named(name: str) -> FamilySettings:
    """Return the family called `name`; raise ConfigError with the known names otherwise."""
    if name not in FAMILIES:
        raise ConfigError(f"family must be one of {', '.join(FAMILIES)}, but got {name!r}")
    return FAMILIES[name]
