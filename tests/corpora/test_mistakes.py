"""Mistakes in texts: as many as the rate says, none that is right or gives an answer, and nothing else changed."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from peft_study.corpora import gsm8k, math
from peft_study.corpora.arithmetic import equations, numbers
from peft_study.corpora.mistakes import Kind, MistakeConfig, documents
from peft_study.corpora.records import Document, Problem, Segment
from peft_study.corpora.steps import Form, same, split_lead
from peft_study.errors import ConfigError
from peft_study.records import Grade
from tests.corpora.reading import labels

KINDS: tuple[Kind, ...] = ("weak", "miss", "foreign", "number")

CLIPS = Problem(
    "gsm8k/test/0",
    "Of 48 friends and 9 cousins, half came in 3 cars. How many in all?",
    "So 48/2 = 24 friends came.\nWith the cousins it is 24+9 = 33.\nA car took 33/3 = 11 of them.\n#### 33",
    "33",
)
APPLES = Problem("gsm8k/test/1", "5 apples and 2?", "She has 5+2 = 7 apples.\nNo more come.\n#### 7", "7")
VECTOR = Problem(
    "math/test/0",
    "For $x = 3$ and 17, what is $y$?",
    "We have $x = 3.$  Also,\n\\[y = 4x - 5.\\]Thus $y = 7$, or so.\n\nHence it is $\\boxed{7}.$",
    "7",
)
OTHER = Problem("math/test/1", "What is $z$?", "Let $z = 12$ be it. So it is $\\boxed{12}.$", "12")
CORPORA: dict[str, tuple[list[Problem], Form]] = {
    "gsm8k": ([CLIPS, APPLES], gsm8k.FORM),
    "math": ([VECTOR, OTHER], math.FORM),
}


def made(
    problems: list[Problem], form: Form, kind: Kind, *, rate: float = 0.5, seed: int = 0, retraction: str = "No."
) -> list[Document]:
    config = MistakeConfig(kind=kind, retry_rate=rate, seed=seed, retraction=retraction)
    return list(documents(problems, config, form))


def solution(document: Document) -> tuple[Segment, ...]:
    return document.turns[1].segments


def mistakes(document: Document) -> list[tuple[int, str]]:
    """Return each mistake's body with the number of right steps before it."""
    found, steps = [], 0
    for segment in solution(document):
        if segment.kind == "mistake":
            found.append((steps, split_lead(segment.text)[1]))
        steps += segment.kind == "step"
    return found


def published(corpus: str) -> tuple[list[Problem], Form]:
    data = os.environ.get("PEFT_STUDY_DATA")
    if not data:
        pytest.skip("PEFT_STUDY_DATA is unset: no GSM8K, no MATH500")
    if corpus == "gsm8k":
        return gsm8k.load(Path(data) / "gsm8k", "test"), gsm8k.FORM
    return math.load(Path(data) / "math500", "test"), math.FORM


