"""What is common to solutions in steps, whatever the corpus: how they are cut, and the turns that they become.

A step is what stands before it on the page (its lead: a newline, a space) and its body, so that the end of a segment is
the end of its body: a right step and a mistake cannot be told apart by the white space that follows.
"""

from collections.abc import Callable
from typing import NamedTuple

from peft_study.corpora.arithmetic import Equation, Number
from peft_study.corpora.records import Document, Problem, Segment, Turn


class Form(NamedTuple):
    """How the solutions of a corpus are written."""

    cut: Callable[[str], list[str]]
    """Cuts a solution into steps, which give it back when joined."""
    is_answer: Callable[[str], bool]
    """Whether a step gives the final answer."""
    is_usable: Callable[[str], bool]
    """Whether a step can be put in where it does not belong: no final answer, and no figure."""
    lead: str
    """What stands between two steps where the text itself does not say."""
    numbers: Callable[[str], list[Number]]
    """The numbers of a step that can be changed so that it is still a text of its kind."""
    equations: Callable[[str], list[Equation]] | None
    """The equations of a step that can be checked; None where the corpus has no plain arithmetic."""


def split_lead(step: str) -> tuple[str, str]:
    """Return the lead and the body of a step.

    >>> split_lead("\\n\\nSo 2 are left.")
    ('\\n\\n', 'So 2 are left.')
    """
    body = step.strip()
    return step[: len(step) - len(step.lstrip())], body


def equations_of(step: str, form: Form) -> list[Equation]:
    """Return the equations of a step that can be checked, in order."""
    return form.equations(step) if form.equations else []


def same(a: str, b: str) -> bool:
    """Return whether two steps say the same but for white space."""
    return a.split() == b.split()


def conversation(problem: Problem, segments: list[Segment]) -> Document:
    """Return the document of a problem and what is written to it.

    The question ends with a newline, which parts it from the solution where there is no chat template.
    """
    asked = Turn("user", (Segment(f"{problem.question}\n", "prompt"),))
    return Document(problem.id, (asked, Turn("assistant", tuple(segments))))
