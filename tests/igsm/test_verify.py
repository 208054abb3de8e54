"""The verifier: every clean solution is right, every damage is found where it is and called what it is."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peft_study.igsm.chance import Chance
from peft_study.igsm.families import MED, NANO
from peft_study.igsm.problem import Parameter, Problem, num_ops
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.solution import Calculation, Operand, Solution, Step, apply, solve
from peft_study.igsm.stream import Document, draw_document
from peft_study.igsm.text import join, mistake_words, problem_words, solution_words, step_words
from peft_study.igsm.verify import Judgement, Verdict, judge
from peft_study.igsm.vocabulary import LETTERS

MakeDocument = Callable[..., Document]

asked: dict[str, st.SearchStrategy[Any]] = {
    "op": st.integers(1, 6),
    "seed": st.integers(0, 10**6),
    "rule": st.sampled_from(["strict", "published"]),
}


class Damaged(NamedTuple):
    """A solution with one fault, and what must be said of it."""

    sentences: list[str]
    answer: str
    verdict: Verdict
    index: int


Damage = Callable[[Document, Random], Damaged | None]


def sentence(problem: Problem, step: Step) -> str:
    return join([word.text for word in step_words(problem, step)])


def sentences_of(problem: Problem, steps: tuple[Step, ...] | list[Step]) -> list[str]:
    return [sentence(problem, step) for step in steps]


def judged(problem: Problem, sentences: list[str], answer: str, rule: str = "strict") -> Judgement:
    return judge(join(problem_words(problem)), "".join(sentences), answer, problem.family.modulus, rule=rule)


def check(document: Document, damaged: Damaged, rule: str = "strict") -> None:
    judgement = judged(document.problem, damaged.sentences, damaged.answer, rule)
    assert (judgement.outcome, judgement.first_wrong_step) == (damaged.verdict, damaged.index), judgement.reason
    assert not judgement.ok
    assert judgement.reason


@given(**asked, rate=st.sampled_from([0.0, 0.3, 0.8]), order=st.sampled_from(["pq", "qp"]))
def test_clean_solutions_are_right_with_and_without_retractions(
    make_document: MakeDocument, op: int, seed: int, rule: str, rate: float, order: str
) -> None:
    document = make_document(op, rate=rate, seed=seed)
    problem, solution = document.problem, document.solution
    sentences: list[str] = []
    verdicts: list[Verdict] = []
    for i, step in enumerate(solution.steps):
        taken_back = [mistake for mistake in document.mistakes if mistake.before == i]
        sentences += [join([word.text for word in mistake_words(problem, mistake)]) for mistake in taken_back]
        sentences.append(sentence(problem, step))
        verdicts += [*[Verdict.RETRACTED] * len(taken_back), Verdict.RIGHT]
    text = join(problem_words(problem, order))
    judgement = judge(text, "".join(sentences), str(solution.answer), NANO.modulus, rule=rule)
    assert judgement == Judgement(tuple(verdicts), "", len(document.mistakes), 0)
    assert judgement.ok
    assert judgement.first_departure == judgement.outcome == Verdict.RIGHT
    assert judgement.first_wrong_step is None


@given(**asked)
def test_a_mistake_made_in_earnest_is_not_computable(
    make_document: MakeDocument, op: int, seed: int, rule: str
) -> None:
    """`Define X as [BACK].` turned into a whole step with letters and numbers that look right."""
    document = make_document(op, rate=0.5, seed=seed)
    assume(document.mistakes)
    mistake = document.mistakes[seed % len(document.mistakes)]
    problem, steps = document.problem, document.solution.steps
    letters = [c.letter for step in steps for c in step.calculations]
    free = [letter for letter in LETTERS if letter not in letters][:2]
    left = Operand(letters[0], steps[0].calculations[0].result) if mistake.before else Operand("", 3)
    bold = sentence(problem, Step(mistake.parameter, (Calculation(free[0], left, "", None, left.value),)))
    clean = sentences_of(problem, steps)
    wrong = [*clean[: mistake.before], bold, *clean[mistake.before :]]
    check(document, Damaged(wrong, str(document.solution.answer), Verdict.NOT_COMPUTABLE, mistake.before), rule)


def _replaced(document: Document, k: int, j: int, new: Calculation) -> list[str]:
    """Return the solution's sentences with calculation `j` of step `k` replaced."""
    steps = list(document.solution.steps)
    calculations = list(steps[k].calculations)
    calculations[j] = new
    steps[k] = Step(steps[k].parameter, tuple(calculations))
    return sentences_of(document.problem, steps)


