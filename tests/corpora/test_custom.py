"""Anyone's rows: what the columns say, where a message points, and how solutions end."""

from collections.abc import Mapping
from typing import Any

import pytest

from peft_study.corpora import gsm8k, math
from peft_study.corpora.config import Columns
from peft_study.corpora.custom import Read, read, styled
from peft_study.corpora.records import Problem
from peft_study.corpora.sources import Rows
from peft_study.errors import DataError
from peft_study.records import Grade


def rows(*given: Mapping[str, Any]) -> Rows:
    return Rows(iter(given), "a.jsonl, row")


def found(*given: Mapping[str, Any], **columns: str) -> Read:
    return read(rows(*given), Columns(**columns), "a")


def shown(result: Read) -> list[list[tuple[str, list[tuple[str, str]]]]]:
    return [
        [(turn.role, [(segment.text, segment.kind) for segment in turn.segments]) for turn in document.turns]
        for document in result.documents
    ]


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": " Hello"},
]


# ---- kinds of rows


def test_a_conversation_has_a_turn_for_each_message() -> None:
    result = found({"messages": MESSAGES}, {"messages": MESSAGES[1:]})
    answer = ("assistant", [(" Hello", "text")])
    assert shown(result) == [
        [("system", [("Be brief.\n", "prompt")]), ("user", [("Hi\n", "prompt")]), answer],
        [("user", [("Hi\n", "prompt")]), answer],
    ]
    assert [document.id for document in result.documents] == ["a/0", "a/1"]


def test_a_prompt_and_its_completion_stay_one_text() -> None:
    """But for the space between them, which tokens begin with."""
    result = found({"prompt": "2 + 2 =\t ", "completion": "4\n"}, {"prompt": "Q:\n", "completion": " a"})
    assert shown(result) == [
        [("user", [("2 + 2 =\t", "prompt")]), ("assistant", [(" 4\n", "text")])],
        [("user", [("Q:\n", "prompt")]), ("assistant", [(" a", "text")])],
    ]


def test_a_text_answers_nobody() -> None:
    assert shown(found({"text": " Once.\n"})) == [[("assistant", [(" Once.\n", "text")])]]


def test_a_solution_is_a_problem() -> None:
    result = found({"question": " How many?\n", "solution": "7.\n", "answer": 7}, {"question": "b", "solution": "c"})
    assert result.problems == [Problem("a/0", "How many?", "7.", "7"), Problem("a/1", "b", "c", "")]
    assert result.documents == []


def test_columns_have_the_names_that_they_are_given() -> None:
    row = {"question": "a", "answer": "b\n#### 3", "text": "c"}
    assert found(row, solution="answer").problems[0].solution == "b\n#### 3"
    assert shown(found(row)) == shown(found({"text": "c"}))
    assert shown(found({"q": "a", "a": "b"}, prompt="q", completion="a")) == shown(
        found({"prompt": "a", "completion": "b"})
    )


def test_a_column_that_was_given_another_part_is_read_once() -> None:
    """`answer` holds the whole solution: it is not the final answer too."""
    row = {"question": "How many?", "answer": "Tom had 3.\nNow he has 7."}
    assert found(row, solution="answer").problems == [Problem("a/0", "How many?", "Tom had 3.\nNow he has 7.", "")]
    with pytest.raises(DataError, match="must have one of"):
        found({"text": "a", "solution": "b"}, answer="text")


def test_columns_that_are_named_decide_what_a_row_is() -> None:
    every = {"messages": MESSAGES, "problem": "a", "solution": "b", "text": "c"}
    assert found(every, question="problem").problems == [Problem("a/0", "a", "b", "")]
    assert shown(found(every, text="text")) == shown(found({"text": "c"}))
    assert found({"question": "a", "solution": "b", "text": "c", "final": 3}, answer="final").problems[0].answer == "3"
    with pytest.raises(DataError, match=r"columns.prompt is no column of rows with text, which these are; its col"):
        found({"text": "a", "b": "c"}, prompt="b")


def test_the_first_kind_counts() -> None:
    every = {"messages": MESSAGES, "question": "a", "solution": "b", "prompt": "c", "completion": "d", "text": "e"}
    assert len(shown(found(every))[0]) == 3
    del every["messages"]
    assert found(every).problems
    del every["question"]
    assert shown(found(every))[0][0] == ("user", [("c", "prompt")])


