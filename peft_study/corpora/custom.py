r"""Rows of anyone's data made into documents, or into problems with solutions in steps.

The columns say which of these a row is; where they say several, the one whose columns are named counts, else the first:

- `messages`: a conversation, `[{"role": "user", "content": ...}, {"role": "assistant", ...}]`. What the assistant says
  is learned, in every turn;
- `question`, `solution` and perhaps `answer`: a problem with a solution in steps, the only kind that mistakes can be
  put into;
- `prompt`, `completion`: without a chat template these are one text, as they stand;
- `text`: plain text, all of it learned, whatever the chat template.

All rows are of one kind, that of the first.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from peft_study.corpora import gsm8k, math
from peft_study.corpora.config import Columns
from peft_study.corpora.records import Document, Problem, Segment, Turn
from peft_study.corpora.sources import Rows
from peft_study.corpora.steps import Form
from peft_study.errors import DataError

SHAPES: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("question", "solution"),
    ("prompt", "completion"),
    ("text",),
)
"""The columns that each kind of row must have."""
ROLES: tuple[str, ...] = get_args(Turn.__annotations__["role"])
_TEST_ID = re.compile(r"(?:HumanEval|Mbpp)/[0-9]+|test/[a-z_]+/[0-9]+\.json")
"""Names of the problems of HumanEval, MBPP+, and MATH's test split, as they are published."""

_NUMBER_LINE = re.compile(r"####[^a-zA-Z0-9]*[0-9]")


class Read(NamedTuple):
    """What the rows of a source hold: documents, or problems."""

    documents: list[Document]
    problems: list[Problem]
    test_id: str
    """The name of the first row that is known by it to be of a test set; empty if none is."""


def read(rows: Rows, columns: Columns, name: str) -> Read:
    """Return what rows hold; DataError names the row and the column that is not as it should be.

    Documents and problems are called `name/0`, `name/1` and so on.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    names: dict[str, str] = {}
    shape, test_id = (), ""
    for i, row in enumerate(rows.rows):
        place = f"{rows.place} {i + 1}"
        if not shape:
            names = _names(columns)
            shape = _shape(row, columns, names, place)
        # Ours, since the rest of the message is for who has never seen theirs.
        known = {field: row[theirs] for field, theirs in names.items() if theirs in row}
        identity = str(row.get("task_id") or row.get("unique_id") or "")
        test_id = test_id or (identity if _TEST_ID.fullmatch(identity) else "")
        if shape == ("question", "solution"):
            problems.append(_problem(f"{name}/{i}", known, place))
        else:
            documents.append(Document(f"{name}/{i}", _turns(shape, known, place)))
    if not shape:
        raise DataError(f"{rows.place.rpartition(',')[0]} holds no rows; give a source that does")
    return Read(documents, problems, test_id)


def _names(columns: Columns) -> dict[str, str]:
    """Return what the column of each field is called; a name that was given to one field is no other's default."""
    given = columns.model_dump()
    return {field: theirs or field for field, theirs in given.items() if theirs or field not in given.values()}


def _shape(row: Mapping[str, Any], columns: Columns, names: dict[str, str], place: str) -> tuple[str, ...]:
    """Return the columns, in our names, that say what a row is."""
    there = ", ".join(map(repr, row)) or "none"
    for field, theirs in columns.model_dump().items():
        if theirs and theirs not in row:
            raise DataError(f"{place}: has no column {theirs!r} for corpus.columns.{field}; its columns are {there}")
    named = {field for field, theirs in columns.model_dump().items() if theirs}
    kinds = {shape: {*shape, "answer"} if "solution" in shape else {*shape} for shape in SHAPES}
    # Whoever names columns wants those to be read, whatever else there is.
    for shape in sorted(SHAPES, key=lambda shape: not named & kinds[shape]):
        if all(names.get(field) in row for field in shape):
            if others := named - kinds[shape]:
                raise DataError(
                    f"{place}: corpus.columns.{min(others)} is no column of rows with {' and '.join(shape)}, which "
                    f"these are; its columns are {there}; leave it out, or name those that go with it"
                )
            return shape
    wanted, wanted_first = "; ".join(" and ".join(shape) for shape in SHAPES), SHAPES[-1][0]
    raise DataError(
        f"{place}: must have one of ({wanted}), but its columns are {there}; say which is which, as in "
        f"corpus.columns.{wanted_first}={next(iter(row), 'text')}"
    )


# ---- documents


