"""A model's own solutions, graded, and made into data for both skills.

What can be told of a wrong solution:

- that it is wrong, from the grade;
- its first wrong step, where an equation in it is false beyond any rounding (`arithmetic.py`). That step is wrong for
  certain. It is the first with false arithmetic: a wrong choice before it, computed without a fault, cannot be seen,
  nor can values be held against the reference's, since another way to the answer has others. Else it cannot be told.

In the reference solutions of GSM8K 16 lines of 40,337 are called wrong, and all 16 are: slips of the pen that the
answer does not depend on, such as `192*100=$1920`. MATH has no plain arithmetic: there, no step can be told.
"""

from typing import NamedTuple, Protocol

from peft_study.corpora.records import Document, Problem, Segment
from peft_study.corpora.steps import Form, conversation, equations_of, split_lead
from peft_study.records import Grade


class Grader(Protocol):
    """Grades a text, such as `gsm8k.grade` or `MathGrader.grade`."""

    def __call__(self, problem: Problem, text: str, *, truncated: bool = False) -> Grade:
        """Return what became of a text."""
        ...


class Sample(NamedTuple):
    """A solution that a model wrote."""

    problem: Problem
    text: str
    truncated: bool = False
    """Whether the model was stopped before it had ended."""


class Judged(NamedTuple):
    """A sample with what can be told of it."""

    sample: Sample
    grade: Grade
    first_wrong: int | None
    """The first step that is wrong for certain; None where that cannot be told."""


def first_wrong_step(text: str, form: Form) -> int | None:
    """Return the first step with a false equation; None where none can be told to be wrong."""
    steps = enumerate(form.cut(text))
    return next((i for i, step in steps if any(equation.false for equation in equations_of(step, form))), None)


def judge(sample: Sample, form: Form, grade: Grader) -> Judged:
    """Return a sample with its grade and its first wrong step."""
    graded = grade(sample.problem, sample.text, truncated=sample.truncated)
    return Judged(sample, graded, first_wrong_step(sample.text, form))


def document(judged: Judged, form: Form, retraction: str) -> Document | None:
    """Return the document that both skills read; None where the grade is neither right nor wrong, or not to be trusted.

    A right solution is its steps up to the answer, taken to be right because the answer is. It is not used where that
    is known to fail: an equation is false (the answer is right by luck), something is taken back, or an answer that
    is not the last is given.
    A wrong one goes up to its first wrong step, the mistake, if until then it has computed what the reference has; the
    retraction follows, and the reference from there. Otherwise the whole attempt is one mistake, since it is wrong at
    its end, whatever its steps are; behind the retraction the reference begins anew. An empty `retraction` ends the
    document with the mistake, which is for detection alone.
    """
    (problem, text, _), grade, first = judged
    own = [split_lead(step) for step in form.cut(text.strip())]
    if grade == Grade.RIGHT and first is None:
        answers = [i for i, (_, body) in enumerate(own) if form.is_answer(body)]
        if len(answers) > 1 or (retraction and retraction in text):
            return None
        # What a model goes on with belongs to no solution.
        own = own[: answers[0] + 1] if answers else own
        return conversation(problem, [Segment(lead + body, "step") for lead, body in own])
    if grade != Grade.WRONG:
        return None
    reference = [split_lead(step) for step in form.cut(problem.solution)]
    if first is not None and _results(own[:first], form) == _results(reference[:first], form):
        segments = [Segment(lead + body, "step") for lead, body in own[:first]]
        segments.append(Segment("".join(own[first]), "mistake"))
    else:
        first, segments = 0, [Segment(text.strip(), "mistake")]
    if retraction:
        segments.append(Segment(form.lead + retraction, "retraction"))
        segments += [Segment((lead or form.lead) + body, "step") for lead, body in reference[first:]]
    return conversation(problem, segments)


def _results(steps: list[tuple[str, str]], form: Form) -> list[object]:
    """Return what each step computes; a step of which that cannot be read is like no other."""
    found = [equations_of(body, form) for _, body in steps]
    return [(equations[-1].sign * equations[-1].right.value) if equations else object() for equations in found]
