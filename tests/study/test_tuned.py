"""The tuned rate is the best of those tried on validation problems, and says when it may not be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_study.errors import ConfigError
from peft_study.study.config import TrialConfig, build_config
from peft_study.study.tuned import TunedRates

Write = Callable[..., Path]
Row = Callable[..., Any]


def config_of(**changes: Any) -> TrialConfig:
    flat = {"method.name": "lora", "method.rank": 4, **{key.replace("__", "."): v for key, v in changes.items()}}
    return build_config(flat)


def test_the_best_mean_over_seeds_and_ops_wins(write_rates: Write, tuned_row: Row) -> None:
    rows = [
        *(tuned_row(0.001, value, seed=seed) for seed, value in enumerate((0.9, 0.1))),
        *(tuned_row(0.003, value, seed=seed, op=op) for seed, op, value in ((0, 5, 0.7), (0, 6, 0.5), (1, 6, 0.6))),
        tuned_row(0.01, 0.4),
    ]
    assert TunedRates(write_rates(*rows)).look_up(config_of()) == (0.003, ())


def test_of_equal_scores_the_lower_loss_wins(write_rates: Write, tuned_row: Row) -> None:
    rows = [tuned_row(lr, 0.5) for lr in (0.001, 0.003, 0.01, 0.03)]
    losses = [tuned_row(lr, loss, set="stream", metric="loss") for lr, loss in ((0.003, 0.9), (0.01, 0.8), (0.03, 0.9))]
    assert TunedRates(write_rates(*rows, *losses)).look_up(config_of()).lr == 0.01


def test_detection_is_tuned_on_its_own_metric(write_rates: Write, tuned_row: Row) -> None:
    def row(lr: float, value: float, **changes: Any) -> Any:
        return tuned_row(lr, value, **{"skill": "detection", "set": "injected", "metric": "detect_auroc", **changes})

    rows = [
        row(0.001, 0.7),
        row(0.003, 0.9),
        row(0.01, 0.8),
        row(0.01, 1.0, set="pairs"),
        row(0.001, 1.0, skill="correction"),
    ]
    assert TunedRates(write_rates(*rows)).look_up(config_of(skill__name="detection")).lr == 0.003


def test_between_tuned_ranks_the_rate_lies_on_a_line_of_logs(write_rates: Write, tuned_row: Row) -> None:
    tried = {1: (0.01, 0.03, 0.1), 16: (0.001, 0.003, 0.01)}
    rows = [
        tuned_row(lr, 0.9 if i == 1 else 0.1, rank=rank) for rank, rates in tried.items() for i, lr in enumerate(rates)
    ]
    rates = TunedRates(write_rates(*rows))
    chosen = {rank: rates.look_up(config_of(method__rank=rank)) for rank in (1, 2, 4, 8, 16, 32)}
    # 0.03 / 10^(1/4), ... to two digits.
    expected = {1: 0.03, 2: 0.017, 4: 0.0095, 8: 0.0053, 16: 0.003, 32: 0.003}
    assert {rank: rate.lr for rank, rate in chosen.items()} == expected
    assert not any(rate.alarms for rate in chosen.values())


def test_a_rank_far_from_those_tuned_is_an_alarm(write_rates: Write, tuned_row: Row) -> None:
    rows = [tuned_row(lr, 0.9 if lr == 0.003 else 0.1, rank=16) for lr in (0.001, 0.003, 0.01)]
    rates = TunedRates(write_rates(*rows))
    for rank in (4, 64):
        (alarm,) = rates.look_up(config_of(method__rank=rank)).alarms
        assert alarm.startswith(f"the learning rate was tuned at rank 16, not near {rank} (nano, correction, lora")
    for rank in (8, 16, 32):
        assert rates.look_up(config_of(method__rank=rank)) == (0.003, ())


def test_both_ranks_that_a_rate_lies_between_may_alarm(write_rates: Write, tuned_row: Row) -> None:
    best = {1: 0.1, 16: 0.001}
    rows = [
        tuned_row(lr, 0.9 if lr == best[rank] else 0.1, rank=rank)
        for rank in best
        for lr in (0.001, 0.003, 0.01, 0.03, 0.1)
    ]
    rate = TunedRates(write_rates(*rows)).look_up(config_of(method__rank=4))
    assert rate.lr == 0.01
    assert [alarm.rpartition(", ")[2] for alarm in rate.alarms] == ["rank 1)", "rank 16)"]


@pytest.mark.parametrize(("best", "alarmed"), [(0.001, True), (0.003, False), (0.01, True)])
def test_a_best_rate_on_the_edge_is_an_alarm(write_rates: Write, tuned_row: Row, best: float, alarmed: bool) -> None:
    rows = [tuned_row(lr, 0.9 if lr == best else 0.1) for lr in (0.001, 0.003, 0.01)]
    rate = TunedRates(write_rates(*rows)).look_up(config_of())
    assert rate.lr == best
    assert [f"{best:g} lies on the edge of its grid" in alarm for alarm in rate.alarms] == [True] * alarmed


@pytest.mark.parametrize(
    "changes",
    [{"split": "test"}, {"status": "failed"}, {"seed": ""}, {"value": ""}, {"family": "mini"}, {"targets": "qv"}],
)
def test_rows_that_may_not_decide_are_not_read(write_rates: Write, tuned_row: Row, changes: dict[str, Any]) -> None:
    rows = [tuned_row(lr, 0.5) for lr in (0.001, 0.003, 0.01)]
    rows[1] = tuned_row(0.003, 0.6)
    excluded = tuned_row(**{"lr": 0.01, "value": 0.99, **changes})
    assert TunedRates(write_rates(*rows, excluded)).look_up(config_of()).lr == 0.003


def test_a_table_of_test_problems_alone_gives_no_rate(write_rates: Write, tuned_row: Row) -> None:
    rates = TunedRates(write_rates(*(tuned_row(lr, 0.5, split="test") for lr in (0.001, 0.003, 0.01))))
    with pytest.raises(ConfigError, match="no tuned learning rate"):
        rates.look_up(config_of())


VARIANTS = {
    "clean tokens": ({"retry_rate": 0.0}, {"data.retry_rate": 0}),
    "retry base": ({"base": "retry"}, {"base.name": "retry"}),
    "unmasked": ({"mask": "false"}, {"skill.mask": False}),
}
"""Variant to the columns of a row and the keys of a config that make it."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_has_its_own_rate(write_rates: Write, tuned_row: Row, variant: str) -> None:
    columns, keys = VARIANTS[variant]
    kind = {"method": "full", "rank": "", "targets": ""}
    rows = [tuned_row(lr, v, **kind) for lr, v in ((1e-4, 0.1), (3e-4, 0.9), (1e-3, 0.2))]
    config = build_config({"method.name": "full", **keys})
    rates = TunedRates(write_rates(*rows))
    borrowed = f"tuned for nano, correction, full, {variant}, so it is that of masked mistakes on the error-free base"
    assert rates.look_up(config) == (3e-4, (f"no learning rate was {borrowed}",))
    own = [tuned_row(lr, v, **kind, **columns) for lr, v in ((1e-5, 0.95), (3e-5, 0.99), (1e-4, 0.2))]
    rates = TunedRates(write_rates(*rows, *own))
    assert rates.look_up(config) == (3e-5, ())
    assert rates.look_up(build_config({"method.name": "full", "method.targets": "qv"})) == (3e-4, ())
    # A rate that was tuned at the right budget is better than one's own at eight times as many tokens.
    own = [row._replace(tokens=2**22) for row in own]
    rates = TunedRates(write_rates(*rows, *own))
    assert rates.look_up(config) == (3e-4, (f"no learning rate was {borrowed}",))
    assert rates.look_up(build_config({"method.name": "full", **keys, "training.tokens": 2**22})) == (3e-5, ())