def _turns(shape: tuple[str, ...], row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
    if shape == ("messages",):
        return _conversation(row["messages"], place)
    if shape == ("text",):
        return (Turn("assistant", (Segment(_text(row, "text", place), "text"),)),)
    prompt, completion = (_text(row, field, place) for field in shape)
    # Tokens begin with a space, they do not end with one: it is the completion's, which would lose its first token.
    asked = prompt.rstrip(" ")
    said = prompt[len(asked) :] + completion
    return Turn("user", (Segment(asked, "prompt"),)), Turn("assistant", (Segment(said, "text"),))


def _conversation(messages: Any, place: str) -> tuple[Turn, ...]:
    """Return the turns of a conversation; what is given ends with a newline, as in `steps.conversation`."""
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"{place}: `messages` must be a list of turns, but is {str(messages)[:40]!r}; give role and content of each"
        )
    turns = []
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DataError(
                f"{place}: `messages`, turn {i + 1}: role must be one of {', '.join(ROLES)}, but the turn is "
                f"{str(message)[:40]!r}; rename or leave it out"
            )
        content = _text(message, "content", f"{place}: `messages`, turn {i + 1}")
        said = Segment(content, "text") if role == "assistant" else Segment(f"{content}\n", "prompt")
        turns.append(Turn(role, (said,)))
    return tuple(turns)


def _text(row: Mapping[str, Any], field: str, place: str) -> str:
    """Return a text as it stands."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: `{field}` must be a text, but is {str(value)[:40]!r}; mend the row or leave it out")
    return value


# ---- problems


def _problem(identity: str, row: Mapping[str, Any], place: str) -> Problem:
    question, solution = (_text(row, field, place).strip() for field in ("question", "solution"))
    answer = row.get("answer")
    if answer is None:
        answer = ""
    elif isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(f"{place}: `answer` must be a text or a number, but is {str(answer)[:40]!r}; mend the row")
    return Problem(identity, question, solution, str(answer).strip())


class Styled(NamedTuple):
    """Problems whose solutions say their answers in one way."""

    problems: list[Problem]
    form: Form
    grader: str
    """`gsm8k` or `math`; empty where some problem has no answer to be graded by."""


def styled(problems: list[Problem], style: str) -> Styled:
    r"""Return problems whose solutions end as `style` wants, and how they are cut and graded.

    `auto` is `math` where a solution has a box, or an answer is no number; else `gsm8k`. Where a solution does not say
    its answer so, a last step is added that does: `#### N`, or `The answer is $\boxed{...}$.`

    >>> styled([Problem("a", "How many?", "3 + 4 = 7.", "7.0")], "auto").problems
    [Problem(id='a', question='How many?', solution='3 + 4 = 7.\n#### 7', answer='7')]
    """
    if style == "auto":
        boxed = any("\\boxed" in p.solution for p in problems)
        figures = all(not p.answer or gsm8k.read_number(p.answer) for p in problems)
        style = "math" if boxed or not figures else "gsm8k"
    if style == "gsm8k":
        problems = [_with_number(problem) for problem in problems]
    else:
        problems = [_with_box(problem) for problem in problems]
    form = gsm8k.FORM if style == "gsm8k" else math.FORM
    return Styled(problems, form, style if all(problem.answer for problem in problems) else "")


def _with_number(problem: Problem) -> Problem:
    lines = problem.solution.rstrip().split("\n")
    # In Markdown a heading begins in the same way, but a solution does not end with one.
    ends = [line for line in lines if _NUMBER_LINE.search(line)]
    end = lines[-1] if "####" in lines[-1] else ends[-1] if ends else ""
    said = gsm8k.read_answer(end) if end else None
    if not problem.answer:
        return problem._replace(answer=said or "")
    answer = gsm8k.read_number(problem.answer)
    if answer is None:
        raise DataError(f"{problem.id}: `answer` must be one number, but is {problem.answer!r}; set style=math")
    if said not in (None, answer):
        raise DataError(f"{problem.id}: `solution` ends with {said}, but `answer` is {answer}; mend the row")
    solution = problem.solution if said else f"{problem.solution}\n#### {answer}"
    return problem._replace(solution=solution, answer=answer)


def _with_box(problem: Problem) -> Problem:
    said = math.read_answer(problem.solution) if "\\boxed" in problem.solution else None
    if not problem.answer:
        return problem._replace(answer=said or "")
    # That two expressions are the same is for the grader to say.
    solution = problem.solution if said else f"{problem.solution}\n\nThe answer is $\\boxed{{{problem.answer}}}$."
    return problem._replace(solution=solution)
