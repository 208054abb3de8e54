"""The stream: documents and packed windows of token ids, each a pure function of (seed, split, index).

Document `i` of a seed has the same problem whatever its mistakes are, and does not depend on the documents
before it, so a stream resumes from an index and two skills read the same sequences.
"""

import threading
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from peft_study.errors import DataError
from peft_study.igsm.chance import Chance, state_at
from peft_study.igsm.families import FamilySettings
from peft_study.igsm.fast.document import is_possible, write_document
from peft_study.igsm.fast.layout import new_draft
from peft_study.igsm.mistakes import Mistake, draw_mistakes
from peft_study.igsm.problem import MAX_DRAWS, Problem, try_problem
from peft_study.igsm.reask import ask_again, questions
from peft_study.igsm.settings import Split, StreamSettings, op_law
from peft_study.igsm.solution import Solution, check_letters, solve
from peft_study.igsm.splits import split_of
from peft_study.igsm.tables import lexicon, rules
from peft_study.igsm.text import END, PAD, Kind, document_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.rng import derive_seed


@dataclass(frozen=True, slots=True)
class Document:
    """One problem with its solution and mistakes."""

    problem: Problem
    solution: Solution
    mistakes: list[Mistake]


_REASKED_DRAWS = 1_000
_LEFT_OUT = 300
"""Documents in a row that are too long for a window, after which it is taken for too short."""
_FAR = 2**40
"""From an index to that of the problem to take instead."""


@cache
def possible_ops(family: FamilySettings, split: Split) -> frozenset[int]:
    """Return the operation counts of training that `split` has problems of.

    With few operations there are few templates, so that a split by template can be left without any: then the target
    of the official law is drawn again.
    """
    settings = StreamSettings(family=family, split=split, ops=(1,))
    table, words, draft = rules(settings), lexicon(family), new_draft()
    ids, kinds = np.empty(2**12, np.uint16), np.empty(2**12, np.uint8)
    return frozenset(
        op
        for op in range(1, family.op_max + 1)
        if is_possible(np.uint64(derive_seed(0, "possible", op)), table, words, op, draft, ids, kinds)
    )


def official_op(rng: Chance, family: FamilySettings, split: Split) -> int:
    """Draw the target of the official law: the smaller of two uniform draws, again where `split` has no such op."""
    while True:
        op = min(rng.between(1, family.op_max), rng.between(1, family.op_max))
        if op in possible_ops(family, split):
            return op


def _draws(settings: StreamSettings) -> int:
    return MAX_DRAWS["given" if op_law(settings)[0] else "official"]


def _impossible(settings: StreamSettings, op: int) -> DataError:
    return DataError(
        f"family {settings.family.name!r} makes no {settings.split} problem with op={op} in {_draws(settings)} draws; "
        f"choose another op (the family is made for up to {max(settings.family.ood_ops)}), or another split"
    )


def draw_plainly(settings: StreamSettings, index: int) -> Document:
    """Return document `index` of the stream, drawn in plain Python: the reference of what compiled code does."""
    family = settings.family
    rng = Chance(state_at(derive_seed(settings.seed, "problem", settings.split), index))
    ops, weights = op_law(settings)
    op = ops[rng.weighted(weights)] if ops else official_op(rng, family, settings.split)
    for _ in range(_draws(settings) if op > 0 else 0):
        problem = try_problem(rng, family, op, official=not ops)
        if problem is not None and split_of(problem) == settings.split:
            return _complete(settings, index, problem, rng)
    raise _impossible(settings, op)


def _complete(settings: StreamSettings, index: int, problem: Problem, rng: Chance) -> Document:
    solution = solve(problem, rng)
    chance = Chance(state_at(derive_seed(settings.seed, "mistakes", settings.split), index))
    return Document(problem, solution, draw_mistakes(chance, problem, settings.retry_rate, settings.kind))


class Writer:
    """Compiled code set up for one stream; `ids` and `kinds` hold the document written last. For one thread."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.seed = np.uint64(derive_seed(settings.seed, "problem", settings.split))
        self.mistake_seed = np.uint64(derive_seed(settings.seed, "mistakes", settings.split))
        self.rules, self.lexicon, self.draft = rules(settings), lexicon(settings.family), new_draft()
        if self.rules.official:
            for op in range(settings.family.op_max + 1):
                self.rules.possible[op] = op in possible_ops(settings.family, settings.split)
        self.ids, self.kinds = np.empty(2**14, np.uint16), np.empty(2**14, np.uint8)
        # The letters are drawn by compiled code, which cannot say what is wrong.
        check_letters(settings.family, max(settings.ops, default=settings.family.op_max))

    def write(self, index: int) -> tuple[int, int, int]:
        """Write document `index`; return its length, its op and the state its problem was drawn from."""
        length, op, _, began = write_document(
            self.seed, self.mistake_seed, index, self.rules, self.lexicon, self.draft, self.ids, self.kinds
        )
        if length == -1:
            raise _impossible(self.settings, int(op))
        if length < 0:
            raise DataError(
                f"document {index} of family {self.settings.family.name!r} has more than {len(self.ids)} tokens; "
                f"set retry_rate below {self.settings.retry_rate}"
            )
        return int(length), int(op), int(began)


@lru_cache(maxsize=64)
def _writer_of(settings: StreamSettings, thread: int) -> Writer:  # noqa: ARG001 - a key: threads share none
    return Writer(settings)


def _writer(settings: StreamSettings) -> Writer:
    """Return this thread's writer of `settings`: another thread would write over what has not been read yet."""
    return _writer_of(settings, threading.get_ident())


