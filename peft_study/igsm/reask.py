"""reask: the same problem, another question (Part 2.2, section 2).

The published `re_ask` draws among all pairs of items, 26 % of which have no sentence in the problem, and does not count
operations anew. Here the question is drawn from what can be computed, and op is recounted.
"""

from dataclasses import replace

from peft_study.igsm.chance import Chance
from peft_study.igsm.problem import Parameter, Problem, in_order, num_ops


def needed_for(problem: Problem, query: Parameter) -> set[Parameter]:
    """Return what `query` is computed from, however far, and itself."""
    found: set[Parameter] = set()
    stack = [query]
    while stack:
        parameter = stack.pop()
        if parameter not in found:
            found.add(parameter)
            stack += _parents(problem, parameter)
    return found


def _parents(problem: Problem, parameter: Parameter) -> tuple[Parameter, ...]:
    return problem.unused[parameter] if parameter in problem.unused else problem.parents[parameter]


def ops_of(problem: Problem, parameters: set[Parameter]) -> int:
    """Return the operations that it takes to define `parameters`."""
    total = 0
    for parameter in parameters:
        formula = problem.formulas.get(parameter)
        constant = formula is not None and formula.constant is not None
        total += num_ops(len(_parents(problem, parameter)) + constant)
    return total


def ask_again(problem: Problem, query: Parameter, rng: Chance) -> Problem:
    """Return `problem` with the question for `query`, its solution in a random order that can be computed.

    What only `query` needs comes into use with it.
    """
    needed = needed_for(problem, query)
    order: list[Parameter] = []
    while len(order) < len(needed):
        known = set(order)
        left = [p for p in (*problem.parents, *problem.unused) if p in needed - known]
        order.append(rng.choice([p for p in left if known.issuperset(_parents(problem, p))]))
    place = {parameter: i for i, parameter in enumerate(order)}
    parents = problem.parents | {p: parents for p, parents in problem.unused.items() if p in needed}
    return replace(
        problem,
        op=ops_of(problem, needed),
        parents={p: in_order(p, found, place) if p.abstract else found for p, found in parents.items()},
        unused={p: parents for p, parents in problem.unused.items() if p not in needed},
        order=tuple(order),
    )


def questions(problem: Problem) -> list[Parameter]:
    """Return what may be asked for instead: all that can be computed, but for what is asked for."""
    return [parameter for parameter in (*problem.parents, *problem.unused) if parameter != problem.query]
