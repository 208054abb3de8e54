"""Arms beside arms: who is compared with whom, and differences that are of the same problems."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.comparisons import CONTRAST, NOTICING, Comparison, compare
from analysis.rows import TrialRecord, rows_of
from analysis.summary import summarize
from analysis.table import to_frame
from peft_study.records import Status
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
    for each in compare(summarize(frame), trials):
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
            *((name, "probe") for name in (low, high) for _ in ("injected", "pairs")),
        ],
        "beyond the base as it is": [(name, "base as it is") for name in (low, high, full)],
        "in distribution, beside the base as it is": [(name, "base as it is") for name in (low, high, full)],
        "short of full fine-tuning": [(low, full), (high, full)],
        "rank": [(high, low), (high, low)],
        NOTICING: [(f"correction: {name}", f"detection: {name}") for name in (low, high)],
    }
    assert found[NOTICING][0].measure == "free_auroc / detect_auroc, injected op 6"
    measures = [each.measure for each in found["beyond the reference below"]]
    assert measures[3:5] == ["detect_auroc, injected op 6", "detect_auroc, pairs op 6"]
    assert found["in distribution, beside the base as it is"][0].measure == "accuracy, id op 5"


OTHERS: dict[str, dict[str, Any]] = {
    "rate": {"data_retry_rate": 0.2},
    "kind": {"data_kind": "weak"},
    "family": {"data_family": "mini"},
    "order": {"data_order": "qp"},
    "tokens": {"training_tokens": 4_096},
    "scale": {"method_lora__alpha": 3.0},
}


@pytest.mark.parametrize("other", OTHERS)
def test_arms_of_another_setting_are_not_compared(
    made: SimpleNamespace, made_from: Callable[..., TrialRecord], other: str
) -> None:
    """Neither with full fine-tuning, nor rank with rank, nor skill with skill."""
    trials = [made.trial("full", 0), made.trial("detection-r4", 0), made.trial("correction-r1", 0)]
    changed = {key.replace("__", "_"): value for key, value in OTHERS[other].items()}
    another = made_from("another", "correction-r4", **changed)
    if "training_tokens" in changed:
        another = replace(another, result=another.result | {"tokens": changed["training_tokens"]})
    # What is read of a budget is whole steps.
    trials[0] = replace(trials[0], result=trials[0].result | {"tokens": trials[0].result["tokens"] + 256})
    found = compared(made, [*trials, another])
    compared_with_it = {each.topic for of in found.values() for each in of if "rank 4" in each.first + each.second}
    assert compared_with_it == ({"short of full fine-tuning"} if other == "scale" else set())
    # As they are alike, they are.
    alike = compared(made, [*trials, made.trial("correction-r4", 0)])
    assert {NOTICING, "rank", "short of full fine-tuning"} <= set(alike)


def test_arms_of_one_name_are_told_apart(made: SimpleNamespace, made_from: Callable[..., TrialRecord]) -> None:
    trials = [made.trial("full", 0), made.trial("correction-r4", 0)]
    trials += [
        made_from("full-often", "full", data_retry_rate=0.8),
        made_from("often-r4", "correction-r4", data_retry_rate=0.8),
    ]
    pairs = [(each.first, each.second) for each in compared(made, trials)["short of full fine-tuning"]]
    name, full = "LoRA all-linear rank 4", "full fine-tuning"
    assert pairs == [
        (f"{name} (correction-r4)", f"{full} (full)"),
        (f"{name} (often-r4)", f"{full} (full-often)"),
    ]


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
        "short of the highest rank": [("LoRA qv rank 18", "LoRA qv rank 30")],
        # That of another base has no trial beside it.
        "matrices, at the same rank": [("LoRA qv rank 4", all_linear)],
        "matrices, with as many parameters": [("LoRA qv rank 18", all_linear)],
        "rows of the new words": [("LoRA all-linear embeddings=none rank 4", all_linear)],
        "loss on mistakes too": [("LoRA all-linear unmasked rank 4", all_linear)],
    }
    assert all(each.trials == 1 and each.verdict == "not distinguishable" for of in found.values() for each in of)


def on_base(trial: TrialRecord, base: int) -> TrialRecord:
    """Return the same trial on another base."""
    config = trial.config | {"base": trial.config["base"] | {"seed": base}}
    return replace(trial, config=config, trial=trial.trial.replace("-b0-", f"-b{base}-"))


def test_an_arm_is_compared_with_the_control_that_learned_as_it_does(
    made: SimpleNamespace, made_from: Callable[..., TrialRecord]
) -> None:
    lora = {"method_name": "lora", "method_rank": 16, "data_retry_rate": 0.0}
    trials = [made.trial("correction-r16", 0), made.trial("correction-r4", 0), made.trial("control", 0)]
    trials.append(made_from("clean", "control", 0, **lora))
    found = compared(made, trials)
    (each,) = found["beyond as many clean tokens"]
    assert (each.first, each.second) == ("LoRA all-linear rank 16", "control LoRA all-linear rank 16")
    assert {each.second for each in found["beyond the reference below"]} == {"control"}


def test_each_base_is_told_apart(made: SimpleNamespace) -> None:
    trials = [on_base(made.trial(arm, seed), base) for arm in ("control", "full") for seed in (0, 1) for base in (0, 1)]
    # On the other base the two change places.
    swapped = [
        replace(trial, outcomes=made.trial({"full": "control", "control": "full"}[trial.arm], seed).outcomes)
        if trial.config["base"]["seed"] == 1
        else trial
        for trial in trials
        for seed in [trial.config["seed"]]
    ]
    (each,) = compared(made, swapped)["beyond the reference below"]
    solved = {
        arm: np.array([made.trial(arm, seed).outcomes[f"correct_ood_{HEADLINE}"].mean() for seed in (0, 1)])
        for arm in ("full", "control")
    }
    gains = solved["full"] - solved["control"]
    assert each.by_base == pytest.approx((np.mean(gains), -np.mean(gains)))
    assert min(gains) > 0.1
    assert each.verdict == "not distinguishable"


def test_what_must_be_known_of_a_difference_stands_with_it(made: SimpleNamespace) -> None:
    trials = [made.trial("control", 0), made.trial("control", 1), made.trial("full", 0)]
    missing = replace(made.trial("full", 1), status=Status.MISSING, outcomes={}, result={})
    (each,) = compared(made, [*trials, missing])["beyond the reference below"]
    assert each.notes == ("1 of 2 trials of the first", "bf16 beside fp32")
    (each,) = compared(made, [trials[0], made.trial("correction-r4", 0)])["beyond the reference below"]
    assert each.notes == ()


def test_gaps_closed_differ_by_what_is_paired(made: SimpleNamespace) -> None:
    """Worked out here: the two gaps, each less than all of it in every draw, and their difference."""
    arms = ("control", "upper", "probe", "correction-r4", "detection-r4", "correction-r1")
    trials = [made.trial(arm, seed) for arm in arms for seed in (0, 1)]
    lines = {line.arm: line for line in summarize(to_frame(rows_of(made.sweep(trials))))}
    detection, correction = lines["detection-r4"].gap, lines["correction-r4"].gap
    assert detection is not None
    assert correction is not None
    (each,) = compared(made, trials)[CONTRAST]
    names = ("detection: LoRA all-linear rank 4", "correction: LoRA all-linear rank 4")
    assert (each.first, each.second, each.measure, each.trials) == (*names, "gap closed", 2)
    assert each.values == pytest.approx((detection.value, correction.value))
    assert each.by_base == pytest.approx((each.difference.value,))
    assert each.verdict == "higher"
    assert each.difference.low > detection.low - correction.high
    assert each.difference.high < detection.high - correction.low
