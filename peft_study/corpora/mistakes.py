"""Mistakes for any solution in steps, made without understanding it, put in and taken back.

Before each step, with probability `retry_rate`, a mistake is put in, with a retraction behind it; then again with the
same probability, so the count is geometric, as in iGSM (`igsm/mistakes.py`). Where a kind has nothing to draw from, no
mistake is made. What is known of a mistake, whose label is `wrong` whatever the kind:

- `weak`: a later step given too early (Part 2.2: retry_weak, without the right next step). It is true in the end, and
  wrong only in that it comes before what it is computed from. That is so for most, not for all: of GSM8K's possible
  ones (equations read with notes for the calculator) 63 % compute with a result from in between and 15 % only with
  numbers that are known by then; the rest computes with constants, such as 12, or not at all.
- `miss`: the next step with one number replaced by a number of the question that the solution has not used so far, and
  computed anew. The paper's retry_miss draws a parameter of the problem statement that the solution has not reached,
  necessary or not, computable or not. As there, nothing is false but the choice, and that is not proven either.
- `foreign`: a step of another problem. Unrelated to this one, though not false of its own.
- `number`: the next step with another number. Where its last equation can be read, that one becomes false beyond any
  rounding: certainly wrong (63 % of GSM8K's, 90 % with notes for the calculator, none of MATH's). Else the number
  differs from the reference, and no more is known.
- `rewritten`: a step written by a large model (`rewriter.py`): wrong as far as that model can be trusted.

No mistake repeats the right next step, a step before it or another mistake at its place, and none gives a final answer,
so the solution is graded as it was. A mistake begins like the step in whose place it stands and ends where its words
end, as every step does; only what it says tells it apart.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from peft_study.corpora.changes import carry, slip, unused_values, with_result
from peft_study.corpora.records import Document, Problem, Segment
from peft_study.corpora.rewriter import Rewriter
from peft_study.corpora.steps import Form, conversation, equations_of, same, split_lead
from peft_study.errors import ConfigError
from peft_study.rng import python_stream

Kind = Literal["weak", "miss", "foreign", "number", "rewritten"]


class MistakeConfig(BaseModel):
    """Which mistakes are put into solutions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "weak"
    """Kind of the mistakes; the module says what each is."""
    retry_rate: float = Field(default=0.2, ge=0, lt=1)
    """Probability of a mistake before each step, repeated geometrically; 0 for clean solutions."""
    retraction: str = "Wait, that last step is wrong."
    """What takes a mistake back, such as `[BACK]`; empty to let mistakes stand uncommented before the right step."""
    seed: int = 0

    @field_validator("retraction")
    @classmethod
    def _says_nothing_else(cls, text: str) -> str:
        if text != text.strip() or any(mark in text.lower() for mark in ("####", "boxed", "answer is", "answer:")):
            raise ConfigError(
                f"retraction must have no white space around it and no mark of an answer, but is {text!r}; leave it out"
            )
        return text


class Place(NamedTuple):
    """A place for a mistake: before step `at` of a solution."""

    problem: Problem
    bodies: list[str]
    at: int
    tried: tuple[str, ...]
    """Mistakes that stand there already."""
    rng: Random


Draw = Callable[[Place], str | None]
"""Gives the body of a mistake; None where there is none."""


def documents(
    problems: Sequence[Problem],
    config: MistakeConfig,
    form: Form,
    rewriter: Rewriter | None = None,
    *,
    threads: int = 1,
) -> Iterator[Document]:
    """Yield each problem's document with mistakes; both skills read it, detection with `steps.labels`.

    A document depends on the seed, the problem and, for `foreign`, on which problems there are, not on their order.
    Problems must be of one split, or steps of one get into the other. With a rewriter, `threads` documents are made at
    once.
    """
    if (config.kind == "rewritten") != (rewriter is not None):
        raise ConfigError(
            f"kind {config.kind} and rewriter {rewriter!r}: give a rewriter for `rewritten`, and only there"
        )
    draw = _drawer(problems, config.kind, form, rewriter)

    def make(problem: Problem) -> Document:
        return with_mistakes(problem, config, form, draw)

    if threads == 1:
        yield from map(make, problems)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(make, problems)