# ---- messages


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            {"a": 1, "b": 2},
            {},
            r"row 1: must have one of .*text.*, but .* 'a', 'b'; say which is which, as in corpus.columns.text=a",
        ),
        ({}, {}, "row 1: must have one of .*, but its columns are none"),
        ({"text": "a"}, {"text": "body"}, r"row 1: has no column 'body' for corpus.columns.text; its columns are"),
        ({"text": "a"}, {"solution": "x"}, "row 1: has no column 'x' for corpus.columns.solution"),
        ({"text": 3}, {}, "row 1: `text` must be a text, but is '3'; mend the row"),
        ({"text": " \n"}, {}, "row 1: `text` must be a text, but is "),
        ({"prompt": "a", "completion": None}, {}, "row 1: `completion` must be a text, but is 'None'"),
        ({"question": "a", "solution": "b", "answer": [3]}, {}, "row 1: `answer` must be a text or a number, but is"),
        ({"question": "a", "solution": "b", "answer": True}, {}, "row 1: `answer` must be a text or a number"),
        ({"messages": "Hi"}, {}, "row 1: `messages` must be a list of turns, but is 'Hi'"),
        ({"messages": []}, {}, "row 1: `messages` must be a list of turns"),
        ({"messages": [{"from": "human"}]}, {}, r"row 1: `messages`, turn 1: role must be one of system, user, assist"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "a"}]}, {}, "turn 4: role must be one of"),
        ({"messages": [{"role": "user", "content": None}]}, {}, "turn 1: `content` must be a text, but is 'None'"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], columns: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        found(row, **columns)


def test_a_later_row_is_counted() -> None:
    with pytest.raises(DataError, match=r"a.jsonl, row 2: `text` must be a text, but is 'None'"):
        found({"text": "a"}, {"question": "b"})
    with pytest.raises(DataError, match=r"a.jsonl holds no rows; give a source that does"):
        found()


# ---- test sets


@pytest.mark.parametrize(
    ("key", "value", "is_test"),
    [
        ("task_id", "HumanEval/3", True),
        ("task_id", "Mbpp/602", True),
        ("unique_id", "test/precalculus/807.json", True),
        ("unique_id", "train/precalculus/807.json", False),
        ("task_id", 602, False),
        ("task_id", "own/HumanEval/3", False),
    ],
)
def test_published_names_of_test_problems_are_known(key: str, value: object, is_test: bool) -> None:
    assert found({"text": "a"}, {"text": "b", key: value}).test_id == (str(value) if is_test else "")


# ---- how solutions end


def problem(solution: str, answer: str = "") -> Problem:
    return Problem("a/0", "How many?", solution, answer)


@pytest.mark.parametrize(
    ("given", "solution", "answer", "grader"),
    [
        (problem("3 + 4 = 7.\n#### 7"), "3 + 4 = 7.\n#### 7", "7", "gsm8k"),
        (problem("3 + 4 = 7.", "7"), "3 + 4 = 7.\n#### 7", "7", "gsm8k"),
        (problem("3 + 4 = 7.\n#### 7", "7.0"), "3 + 4 = 7.\n#### 7", "7", "gsm8k"),
        (problem("It is many.", "1,200"), "It is many.\n#### 1200", "1200", "gsm8k"),
        (problem("It is seven."), "It is seven.", "", ""),
        (problem(r"So $\boxed{x}$."), r"So $\boxed{x}$.", "x", "math"),
        (problem(r"So $\boxed{7}$.", "7"), r"So $\boxed{7}$.", "7", "math"),
        (problem("3 + 4 = 7.\n#### Answer: 7"), "3 + 4 = 7.\n#### Answer: 7", "7", "gsm8k"),
        (problem("#### Step 1: add\n3 + 4 = 7.", "7"), "#### Step 1: add\n3 + 4 = 7.\n#### 7", "7", "gsm8k"),
        (problem("#### Step 1: add\n3 + 4 = 7."), "#### Step 1: add\n3 + 4 = 7.", "", ""),
        (problem("It is 30.", "2 h 5 min"), "It is 30.\n\nThe answer is $\\boxed{2 h 5 min}$.", "2 h 5 min", "math"),
        (problem("So $x$.", "x"), "So $x$.\n\nThe answer is $\\boxed{x}$.", "x", "math"),
    ],
)
def test_a_solution_says_its_answer_at_its_end(given: Problem, solution: str, answer: str, grader: str) -> None:
    result = styled([given], "auto")
    assert result.problems == [given._replace(solution=solution, answer=answer)]
    assert result.grader == grader
    assert result.form is (math.FORM if grader == "math" else gsm8k.FORM)
    if grader == "gsm8k":
        assert gsm8k.grade(result.problems[0], solution) == Grade.RIGHT
    elif grader == "math":
        assert math.read_answer(solution) == answer
    if grader:
        assert result.form.is_answer(result.form.cut(solution)[-1])


def test_one_problem_without_an_answer_leaves_all_ungraded() -> None:
    assert styled([problem("a", "7"), problem("b")], "auto").grader == ""


def test_a_style_can_be_asked_for() -> None:
    asked = styled([problem("One. It is 7.", "7")], "math")
    assert (asked.grader, asked.form) == ("math", math.FORM)
    with pytest.raises(DataError, match="a/0: `answer` must be one number, but is 'x'; set style=math"):
        styled([problem("So x.", "x")], "gsm8k")
    with pytest.raises(DataError, match="a/0: `solution` ends with 8, but `answer` is 7; mend the row"):
        styled([problem("a\n#### 8", "7")], "auto")
