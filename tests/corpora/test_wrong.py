"""Wrong solutions: one mistake, right arithmetic behind it, and a wrong answer at the end."""

import os
from pathlib import Path
from random import Random

import pytest

from peft_study.corpora import gsm8k, math
from peft_study.corpora.arithmetic import equations
from peft_study.corpora.records import Document, Problem
from peft_study.records import Grade
from peft_study.rng import python_stream
from tests.corpora.reading import labels
from tests.corpora.wrong import wrong_solution

CLIPS = Problem(
    "gsm8k/test/0",
    "Of 48 friends and 9 cousins, half came in 3 cars. How many in all?",
    "So 48/2 = 24 friends came.\nSo 24+9 = 33 came in all.\nThere were 3 cars.\n#### 33",
    "33",
)
BOX = Problem("math/test/0", "What is $y$?", "We have $y = 7.$ Hence it is $\\boxed{7}.$", "7")


def texts(problem: Problem, kind: str) -> set[str]:
    found = [wrong_solution(problem, kind, Random(seed), gsm8k.FORM) for seed in range(200)]  # type: ignore[arg-type]
    return {document.turns[1].text for document in found if document}


def test_a_changed_number_is_carried_to_the_end() -> None:
    found = texts(CLIPS, "number")
    assert "So 48/2 = 25 friends came.\nSo 25+9 = 34 came in all.\nThere were 3 cars.\n#### 34" in found
    assert "So 48/2 = 24 friends came.\nSo 24+9 = 34 came in all.\nThere were 3 cars.\n#### 34" in found
    for text in found:
        # One equation is false, and no more.
        assert sum(equation.false for equation in equations(text)) == 1
        assert gsm8k.grade(CLIPS, text) == Grade.WRONG


def test_a_wrong_choice_is_carried_to_the_end() -> None:
    found = texts(CLIPS, "miss")
    assert found == {
        "So 48/3 = 16 friends came.\nSo 16+9 = 25 came in all.\nThere were 3 cars.\n#### 25",
        # 3 cars of cousins, or of friends.
        "So 48/2 = 24 friends came.\nSo 24+3 = 27 came in all.\nThere were 3 cars.\n#### 27",
        "So 48/2 = 24 friends came.\nSo 3+9 = 12 came in all.\nThere were 3 cars.\n#### 12",
    }


def test_a_value_that_means_something_else_too_is_not_carried() -> None:
    """The 9 that comes out first is not the 9 of the question."""
    twice = CLIPS._replace(solution="So 27/3 = 9 came.\nSo 9+9 = 18 came in all.\n#### 18", answer="18")
    assert {text.split("\n")[0] for text in texts(twice, "number")} == {"So 27/3 = 9 came."}


def test_the_equation_of_the_mistake_is_false_in_any_unit() -> None:
    one = CLIPS._replace(solution="So 2/2 = 1 came.\n#### 1", answer="1")
    found = {text.split("\n")[0] for text in texts(one, "number")} - {"So 2/2 = 1 came."}
    assert found >= {"So 2/2 = 2 came.", "So 2/2 = 5 came."}
    assert not found & {f"So 2/2 = {n} came." for n in (3, 4, 7)}


def test_the_mistake_and_what_it_changes_are_labelled() -> None:
    document = wrong_solution(CLIPS, "number", Random(0), gsm8k.FORM)
    assert document
    text = document.turns[1].text.split("\n")
    assert labels(document) == [line != clean for line, clean in zip(text, CLIPS.solution.split("\n"), strict=True)]
    assert not labels(document)[2]


def test_where_nothing_can_be_carried_the_answer_alone_is_changed() -> None:
    document = wrong_solution(BOX, "number", Random(1), math.FORM)
    assert document
    assert labels(document) == [False, True]
    assert document.turns[1].text.startswith("We have $y = 7.$ Hence it is $\\boxed{")
    assert wrong_solution(BOX, "miss", Random(1), math.FORM) is None
    assert wrong_solution(BOX._replace(answer="\\pi"), "number", Random(1), math.FORM) is None


def published(corpus: str) -> list[Problem]:
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        pytest.skip("PEFT_STUDY_DATA is unset: no GSM8K, no MATH500")
    return gsm8k.load(Path(data) / "gsm8k", "test") if corpus == "gsm8k" else math.load(Path(data) / "math500", "test")


def made(problems: list[Problem], kind: str, corpus: str) -> list[tuple[Problem, Document]]:
    form = gsm8k.FORM if corpus == "gsm8k" else math.FORM
    found = [(p, wrong_solution(p, kind, python_stream(0, p.id), form)) for p in problems]  # type: ignore[arg-type]
    return [(problem, document) for problem, document in found if document]


@pytest.mark.parametrize(("kind", "least"), [("number", 1319), ("miss", 300)])
def test_wrong_solutions_of_gsm8k_are_graded_wrong(kind: str, least: int) -> None:
    found = made(published("gsm8k"), kind, "gsm8k")
    assert len(found) >= least
    for problem, document in found:
        assert gsm8k.grade(problem, document.turns[1].text) == Grade.WRONG
        assert labels(document)[-1]


def test_wrong_solutions_of_math_are_graded_wrong() -> None:
    found = made(published("math"), "number", "math")
    assert len(found) > 300
    with math.MathGrader() as grader:
        assert {grader.grade(problem, document.turns[1].text) for problem, document in found} == {Grade.WRONG}
