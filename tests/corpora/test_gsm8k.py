"""GSM8K: loaded, cut and graded; every reference is right, and an answer is a single number where it belongs."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.corpora import gsm8k
from peft_study.corpora.records import Problem
from peft_study.errors import DataError
from peft_study.records import Grade

ROW = {
    "question": "Natalia sold clips to 48 of her friends. How many?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 1,072",
}
PROBLEM = Problem("gsm8k/test/0", "How many?", "So 24+48 = 72.\n#### 72", "72")


def published(split: str, *, annotations: bool = False) -> list[Problem]:
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        pytest.skip("PEFT_STUDY_DATA is unset: no GSM8K")
    return gsm8k.load(Path(data) / "gsm8k", split, annotations=annotations)


# ---- loading


def test_a_row_becomes_a_problem() -> None:
    (problem,) = gsm8k.problems([ROW], "test")
    assert problem == (
        "gsm8k/test/0",
        ROW["question"],
        "Natalia sold 48/2 = 24 clips in May.\nIn all 48+24 = 72.\n#### 1,072",
        "1072",
    )
    assert gsm8k.problems([ROW], "test", annotations=True)[0].solution == ROW["answer"]


@pytest.mark.parametrize("answer", ["It is 72.", "#### 72", "72.\n####", "72.\n#### seventy", "72.\n#### 70 or 72"])
def test_a_row_without_an_answer_is_named(answer: str) -> None:
    with pytest.raises(DataError, match=r"GSM8K, row 2: `answer` must end with `#### N`, but ends with"):
        gsm8k.problems([ROW, ROW | {"answer": answer}], "test")


def test_a_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "a", "answer": "b\\n#### 1"}\n{"question": "a"}\n')
    with pytest.raises(DataError, match=r"test.jsonl, line 2: `answer` must be a text, but is 'None'"):
        gsm8k.load(tmp_path, "test")


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
@pytest.mark.parametrize("annotations", [False, True])
def test_every_reference_is_loaded_cut_and_graded_right(split: str, count: int, annotations: bool) -> None:
    problems = published(split, annotations=annotations)
    assert len(problems) == len({problem.id for problem in problems}) == count
    for problem in problems:
        assert gsm8k.grade(problem, problem.solution) == Grade.RIGHT
        assert "".join(gsm8k.cut(problem.solution)) == problem.solution
        assert [gsm8k.is_answer(step) for step in gsm8k.cut(problem.solution)][-2:] == [False, True]
        assert ("<<" in problem.solution) <= annotations
        # Any other number at the end is wrong.
        head = problem.solution.rpartition("#### ")[0]
        assert gsm8k.grade(problem, f"{head}#### {int(problem.answer) + 1}") == Grade.WRONG
        if "answer" not in head.lower():
            assert gsm8k.grade(problem, head) == Grade.UNPARSABLE
            assert gsm8k.grade(problem, head, truncated=True) == Grade.TRUNCATED


# ---- steps


@given(text=st.text(alphabet="a1 =#\n\t\r", max_size=40))
def test_steps_give_the_text_back(text: str) -> None:
    steps = gsm8k.cut(text)
    assert "".join(steps) == text
    assert [step.strip() for step in steps if step.strip()] == [s for line in text.split("\n") if (s := line.strip())]
    # Only what follows the last line stands behind a body.
    assert all(step == step.rstrip() for step in steps[:-1])


# ---- grading


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1,200", "1200"),
        ("$72.00", "72"),
        ("72.", "72"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("$ 5", "5"),
        ("25%", "25"),
        ("8*9=72", "72"),
        ("x = 72", "72"),
        ("72 (which is 8*9)", "72"),
        ("72 (8*9)", "72"),
        ("72 clips (8*9 = 72, and 3 = 3)", "72"),
        ("72. Check: 60+11 = 71", "72"),
        ("72, since 60+11 = 71", "72"),
        ("6 (7+5) = 72", "72"),
        ("\\boxed{72}", "72"),
        ("1{,}200", "1200"),
        ("1,\\!200", "1200"),
        ("**72**", "72"),
        ("72km", "72"),
        ("72 clips", "72"),
        ("007", "7"),
        ("-0", "0"),
        ("0.50", "0.5"),
        ("$1,080,000.00", "1080000"),
        ("72\nQuestion: 5 + 3?", "72"),
        ("\n72", "72"),
        ("9" * 5000, "9" * 5000),
        # More than one number, part of a number, or none.
        ("1/2", None),
        ("10-12", None),
        ("6 * (7 clips + 5) = 72", None),
        ("10 or 12", None),
        ("10 to 12", None),
        ("5, 6", None),
        ("5 and 6", None),
        ("72 73", None),
        ("1 200", None),
        ("12,00", None),
        ("1e3", None),
        ("10^3", None),
        ("5²", None),
        ("0x10", None),
        ("6:48", None),
        ("72.5.1", None),
        ("--5", None),
        ("- 5", None),
        ("5k", None),
        ("a1", None),
        ("", None),
        ("seventy-two", None),
        ("७२", None),
        ("72=", None),
        ("\\frac{72}{5}", None),
        ("\\dfrac{72}{5}", None),
        ("\\sqrt{72}", None),
        ("72\\frac{1}{2}", None),
        ("72 \\times 3", None),
        ("72\\sqrt{2}", None),
        ("72 × 3", None),
        ("\\frac{144}{2} = 72", "72"),
        ("72 \\text{ clips}", "72"),
    ],
)
def test_the_answer_is_the_single_number_after_the_last_mark(text: str, answer: str | None) -> None:
    assert gsm8k.read_answer(f"So 3 + 4 = 7.\n#### 1\n#### {text}") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 72.", "72"),
        ("Answer: $1,072", "1072"),
        ("The final answer is $72$. I hope it is correct.", "72"),
        ("so $\\boxed{72}$.", "72"),
        ("The answer is 71. No: the answer is 72", "72"),
        ("The answer is 71.\n#### 72", "72"),
        ("It is 72", None),
        ("72", None),
        ("The answer is x = 72", "72"),
        ("The answer is 8*9 = 72 clips (3 = 3).", "72"),
        ("The answer is $\\text{72}$", "72"),
        ("The answer is not 72", None),
        ("The answer is half of 72", None),
        ("What the answer is: first 48/2 = 24 clips", None),
        ("The answer is unknown. 72 is a number.", None),
        ("The answer is unknown.\n72 is a number.", None),
    ],
)
def test_without_the_mark_only_what_is_called_the_answer_counts(text: str, answer: str | None) -> None:
    assert gsm8k.read_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "truncated", "grade"),
    [
        ("#### 72", False, Grade.RIGHT),
        ("#### 72.0", False, Grade.RIGHT),
        ("#### 72.5", False, Grade.WRONG),
        ("#### 72.000000000000000000001", False, Grade.WRONG),
        ("#### -72", False, Grade.WRONG),
        ("#### 7", False, Grade.WRONG),
        ("So it is", False, Grade.UNPARSABLE),
        ("", False, Grade.UNPARSABLE),
        ("", True, Grade.TRUNCATED),
        ("So it is", True, Grade.TRUNCATED),
        # It may go on.
        ("#### 72", True, Grade.TRUNCATED),
        ("#### 7", True, Grade.TRUNCATED),
        ("#### 72.", True, Grade.TRUNCATED),
        ("#### 72\nQ", True, Grade.RIGHT),
        ("#### 71\nQ", True, Grade.WRONG),
    ],
)
def test_grades(text: str, truncated: bool, grade: Grade) -> None:
    assert gsm8k.grade(PROBLEM, text, truncated=truncated) == grade


@given(number=st.integers(-(10**40), 10**40), by=st.integers(1, 9))
def test_integers_are_compared_exactly(number: int, by: int) -> None:
    problem = PROBLEM._replace(answer=str(number))
    assert gsm8k.grade(problem, f"#### {number:,}") == gsm8k.grade(problem, f"#### ${number}.00") == Grade.RIGHT
    assert gsm8k.grade(problem, f"#### {number + by:,}") == Grade.WRONG


@pytest.mark.parametrize("text", ["#### " + " " * 10**5, "#### " + "1," * 10**5, "answer is " * 10**4, "-" * 10**5])
def test_hostile_texts_take_no_time(text: str) -> None:
    began = time.monotonic()
    assert gsm8k.grade(PROBLEM, text) == Grade.UNPARSABLE
    assert "".join(gsm8k.cut(text * 2)) == text * 2
    assert time.monotonic() - began < 2
