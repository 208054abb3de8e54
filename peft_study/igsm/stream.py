"""The stream: documents and packed windows of token ids, each a pure function of (seed, split, index).

Document `i` of a seed has the same problem whatever its mistakes are, and does not depend on the documents
before it, so a stream resumes from an index and two skills read the same sequences.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from peft_study.errors import DataError
from peft_study.igsm.families import FamilySettings, Order
from peft_study.igsm.mistakes import Mistake, draw_mistakes
from peft_study.igsm.problem import MAX_DRAWS, Problem, draw_problem
from peft_study.igsm.solution import Solution, solve
from peft_study.igsm.text import END, Kind, document_words, question_words, sentence_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.rng import python_stream

Split = Literal["train", "validation", "test"]

SPLIT_BINS: dict[str, range] = {"train": range(17), "validation": range(17, 20), "test": range(20, 23)}
"""Bins of the problem's hash modulo 23: training as in Part 2.1, Remark D.7, the rest halved."""


class StreamSettings(BaseModel):
    """Which documents a stream gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: FamilySettings
    split: Split = "train"
    order: Order = "pq"
    ops: tuple[int, ...] = ()
    """Operation counts to draw from, uniformly; empty for 1 to the family's `op_max` by its own law."""
    retry_rate: float = Field(default=0.0, ge=0, lt=1)
    """Probability of a mistake before each solution sentence, repeated geometrically; 0 for clean data."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """One problem with its solution and mistakes."""

    problem: Problem
    solution: Solution
    mistakes: list[Mistake]


def split_of(problem: Problem) -> str:
    """Return the split that `problem` belongs to: by the hash of its sentences, whatever their order."""
    sentences = sorted(" ".join(sentence_words(problem, parameter)) for parameter in problem.formulas)
    text = "|".join([*sentences, " ".join(question_words(problem))])
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 23
    return next(split for split, bins in SPLIT_BINS.items() if number in bins)


def draw_document(settings: StreamSettings, index: int) -> Document:
    """Return document `index` of the stream."""
    family = settings.family
    rng = python_stream(settings.seed, "problem", settings.split, index)
    ops = settings.ops or range(1, family.op_max + 1)
    [op] = rng.choices(ops, None if settings.ops else [family.op_ratio**op for op in ops])
    for _ in range(MAX_DRAWS):
        problem = draw_problem(rng, family, op)
        if split_of(problem) == settings.split:
            break
    else:
        raise DataError(
            f"family {family.name!r} makes no {settings.split} problem with op={op} in {MAX_DRAWS} draws; "
            "choose another op or split"
        )
    solution = solve(problem, rng)
    mistakes = draw_mistakes(
        python_stream(settings.seed, "mistakes", settings.split, index), problem, settings.retry_rate
    )
    return Document(problem, solution, mistakes)


class Tokens(NamedTuple):
    """Token ids and the kind of each."""

    ids: NDArray[np.uint16]
    kinds: NDArray[np.uint8]


def document_tokens(settings: StreamSettings, document: Document) -> Tokens:
    """Return `document` as token ids and kinds, both of shape [length]."""
    ids = word_ids(settings.family)
    words = document_words(document.problem, document.solution, document.mistakes, settings.order)
    return Tokens(
        np.array([ids[word.text] for word in words], np.uint16),
        np.array([word.kind for word in words], np.uint8),
    )


@lru_cache(maxsize=2**15)
def _tokens_at(settings: StreamSettings, index: int) -> Tokens:
    """Return document `index`.

    The trials of a sweep read the same documents: what a process has drawn for one it keeps for the next.
    """
    return document_tokens(settings, draw_document(settings, index))


class WindowStream:
    """Packed training windows: [END], then whole documents one after another, the last one cut on the right."""

    def __init__(self, settings: StreamSettings, *, length: int | None = None, next_index: int = 0) -> None:
        self.settings = settings
        self.length = length or settings.family.max_tokens
        """Tokens of a window."""
        self.next_index = next_index
        """The document the next window starts with: the whole state of the stream."""

    def read(self, num_windows: int) -> Tokens:
        """Return the next windows, both arrays of shape [num_windows, length]."""
        ids = np.empty((num_windows, self.length), np.uint16)
        kinds = np.empty((num_windows, self.length), np.uint8)
        end = word_ids(self.settings.family)[END]
        for row in range(num_windows):
            ids[row, 0], kinds[row, 0] = end, Kind.PROBLEM
            filled = 1
            while filled < self.length:
                tokens = _tokens_at(self.settings, self.next_index)  # pyright: ignore[reportArgumentType]  # hashable
                self.next_index += 1
                if len(tokens.ids) >= self.length:
                    continue
                fits = min(len(tokens.ids), self.length - filled)
                ids[row, filled : filled + fits] = tokens.ids[:fits]
                kinds[row, filled : filled + fits] = tokens.kinds[:fits]
                filled += fits
        return Tokens(ids, kinds)
