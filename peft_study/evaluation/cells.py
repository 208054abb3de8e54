"""All cells of one trial: which sets a skill is measured on, in what order, and what is kept of each."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3ForCausalLM

from peft_study.decoding.engine import make_decoder
from peft_study.evaluation.config import EvaluationConfig
from peft_study.evaluation.detecting import (
    Points,
    detection_measures,
    injected_points,
    own_coverage,
    own_points,
    pair_points,
    ranking_measures,
    score_points,
)
from peft_study.evaluation.problems import Attempt, draw_problems, read_attempt, solve_problems
from peft_study.evaluation.solving import departures, outcomes, solving_measures
from peft_study.files import write_atomic
from peft_study.igsm.families import family_named
from peft_study.igsm.stream import Document, Tokens
from peft_study.igsm.text import BACK, join, problem_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.learner import Learner
from peft_study.records import Measure
from peft_study.rng import derive_seed
from peft_study.skills.config import DataConfig, SkillConfig
from peft_study.stats import best_threshold, mean_interval
from peft_study.telling import OnPhase, OnShare, unheard
from peft_study.training.batches import batch_loss, make_batch

SAMPLES = 8
"""Outputs a cell keeps for people to read."""
THRESHOLD_PROBLEMS = 256
"""Validation problems that the verdict's threshold is chosen on."""


