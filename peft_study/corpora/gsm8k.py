r"""GSM8K: grade-school problems with solutions in lines, loaded, cut into steps and graded in exact integers.

Rows are those of https://github.com/openai/grade-school-math (MIT) or of the Hub's `openai/gsm8k`:

    question: Natalia sold clips to 48 of her friends in April, ...
    answer:   Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n...\n#### 72

`<<...>>` is written for a calculator and is left out unless asked for.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft_study.corpora.arithmetic import equations, numbers, plain
from peft_study.corpora.records import Problem
from peft_study.corpora.rows import find_split, read_rows, texts
from peft_study.corpora.steps import Form
from peft_study.errors import DataError
from peft_study.records import Grade

_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


# ---- loading


def load(folder: Path, split: str, *, annotations: bool = False) -> list[Problem]:
    """Return the problems of `train` or `test` from `folder`; DataError where a file or a row is not as published."""
    file = find_split(folder, split)
    return problems(read_rows(file), split, annotations=annotations, place=f"{file}, line")


def problems(
    rows: Iterable[Mapping[str, Any]], split: str, *, annotations: bool = False, place: str = "GSM8K, row"
) -> list[Problem]:
    """Return the problems of rows; `place` begins the message of the DataError that a bad row gives.

    The solution ends with the published line `#### N`; the answer is N without commas.
    """
    loaded = []
    for i, row in enumerate(rows):
        question, solution = texts(row, f"{place} {i + 1}", "question", "answer")
        answer = read_answer(solution) if "\n#### " in solution else None
        if answer is None:
            last = solution[-40:]
            raise DataError(f"{place} {i + 1}: `answer` must end with `#### N`, but ends with {last!r}; get it anew")
        if not annotations:
            solution = _ANNOTATION.sub("", solution)
        loaded.append(Problem(f"gsm8k/{split}/{i}", question, solution, answer))
    return loaded


# ---- steps


def cut(solution: str) -> list[str]:
    r"""Return the lines, each with the white space before it; what follows the last one belongs to it.

    >>> cut("5 + 2 = 7 are left.\n\n#### 7\n")
    ['5 + 2 = 7 are left.', '\n\n#### 7\n']
    """
    steps, waiting = [], ""
    for i, line in enumerate(solution.split("\n")):
        waiting += f"\n{line}" if i else line
        if step := waiting.rstrip():
            steps.append(step)
            waiting = waiting[len(step) :]
    if waiting:
        steps[-1:] = ["".join(steps[-1:]) + waiting]
    return steps


def is_answer(step: str) -> bool:
    """Return whether a step is the last line, `#### N`."""
    return "####" in step


FORM = Form(cut, is_answer, lambda step: not is_answer(step), "\n", numbers, equations)


# ---- grading

_MARK = re.compile(r"answer(?:\s+is\b|:)|\\boxed\{", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>-?)(?:\$\s?)?(?P<sign2>-?)"
    r"(?P<whole>[0-9]{1,3}(?:(?:,(?:\\!)?|\{,\})[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))(?:\.(?P<decimals>[0-9]+))?"
)
_MORE = re.compile(
    r"\s*[-+*/x^]\s*\(*-?\$?[0-9]|\s*[,;.:]?\s*(?:(?:to|or|and)\s+)?-?\$?[0-9]|e[-+]?[0-9]|k\b|[²³]"
    r"|\s*\\(?:[cdt]?frac|times|cdot|div|sqrt|pi|pm)",
    re.IGNORECASE,
)
"""What makes a number part of something else: a sum, a range, a list, a time, a power, a product in LaTeX."""
_WITHIN = re.compile(r"\\(?:[cdt]?frac|sqrt)")
"""What makes the number behind it a part of something else."""
_ASIDE = re.compile(r"\([^()]*\)")
_CLAUSE_END = re.compile(r"[.,;:!?]\s|\s\((?=[^()\n]*[a-zA-Z=])")
"""Where an explanation may begin, whose equations are not the answer."""
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2}")


def read_answer(text: str) -> str | None:
    r"""Return the final number of a text without commas, sign or zeros too many; None where there is no single one.

    It is the first after the last `####` or, where there is none, the one that follows the last `answer is`, `answer:`
    or `\boxed{` without a word in between; of an equation there, the right side. A number elsewhere is no answer,
    however near to the end it is.

    >>> [read_answer(f"So it is 9.\n#### {end}") for end in ("1,200", "$72.00", "-5 apples", "3 to 4", "none")]
    ['1200', '72', '-5', None, None]
    """
    found = _find_answer(text)
    return found[0] if found else None


def read_number(answer: str) -> str | None:
    """Return the number that an answer alone gives, as `read_answer` does; None where it gives another one too.

    >>> [read_number(answer) for answer in ("$1,200", "72 clips (8*9)", "2 hours 30 minutes", "x = 5, y = 3")]
    ['1200', '72', None, None]
    """
    text = f"#### {answer}"
    found = _find_answer(text)
    return found[0] if found and not _NUMBER.search(_ASIDE.sub("", plain(text)[found[1] :])) else None


def _find_answer(text: str) -> tuple[str, int] | None:
    """Return the final number and where it ends."""
    text = plain(text)
    start = text.rfind("####") + 4
    marked = start >= 4
    if not marked:
        marks = list(_MARK.finditer(text))
        if not marks:
            return None
        start = marks[-1].end()
    start += len(text[start:]) - len(text[start:].lstrip())
    line_end = text.find("\n", start) if "\n" in text[start:] else len(text)
    clause = _CLAUSE_END.search(text, start, line_end)
    right = max(start, text.rfind("=", start, clause.start() if clause else line_end) + 1)
    number = _NUMBER.search(text, right, line_end)
    # `The answer is not 72` has a mark, but gives no answer.
    if not number or (not marked and _WORD.search(text, start, number.start())):
        return None
    # A sign apart from its number may be a dash, as a second one may.
    if text[right : number.start()].rstrip().endswith("-") or (number["sign"] and number["sign2"]):
        return None
    if _MORE.match(text, number.end(), line_end) or _WITHIN.search(text, right, number.start()):
        return None
    negative = number["sign"] or number["sign2"]
    whole, decimals = re.sub("[^0-9]", "", number["whole"]).lstrip("0") or "0", (number["decimals"] or "").rstrip("0")
    answer = f"{whole}.{decimals}" if decimals else whole
    return f"-{answer}" if negative and answer != "0" else answer, number.end()


def grade(problem: Problem, text: str, *, truncated: bool = False) -> Grade:
    """Return what became of a text; `truncated` says that the model was stopped before it had ended.

    Answers are compared as exact numbers, digit for digit. What a number that was cut off goes on with is not known.
    """
    found = _find_answer(text)
    if found is None or (truncated and not text[found[1] :].strip(" .,")):
        return Grade.TRUNCATED if truncated else Grade.UNPARSABLE
    return Grade.RIGHT if found[0] == problem.answer else Grade.WRONG
