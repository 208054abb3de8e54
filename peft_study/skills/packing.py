"""Documents packed into windows, and the endless stream of them."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peft_study.errors import ConfigError, DataError
from peft_study.rng import python_stream
from peft_study.skills.encode import Encoded
from peft_study.skills.targets import NOT_A_DECISION


class Windows(NamedTuple):
    """n windows of T tokens, all [n, T]; what each array says of a token is in `encode.Encoded`."""

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    verdicts: NDArray[np.int8]
    positions: NDArray[np.int32]
    """The place of a token in its document, from 0: a 0 begins another document. What is filled up with padding at the
    end of a window is a document of its own."""

    def rows(self, which: Any) -> "Windows":
        """Return some of the windows, by a slice or a list of their numbers."""
        return Windows(self.ids[which], self.learned[which], self.verdicts[which], self.positions[which])


def bins(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Return which documents stand in each window: the longest first, each where it leaves the least room.

    >>> bins([3, 6, 4, 5, 2], 9)
    [[1, 0], [3, 2], [4]]
    """
    filled: list[list[int]] = []
    room: list[tuple[int, int]] = []
    """Tokens left in each window, and its number, in order."""
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(room, (lengths[document], 0))
        if at == len(room):
            left, row = window, len(filled)
            filled.append([])
        else:
            left, row = room.pop(at)
        filled[row].append(document)
        insort(room, (left - lengths[document], row))
    return filled


def pack(encoded: Sequence[Encoded], window: int, pad_id: int, packing: bool) -> Windows:
    """Return windows that hold each document once: with `packing` as many as fit, else one a window.

    ConfigError where a document is longer than a window.
    """
    lengths = [len(document.ids) for document in encoded]
    if max(lengths, default=0) > window:
        raise ConfigError(f"documents must fit into windows of {window} tokens, but one has {max(lengths)}; cut them")
    rows = bins(lengths, window) if packing else [[i] for i in range(len(encoded))]
    shape = (len(rows), window)
    windows = Windows(
        np.full(shape, pad_id, np.int32),
        np.zeros(shape, bool),
        np.full(shape, NOT_A_DECISION, np.int8),
        np.zeros(shape, np.int32),
    )
    for row, documents in enumerate(rows):
        start = 0
        for document in documents:
            end = start + lengths[document]
            windows.ids[row, start:end] = encoded[document].ids
            windows.learned[row, start:end] = encoded[document].learned
            windows.verdicts[row, start:end] = encoded[document].verdicts
            windows.positions[row, start:end] = np.arange(end - start)
            start = end
        windows.positions[row, start:] = np.arange(window - start)
    return windows


class CorpusStream:
    """Windows without end: all of them in a new order each time through.

    A window is a function of the seed and its index, so a stream goes on from `next_index`.
    """

    def __init__(self, encoded: Sequence[Encoded], window: int, pad_id: int, packing: bool, seed: int) -> None:
        """Make one; DataError where there is no document."""
        if not encoded:
            raise DataError(
                f"a corpus must have a document with something to learn in its first {window} tokens, but has none; "
                "set a longer corpus.window, or give other data"
            )
        self.windows = pack(encoded, window, pad_id, packing)
        """All windows, as packed."""
        self.seed = seed
        self.length = window
        """Tokens of a window."""
        self.next_index = 0
        """Number of the next window: the whole state of the stream."""
        self.fill = sum(len(document.ids) for document in encoded) / self.windows.ids.size
        """Share of the tokens that are no padding."""
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Return the number of windows of one time through."""
        return len(self.windows.ids)

    def _row(self, index: int) -> int:
        epoch, place = divmod(index, len(self))
        if self._order[0] != epoch:
            order = list(range(len(self)))
            python_stream(self.seed, "windows", epoch).shuffle(order)
            self._order = epoch, order
        return self._order[1][place]

    def read(self, num_windows: int) -> Windows:
        """Return the next windows."""
        rows = [self._row(self.next_index + i) for i in range(num_windows)]
        self.next_index += num_windows
        ids, learned, verdicts, positions = self.windows
        return Windows(ids[rows], learned[rows], verdicts[rows], positions[rows])
