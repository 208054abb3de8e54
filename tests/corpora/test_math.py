"""MATH: loaded, cut and graded; every reference solution is right, and no expression can hold the grader up."""

import os
import re
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.corpora import math
from peft_study.corpora.math import MathGrader, cut, read_answer
from peft_study.corpora.records import Problem
from peft_study.errors import ConfigError, DataError
from peft_study.records import Grade

ROW = {
    "problem": "What is $f(-2)$?",
    "solution": "It is $\\boxed{\\frac{14}{3}}.$",
    "answer": "\\frac{14}{3}",
    "unique_id": "test/algebra/2584.json",
}
PROBLEM = math.problems([ROW], "test")[0]


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(seconds=1.0) as grader:
        yield grader


@pytest.fixture(scope="module")
def published() -> list[Problem]:
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        pytest.skip("PEFT_STUDY_DATA is unset: no MATH500")
    return math.load(Path(data) / "math500", "test")


# ---- loading


def test_a_row_becomes_a_problem() -> None:
    assert ("math/test/algebra/2584", ROW["problem"], ROW["solution"], ROW["answer"]) == PROBLEM
    bare = {"problem": "a", "solution": ROW["solution"]}
    assert math.problems([ROW, bare], "train")[1] == ("math/train/1", "a", ROW["solution"], ROW["answer"])


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"problem": "a"}, "`solution` must be a text, but is 'None'"),
        ({"problem": "a", "solution": "It is 5."}, r"`solution` must hold \\boxed{}, but ends with 'It is 5.'"),
        (ROW | {"answer": ""}, "`answer` must be a text, but is ''"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, str], rule: str) -> None:
    with pytest.raises(DataError, match=f"MATH, row 2: {rule}"):
        math.problems([ROW, row], "test")


# ---- steps


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("We have $x = 3.$  Also, $y=4$.", ["We have $x = 3.$", "  Also, $y=4$."]),
        ("Then\n\\[x = 3.\\]Thus $y$.", ["Then\n\\[x = 3.\\]", "Thus $y$."]),
        ("Then\n\\[x = 3\\]where $y. Z$ is 4.", ["Then\n\\[x = 3\\]where $y. Z$ is 4."]),
        ("Let $$a. B$$ and \\(c. D\\) hold. So", ["Let $$a. B$$ and \\(c. D\\) hold.", " So"]),
        ("\\begin{align*}\na &= 1. B\\\\[2pt] c\n\\end{align*}\nThus, it is.", None),
        ("We pay \\$5. Then \\$6.", ["We pay \\$5.", " Then \\$6."]),
        ("So i.e. $x$, e.g. $y$ vs. $z$ of Mr. A. Smith", ["So i.e. $x$, e.g. $y$ vs. $z$ of Mr.", " A. Smith"]),
        ("It is so. (Note it.) It is 3.5. Ok!", ["It is so.", " (Note it.)", " It is 3.5.", " Ok!"]),
        ("One way:\n\nIt is.\n\nTwo", ["One way:\n\nIt is.", "\n\nTwo"]),
        ("See. [asy]\ndraw(A. B);\n\nC\n[/asy]\n\nThen", ["See. [asy]\ndraw(A. B);\n\nC\n[/asy]", "\n\nThen"]),
        ("An open $x. Then", ["An open $x. Then"]),
        ("  \n", ["  \n"]),
        ("", []),
    ],
)
def test_sentences_are_cut_outside_of_mathematics(solution: str, steps: list[str] | None) -> None:
    expected = (
        steps if steps is not None else [solution[: solution.index("\nThus")], solution[solution.index("\nThus") :]]
    )
    assert cut(solution) == expected


@given(
    text=st.lists(
        st.sampled_from(
            ["A b", ". ", "$", "\\[", "\\]", "\n\n", "[asy]", "[/asy]", "\\$", "!", " ", "\\begin{a}", "\\end{a}"]
        ),
        max_size=20,
    )
)
def test_steps_give_the_text_back(text: list[str]) -> None:
    solution = "".join(text)
    assert "".join(cut(solution)) == solution
    assert all(step.strip() for step in cut(solution)) or not solution.strip()


