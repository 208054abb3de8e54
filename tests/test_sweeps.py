"""Every file under `sweeps/` is one that can be run, and says in its header what it is."""

import csv
from pathlib import Path

import pytest

from peft_study.errors import ConfigError
from peft_study.igsm.families import NANO
from peft_study.models.adapters import matched_modules
from peft_study.models.base import Architecture, build_base
from peft_study.models.targets import sides
from peft_study.records import COLUMNS
from peft_study.study.config import build_config, flatten, read_yaml
from peft_study.study.plan import build_plan
from peft_study.study.sweep_file import SWEEPS, read_sweep
from peft_study.study.tuned import RESULTS, TUNING_METRIC, Cell, TunedRates, cell_of

FILES = sorted(SWEEPS.rglob("*.yaml"))
NAMES = [path.stem for path in FILES if path.stem != "base"]
REAL_RATES = TunedRates()


@pytest.fixture(scope="module")
def all_rates(tmp_path_factory: pytest.TempPathFactory) -> TunedRates:
    """Return a made-up table with a rate for everything that can be tuned."""
    path = tmp_path_factory.mktemp("rates") / "lr.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for skill, (where, metric) in TUNING_METRIC.items():
            for method in ("full", "probe", "lora"):
                for targets in ("qv", "attention", "mlp", "all-linear") if method == "lora" else ("",):
                    common = {"status": "finished", "split": "validation", "seed": 0, "family": "nano", "rank": 4}
                    common |= {"retry_rate": 0.5, "base": "error-free", "mask": "true"}
                    named = {"skill": skill, "method": method, "targets": targets, "set": where, "metric": metric}
                    for lr in (0.001, 0.003, 0.01):
                        writer.writerow({**common, **named, "lr": lr, "value": 0.9 if lr == 0.003 else 0.5})
    return TunedRates(path)


def test_there_are_sweeps() -> None:
    assert {"smoke", "quick", "lr", "lr_long", "lora_rank"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_resolves(name: str, all_rates: TunedRates) -> None:
    plan = build_plan(read_sweep(name), all_rates)
    assert plan.trials or plan.sweep.search
    for planned in plan.trials:
        config = planned.config
        trained = config.method.name not in ("none", "pretrain")
        assert (config.training.lr is not None, config.training.tokens > 0) == (trained, trained)


@pytest.mark.parametrize("name", NAMES)
def test_every_header_says_question_time_and_figure(name: str) -> None:
    text = (SWEEPS / f"{name}.yaml").read_text()
    header = text[: text.index("\n\n")]
    for word in ("# Question: ", "# Time: ", "# Figure: "):
        assert word in header
    assert "CPU" in header
    assert "GPU" in header
    assert read_sweep(name).question


def test_the_base_holds_a_config() -> None:
    base = read_yaml(SWEEPS / "base.yaml")
    assert build_config(flatten(base["trial"])).evaluation.split == "test"


def test_quick_is_at_most_16_trials_of_half_a_million_tokens(all_rates: TunedRates) -> None:
    plan = build_plan(read_sweep("quick"), all_rates)
    trained = [planned.config for planned in plan.trials if planned.config.training.tokens]
    assert len(trained) <= 16
    assert min(config.training.tokens for config in trained) >= 500_000
    assert {config.method.name for config in trained} == {"full", "lora", "probe"}
    lora = [config for config in trained if config.method.name == "lora"]
    assert {(c.skill.name, c.method.rank) for c in lora} == {(s, r) for s in TUNING_METRIC for r in (1, 4, 16)}
    assert {config.seed for config in lora} == {0, 1}
    assert plan.sweep.first_look


def test_smoke_needs_no_tuned_rates(tmp_path: Path) -> None:
    plan = build_plan(read_sweep("smoke"), TunedRates(tmp_path / "none.csv"))
    assert sum(planned.config.training.tokens for planned in plan.trials) < 100_000
    assert {planned.config.skill.name for planned in plan.trials} == {"correction", "detection"}


@pytest.mark.parametrize(("tuning", "reader", "borrowed"), [("lr", "quick", 2), ("lr_long", "lora_rank", 12)])
def test_rates_are_tuned_on_validation_problems_and_read_by_the_others(
    tuning: str, reader: str, borrowed: int, all_rates: TunedRates
) -> None:
    trials = build_plan(read_sweep(tuning)).trials
    assert {planned.config.evaluation.split for planned in trials} == {"validation"}
    tuned: dict[Cell, set[int]] = {}
    for planned in trials:
        cell = cell_of(planned.config)
        tuned.setdefault(cell._replace(rank=0), set()).add(cell.rank)
    for planned in build_plan(read_sweep(reader), all_rates).trials:
        assert planned.config.evaluation.split == "test"
        if planned.config.training.lr is not None:
            cell = cell_of(planned.config)
            key = cell._replace(rank=0)
            borrowed -= key not in tuned
            ranks = tuned[key if key in tuned else key._replace(variant="")]
            assert min(ranks) <= cell.rank <= max(ranks)
    # The references of the first look, and controls with adapters, which are to differ from their twins in data alone.
    assert borrowed == 0


def test_the_whole_question_has_seeds_and_base_pairs_for_a_claim(all_rates: TunedRates) -> None:
    plan = build_plan(read_sweep("lora_rank"), all_rates)
    assert not plan.sweep.first_look
    for skill in ("correction", "detection"):
        lora = [p.config for p in plan.trials if p.config.skill.name == skill and p.config.method.name == "lora"]
        assert len({config.seed for config in lora}) >= 3
        assert len({config.base.seed for config in lora}) >= 2
        assert {config.method.targets for config in lora} == {"qv", "attention", "mlp", "all-linear"}
        assert {config.method.embeddings for config in lora} == {"none", "rows", "lora_2r"}
        assert {config.evaluation.n for config in lora} == {4_096}


def test_matched_target_sets_have_as_many_parameters(all_rates: TunedRates) -> None:
    base = build_base(NANO, Architecture(), 0)

    def parameters(targets: str, rank: int) -> int:
        return rank * sum(sum(sides(layer)) for layer in matched_modules(base, targets).values())

    plan = build_plan(read_sweep("lora_rank"), all_rates)
    wanted = [parameters("all-linear", rank) for rank in (4, 16)]
    for skill in ("correction", "detection"):
        for targets in ("qv", "attention", "mlp"):
            ranks = [p.config.method.rank for p in plan.trials if p.arm.startswith(f"{skill}-matched-{targets}-")]
            assert sorted({parameters(targets, rank) for rank in ranks}) == pytest.approx(wanted, rel=0.03)


@pytest.mark.skipif(not (RESULTS / "lr.csv").exists(), reason="the rates are not published yet")
def test_the_published_rates_are_enough_for_quick() -> None:
    alarms = [alarm for planned in build_plan(read_sweep("quick"), REAL_RATES).trials for alarm in planned.alarms]
    assert not [alarm for alarm in alarms if "edge" not in alarm and "masked mistakes" not in alarm]


def test_a_sweep_that_needs_more_than_was_tuned_says_what(all_rates: TunedRates, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tuned rates"):
        build_plan(read_sweep("lora_rank"), TunedRates(tmp_path / "none.csv"))
