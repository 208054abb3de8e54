"""Detection on texts measured: P(wrong) at the end of each judged step, in documents and in a model's own solutions.

Sets: `injected`, the validation documents with the mistakes that were put in; `own`, what the base wrote by itself, as
far as `corpora/sampled.py` can tell what of it is wrong.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from peft_study.corpora import sampled
from peft_study.corpora.builtin import FORMS
from peft_study.corpora.corpus import Corpus
from peft_study.corpora.records import Document, Problem
from peft_study.corpora.steps import Form
from peft_study.evaluation.cells import Findings
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.detecting import Points, detection_measures, padded_reader, score_points
from peft_study.evaluation.natural_solving import Solution, chosen
from peft_study.evaluation.writing import measuring, rows_at_once
from peft_study.models.pretrained import PretrainedLearner
from peft_study.records import Measure
from peft_study.rng import derive_seed
from peft_study.skills.encode import LABELS, Encoded, Encoder
from peft_study.skills.targets import NOT_A_DECISION, WRONG
from peft_study.stats import best_threshold, ratio_interval, wilson
from peft_study.telling import OnPhase, OnShare, unheard


def is_for_threshold(identity: str) -> bool:
    """Return whether the document of this id is one that the threshold is chosen on: half are, whatever the seed."""
    return bool(derive_seed(0, "threshold", identity) % 2)


def document_points(documents: Sequence[Document], numbers: Sequence[int], encoder: Encoder) -> Points:
    """Return every judged step of documents that fits into a window; `numbers` says which problem each is of."""
    encoded = [encoder.encode(document) for document in documents]
    rows = [
        (i, at, one.verdicts[at] == WRONG, number, after)
        for i, (document, one, number) in enumerate(zip(documents, encoded, numbers, strict=True))
        for at, after in zip(
            np.flatnonzero(one.verdicts != NOT_A_DECISION), _after_retraction(document, one), strict=False
        )
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Points(
        [one.ids.tolist() for one in encoded],
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.uint8),
        np.array(columns[3], np.int32),
        np.array(columns[4], bool),
    )


def _after_retraction(document: Document, encoded: Encoded) -> list[bool]:
    """Return for each verdict whether something was taken back before it."""
    kinds = [segment.kind for turn in document.turns for segment in turn.segments]
    after = ["retraction" in kinds[:at] for at, kind in enumerate(kinds) if kind in LABELS]
    verdicts = encoded.verdicts[encoded.verdicts != NOT_A_DECISION]
    if len(verdicts) == len(after) or encoded.truncated:
        return after
    # A segment that shares its last token with the next one has no verdict: which one that is cannot be told from here.
    return ((np.cumsum(verdicts == WRONG) - (verdicts == WRONG) > 0) & any(after)).tolist()


class Own(NamedTuple):
    """A model's own solutions as documents."""

    documents: list[Document]
    wrong: int
    """Solutions that are not right."""
    known: int
    """Those of them whose first wrong step is known."""


def own_documents(solutions: Sequence[Solution], form: Form, takes: Callable[[Document], bool]) -> Own:
    """Return what can be judged of a model's solutions: right steps, and the wrong one that ends the document.

    Those that a tokenizer cannot write, `takes` says, are left out.

    Where the first wrong step is not known, that is the whole solution, judged at its end.
    """
    documents: list[Document] = []
    known = 0
    for problem, written, mark in solutions:
        assert isinstance(problem, Problem), "programs have no steps"
        sample = sampled.Sample(problem, written.text, not written.finished)
        first = sampled.first_wrong_step(written.text, form)
        document = sampled.document(sampled.Judged(sample, mark.grade, first), form, "")
        if document is None or not takes(document):
            continue
        documents.append(document)
        mistake = document.turns[-1].segments[-1]
        if mistake.kind == "mistake" and first is not None:
            known += mistake.text.strip() == form.cut(written.text.strip())[first].strip()
    return Own(documents, sum(not solution.ok for solution in solutions), known)


def detection(
    learner: PretrainedLearner,
    corpus: Corpus,
    encoder: Encoder,
    evaluation: NaturalEvaluationConfig,
    *,
    baseline: Sequence[Solution] | None = None,
    on_phase: OnPhase = unheard,
) -> Findings:
    """Measure a detector on half of the validation documents, with a threshold chosen on the other half.

    `baseline`: the base's own solutions, for `own`; those to problems of the other half are left out. Nothing is
    reported of a set in which one class is missing; a threshold that cannot be chosen for that reason is 0.5.
    """
    found = Findings()
    halves = {False: [], True: []}
    for document in corpus.validation:
        halves[is_for_threshold(document.id)].append(document)
    measured, others = (
        [half[i] for i in chosen(len(half), evaluation, name)]
        for half, name in ((halves[False], "detection"), (halves[True], "threshold"))
    )
    sets = {"injected": document_points(measured, range(len(measured)), encoder)}
    if baseline is not None and corpus.grader in FORMS:
        mine = [solution for solution in baseline if not is_for_threshold(solution.problem.id)]
        number = {solution.problem.id: i for i, solution in enumerate(mine)}
        own = own_documents(mine, FORMS[corpus.grader], encoder.takes)
        sets["own"] = document_points(own.documents, [number[document.id] for document in own.documents], encoder)
        if own.wrong:
            share, interval = own.known / own.wrong, wilson(own.known, own.wrong)
            found.measures.append(
                Measure(evaluation.split, "own", None, "own_mistakes_covered", share, *interval, own.wrong)
            )
    with measuring(learner):
        points = document_points(others, range(len(others)), encoder)
        threshold = _threshold(learner, points, evaluation, partial(on_phase, "choose a threshold"))
        for name, points in sets.items():
            scores = _scores(learner, points, evaluation, partial(on_phase, f"judge {name}"))
            found.add_points("detect", name, 0, scores, points)
            found.measures += _measures(scores, points, evaluation.split, name, threshold)
    return found


def _threshold(
    learner: PretrainedLearner, points: Points, evaluation: NaturalEvaluationConfig, on_share: OnShare
) -> float:
    if not 0 < points.label_P.sum() < len(points.label_P):
        return 0.5
    return best_threshold(_scores(learner, points, evaluation, on_share), points.label_P)


def _scores(
    learner: PretrainedLearner, points: Points, evaluation: NaturalEvaluationConfig, on_share: OnShare
) -> NDArray[np.float32]:
    longest = max(map(len, points.sequences), default=1)
    batch = evaluation.batch or rows_at_once(learner.model, longest)
    return score_points(padded_reader(learner), points, batch_size=batch, on_share=on_share)


def _measures(scores: NDArray[np.float32], points: Points, split: str, name: str, threshold: float) -> list[Measure]:
    """Return the detector's metrics, every interval with whole documents resampled."""
    measures = detection_measures(scores, points, split=split, name=name, op=None, threshold=threshold)
    wrong, all_ = (np.bincount(points.problem_P, weights=weights) for weights in (points.label_P, None))
    interval = ratio_interval(wrong[all_ > 0], all_[all_ > 0], seed=0) if measures else (0.0, 1.0)
    return [
        measure._replace(low=interval[0], high=interval[1]) if measure.metric == "detect_base_rate" else measure
        for measure in measures
    ]
