"""Detection measured: decision points of every set against the verifier, scores and metrics by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from peft_study.decoding.engine import make_decoder
from peft_study.evaluation.detecting import (
    Points,
    detection_measures,
    injected_points,
    own_coverage,
    own_points,
    padded_reader,
    pair_points,
    ranking_measures,
    score_points,
)
from peft_study.evaluation.problems import Attempt, draw_problems, prompt_ids, read_attempt
from peft_study.igsm.families import NANO
from peft_study.igsm.parse import parse_step
from peft_study.igsm.stream import Document
from peft_study.igsm.text import join, problem_words, split
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.verify import Verifier
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner

WORDS = list(word_ids(NANO))
FIRST = "Define Caldera's Highwall as c; so c = 3. "
SECOND = "Define Elvaria's Eaglecrag as d; so d = 4 * c = 4 * 3 = 2. "
THIRD = "Define Elvaria's Highwall as e; so e = d - c = 2 - 3 = 4. "
NOT_YET = "Define Elvaria's Highwall as e; so e = c = 3. "
TAKEN_BACK = "Define Elvaria's Highwall as [BACK]. "


def words_before(points: Points, point: int) -> list[str]:
    """Return the words up to and with the one that a point is at."""
    sequence = points.sequences[points.sequence_P[point]]
    return [WORDS[i] for i in sequence[: points.position_P[point] + 1]]


def is_wrong(document: Document, words: list[str]) -> bool:
    """Return what the verifier says of a prefix that ends with `Define X as`, from the texts alone."""
    verifier = Verifier(join(problem_words(document.problem)), NANO.modulus)
    solution = join(words[words.index("[SOLUTION]") + 1 :])
    *sentences, last = solution.strip().split(". ")
    for sentence in sentences:
        step = parse_step(sentence)
        if not step.retracted:
            verifier.take(step)
    owner, thing = last.removeprefix("Define ").removesuffix(" as").split("'s ")
    return not verifier.computable((owner, thing))


@pytest.fixture(scope="module")
def documents() -> Sequence[Document]:
    return draw_problems(NANO, 5, 40, split="validation", seed=0, retry_rate=0.4)


def test_injected_points_by_hand(hand_document: Document) -> None:
    points = injected_points([hand_document], "pq")
    ends = [words_before(points, i)[-5:] for i in range(3)]
    assert ends == [
        ["Define", "Caldera", "'s", "Highwall", "as"],
        ["Define", "Elvaria", "'s", "Highwall", "as"],
        ["Define", "Elvaria", "'s", "Eaglecrag", "as"],
    ]
    assert points.label_P.tolist() == [0, 1, 0]
    assert points.after_P.tolist() == [False, False, True]
    assert points.problem_P.tolist() == [0, 0, 0]
    assert WORDS[points.sequences[0][0]] == "[END]"


def test_injected_labels_are_those_of_the_verifier(documents: Sequence[Document]) -> None:
    points = injected_points(documents, "pq")
    assert len(points.label_P) == sum(len(d.mistakes) + len(d.solution.steps) for d in documents)
    assert points.label_P.sum() == sum(len(d.mistakes) for d in documents) > 20
    for i, label in enumerate(points.label_P):
        words = words_before(points, i)
        assert is_wrong(documents[points.problem_P[i]], words) == label
        assert points.after_P[i] == ("[BACK]" in words)


def test_pair_labels_are_those_of_the_verifier(documents: Sequence[Document]) -> None:
    points = pair_points(documents, "pq", seed=0)
    assert len(points.label_P) == len(documents)
    assert set(points.label_P) == {0, 1}
    for i, label in enumerate(points.label_P):
        words = words_before(points, i)
        assert points.position_P[i] == len(points.sequences[i]) - 1
        assert join(words).count(join(words[-5:])) == 1  # it is not known yet
        assert is_wrong(documents[i], words) == label
    again, other = pair_points(documents, "pq", seed=0), pair_points(documents, "pq", seed=1)
    assert again.sequences == points.sequences != other.sequences


@pytest.fixture
def read(hand_document: Document) -> Callable[[str], Attempt]:
    return lambda text: read_attempt([word_ids(NANO)[word] for word in split(text)], hand_document, "pq")


@pytest.mark.parametrize(
    ("text", "labels", "after"),
    [
        (FIRST + SECOND + "[ANSWER] 2 [END]", [0, 0], [0, 0]),
        (FIRST + SECOND + THIRD + "[ANSWER] 2 [END]", [0, 0, 0], [0, 0, 0]),  # unnecessary, not wrong
        (FIRST + NOT_YET + SECOND, [0, 1], [0, 0]),  # nothing after the first wrong step
        (FIRST + FIRST, [0, 1], [0, 0]),
        (FIRST + TAKEN_BACK + SECOND, [0, 0], [0, 1]),  # the mistake that is taken back is none of these
        (TAKEN_BACK + NOT_YET, [1], [1]),
        (FIRST + SECOND.replace("3 = 2", "3 = 1"), [0], [0]),  # arithmetic cannot be seen at `as`
        (FIRST + "Define Elvaria's", [0], [0]),
    ],
)
def test_own_points_by_hand(
    read: Callable[[str], Attempt], hand_document: Document, text: str, labels: list[int], after: list[int]
) -> None:
    attempt = read(text)
    points = own_points([hand_document, hand_document], [attempt, attempt], "pq")
    assert points.label_P.tolist() == labels * 2
    assert points.after_P.tolist() == [bool(flag) for flag in after * 2]
    assert points.problem_P.tolist() == [0] * len(labels) + [1] * len(labels)
    for i, label in enumerate(points.label_P):
        words = words_before(points, i)
        assert words[-1] == "as"
        assert words[: len(prompt_ids(hand_document, "pq"))][-1] == "[SOLUTION]"
        assert is_wrong(hand_document, words) == label


def test_own_points_keep_the_number_of_the_problem(read: Callable[[str], Attempt], hand_document: Document) -> None:
    attempts = [read("[END]"), read(FIRST + SECOND + "[ANSWER] 2 [END]")]
    points = own_points([hand_document] * 2, attempts, "pq")
    assert points.problem_P.tolist() == [1, 1]
    assert points.sequence_P.tolist() == [0, 0]
    nothing = own_points([hand_document], attempts[:1], "pq")
    assert len(nothing.label_P) == len(nothing.sequences) == 0


def test_coverage_is_the_share_of_mistakes_that_show(read: Callable[[str], Attempt]) -> None:
    right = read(FIRST + SECOND + "[ANSWER] 2 [END]")
    choice, arithmetic = read(NOT_YET), read(FIRST + SECOND.replace("3 = 2", "3 = 1"))
    measure = own_coverage([right, choice, arithmetic, choice, right, choice], "test", 6)
    assert measure is not None
    assert (measure.metric, measure.value, measure.n) == ("own_mistakes_covered", 3 / 4, 4)
    assert own_coverage([right], "test", 6) is None


@pytest.mark.parametrize("name", ["full", "lora", "probe"])
def test_scores_are_probabilities_and_do_not_depend_on_the_batch(
    make_learner: Callable[..., Learner], documents: Sequence[Document], name: str
) -> None:
    learner = make_learner(MethodConfig.model_validate({"name": name, "rank": 2})).eval()
    limit = NANO.max_tokens
    with torch.no_grad():
        for parameter in learner.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    points = injected_points(documents, "pq")
    for model, free_id in ((learner.detector(), None), (learner.merged(), word_ids(NANO)["[BACK]"])):
        read = make_decoder(model, limit).read
        scores = score_points(read, points, free_id=free_id)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert len(np.unique(scores)) > len(scores) // 2
        assert score_points(read, points, free_id=free_id, batch_size=3) == pytest.approx(scores, abs=1e-5)
        shares: list[float] = []
        score_points(read, points, free_id=free_id, batch_size=3, on_share=shares.append)
        assert shares == [done / len(points.sequences) for done in range(0, len(points.sequences), 3)]
        if free_id is None:
            assert score_points(padded_reader(learner), points) == pytest.approx(scores, abs=1e-5)


def test_points_may_come_in_any_order(make_learner: Callable[..., Learner], documents: Sequence[Document]) -> None:
    read = make_decoder(make_learner().detector(), NANO.max_tokens).read
    points = injected_points(documents[:5], "pq")
    mixed = np.random.default_rng(0).permutation(len(points.label_P))
    columns = {name: getattr(points, name)[mixed] for name in points._fields if name.endswith("_P")}
    assert np.array_equal(score_points(read, points._replace(**columns)), score_points(read, points)[mixed])


def test_scores_by_hand(make_learner: Callable[..., Learner], documents: Sequence[Document]) -> None:
    """A score is the two-way softmax over [RIGHT] and [WRONG], or the softmax over all words at [BACK]."""
    learner, ids = make_learner().eval(), word_ids(NANO)
    points = injected_points(documents[:5], "pq")
    verdicts = score_points(make_decoder(learner.detector(), NANO.max_tokens).read, points)
    free = score_points(make_decoder(learner.merged(), NANO.max_tokens).read, points, free_id=ids["[BACK]"])
    for i in range(len(points.label_P)):
        sequence = torch.tensor([points.sequences[points.sequence_P[i]]])
        with torch.no_grad():
            logits = learner.model(input_ids=sequence).logits[0, points.position_P[i]]
        assert free[i] == pytest.approx(float(logits.softmax(-1)[ids["[BACK]"]]), abs=1e-6)
        pair = logits[[ids["[RIGHT]"], ids["[WRONG]"]]].softmax(-1)
        assert verdicts[i] == pytest.approx(float(pair[1]), abs=1e-6)


def made_up(labels: list[int], after: list[int] | None = None) -> Points:
    n = len(labels)
    problems = np.arange(n, dtype=np.int32) // 2
    flags = np.array(after or [0] * n, bool)
    return Points([], np.zeros(n, np.int64), np.zeros(n, np.int64), np.array(labels, np.uint8), problems, flags)


def test_detection_measures_by_hand() -> None:
    """Of the 4 x 4 pairs of wrong (.9 .8 .4 .3) and right (.6 .4 .2 .1), 12 are in order and one is a tie."""
    scores = np.array([0.9, 0.6, 0.8, 0.4, 0.4, 0.2, 0.3, 0.1], np.float32)
    points = made_up([1, 0, 1, 0, 1, 0, 1, 0])
    measures = detection_measures(scores, points, split="test", name="pairs", op=6, threshold=0.5)
    values = {measure.metric: measure.value for measure in measures}
    assert values["detect_auroc"] == pytest.approx((4 + 4 + 2.5 + 2) / 16)
    assert values["detect_base_rate"] == 0.5
    assert values["detect_balanced_accuracy"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    # One score a bin but .4 twice: |.9-1| + |.6-0| + |.8-1| + |.8-1| + |.2-0| + |.3-1| + |.1-0|, of 8
    assert values["detect_ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.2 + 0.2 + 0.7 + 0.1) / 8, abs=1e-6)
    assert all(measure.low <= measure.value <= measure.high and measure.n == 8 for measure in measures)
    assert set(values) == {"detect_auroc", "detect_base_rate", "detect_balanced_accuracy", "detect_ece"}


def test_injected_points_are_also_ranked_apart_by_retraction() -> None:
    scores = np.array([0.9, 0.1, 0.1, 0.9], np.float32)
    points = made_up([1, 0, 1, 0], after=[0, 0, 1, 1])
    measures = ranking_measures("free_auroc", scores, points, split="test", name="injected", op=6)
    assert {measure.metric: measure.value for measure in measures} == {
        "free_auroc": 0.5,
        "free_auroc_without_retraction": 1.0,
        "free_auroc_after_retraction": 0.0,
    }


def test_one_class_alone_has_no_ranking() -> None:
    scores = np.array([0.9, 0.1], np.float32)
    assert ranking_measures("free_auroc", scores, made_up([0, 0]), split="test", name="own", op=6) == []
    assert detection_measures(scores, made_up([1, 1]), split="test", name="own", op=6, threshold=0.5) == []
