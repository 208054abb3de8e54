"""Detection measured: P(wrong) at decision points, by a trained detector or by a model's own [BACK].

Sets: `injected` (mistakes of the stream), `own` (the base's own first wrong parameters against all of its right steps,
those of right solutions too), `pairs` (a random state and a random parameter, comparable with the paper's 99 %).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peft_study.evaluation.problems import Attempt, prompt_ids
from peft_study.igsm.families import Order
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.solution import state_after
from peft_study.igsm.stream import Document, document_tokens
from peft_study.igsm.text import BACK, END, Word, step_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.verify import Verdict
from peft_study.records import Measure
from peft_study.rng import python_stream
from peft_study.skills.targets import NOT_A_DECISION, after_retraction, decision_labels
from peft_study.stats import auroc, auroc_interval, balanced_accuracy, ece, percentile_interval, wilson
from peft_study.telling import OnShare, unheard
from peft_study.training.losses import probability_wrong


class Points(NamedTuple):
    """Decision points of a set: sequences, and where in them; P points in all."""

    sequences: list[list[int]]
    sequence_P: NDArray[np.int64]
    """Index into `sequences`."""
    position_P: NDArray[np.int64]
    """Index of the `as` token."""
    label_P: NDArray[np.uint8]
    """1 where the step is wrong."""
    problem_P: NDArray[np.int32]
    """Index of the problem: points of one problem are not independent."""
    after_P: NDArray[np.bool_]
    """Whether a retraction stands earlier in the sequence."""


def _points(rows: list[tuple[list[int], list[tuple[int, int, bool]], int]]) -> Points:
    """Return the points of (sequence, [(position, label, after retraction)], problem) rows."""
    flat = [
        (i, at, label, problem, after) for i, (_, points, problem) in enumerate(rows) for at, label, after in points
    ]
    columns = list(zip(*flat, strict=True)) if flat else [(), (), (), (), ()]
    return Points(
        [sequence for sequence, _, _ in rows],
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.uint8),
        np.array(columns[3], np.int32),
        np.array(columns[4], bool),
    )


def injected_points(documents: Sequence[Document], order: Order) -> Points:
    """Return every decision point of documents with mistakes."""
    rows = []
    for problem, document in enumerate(documents):
        settings = StreamSettings(family=document.problem.family, order=order)
        tokens = document_tokens(settings, document)
        labels, after = decision_labels(tokens.kinds), after_retraction(tokens.kinds)
        points = [(int(at) + 1, int(labels[at]), bool(after[at])) for at in np.flatnonzero(labels != NOT_A_DECISION)]
        end = word_ids(document.problem.family)[END]
        rows.append(([end, *tokens.ids.tolist()], points, problem))
    return _points(rows)


def own_points(documents: Sequence[Document], attempts: Sequence[Attempt], order: Order) -> Points:
    """Return the decision points of a base's own solutions: right steps, and the first wrong one if it shows there.

    A mistake of lookup or arithmetic cannot be seen at `as`; such solutions give their right steps only.
    """
    rows = []
    for problem, (document, attempt) in enumerate(zip(documents, attempts, strict=True)):
        ids = word_ids(document.problem.family)
        prompt = prompt_ids(document, order)
        places = [i for i, token in enumerate(attempt.tokens) if token == ids["as"]]
        points: list[tuple[int, int, bool]] = []
        for verdict, place in zip(attempt.strict.steps, places, strict=False):
            after = ids[BACK] in attempt.tokens[:place]
            if verdict in (Verdict.RIGHT, Verdict.UNNECESSARY):
                points.append((len(prompt) + place, 0, after))
            elif verdict in (Verdict.NOT_COMPUTABLE, Verdict.REPEATED):
                points.append((len(prompt) + place, 1, after))
        if points:
            rows.append((prompt + attempt.tokens, points, problem))
    return _points(rows)


def own_coverage(attempts: Sequence[Attempt], split: str, op: int) -> Measure | None:
    """Return the share of wrong solutions whose first mistake shows at `as`; None if none is wrong."""
    wrong = [attempt.strict.outcome for attempt in attempts if not attempt.strict.ok]
    if not wrong:
        return None
    shown = sum(outcome in (Verdict.NOT_COMPUTABLE, Verdict.REPEATED) for outcome in wrong)
    return Measure(split, "own", op, "own_mistakes_covered", shown / len(wrong), *wilson(shown, len(wrong)), len(wrong))


def pair_points(documents: Sequence[Document], order: Order, seed: int) -> Points:
    """Return one random (state, parameter not known yet) pair a problem, the state after some clean steps."""
    rows = []
    for index, document in enumerate(documents):
        problem, ids = document.problem, word_ids(document.problem.family)
        rng = python_stream(seed, "pairs", index)
        num_steps = rng.randrange(len(problem.order))
        state = state_after(problem, num_steps)
        parameter = rng.choice(sorted(set(problem.parents) - state.known))
        words: list[Word] = []
        for step in document.solution.steps[:num_steps]:
            words += step_words(problem, step)
        owner, thing = problem.names(parameter)
        sequence = prompt_ids(document, order) + [ids[word.text] for word in words]
        sequence += [ids[text] for text in ("Define", owner, "'s", thing, "as")]
        rows.append((sequence, [(len(sequence) - 1, int(parameter not in state.can_next), False)], index))
    return _points(rows)


Reader = Callable[[list[list[int]], list[list[int]]], Tensor]
"""Takes sequences and the places in each; returns logits [N, V] of what follows the tokens there, in their order."""


def padded_reader(learner: nn.Module) -> Reader:
    """Return the reader that asks `learner` for verdicts, a batch in one pass."""
    device = next(learner.parameters()).device

    @torch.no_grad()
    def read(sequences: list[list[int]], places: list[list[int]]) -> Tensor:
        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
        where = torch.zeros_like(ids, dtype=torch.bool)
        for row, (sequence, mine) in enumerate(zip(sequences, places, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            where[row, mine] = True
        return learner(ids.to(device), where.to(device), verdict=True)

    return read


def score_points(
    read: Reader, points: Points, *, free_id: int | None = None, batch_size: int = 16, on_share: OnShare = unheard
) -> NDArray[np.float32]:
    """Return P(wrong) at each point: by two outputs for right and wrong, or with `free_id` that token's probability.

    `on_share` is told before each batch what share of the sequences is read.
    """
    scores = np.empty(len(points.label_P), np.float32)
    mine: dict[int, list[int]] = {}
    for point in np.lexsort((points.position_P, points.sequence_P)).tolist():
        mine.setdefault(int(points.sequence_P[point]), []).append(point)
    places = {i: points.position_P[of].tolist() for i, of in mine.items()}
    # What comes after the last point of a sequence changes nothing.
    order = sorted(places, key=lambda i: places[i][-1])
    for start in range(0, len(order), batch_size):
        on_share(start / len(order))
        batch = order[start : start + batch_size]
        logits = read([points.sequences[i][: places[i][-1] + 1] for i in batch], [places[i] for i in batch])
        values = probability_wrong(logits) if free_id is None else logits.float().softmax(-1)[:, free_id]
        scores[[point for i in batch for point in mine[i]]] = values.cpu().numpy()
    return scores


def ranking_measures(
    metric: str, scores: NDArray[np.float32], points: Points, *, split: str, name: str, op: int | None
) -> list[Measure]:
    """Return the AUROC called `metric` of one cell, for `injected` also apart by whether a retraction stands before.

    Nothing where one class is missing: there is no ranking then.
    """
    parts = {metric: np.ones(len(scores), bool)}
    if name == "injected":
        parts |= {f"{metric}_after_retraction": points.after_P, f"{metric}_without_retraction": ~points.after_P}
    measures = []
    for part, chosen in parts.items():
        labels = points.label_P[chosen]
        if 0 < labels.sum() < len(labels):
            low, high = auroc_interval(scores[chosen], labels, points.problem_P[chosen], seed=0)
            value = auroc(scores[chosen], labels)
            measures.append(Measure(split, name, op, part, value, low, high, len(labels)))
    return measures


def detection_measures(
    scores: NDArray[np.float32], points: Points, *, split: str, name: str, op: int | None, threshold: float
) -> list[Measure]:
    """Return the metrics of a trained detector in one cell; `threshold` comes from a validation set."""
    measures = ranking_measures("detect_auroc", scores, points, split=split, name=name, op=op)
    if not measures:
        return []
    n, wrong = len(scores), int(points.label_P.sum())
    measures.append(Measure(split, name, op, "detect_base_rate", wrong / n, *wilson(wrong, n), n))
    metrics: dict[str, Callable[[NDArray[np.float32], NDArray[np.uint8]], float]] = {
        "detect_ece": ece,
        "detect_balanced_accuracy": lambda s, y: balanced_accuracy(s, y, threshold),
    }
    for metric, compute in metrics.items():
        low, high = _bootstrap(compute, scores, points)
        measures.append(Measure(split, name, op, metric, compute(scores, points.label_P), low, high, n))
    return measures


def _bootstrap(
    compute: Callable[[NDArray[np.float32], NDArray[np.uint8]], float],
    scores: NDArray[np.float32],
    points: Points,
    resamples: int = 200,
) -> tuple[float, float]:
    """Return the percentile interval of `compute(scores, labels)`, whole problems resampled."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(points.problem_P == problem) for problem in np.unique(points.problem_P)]
    draws = []
    for _ in range(resamples):
        chosen = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        labels = points.label_P[chosen]
        if 0 < labels.sum() < len(labels):
            draws.append(compute(scores[chosen], labels))
    return percentile_interval(draws)
