"""Solutions: values, letters and state labels against a second way of computing them."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.igsm.families import NANO
from peft_study.igsm.problem import Parameter, Problem
from peft_study.igsm.solution import apply, state_after, values_after
from peft_study.igsm.stream import Document
from peft_study.igsm.text import join, problem_words
from peft_study.igsm.verify import Verifier

MakeDocument = Callable[..., Document]

asked: dict[str, st.SearchStrategy[Any]] = {"op": st.integers(1, 6), "seed": st.integers(0, 10**6)}


def value(problem: Problem, parameter: Parameter) -> int:
    """Return the value of a parameter by the plain meaning of the words, in whole numbers until the end."""
    abstract, layer, item, target = parameter
    if abstract:
        if layer == target:
            return 1  # an item holds one of its own kind: itself
        held = problem.children[layer][item]
        return sum(
            value(problem, Parameter(False, layer, item, k)) * value(problem, Parameter(True, layer + 1, k, target))
            for k in held
        )
    formula = problem.formulas[parameter]
    values = [value(problem, operand) for operand in formula.operands]
    rest = values[0] - values[1] if formula.operation == "-" else sum(values)
    if formula.constant is None:
        return rest
    if not values:
        return formula.constant
    return formula.constant * rest if formula.constant_op == "*" else formula.constant + rest


@given(**asked)
def test_values_are_those_that_the_words_mean(make_document: MakeDocument, op: int, seed: int) -> None:
    document = make_document(op, seed=seed)
    for step in document.solution.steps:
        assert step.calculations[-1].result == value(document.problem, step.parameter) % NANO.modulus
    assert document.solution.answer == value(document.problem, document.problem.query) % NANO.modulus


@given(**asked)
def test_letters_are_bound_once_and_before_use(make_document: MakeDocument, op: int, seed: int) -> None:
    bound: dict[str, int] = {}
    for step in make_document(op, seed=seed).solution.steps:
        for calculation in step.calculations:
            for operand in (calculation.left, calculation.right):
                if operand is not None and operand.letter:
                    assert bound[operand.letter] == operand.value
            assert calculation.letter not in bound
            bound[calculation.letter] = calculation.result
    assert len(bound) == op


@given(**asked)
def test_state_labels_are_what_the_text_says(make_document: MakeDocument, op: int, seed: int) -> None:
    """The labels come from the hidden graph; the verifier knows only the text."""
    document = make_document(op, seed=seed)
    problem = document.problem
    verifier = Verifier(join(problem_words(problem)), NANO.modulus)
    for num_steps in range(len(problem.order)):
        state = state_after(problem, num_steps)
        assert state.known == set(problem.order[:num_steps])
        assert problem.order[num_steps] in state.can_next
        can_next = {p for p in problem.parents if verifier.computable(problem.names(p))}
        assert can_next == state.can_next
        verifier.known[problem.names(problem.order[num_steps])] = 0


@given(**asked)
def test_labels_of_what_is_needed_and_of_values(make_document: MakeDocument, op: int, seed: int) -> None:
    document = make_document(op, seed=seed)
    problem, solution = document.problem, document.solution
    assert values_after(solution, 0) == {}
    for num_steps in range(len(problem.order)):
        state = state_after(problem, num_steps)
        needed = {p for p in problem.order[num_steps:] if set(problem.parents[p]) <= state.known}
        assert state.necessary_next == needed
        values = values_after(solution, num_steps + 1)
        assert values.keys() == {*state.known, problem.order[num_steps]}
        assert values[problem.order[num_steps]] == solution.steps[num_steps].calculations[-1].result
    assert values_after(solution, len(problem.order))[problem.order[-1]] == solution.answer


@pytest.mark.parametrize(
    ("operator", "left", "right", "result"), [("+", 3, 4, 2), ("-", 1, 3, 3), ("*", 3, 4, 2), ("+", 0, 0, 0)]
)
def test_arithmetic_is_modular(operator: str, left: int, right: int, result: int) -> None:
    assert apply(operator, left, right, 5) == result
