"""The door to Optuna: the study of a sweep, in which every trial is found again by its id."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peft_study.errors import StoreError
from peft_study.igsm.families import family_named
from peft_study.records import Status
from peft_study.rng import derive_seed
from peft_study.study.config import flatten
from peft_study.study.plan import Plan, PlannedTrial, searched_trial
from peft_study.study.stores import OPTUNA, check_database, create_database, optuna_path
from peft_study.study.sweep_file import Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

HEADLINE = {
    "correction": (("ood", "accuracy"), ("id", "accuracy")),
    "detection": (("injected", "detect_auroc"), ("injected", "free_auroc")),
}
"""Skill to the (set, metric) whose value at the largest op is told to Optuna; the first that was measured."""

MAX_DRAWS = 100
"""Draws after which a search that only finds trials it has made before is at its end."""


class Ledger:
    """One Optuna study, in which every trial has its id as user attribute `trial`."""

    def __init__(
        self,
        runs: Path,
        name: str,
        *,
        direction: Literal["minimize", "maximize"] = "maximize",
        pruner: str = "none",
        space: "dict[str, BaseDistribution] | None" = None,
    ) -> None:
        """Open the study called `name`, making it, and the database, where there is none.

        `space` holds the parameters that Optuna is shown of each trial.
        """
        import optuna

        logging.getLogger("alembic").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        database = optuna_path(runs)
        if not check_database(database, OPTUNA):
            create_database(database, lambda new: _storage(new).engine.dispose())
        pruners = {"median": optuna.pruners.MedianPruner, "halving": optuna.pruners.SuccessiveHalvingPruner}
        self.storage = _storage(database)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            direction=direction,
            load_if_exists=True,
            pruner=pruners.get(pruner, optuna.pruners.NopPruner)(),
        )
        if any("trial" not in frozen.user_attrs for frozen in self.study.get_trials(deepcopy=False)):
            self.close()
            raise StoreError(
                f"the study {name} in {database} has trials that no sweep of peft_study made; move {database} away, "
                "or choose another folder with --runs"
            )
        self.space = space or {}
        self.states = optuna.trial.TrialState
        self.ids = {trial: frozen._trial_id for trial, frozen in self.newest().items()}
        """Our trial id to Optuna's: looked up here, since Optuna reads all open trials anew each time it is asked."""

    def close(self) -> None:
        """Let go of the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def trials(self) -> "list[FrozenTrial]":
        """Return the Optuna trials that are ours, oldest first."""
        return [frozen for frozen in self.study.get_trials(deepcopy=False) if "trial" in frozen.user_attrs]

    def newest(self) -> "dict[str, FrozenTrial]":
        """Return trial id to its Optuna trial, the newest one: a trial that was run again has older ones."""
        return {frozen.user_attrs["trial"]: frozen for frozen in self.trials()}

    def put_back_leftovers(self) -> None:
        """Let the trials that a kill has left running wait again."""
        for frozen in self.trials():
            if frozen.state == self.states.RUNNING:
                self.storage.set_trial_state_values(frozen._trial_id, self.states.WAITING)

    def enqueue(self, planned: PlannedTrial) -> None:
        """Let `planned` wait in the study. One write, so that a kill leaves the whole of it or nothing."""
        from optuna.trial import create_trial

        flat = flatten(planned.config.model_dump())
        params = {key: flat[key] for key in self.space}
        attrs = {"trial": planned.trial, "arm": planned.arm}
        waiting = create_trial(state=self.states.WAITING, params=params, distributions=self.space, user_attrs=attrs)
        self.ids[planned.trial] = self.storage.create_new_trial(self.study._study_id, waiting)

    def number(self, trial: str) -> int:
        """Return Optuna's number of `trial`."""
        return self.storage.get_trial_number_from_id(self.ids[trial])

    def start(self, trial: str) -> None:
        """Set the waiting `trial` to running."""
        self.storage.set_trial_state_values(self.ids[trial], self.states.RUNNING)

    def put_back(self, trial: str) -> None:
        """Let the running `trial` wait again."""
        self.storage.set_trial_state_values(self.ids[trial], self.states.WAITING)

    def tell(self, trial: str, result: Mapping[str, Any], metric: str | None = None) -> None:
        """Tell the study how the waiting or running `trial` has ended."""
        known = self.ids[trial]
        if self.storage.get_trial(known).state == self.states.WAITING:
            self.storage.set_trial_state_values(known, self.states.RUNNING)
        if result["reason"]:
            self.storage.set_trial_user_attr(known, "reason", result["reason"][:1_000])
        named = headline(result, metric) if result["status"] == Status.FINISHED else None
        if result["status"] == Status.PRUNED:
            self.study.tell(self.number(trial), state=self.states.PRUNED)
        elif named is None:
            self.study.tell(self.number(trial), state=self.states.FAIL)
        else:
            self.study.tell(self.number(trial), named[1])

    def is_told(self, frozen: "FrozenTrial", result: Mapping[str, Any] | None, metric: str | None = None) -> bool:
        """Return whether `frozen` has ended, and as the `result` that is there says.

        What has failed may have been taken from a published table since, where it is finished.
        """
        if result is None or not frozen.state.is_finished():
            return False
        has_value = result["status"] == Status.FINISHED and headline(result, metric) is not None
        return not (has_value and frozen.state == self.states.FAIL)

    def report(self, trial: str, step: int, value: float) -> None:
        """Report an intermediate value, unless it is there."""
        known = self.ids[trial]
        # A resumed trial reports the steps since its checkpoint again.
        if step not in self.storage.get_trial(known).intermediate_values:
            self.storage.set_trial_intermediate_value(known, step, value)

    def should_prune(self, trial: str) -> bool:
        """Return whether the trial should stop, by the values it has reported."""
        return self.study.pruner.prune(self.study, self.storage.get_trial(self.ids[trial]))

    def draw(self, plan: Plan, cell: str, search: Search) -> PlannedTrial | None:
        """Return the next trial of a search, None where it has them all.

        A draw is a function of the finished trials and the number of the draw alone, so that a killed search goes
        on as if it had not been; nothing is written until the trial is enqueued whole.
        """
        from optuna.samplers import TPESampler
        from optuna.trial import create_trial

        known = self.ids
        if len(known) >= search.trials:
            return None
        blank = create_trial(state=self.states.RUNNING)
        for attempt in range(MAX_DRAWS):
            seed = derive_seed(0, plan.sweep.name, cell, len(known), attempt) % 2**32
            # A liar's constants are for trials that run side by side; here it would write to a trial not yet made.
            sampler = TPESampler(seed=seed, constant_liar=False)
            relative = sampler.infer_relative_search_space(self.study, blank)
            drawn = sampler.sample_relative(self.study, blank, relative)
            for key, distribution in self.space.items():
                if key not in drawn:
                    drawn[key] = sampler.sample_independent(self.study, blank, key, distribution)
            values = {
                key: _rounded(value, search.space[key].low, search.space[key].high) for key, value in drawn.items()
            }
            planned = searched_trial(plan, cell, values)
            if planned.trial not in known:
                return planned
        return None


