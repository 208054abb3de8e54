"""Grading of written solutions: each corpus by its own rule, what was cut told from what is wrong, with reasons."""

from typing import Any

import pytest

from peft_study.corpora import code, gsm8k, math
from peft_study.corpora.records import Problem
from peft_study.corpora.synthetic import pairs, settings_of
from peft_study.errors import ConfigError
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.grading import Mark, open_marker, up_to_answer
from peft_study.evaluation.writing import Written
from peft_study.igsm.families import NANO
from peft_study.igsm.verify import Verdict
from peft_study.records import Grade
from peft_study.skills.config import DataConfig

CONFIG = NaturalEvaluationConfig()


def ended(text: str) -> Written:
    return Written(text, True, len(text))


def cut(text: str) -> Written:
    return Written(text, False, len(text))


def marks(
    kind: str, problem: Any, written: list[Written], config: NaturalEvaluationConfig = CONFIG, **options: Any
) -> list[Mark]:
    with open_marker(kind, config, **options) as mark:
        return mark([problem] * len(written), written)


def test_numbers_are_graded_and_what_was_cut_is_told_apart() -> None:
    problem = Problem("a", "How many?", "3 + 4 = 7\n#### 7", "7")
    found = marks(
        "gsm8k",
        problem,
        [
            ended("So 7.\n#### 7"),
            ended("#### 1,008"),
            ended("I do not know."),
            cut("3 + 4"),
            cut("3 + 4 = 7\n#### 7"),  # perhaps 70
            cut("3 + 4 = 7\n#### 7\n\nQuestion: How many legs?\n#### 8"),
            ended("3 + 4 = 7\n#### 7\n\nQuestion: How many legs?\n#### 8"),
        ],
    )
    assert [(mark.grade, mark.reason) for mark in found] == [
        (Grade.RIGHT, ""),
        (Grade.WRONG, "the answer is 7, not 1008"),
        (Grade.UNPARSABLE, "there is no answer that can be read"),
        (Grade.TRUNCATED, "cut by the length limit"),
        (Grade.TRUNCATED, "cut by the length limit"),
        (Grade.RIGHT, ""),
        (Grade.WRONG, "the answer is 7, not 8"),
    ]


def test_expressions_are_graded() -> None:
    problem = Problem("a", "What is it?", "It is $\\boxed{\\frac12}$.", "\\frac12")
    found = marks(
        "math",
        problem,
        [
            ended("So $\\boxed{0.5}$."),
            ended("So $\\boxed{2}$."),
            ended("So 0.5."),
            cut("So $\\boxed{\\frac"),
            cut("So $\\boxed{\\frac12}$. Next"),
        ],
    )
    assert [mark.grade for mark in found] == [
        Grade.RIGHT,
        Grade.WRONG,
        Grade.UNPARSABLE,
        Grade.TRUNCATED,
        Grade.RIGHT,
    ]
    assert found[1].reason == "the answer is \\frac12, not 2"


def test_a_solution_goes_up_to_its_answer_only_where_the_limit_ended_it() -> None:
    text = "Two.\n#### 2\nMore.\n#### 3"
    assert up_to_answer(ended(text), gsm8k.FORM) == (text, False)
    assert up_to_answer(cut(text), gsm8k.FORM) == ("Two.\n#### 2", False)
    assert up_to_answer(cut("Two.\n#### 2"), gsm8k.FORM) == ("Two.\n#### 2", True)
    assert up_to_answer(cut(""), math.FORM) == ("", True)


def test_solutions_of_the_synthetic_world_are_judged_step_by_step() -> None:
    settings = settings_of(DataConfig(retry_rate=0.5), "validation", 0)
    pair = next(pair for pair in pairs(settings, 20) if "[BACK]" in pair.document.turns[1].text)
    right = pair.document.turns[1].text
    assert f"[ANSWER] {pair.problem.answer}" in right
    solution, answer = right.split("[ANSWER]")
    other = (int(answer) + 1) % NANO.modulus
    found = marks(
        "igsm",
        pair.problem,
        [
            ended(right),
            ended(f"{solution}[ANSWER] {other}"),
            ended(solution),
            ended("I do not know."),
            cut(right),
            cut(f"{right} Define"),
            ended(f"{right} Define"),
        ],
        modulus=NANO.modulus,
    )
    assert [mark.grade for mark in found] == [
        Grade.RIGHT,
        Grade.WRONG,
        Grade.WRONG,
        Grade.UNPARSABLE,
        Grade.TRUNCATED,
        Grade.RIGHT,
        Grade.WRONG,
    ]
    assert all(mark.attempt for mark in found)
    assert found[1].attempt
    assert found[1].attempt.strict.outcome == Verdict.ANSWER
    assert str(pair.problem.answer) in found[1].reason
    assert found[0].attempt
    assert found[0].attempt.strict.retries == right.count("[BACK]")


def test_programs_run_where_that_is_allowed() -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def add(a, b):\n    """Add."""\n',
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
    }
    (problem,) = code.humaneval_problems([row])
    with pytest.raises(ConfigError, match=r"testing.allow_untrusted_code is false.*testing.allow_untrusted_code=true"):
        marks("humaneval", problem, [])
    limits = {"cpu_seconds": 1}
    allowed = NaturalEvaluationConfig.model_validate({"allow_untrusted_code": True, "limits": limits})
    found = marks(
        "humaneval",
        problem,
        [
            ended("\n    return a + b"),
            ended("\n    return a - b"),
            ended("\n    return (a"),
            cut("\n    return (a"),
            ended("\n    while True: pass"),
            ended("\n    return c"),
        ],
        allowed,
    )
    assert [mark.grade for mark in found] == [
        Grade.RIGHT,
        Grade.WRONG,
        Grade.UNPARSABLE,
        Grade.TRUNCATED,
        Grade.TIMED_OUT,
        Grade.CRASHED,
    ]
    assert "NameError" in found[-1].reason


def test_what_cannot_be_graded_is_an_error() -> None:
    with pytest.raises(ConfigError, match="the corpus says ''"):
        marks("", None, [])
