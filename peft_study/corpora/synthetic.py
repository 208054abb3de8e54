"""Documents of the project's own generator as texts, for any tokenizer.

In the tokens of the family's own tokenizer (igsm/tokenizer.py) a document with its end mark is a window of the stream
without packing, [PAD] aside: the same ids, the same targets and the same decision points.
"""

from typing import NamedTuple, Protocol

from peft_study.corpora.records import Document, Problem, Segment, SegmentKind, Turn
from peft_study.igsm.families import Order, family_named
from peft_study.igsm.mistakes import MistakeKind
from peft_study.igsm.settings import Split, StreamSettings
from peft_study.igsm.stream import Document as Drawn
from peft_study.igsm.stream import draw_document
from peft_study.igsm.text import (
    BACK,
    LEANING_SIGNS,
    Kind,
    Word,
    document_words,
    join,
    problem_words,
    prompt_words,
    solution_words,
)


class StreamChoice(Protocol):
    """What says which stream it is, such as `skills.config.DataConfig`."""

    @property
    def family(self) -> str:
        """Name of the problem family."""
        ...

    @property
    def order(self) -> Order:
        """Problem first, or question first."""
        ...

    @property
    def kind(self) -> MistakeKind:
        """Kind of the mistakes."""
        ...

    @property
    def retry_rate(self) -> float:
        """Probability of a mistake before each sentence."""
        ...


class Pair(NamedTuple):
    """A problem, and the document that is read."""

    problem: Problem
    """Its solution has no mistakes; texts begin with a space, as words do in the paper."""
    document: Document


def settings_of(data: StreamChoice, split: Split, seed: int) -> StreamSettings:
    """Return the settings of a stream."""
    return StreamSettings(
        family=family_named(data.family),
        split=split,
        order=data.order,
        kind=data.kind,
        retry_rate=data.retry_rate,
        seed=seed,
    )


def pairs(settings: StreamSettings, count: int) -> list[Pair]:
    """Return the first `count` documents of a stream with their problems."""
    return [pair(settings, draw_document(settings, i), f"igsm/{settings.split}/{i}") for i in range(count)]


def pair(settings: StreamSettings, drawn: Drawn, identity: str) -> Pair:
    """Return a document of the generator as texts."""
    problem, solution = drawn.problem, drawn.solution
    prompt = prompt_words(problem, settings.order)
    # The words of a document begin without the [END] that stands before its prompt, and end with one.
    words = document_words(problem, solution, drawn.mistakes, settings.order)[len(prompt) - 1 : -1]
    turns = Turn("user", (Segment(join(prompt), "prompt"),)), Turn("assistant", tuple(_segments(words)))
    question = join(problem_words(problem, settings.order))
    clean = join([word.text for word in solution_words(problem, solution, [])])
    return Pair(Problem(identity, question, clean, str(solution.answer)), Document(identity, turns))


_ENDS: dict[Kind, SegmentKind] = {Kind.AS: "step", Kind.MISTAKE_AS: "mistake", Kind.MISTAKE_AS_RIGHT: "detour"}
"""What is decided at its last word, the `as`."""


def _segments(words: list[Word]) -> list[Segment]:
    """Return the words of a solution in segments: `Define X as`, which is judged, and what stands between."""
    segments: list[Segment] = []
    waiting = ""

    def end(kind: SegmentKind) -> None:
        nonlocal waiting
        if waiting:
            segments.append(Segment(waiting, kind))
        waiting = ""

    for i, (text, kind) in enumerate(words):
        if kind in (Kind.DEFINE, Kind.MISTAKE_DEFINE):
            end("retraction" if i and words[i - 2].text == BACK else "text")
        waiting += text if text in LEANING_SIGNS else f" {text}"
        if kind in _ENDS:
            end(_ENDS[kind])
    end("text")
    return segments
