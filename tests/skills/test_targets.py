"""Targets, masks and labels of the two skills, worked by hand on one short document."""

import numpy as np
import pytest

from peft_study.igsm.families import NANO
from peft_study.igsm.stream import Document, StreamSettings, Tokens, WindowStream, document_tokens
from peft_study.igsm.text import Kind, document_words, split
from peft_study.skills.targets import (
    NOT_A_DECISION,
    RIGHT,
    WRONG,
    after_retraction,
    correction_targets,
    decision_labels,
)

SOLUTION = (
    "Define Caldera's Highwall as c; so c = 3. Define Elvaria's Highwall as [BACK]. "
    "Define Elvaria's Eaglecrag as d; so d = 4 * c = 4 * 3 = 2. [ANSWER] 2 [END]"
)
MASKED = (
    "Define Caldera's Highwall as c; so c = 3. [BACK]. "
    "Define Elvaria's Eaglecrag as d; so d = 4 * c = 4 * 3 = 2. [ANSWER] 2 [END]"
)


@pytest.fixture
def words(hand_document: Document) -> list[str]:
    document = hand_document
    return [word.text for word in document_words(document.problem, document.solution, document.mistakes)]


@pytest.fixture
def tokens(hand_document: Document) -> Tokens:
    return document_tokens(StreamSettings(family=NANO), hand_document)


@pytest.mark.parametrize(("mask", "expected"), [(False, SOLUTION), (True, MASKED)])
def test_correction_has_loss_on_the_solution(words: list[str], tokens: Tokens, mask: bool, expected: str) -> None:
    targets = correction_targets(tokens.kinds, mask=mask)
    assert [word for word, target in zip(words, targets, strict=True) if target] == split(expected)


def test_detection_is_asked_at_each_as(words: list[str], tokens: Tokens) -> None:
    labels = decision_labels(tokens.kinds)
    places = [i for i, word in enumerate(words) if word == "as"]
    assert len(places) == 3
    assert labels[places].tolist() == [RIGHT, WRONG, RIGHT]
    assert [words[i - 1] for i in places] == ["Highwall", "Highwall", "Eaglecrag"]
    assert np.flatnonzero(labels != NOT_A_DECISION).tolist() == places


def test_after_retraction_begins_behind_the_back(words: list[str], tokens: Tokens) -> None:
    after = after_retraction(tokens.kinds)
    back = words.index("[BACK]")
    assert after.tolist() == [False] * (back + 1) + [True] * (len(words) - back - 1)


def test_masks_work_on_windows_as_on_documents() -> None:
    windows = WindowStream(StreamSettings(family=NANO, retry_rate=0.5)).read(3)
    for mask in (True, False):
        whole = correction_targets(windows.kinds, mask=mask)
        rows = [correction_targets(row, mask=mask) for row in windows.kinds]
        assert np.array_equal(whole, np.stack(rows))
    assert not correction_targets(np.full((2, 4), Kind.RESULT, np.uint8), mask=True)[:, 0].any()


def test_without_mistakes_the_mask_changes_nothing() -> None:
    kinds = WindowStream(StreamSettings(family=NANO)).read(4).kinds
    assert np.array_equal(correction_targets(kinds, mask=True), correction_targets(kinds, mask=False))
    assert not (decision_labels(kinds) == WRONG).any()
