"""Successive halving with resume in place: which trials of a bracket train on, wait, or are out.

All trials of a bracket train to a first rung, the best of them go on from where they are to the next, and so on
(Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1). Unlike there a trial goes on, or is out, as soon as that
is certain, whatever those that are still to come will be worth; so the outcome depends neither on how many trials run
side by side nor on kills.
"""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from peft_study.records import Status
from peft_study.study.plan import Plan, PlannedTrial
from peft_study.study.stores import read_metrics, read_result
from peft_study.study.sweep_file import Halving

MEASURE = "validation/loss"
"""What trials are ranked by, less being better."""


class State(Enum):
    """What is to be done with a trial."""

    RUNS = "runs"
    WAITS = "waits"
    """Until others have come to its rung."""
    OUT = "out"


class Bracket:
    """Trials that are halved among one another."""

    def __init__(self, halving: Halving, planned: Sequence[PlannedTrial]) -> None:
        self.halving = halving
        self.tokens = {each.trial: each.config.training.tokens for each in planned}
        """Trial to the tokens it reads if it is never out."""
        self.points = planned[0].config.training.points
        self.losses: list[dict[str, float]] = [{} for _ in halving.shares]
        """Rung to the losses of the trials that have come to it."""
        self.failed: set[str] = set()
        self.states = dict.fromkeys(self.tokens, State.RUNS)
        """Trial to what is to be done with it."""
        self.passed = dict.fromkeys(self.tokens, 0)
        """Trial to the number of rungs from which it is known to go on."""

    def recall(self, folder: Path) -> None:
        """Take up what the trials of a sweep have left in its `folder`."""
        for trial in self.tokens:
            result = read_result(folder / trial)
            place = folder / trial if result else folder / trial / "checkpoint"
            for tokens, metrics in read_metrics(place / "metrics.jsonl"):
                self.hear(trial, tokens, metrics)
            if result and result["status"] == Status.FAILED:
                self.fail(trial)

    def hear(self, trial: str, tokens: int, metrics: dict[str, float]) -> bool:
        """Take note of what was measured after `tokens`; return whether that is the trial's arrival at a rung."""
        arrived = False
        for share, losses in zip(self.halving.shares, self.losses, strict=True):
            # The rung is the point that is nearest to its share of the tokens.
            if trial not in losses and tokens > (share - 0.5 / self.points) * self.tokens[trial]:
                losses[trial] = metrics[MEASURE]
                arrived = True
        if arrived:
            self._decide()
        return arrived

    def fail(self, trial: str) -> None:
        """Expect nothing more of `trial`."""
        self.failed.add(trial)
        self._decide()

    def _decide(self) -> None:
        states = dict.fromkeys(self.tokens, State.RUNS)
        for rung, losses in enumerate(self.losses):
            keep = self.halving.kept(len(states), rung)
            going = [trial for trial, state in states.items() if state is State.RUNS]
            # A tie goes to the trial that is planned first.
            ranked = sorted((trial for trial in going if trial in losses), key=losses.__getitem__)
            to_come = sum(
                trial not in losses and trial not in self.failed and state is not State.OUT
                for trial, state in states.items()
            )
            for better, trial in enumerate(ranked):
                if better >= keep:
                    states[trial] = State.OUT
                elif better + to_come >= keep:
                    states[trial] = State.WAITS
                else:
                    self.passed[trial] = rung + 1
        self.states = states

    def losers(self) -> dict[str, str]:
        """Return the trials that are out, each with the reason."""
        return {trial: self.reason(trial) for trial, state in self.states.items() if state is State.OUT}

    def reason(self, trial: str) -> str:
        """Return why `trial` is out."""
        rung = max(rung for rung, losses in enumerate(self.losses) if trial in losses)
        losses, share = self.losses[rung], self.halving.shares[rung]
        keep = self.halving.kept(len(self.tokens), rung)
        return f"not among the best {keep} of {len(self.tokens)} at {share:.0%} of the tokens: loss {losses[trial]:.4g}"

    def expected_tokens(self, trial: str) -> int:
        """Return how many tokens `trial` will have read at its end, in the mean of those that are as far as it is."""
        return round(self.tokens[trial] * self.halving.share_trained(len(self.tokens), self.passed[trial]))


def brackets_of(plan: Plan) -> dict[str, Bracket]:
    """Return trial to its bracket, for the trials that have one."""
    members: dict[tuple[str, int, int], list[PlannedTrial]] = {}
    for planned in plan.trials:
        arm = plan.arms[planned.arm]
        if plan.sweep.arms[arm].halving is not None:
            members.setdefault((arm, planned.config.seed, planned.config.base.seed), []).append(planned)
    brackets: dict[str, Bracket] = {}
    for (arm, *_), planned in members.items():
        halving = plan.sweep.arms[arm].halving
        assert halving is not None
        brackets |= dict.fromkeys((each.trial for each in planned), Bracket(halving, planned))
    return brackets
