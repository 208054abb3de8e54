"""Test sets are known by their questions: where they stand, and where they do not."""

import os
from pathlib import Path

import pytest

from peft_study.corpora import code, gsm8k, leaks
from peft_study.corpora.leaks import fingerprint, leak_in, lines, questions

JANET = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends "
    "every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. How much in "
    "dollars does she make every day at the farmers' market?"
)
"""The first question of GSM8K's test split."""


def data() -> Path:
    folder = os.environ.get("PEFT_STUDY_DATA")
    if not folder:
        pytest.skip("PEFT_STUDY_DATA is unset: no test sets")
    return Path(folder)


def test_a_question_is_found_where_it_stands() -> None:
    assert leak_in(JANET) == "gsm8k"
    assert leak_in(f"Question: {JANET.upper()}\n\nAnswer: 18") == "gsm8k"
    assert leak_in(JANET.replace(" ", "\n  ")) == "gsm8k"


def test_another_question_is_not_found() -> None:
    assert leak_in(JANET.replace("16", "17")) == ""
    assert leak_in(JANET[: len(JANET) // 2]) == ""
    assert leak_in("") == ""


def test_a_short_question_is_found_only_alone() -> None:
    short = r"Simplify $\sqrt{242}$."
    assert fingerprint("a", short).tokens < 16
    assert leak_in(f" {short}\n") == "math500"
    assert leak_in(f"First of all: {short}") == ""
    assert leak_in(f"{short}\nPut the answer into a box.") == "math500"
    # The signs count, of which some problems have nothing else.
    assert leak_in("Evaluate $(1+2i)6-3i$.") == "math500"
    assert leak_in("Evaluate $(1-2i)6+3i$.") == ""


def test_the_file_is_made_of_the_published_sets() -> None:
    assert leaks.FILE.read_text().splitlines() == lines(data())


def test_programs_are_found_as_they_are_published() -> None:
    for prompts in (code.humaneval(data() / "humaneval"), code.mbpp_plus(data() / "mbpp")):
        assert [problem.id for problem in prompts if not leak_in(problem.prompt)] == []


def test_every_question_is_found_and_no_training_problem_is() -> None:
    asked = list(questions(data()))
    assert len(asked) == 1319 + 500 + 164 + 378
    assert [leak_in(question) for _, question in asked] == [name for name, _ in asked]
    training = gsm8k.load(data() / "gsm8k", "train")
    assert [problem.id for problem in training if leak_in(problem.question) or leak_in(problem.solution)] == []
