"""What corpora hold: problems with reference solutions, and documents cut into segments."""

from typing import Literal, NamedTuple


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