def test_a_mask_says_nothing_of_detectors_and_clean_tokens(write_rates: Write, tuned_row: Row) -> None:
    named = {"skill": "detection", "set": "injected", "metric": "detect_auroc", "mask": ""}
    rows = [tuned_row(lr, v, **named) for lr, v in ((1e-3, 0.1), (3e-3, 0.9), (1e-2, 0.2))]
    rows += [tuned_row(lr, v, retry_rate=0) for lr, v in ((1e-4, 0.1), (3e-4, 0.9), (1e-3, 0.2))]
    rates = TunedRates(write_rates(*rows))
    assert rates.look_up(config_of(skill__name="detection", skill__mask=False)) == (3e-3, ())
    assert rates.look_up(config_of(data__retry_rate=0, skill__mask=False)) == (3e-4, ())


def test_the_probe_is_tuned_by_itself(write_rates: Write, tuned_row: Row) -> None:
    named = {"skill": "detection", "set": "injected", "metric": "detect_auroc", "targets": ""}
    rows = [tuned_row(lr, v, method="probe", rank=0, **named) for lr, v in ((1e-3, 0.1), (3e-3, 0.9), (1e-2, 0.2))]
    rates = TunedRates(write_rates(*rows))
    assert rates.look_up(build_config({"method.name": "probe", "skill.name": "detection"})).lr == 3e-3
    with pytest.raises(ConfigError, match="nano, detection, full"):
        rates.look_up(build_config({"method.name": "full", "skill.name": "detection"}))


