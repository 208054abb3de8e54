"""reask: another question of the same problem, which can be computed, with its operations counted anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_study.igsm.families import MED, MINI, NANO
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.splits import split_of
from peft_study.igsm.stream import WindowStream, document_tokens, draw_document
from peft_study.igsm.text import join, problem_words, question_words, solution_words, statement_words
from peft_study.igsm.verify import judge


@given(family=st.sampled_from([NANO, MINI, MED]), seed=st.integers(0, 10**6))
def test_another_question_is_answered_rightly(family, seed: int) -> None:
    op = family.op_max
    plain = StreamSettings(family=family, ops=(op,), seed=seed, split="validation")
    document = draw_document(plain.model_copy(update={"reask": True}), 0)
    problem = document.problem
    words = [word.text for word in solution_words(problem, document.solution, [])]
    assert words.count(";") == problem.op
    judgement = judge(join(problem_words(problem)), join(words), str(document.solution.answer), family.modulus)
    assert judgement.ok
    assert judgement.unnecessary == 0
    assert split_of(problem) == "validation"


def test_the_statement_stays_and_the_question_changes() -> None:
    settings = StreamSettings(family=NANO, ops=(4,))
    changed = 0
    for index in range(40):
        before = draw_document(settings, index).problem
        after = draw_document(settings.model_copy(update={"reask": True}), index).problem
        if statement_words(before) == statement_words(after):  # else no other question was of the split
            changed += 1
            assert question_words(before) != question_words(after)
    assert changed > 30


def test_what_nothing_was_computed_from_is_asked_for_too() -> None:
    settings = StreamSettings(family=MED, ops=(15,))
    asked = 0
    for index in range(40):
        before = draw_document(settings, index).problem
        after = draw_document(settings.model_copy(update={"reask": True}), index).problem
        if statement_words(before) == statement_words(after) and after.query in before.unused:
            asked += 1
            assert after.query in after.parents
            assert set(after.order) <= after.parents.keys()
            assert after.parents.keys().isdisjoint(after.unused)
            assert after.parents.keys() | after.unused.keys() == before.parents.keys() | before.unused.keys()
    assert asked > 3


def test_op_is_of_every_size() -> None:
    settings = StreamSettings(family=MED, ops=(15,), reask=True, split="test")
    ops = [draw_document(settings, index).problem.op for index in range(60)]
    assert len(set(ops)) > 8


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_stream_of_them_is_read_like_any_other(rate: float) -> None:
    settings = StreamSettings(family=NANO, reask=True, retry_rate=rate, kind="weak")
    first = document_tokens(settings, draw_document(settings, 0)).ids
    assert WindowStream(settings).read(1).ids[0, 1 : 1 + len(first)].tolist() == first.tolist()
