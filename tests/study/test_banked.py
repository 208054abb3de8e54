"""Sweeps whose adapters train in a bank: the same results as one by one, to the rounding of fp32."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peft_study.errors import ConfigError
from peft_study.igsm.families import NANO
from peft_study.models.base import Architecture, build_base, save_base
from peft_study.records import Status
from peft_study.study.plan import Plan, build_plan
from peft_study.study.sweep import Outcome, run_sweep
from peft_study.study.sweep_file import read_sweep
from peft_study.training import shared
from peft_study.training.bank import train_bank

Write = Callable[..., Path]
QUIET = Console(file=io.StringIO())


@pytest.fixture
def plan(write_sweep: Write, tiny: Architecture, tmp_path: Path) -> Plan:
    """Return a plan of adapters of three kinds on one base, one on another, and full fine-tuning."""
    for seed in (0, 1):
        save_base(build_base(NANO, tiny, seed), NANO, tmp_path / f"base-{seed}", {})
    training = {
        "tokens": 20 * 256,
        "batch_windows": 1,
        "points": 2,
        "lr": 0.003,
        "precision": "fp32",
        "attention": "sdpa",
    }
    common = {
        "base": {"path": str(tmp_path / "base-0")},
        "training": training,
        "evaluation": {"n": 4, "loss_windows": 2},
    }
    lora = {"name": "lora"}
    arms = {
        "correction": {"trial": {"method": lora}, "grid": {"method.rank": [1, 4]}},
        "detection": {"trial": {"skill": {"name": "detection"}, "method": lora | {"rank": 2, "embeddings": "none"}}},
        "other": {"trial": {"base": {"path": str(tmp_path / "base-1")}, "method": lora | {"rank": 3}}},
        "full": {"trial": {"method": {"name": "full"}}},
    }
    return build_plan(read_sweep(str(write_sweep(trial=common, seeds=[0], arms=arms))))


def sweep(plan: Plan, runs: Path, **options: Any) -> Outcome:
    return run_sweep(plan, runs, workers=0, console=QUIET, **options)


def results(plan: Plan, runs: Path) -> dict[str, Any]:
    folder = runs / plan.sweep.name
    return {each.trial: json.loads((folder / each.trial / "result.json").read_text()) for each in plan.trials}


def test_a_bank_gives_what_trials_give_alone(
    plan: Plan, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []

    def counted(model: Any, waiting: Any, on_end: Any, **options: Any) -> None:
        seated: list[Any] = []

        def next_slot() -> Any:
            if (slot := waiting()) is not None:
                seated.append(slot)
                together.append(len(seated))
            return slot

        def ended(slot: Any, summary: Any) -> None:
            seated.remove(slot)
            on_end(slot, summary)

        train_bank(model, next_slot, ended, **options)

    monkeypatch.setattr(shared, "train_bank", counted)
    outcome = sweep(plan, runs, bank=4)
    assert set(outcome.statuses.values()) == {Status.FINISHED}, outcome.reasons
    assert max(together) > 1  # adapters did train together
    assert len(together) == 4  # full fine-tuning did not
    alone = tmp_path / "alone"
    sweep(plan, alone)
    found, expected = results(plan, runs), results(plan, alone)
    for trial, result in expected.items():
        keep = ("tokens", "tokens_with_loss", "trainable_params", "precision", "attention")
        assert [found[trial][key] for key in keep] == [result[key] for key in keep]
        [loss], [wanted] = (
            [measure["value"] for measure in each["measures"] if measure["metric"] == "loss"]
            for each in (found[trial], result)
        )
        assert loss == pytest.approx(wanted, rel=1e-4), trial
        assert (runs / plan.sweep.name / trial / "adapter").is_dir()


def test_a_trial_that_fails_leaves_the_others(plan: Plan, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = plan.trials[0]
    training = bad.config.training.model_copy(update={"lr": 1e30})
    broken = bad._replace(config=bad.config.model_copy(update={"training": training}))
    outcome = sweep(plan._replace(trials=(broken, *plan.trials[1:])), runs, bank=3)
    assert outcome.statuses.pop(bad.trial) is Status.FAILED
    assert "not finite" in outcome.reasons[bad.trial]
    assert set(outcome.statuses.values()) == {Status.FINISHED}


def test_a_bank_that_breaks_down_fails_whoever_sat_in_it(
    plan: Plan, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_model: Any, waiting: Any, _on_end: Any, **_: Any) -> None:
        waiting()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(shared, "train_bank", broken)
    outcome = sweep(plan, runs, bank=3)
    full = next(each.trial for each in plan.trials if each.arm == "full")
    assert outcome.statuses.pop(full) is Status.FINISHED
    assert set(outcome.statuses.values()) == {Status.FAILED}
    assert set(outcome.reasons.values()) == {"RuntimeError: out of memory"}


def test_what_draws_from_the_generator_of_the_process_is_refused(write_sweep: Write, runs: Path) -> None:
    method = {"name": "lora", "rank": 1, "dropout": 0.1}
    plan = build_plan(read_sweep(str(write_sweep(arms={"a": {"trial": {"method": method}}}))))
    with pytest.raises(ConfigError, match=r"trial a-s0-b0-\w+ has dropout, .* leave --bank out"):
        sweep(plan, runs, bank=2)
    assert not list(runs.glob("*/*/result.json"))


def test_a_search_that_may_draw_dropout_is_refused(write_sweep: Write, runs: Path) -> None:
    search = {"trials": 2, "space": {"method.dropout": {"low": 0.0, "high": 0.1}}}
    trial = {"method": {"name": "lora", "rank": 1}, "evaluation": {"split": "validation"}}
    plan = build_plan(read_sweep(str(write_sweep(search=search, seeds=[0], arms={"a": {"trial": trial}}))))
    with pytest.raises(ConfigError, match=r"has dropout, .* leave --bank out"):
        sweep(plan, runs, bank=2)
    assert not list(runs.glob("*/*/result.json"))


def test_a_bank_is_filled_by_a_search(plan: Plan, write_sweep: Write, runs: Path) -> None:
    common = plan.trials[0].config.model_dump(mode="json", exclude_defaults=True)
    common["evaluation"]["split"] = "validation"
    common["training"].pop("lr")
    search = {"trials": 5, "space": {"training.lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    searched = build_plan(
        read_sweep(str(write_sweep(trial=common, search=search, seeds=[0], arms={"a": {"trial": {}}})))
    )
    outcome = sweep(searched, runs, bank=2)
    assert list(outcome.statuses.values()) == [Status.FINISHED] * 5