@dataclass(slots=True)
class Findings:
    """What an evaluation found."""

    measures: list[Measure] = field(default_factory=list)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Outcomes by problem, for paired bootstraps: `correct_<set>_<op>`, `detect_<set>_<op>_score`, ..."""
    departures: dict[str, dict[str, int]] = field(default_factory=dict)
    """For each `<set>_<op>`: how often each verdict is where a wrong solution left the way."""
    samples: list[dict[str, Any]] = field(default_factory=list)

    def add_points(self, kind: str, name: str, op: int, scores: NDArray[np.float32], points: Points) -> None:
        """Keep the scores of one set: `kind` is 'detect' or 'free'."""
        columns = {"score": scores, "label": points.label_P, "problem": points.problem_P}
        self.arrays.update({f"{kind}_{name}_{op}_{column}": values for column, values in columns.items()})


class Evaluator:
    """Measures learners on the same problems; what does not depend on the learner is made once."""

    def __init__(
        self,
        config: EvaluationConfig,
        data: DataConfig,
        *,
        mistakes_rate: float,
        op: int | None = None,
        on_phase: OnPhase = unheard,
    ) -> None:
        self.config = config
        self.data = data
        self.family = family_named(data.family)
        self.mistakes_rate = mistakes_rate
        """Rate of the mistakes in the `injected` set; arms whose rates differ are measured on other mistakes."""
        self.headline = op or self.family.headline_op
        """Operations of the problems that detection, and correction out of distribution, are measured on."""
        known = "id" if self.headline <= self.family.op_max else "ood"
        self.solved = {known: self.headline} if op else {"id": self.family.op_max, "ood": self.headline}
        """Sets of correction and their operations; only one where `op` is given."""
        self.on_phase = on_phase

    def problems(self, op: int, *, rate: float = 0.0) -> Sequence[Document]:
        """Return the documents of a cell."""
        return draw_problems(
            self.family,
            op,
            self.config.n,
            split=self.config.split,
            seed=self.config.seed,
            order=self.data.order,
            kind=self.data.kind,
            retry_rate=rate,
        )

    def loss(self, learner: Learner, skill: SkillConfig, validation: Tokens) -> Measure:
        """Return the skill's loss on windows of the validation stream."""
        device = next(learner.parameters()).device
        with torch.no_grad():
            batches = [make_batch(Tokens(i[None], k[None]), skill, device) for i, k in zip(*validation, strict=True)]
            values = [float(batch_loss(learner, batch)) for batch in batches if len(batch.answers_N)]
        return Measure(
            "validation", "stream", None, "loss", float(np.mean(values)), *mean_interval(values, seed=0), len(values)
        )

    def base_attempts(self, make_base: Callable[[], Any], name: str, cache: Path | None) -> list[Attempt]:
        """Return a base's own solutions at the headline op, from `cache` if they were made before."""
        documents = self.problems(self.headline)
        if cache is None:
            return self._solve(make_base(), documents, "solve as the base")
        config = self.config
        asked = f"{config.split}-op{self.headline}-n{config.n}-s{config.seed}-beams{config.num_beams}"
        path = cache / f"{name}-{self.data.order}-{asked}.json"
        if path.is_file():
            tokens = json.loads(path.read_text())
            return [read_attempt(t, document, self.data.order) for t, document in zip(tokens, documents, strict=True)]
        attempts = self._solve(make_base(), documents, "solve as the base")
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps([attempt.tokens for attempt in attempts]))
        return attempts

    def _solve(self, model: Any, documents: Sequence[Document], phase: str) -> list[Attempt]:
        config = self.config
        return solve_problems(
            model,
            documents,
            self.data.order,
            num_beams=config.num_beams,
            seed=config.seed,
            on_share=partial(self.on_phase, phase),
        )

    def correction(self, learner: Learner, baseline: list[Attempt] | None, *, free: bool) -> Findings:
        """Measure solving on `id` and `ood`, and with `free` the model's own [BACK] as a detector."""
        found, split = Findings(), self.config.split
        model = learner.merged()
        for name, op in self.solved.items():
            documents = self.problems(op)
            attempts = self._solve(model, documents, f"solve op {op}")
            against = baseline if op == self.headline else None
            found.measures += solving_measures(attempts, split=split, name=name, op=op, baseline=against)
            found.arrays[f"correct_{name}_{op}"] = outcomes(attempts)
            found.departures[f"{name}_{op}"] = departures(attempts)
            found.samples += [
                _sample(name, op, d, a, self.data.order) for d, a in zip(documents[:SAMPLES], attempts, strict=False)
            ]
        if free:
            back = word_ids(self.family)[BACK]
            for name, points in self._sets(baseline).items():
                scores = _scores(model, points, partial(self.on_phase, f"judge {name}"), free_id=back)
                found.add_points("free", name, self.headline, scores, points)
                found.measures += ranking_measures(
                    "free_auroc", scores, points, split=split, name=name, op=self.headline
                )
        return found

    def detection(self, learner: Learner, baseline: list[Attempt]) -> Findings:
        """Measure the trained detector on `injected`, `own` and `pairs`."""
        found, split, op = Findings(), self.config.split, self.headline
        detector = learner.detector()
        threshold = self._threshold(detector)
        sets = self._sets(baseline)
        sets["pairs"] = pair_points(self.problems(op), self.data.order, self.config.seed)
        for name, points in sets.items():
            scores = _scores(detector, points, partial(self.on_phase, f"judge {name}"))
            found.add_points("detect", name, op, scores, points)
            found.measures += detection_measures(scores, points, split=split, name=name, op=op, threshold=threshold)
        if coverage := own_coverage(baseline, split, op):
            found.measures.append(coverage)
        return found

    def _threshold(self, detector: Qwen3ForCausalLM) -> float:
        """Return the threshold of largest balanced accuracy on validation problems that no cell is measured on."""
        documents = draw_problems(
            self.family,
            self.headline,
            THRESHOLD_PROBLEMS,
            split="validation",
            seed=derive_seed(self.config.seed, "threshold"),
            order=self.data.order,
            kind=self.data.kind,
            retry_rate=self.mistakes_rate,
        )
        points = injected_points(documents, self.data.order)
        return best_threshold(_scores(detector, points, unheard), points.label_P)

    def _sets(self, baseline: list[Attempt] | None) -> dict[str, Points]:
        sets = {"injected": injected_points(self.problems(self.headline, rate=self.mistakes_rate), self.data.order)}
        if baseline is not None:
            sets["own"] = own_points(self.problems(self.headline), baseline, self.data.order)
        return sets


def _scores(
    model: Qwen3ForCausalLM, points: Points, on_share: OnShare, *, free_id: int | None = None
) -> NDArray[np.float32]:
    """Return the scores of points by a model that is read as it is decoded: in fp32, through the kernel."""
    decoder = make_decoder(model, max(map(len, points.sequences), default=1))
    with decoder.at_work():
        return score_points(decoder.read, points, free_id=free_id, on_share=on_share)


def _sample(name: str, op: int, document: Document, attempt: Attempt, order: str) -> dict[str, Any]:
    return {
        "set": name,
        "op": op,
        "problem": join(problem_words(document.problem, order)),
        "solution": attempt.solution,
        "answer": attempt.answer,
        "verdict": attempt.strict.outcome.value,
        "reason": attempt.strict.reason,
    }