def _places(document: Document, wanted: Callable[[Calculation], bool]) -> list[tuple[int, int]]:
    return [
        (k, j)
        for k, step in enumerate(document.solution.steps)
        for j, calculation in enumerate(step.calculations)
        if wanted(calculation)
    ]


def _recomputed(document: Document, calculation: Calculation, **changes: Any) -> Calculation:
    """Return `calculation` with changes, its result put right again."""
    changed = calculation._replace(**changes)
    if changed.right is None:
        return changed._replace(result=changed.left.value)
    result = apply(changed.operator, changed.left.value, changed.right.value, document.problem.family.modulus)
    return changed._replace(result=result)


def _damage_calculation(
    document: Document,
    rng: Random,
    wanted: Callable[[Calculation], bool],
    change: Callable[[Calculation], Calculation],
    verdict: Verdict,
) -> Damaged | None:
    places = _places(document, wanted)
    if not places:
        return None
    k, j = rng.choice(places)
    new = change(document.solution.steps[k].calculations[j])
    return Damaged(_replaced(document, k, j, new), str(document.solution.answer), verdict, k)


def other(value: int, rng: Random, document: Document) -> int:
    """Return another number below the modulus."""
    modulus = document.problem.family.modulus
    return (value + rng.randrange(1, modulus)) % modulus


def wrong_result(document: Document, rng: Random) -> Damaged | None:
    def change(c: Calculation) -> Calculation:
        return c._replace(result=other(c.result, rng, document))

    return _damage_calculation(document, rng, lambda c: c.right is not None, change, Verdict.ARITHMETIC)


def wrong_copy(document: Document, rng: Random) -> Damaged | None:
    def change(c: Calculation) -> Calculation:
        return c._replace(result=other(c.result, rng, document))

    wanted: Callable[[Calculation], bool] = lambda c: c.right is None and bool(c.left.letter)  # noqa: E731
    return _damage_calculation(document, rng, wanted, change, Verdict.LOOKUP)


def wrong_number(document: Document, rng: Random) -> Damaged | None:
    def change(c: Calculation) -> Calculation:
        assert c.right is not None
        return _recomputed(document, c, right=c.right._replace(value=other(c.right.value, rng, document)))

    wanted: Callable[[Calculation], bool] = lambda c: c.right is not None  # noqa: E731
    return _damage_calculation(document, rng, wanted, change, Verdict.LOOKUP)


def wrong_constant(document: Document, rng: Random) -> Damaged | None:
    def change(c: Calculation) -> Calculation:
        return _recomputed(document, c, left=c.left._replace(value=other(c.left.value, rng, document)))

    return _damage_calculation(document, rng, lambda c: not c.left.letter, change, Verdict.LOOKUP)


def wrong_operator(document: Document, rng: Random) -> Damaged | None:
    def change(c: Calculation) -> Calculation:
        return _recomputed(document, c, operator=rng.choice([sign for sign in "+-*" if sign != c.operator]))

    return _damage_calculation(document, rng, lambda c: c.right is not None, change, Verdict.LOOKUP)


def turned_difference(document: Document, rng: Random) -> Damaged | None:
    def change(c: Calculation) -> Calculation:
        return _recomputed(document, c, left=c.right, right=c.left)

    return _damage_calculation(document, rng, lambda c: c.operator == "-", change, Verdict.LOOKUP)


