"""What a sweep runs: its arms expanded into trials, and checked.

The product of an arm's `grid` gives its cells; every cell runs with every seed and base seed. A trial's id is its
cell's name, its seeds and a hash of its resolved config, so a trial whose config changes is another trial.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from peft_study.errors import ConfigError
from peft_study.study.config import TRAINED_METHODS, TrialConfig, build_config, check_key, config_hash, flatten
from peft_study.study.sweep_file import Arm, Halving, Search, Sweep
from peft_study.study.tuned import TunedRates

USUAL_RATES = {"lora": 2e-4, "full": 2e-5, "probe": 1e-3}
"""Rates of pretrained models where none is set: that of QLoRA's 7 to 13 B models (arXiv 2305.14314, appendix B), and a
tenth of it for full fine-tuning. No search stands behind them."""
CHANGES_LOSS = ("skill.", "data.", "base.", "pretrained.", "corpus.", "evaluation.", "testing.")
"""Sections of a config whose values change what the validation loss means."""


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
