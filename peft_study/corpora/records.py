"""What corpora hold: problems with reference solutions, documents cut into segments, and how an answer was graded."""

from enum import StrEnum
from typing import Literal, NamedTuple


class Grade(StrEnum):
    """What became of an answer. Only `right` counts as solved; the others are reported apart from each other."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    """No answer could be read from what was written."""
    TRUNCATED = "truncated"
    """The model was stopped before it had ended."""
    TIMED_OUT = "timed_out"
    """A program ran past its limit of time."""
    CRASHED = "crashed"
    """A program ended with an error, or was ended for breaking a limit."""


class Problem(NamedTuple):
    """A problem with its reference solution."""

    id: str
    """Unique, such as `gsm8k/test/17`."""
    question: str
    solution: str
    """The reference solution as a model should write it."""
    answer: str
    """The final answer alone; empty where only tests decide, as for programs."""


SegmentKind = Literal["prompt", "step", "mistake", "detour", "retraction", "text"]
"""`prompt`: given, never learned; `step`: right; `mistake`: put in, or the model's own; `detour`: put in like one, but
right where it stands; `retraction`: takes either back; `text`: anything else, learned and not judged."""


class Segment(NamedTuple):
    """A piece of a text."""

    text: str
    kind: SegmentKind


class Turn(NamedTuple):
    """What one side says; the segments' texts, joined, are its text."""

    role: Literal["system", "user", "assistant"]
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(segment.text for segment in self.segments)


class Document(NamedTuple):
    """What is trained on: turns of a conversation; without a chat template, their texts one after another."""

    id: str
    turns: tuple[Turn, ...]