def test_a_missing_cell_is_named_with_its_remedy(write_rates: Write, tuned_row: Row) -> None:
    rates = TunedRates(write_rates(tuned_row(0.001, 0.5)))
    with pytest.raises(ConfigError) as caught:
        rates.look_up(config_of(method__targets="qv"))
    for text in (
        "nano, correction, lora, qv, rank 4",
        "method.targets=qv",
        "make sweep SWEEP=lr_long",
        "make publish SWEEP=lr_long",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__family": "mini"}, "for mini, .*; the published rates are of nano; set training.lr$"),
        (
            {"skill__name": "detection"},
            "for nano, detection, .*; run `make sweep SWEEP=lr` and `make publish SWEEP=lr`",
        ),
    ],
)
def test_a_remedy_helps(write_rates: Write, tuned_row: Row, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TunedRates(write_rates(tuned_row(0.001, 0.5))).look_up(config_of(**changes))


def test_a_second_table_adds_cells(write_rates: Write, tuned_row: Row, tmp_path: Path) -> None:
    first = write_rates(*(tuned_row(lr, v) for lr, v in ((0.001, 0.1), (0.003, 0.9), (0.01, 0.2)))).rename(
        tmp_path / "first.csv"
    )
    more = write_rates(*(tuned_row(lr, v, targets="qv") for lr, v in ((0.001, 0.1), (0.003, 0.2), (0.01, 0.1))))
    rates = TunedRates(first, more)
    assert rates.look_up(config_of()) == (0.003, ())
    assert rates.look_up(config_of(method__targets="qv")) == (0.003, ())
    assert TunedRates(first, tmp_path / "none.csv").look_up(config_of()).lr == 0.003


def test_rates_are_tuned_for_a_budget(write_rates: Write, tuned_row: Row) -> None:
    tried = {2**19: (0.001, 0.9), 2**22: (0.003, 0.9)}
    rows = [
        tuned_row(lr, score if lr == best else 0.1, tokens=tokens)
        for tokens, (best, score) in tried.items()
        for lr in (0.0003, 0.001, 0.003, 0.01)
    ]
    rates = TunedRates(write_rates(*rows))
    for tokens, lr in ((2**19, 0.001), (2**20, 0.001), (2**21, 0.003), (2**22, 0.003), (2**23, 0.003)):
        assert rates.look_up(config_of(training__tokens=tokens)) == (lr, ())
    assert rates.look_up(config_of(training__tokens=2**17)).alarms == (
        "the learning rate was tuned at 524,288 tokens, not at 131,072 (nano, correction, lora, all-linear, rank 4)",
    )


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lr.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="no column 'sweep'"):
        TunedRates(tmp_path / "lr.csv").look_up(config_of())
