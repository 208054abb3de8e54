"""Problems: the op that was asked for, a sound hidden graph, and the floors of the family."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.errors import ConfigError, DataError
from peft_study.igsm.chance import Chance
from peft_study.igsm.families import FAMILIES, NANO, FamilySettings, family_named
from peft_study.igsm.problem import Parameter, abstract_parents
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.solution import solve
from peft_study.igsm.stream import Document, document_tokens, draw_document
from peft_study.igsm.text import solution_words

MakeDocument = Callable[..., Document]

asked: dict[str, st.SearchStrategy[Any]] = {"op": st.integers(1, 6), "seed": st.integers(0, 10**6)}


@given(**asked)
def test_op_is_what_was_asked_for(make_document: MakeDocument, op: int, seed: int) -> None:
    document = make_document(op, seed=seed)
    words = [word.text for word in solution_words(document.problem, document.solution, [])]
    assert words.count(";") == op
    assert sum(len(step.calculations) for step in document.solution.steps) == op == document.problem.op


@given(**asked)
def test_every_instance_parameter_has_a_sentence_and_no_abstract_one(
    make_document: MakeDocument, op: int, seed: int
) -> None:
    problem = make_document(op, seed=seed).problem
    edges = {
        Parameter(False, i, j, k) for i, layer in enumerate(problem.children) for j, h in enumerate(layer) for k in h
    }
    assert set(problem.formulas) == edges
    assert 1 <= len(edges) <= NANO.ip_max


@given(**asked)
def test_solution_defines_what_the_question_needs_and_nothing_else(
    make_document: MakeDocument, op: int, seed: int
) -> None:
    problem = make_document(op, seed=seed).problem
    needed: set[Parameter] = set()
    stack = [problem.query]
    while stack:
        parameter = stack.pop()
        if parameter not in needed:
            needed.add(parameter)
            stack += problem.parents[parameter]
    assert set(problem.order) == needed
    assert len(problem.order) == len(needed)
    for i, parameter in enumerate(problem.order):
        assert set(problem.parents[parameter]) <= set(problem.order[:i])


@given(**asked)
def test_everything_in_use_can_be_computed(make_document: MakeDocument, op: int, seed: int) -> None:
    problem = make_document(op, seed=seed).problem
    known: set[Parameter] = set()
    while ready := {p for p, parents in problem.parents.items() if p not in known and set(parents) <= known}:
        known |= ready
    assert known == set(problem.parents)


@given(**asked)
def test_parents_are_those_of_formula_or_structure(make_document: MakeDocument, op: int, seed: int) -> None:
    problem = make_document(op, seed=seed).problem
    for parameter, parents in problem.parents.items():
        if parameter.abstract:
            structure = abstract_parents(problem.children, parameter)
            assert structure is not None
            assert len(parents) <= (problem.family.abstract_parents_max or len(parents))
            assert sorted(parents) == sorted(structure)
            width = 1 if parameter.target == parameter.layer + 1 else 2
            assert len(parents) % width == 0
            if width == 2:  # pairs of instance parameter and what each of its items holds
                assert all(b == Parameter(True, a.layer + 1, a.target, b.target) for a, b in _pairs(parents))
        else:
            assert parents == problem.formulas[parameter].operands


def _pairs(parents: tuple[Parameter, ...]) -> list[tuple[Parameter, Parameter]]:
    return list(zip(parents[::2], parents[1::2], strict=True))


@given(**asked)
def test_formulas_are_those_of_the_paper(make_document: MakeDocument, op: int, seed: int) -> None:
    problem = make_document(op, seed=seed).problem
    for formula in problem.formulas.values():
        operands = len(formula.operands)
        assert operands + (formula.constant is not None) in range(1, problem.family.parents_max + 1)
        assert formula.operation in {0: {""}, 1: {""}, 2: {"+", "-"}}.get(operands, {"+"})
        assert bool(formula.constant_op) == (formula.constant is not None and operands > 0)
        if formula.constant is not None:
            assert (1 if formula.constant_op == "*" else 0) <= formula.constant < NANO.modulus


@given(**asked)
def test_names_are_unique_within_a_problem(make_document: MakeDocument, op: int, seed: int) -> None:
    problem = make_document(op, seed=seed).problem
    names = [*problem.categories, *(item for layer in problem.items for item in layer)]
    assert len(names) == len(set(names))
    assert len({problem.names(parameter) for parameter in problem.parents}) == len(problem.parents)


def test_problems_have_unnecessary_parameters_shuffled_sentences_and_every_form(family: FamilySettings) -> None:
    settings = StreamSettings(family=family, ops=(4,))
    problems = [draw_document(settings, index).problem for index in range(300)]
    with_unnecessary = sum(bool(set(p.formulas) - set(p.order)) for p in problems)
    said = [[parameter for parameter in p.formulas if parameter in p.order] for p in problems]
    in_order = sum(s == [q for q in p.order if not q.abstract] for s, p in zip(said, problems, strict=True))
    by_chance = sum(1 / math.factorial(len(sentences)) for sentences in said)
    by_layer = sum(list(p.formulas) == sorted(p.formulas) for p in problems)
    depths = Counter(p.query.target - p.query.layer if p.query.abstract else 0 for p in problems)
    forms = Counter((f.constant is not None, f.constant_op, f.operation) for p in problems for f in p.formulas.values())
    assert with_unnecessary > 150
    assert in_order == pytest.approx(by_chance, abs=25)  # three standard deviations
    assert by_layer == pytest.approx(sum(1 / math.factorial(len(p.formulas)) for p in problems), abs=12)
    assert set(depths) == {0, 1, 2}
    # constant alone, and each of none/+/* before each of one operand, sum, difference
    expected = {(True, "", "")} | {(bool(c), c, o) for c in ("", "+", "*") for o in ("", "+", "-")}
    if family.parents_max == 2:  # a constant and two operands are three
        expected = {(constant, sign, operation) for constant, sign, operation in expected if not (sign and operation)}
    assert set(forms) == expected


@pytest.mark.parametrize("ratio", [1.0, 0.65])
def test_op_is_drawn_by_the_familys_law(ratio: float) -> None:
    settings = StreamSettings(family=NANO.model_copy(update={"op_ratio": ratio}))
    drawn = Counter(draw_document(settings, index).problem.op for index in range(1_600))
    weights = {op: ratio**op for op in range(1, NANO.op_max + 1)}
    expected = {op: 1_600 * weight / sum(weights.values()) for op, weight in weights.items()}
    assert set(drawn) == set(expected)
    chi_square = sum((drawn[op] - count) ** 2 / count for op, count in expected.items())
    assert chi_square < 18.47  # 99.9 % quantile with 4 degrees of freedom


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_family_keeps_the_floors(family: Any) -> None:
    assert family.op_max >= 4
    assert max(family.ood_ops) >= family.op_max + 2
    assert min(family.ood_ops) > family.op_max
    assert family.modulus >= 5
    assert family.letter_pool >= max(family.ood_ops)
    assert family.headline_op in family.ood_ops


def test_longest_document_out_of_distribution_fits_the_window() -> None:
    settings = StreamSettings(family=NANO, ops=(NANO.ood_ops[-1],), split="test")
    longest = max(len(document_tokens(settings, draw_document(settings, index)).ids) for index in range(800))
    assert longest < NANO.max_tokens  # one token is the [END] that a window begins with


def test_training_windows_leave_out_next_to_nothing() -> None:
    settings = StreamSettings(family=NANO, ops=(NANO.op_max,), retry_rate=0.5)
    lengths = [len(document_tokens(settings, draw_document(settings, index)).ids) for index in range(1_000)]
    assert sum(length >= NANO.max_tokens for length in lengths) <= 2


def test_letters_out_of_distribution_are_all_known_from_training() -> None:
    seen = {op: _letters(op) for op in (1, NANO.op_max, NANO.ood_ops[-1])}
    assert seen[1] == seen[NANO.op_max] == seen[NANO.ood_ops[-1]]
    assert len(seen[1]) == NANO.letter_pool


def _letters(op: int) -> set[str]:
    settings = StreamSettings(family=NANO, ops=(op,))
    solutions = [draw_document(settings, index).solution for index in range(300)]
    return {calculation.letter for s in solutions for step in s.steps for calculation in step.calculations}


def test_too_few_letters_is_an_error_that_says_how_many() -> None:
    few = NANO.model_copy(update={"letter_pool": 3})
    with pytest.raises(DataError, match="choose op up to 3"):
        draw_document(StreamSettings(family=few, ops=(4,)), 0)
    problem = draw_document(StreamSettings(family=NANO, ops=(4,)), 0).problem
    with pytest.raises(DataError, match="choose op up to 3"):
        solve(dataclasses.replace(problem, family=few), Chance(0))


def test_unknown_family_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one of nano, mini, med, hard, but got 'nanoo'"):
        family_named("nanoo")


def test_query_is_the_last_of_the_order(make_document: MakeDocument) -> None:
    problem = make_document(3).problem
    moved = dataclasses.replace(problem, order=problem.order[:-1])
    assert problem.query == problem.order[-1] != moved.query
