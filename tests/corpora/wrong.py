"""Wrong solutions, which graders must tell from right ones: one mistake that nobody takes back, carried to the end."""

from fractions import Fraction
from random import Random
from typing import Literal

from peft_study.corpora.arithmetic import Equation
from peft_study.corpora.changes import carry, slip, unused_values, with_result
from peft_study.corpora.records import Document, Problem, Segment
from peft_study.corpora.steps import Form, conversation, equations_of, split_lead


def wrong_solution(problem: Problem, kind: Literal["number", "miss"], rng: Random, form: Form) -> Document | None:
    """Return a document whose solution makes one mistake, goes on with what comes of it and is graded wrong.

    The mistake is one of `mistakes.py`; the steps behind it are right but for what they start from, and those that it
    changes are mistakes too. Where no step leads to another answer so, `number` changes the answer alone, if that is a
    number; None where that cannot be done either.
    """
    steps = [split_lead(step) for step in form.cut(problem.solution)]
    bodies = [body for _, body in steps]
    places = ((at, equation) for at, body in enumerate(bodies) for equation in equations_of(body, form)[-1:])
    for at, equation in _shuffled(list(places), rng):
        if changed := _from(problem, bodies, at, equation, kind, rng, form):
            break
    else:
        changed = _other_answer(problem, bodies, rng, form) if kind == "number" else None
    if not changed:
        return None
    segments = [
        Segment(lead + new, "step" if new == body else "mistake")
        for (lead, body), new in zip(steps, changed, strict=True)
    ]
    return conversation(problem, segments)


def _shuffled(places: list[tuple[int, Equation]], rng: Random) -> list[tuple[int, Equation]]:
    return rng.sample(places, len(places))


def _from(
    problem: Problem, bodies: list[str], at: int, equation: Equation, kind: str, rng: Random, form: Form
) -> list[str] | None:
    """Return the steps with a mistake in step `at`; None where it does not lead to another answer of the same form."""
    changed: dict[Fraction, Fraction] = {}
    if kind == "number":
        if equation.sign * equation.right.value != equation.value:
            return None
        changed[equation.right.value] = slip(equation.right, rng)
        wrong = with_result(bodies[at], equation.right, changed[equation.right.value], form)
        if not any(other.false for other in equations_of(wrong, form)):
            return None
    else:
        unused = unused_values(problem.question, bodies[: at + 1], form)
        if not unused:
            return None
        operand = rng.choice(equation.left).value
        changed[operand] = rng.choice(unused)
        wrong = carry(bodies[at], changed, form)
        del changed[operand]
    # A value that was there before means something else as well, and that has not changed.
    before = {number.value for text in (problem.question, *bodies[:at]) for number in form.numbers(text)}
    if wrong is None or not changed or not before.isdisjoint(changed):
        return None
    after = []
    for body in bodies[at + 1 :]:
        if (new := carry(body, changed, form)) is None:
            return None
        after.append(new)
    answers = [(body, new) for body, new in zip(bodies[at + 1 :], after, strict=True) if form.is_answer(body)]
    if not answers or any(body == new or ("." in new) != ("." in body) for body, new in answers):
        return None
    return [*bodies[:at], wrong, *after]


def _other_answer(problem: Problem, bodies: list[str], rng: Random, form: Form) -> list[str] | None:
    """Return the steps with another number for the answer; None where it is no number."""
    at = max((i for i, body in enumerate(bodies) if form.is_answer(body)), default=None)
    if at is None:
        return None
    answer = problem.answer.removeprefix("-").removeprefix("\\$")
    number = next(
        (number for number in reversed(form.numbers(bodies[at])) if number.text.replace(",", "") == answer), None
    )
    if number is None:
        return None
    return [*bodies[:at], with_result(bodies[at], number, slip(number, rng), form), *bodies[at + 1 :]]
