"""Numbers of a step changed: another value of the same form, and what follows from it."""

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.corpora import gsm8k, math
from peft_study.corpora.arithmetic import Number, numbers
from peft_study.corpora.changes import carry, slip, unused_values, with_result


@given(text=st.from_regex(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,3})?", fullmatch=True), seed=st.integers(0, 1000))
def test_a_slip_is_another_value_of_the_same_form(text: str, seed: int) -> None:
    number = Number(0, len(text), text)
    value = slip(number, Random(seed))
    assert value != number.value
    assert value > 0
    assert (value / number.unit).denominator == 1
    assert value == slip(number, Random(seed))


def test_a_result_is_changed_wherever_it_is_said_but_not_where_it_is_computed_with() -> None:
    step = "He spends $5 because 10 x .5 = 5, and 5 is not 15."
    number = next(n for n in numbers(step) if n.start > 25 and n.text == "5")
    assert with_result(step, number, Fraction(6), gsm8k.FORM) == "He spends $6 because 10 x .5 = 6, and 6 is not 15."
    step = "so 5 + 0 = 5"
    assert with_result(step, numbers(step)[-1], Fraction(6), gsm8k.FORM) == "so 5 + 0 = 6"


@pytest.mark.parametrize(
    ("step", "changed", "expected", "results"),
    [
        ("So 48 + 24 = 72 clips.", {24: 26}, "So 48 + 26 = 74 clips.", {24: 26, 72: 74}),
        # A result that is told before, and one that is computed on.
        ("She has 12 because 27 - 15 = 12.", {15: 3}, "She has 24 because 27 - 3 = 24.", {15: 3, 12: 24}),
        ("so 6 - 2 = 4, then 4 + 2 = 6", {2: 3}, "so 6 - 3 = 3, then 3 + 3 = 6", {2: 3, 4: 3}),
        ("48/2 = <<48/2=24>>24 clips", {2: 3}, "48/3 = <<48/3=16>>16 clips", {2: 3, 24: 16}),
        ("Nothing of that.", {2: 3}, "Nothing of that.", {2: 3}),
        ("3 apples + 4 apples = 7 apples", {5: 6}, "3 apples + 4 apples = 7 apples", {5: 6}),
        # What cannot be computed anew: unread, rounded, negative, divided by zero, or with too many decimals.
        ("3 apples + 4 apples = 7 apples", {3: 6}, None, None),
        ("so 10 / 3 = 3", {10: 20}, None, None),
        ("so 10 / 3 = 3", {10: 30}, None, None),
        ("so 10 - 3 = 7", {3: 20}, None, None),
        ("so 10 / 2 = 5", {2: 0}, None, None),
        ("so 10 / 2 = 5", {2: 7}, None, None),
    ],
)
def test_changes_are_carried_on(
    step: str, changed: dict[int, int], expected: str | None, results: dict[int, int] | None
) -> None:
    values = {Fraction(old): Fraction(new) for old, new in changed.items()}
    assert carry(step, values, gsm8k.FORM) == expected
    if results:
        assert values == results


def test_without_plain_arithmetic_values_are_replaced_and_nothing_is_computed() -> None:
    assert carry("$x^2 = 3 + 4$", {Fraction(3): Fraction(9)}, math.FORM) == "$x^2 = 9 + 4$"


def test_unused_values_are_those_of_the_question_alone() -> None:
    question = "Of 48 friends and 5 others, 1,200 or 0 came."
    assert unused_values(question, ["so 48/2 = 24", "24 x3"], gsm8k.FORM) == [5, 1200]