def _asked_again(settings: StreamSettings, index: int) -> Document:
    """Return document `index` of a stream of problems with another question, of the split and with letters enough."""
    plain = settings.model_copy(update={"reask": False})
    rng = Chance(state_at(derive_seed(settings.seed, "reask", settings.split), index))
    for attempt in range(_REASKED_DRAWS):
        problem = draw_document(plain, index + attempt * _FAR).problem
        for query in rng.sample(candidates := questions(problem), len(candidates)):
            asked = ask_again(problem, query, rng)
            if asked.op <= settings.family.letter_pool and split_of(asked) == settings.split:
                return _complete(settings, index, asked, rng)
    raise DataError(
        f"no other question makes a {settings.split} problem of family {settings.family.name!r} in {_REASKED_DRAWS} "
        "draws; choose another split"
    )


def draw_document(settings: StreamSettings, index: int) -> Document:
    """Return document `index` of the stream."""
    if settings.reask:
        return _asked_again(settings, index)
    _, op, began = _writer(settings).write(index)
    rng = Chance(began)
    problem = try_problem(rng, settings.family, op, official=not op_law(settings)[0])
    assert problem is not None, "compiled code has found this problem"
    return _complete(settings, index, problem, rng)


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


def written(settings: StreamSettings, index: int) -> Tokens:
    """Return document `index` as compiled code writes it: views that are good until this thread's next call."""
    writer = _writer(settings)
    length, _, _ = writer.write(index)
    return Tokens(writer.ids[:length], writer.kinds[:length])


def mean_length(settings: StreamSettings, documents: int = 1_000) -> float:
    """Return the mean number of tokens of the first documents."""
    return sum(len(written(settings, index).ids) for index in range(documents)) / documents


class WindowStream:
    """Training windows: [END], then whole documents one after another, the last one cut on the right (the paper's way).

    Without `packed` each window is [END] and one document, then [PAD], given as part of the problem: it has no loss.
    Documents that do not fit into a window are left out. The first documents may be of other settings: `(settings,
    documents)` in `first`.
    """

    def __init__(
        self,
        settings: StreamSettings,
        *,
        length: int | None = None,
        next_index: int = 0,
        packed: bool = True,
        first: tuple[StreamSettings, int] | None = None,
    ) -> None:
        self.settings = settings
        self.first_settings, self.first_documents = first or (settings, 0)
        self.packed = packed
        self.end_id = word_ids(settings.family)[END]
        self.pad_id = word_ids(settings.family)[PAD]
        self.length = settings.family.max_tokens if length is None else length
        """Tokens of a window."""
        if self.length < 2:
            raise DataError(f"a window must have at least 2 tokens, but got {self.length}; leave length out")
        self.next_index = next_index
        """The document the next window starts with: the whole state of the stream."""

    def _document(self, index: int) -> Tokens:
        settings = self.settings if index >= self.first_documents else self.first_settings
        if settings.reask:
            return document_tokens(settings, draw_document(settings, index))
        return written(settings, index)

    def read(self, num_windows: int) -> Tokens:
        """Return the next windows, both arrays of shape [num_windows, length]; DataError where no document fits."""
        ids = np.full((num_windows, self.length), self.pad_id, np.uint16)
        kinds = np.full((num_windows, self.length), Kind.PROBLEM, np.uint8)
        for row in range(num_windows):
            ids[row, 0] = self.end_id
            filled, left_out = 1, 0
            while filled < self.length:
                tokens = self._document(self.next_index)
                self.next_index += 1
                if len(tokens.ids) >= self.length:
                    left_out += 1
                    if left_out == _LEFT_OUT:
                        raise DataError(
                            f"a window has {self.length} tokens, but {left_out} documents in a row are longer, the "
                            f"last one {len(tokens.ids)}; take longer windows, fewer operations or a lower retry_rate"
                        )
                    continue
                left_out = 0
                fits = min(len(tokens.ids), self.length - filled)
                ids[row, filled : filled + fits] = tokens.ids[:fits]
                kinds[row, filled : filled + fits] = tokens.kinds[:fits]
                filled += fits
                if not self.packed:
                    break
        return Tokens(ids, kinds)
