"""Arms beside arms: who is compared with whom, and differences that are of the same problems."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.comparisons import Comparison, compare
from analysis.rows import TrialRecord, arm_samples, rows_of
from analysis.summary import summarize
from analysis.table import to_frame
from peft_study.study.config import build_config, flatten

HEADLINE = 6


@pytest.fixture
def made_from(made: SimpleNamespace) -> Callable[..., TrialRecord]:
    """Return a function that makes a trial as one of the made-up ones, with other keys and another size."""

    def make(arm: str, source: str, seed: int = 0, *, params: int = 0, **changes: Any) -> TrialRecord:
        record: TrialRecord = made.trial(source, seed)
        keys = {name.replace("_", ".", 1): value for name, value in changes.items()}
        config = build_config(flatten(record.config) | keys).model_dump(mode="json")
        result = record.result | ({"trainable_params": params} if params else {})
        return replace(record, arm=arm, trial=f"{arm}-s{seed}-b0-0123456789", config=config, result=result)

    return make


def compared(made: SimpleNamespace, trials: list[TrialRecord]) -> dict[str, list[Comparison]]:
    frame = to_frame(rows_of(made.sweep(trials)))
    found: dict[str, list[Comparison]] = {}
    for each in compare(summarize(frame), arm_samples(trials)):
        found.setdefault(each.topic, []).append(each)
    return found


def test_whole_sweep(made: SimpleNamespace) -> None:
    arms = ("base", "control", "probe", "correction-r1", "correction-r16", "full", "detection-r1", "detection-r16")
    found = compared(made, [made.trial(arm, seed) for arm in arms for seed in (0, 1)])
    pairs = {topic: [(each.first, each.second) for each in of_topic] for topic, of_topic in found.items()}
    low, high, full = "LoRA all-linear rank 1", "LoRA all-linear rank 16", "full fine-tuning"
    assert pairs == {
        "beyond the reference below": [
            *((name, "control") for name in (low, high, full)),
            *((name, "probe") for name in (low, high)),
        ],
        "beyond the base as it is": [(name, "base as it is") for name in (low, high, full)],
        "short of full fine-tuning": [(low, full), (high, full)],
        "rank": [(high, low), (high, low)],
        "noticing: a correction model's own [BACK] beside a detector": [(low, low), (high, high)],
    }
    noticing = found["noticing: a correction model's own [BACK] beside a detector"][0]
    assert noticing.measure == "free_auroc / detect_auroc, injected op 6"


def test_difference_is_of_the_same_problems(made: SimpleNamespace) -> None:
    """Worked out here: the mean of the differences by problem, whose spread is less than that of either arm."""
    trials = [made.trial(arm, 0) for arm in ("control", "correction-r16")]
    (each,) = compared(made, trials)["beyond the reference below"]
    control, trained = (trial.outcomes[f"correct_ood_{HEADLINE}"].astype(float) for trial in trials)
    assert each.values == (trained.mean(), control.mean())
    assert each.difference.value == pytest.approx((trained - control).mean())
    spread = (trained - control).std() / np.sqrt(len(control))
    assert each.difference.high - each.difference.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    apart = np.sqrt(trained.var() + control.var()) / np.sqrt(len(control))
    assert each.difference.high - each.difference.low < 0.95 * 2 * 1.96 * apart


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("correction-r16", "control", "higher"),
        ("control", "correction-r16", "lower"),
        ("control", "control", "not distinguishable"),
    ],
)
def test_verdicts(
    made: SimpleNamespace, made_from: Callable[..., TrialRecord], first: str, second: str, verdict: str
) -> None:
    lora = {"method_name": "lora", "method_rank": 16, "data_retry_rate": 0.5}
    trials = [made_from("full", second, method_name="full", data_retry_rate=0.5), made_from("lora", first, **lora)]
    (each,) = compared(made, trials)["short of full fine-tuning"]
    assert each.verdict == verdict


def test_arms_that_differ_in_one_thing(made: SimpleNamespace, made_from: Callable[..., TrialRecord]) -> None:
    source = "correction-r16"
    trials = [
        made_from("all-4", source, method_rank=4, params=10_000),
        made_from("qv-4", source, method_rank=4, method_targets="qv", params=2_000),
        made_from("qv-18", source, method_rank=18, method_targets="qv", params=10_100),
        made_from("qv-30", source, method_rank=30, method_targets="qv", params=10_400),
        made_from("none-4", source, method_rank=4, method_embeddings="none"),
        made_from("open-4", source, method_rank=4, skill_mask=False),
        made_from("other-base", source, method_rank=4, method_targets="mlp", base_seed=1),
    ]
    found = compared(made, trials)
    pairs = {topic: [(each.first, each.second) for each in of_topic] for topic, of_topic in found.items()}
    all_linear = "LoRA all-linear rank 4"
    assert pairs == {
        "rank": [("LoRA qv rank 18", "LoRA qv rank 4"), ("LoRA qv rank 30", "LoRA qv rank 4")],
        # That of another base has no trial beside it.
        "matrices, at the same rank": [("LoRA qv rank 4", all_linear)],
        "matrices, with as many parameters": [("LoRA qv rank 18", all_linear)],
        "rows of the new words": [("LoRA all-linear embeddings=none rank 4", all_linear)],
        "loss on mistakes too": [("LoRA all-linear unmasked rank 4", all_linear)],
    }
    assert all(each.trials == 1 and each.verdict == "not distinguishable" for of in found.values() for each in of)
