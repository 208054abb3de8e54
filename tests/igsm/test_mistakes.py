"""Mistakes: wrong by the text, as many as the rate says, and nothing else changed."""

from collections import Counter
from collections.abc import Callable
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from peft_study.errors import ConfigError
from peft_study.igsm.chance import Chance
from peft_study.igsm.families import MED, NANO
from peft_study.igsm.mistakes import draw_mistakes
from peft_study.igsm.parse import parse_step
from peft_study.igsm.problem import Parameter, Problem
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.solution import State, state_after
from peft_study.igsm.stream import Document, document_tokens, draw_document
from peft_study.igsm.text import join, problem_words, step_words
from peft_study.igsm.verify import Verifier

MakeDocument = Callable[..., Document]


def blocked(problem: Problem, state: State) -> set[Parameter]:
    """Return what cannot be computed yet."""
    every = problem.parents | problem.unused
    return {p for p, parents in every.items() if p not in state.known and not set(parents) <= state.known}


@given(op=st.integers(1, 6), rate=st.sampled_from([0.2, 0.6, 0.95]), seed=st.integers(0, 10**6))
def test_a_mistake_cannot_be_computed_where_it_stands(
    make_document: MakeDocument, op: int, rate: float, seed: int
) -> None:
    document = make_document(op, rate=rate, seed=seed)
    problem = document.problem
    verifier = Verifier(join(problem_words(problem)), NANO.modulus)
    for i, step in enumerate(document.solution.steps):
        tried = [mistake.parameter for mistake in document.mistakes if mistake.before == i]
        assert len(tried) == len(set(tried))
        for parameter in tried:
            assert not verifier.computable(problem.names(parameter))
            assert problem.names(parameter) not in verifier.known
        assert verifier.computable(problem.names(step.parameter))
        verifier.take(parse_step(join([w.text for w in step_words(problem, step)]).removesuffix(".")))
    assert [mistake.before for mistake in document.mistakes] == sorted(m.before for m in document.mistakes)


@given(op=st.integers(1, 6), rate=st.sampled_from([0.2, 0.6]), index=st.integers(0, 10**6))
def test_problem_and_solution_do_not_depend_on_the_rate(
    make_document: MakeDocument, op: int, rate: float, index: int
) -> None:
    clean, with_mistakes = make_document(op, index=index), make_document(op, rate=rate, index=index)
    assert clean.mistakes == []
    assert (clean.problem, clean.solution) == (with_mistakes.problem, with_mistakes.solution)


def test_rate_zero_is_the_identity() -> None:
    rate_zero = StreamSettings(family=NANO, retry_rate=0.0)
    never_asked = StreamSettings(family=NANO)
    for index in range(50):
        first, second = (draw_document(settings, index) for settings in (rate_zero, never_asked))
        assert first.mistakes == []
        assert document_tokens(rate_zero, first).ids.tobytes() == document_tokens(never_asked, second).ids.tobytes()


def test_mistakes_may_be_of_what_nothing_is_computed_from() -> None:
    settings = StreamSettings(family=MED, ops=(12,), retry_rate=0.5)
    unused = 0
    for index in range(40):
        document = draw_document(settings, index)
        problem = document.problem
        verifier = Verifier(join(problem_words(problem)), MED.modulus)
        for i, step in enumerate(document.solution.steps):
            for mistake in document.mistakes:
                if mistake.before == i:
                    unused += mistake.parameter in problem.unused
                    assert not verifier.computable(problem.names(mistake.parameter))
                    assert verifier.facts.expressions(problem.names(mistake.parameter))  # it exists
            verifier.take(parse_step(join([w.text for w in step_words(problem, step)]).removesuffix(".")))
    assert unused > 20


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_number_of_mistakes_is_geometric_where_the_pool_is_large(rate: float) -> None:
    """The mean of a geometric number is rate / (1 - rate), its variance rate / (1 - rate)^2."""
    counts: list[int] = []
    settings = StreamSettings(family=NANO, ops=(6,), retry_rate=rate)
    for index in range(600):
        document = draw_document(settings, index)
        before = Counter(mistake.before for mistake in document.mistakes)
        for step in range(len(document.problem.order)):
            state = state_after(document.problem, step)
            if len(blocked(document.problem, state)) >= 5:
                counts.append(before[step])
    expected = sum(rate**i for i in range(1, 6)) + rate**6 / 2  # cut where a pool of five or six is used up
    assert len(counts) > 300
    assert mean(counts) == pytest.approx(expected, abs=3.3 * rate**0.5 / (1 - rate) / len(counts) ** 0.5)


def test_mistakes_are_drawn_uniformly_from_the_pool(make_document: MakeDocument) -> None:
    problem = next(
        document.problem
        for document in (make_document(6, index=index) for index in range(100))
        if len(blocked(document.problem, state_after(document.problem, 0))) == 5
    )
    rng = Chance(0)
    drawn = [draw_mistakes(rng, problem, 0.5) for _ in range(1_500)]
    first = Counter(mistakes[0].parameter for mistakes in drawn if mistakes and mistakes[0].before == 0)
    expected = first.total() / 5
    assert len(first) == 5
    assert sum((count - expected) ** 2 / expected for count in first.values()) < 18.47  # 99.9 %, 4 degrees


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rate_outside_its_range_is_an_error(make_document: MakeDocument, rate: float) -> None:
    with pytest.raises(ConfigError, match=r"retry_rate must be in \[0, 1\)"):
        draw_mistakes(Chance(0), make_document(1).problem, rate)
    with pytest.raises(ValidationError):
        StreamSettings(family=NANO, retry_rate=rate)


def test_a_pool_that_is_used_up_ends_the_mistakes(make_document: MakeDocument) -> None:
    document = make_document(6, rate=0.9999)
    wrong = [
        len(blocked(document.problem, state))
        for state in (state_after(document.problem, step) for step in range(len(document.problem.order)))
    ]
    before = Counter(mistake.before for mistake in document.mistakes)
    assert [before[step] for step in range(len(wrong))] == wrong