def test_references_are_cut_into_whole_pieces_of_latex(published: list[Problem]) -> None:
    steps = [step for problem in published for step in cut(problem.solution)]
    assert "".join(steps) == "".join(problem.solution for problem in published)
    assert len(steps) > 4 * len(published)
    for step in steps:
        bare = re.sub(r"\\[\\${}]", "", step)
        assert bare.count("$") % 2 == 0
        for opening, closing in (
            ("\\[", "\\]"),
            ("\\(", "\\)"),
            ("[asy]", "[/asy]"),
            ("\\begin{", "\\end{"),
            ("{", "}"),
        ):
            if "asy" not in bare or opening == "[asy]":
                assert bare.count(opening) == bare.count(closing), step


def test_numbers_are_those_that_can_be_changed() -> None:
    step = r"$\frac12 + \frac{3}{4}5 + x^6 + y_7 + 8z + \sqrt9$ is 10. [asy] draw(11); [/asy] the 12th of 1,300"
    assert [number.text for number in math.numbers(step)] == ["3", "4", "8", "10", "1,300"]
    assert all(step[number.start : number.end] == number.text for number in math.numbers(step))
    pairs = r"on $[-500,600]$ and $(12,102)$, $\{1,200\}$, $\left(3,400\right)$ in (1,500 lire)"
    assert [number.text for number in math.numbers(pairs)] == ["600", "102", "200", "400", "1,500"]


# ---- grading


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$\boxed{1}$ or $\boxed{\frac{1}{2}}.$", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\fbox{ 3 }", "3"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{5.}", "5"),
        (r"\boxed{}", None),
        (r"\boxed{3", None),
        (r"\boxed{2} and \boxed{3", None),
        ("The final answer is $5$. I hope it is correct.", "5"),
        ("Final Answer: The final answer is 5. I hope it is correct.", "5"),
        (r"The final answer is $4$, or $\boxed{5}$", "5"),
        ("It is 5.", None),
        ("", None),
    ],
)
def test_the_answer_is_in_the_last_box(text: str, answer: str | None) -> None:
    assert read_answer(text) == answer


def test_every_reference_is_graded_right(grader: MathGrader, published: list[Problem]) -> None:
    """By its text, and by math-verify, which never sees an answer that is the reference's text."""
    assert len(published) == len({problem.id for problem in published}) == 500
    assert [p.id for p in published if grader.grade(p, p.solution) != Grade.RIGHT] == []
    assert [p.id for p in published if grader.compare(p.answer, p.answer) != Grade.RIGHT] == []


@pytest.mark.parametrize(
    ("answer", "given", "grade"),
    [
        ("\\frac{14}{3}", "14/3", Grade.RIGHT),
        ("\\frac{14}{3}", "4\\frac{2}{3}", Grade.RIGHT),
        ("\\frac{14}{3}", "4.67", Grade.WRONG),
        ("5", "x=5", Grade.RIGHT),
        ("5", "5,6", Grade.WRONG),
        ("5", "6", Grade.WRONG),
        ("-5", "5", Grade.WRONG),
        ("(1,2)", "[1,2]", Grade.WRONG),
        ("\\text{Evelyn}", "Evelyn", Grade.RIGHT),
        ("\\text{east}", "\\text{west}", Grade.WRONG),
        ("listen", "silent", Grade.WRONG),
        ("New York", "\\text{new york}", Grade.RIGHT),
        ("New York", "York New", Grade.WRONG),
        ("\\text{listen}", "\\textbf{Listen}", Grade.RIGHT),
        ("listen", "5", Grade.WRONG),
        ("ab", "ba", Grade.RIGHT),
        ("p-q", "p - q", Grade.RIGHT),
        ("p-q", "-q+p", Grade.RIGHT),
        ("xyz", "x y z", Grade.RIGHT),
        ("\\text{B}", "B", Grade.RIGHT),
        ("32,\\!348", "32348", Grade.RIGHT),
        ("x^2+2x+1", "(x+1)^2", Grade.RIGHT),
        ("5", "\\frac{1}", Grade.UNPARSABLE),
        ("5", "{{{", Grade.UNPARSABLE),
        ("5", "😀", Grade.UNPARSABLE),
        ("5", "\n\x00\ud800", Grade.UNPARSABLE),
        ("5", "__import__('os').abort()", Grade.UNPARSABLE),
    ],
)
def test_answers_are_compared_as_mathematics(grader: MathGrader, answer: str, given: str, grade: Grade) -> None:
    assert grader.compare(answer, given) == grade


