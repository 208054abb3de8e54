"""Whether a base is fit for the study: accuracy by operations, where it goes wrong, and what repair could be worth.

The rule (design of the study): at the largest training op the lower bound of `accuracy` is at least 0.88; at the
headline out-of-distribution op accuracy is between 0.40 and 0.85; and wrong *choices* matter: at least a quarter of
the first wrong steps are 'not computable' or 'unnecessary', and the perfect detector gains at least 5 points, with
an interval above 0.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from transformers import Qwen3ForCausalLM

from peft_study.decoding.regret import generate_with_regret
from peft_study.evaluation.problems import Attempt, draw_problems, prompt_ids, read_attempt, solve_problems
from peft_study.evaluation.solving import departures, outcomes
from peft_study.igsm.families import FamilySettings
from peft_study.igsm.stream import Document
from peft_study.igsm.text import END, join, problem_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.igsm.verify import Verdict
from peft_study.stats import paired_difference, wilson
from peft_study.telling import OnPhase, OnShare, unheard

CHOICES = (Verdict.NOT_COMPUTABLE.value, Verdict.UNNECESSARY.value)
"""Departures that the rule counts as wrong choices of what to compute."""


def _regret(
    model: Qwen3ForCausalLM, documents: Sequence[Document], on_share: OnShare, batch_size: int = 128
) -> list[Attempt]:
    family = documents[0].problem.family
    words = word_ids(family)
    attempts: list[Attempt] = []
    for start in range(0, len(documents), batch_size):
        on_share(start / len(documents))
        part = documents[start : start + batch_size]
        outputs = generate_with_regret(
            model,
            [prompt_ids(document, "pq") for document in part],
            [join(problem_words(document.problem)) for document in part],
            list(words),
            end_id=words[END],
            max_length=2 * family.max_tokens,
        )
        attempts += [read_attempt(tokens, document, "pq") for tokens, document in zip(outputs, part, strict=True)]
    return attempts


def measure_base(
    model: Qwen3ForCausalLM,
    family: FamilySettings,
    *,
    n: int = 1024,
    on_phase: OnPhase = unheard,
) -> dict[str, Any]:
    """Return accuracy by op, departures at the headline op, and the perfect detector's gain there (test split).

    Values of `accuracy` are [value, low, high]; `perfect_detector_gain` likewise, paired over problems.
    """
    accuracy: dict[str, list[float]] = {}
    headline = family.headline_op
    report: dict[str, Any] = {"n": n, "split": "test", "accuracy": accuracy}
    for op in (*range(1, family.op_max + 1), *family.ood_ops):
        documents = draw_problems(family, op, n, split="test", seed=0)
        attempts = solve_problems(model, documents, "pq", on_share=partial(on_phase, f"solve op {op}"))
        right = int(outcomes(attempts).sum())
        accuracy[str(op)] = [right / n, *wilson(right, n)]
        if op == headline:
            again = _regret(model, documents, partial(on_phase, f"solve op {op} with retry upon regret"))
            gain = paired_difference(outcomes(again), outcomes(attempts), seed=0)
            report |= {"departures": departures(attempts), "perfect_detector_gain": list(gain)}
    return report


def acceptance(report: dict[str, Any], family: FamilySettings) -> dict[str, Any]:
    """Return each condition of the rule with its figure and whether it holds; `accepted` is all of them."""
    known, headline = report["accuracy"][str(family.op_max)], report["accuracy"][str(family.headline_op)]
    wrong = {name: count for name, count in report["departures"].items() if name != Verdict.RIGHT.value}
    choices = sum(count for name, count in wrong.items() if name in CHOICES) / max(1, sum(wrong.values()))
    gain, gain_low, _ = report["perfect_detector_gain"]
    conditions = {
        "accuracy_known": {"figure": known[1], "rule": ">= 0.88 (lower bound)", "holds": known[1] >= 0.88},
        "accuracy_headline": {"figure": headline[0], "rule": "0.40 to 0.85", "holds": 0.40 <= headline[0] <= 0.85},
        "wrong_choices": {"figure": choices, "rule": ">= 0.25 of first wrong steps", "holds": choices >= 0.25},
        "perfect_detector": {
            "figure": gain,
            "rule": ">= 0.05, interval above 0",
            "holds": gain >= 0.05 and gain_low > 0,
        },
    }
    return {"accepted": bool(np.all([c["holds"] for c in conditions.values()])), "conditions": conditions}