def _storage(database: Path) -> "RDBStorage":
    from optuna.storages import RDBStorage

    return RDBStorage(f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": 20}})


def _rounded(value: float, low: float, high: float) -> float:
    """Return `value` to four digits, which is all a config needs to say."""
    return value if isinstance(value, int) else min(max(float(f"{value:.4g}"), low), high)


def search_space(search: Search) -> "dict[str, BaseDistribution]":
    """Return what a search draws from."""
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        key: IntDistribution(int(values.low), int(values.high), log=values.log)
        if values.integer
        else FloatDistribution(values.low, values.high, log=values.log)
        for key, values in search.space.items()
    }


def grid_space(plan: Plan) -> "dict[str, BaseDistribution]":
    """Return the numbers among the grids' keys, each over what the plan holds.

    Only numbers: Optuna lets a number's range grow with the sweep file, but not the choices of a category.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    keys = dict.fromkeys(key for arm in plan.sweep.arms.values() for key in arm.grid)
    flats = [flatten(planned.config.model_dump()) for planned in plan.trials]
    space: dict[str, BaseDistribution] = {}
    for key in keys:
        # Of an optional section, such as `testing`, a trial may have none; no range holds that.
        values: list[Any] = [flat.get(key) for flat in flats]
        if all(type(value) is int for value in values):
            space[key] = IntDistribution(min(values), max(values))
        elif all(type(value) is float for value in values):
            space[key] = FloatDistribution(min(values), max(values))
    return space


def headline(result: Mapping[str, Any], metric: str | None = None) -> tuple[str, float] | None:
    """Return name and value of the number of a result that Optuna is told; None where it was not measured.

    With `metric` the mean of that metric over its sets and ops, else the skill's headline at the family's headline op.
    """
    measured = [measure for measure in result["measures"] if math.isfinite(measure["value"])]
    if metric is not None:
        values = [measure["value"] for measure in measured if measure["metric"] == metric]
        return (metric, sum(values) / len(values)) if values else None
    op = family_named(result["config"]["data"]["family"]).headline_op
    for wanted in HEADLINE[result["config"]["skill"]["name"]]:
        for measure in measured:
            if (measure["set"], measure["metric"]) == wanted and measure["op"] in (None, op):
                return wanted[1], measure["value"]
    return None
