"""The stream: the same seed gives the same bytes, anywhere and from any document on; splits share no problem."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from peft_study.errors import DataError
from peft_study.igsm.chance import Chance
from peft_study.igsm.families import NANO
from peft_study.igsm.problem import try_problem
from peft_study.igsm.settings import SPLIT_BINS, StreamSettings
from peft_study.igsm.splits import split_of
from peft_study.igsm.stream import Document, WindowStream, document_tokens, draw_document, mean_length, written
from peft_study.igsm.text import END, PAD, Kind, join, sentence_words
from peft_study.igsm.tokenizer import word_ids

MakeDocument = Callable[..., Document]

DIGEST = """
import hashlib
from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream
tokens = WindowStream(StreamSettings(family=NANO, retry_rate=0.5, seed=3)).read(20)
print(hashlib.sha256(tokens.ids.tobytes() + tokens.kinds.tobytes()).hexdigest())
"""


def settings(seed: int = 0, rate: float = 0.5) -> StreamSettings:
    return StreamSettings(family=NANO, retry_rate=rate, seed=seed)


def test_same_seed_same_bytes_in_another_process() -> None:
    tokens = WindowStream(settings(seed=3)).read(20)
    here = hashlib.sha256(tokens.ids.tobytes() + tokens.kinds.tobytes()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@given(first=st.integers(0, 10**6), second=st.integers(0, 10**6))
def test_seeds_matter(first: int, second: int) -> None:
    a, b = (draw_document(settings(seed), 0) for seed in (first, second))
    assert (a == b) == (first == second)


def test_indices_and_splits_have_streams_of_their_own() -> None:
    documents = [draw_document(settings(), index) for index in range(50)]
    assert len({document_tokens(settings(), document).ids.tobytes() for document in documents}) == 50
    for split in ("validation", "test"):
        assert draw_document(settings().model_copy(update={"split": split}), 0) != documents[0]


@given(index=st.integers(0, 200))
def test_a_document_does_not_depend_on_those_before_it(index: int) -> None:
    first = draw_document(settings(), index)
    draw_document(settings(), index + 1)
    assert draw_document(settings(), index) == first


@hypothesis_settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_windows_do_not_depend_on_how_many_are_read_at_once(sizes: list[int]) -> None:
    stream = WindowStream(settings())
    parts = [stream.read(size) for size in sizes]
    whole = WindowStream(settings()).read(sum(sizes))
    assert np.array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    assert np.array_equal(np.concatenate([part.kinds for part in parts]), whole.kinds)


@given(before=st.integers(1, 5), after=st.integers(1, 3))
def test_resume_from_the_next_index_equals_straight(before: int, after: int) -> None:
    straight = WindowStream(settings())
    straight.read(before)
    resumed = WindowStream(settings(), next_index=straight.next_index)
    for expected, got in zip(straight.read(after), resumed.read(after), strict=True):
        assert np.array_equal(expected, got)
    assert straight.next_index == resumed.next_index


def test_a_window_is_the_end_mark_and_whole_documents_but_for_the_last() -> None:
    stream = WindowStream(settings())
    window = stream.read(1)
    end = word_ids(NANO)[END]
    expected = [end]
    for index in range(stream.next_index):
        expected += document_tokens(settings(), draw_document(settings(), index)).ids.tolist()
    assert window.ids[0].tolist() == expected[: NANO.max_tokens]
    assert len(expected) >= NANO.max_tokens
    assert window.kinds[0, 0] == Kind.PROBLEM
    assert window.ids.dtype == np.uint16


def test_a_document_longer_than_the_window_is_left_out() -> None:
    stream = WindowStream(settings(), length=100)
    ids = stream.read(20).ids
    lengths = [len(document_tokens(settings(), draw_document(settings(), i)).ids) for i in range(stream.next_index)]
    assert any(length >= 100 for length in lengths)
    begins = [join_words(row[1:6]) for row in ids]
    short = [i for i, length in enumerate(lengths) if length < 100]
    assert all(any(join_words(_ids(i)[:5]) == begin for i in short) for begin in begins)


def join_words(ids: np.ndarray) -> str:
    words = list(word_ids(NANO))
    return join([words[i] for i in ids])


def _ids(index: int) -> np.ndarray:
    return document_tokens(settings(), draw_document(settings(), index)).ids


def test_unpacked_windows_hold_one_document_each() -> None:
    packed, alone = WindowStream(settings()), WindowStream(settings(), packed=False)
    rows = alone.read(6)
    assert alone.next_index == 6
    for index, (ids, kinds) in enumerate(zip(*rows, strict=True)):
        tokens = document_tokens(settings(), draw_document(settings(), index))
        size = len(tokens.ids)
        assert ids[1 : size + 1].tolist() == tokens.ids.tolist()
        assert kinds[1 : size + 1].tolist() == tokens.kinds.tolist()
        assert (ids[0], set(ids[size + 1 :].tolist())) == (word_ids(NANO)[END], {word_ids(NANO)[PAD]})
        assert set(kinds[size + 1 :].tolist()) == {Kind.PROBLEM}
    assert packed.read(1).ids[0, : len(tokens.ids)].tolist() != ids[: len(tokens.ids)].tolist()


def test_order_of_problem_and_question() -> None:
    pq, qp = (StreamSettings.model_validate({"family": NANO, "order": order}) for order in ("pq", "qp"))
    document = draw_document(pq, 0)
    assert draw_document(qp, 0) == document
    assert join_words(document_tokens(pq, document).ids[:2]) == " [PROBLEM] The number of each"
    assert join_words(document_tokens(qp, document).ids[:2]) == " [PROBLEM] How many"


def test_bins_cover_everything_once() -> None:
    bins = [number for numbers in SPLIT_BINS.values() for number in numbers]
    assert sorted(bins) == list(range(23))
    assert SPLIT_BINS["train"] == range(17)


@given(op=st.integers(1, 6), seed=st.integers(0, 10**6), split=st.sampled_from(["train", "validation", "test"]))
def test_a_document_is_of_its_split_however_its_sentences_stand(
    make_document: MakeDocument, op: int, seed: int, split: str
) -> None:
    problem = make_document(op, seed=seed, split=split).problem
    formulas = list(problem.formulas.items())
    Random(seed).shuffle(formulas)
    shuffled = dataclasses.replace(problem, formulas=dict(formulas))
    assert split_of(problem) == split_of(shuffled) == split


def test_splits_share_no_problem() -> None:
    """A world so small that the same problems come again and again, so that a leak between splits would show."""
    small = NANO.model_copy(update={"sizes": (2,), "ip_max": 2, "names": 4})
    seen: dict[str, list[tuple[str, ...]]] = {}
    for split in SPLIT_BINS:
        options = StreamSettings.model_validate({"family": small, "split": split, "ops": (1,)})
        problems = [draw_document(options, index).problem for index in range(2_000)]
        seen[split] = [
            (*sorted(join(sentence_words(p, parameter)) for parameter in p.formulas), str(p.names(p.query)))
            for p in problems
        ]
    assert all(len(set(problems)) < 1_900 for problems in seen.values())
    assert not set(seen["train"]) & set(seen["test"])
    assert not set(seen["train"]) & set(seen["validation"])
    assert not set(seen["test"]) & set(seen["validation"])


def test_splits_have_their_shares() -> None:
    """Problems of all bins, as plain Python draws them."""
    rng = Chance(0)
    problems = [try_problem(rng, NANO, 4, official=False) for _ in range(6_000)]
    splits = [split_of(problem) for problem in problems if problem is not None]
    assert len(splits) > 1_500
    for split, bins in SPLIT_BINS.items():
        assert splits.count(split) / len(splits) == pytest.approx(len(bins) / 23, abs=0.03)


def test_impossible_op_is_an_error_not_an_endless_loop() -> None:
    for op in (0, 13, 40):
        with pytest.raises(DataError, match=f"{op}"):
            draw_document(StreamSettings(family=NANO, ops=(op,)), 0)


def test_first_documents_may_be_of_another_law() -> None:
    small = settings().model_copy(update={"ops": (1,)})
    stream = WindowStream(settings(), first=(small, 30))
    read = stream.read(20).ids[:, 1:].flatten().tolist()
    documents = [written(small if index < 30 else settings(), index).ids.tolist() for index in range(stream.next_index)]
    assert stream.next_index > 60
    assert [documents[index] for index in (0, 29, 30)] != [
        written(settings(), index).ids.tolist() for index in (0, 29, 30)
    ]
    text = " ".join(map(str, read))
    assert sum(" ".join(map(str, document)) in text for document in documents) > 40  # all but those that are cut
    resumed = WindowStream(settings(), first=(small, 30), next_index=29)
    straight = WindowStream(settings(), first=(small, 30), next_index=29)
    straight.read(1)
    resumed.read(1)
    assert np.array_equal(straight.read(2).ids, resumed.read(2).ids)


def test_mean_length_is_of_the_first_documents() -> None:
    lengths = [len(written(settings(), index).ids) for index in range(50)]
    assert mean_length(settings(), 50) == pytest.approx(np.mean(lengths))


def test_threads_that_read_the_same_stream_read_it_whole() -> None:
    alone = WindowStream(settings()).read(64)
    start, found = threading.Barrier(3), list[bool]()

    def read() -> None:
        stream = WindowStream(settings())
        start.wait()
        found.append(np.array_equal(stream.read(64).ids, alone.ids))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [True] * 3
