"""Text and its inverse: what is written is read back, and words keep what they are."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.igsm.parse import (
    ParsedCalculation,
    ParsedFormula,
    ParsedProblem,
    ParsedStep,
    ParseError,
    parse_problem,
    parse_step,
    split_sentences,
)
from peft_study.igsm.problem import Problem
from peft_study.igsm.solution import Calculation, Step
from peft_study.igsm.stream import Document
from peft_study.igsm.text import (
    Kind,
    document_words,
    join,
    problem_words,
    solution_words,
    split,
    step_words,
    strip_retractions,
)

MakeDocument = Callable[..., Document]

asked: dict[str, st.SearchStrategy[Any]] = {
    "op": st.integers(1, 6),
    "rate": st.sampled_from([0.0, 0.2, 0.6]),
    "seed": st.integers(0, 10**6),
}


def parsed_calculation(calculation: Calculation) -> ParsedCalculation:
    operands = [o for o in (calculation.left, calculation.right) if o is not None]
    hint = tuple(operand.letter or str(operand.value) for operand in operands)
    numbers = tuple(operand.value for operand in operands) if calculation.operator else ()
    return ParsedCalculation(
        calculation.letter, hint, calculation.operator, numbers, calculation.operator, calculation.result
    )


def parsed_step(problem: Problem, step: Step) -> ParsedStep:
    calculations = tuple(parsed_calculation(calculation) for calculation in step.calculations)
    return ParsedStep(problem.names(step.parameter), step.calculations[-1].letter, calculations)


@given(**asked, order=st.sampled_from(["pq", "qp"]))
def test_problem_is_read_as_it_was_written(
    make_document: MakeDocument, op: int, rate: float, seed: int, order: str
) -> None:
    problem = make_document(op, rate=rate, seed=seed).problem
    formulas = {
        problem.names(parameter): ParsedFormula(
            formula.constant, formula.constant_op, formula.operation, tuple(map(problem.names, formula.operands))
        )
        for parameter, formula in problem.formulas.items()
    }
    parsed = parse_problem(join(problem_words(problem, order)))
    assert parsed == ParsedProblem(formulas, problem.names(problem.query))
    assert list(parsed.formulas) == list(formulas)


@given(**asked)
def test_solution_is_read_as_it_was_written(make_document: MakeDocument, op: int, rate: float, seed: int) -> None:
    document = make_document(op, rate=rate, seed=seed)
    problem = document.problem
    expected: list[ParsedStep] = []
    for i, step in enumerate(document.solution.steps):
        expected += [ParsedStep(problem.names(m.parameter), "", ()) for m in document.mistakes if m.before == i]
        expected.append(parsed_step(problem, step))
    text = join([word.text for word in solution_words(problem, document.solution, document.mistakes)])
    assert [parse_step(sentence) for sentence in split_sentences(text)] == expected


@given(**asked)
def test_step_is_read_as_it_was_written(make_document: MakeDocument, op: int, rate: float, seed: int) -> None:
    document = make_document(op, rate=rate, seed=seed)
    for step in document.solution.steps:
        text = join([word.text for word in step_words(document.problem, step)])
        assert parse_step(text.removesuffix(".")) == parsed_step(document.problem, step)


@given(**asked)
def test_words_are_found_again_in_their_text(make_document: MakeDocument, op: int, rate: float, seed: int) -> None:
    document = make_document(op, rate=rate, seed=seed)
    words = [w.text for w in document_words(document.problem, document.solution, document.mistakes)]
    assert split(join(words)) == words


@given(**asked)
def test_solution_without_its_retractions_is_the_clean_one(
    make_document: MakeDocument, op: int, rate: float, seed: int
) -> None:
    document = make_document(op, rate=rate, seed=seed)
    with_mistakes = [w.text for w in solution_words(document.problem, document.solution, document.mistakes)]
    clean = [w.text for w in solution_words(document.problem, document.solution, [])]
    assert strip_retractions(with_mistakes) == clean
    assert (with_mistakes == clean) == (not document.mistakes)


@given(**asked)
def test_kinds_count_what_they_name(make_document: MakeDocument, op: int, rate: float, seed: int) -> None:
    document = make_document(op, rate=rate, seed=seed)
    kinds = [w.kind for w in document_words(document.problem, document.solution, document.mistakes)]
    num_steps, num_mistakes = len(document.solution.steps), len(document.mistakes)
    calculations = [c for step in document.solution.steps for c in step.calculations]
    bare = sum(c.right is None and not c.left.letter for c in calculations)
    assert kinds.count(Kind.AS) == num_steps
    assert kinds.count(Kind.DEFINE) == num_steps + 1  # and [ANSWER]
    assert kinds.count(Kind.MISTAKE_AS) == kinds.count(Kind.BACK) == num_mistakes
    assert kinds.count(Kind.MISTAKE_DEFINE) == num_mistakes
    assert kinds.count(Kind.MISTAKE) == 3 * num_mistakes
    assert kinds.count(Kind.NEW_LETTER) == op
    assert kinds.count(Kind.OPERATOR) == sum(c.right is not None for c in calculations)
    assert kinds.count(Kind.RESULT) == len(calculations) - bare
    assert kinds.count(Kind.FINAL) == 1


@pytest.mark.parametrize("hint", ["a +- c = 2 +- 2", "a -* c = 2 -* 2", "a  c = 2  2", f"a + c = 2 + {'2' * 5_000}"])
def test_what_is_no_operator_and_no_number_is_a_parse_error(hint: str) -> None:
    parse_step("Define Grimtower's Cellar as e; so e = a + c = 2 + 2 = 4")
    with pytest.raises(ParseError, match=r"not a (calculation|number): '.{0,60}'$"):
        parse_step(f"Define Grimtower's Cellar as e; so e = {hint} = 4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How many Room does Grimtower have",
        "The number of each Grimtower's Cellar equals 3.",
        "The number of each Grimtower's Cellar equals three. How many Cellar does Grimtower have?",
        "The number of each Grimtower's Cellar equals the sum of each Grimtower's Dungeon. "
        "How many Cellar does Grimtower have?",
        "The number of Grimtower's Cellar equals 3. How many Cellar does Grimtower have?",
    ],
)
def test_unreadable_problem_is_a_parse_error(text: str) -> None:
    with pytest.raises(ParseError):
        parse_problem(text)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "Define Grimtower's Cellar as p",
        "Define Grimtower's Cellar as p; p = 3",
        "Define Grimtower's Cellar as p; so q = 3",
        "Define Grimtower's Cellar as pq; so pq = 3",
        "Define Grimtower's Cellar as p; so p = 3 = 3 = 3 = 3",
        "Define Grimtower's Cellar as p; so p = a + b",
        "Define Grimtower's Cellar as p; so p = a + b = 3",
        "Define Grimtower's Cellar as p; so p = a + b = 1 + = 3",
        "Define Grimtower's Cellar as p; so p = a / b = 1 / 2 = 3",
        "Define Grimtower's Cellar as p; so p = a = 3 4",
        "Define Grimtower's Cellar as p; so 1 = 3",
        "Define Grimtower as p; so p = 3",
        "Define Grimtower's Cellar as [BACK]; so p = 3",
        "so p = 3",
    ],
)
def test_unreadable_step_is_a_parse_error(sentence: str) -> None:
    with pytest.raises(ParseError):
        parse_step(sentence)


def test_a_sentence_cut_by_the_end_is_marked() -> None:
    assert split_sentences(" Define A's B as p; so p = 3. Define A's C as") == [
        "Define A's B as p; so p = 3",
        "Define A's C as ...",
    ]
    assert split_sentences("  ") == []