def wrong_letter(document: Document, rng: Random) -> Damaged | None:
    """Another parameter's letter, with that letter's own value."""
    owns = [Operand(s.calculations[-1].letter, s.calculations[-1].result) for s in document.solution.steps]
    places = [
        (k, j, [operand for operand in owns[:k] if operand.letter != c.left.letter])
        for k, step in enumerate(document.solution.steps)
        for j, c in enumerate(step.calculations)
        if c.left.letter
    ]
    places = [place for place in places if place[2]]
    if not places:
        return None
    k, j, operands = rng.choice(places)
    new = _recomputed(document, document.solution.steps[k].calculations[j], left=rng.choice(operands))
    return Damaged(_replaced(document, k, j, new), str(document.solution.answer), Verdict.LOOKUP, k)


def unbound_letter(document: Document, rng: Random) -> Damaged | None:
    used = {c.letter for step in document.solution.steps for c in step.calculations}
    letter = next(letter for letter in LETTERS if letter not in used)

    def change(c: Calculation) -> Calculation:
        return c._replace(left=c.left._replace(letter=letter))

    return _damage_calculation(document, rng, lambda c: bool(c.left.letter), change, Verdict.LOOKUP)


def reused_letter(document: Document, rng: Random) -> Damaged | None:
    steps = document.solution.steps
    if len(steps) < 2:
        return None
    k = rng.randrange(1, len(steps))
    j = rng.randrange(len(steps[k].calculations))
    bound = rng.choice([c.letter for step in steps[:k] for c in step.calculations])
    new = steps[k].calculations[j]._replace(letter=bound)
    return Damaged(_replaced(document, k, j, new), str(document.solution.answer), Verdict.LETTER, k)


def missing_parent(document: Document, rng: Random) -> Damaged | None:
    problem, steps = document.problem, document.solution.steps
    if len(steps) < 2:
        return None
    k = rng.randrange(len(steps) - 1)
    kept = [*steps[:k], *steps[k + 1 :]]
    first = next(i for i, step in enumerate(kept) if steps[k].parameter in problem.parents[step.parameter])
    return Damaged(sentences_of(problem, kept), str(document.solution.answer), Verdict.NOT_COMPUTABLE, first)


def swapped_steps(document: Document, rng: Random) -> Damaged | None:
    problem, steps = document.problem, list(document.solution.steps)
    places = [k for k in range(1, len(steps)) if steps[k - 1].parameter in problem.parents[steps[k].parameter]]
    if not places:
        return None
    k = rng.choice(places)
    steps[k - 1], steps[k] = steps[k], steps[k - 1]
    return Damaged(sentences_of(problem, steps), str(document.solution.answer), Verdict.NOT_COMPUTABLE, k - 1)


def unknown_parameter(document: Document, rng: Random) -> Damaged | None:
    sentences = sentences_of(document.problem, document.solution.steps)
    k = rng.randrange(len(sentences))
    sentences.insert(k, " Define Nowhere's Nothing as Z; so Z = 1.")
    return Damaged(sentences, str(document.solution.answer), Verdict.NOT_COMPUTABLE, k)


def category_of_another_world(document: Document, rng: Random) -> Damaged | None:
    """A category that no item of the problem is of: the text says nothing of it."""
    sentences = sentences_of(document.problem, document.solution.steps)
    owner = document.problem.names(document.problem.order[0])[0]
    category = "Insect" if "Insect" not in document.problem.categories else "Band"
    k = rng.randrange(len(sentences))
    sentences.insert(k, f" Define {owner}'s {category} as Z; so Z = 1.")
    return Damaged(sentences, str(document.solution.answer), Verdict.NOT_COMPUTABLE, k)


def repeated_step(document: Document, rng: Random) -> Damaged | None:
    sentences = sentences_of(document.problem, document.solution.steps)
    k = rng.randrange(len(sentences))
    sentences.insert(k + 1, sentences[k])
    return Damaged(sentences, str(document.solution.answer), Verdict.REPEATED, k + 1)


