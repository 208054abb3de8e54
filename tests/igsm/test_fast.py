"""Compiled code draws and writes what plain Python draws and writes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from peft_study.errors import DataError
from peft_study.igsm.chance import Chance, mix, state_at
from peft_study.igsm.families import FAMILIES, HARD, MED, MINI, NANO
from peft_study.igsm.fast import chance as fast
from peft_study.igsm.mistakes import MISTAKE_KINDS
from peft_study.igsm.settings import SPLIT_BINS, StreamSettings
from peft_study.igsm.splits import problem_hash, split_hash, split_of
from peft_study.igsm.stream import WindowStream, document_tokens, draw_document, draw_plainly, possible_ops
from peft_study.igsm.text import END
from peft_study.igsm.tokenizer import word_ids

WIDE = NANO.model_copy(update={"parents_max": 4, "abstract_parents_max": None, "shape_tries": 1_000})
EMPTY = MINI.model_copy(update={"empty_abstract": True, "sizes": (2, 3, 4), "op_ratio": None, "split_by": "template"})


def _same(settings: StreamSettings, count: int) -> None:
    """Compare the stream, which compiled code writes, with the documents that plain Python draws."""
    stream = WindowStream(settings, length=2**12)
    ids, kinds = (part[0].tolist() for part in stream.read(1))
    at = 1
    assert stream.next_index > count
    for index in range(count):
        tokens = document_tokens(settings, draw_plainly(settings, index))
        assert ids[at : at + len(tokens.ids)] == tokens.ids.tolist()
        assert kinds[at : at + len(tokens.ids)] == tokens.kinds.tolist()
        at += len(tokens.ids)


@hypothesis_settings(max_examples=40)
@given(
    family=st.sampled_from([NANO, WIDE, MINI]),
    kind=st.sampled_from(MISTAKE_KINDS),
    rate=st.sampled_from([0.0, 0.3, 0.8]),
    order=st.sampled_from(["pq", "qp"]),
    split=st.sampled_from(list(SPLIT_BINS)),
    seed=st.integers(0, 2**40),
)
def test_compiled_is_plain(family, kind, rate, order, split, seed) -> None:
    asked = {"family": family, "kind": kind, "retry_rate": rate, "order": order, "split": split, "seed": seed}
    _same(StreamSettings.model_validate(asked), 4)


@pytest.mark.parametrize("split", SPLIT_BINS)
@pytest.mark.parametrize("family", [MED, HARD, EMPTY], ids=["med", "hard", "empty"])
@pytest.mark.parametrize("pinned", [False, True])
def test_compiled_is_plain_at_the_papers_size(family, split, pinned) -> None:
    """Small op are left out in plain Python, which builds every problem that is rejected: it would take minutes."""
    asked = {"family": family, "split": split, "kind": "miss", "retry_rate": 0.3}
    if pinned:
        _same(StreamSettings.model_validate(asked | {"ops": (family.op_max, family.ood_ops[-1])}), 3)
        return
    settings = StreamSettings.model_validate(asked)
    easy = [index for index in range(40) if draw_document(settings, index).problem.op in range(3, 8)][:2]
    for index in easy:
        document = draw_document(settings, index)
        assert document == draw_plainly(settings, index)
        assert split_of(document.problem) == split


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**62))
def test_chance_is_the_same(seed: int, index: int) -> None:
    state = state_at(seed, index)
    assert int(fast.state_at(np.uint64(seed), index)) == state
    plain, rng = Chance(state), np.array([state], np.uint64)
    weights = np.array([0.1, 2.0, 0.0, 0.7])
    for limit in (1, 2, 7, 1000):
        assert plain.below(limit) == fast.below(rng, limit)
        assert plain.between(-2, limit) == fast.between(rng, -2, limit)
        assert plain.uniform() == fast.uniform(rng)
        assert plain.gauss() == fast.gauss(rng)
        assert plain.weighted(weights.tolist()) == fast.weighted(rng, weights, len(weights))
        items = np.arange(limit)
        fast.sample(rng, items, limit, min(limit, 5))
        assert plain.sample(range(limit), min(limit, 5)) == items[: min(limit, 5)].tolist()
        listed, numbers = list(range(limit)), np.arange(limit)
        plain.shuffle(listed)
        fast.shuffle(rng, numbers, limit)
        assert listed == numbers.tolist()
    assert plain.state == int(rng[0])


def test_chance_is_the_published_generator() -> None:
    """The first numbers of SplitMix64 from state 1234567, as published with it."""
    chance = Chance(1234567)
    assert [chance.bits() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_chance_draws_what_it_says() -> None:
    chance = Chance(5)
    drawn = [chance.weighted([1.0, 3.0, 0.0]) for _ in range(4_000)]
    assert drawn.count(1) / 4_000 == pytest.approx(0.75, abs=0.03)
    assert 2 not in drawn
    normal = [chance.gauss() for _ in range(4_000)]
    assert sum(normal) / 4_000 == pytest.approx(0, abs=0.06)
    assert math.sqrt(sum(x * x for x in normal) / 4_000) == pytest.approx(1, abs=0.04)
    assert sorted(chance.sample(range(9), 9)) == list(range(9))


def test_hashes_are_spread_and_tell_problems_apart() -> None:
    documents = [draw_document(StreamSettings(family=NANO, ops=(3,)), index) for index in range(300)]
    assert len({problem_hash(document.problem) for document in documents}) == 300
    assert mix(1) != mix(2)


def test_a_template_forgets_names_numbers_and_letters() -> None:
    """What has one template is in one split: the same hash whatever the seed of names and letters."""
    settings = StreamSettings(family=MED, ops=(2,))
    documents = [draw_document(settings, index) for index in range(200)]
    assert len({split_hash(document.problem) for document in documents}) < 20
    assert len({problem_hash(document.problem) for document in documents}) == 200


def test_splits_share_no_template() -> None:
    seen = {
        split: {
            split_hash(draw_document(StreamSettings.model_validate({"family": MED, "split": split}), i).problem)
            for i in range(150)
        }
        for split in SPLIT_BINS
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_targets_without_a_template_in_the_split_are_drawn_again() -> None:
    missing = {split: set(range(1, 16)) - possible_ops(MED, split) for split in SPLIT_BINS}  # pyright: ignore[reportArgumentType]
    assert not missing["train"]
    assert missing["test"]
    assert max(missing["test"]) <= 3
    settings = StreamSettings(family=MED, split="test")
    assert not {draw_document(settings, index).problem.op for index in range(300)} & missing["test"]
    with pytest.raises(DataError, match=f"no test problem with op={min(missing['test'])}"):
        draw_document(StreamSettings(family=MED, split="test", ops=(min(missing["test"]),)), 0)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_writes_documents_that_fit(family) -> None:
    stream = WindowStream(StreamSettings(family=family, ops=(family.ood_ops[-1],), split="test"))
    ids = stream.read(8).ids
    assert ids.max() < len(word_ids(family))
    assert (ids == word_ids(family)[END]).sum() >= 8
    assert stream.next_index <= 8 * 6


def test_the_most_mistakes_still_make_a_document() -> None:
    settings = StreamSettings(family=HARD, ops=(32,), kind="miss", retry_rate=0.9999)
    length = len(document_tokens(settings, draw_document(settings, 0)).ids)
    assert length < 2**14  # the pool at each place is used up, so even this is a document
