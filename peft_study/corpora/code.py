"""Programming problems, HumanEval and MBPP+: loaded, a program read from an answer, and graded in the sandbox.

HumanEval: https://github.com/openai/human-eval (MIT); MBPP+: https://github.com/evalplus/evalplus (Apache-2.0).
Both are test sets. Programs find Python's library and nothing else, so an answer that imports numpy crashes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft_study.corpora import evalplus
from peft_study.corpora.records import Problem
from peft_study.corpora.rows import find_split, read_rows
from peft_study.errors import ConfigError, DataError
from peft_study.records import Grade
from peft_study.sandbox.jobs import Job, Outcome
from peft_study.sandbox.sandbox import Sandbox


class CodeProblem(NamedTuple):
    """A function to write, and the tests that it must pass."""

    id: str
    """As published, such as `HumanEval/0` or `Mbpp/2`."""
    prompt: str
    """HumanEval: the function's head and docstring, to be completed. MBPP+: a docstring with one or more examples."""
    entry_point: str
    """Name of the function."""
    solution: str
    """The reference solution, a whole program."""
    exam: str
    """What the examiner runs; see `jobs.Job`."""
    data: Any
    """What the exam finds as `data`."""

    @property
    def problem(self) -> Problem:
        """Return it as a problem with a text for a solution; only tests decide, so there is no answer."""
        return Problem(self.id, self.prompt, self.solution, "")


# ---- loading


def humaneval(path: Path) -> list[CodeProblem]:
    """Return the problems of HumanEval from its file, or from the folder that holds it; DataError if it has none."""
    return humaneval_problems(read_rows(_file(path, "HumanEval")))


def mbpp_plus(path: Path) -> list[CodeProblem]:
    """Return the problems of MBPP+ from its file, or from the folder that holds it; DataError if it has none."""
    return mbpp_plus_problems(read_rows(_file(path, "MbppPlus")))


def humaneval_problems(rows: Iterable[Mapping[str, Any]]) -> list[CodeProblem]:
    """Return the problems of rows with the fields of the published file (those of the Hub have them too)."""
    problems = []
    for row in rows:
        prompt, name, solution, test = _fields(row, "prompt", "entry_point", "canonical_solution", "test")
        # The tests may use functions of the prompt, so they come after the reference, not after the answer.
        exam = f"{prompt}{solution}\n{test}\ncheck(candidate)\n"
        problems.append(CodeProblem(row["task_id"], prompt, name, prompt + solution, exam, None))
    return problems


def mbpp_plus_problems(rows: Iterable[Mapping[str, Any]]) -> list[CodeProblem]:
    """Return the problems of rows with the fields of the published file, which lack the expected outputs.

    Those are what the reference solution returns, in the examiner.
    """
    exam = Path(evalplus.__file__).read_text() + "\n\nexamine(candidate, *data)\n"
    problems = []
    for row in rows:
        prompt, name, solution, base, plus, atol = _fields(
            row, "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol"
        )
        # One task of the file has {} for no further inputs.
        calls = evalplus.arguments(int(row["task_id"].removeprefix("Mbpp/")), [*base, *plus])
        problems.append(CodeProblem(row["task_id"], prompt, name, solution, exam, (name, solution, calls, atol)))
    return problems


def _file(path: Path, name: str) -> Path:
    return find_split(path, name) if path.is_dir() else path


def _fields(row: Mapping[str, Any], *names: str) -> list[Any]:
    missing = [name for name in ("task_id", *names) if name not in row]
    if missing:
        raise DataError(
            f"row {row.get('task_id', '?')} has no {', '.join(missing)}: give the rows of the published file"
        )
    return [row[name] for name in names]


# ---- from an answer to a program

_BLOCK = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)
_PROGRAM = re.compile(r"^(?:import |from |def |class |@)", re.MULTILINE)
_AFTER_PROGRAM = re.compile(r'^(?:"""|```|assert\b|print\b|if __name__)', re.MULTILINE)
"""What a model without an end goes on with after its function: examples, and the next problem."""
_AFTER_BODY = re.compile(r"^(?:class|def|#|if|print|```)", re.MULTILINE)
"""The same after the body of a function: https://arxiv.org/abs/2107.03374, section 2.1, and the fence."""


def read_program(problem: CodeProblem, answer: str) -> str:
    r'''Return the program in an answer; empty if there is none.

    From code blocks it takes the last that defines the function, or else the last; without any, the whole text. Text
    that does not define the function goes on from the prompt. Whether the program can be compiled is not asked here.

    >>> add = CodeProblem("t/0", 'import math\n\n\ndef add(a, b):\n    """Add."""\n', "add", "", "", None)
    >>> print(read_program(add, "    return a + b\n\nprint(add(1, 2))"))
    import math
    <BLANKLINE>
    <BLANKLINE>
    def add(a, b):
        """Add."""
        return a + b
    <BLANKLINE>
    <BLANKLINE>
    >>> print(read_program(add, "Sure:\n```python\ndef add(x, y):\n    return x + y\n```\nDone."))
    import math
    <BLANKLINE>
    <BLANKLINE>
    def add(x, y):
        return x + y
    <BLANKLINE>
    '''
    defines = re.compile(rf"^(?:async )?def {re.escape(problem.entry_point)}\b", re.MULTILINE)
    blocks = _BLOCK.findall(answer)
    if blocks:
        text = next((block for block in reversed(blocks) if defines.search(block)), blocks[-1])
    elif found := defines.search(answer):
        start = _PROGRAM.search(answer)
        assert start
        after = _AFTER_PROGRAM.search(answer, found.end())
        text = answer[start.start() : after.start() if after else None]
    else:
        after = _AFTER_BODY.search(answer)
        text = answer[: after.start() if after else None]
    if not text.strip():
        return ""
    head = defines.search(problem.prompt)
    if not defines.search(text):
        return problem.prompt + text
    # What the prompt imports and defines before the function is there for the answer too.
    return (problem.prompt[: head.start()] if head else "") + text


def grade_programs(
    sandbox: Sandbox,
    problems: Sequence[CodeProblem],
    answers: Sequence[str],
    *,
    finished: Sequence[bool] | None = None,
) -> list[Outcome]:
    """Return what became of each answer, in order.

    `finished` says which answers a model ended itself (default: all); one that was cut off and cannot be read is
    `truncated`, not `unparsable`. DataError where a problem's own tests fail.
    """
    if len(problems) != len(answers) or (finished is not None and len(finished) != len(answers)):
        raise ConfigError(f"there must be one answer a problem, but there are {len(problems)} and {len(answers)}")
    programs = [read_program(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    jobs = [
        Job(program, problem.entry_point, problem.exam, problem.data)
        for problem, program in zip(problems, programs, strict=True)
        if program
    ]
    ran = iter(sandbox.run(jobs))
    empty = Outcome(Grade.UNPARSABLE, "there is no program", 0.0)
    outcomes = [next(ran) if program else empty for program in programs]
    return [
        outcome._replace(grade=Grade.TRUNCATED) if cut and outcome.grade == Grade.UNPARSABLE else outcome
        for outcome, cut in zip(outcomes, [not ended for ended in finished or [True] * len(outcomes)], strict=True)
    ]