def test_what_was_cut_off_has_no_answer(grader: MathGrader) -> None:
    assert grader.grade(PROBLEM, "It is \\boxed{\\frac{14", truncated=True) == Grade.TRUNCATED
    assert grader.grade(PROBLEM, "It is \\boxed{\\frac{14") == Grade.UNPARSABLE
    assert grader.grade(PROBLEM, "It is \\boxed{14/3}, so", truncated=True) == Grade.RIGHT
    assert grader.grade(PROBLEM, "It is \\boxed{14/5}, so", truncated=True) == Grade.WRONG


@pytest.mark.parametrize(
    ("given", "grades"),
    [
        ("10^{10^{10}}", {Grade.TIMED_OUT}),
        ("9^{9^{9^{9}}}", {Grade.TIMED_OUT}),
        ("100000000!", {Grade.TIMED_OUT}),
        ("\\frac{1}{" * 1000 + "2" + "}" * 1000, {Grade.UNPARSABLE}),
        ("(" * 400 + "1" + ")" * 400, {Grade.UNPARSABLE, Grade.TIMED_OUT}),
        ("\\sqrt{" * 120 + "2" + "}" * 120, {Grade.UNPARSABLE, Grade.TIMED_OUT}),
    ],
)
def test_no_expression_holds_the_grader_up(grader: MathGrader, given: str, grades: set[Grade]) -> None:
    began = time.process_time()
    assert grader.grade(PROBLEM, f"\\boxed{{{given}}}") in grades
    assert time.process_time() - began < 1
    # It goes on after a process was ended.
    assert grader.compare("2", "1+1") == Grade.RIGHT


def test_graders_work_outside_of_the_main_thread() -> None:
    def grades(_i: int) -> list[Grade]:
        with MathGrader(seconds=0.3) as own:
            return [own.compare("2", given) for given in ("1+1", "10^{10^{10}}", "\\frac{4}{2}")]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(grades, range(2))) == [[Grade.RIGHT, Grade.TIMED_OUT, Grade.RIGHT]] * 2


def test_memory_is_limited_too(grader: MathGrader) -> None:
    assert grader.compare("2", "1+1") == Grade.RIGHT
    assert grader._process
    assert resource.prlimit(grader._process.pid, resource.RLIMIT_AS)[1] == 1024 << 20
    with MathGrader(memory_mib=1) as small, pytest.raises(ConfigError, match="memory_mib must be enough to start"):
        small.compare("2", "1+1")


def test_a_process_that_was_ended_from_outside_is_replaced(grader: MathGrader) -> None:
    grader.compare("2", "1+1")
    assert grader._process
    grader._process.kill()
    grader._process.wait()
    assert grader.compare("2", "1+1") == Grade.RIGHT


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 10**4, "$" * 10**4, "\\begin{a}" * 10**3, "final answer is " * 10**4, "A. B" * 10**4]
)
def test_hostile_texts_take_no_time(grader: MathGrader, text: str) -> None:
    began = time.monotonic()
    grader.grade(PROBLEM, text)
    assert "".join(cut(text)) == text
    math.numbers(text)
    assert time.monotonic() - began < 5
