"""Programming problems: loaded, a program read from an answer, and graded; reference solutions are right."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_study.corpora import code, evalplus
from peft_study.corpora.code import CodeProblem, grade_programs, read_program
from peft_study.errors import ConfigError, DataError
from peft_study.records import Grade
from peft_study.sandbox.jobs import Limits
from peft_study.sandbox.sandbox import Sandbox

ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef add(a, b):\n    """Add."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
}
PAIR = {
    "task_id": "Mbpp/750",
    "prompt": '"""\nWrite a function to add a pair to a list.\nassert add_pair([5], (9, 10)) == [5, 9, 10]\n"""\n',
    "entry_point": "add_pair",
    "canonical_solution": "\ndef add_pair(items, pair):\n    items.extend(pair)\n    return items\n",
    "base_input": [[[5], [9, 10]]],
    "plus_input": {},
    "atol": 0,
}

MBPP_STEP = int(os.environ.get("PEFT_STUDY_MBPP_STEP", "4"))


def published(load: Callable[[Path], list[CodeProblem]], folder: str) -> list[CodeProblem]:
    """Return the problems of the published file, or skip."""
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        pytest.skip(f"PEFT_STUDY_DATA is unset: no {folder}")
    return load(Path(data, folder))


@pytest.mark.parametrize(
    ("load", "folder", "number", "step"),
    [(code.humaneval, "humaneval", 164, 1), (code.mbpp_plus, "mbpp", 378, MBPP_STEP)],
    ids=["every one of HumanEval", f"one in {MBPP_STEP} of MBPP+"],
)
def test_reference_solutions_are_right(
    load: Callable[[Path], list[CodeProblem]], folder: str, number: int, step: int
) -> None:
    """PEFT_STUDY_MBPP_STEP=1 for every one of MBPP+, some of whose reference solutions take long."""
    problems = published(load, folder)
    assert len({problem.id for problem in problems}) == len(problems) == number
    problems = problems[::step]
    with Sandbox(Limits(), allow_untrusted_code=True, workers=2) as sandbox:
        outcomes = grade_programs(sandbox, problems, [problem.solution for problem in problems])
        empty = [f"def {problem.entry_point}(*_): return None" for problem in problems[:20]]
        failed = grade_programs(sandbox, problems[:20], empty)
    wrong = [(problem.id, out) for problem, out in zip(problems, outcomes, strict=True) if out.grade != Grade.RIGHT]
    assert wrong == []
    assert Grade.RIGHT not in [outcome.grade for outcome in failed]


def test_each_outcome_has_its_grade() -> None:
    (problem,) = code.humaneval_problems([ADD])
    answers = {
        "    return a + b\n": Grade.RIGHT,
        "    return a - b\n": Grade.WRONG,
        "    return (a +\n": Grade.UNPARSABLE,
        "": Grade.UNPARSABLE,
        "    return a + c\n": Grade.CRASHED,
        "    while True: pass\n": Grade.TIMED_OUT,
    }
    with Sandbox(Limits(cpu_seconds=1), allow_untrusted_code=True) as sandbox:
        outcomes = grade_programs(sandbox, [problem] * len(answers), list(answers))
        assert [outcome.grade for outcome in outcomes] == list(answers.values())
        cut = ["    return (a +\n", "    return a + b\n", ""]
        outcomes = grade_programs(sandbox, [problem] * 3, cut, finished=[False] * 3)
        assert [outcome.grade for outcome in outcomes] == [Grade.TRUNCATED, Grade.RIGHT, Grade.TRUNCATED]
        with pytest.raises(ConfigError, match="1 and 2"):
            grade_programs(sandbox, [problem], ["", ""])


def test_mbpp_compares_with_the_reference_and_keeps_arguments_apart() -> None:
    (problem,) = code.mbpp_plus_problems([PAIR])
    assert problem.data[2] == [[[5], (9, 10)]]
    answers = [problem.solution, "def add_pair(a, b): return a + list(b)", "def add_pair(a, b): return a"]
    broken = problem._replace(data=("add_pair", "def other(): pass", *problem.data[2:]))
    with Sandbox(Limits(), allow_untrusted_code=True) as sandbox:
        outcomes = grade_programs(sandbox, [problem] * 3, answers)
        assert [outcome.grade for outcome in outcomes] == [Grade.RIGHT, Grade.RIGHT, Grade.WRONG]
        assert outcomes[2].reason == "call 0: add_pair([5], (9, 10)) gave [5], not [5, 9, 10]"
        with pytest.raises(DataError, match="reference solution does not run"):
            grade_programs(sandbox, [broken], answers[:1])


def test_programs_are_read_from_answers() -> None:
    (problem,) = code.humaneval_problems([ADD])
    head, body = "import math\n\n\n", "def add(a, b):\n    return a + b\n"
    assert read_program(problem, f"First:\n```python\n{body}```\nthen\n```\nadd(1, 2)\n```\n") == head + body
    assert read_program(problem, f"It is\n{body}\nassert add(1, 2) == 3\n").strip() == (head + body).strip()
    assert read_program(problem, "    return a + b\nprint(1)") == ADD["prompt"] + "    return a + b\n"
    assert read_program(problem, "```\n```") == read_program(problem, " \n") == ""


@pytest.mark.parametrize(
    ("name", "got", "expected", "atol", "same"),
    [
        ("f", 1 + 1e-9, 1.0, 0, True),
        ("f", 1 + 1e-3, 1.0, 0, False),
        ("f", [1.0, 2.0], [1.0, 2.0, 3.0], 0, False),
        ("f", 1.05, 1.0, 0.1, True),
        ("f", "a", "b", 0, False),
        ("Diff", [2, 1, 1], [1, 2], 0, True),
        ("check_str", "found", True, 0, True),
        ("check_str", None, True, 0, False),
    ],
)
def test_outputs_are_compared(name: str, got: Any, expected: Any, atol: float, same: bool) -> None:
    assert evalplus.same(name, [], got, expected, atol) == same


def test_files_are_found_plain_and_packed_and_bad_ones_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="HumanEval"):
        code.humaneval(tmp_path)
    with gzip.open(tmp_path / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(ADD) + "\n")
    assert [problem.id for problem in code.humaneval(tmp_path)] == ["HumanEval/0"]
    (tmp_path / "MbppPlus.jsonl").write_text(json.dumps(ADD) + "\n")
    with pytest.raises(DataError, match="HumanEval/0 has no base_input, plus_input, atol"):
        code.mbpp_plus(tmp_path / "MbppPlus.jsonl")
