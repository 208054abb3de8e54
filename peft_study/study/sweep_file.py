"""A sweep file: YAML, read strictly.

A file is a small difference from the file it extends. An arm is one treatment; `plan.py` makes trials of it.
"""

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from peft_study.errors import ConfigError
from peft_study.records import METRICS
from peft_study.study.config import check_key, flatten, overrides_layer, read_yaml

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
"""The sweep files that come with the repository."""
SEED_LISTS = ("seeds", "base_seeds")
FROM_OUTSIDE = {
    "name": "a sweep is called as its file is; rename the file",
    "overrides": "they are given on the command line; write what they say under `trial`",
}
"""What a sweep has that is no key of its file, and why."""

Seeds = Annotated[tuple[int, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Halving(_Strict):
    """Train all cells a little and only the best of them to the end: for choosing, not for arms that are reported."""

    factor: int = Field(default=3, ge=2)
    """At each rung one in so many goes on, to so many times the tokens."""
    rungs: int = Field(default=2, ge=1)
    """How often trials are left behind; the first rung is at `factor ** -rungs` of the tokens."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the tokens at each rung, the first one first."""
        return tuple(self.factor ** (rung - self.rungs) for rung in range(self.rungs))

    def kept(self, num_trials: int, rung: int) -> int:
        """Return how many of `num_trials` go on from `rung`, 0 being the first."""
        return -(-num_trials // self.factor ** (rung + 1))

    def share_trained(self, num_trials: int, passed: int = 0) -> float:
        """Return the mean share of their tokens that those of `num_trials` train for which pass `passed` rungs."""
        counts = [num_trials, *(self.kept(num_trials, rung) for rung in range(self.rungs))]
        ends = (0.0, *self.shares, 1.0)
        steps = [after - before for before, after in itertools.pairwise(ends)]
        trained = sum(count * step for count, step in zip(counts[passed:], steps[passed:], strict=True))
        return ends[passed] + trained / counts[passed]


class Arm(_Strict):
    """One treatment."""

    trial: dict[str, Any] = {}
    """Config tree: what this arm changes of the sweep's `trial`."""
    grid: dict[str, list[Any]] = {}
    """Dotted config key to its values; the product gives the arm's cells."""
    seeds: Seeds | None = None
    """Trial seeds; left out for the sweep's."""
    base_seeds: Seeds | None = None
    """Base pairs; left out for the sweep's."""
    halving: Halving | None = None
    """Successive halving among the arm's cells, for each seed and base pair; left out, all train to the end."""


class Reference(_Strict):
    """Between which arms the gap of a skill lies."""

    lower: str
    upper: str


class Range(_Strict):
    """Values a search may draw."""

    low: float
    high: float
    log: bool = False
    """Draw uniformly in the logarithm."""
    integer: bool = False
    """Draw whole numbers."""

    @model_validator(mode="after")
    def _is_range(self) -> "Range":
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError(f"low must be at most high, and above 0 with log, but got {self.low} to {self.high}")
        return self


class Search(_Strict):
    """Cells drawn one after another in place of a grid; only ever on validation problems."""

    sampler: Literal["tpe"] = "tpe"
    """Tree-structured Parzen estimator."""
    trials: int = Field(ge=1)
    """Trials of each cell of the grid."""
    metric: str = "loss"
    """What is optimised, a name of `records.METRICS`."""
    direction: Literal["minimize", "maximize"] | None = None
    """Left out for that in which the metric is better."""
    space: dict[str, Range] = Field(min_length=1)
    """Dotted config key to its range."""
    pruner: Literal["none", "median", "halving"] = "none"
    """`median`: stop what is worse than the median of finished trials at the same step; `halving`: stop what is not
    among the best quarter of those drawn before. Both look at `validation/loss` while training: with `loss` alone."""

    @model_validator(mode="after")
    def _can_be_optimised(self) -> "Search":
        # The gap closed is between arms, no measure of a trial.
        measured = [name for name in METRICS if name != "gap_closed"]
        if self.metric not in measured:
            nearest = difflib.get_close_matches(self.metric, measured, n=1, cutoff=0.0)[0]
            raise ValueError(f"metric must be one that is measured, but is {self.metric!r}; the nearest is {nearest!r}")
        if self.direction is None and METRICS[self.metric].direction == "none":
            raise ValueError(f"metric {self.metric} is better neither way; say direction: minimize, or maximize")
        if self.pruner != "none" and self.metric != "loss":
            raise ValueError(
                f"pruner {self.pruner} looks at the validation loss while training, but metric is {self.metric}; set "
                "pruner: none, or metric: loss"
            )
        return self

    @property
    def better(self) -> Literal["minimize", "maximize"]:
        """In which direction the metric is better."""
        return self.direction or ("minimize" if METRICS[self.metric].direction == "lower" else "maximize")


class Sweep(_Strict):
    """A sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    extends: str = ""
    """Name of the file beside it that this one is a difference from."""
    question: str = ""
    """What the sweep is to answer, in one sentence."""
    first_look: bool = False
    """Too few seeds for a verdict: the report says `first look` and gives none."""
    figures: tuple[str, ...] = ("headline",)
    """The figures it feeds, in the order of its report."""
    trial: dict[str, Any] = {}
    """Config tree: the defaults of all trials."""
    seeds: Seeds = (0,)
    base_seeds: Seeds = (0,)
    arms: dict[str, Arm] = {}
    gap: dict[Literal["correction", "detection"], Reference] = {}
    """For each skill the arms that gap closed is measured between."""
    search: Search | None = None
    overrides: tuple[str, ...] = ()
    """What was changed on the command line, so that this is not the sweep of the file; no key of a file."""


def find_sweep(name: str) -> Path:
    """Return the file of sweep `name`: a path, or a name under `sweeps/` here or in the repository."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    here = Path("sweeps", f"{name}.yaml")
    return here if here.exists() else SWEEPS / f"{name}.yaml"


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` changed by `above`: mappings are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _read_extended(path: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the tree of `path` laid over the trees it extends."""
    tree = read_yaml(path)
    parent = tree.get("extends")
    if not parent:
        return tree
    if path.stem in below:
        raise ConfigError(f"sweep files extend one another in a circle: {' -> '.join((*below, path.stem))}")
    beside = path.with_name(f"{parent}.yaml")
    # A file of one's own may extend the base that comes with the repository.
    extended = beside if beside.exists() or parent == path.stem else SWEEPS / f"{parent}.yaml"
    return _merged(_read_extended(extended, (*below, path.stem)), tree)


def _keys_at(where: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a sweep file may hold where `where` is not one."""
    if len(where) == 1:
        return [key for key in Sweep.model_fields if key not in FROM_OUTSIDE]
    for key, inside in (("space", Range), ("halving", Halving)):
        if key in where:
            return list(inside.model_fields)
    return list({"arms": Arm, "gap": Reference}.get(str(where[0]), Search).model_fields)


def _refusal(path: Path, error: ValidationError) -> ConfigError:
    """Return the first fault of a sweep file as one line."""
    first = error.errors()[0]
    where = first["loc"]
    dotted = ".".join(map(str, where))
    if first["type"] == "extra_forbidden":
        keys = _keys_at(where)
        nearest = difflib.get_close_matches(str(where[-1]), keys, n=1, cutoff=0.0)[0]
        return ConfigError(f"{path}: unknown key {dotted!r}; the nearest known key is {nearest!r}")
    value = first["input"]
    shown = "" if isinstance(value, dict | BaseModel) else f", but got {value!r}"
    return ConfigError(f"{path}: {dotted}: {first['msg'].removeprefix('Value error, ')}{shown}")


def read_sweep(name: str, overrides: Iterable[str] = ()) -> Sweep:
    """Return the sweep called `name`, or at the path `name`, changed by `key=value` overrides.

    An override of a config key holds for all trials and takes the place of the key in every grid; `seeds=[0,1]`
    and `base_seeds=[0]` take the place of all lists of that name.
    """
    path, overrides = find_sweep(name), tuple(overrides)
    tree = _read_extended(path)
    for key in FROM_OUTSIDE.keys() & tree.keys():
        raise ConfigError(f"{path}: {key} is no key of a sweep file: {FROM_OUTSIDE[key]}")
    layer = overrides_layer(overrides)
    lists = {key: layer.pop(key) for key in SEED_LISTS if key in layer}
    for key in layer:
        check_key(key)
    try:
        sweep = Sweep.model_validate({**tree, **lists, "name": path.stem, "overrides": overrides})
    except ValidationError as error:
        raise _refusal(path, error) from error
    if not sweep.arms:
        raise ConfigError(f"{path} has no arms, so there is nothing to run; name a sweep that extends it")
    for key in layer.keys() & (sweep.search.space.keys() if sweep.search else ()):
        raise ConfigError(f"{path}: {key} is drawn by the search, so it cannot be set; leave it out")
    arms = {}
    for arm_name, arm in sweep.arms.items():
        grid = {key: [layer[key]] if key in layer else values for key, values in arm.grid.items()}
        trial = {**flatten(arm.trial), **layer}
        arms[arm_name] = arm.model_copy(update={"grid": grid, "trial": trial, **dict.fromkeys(lists)})
    return sweep.model_copy(update={"arms": arms})