# ---- the form of a document


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.3, 0.8]))
def test_only_mistakes_and_retractions_are_put_in(corpus: str, kind: Kind, seed: int, rate: float) -> None:
    problems, form = CORPORA[corpus]
    for problem, document in zip(problems, made(problems, form, kind, rate=rate, seed=seed), strict=True):
        assert document.id == problem.id
        assert [turn.role for turn in document.turns] == ["user", "assistant"]
        assert document.turns[0].segments == (Segment(f"{problem.question}\n", "prompt"),)
        clean = [split_lead(step)[1] for step in form.cut(problem.solution)]
        assert [split_lead(s.text)[1] for s in solution(document) if s.kind == "step"] == clean
        # Every mistake is taken back at once.
        kinds = [segment.kind for segment in solution(document)]
        behind = [after for before, after in pairwise(kinds) if before == "mistake"]
        assert behind == ["retraction"] * kinds.count("mistake")
        assert labels(document) == [kind == "mistake" for kind in kinds if kind != "retraction"]
        for at, body in mistakes(document):
            assert not any(same(body, step) for step in clean[: at + 1])
            assert kind == "weak" or not any(same(body, step) for step in clean)
            assert form.is_usable(body)
            assert not form.is_answer(body)
        # No mistake stands twice at one place.
        assert len(set(mistakes(document))) == len(mistakes(document))


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("retraction", ["No.", "[BACK]", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_is_formatted_as_the_step_in_its_place(corpus: str, retraction: str, kind: Kind) -> None:
    """Nothing around a body tells a mistake from a right step: same lead at the same place, no white space behind."""
    problems, form = CORPORA[corpus]
    seen = 0
    for seed in range(30):
        for problem, document in zip(
            problems, made(problems, form, kind, seed=seed, retraction=retraction), strict=True
        ):
            leads = [split_lead(step)[0] for step in form.cut(problem.solution)]
            at, first = 0, True
            for segment in solution(document):
                assert segment.text == segment.text.rstrip()
                # At its place, what comes first has the step's own lead, what comes later never has none.
                assert split_lead(segment.text)[0] == (leads[at] if first else leads[at] or form.lead)
                seen += segment.kind == "mistake"
                first = segment.kind == "step"
                at += first
    assert seen > 20


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("kind", KINDS)
def test_rate_zero_changes_nothing(corpus: str, kind: Kind) -> None:
    problems, form = CORPORA[corpus]
    documents_ = made(problems, form, kind, rate=0.0)
    assert [document.turns[1].text for document in documents_] == [problem.solution for problem in problems]
    assert not any(any(labels(document)) for document in documents_)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bytes_whatever_the_order(kind: Kind) -> None:
    problems, form = CORPORA["gsm8k"]
    forwards = {document.id: document for seed in [3] for document in made(problems, form, kind, seed=seed)}
    backwards = {document.id: document for document in made(problems[::-1], form, kind, seed=3)}
    assert forwards == backwards
    assert any(made(problems, form, kind, seed=seed) != list(forwards.values()) for seed in range(4, 9))
    # The same mistakes with another retraction, or none.
    silent = made(problems, form, kind, seed=3, retraction="")
    assert [mistakes(document) for document in silent] == [mistakes(document) for document in forwards.values()]
    assert not any(segment.kind == "retraction" for document in silent for segment in solution(document))


def test_mistakes_are_as_many_as_the_rate_says() -> None:
    """Geometric: rate / (1 - rate) a step where the pool does not run out."""
    many = [CLIPS._replace(id=f"gsm8k/test/{i}") for i in range(400)]
    found = [len(mistakes(document)) for document in made(many, gsm8k.FORM, "number", rate=0.3)]
    assert sum(found) / len(found) == pytest.approx(3 * 0.3 / 0.7, rel=0.1)


# ---- what each kind gives


def draws(problems: list[Problem], form: Form, kind: Kind) -> set[tuple[int, str]]:
    return {found for seed in range(300) for found in mistakes(made(problems, form, kind, rate=0.6, seed=seed)[0])}


def test_weak_gives_later_steps_too_early() -> None:
    assert draws([CLIPS], gsm8k.FORM, "weak") == {
        (0, "With the cousins it is 24+9 = 33."),
        (0, "A car took 33/3 = 11 of them."),
        (1, "A car took 33/3 = 11 of them."),
    }


def test_no_mistake_says_what_is_right_there() -> None:
    again = CLIPS._replace(solution="So 4+4 = 8.\nWait.\nSo 4+4  =  8.\nThen 8-1 = 7.\nWait.\n#### 7")
    assert draws([again], gsm8k.FORM, "weak") == {
        (0, "Wait."),
        (0, "Then 8-1 = 7."),
        (1, "Then 8-1 = 7."),
        (2, "Then 8-1 = 7."),
    }
    echo = APPLES._replace(solution="So  48/2 = 24 friends came.\nNo more come.\n#### 7")
    assert {body for _, body in draws([CLIPS, echo], gsm8k.FORM, "foreign")} == {"No more come."}


def test_miss_takes_up_numbers_that_the_solution_has_not_reached() -> None:
    assert draws([CLIPS], gsm8k.FORM, "miss") == {
        (0, "So 9/2 = 4.5 friends came."),
        (0, "So 3/2 = 1.5 friends came."),
        (0, "So 48/3 = 16 friends came."),
        # 48/9 has no end.
        (1, "With the cousins it is 3+9 = 12."),
        (1, "With the cousins it is 24+3 = 27."),
    }
    assert (0, "We have $x = 17.$") in draws([VECTOR], math.FORM, "miss")


def test_foreign_gives_steps_of_other_problems() -> None:
    found = draws([CLIPS, APPLES], gsm8k.FORM, "foreign")
    assert {body for _, body in found} == {"She has 5+2 = 7 apples.", "No more come."}
    assert {at for at, _ in found} == {0, 1, 2, 3}
    assert draws([CLIPS], gsm8k.FORM, "foreign") == set()


def test_number_makes_the_last_equation_false() -> None:
    found = draws([CLIPS], gsm8k.FORM, "number")
    assert {at for at, _ in found} == {0, 1, 2}
    assert len(found) > 12
    for at, body in found:
        (equation,) = equations(body)
        assert equation.false
        clean = split_lead(gsm8k.cut(CLIPS.solution)[at])[1]
        assert [n.value for n in numbers(body)][:2] == [n.value for n in numbers(clean)][:2]
    assert {body for _, body in draws([OTHER], math.FORM, "number")} > {"Let $z = 13$ be it.", "Let $z = 21$ be it."}


def test_a_rewriter_is_for_one_kind_only() -> None:
    class Fake:
        def rewrite(self, problem: Problem, steps: list[str], at: int, rng_seed: int) -> str | None:
            return f"Wrong {at}, {rng_seed % 3}." if at else None

    config = MistakeConfig(kind="rewritten", retry_rate=0.5)
    (document,) = documents([CLIPS], config, gsm8k.FORM, Fake())
    found = mistakes(document)
    assert {body[:7] for _, body in found} <= {"Wrong 1", "Wrong 2"}
    assert found
    # Not three alike at one place, though the model may say so.
    assert len(set(found)) == len(found)
    for kind, rewriter in (("rewritten", None), ("weak", Fake())):
        with pytest.raises(ConfigError, match="give a rewriter for `rewritten`, and only there"):
            list(documents([CLIPS], MistakeConfig(kind=kind), gsm8k.FORM, rewriter))  # type: ignore[arg-type]


@pytest.mark.parametrize("retraction", [" No.", "No.\n", "#### 3", "\\boxed{3}", "The Answer is wrong.", "answer: no"])
def test_a_retraction_cannot_be_taken_for_something_else(retraction: str) -> None:
    with pytest.raises(ValidationError, match="retraction must have no white space around it and no mark of an answer"):
        MistakeConfig(retraction=retraction)


@pytest.mark.parametrize("wrong", [{"retry_rate": 1}, {"retry_rate": -0.1}, {"kind": "strong"}, {"rate": 0.5}])
def test_a_config_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MistakeConfig.model_validate(wrong)


# ---- real problems


@pytest.mark.parametrize("retraction", ["Wait, that last step is wrong.", ""])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("corpus", CORPORA)
def test_solutions_with_mistakes_parse_and_are_graded_as_built(corpus: str, kind: Kind, retraction: str) -> None:
    problems, form = published(corpus)
    found = made(problems, form, kind, rate=0.3, retraction=retraction)
    num_mistakes = 0
    with math.MathGrader() as grader:
        grade: Callable[[Problem, str], Grade] = gsm8k.grade if corpus == "gsm8k" else grader.grade
        for problem, document in zip(problems, found, strict=True):
            assert grade(problem, document.turns[1].text) == Grade.RIGHT
            assert len(labels(document)) == sum(s.kind in ("step", "mistake") for s in solution(document))
            num_mistakes += len(mistakes(document))
            # A line is still a line.
            if corpus == "gsm8k":
                bodies = [split_lead(step)[1] for step in form.cut(document.turns[1].text)]
                assert bodies == [split_lead(segment.text)[1] for segment in solution(document)]
    assert num_mistakes > len(problems) / 4
