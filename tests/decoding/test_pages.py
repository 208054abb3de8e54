"""The cache in pages: whatever rows do, each reads what it has written, and no page is lost."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_study.decoding.compiled import Pages

SIZE = 2


class Written:
    """Rows of numbers, kept in pages and, to compare, in lists."""

    def __init__(self, lengths: list[int]) -> None:
        self.pages = Pages(SIZE, SIZE)
        self.lengths = torch.tensor(lengths)
        self.pages.start(self.lengths)
        self.expected = [[float(10 * row + at) for at in range(length)] for row, length in enumerate(lengths)]
        for row, numbers in enumerate(self.expected):
            for at, number in enumerate(numbers):
                self.place(row, at).value = number

    def place(self, row: int, at: int) -> ctypes.c_float:
        """Return where the number at a position of a row lies."""
        page = int(self.pages.table_BP[row, at // SIZE])
        return ctypes.c_float.from_address(int(self.pages.places[page]) + 4 * (at % SIZE))

    def step(self, first: float) -> None:
        """Write another number into each row."""
        self.pages.make_room(self.lengths)
        for row, numbers in enumerate(self.expected):
            numbers.append(first + row)
            self.place(row, int(self.lengths[row])).value = first + row
        self.lengths = self.lengths + 1

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows."""
        self.pages.keep(torch.tensor(rows))
        self.lengths = self.lengths[rows]
        self.expected = [list(self.expected[row]) for row in rows]

    def rewind(self, row: int, length: int) -> None:
        """Go back to the first numbers of a row."""
        self.lengths[row] = length
        del self.expected[row][length:]

    def check(self) -> None:
        """Compare all numbers, and what the pages say of themselves."""
        for row, numbers in enumerate(self.expected):
            assert [self.place(row, at).value for at in range(len(numbers))] == numbers
        held = self.pages.table_BP[self.pages.table_BP >= 0].tolist()
        assert self.pages.holders == [held.count(page) for page in range(len(self.pages.places))]
        assert sorted(self.pages.free) == [page for page, count in enumerate(self.pages.holders) if count == 0]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_rows_read_what_they_have_written(lengths: list[int], data: st.DataObject) -> None:
    written = Written(lengths)
    for step in range(data.draw(st.integers(1, 12))):
        count = len(written.expected)
        match data.draw(st.sampled_from(["step", "step", "keep", "rewind"])):
            case "step":
                written.step(1000.0 * (step + 1))
            case "keep":
                written.keep(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6)))
            case _:
                row = data.draw(st.integers(0, count - 1))
                written.rewind(row, data.draw(st.integers(0, int(written.lengths[row]))))
        written.check()


def test_only_the_page_that_is_written_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    written, copied = Written([5]), []
    move: Callable[[int, int, int], object] = ctypes.memmove
    monkeypatch.setattr(ctypes, "memmove", lambda to, start, size: (copied.append(size), move(to, start, size)))
    written.keep([0, 0, 0])
    assert not copied
    written.step(100.0)
    written.check()
    assert copied == [4 * SIZE] * 2, "the third goes on in the page itself"
    written.step(200.0)
    assert len(copied) == 2, "all begin a page"
    written.check()
    assert int((written.pages.table_BP[:, :2] == written.pages.table_BP[:1, :2]).sum()) == 6


def test_pages_of_rows_that_ended_are_used_again() -> None:
    written = Written([6] * 20)
    known = len(written.pages.places)
    for round_ in range(20):
        written.keep([round_ % 3])
        for step in range(10):
            written.step(100.0 * round_ + step)
        written.keep([0] * 12)
        written.rewind(3, 2)
    written.check()
    assert len(written.pages.places) <= 4 * known
