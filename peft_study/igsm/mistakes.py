"""Mistakes: steps that cannot be taken yet, inserted and taken back (Part 2.2, section 4).

At the start of each solution sentence, with probability `retry_rate`, `Define X as [BACK].` is inserted for
an X that cannot be computed yet; then again with the same probability, so the count is geometric.
"""

from random import Random
from typing import NamedTuple

from peft_study.errors import ConfigError
from peft_study.igsm.problem import Parameter, Problem
from peft_study.igsm.solution import state_after


class Mistake(NamedTuple):
    """A parameter that is defined and taken back before step `before` of the clean solution."""

    before: int
    parameter: Parameter


def check_retry_rate(retry_rate: float) -> None:
    """Raise ConfigError unless `retry_rate` is in [0, 1)."""
    if not 0 <= retry_rate < 1:
        raise ConfigError(f"retry_rate must be in [0, 1), but got {retry_rate}; 0 means no mistakes")


def draw_mistakes(rng: Random, problem: Problem, retry_rate: float) -> list[Mistake]:
    """Return `retry` mistakes for the clean solution of `problem`, in order of insertion.

    The pool at each place is every parameter in use that is neither known nor computable (state label
    'wrong') and was not already tried there. Where the pool is empty, no mistake is possible and none is made.
    """
    check_retry_rate(retry_rate)
    mistakes: list[Mistake] = []
    if not retry_rate:
        return mistakes
    for step in range(len(problem.order)):
        pool: list[Parameter] | None = None
        while rng.random() < retry_rate:
            if pool is None:
                state = state_after(problem, step)
                # Sorted, since the order of a set would make the draw depend on more than the seed.
                pool = sorted(set(problem.parents) - state.known - state.can_next)
            if not pool:
                break
            mistakes.append(Mistake(step, pool.pop(rng.randrange(len(pool)))))
    return mistakes