def early_stop(document: Document, rng: Random) -> Damaged | None:
    steps = document.solution.steps[: rng.randrange(len(document.solution.steps))]
    answer = str(steps[-1].calculations[-1].result) if steps else ""
    return Damaged(sentences_of(document.problem, steps), answer, Verdict.EARLY_STOP, len(steps))


def wrong_answer(document: Document, rng: Random) -> Damaged | None:
    steps, answer = document.solution.steps, str(other(document.solution.answer, rng, document))
    return Damaged(sentences_of(document.problem, steps), answer, Verdict.ANSWER, len(steps))


def cut_sentence(document: Document, rng: Random) -> Damaged | None:
    sentences = sentences_of(document.problem, document.solution.steps)
    words = sentences[-1].split(" ")
    sentences[-1] = " ".join(words[: rng.randrange(2, len(words))])
    return Damaged(sentences, str(document.solution.answer), Verdict.UNPARSABLE, len(sentences) - 1)


def garbage(document: Document, rng: Random) -> Damaged | None:
    sentences = sentences_of(document.problem, document.solution.steps)
    k = rng.randrange(len(sentences))
    sentences[k] = sentences[k].replace("; so ", "; so so ")
    return Damaged(sentences, str(document.solution.answer), Verdict.UNPARSABLE, k)


