"""Sweeps of several settings, of none with mistakes, and of real texts: what is shown, compared and counted."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.comparisons import CONTRAST, compare
from analysis.curve import curve_table
from analysis.figures import headline
from analysis.page import Table, Text
from analysis.rows import TrialRecord, rows_of
from analysis.sections import arm_means, comparison_note, departures_of, paper_tables
from analysis.stats import Key, trial_sample
from analysis.summary import Role, other_settings, summarize
from analysis.table import to_frame
from analysis.verdict import show, show_gap
from peft_study.igsm.families import NANO
from peft_study.study.config import build_config, flatten

HEADLINE = NANO.headline_op


def changed(record: TrialRecord, arm: str, **changes: Any) -> TrialRecord:
    """Return a made-up trial under another name, with other config keys."""
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    config = build_config(flatten(record.config) | keys).model_dump(mode="json")
    return replace(record, arm=arm, trial=f"{arm}-s0-b0-0123456789", config=config)


def table_of(trials: list[TrialRecord], made: SimpleNamespace) -> tuple[dict[str, list[str]], list[str]]:
    """Return the rows of the table over ranks, by their heads, and what stands below."""
    frame = to_frame(rows_of(made.sweep(trials)))
    table, *below = curve_table(summarize(frame), frame)
    assert isinstance(table, Table)
    rows = {row[0]: list(row[1:]) for row in (table.header, *table.rows)}
    return rows, [each.text for each in below if isinstance(each, Text)]


def test_one_setting_is_shown_and_others_are_named(made: SimpleNamespace) -> None:
    trials = [made.trial(arm, 0) for arm in ("control", "correction-r4", "correction-r16", "full")]
    others = [
        changed(made.trial("correction-r16", 0), "often-r4", data__retry_rate=0.8, method__rank=4),
        changed(made.trial("correction-r1", 0), "often-r1", data__retry_rate=0.8),
    ]
    alone, nothing = table_of(trials, made)
    rows, below = table_of([*trials, *others], made)
    assert rows == alone
    assert nothing == []
    assert below == [
        "Shown is nano, mistakes at 0.5; arms of other problems, mistakes or budgets are in the tables alone."
    ]
    info = headline.compute(to_frame(rows_of(made.sweep([*trials, *others]))))
    (curve,) = info.raw["correction"].curves
    assert [point.text for point in curve.points] == ["r4", "r16"]
    assert other_settings(summarize(to_frame(rows_of(made.sweep(trials))))) == ""


def test_no_gap_is_said_in_every_table(made: SimpleNamespace) -> None:
    same = made.outcomes("control", 0)
    trials = [made.trial(arm, 0) for arm in ("control", "correction-r4", "full")]
    trials.append(made.trial("upper", 0, outcomes=same))
    rows, _ = table_of(trials, made)
    assert rows["LoRA rank 4"][1] == rows["full fine-tuning"][1] == "no gap"
    tables = paper_tables(summarize(to_frame(rows_of(made.sweep(trials)))))
    cells = {row[0]: row[-1] for each in tables if isinstance(each, Table) for row in each.rows}
    assert cells["LoRA rank 4"] == "no gap"
    assert cells["LoRA rank 256"] == ""


def test_the_papers_matrices_stand_beside_its_rows(made: SimpleNamespace) -> None:
    """Whichever matrices the curve is on: those of adapters whose new rows are trained as on the curve."""
    names = ("control", "correction-r4", "correction-r16", "full", "upper")
    trials = [made.trial(name, 0) for name in names]
    others = [
        changed(made.trial("correction-r1", 0), "qv-r4", method__targets="qv", method__rank=4),
        changed(made.trial("correction-r4", 0), "rows-r16", method__targets="qv", method__embeddings="none"),
        changed(made.trial("correction-r16", 0), "often-r16", method__targets="qv", data__retry_rate=0.8),
    ]
    alone = paper_tables(summarize(to_frame(rows_of(made.sweep(trials)))))
    lines = summarize(to_frame(rows_of(made.sweep([*trials, *others]))))
    (before,) = (each for each in alone if isinstance(each, Table))
    (table,) = (each for each in paper_tables(lines) if isinstance(each, Table))
    assert len(before.header) == 6
    assert [row[:6] for row in table.rows] == [list(row) for row in before.rows]
    own = next(line for line in lines if line.arm == "qv-r4")
    beside = {row[0]: row[6:] for row in table.rows}
    assert beside.pop("LoRA rank 4") == [show(own.raw, 3), show_gap(own)]
    assert {tuple(cells) for cells in beside.values()} == {("", "")}


def test_skills_are_contrasted_on_every_set_of_matrices(made: SimpleNamespace) -> None:
    """Beside a curve on all matrices too; what one skill has alone is not contrasted."""
    trials = [made.trial(arm, 0) for arm in ("control", "upper", "probe", "correction-r4", "detection-r4")]
    on_some = [
        changed(made.trial(f"{skill}-r4", 0), f"{skill}-qv-r4", method__targets="qv")
        for skill in ("correction", "detection")
    ]
    alone = changed(made.trial("correction-r4", 0), "correction-mlp-r4", method__targets="mlp")
    sweep = made.sweep([*trials, *on_some, alone])
    found = [each for each in compare(summarize(to_frame(rows_of(sweep))), sweep.trials) if each.topic == CONTRAST]
    names = [f"LoRA {targets} rank 4" for targets in ("all-linear", "qv")]
    assert [each.first for each in found] == [f"detection: {name}" for name in names]
    assert [each.second for each in found] == [f"correction: {name}" for name in names]


def test_clean_data_are_a_control_only_beside_mistakes(made: SimpleNamespace) -> None:
    clean = [
        changed(made.trial(f"correction-r{rank}", 0), f"clean-r{rank}", data__retry_rate=0.0) for rank in (1, 4, 16)
    ]
    alone = {line.arm: line.role for line in summarize(to_frame(rows_of(made.sweep(clean))))}
    assert set(alone.values()) == {Role.ADAPTER}
    mixed = {line.arm: line.role for line in summarize(to_frame(rows_of(made.sweep([*clean, made.trial("full", 0)]))))}
    assert [role for arm, role in mixed.items() if arm.startswith("clean")] == [Role.CONTROL] * 3


def test_full_fine_tuning_alone_is_named_by_its_mask(made: SimpleNamespace) -> None:
    """And the ranks are said as long as a rank has one size."""
    trials = [made.trial(arm, 0) for arm in ("control", "upper", "correction-r1", "correction-r4", "full")]
    trials.append(changed(made.trial("full", 0), "open", skill__mask=False))
    info = headline.compute(to_frame(rows_of(made.sweep(trials))))
    assert [curve.text for curve in info.raw["correction"].curves] == ["correction, masked", "correction, unmasked"]
    figure = headline.draw(info)
    figure.canvas.draw()
    right = figure.axes[-1]
    assert {"r1", "r4", "full"} <= {label.get_text().partition("\n")[0] for label in right.get_xticklabels()}
    handles: list[Any] = right.get_legend_handles_labels()[0]
    shown = [(handle[0].get_linestyle(), handle[0].get_markerfacecolor()) for handle in handles]
    assert shown[0][0] == "-"
    assert shown[1] == ("None", "white")


def test_a_text_counts_the_documents_that_were_measured() -> None:
    """Fewer than were asked for, and some without a step to judge."""
    outcomes = {
        "detect_injected_0_score": np.array([0.1, 0.9, 0.2, 0.8], np.float32),
        "detect_injected_0_label": np.array([0, 1, 0, 1], np.uint8),
        "detect_injected_0_problem": np.array([0, 0, 2, 5], np.int32),
    }
    sample = trial_sample(outcomes, Key("detect_auroc", "injected", 0), n=None, seed=0)
    assert sample is not None
    assert (sample.value, sample.problems) == (1.0, 3)


@pytest.mark.parametrize("bases", [1, 2, 3])
def test_what_two_bases_mean_is_said_where_there_are_two(made: SimpleNamespace, bases: int) -> None:
    trials = []
    for base in range(bases):
        for arm in ("control", "full"):
            trial = changed(made.trial(arm, 0), arm, base__seed=base)
            trials.append(replace(trial, trial=f"{arm}-s0-b{base}-0123456789"))
    found = compare(summarize(to_frame(rows_of(made.sweep(trials)))), trials)
    assert {len(each.by_base) for each in found} == {bases}
    assert ("ahead on both" in comparison_note(found)) is (bases == 2)


def test_every_base_weighs_the_same_where_means_are_shown(made: SimpleNamespace) -> None:
    trials = []
    for seed, base, loss, wrong in ((0, 0, 0.1, 10), (1, 0, 0.1, 10), (0, 1, 0.4, 40)):
        trial = changed(made.trial("full", seed), "full", base__seed=base, seed=seed)
        measure = trial.result["measures"][0] | {"value": loss}
        left = {f"ood_{HEADLINE}": {"lookup": wrong, "right": 100 - wrong}}
        result = trial.result | {"measures": [measure], "departures": left}
        trials.append(replace(trial, trial=f"full-s{seed}-b{base}-0123456789", result=result))
    sweep = made.sweep(trials)
    means = arm_means(to_frame(rows_of(sweep)), "correction")
    assert means["stream", None]["full"]["loss"] == pytest.approx(0.25)
    left = departures_of(sweep)[f"ood_{HEADLINE}"]["full"]
    assert (left.shares["lookup"], left.solutions) == (pytest.approx(0.25), 300)
