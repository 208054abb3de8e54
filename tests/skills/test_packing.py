"""Windows: every document once and whole, its tokens in order, and a stream that goes on where it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.errors import ConfigError, DataError
from peft_study.skills.encode import Encoded
from peft_study.skills.packing import CorpusStream, bins, pack

PAD = 0


def document(number: int, length: int) -> Encoded:
    """Return a document whose tokens are its number; the last one is learned and judged."""
    ids = np.full(length, number, np.int32)
    last = np.arange(length) == length - 1
    return Encoded(ids, last & (length > 1), np.where(last, 1, -1).astype(np.int8), False)


def test_windows_worked_by_hand() -> None:
    windows = pack([document(1, 2), document(2, 3), document(3, 4)], 6, PAD, packing=True)
    # The longest first; the one of two tokens fits behind it.
    assert windows.ids.tolist() == [[3, 3, 3, 3, 1, 1], [2, 2, 2, PAD, PAD, PAD]]
    assert windows.positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert windows.learned.tolist() == [[False] * 3 + [True, False, True], [False, False, True] + [False] * 3]
    assert windows.verdicts.tolist() == [[-1, -1, -1, 1, -1, 1], [-1, -1, 1, -1, -1, -1]]
    assert [array.dtype for array in windows] == [np.int32, np.bool_, np.int8, np.int32]


def test_without_packing_a_window_holds_one_document() -> None:
    windows = pack([document(1, 2), document(2, 3)], 4, PAD, packing=False)
    assert windows.ids.tolist() == [[1, 1, PAD, PAD], [2, 2, 2, PAD]]
    assert windows.positions.tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@given(lengths=LENGTHS)
def test_every_document_is_in_one_window(lengths: list[int]) -> None:
    rows = bins(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # No two windows could be one.
    sizes = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 20


@given(lengths=LENGTHS, packing=st.booleans())
def test_documents_are_whole_and_apart(lengths: list[int], packing: bool) -> None:
    windows = pack([document(i + 1, length) for i, length in enumerate(lengths)], 20, PAD, packing)
    for i, length in enumerate(lengths):
        rows, columns = np.nonzero(windows.ids == i + 1)
        assert len(rows) == length
        assert len(set(rows)) == 1
        assert columns.tolist() == list(range(columns[0], columns[0] + length))
        assert windows.positions[rows, columns].tolist() == list(range(length))
        assert windows.learned[rows, columns].sum() == (length > 1)
    assert (windows.verdicts == 1).sum() == len(lengths)
    padding = windows.ids == PAD
    assert not windows.learned[padding].any()
    assert (windows.verdicts[padding] == -1).all()
    # A token of loss is never the first, which has nothing to be predicted from.
    assert not windows.learned[windows.positions == 0].any()
    assert windows.ids.size == 20 * len(windows.ids)


def test_a_document_longer_than_the_window_is_an_error() -> None:
    with pytest.raises(ConfigError, match="must fit into windows of 4 tokens, but one has 5; cut them"):
        pack([document(1, 2), document(2, 5)], 4, PAD, packing=True)
    with pytest.raises(DataError, match="with something to learn in its first 4 tokens, but has none"):
        CorpusStream([], 4, PAD, packing=True, seed=0)


# ---- the stream

DOCUMENTS = [document(i + 1, 3 + i % 4) for i in range(23)]


def stream(seed: int = 0) -> CorpusStream:
    return CorpusStream(DOCUMENTS, 8, PAD, packing=True, seed=seed)


def test_each_time_through_has_all_windows_in_a_new_order() -> None:
    windows = stream()
    epochs = [windows.read(len(windows)).ids for _ in range(3)]
    for ids in epochs:
        assert sorted(map(tuple, ids)) == sorted(map(tuple, windows.windows.ids))
    assert len({ids.tobytes() for ids in epochs}) == 3
    assert windows.next_index == 3 * len(windows)
    assert windows.length == 8


def test_the_order_is_that_of_the_seed() -> None:
    assert np.array_equal(stream(1).read(30).ids, stream(1).read(30).ids)
    assert not np.array_equal(stream(1).read(30).ids, stream(2).read(30).ids)


@given(start=st.integers(0, 60), sizes=st.lists(st.integers(0, 9), max_size=8))
def test_a_stream_goes_on_from_its_index(start: int, sizes: list[int]) -> None:
    """However it was read before, and over the end of a time through."""
    whole = stream().read(200)
    resumed = stream()
    resumed.next_index = start
    for size in sizes:
        found, first = resumed.read(size), resumed.next_index - size
        for array, expected in zip(found, whole, strict=True):
            assert np.array_equal(array, expected[first : first + size])
    assert resumed.next_index == start + sum(sizes)


def test_what_is_read_may_be_changed() -> None:
    windows = stream()
    windows.read(2).ids[:] = 99
    assert not (windows.windows.ids == 99).any()


def test_fill_is_the_share_that_is_no_padding() -> None:
    packed = CorpusStream([document(1, 2), document(2, 3), document(3, 4)], 6, PAD, packing=True, seed=0)
    assert (len(packed), packed.fill) == (2, 9 / 12)
    apart = CorpusStream([document(1, 2), document(2, 3), document(3, 4)], 6, PAD, packing=False, seed=0)
    assert (len(apart), apart.fill) == (3, 9 / 18)
