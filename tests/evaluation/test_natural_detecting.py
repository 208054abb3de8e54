"""Detection on texts, worked out by hand on a detector whose scores are known beforehand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from peft_study.corpora.gsm8k import FORM
from peft_study.corpora.records import Document
from peft_study.evaluation.natural_detecting import detection, document_points, is_for_threshold, own_documents
from peft_study.records import Grade
from peft_study.skills.encode import Encoded
from peft_study.skills.targets import NOT_A_DECISION
from peft_study.stats import ratio_interval
from tests.evaluation.by_hand import TESTING, corpus_of, document, table, written


def names(*, for_threshold: bool, count: int) -> list[str]:
    return [name for i in range(100) if is_for_threshold(name := f"d{i}") == for_threshold][:count]


A, B, C = names(for_threshold=False, count=3)
T, U = names(for_threshold=True, count=2)
MEASURED = [
    document(A, ("a2", "step"), ("b8", "mistake"), ("no", "retraction"), ("c6", "step")),
    document(B, ("d4", "mistake"), ("no", "retraction"), ("e3", "step")),
    document(C, ("f1", "step")),
]
THRESHOLD = [document(T, ("g7", "step")), document(U, ("h8", "mistake"))]


def p(digit: int) -> float:
    """Return P(wrong) of a step that ends with a digit."""
    return 1 / (1 + math.exp(5 - digit))


def test_verdicts_are_counted_by_hand(make_scripted: Callable[..., Any], letters: Any) -> None:
    """Right steps end with 2, 6, 3 and 1, wrong ones with 8 and 4; the threshold is between 7 and 8."""
    found = detection(make_scripted({}), corpus_of([*THRESHOLD, *MEASURED]), letters, TESTING)
    gaps = (p(2) + p(1), p(8) - 1, p(6), p(4) - 1, p(3))
    assert table(found, "injected") == {
        "detect_auroc": (7 / 8, 6),
        "detect_auroc_without_retraction": (1.0, 4),
        "detect_base_rate": (2 / 6, 6),
        "detect_balanced_accuracy": (pytest.approx((1 / 2 + 4 / 4) / 2), 6),
        "detect_ece": (pytest.approx(sum(map(abs, gaps)) / 6), 6),
    }
    rate = next(measure for measure in found.measures if measure.metric == "detect_base_rate")
    assert (rate.low, rate.high) == ratio_interval([1, 1, 0], [3, 2, 1], seed=0)
    assert found.arrays["detect_injected_0_score"].tolist() == pytest.approx([p(d) for d in (2, 8, 6, 4, 3, 1)])
    assert found.arrays["detect_injected_0_label"].tolist() == [0, 1, 0, 1, 0, 0]
    assert found.arrays["detect_injected_0_problem"].tolist() == [0, 0, 0, 1, 1, 2]


def test_without_mistakes_nothing_is_ranked(make_scripted: Callable[..., Any], letters: Any) -> None:
    clean = [document(name, ("a2", "step")) for name in (A, B, T)]
    found = detection(make_scripted({}), corpus_of(clean), letters, TESTING)
    assert found.measures == []
    assert found.arrays["detect_injected_0_score"].tolist() == pytest.approx([p(2)] * 2)
    # A threshold that cannot be chosen is a half: 8 is above, and 4 is not.
    found = detection(make_scripted({}), corpus_of([*MEASURED, clean[2]]), letters, TESTING)
    assert table(found, "injected")["detect_balanced_accuracy"] == (pytest.approx((1 / 2 + 3 / 4) / 2), 6)


OWN = [
    written(A, "3 + 4 = 8\n#### 8", Grade.WRONG),  # known: the first step
    written(B, "3 + 4 = 7\n#### 7", Grade.RIGHT),
    written(C, "It is so.\n#### 2", Grade.WRONG),  # wrong at its end
    written(T, "3 + 4 = 9\n#### 9", Grade.WRONG),  # of the threshold's half
]


def test_own_solutions_are_judged_by_hand(make_scripted: Callable[..., Any], letters: Any) -> None:
    """Wrong steps end with 8 and 2, right ones with 7 and 7; one of two mistakes is known."""
    corpus = corpus_of([*THRESHOLD, *MEASURED])
    found = detection(make_scripted({}), corpus, letters, TESTING, baseline=OWN)
    own = table(found, "own")
    assert own["own_mistakes_covered"] == (1 / 2, 2)
    assert own["detect_auroc"] == (1 / 2, 4)
    assert own["detect_balanced_accuracy"] == ((1 / 2 + 2 / 2) / 2, 4)
    assert found.arrays["detect_own_0_problem"].tolist() == [0, 1, 1, 2]
    assert found.arrays["detect_own_0_label"].tolist() == [1, 0, 0, 1]
    assert "detect_auroc" in table(found, "injected")
    # What `injected` is measured on is a sample of its own, which has no say in `own`.
    fewer = detection(make_scripted({}), corpus_of([*THRESHOLD, MEASURED[0]]), letters, TESTING, baseline=OWN)
    assert table(fewer, "own")["detect_auroc"] == own["detect_auroc"]
    programs = detection(make_scripted({}), corpus._replace(grader="humaneval"), letters, TESTING, baseline=OWN)
    assert table(programs, "own") == {}


def test_what_is_known_of_own_solutions() -> None:
    more = [
        written("d", "3 + 4 = 7\nSo 7 + 1 = 9\n#### 9", Grade.WRONG),  # has computed what the reference has
        written("e", "1 + 1 = 2\nSo 3 + 4 = 8\n#### 8", Grade.WRONG),  # has not, so all of it is the mistake
        written("f", "3 + 4", Grade.TRUNCATED, finished=False),
        written("g", "3 + 4 = 8\n#### 7", Grade.RIGHT),  # by luck: nothing is learned from it
    ]
    own = own_documents([*OWN[:3], *more], FORM, lambda document: True)
    assert [each.id for each in own.documents] == [A, B, C, "d", "e"]
    assert (own.wrong, own.known) == (5, 2)
    assert [segment.kind for segment in own.documents[3].turns[1].segments] == ["step", "mistake"]
    assert [segment.kind for segment in own.documents[4].turns[1].segments] == ["mistake"]
    without = own_documents([*OWN[:3], *more], FORM, lambda document: document.id != A)
    assert without == (own.documents[1:], 5, 1)


def test_points_know_what_was_taken_back_before_them(letters: Any) -> None:
    detour = document("x", ("a1", "detour"), ("no", "retraction"), ("b1", "step"), ("c1", "mistake"), ("d1", "step"))
    points = document_points([detour], [7], letters)
    assert points.label_P.tolist() == [0, 0, 1, 0]
    assert points.after_P.tolist() == [False, True, True, True]
    assert points.problem_P.tolist() == [7] * 4
    assert [points.sequences[0][at] for at in points.position_P] == [ord("1")] * 4

    class Losing:
        """An encoder that gives no verdict on the step `b1`, or cuts it and what follows off."""

        def __init__(self, *, cut: bool) -> None:
            self.cut = cut

        def encode(self, given: Document) -> Encoded:
            encoded = letters.encode(given)
            places = np.flatnonzero(encoded.verdicts != NOT_A_DECISION)
            encoded.verdicts[places[1] : places[1] + (99 if self.cut else 1)] = NOT_A_DECISION
            return encoded._replace(truncated=self.cut)

    assert document_points([detour], [0], Losing(cut=True)).after_P.tolist() == [False]  # pyright: ignore[reportArgumentType]
    # Which step has none cannot be told: what follows a mistake is behind its retraction, of which there is one.
    assert document_points([detour], [0], Losing(cut=False)).after_P.tolist() == [False, False, True]  # pyright: ignore[reportArgumentType]
