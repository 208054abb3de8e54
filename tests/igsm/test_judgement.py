"""What is said of a whole solution, given what is said of its steps."""

import pytest

from peft_study.igsm.verify import Judgement, Verdict

R, U, B = Verdict.RIGHT, Verdict.UNNECESSARY, Verdict.RETRACTED


@pytest.mark.parametrize(
    ("steps", "outcome", "departure", "first_wrong"),
    [
        ((R, R), R, R, None),
        ((B, U, R), R, R, None),
        ((R, B, Verdict.LETTER), Verdict.LETTER, Verdict.LETTER, 2),
        ((R, B, U, Verdict.LETTER), Verdict.LETTER, U, 3),
        ((Verdict.EARLY_STOP,), Verdict.EARLY_STOP, Verdict.EARLY_STOP, 0),
    ],
)
def test_outcome_and_departure(
    steps: tuple[Verdict, ...], outcome: Verdict, departure: Verdict, first_wrong: int | None
) -> None:
    judgement = Judgement(steps, "", 0, 0)
    assert judgement.ok == (first_wrong is None)
    assert (judgement.outcome, judgement.first_departure) == (outcome, departure)
    assert judgement.first_wrong_step == first_wrong


CUTS = [
    ((Verdict.RIGHT, Verdict.UNPARSABLE), (Verdict.RIGHT, Verdict.TRUNCATED)),
    ((Verdict.RIGHT, Verdict.EARLY_STOP), (Verdict.RIGHT, Verdict.TRUNCATED)),
    ((Verdict.RIGHT, Verdict.ANSWER), (Verdict.RIGHT, Verdict.TRUNCATED)),
    ((Verdict.RIGHT, Verdict.RIGHT), (Verdict.RIGHT, Verdict.RIGHT, Verdict.TRUNCATED)),
    ((Verdict.RIGHT, Verdict.NOT_COMPUTABLE), (Verdict.RIGHT, Verdict.NOT_COMPUTABLE)),
    ((Verdict.LOOKUP,), (Verdict.LOOKUP,)),
]


@pytest.mark.parametrize(("steps", "expected"), CUTS)
def test_a_cut_solution_is_truncated_unless_it_was_wrong_before(
    steps: tuple[Verdict, ...], expected: tuple[Verdict, ...]
) -> None:
    judgement = Judgement(steps, "why", 0, 0).cut()
    assert judgement.steps == expected
    assert not judgement.ok
