"""reask: the same problem, another question (Part 2.2, section 2).

The published `re_ask` draws among all pairs of items, 26 % of which have no sentence in the problem, and does not count
operations anew. Here the question is drawn from what can be computed, and op is recounted.
"""

from dataclasses import replace

from peft_study.igsm.chance import Chance
from peft_study.igsm.problem import Parameter, Problem, num_ops


def needed_for(problem: Problem, query: Parameter) -> set[Parameter]:
    """Return what `query` is computed from, however far, and itself."""
    found: set[Parameter] = set()
    stack = [query]
    while stack:
        parameter = stack.pop()
        if parameter not in found:
            found.add(parameter)
            stack += problem.parents[parameter]
    return found


def ops_of(problem: Problem, parameters: set[Parameter]) -> int:
    """Return the operations that it takes to define `parameters`."""
    total = 0
    for parameter in parameters:
        formula = problem.formulas.get(parameter)
        constant = formula is not None and formula.constant is not None
        total += num_ops(len(problem.parents[parameter]) + constant)
    return total


def ask_again(problem: Problem, query: Parameter, rng: Chance) -> Problem:
    """Return `problem` with the question for `query`, its solution in a random order that can be computed."""
    needed = needed_for(problem, query)
    order: list[Parameter] = []
    while len(order) < len(needed):
        known = set(order)
        free = [p for p in problem.parents if p in needed - known and known.issuperset(problem.parents[p])]
        order.append(rng.choice(free))
    return replace(problem, op=ops_of(problem, needed), order=tuple(order))


def questions(problem: Problem) -> list[Parameter]:
    """Return what may be asked for instead: everything in use that can be computed, but for what is asked for."""
    return [parameter for parameter in problem.parents if parameter != problem.query]
