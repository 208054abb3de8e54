"""What a sweep runs: a YAML file, read strictly and expanded into trials.

A file is a small difference from the file it extends. An arm is one treatment; the product of its `grid` gives its
cells; every cell runs with every seed and base seed. A trial's id is its cell's name, its seeds and a hash of its
resolved config, so a trial whose config changes is another trial.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from peft_study.errors import ConfigError
from peft_study.records import METRICS
from peft_study.study.config import (
    TRAINED_METHODS,
    TrialConfig,
    build_config,
    check_key,
    config_hash,
    flatten,
    overrides_layer,
    read_yaml,
)
from peft_study.study.tuned import TunedRates

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
"""The sweep files that come with the repository."""


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


class PlannedTrial(NamedTuple):
    """A trial to be run."""

    trial: str
    """Its id."""
    arm: str
    """Name of its cell."""
    config: TrialConfig
    alarms: tuple[str, ...] = ()
    """What a reader of its result has to know, e.g. a tuned learning rate on the edge of its grid."""

    def as_json(self) -> dict[str, Any]:
        """Return what `plan.json` says of it."""
        config = self.config.model_dump(mode="json")
        return {"trial": self.trial, "arm": self.arm, "config": config, "alarms": list(self.alarms)}


class Plan(NamedTuple):
    """A sweep expanded."""

    sweep: Sweep
    trials: list[PlannedTrial]
    """Empty for a search, which draws its trials one after another."""
    cells: dict[str, dict[str, Any]]
    """Cell to its flat config, without seeds and learning rate where it is to be drawn."""
    arms: dict[str, str]
    """Cell to the name of its arm."""


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


USUAL_RATES = {"lora": 2e-4, "full": 2e-5, "probe": 1e-3}
"""Rates of pretrained models where none is set: that of QLoRA's 7 to 13 B models (arXiv 2305.14314, appendix B), and a
tenth of it for full fine-tuning. No search stands behind them."""
CHANGES_LOSS = ("skill.", "data.", "base.", "pretrained.", "corpus.", "evaluation.", "testing.")
"""Sections of a config whose values change what the validation loss means."""
SEED_LISTS = ("seeds", "base_seeds")
FROM_OUTSIDE = {
    "name": "a sweep is called as its file is; rename the file",
    "overrides": "they are given on the command line; write what they say under `trial`",
}
"""What a sweep has that is no key of its file, and why."""


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


def _slug(key: str, value: Any) -> str:
    """Return how a grid value shows in a cell's name: r4 for the rank, else key-value."""
    if key == "method.rank":
        return f"r{value}"
    *parents, leaf = key.split(".")
    named = parents[-1] if leaf == "name" and parents else leaf
    return f"{named}-{re.sub(r'[^A-Za-z0-9.]+', '-', str(value).lower())}"


