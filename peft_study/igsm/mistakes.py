"""Mistakes: steps that are not to be taken, inserted and taken back (Part 2.2, section 4).

At the start of each solution sentence, with probability `retry_rate`, `Define X as [BACK].` is inserted; then again
with the same probability, so the count is geometric. What X is drawn from depends on the kind:

- `retry`: parameters that are neither known nor computable yet, those that nothing is computed from included;
- `weak`: what the solution still has to define, the right one included (as in the published code);
- `weak_strict`: what the solution defines later than the next step;
- `miss`: instance parameters not defined yet, necessary or not, computable or not.

No X is drawn twice at one place. Of the last three an X can be computable, so that it is not wrong by its state label.
"""

from typing import Literal, NamedTuple, get_args

from peft_study.errors import ConfigError
from peft_study.igsm.chance import Chance
from peft_study.igsm.problem import Parameter, Problem
from peft_study.igsm.solution import State, state_after

MistakeKind = Literal["retry", "weak", "weak_strict", "miss"]
MISTAKE_KINDS: tuple[MistakeKind, ...] = get_args(MistakeKind)


class Mistake(NamedTuple):
    """A parameter that is defined and taken back before step `before` of the clean solution."""

    before: int
    parameter: Parameter
    computable: bool = False
    """The state label: whether all that it is computed from is known there."""


def check_retry_rate(retry_rate: float) -> None:
    """Raise ConfigError unless `retry_rate` is in [0, 1)."""
    if not 0 <= retry_rate < 1:
        raise ConfigError(f"retry_rate must be in [0, 1), but got {retry_rate}; 0 means no mistakes")


def _in_number(parameter: Parameter) -> tuple[int, ...]:
    """Return the key of the order in which compiled code numbers parameters."""
    level = parameter.target - parameter.layer if parameter.abstract else 0
    return parameter.abstract, level, parameter.layer, parameter.item, parameter.target


def _pool(problem: Problem, kind: MistakeKind, step: int, state: State) -> list[Parameter]:
    if kind == "retry":
        there = (problem.parents | problem.unused).items()
        blocked = [p for p, parents in there if p not in state.known and not state.known.issuperset(parents)]
        return sorted(blocked, key=_in_number)
    if kind == "miss":
        # Sorted, since the order of a set would make the draw depend on more than the seed.
        return sorted(set(problem.formulas) - state.known, key=_in_number)
    return list(problem.order[step if kind == "weak" else step + 1 :])


def draw_mistakes(rng: Chance, problem: Problem, retry_rate: float, kind: MistakeKind = "retry") -> list[Mistake]:
    """Return mistakes for the clean solution of `problem`, in order of insertion.

    Where the pool of a place is empty, no mistake is possible and none is made.
    """
    check_retry_rate(retry_rate)
    mistakes: list[Mistake] = []
    if not retry_rate:
        return mistakes
    for step in range(len(problem.order)):
        drawn: tuple[State, list[Parameter]] | None = None
        while rng.uniform() < retry_rate:
            if drawn is None:
                state = state_after(problem, step)
                drawn = state, _pool(problem, kind, step, state)
            state, pool = drawn
            if not pool:
                break
            parameter = pool.pop(rng.below(len(pool)))
            mistakes.append(Mistake(step, parameter, parameter in state.can_next))
    return mistakes
