"""Targets, masks and labels of the two skills, worked by hand on one short document."""

import numpy as np
import pytest

from peft_study.igsm.families import NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import Document, Tokens, WindowStream, document_tokens, draw_document
from peft_study.igsm.text import Kind, document_words, split
from peft_study.skills.config import SkillConfig
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
NAME_MASKED = (
    "Define Caldera's Highwall as c; so c = 3. Define as [BACK]. "
    "Define Elvaria's Eaglecrag as d; so d = 4 * c = 4 * 3 = 2. [ANSWER] 2 [END]"
)


@pytest.fixture
def words(hand_document: Document) -> list[str]:
    document = hand_document
    return [word.text for word in document_words(document.problem, document.solution, document.mistakes)]


@pytest.fixture
def tokens(hand_document: Document) -> Tokens:
    return document_tokens(StreamSettings(family=NANO), hand_document)


@pytest.mark.parametrize(
    ("mask", "part", "expected"),
    [(False, "step", SOLUTION), (False, "name", SOLUTION), (True, "step", MASKED), (True, "name", NAME_MASKED)],
)
def test_correction_has_loss_on_the_solution(
    words: list[str], tokens: Tokens, mask: bool, part: str, expected: str
) -> None:
    skill = SkillConfig.model_validate({"mask": mask, "mask_part": part})
    targets = correction_targets(tokens.kinds, masked=skill.masked)
    assert [word for word, target in zip(words, targets, strict=True) if target] == split(expected)


def test_detection_is_asked_at_each_as(words: list[str], tokens: Tokens) -> None:
    labels = decision_labels(tokens.kinds)
    places = [i for i, word in enumerate(words) if word == "as"]
    assert len(places) == 3
    assert labels[places].tolist() == [RIGHT, WRONG, RIGHT]
    assert [words[i - 1] for i in places] == ["Highwall", "Highwall", "Eaglecrag"]
    assert np.flatnonzero(labels != NOT_A_DECISION).tolist() == places


def test_a_mistake_that_can_be_computed_is_labelled_right_and_masked_all_the_same() -> None:
    settings = StreamSettings(family=NANO, ops=(4,), kind="weak", retry_rate=0.5)
    kinds = np.concatenate([document_tokens(settings, draw_document(settings, index)).kinds for index in range(30)])
    fine = kinds == Kind.MISTAKE_AS_RIGHT
    assert fine.sum() > 10
    assert (decision_labels(kinds)[fine] == RIGHT).all()
    assert not correction_targets(kinds, masked="step")[fine].any()
    assert correction_targets(kinds, masked="name")[fine].all()


def test_after_retraction_begins_behind_the_back(words: list[str], tokens: Tokens) -> None:
    after = after_retraction(tokens.kinds)
    back = words.index("[BACK]")
    assert after.tolist() == [False] * (back + 1) + [True] * (len(words) - back - 1)


def test_masks_work_on_windows_as_on_documents() -> None:
    windows = WindowStream(StreamSettings(family=NANO, retry_rate=0.5)).read(3)
    for masked in ("step", "name", "none"):
        whole = correction_targets(windows.kinds, masked=masked)
        rows = [correction_targets(row, masked=masked) for row in windows.kinds]
        assert np.array_equal(whole, np.stack(rows))
    assert not correction_targets(np.full((2, 4), Kind.RESULT, np.uint8), masked="step")[:, 0].any()


def test_without_mistakes_the_mask_changes_nothing() -> None:
    kinds = WindowStream(StreamSettings(family=NANO)).read(4).kinds
    assert np.array_equal(correction_targets(kinds, masked="step"), correction_targets(kinds, masked="none"))
    assert not (decision_labels(kinds) == WRONG).any()