DAMAGES: list[Damage] = [
    *(wrong_result, wrong_copy, wrong_number, wrong_constant, wrong_operator, turned_difference, wrong_letter),
    *(unbound_letter, reused_letter, missing_parent, swapped_steps, unknown_parameter),
    *(category_of_another_world, repeated_step, early_stop, wrong_answer, cut_sentence, garbage),
]
SEEN_BY_STRICT_ALONE = (wrong_constant, wrong_operator, turned_difference, wrong_letter)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@given(op=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_damage_is_found_where_it_is(make_document: MakeDocument, damage: Damage, op: int, seed: int) -> None:
    # Not every solution has a place for every damage, nor has every op one that does.
    documents = (make_document(min(op + index // 20, 6), seed=seed, index=index) for index in range(200))
    tried = ((document, damage(document, Random(seed))) for document in documents)
    document, damaged = next((document, damaged) for document, damaged in tried if damaged is not None)
    check(document, damaged)
    if damage not in SEEN_BY_STRICT_ALONE:
        check(document, damaged, "published")
    # A retraction before it moves the place and nothing else.
    back = " Define Nowhere's Nothing as [BACK]."
    moved = damaged._replace(sentences=[back, *damaged.sentences], index=damaged.index + 1)
    check(document, moved)


MUTATIONS = int(os.environ.get("PEFT_STUDY_MUTATIONS", "400"))


def test_solutions_of_the_papers_size_are_accepted_and_each_damaged_one_is_rejected() -> None:
    """PEFT_STUDY_MUTATIONS=10000 for more of them."""
    settings = StreamSettings(family=MED, split="test", retry_rate=0.2, kind="miss", seed=1)
    tried = Counter[str]()
    for index in range(MUTATIONS):
        document, rng = draw_document(settings, index), Random(index)
        for shift in range(len(DAMAGES)):
            damage = DAMAGES[(index + shift) % len(DAMAGES)]
            if damaged := damage(document, rng):
                check(document, damaged)
                tried[damage.__name__] += 1
                break
        words = [word.text for word in solution_words(document.problem, document.solution, document.mistakes)]
        problem = join(problem_words(document.problem))
        assert judge(problem, join(words), str(document.solution.answer), MED.modulus).ok
    assert tried.total() == MUTATIONS
    assert len(tried) == len(DAMAGES)


@given(op=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_sums_and_products_commute(make_document: MakeDocument, op: int, seed: int) -> None:
    document = make_document(op, seed=seed)
    places = _places(document, lambda c: c.operator in ("+", "*"))
    assume(places)
    k, j = places[seed % len(places)]
    c = document.solution.steps[k].calculations[j]
    turned = _replaced(document, k, j, c._replace(left=c.right, right=c.left))
    assert judged(document.problem, turned, str(document.solution.answer)).ok


@given(op=st.integers(1, 5), seed=st.integers(0, 10**6), rule=st.sampled_from(["strict", "published"]))
def test_an_unnecessary_step_is_counted_and_not_wrong(
    make_document: MakeDocument, op: int, seed: int, rule: str
) -> None:
    problem = make_document(op, seed=seed).problem
    unnecessary = [
        p for p in problem.formulas if p not in problem.order and set(problem.parents[p]) <= set(problem.order[:-1])
    ]
    assume(unnecessary)
    solution = with_step(problem, unnecessary[0], seed)
    at = [step.parameter for step in solution.steps].index(unnecessary[0])
    judgement = judged(problem, sentences_of(problem, solution.steps), str(solution.answer), rule)
    assert judgement.ok
    assert judgement.unnecessary == 1
    assert judgement.steps[at] == Verdict.UNNECESSARY
    # In a wrong solution it is where the solution left the way.
    wrong = judged(problem, sentences_of(problem, solution.steps[: at + 1]), "0", rule)
    assert wrong.outcome == Verdict.EARLY_STOP
    assert wrong.first_departure == Verdict.UNNECESSARY


def with_step(problem: Problem, parameter: Parameter, seed: int) -> Solution:
    """Return a solution that also defines `parameter`, just before the last step."""
    formula = problem.formulas[parameter]
    more = num_ops(len(formula.operands) + (formula.constant is not None))
    order = (*problem.order[:-1], parameter, problem.order[-1])
    return solve(dataclasses.replace(problem, order=order, op=problem.op + more), Chance(seed))


@given(op=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_published_rule_overlooks_a_constant_but_not_the_wrong_answer(
    make_document: MakeDocument, op: int, seed: int
) -> None:
    """With another constant in the last step all is consistent but for the answer, which the published rule knows."""
    document = make_document(op, seed=seed)
    k = len(document.solution.steps) - 1
    places = [place for place in _places(document, lambda c: not c.left.letter) if place[0] == k]
    assume(places and places[0][1] == len(document.solution.steps[k].calculations) - 1)
    c = document.solution.steps[k].calculations[-1]
    for constant in range(document.problem.family.modulus):
        new = _recomputed(document, c, left=c.left._replace(value=constant))
        sentences = _replaced(document, k, places[0][1], new)
        outcomes = {
            rule: judged(document.problem, sentences, str(new.result), rule).outcome for rule in ("strict", "published")
        }
        right_value, right_constant = new.result == c.result, constant == c.left.value
        assert outcomes["published"] == (Verdict.RIGHT if right_value else Verdict.ANSWER)
        assert outcomes["strict"] == (Verdict.RIGHT if right_constant else Verdict.LOOKUP)


@given(op=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_published_rule_compares_parents(make_document: MakeDocument, op: int, seed: int) -> None:
    """A letter that is not one of the parameter's parents is wrong by both rules."""
    document = make_document(op, seed=seed)
    steps = document.solution.steps
    copies = [k for k, step in enumerate(steps) if len(step.calculations) == 1 and step.calculations[0].right is None]
    copies = [k for k in copies if k > 1 and steps[k].calculations[0].left.letter]
    assume(copies)
    k = copies[0]
    c = steps[k].calculations[0]
    stranger = next(s.calculations[-1] for s in steps[:k] if s.calculations[-1].letter != c.left.letter)
    new = _recomputed(document, c, left=Operand(stranger.letter, stranger.result))
    check(document, Damaged(_replaced(document, k, 0, new), "", Verdict.LOOKUP, k), "published")


def test_judging_without_an_answer_leaves_it_out(make_document: MakeDocument) -> None:
    document = make_document(3)
    text = "".join(sentences_of(document.problem, document.solution.steps))
    assert judge(join(problem_words(document.problem)), text, None, NANO.modulus).ok
    assert not judge(join(problem_words(document.problem)), text, "", NANO.modulus).ok