def _cells(sweep: Sweep) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (name of the cell, name of its arm, its flat config without seeds)."""
    for arm_name, arm in sweep.arms.items():
        for key, values in arm.grid.items():
            check_key(key)
            if not values:
                raise ConfigError(f"sweep {sweep.name}, arm {arm_name}: grid of {key} is empty; give it a value")
        for values in itertools.product(*arm.grid.values()):
            cell = dict(zip(arm.grid, values, strict=True))
            name = "-".join([arm_name, *(_slug(key, value) for key, value in cell.items())])
            flat = {**flatten(sweep.trial), **flatten(arm.trial), **cell}
            for key, instead in (("seed", "seeds"), ("base.seed", "base_seeds")):
                if key in flat:
                    raise ConfigError(f"sweep {sweep.name}, arm {arm_name}: {key} is set by the list {instead!r}")
            yield name, arm_name, flat


def _resolve(flat: dict[str, Any], rates: TunedRates, *, strict: bool) -> tuple[TrialConfig, tuple[str, ...]]:
    """Return the config with its tuned learning rate, and the alarms."""
    config = build_config(flat)
    if config.training.lr is not None or config.method.name not in TRAINED_METHODS:
        return config, ()
    if config.pretrained is not None:
        return build_config(flat, {"training.lr": USUAL_RATES[config.method.name]}), ()
    try:
        tuned = rates.look_up(config)
    except ConfigError as error:
        if strict:
            raise
        return config, (str(error),)
    return build_config(flat, {"training.lr": tuned.lr}), tuned.alarms


def resolve_rate(config: TrialConfig, rates: TunedRates) -> TrialConfig:
    """Return `config` with the tuned learning rate where it has none and needs one."""
    return _resolve(flatten(config.model_dump()), rates, strict=True)[0]


def trial_id(arm: str, config: TrialConfig) -> str:
    """Return the id of a trial."""
    return f"{arm}-s{config.seed}-b{config.base.seed}-{config_hash(config)}"


def _check_unique(sweep: Sweep, trials: list[PlannedTrial]) -> None:
    """Raise ConfigError where two trials have the same config, or the same name and seeds."""
    seen: dict[object, str] = {}
    for planned in trials:
        config = planned.config
        for key in (config_hash(config), (planned.arm, config.seed, config.base.seed)):
            if key in seen:
                raise ConfigError(
                    f"sweep {sweep.name} plans the same trial twice, as {seen[key]} and as {planned.trial}; "
                    "every arm, grid value and seed may stand once"
                )
            seen[key] = planned.trial


def _check_references(sweep: Sweep, cells: Iterable[str]) -> None:
    """Raise ConfigError where the gap names an arm that is not there."""
    names = list(cells)
    for skill, reference in sweep.gap.items():
        for role, arm in (("lower", reference.lower), ("upper", reference.upper)):
            if arm not in names:
                nearest = difflib.get_close_matches(arm, names, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"sweep {sweep.name}: gap.{skill}.{role} is {arm!r}, but no arm is called so; nearest: {nearest!r}"
                )


def _check_same_problems(sweep: Sweep, trials: Sequence[PlannedTrial]) -> None:
    """Raise ConfigError where trials that are compared would be measured on other problems: nothing would be paired."""
    first: dict[str, PlannedTrial] = {}
    for planned in trials:
        config = planned.config
        one = first.setdefault(config.corpus.name if config.corpus else config.data.family, planned)
        asked = [(each.n, each.seed, each.split) for each in (one.config.measuring, config.measuring)]
        if asked[0] != asked[1]:
            keys = "evaluation" if config.pretrained is None else "testing"
            raise ConfigError(
                f"sweep {sweep.name}: all arms must be measured on the same problems, but {keys}.n, seed and split are "
                f"{asked[0]} of {one.arm} and {asked[1]} of {planned.arm}; set them for all"
            )


def _check_halving(sweep: Sweep, arm: Arm, halving: Halving, config: TrialConfig) -> None:
    """Raise ConfigError where the arm's cells cannot be ranked by their validation loss, or the loss comes too late."""
    if sweep.search is not None:
        raise ConfigError("halving is for a grid, but the sweep has a search; set search.pruner=halving there")
    if config.measuring.split == "test":
        raise ConfigError(
            "halving chooses, and what chooses may not see test problems, but evaluation.split is 'test'; "
            "set evaluation.split=validation"
        )
    for key in arm.grid:
        if key.startswith(CHANGES_LOSS) or key == "training.tokens":
            raise ConfigError(
                f"halving ranks cells by validation loss, which {key} changes the meaning of; make each value an arm"
            )
    points, needed = config.training.points, halving.factor**halving.rungs
    if points < needed:
        raise ConfigError(
            f"the first rung is at 1/{needed} of the tokens, but the loss is measured {points} times; "
            f"set training.points={needed}, or fewer halving.rungs"
        )


def _searched_cell(sweep: Sweep, search: Search, arm: Arm, flat: dict[str, Any]) -> dict[str, Any]:
    """Return the flat config of a cell that `search` draws in; raise ConfigError where it may not."""
    for key in search.space:
        check_key(key)
    seeds, base_seeds = arm.seeds or sweep.seeds, arm.base_seeds or sweep.base_seeds
    if len(seeds) != 1 or len(base_seeds) != 1:
        raise ConfigError(f"a search takes one seed and one base seed, but got {seeds} and {base_seeds}")
    config = build_config(flat, {key: values.low for key, values in search.space.items()})
    if config.measuring.split == "test":
        raise ConfigError(
            "a search may not see test problems, but evaluation.split is 'test'; set evaluation.split=validation"
        )
    return {**flat, "seed": seeds[0], "base.seed": base_seeds[0]}


def build_plan(sweep: Sweep, rates: TunedRates | None = None, *, strict: bool = True) -> Plan:
    """Return the trials of `sweep`; without `strict` a missing tuned learning rate is an alarm, not an error."""
    rates = TunedRates() if rates is None else rates
    plan = Plan(sweep, [], {}, {})
    for name, arm_name, flat in _cells(sweep):
        arm = sweep.arms[arm_name]
        plan.arms[name] = arm_name
        try:
            if arm.halving is not None:
                _check_halving(sweep, arm, arm.halving, build_config(flat))
            if sweep.search is not None:
                plan.cells[name] = _searched_cell(sweep, sweep.search, arm, flat)
                continue
            plan.cells[name] = flat
            for base_seed, seed in itertools.product(arm.base_seeds or sweep.base_seeds, arm.seeds or sweep.seeds):
                config, alarms = _resolve({**flat, "seed": seed, "base.seed": base_seed}, rates, strict=strict)
                plan.trials.append(PlannedTrial(trial_id(name, config), name, config, alarms))
        except ConfigError as error:
            raise ConfigError(f"sweep {sweep.name}, arm {name}: {error}") from error
    _check_unique(sweep, plan.trials)
    _check_references(sweep, plan.cells)
    _check_same_problems(sweep, plan.trials)
    return plan


def searched_trial(plan: Plan, cell: str, values: dict[str, float | int]) -> PlannedTrial:
    """Return the trial of a search that has drawn `values` in `cell`."""
    config, alarms = _resolve({**plan.cells[cell], **values}, TunedRates(), strict=True)
    return PlannedTrial(trial_id(cell, config), cell, config, alarms)
