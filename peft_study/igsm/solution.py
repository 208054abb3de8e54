"""Solutions: each necessary parameter computed in order, with letters, values and state labels.

A step defines one parameter: intermediate operations first, then the parameter itself. Sums of more than two
terms are folded from the left; an abstract parameter above level 1 multiplies pair by pair as it goes
(Part 2.1, Algorithm 6; the order of products is that of the published code).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from peft_study.errors import DataError
from peft_study.igsm.chance import Chance
from peft_study.igsm.families import FamilySettings
from peft_study.igsm.problem import Formula, Parameter, Problem
from peft_study.igsm.vocabulary import LETTERS


class Operand(NamedTuple):
    """A number in a calculation: bound to a letter, or a constant of the problem (`letter` is '')."""

    letter: str
    value: int


class Calculation(NamedTuple):
    """`letter = left operator right = result`; without an operator it only copies `left`."""

    letter: str
    left: Operand
    operator: str
    right: Operand | None
    result: int


class Step(NamedTuple):
    """The definition of one parameter; the last calculation is the parameter's own."""

    parameter: Parameter
    calculations: tuple[Calculation, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """A clean solution: every step right, every step needed."""

    steps: tuple[Step, ...]
    answer: int


def apply(operator: str, left: int, right: int, modulus: int) -> int:
    """Return `left operator right` modulo `modulus`."""
    if operator == "+":
        return (left + right) % modulus
    if operator == "-":
        return (left - right) % modulus
    return left * right % modulus


def _terms(problem: Problem, parameter: Parameter, operand: Callable[[Parameter], Operand]) -> list[list[Operand]]:
    """Return the sum that an abstract parameter stands for: terms of one operand, or of two to be multiplied."""
    parents = problem.parents[parameter]
    if parameter.target == parameter.layer + 1:
        return [[operand(parent)] for parent in parents]
    return [[operand(a), operand(b)] for a, b in zip(parents[::2], parents[1::2], strict=True)]


def plan_operations(
    formula: Formula | None, operands: list[Operand], terms: list[list[Operand]]
) -> list[tuple[str, Operand | int, Operand | int | None]]:
    """Return the operations of one step as (operator, left, right); an int names the result of an earlier one.

    `formula` is that of an instance parameter with `operands`, or None for an abstract one with `terms`.
    """
    plan: list[tuple[str, Operand | int, Operand | int | None]] = []

    def emit(operator: str, left: Operand | int, right: Operand | int | None) -> int:
        plan.append((operator, left, right))
        return len(plan) - 1

    if formula is None:
        total: Operand | int | None = None
        for term in terms:
            value: Operand | int = term[0] if len(term) == 1 else emit("*", term[0], term[1])
            total = value if total is None else emit("+", total, value)
    else:
        total = None
        for operand in operands:
            total = operand if total is None else emit(formula.operation, total, operand)
        if formula.constant is not None:
            constant = Operand("", formula.constant)
            total = constant if total is None else emit(formula.constant_op, constant, total)
    if not plan:
        # An item that holds nothing has none of what is counted.
        emit("", Operand("", 0) if total is None else total, None)
    return plan


def check_letters(family: FamilySettings, op: int) -> None:
    """Raise DataError where `family` has too few letters for a solution of `op` operations."""
    if op > family.letter_pool:
        raise DataError(
            f"family {family.name!r} has {family.letter_pool} letters, but a solution with op={op} needs {op}; "
            f"choose op up to {family.letter_pool}, or a family with a larger letter_pool"
        )


def solve(problem: Problem, rng: Chance) -> Solution:
    """Return the clean solution of `problem`; letters are drawn from `rng`, without replacement."""
    family = problem.family
    check_letters(family, problem.op)
    letters = iter(rng.sample(LETTERS[: family.letter_pool], problem.op))
    bound: dict[Parameter, Operand] = {}
    steps: list[Step] = []
    for parameter in problem.order:
        formula = problem.formulas.get(parameter)
        if formula is None:
            plan = plan_operations(None, [], _terms(problem, parameter, bound.__getitem__))
        else:
            plan = plan_operations(formula, [bound[operand] for operand in formula.operands], [])
        # The paper names the parameter's own letter before those of its intermediates.
        own = next(letters)
        names = [next(letters) for _ in plan[1:]] + [own]
        done: list[Calculation] = []
        for name, (operator, left, right) in zip(names, plan, strict=True):
            a = Operand(done[left].letter, done[left].result) if isinstance(left, int) else left
            b = Operand(done[right].letter, done[right].result) if isinstance(right, int) else right
            result = a.value if b is None else apply(operator, a.value, b.value, family.modulus)
            done.append(Calculation(name, a, operator, b, result))
        bound[parameter] = Operand(own, done[-1].result)
        steps.append(Step(parameter, tuple(done)))
    return Solution(tuple(steps), steps[-1].calculations[-1].result)


class State(NamedTuple):
    """The state labels: what is true of every parameter in use after some steps of a solution (Part 2.1, section 4)."""

    known: frozenset[Parameter]
    can_next: frozenset[Parameter]
    """Not known, but all it is computed from is."""
    necessary: frozenset[Parameter]
    """What the question needs."""

    @property
    def necessary_next(self) -> frozenset[Parameter]:
        """What can be computed and is needed: the right answers at the next `Define`."""
        return self.can_next & self.necessary


def state_after(problem: Problem, num_steps: int) -> State:
    """Return the state labels after the first `num_steps` steps of the clean solution."""
    known = frozenset(problem.order[:num_steps])
    can_next = frozenset(
        parameter
        for parameter, parents in problem.parents.items()
        if parameter not in known and all(parent in known for parent in parents)
    )
    return State(known, can_next, frozenset(problem.order))


def values_after(solution: Solution, num_steps: int) -> dict[Parameter, int]:
    """Return the values of the parameters known after the first `num_steps` steps: the label `value`."""
    return {step.parameter: step.calculations[-1].result for step in solution.steps[:num_steps]}