def with_mistakes(problem: Problem, config: MistakeConfig, form: Form, draw: Draw) -> Document:
    """Return the document of one problem with mistakes that `draw` gives."""
    rng = python_stream(config.seed, "mistakes", config.kind, problem.id)
    steps = [split_lead(step) for step in form.cut(problem.solution)]
    bodies = [body for _, body in steps]
    segments = []
    for at, (lead, body) in enumerate(steps):
        tried: tuple[str, ...] = ()
        while rng.random() < config.retry_rate:
            mistake = draw(Place(problem, bodies, at, tried, rng))
            if mistake is None:
                break
            tried = (*tried, mistake)
            segments.append(Segment(lead + mistake, "mistake"))
            # The first step, and one behind a display, have no lead of their own to be told apart by.
            lead = lead or form.lead
            if config.retraction:
                segments.append(Segment(lead + config.retraction, "retraction"))
        segments.append(Segment(lead + body, "step"))
    return conversation(problem, segments)


# ---- the kinds


def _drawer(problems: Sequence[Problem], kind: Kind, form: Form, rewriter: Rewriter | None) -> Draw:
    """Return what draws mistakes of a kind."""
    if kind == "weak":
        return lambda place: _weak(place, form)
    if kind == "miss":
        return lambda place: _miss(place, form)
    if kind == "number":
        return lambda place: _number(place, form)
    if rewriter is not None:
        return lambda place: _rewritten(place, form, rewriter)
    # Sorted, since the order of the problems must not count.
    by_id = sorted(problems, key=lambda problem: problem.id)
    pool = [[split_lead(step)[1] for step in form.cut(problem.solution)] for problem in by_id]
    return lambda place: _foreign(place, form, pool)


TRIES = 20
"""Draws of a mistake before its place is left without one."""


def _new(place: Place, body: str, among: Sequence[str]) -> bool:
    return not any(same(body, other) for other in (*among, *place.tried))


def _weak(place: Place, form: Form) -> str | None:
    before = place.bodies[: place.at + 1]
    pool = [body for body in place.bodies[place.at + 1 :] if form.is_usable(body) and _new(place, body, before)]
    return place.rng.choice(pool) if pool else None


def _foreign(place: Place, form: Form, pool: list[list[str]]) -> str | None:
    for _ in range(TRIES):
        body = place.rng.choice(place.rng.choice(pool))
        # Its own steps are not new.
        if form.is_usable(body) and _new(place, body, place.bodies):
            return body
    return None


def _number(place: Place, form: Form) -> str | None:
    step = place.bodies[place.at]
    if not form.is_usable(step):
        return None
    found = equations_of(step, form)
    pool = [found[-1].right] if found else form.numbers(step)
    for _ in range(TRIES if pool else 0):
        number = place.rng.choice(pool)
        body = with_result(step, number, slip(number, place.rng), form)
        if _new(place, body, place.bodies) and (not found or any(eq.false for eq in equations_of(body, form))):
            return body
    return None


def _miss(place: Place, form: Form) -> str | None:
    step = place.bodies[place.at]
    if not form.is_usable(step):
        return None
    operands = {number.value for equation in equations_of(step, form) for number in equation.left}
    operands = operands or {number.value for number in form.numbers(step)}
    unused = unused_values(place.problem.question, place.bodies[: place.at + 1], form)
    pairs = [(old, new) for old in sorted(operands) for new in unused]
    place.rng.shuffle(pairs)
    for old, new in pairs:
        body = carry(step, {old: new}, form)
        if body is not None and _new(place, body, place.bodies):
            return body
    return None


def _rewritten(place: Place, form: Form, rewriter: Rewriter) -> str | None:
    if not form.is_usable(place.bodies[place.at]):
        return None
    body = rewriter.rewrite(place.problem, place.bodies, place.at, place.rng.getrandbits(62))
    return body if body is not None and _new(place, body, place.bodies) else None
