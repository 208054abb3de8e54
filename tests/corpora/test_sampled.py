"""A model's own solutions: graded, the first false step found and never invented, and documents for both skills."""

import os
from pathlib import Path

import pytest

from peft_study.corpora import gsm8k, math
from peft_study.corpora.records import Document, Problem
from peft_study.corpora.sampled import Judged, Sample, document, first_wrong_step, judge
from peft_study.records import Grade
from tests.corpora.reading import labels

CLIPS = Problem(
    "gsm8k/test/0",
    "Of 48 friends and 9 cousins, half came. How many in all?",
    "So 48/2 = 24 friends came.\nSo 24+9 = 33 came in all.\n#### 33",
    "33",
)


def judged(text: str, *, truncated: bool = False) -> Judged:
    return judge(Sample(CLIPS, text, truncated), gsm8k.FORM, gsm8k.grade)


def made(text: str, retraction: str = "No.", *, truncated: bool = False) -> Document | None:
    return document(judged(text, truncated=truncated), gsm8k.FORM, retraction)


@pytest.mark.parametrize(
    ("text", "truncated", "grade", "first"),
    [
        (CLIPS.solution, False, Grade.RIGHT, None),
        ("So 48/2 = 24.\nSo 24+9 = 34.\n#### 34", False, Grade.WRONG, 1),
        ("So 48/2 = 23.\nSo 23+9 = 33.\n#### 33", False, Grade.RIGHT, 0),
        # A wrong choice cannot be told from another way to the answer.
        ("So 48-9 = 39.\n#### 39", False, Grade.WRONG, None),
        ("So 48/2 = 23", True, Grade.TRUNCATED, 0),
        ("I do not know.", False, Grade.UNPARSABLE, None),
    ],
)
def test_what_can_be_told_is_told(text: str, truncated: bool, grade: Grade, first: int | None) -> None:
    assert judged(text, truncated=truncated)[1:] == (grade, first)


def test_a_right_solution_is_its_own_steps() -> None:
    text = "\nHalf of them, so 48/2 = 24 came.\n\nIn all 24+9 = 33 did.\n#### 33\n"
    found = made(text)
    assert found
    assert found.turns[1].text == text.strip()
    assert labels(found) == [False, False, False]
    # What is behind the answer is none of it.
    rambling = made(f"{CLIPS.solution}\n\nQuestion: How many apples?\nThere are 6.")
    assert rambling
    assert rambling.turns[1].text == CLIPS.solution


@pytest.mark.parametrize(
    "text",
    [
        "So 48/2 = 23.\nSo 23+9 = 33.\n#### 33",  # right by luck
        "So 24+9 = 33.\n#### 24\nOr rather:\n#### 33",  # a wrong answer before the right one
        "So 48+9 = 57.\nNo.\nSo 24+9 = 33.\n#### 33",  # the model's own mistake, taken back
    ],
)
def test_a_right_answer_with_a_wrong_step_is_not_learned_from(text: str) -> None:
    assert judged(text).grade == Grade.RIGHT
    assert made(text) is None


def test_a_wrong_step_is_taken_back_and_the_reference_goes_on() -> None:
    found = made("Half is 48/2 = 24.\nThen 24+9 = 34.\n#### 34")
    assert found
    assert [(segment.text, segment.kind) for segment in found.turns[1].segments] == [
        ("Half is 48/2 = 24.", "step"),
        ("\nThen 24+9 = 34.", "mistake"),
        ("\nNo.", "retraction"),
        ("\nSo 24+9 = 33 came in all.", "step"),
        ("\n#### 33", "step"),
    ]
    assert labels(found) == [False, True, False, False]
    assert gsm8k.grade(CLIPS, found.turns[1].text) == Grade.RIGHT
    detection = made("Half is 48/2 = 24.\nThen 24+9 = 34.\n#### 34", "")
    assert detection
    assert detection.turns[1].text == "Half is 48/2 = 24.\nThen 24+9 = 34."
    assert labels(detection) == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "So 48-9 = 39.\n#### 39",  # no step can be told
        "So 48+9 = 57.\nSo 57/2 = 28.\nSo 28+9 = 38.\n#### 38",  # other values than the reference's before it
        "They are 48 apart.\nSo 24+9 = 34.\n#### 34",  # a step before it that says nothing
    ],
)
def test_where_the_mistake_cannot_be_told_the_attempt_is_one(text: str) -> None:
    found = made(text)
    assert found
    assert [(segment.text, segment.kind) for segment in found.turns[1].segments] == [
        (text, "mistake"),
        ("\nNo.", "retraction"),
        ("\nSo 48/2 = 24 friends came.", "step"),
        ("\nSo 24+9 = 33 came in all.", "step"),
        ("\n#### 33", "step"),
    ]
    assert gsm8k.grade(CLIPS, found.turns[1].text) == Grade.RIGHT


@pytest.mark.parametrize(("text", "truncated"), [("I do not know.", False), ("So 48/2", True), ("", False)])
def test_what_has_no_answer_is_not_learned_from(text: str, truncated: bool) -> None:
    assert made(text, truncated=truncated) is None


def test_no_step_of_mathematics_in_latex_is_called_wrong() -> None:
    assert first_wrong_step("We have $2+2=5.$ So 2 + 2 = 5.", math.FORM) is None


FALSE_IN_THE_REFERENCE = {
    "train": {
        167: "192*100=$1920",
        168: "6*2.5 = $18.00",
        3002: "8*3 = 240",
        3334: "$4200+$3000 = $8600",
        3409: "10 x .5 = 10",
        4691: "2*8 = 24",
        4973: "200*.55=100",
        5781: "7+9+1+2 = $19.50",
        6157: "70 + 40 = 100",
        6256: "10 x 1,248 = 11,480",
        6700: "2 / 12 = .125",
        6760: "4+4+6 = 18",
        6812: "50-8 = 44",
        7178: "1152/ 1,536 = .5",
        7444: "14*20=140",
    },
    "test": {1024: "$32 - $20 = $300"},
}
"""Rows of GSM8K with an equation that is false as it stands there; their answers do not depend on it."""


@pytest.mark.parametrize("split", FALSE_IN_THE_REFERENCE)
def test_no_right_step_of_a_reference_is_called_wrong(split: str) -> None:
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        pytest.skip("PEFT_STUDY_DATA is unset: no GSM8K")
    problems = gsm8k.load(Path(data) / "gsm8k", split)
    found = {i: at for i, p in enumerate(problems) if (at := first_wrong_step(p.solution, gsm8k.FORM)) is not None}
    assert found.keys() == FALSE_IN_THE_REFERENCE[split].keys()
    for i, at in found.items():
        assert FALSE_IN_THE_REFERENCE[split][i] in gsm8k.cut(problems[i].solution)[at]
