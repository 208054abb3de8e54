"""Numbers of a step changed: by a slip, or because an earlier number has changed."""

import re
from collections.abc import Sequence
from fractions import Fraction
from random import Random

from peft_study.corpora.arithmetic import Number, written
from peft_study.corpora.steps import Form, equations_of

_STATED = re.compile(r"=(?!\s*\$?\s*<<)")
"""Signs of equations, less those before a note for the calculator, which says the same."""


def slip(number: Number, rng: Random) -> Fraction:
    """Return another value above zero, with as many decimals: near, with a digit wrong, or two in the wrong order."""
    unit = Fraction(1) if number.value.denominator == 1 else number.unit
    whole = int(number.value / unit)
    digits = list(str(whole))
    i = rng.randrange(len(digits))
    wrong_digit = [*digits[:i], str(rng.randrange(10)), *digits[i + 1 :]]
    swapped = [*digits[:i], *reversed(digits[i : i + 2]), *digits[i + 2 :]]
    near = {whole + step for step in ((-10, -1, 1, 10) if whole > 20 else (-1, 1, 2))}
    values = near | {int("".join(wrong_digit)), int("".join(swapped))}
    return rng.choice(sorted(value for value in values if value > 0 and value != whole)) * unit


def unused_values(question: str, steps: Sequence[str], form: Form) -> list[Fraction]:
    """Return the numbers of a question, other than 0, that none of some steps has, in order of size."""
    used = {number.value for step in steps for number in form.numbers(step)}
    used |= {number.value for step in steps for equation in equations_of(step, form) for number in equation.left}
    return sorted({number.value for number in form.numbers(question)} - used - {0})


def with_result(step: str, number: Number, value: Fraction, form: Form) -> str:
    """Return a step with another value for a number, wherever it says that number without computing with it."""
    operands = {operand.start for equation in equations_of(step, form) for operand in equation.left}
    again = [other for other in form.numbers(step) if other.value == number.value and other.start not in operands]
    for changed in sorted({number, *again}, reverse=True):
        text = written(value, changed)
        assert text
        step = step[: changed.start] + text + step[changed.end :]
    return step


def carry(step: str, changed: dict[Fraction, Fraction], form: Form) -> str | None:
    """Return a step with values replaced as `changed` says, and the results of its equations made right again.

    Results that come out otherwise are added to `changed`, so that further steps go on with them. None where that
    cannot be done: an equation is not read, a result was rounded, or would be negative or have more decimals.
    Where a corpus has no plain arithmetic, values are replaced and nothing is computed.
    """
    found = equations_of(step, form)
    parts = {number.start: number for number in form.numbers(step)}
    parts |= {number.start: number for equation in found for number in (*equation.left, equation.right)}
    unread = form.equations is not None and len(_STATED.findall(step)) != len(found)
    if unread and any(part.value in changed for part in parts.values()):
        return None
    values: dict[int, Fraction] = {}
    for equation in found:
        values |= {operand.start: changed.get(operand.value, operand.value) for operand in equation.left}
        right, value = equation.right, equation.value_with(changed)
        values[right.start] = right.value
        if value != equation.value:
            if value is None or equation.sign * right.value != equation.value:
                return None
            values[right.start] = changed[right.value] = value
    pieces, place = [], 0
    # A result can also be told before it is computed: `They have 12 left because 27 - 15 = 12`.
    for start, number in sorted(parts.items()):
        value = values.get(start, changed.get(number.value, number.value))
        text = number.text if value == number.value else written(value, number)
        if text is None:
            return None
        pieces += [step[place:start], text]
        place = number.end
    return "".join(pieces) + step[place:]
