"""What a page says of a sweep, section by section, as elements that become HTML or Markdown."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from analysis import published, verdict
from analysis.comparisons import Comparison
from analysis.page import Code, Element, Heading, Table, Text
from analysis.rows import SweepRecord, TrialRecord, overrides_of
from analysis.style import short_count
from analysis.summary import SKILLS, ArmSummary, Role, name_of
from analysis.table import arm_of, to_rows, trial_rows
from analysis.verdict import show
from peft_study.records import METRICS, Status

HEADER = (
    "method",
    "rank",
    "lr",
    "metric",
    "value [95 %]",
    "gap closed [95 %]",
    "params",
    "tokens",
    "with loss",
    "s",
    "MiB",
    "alarms",
)
"""Columns of `cells_of`."""
_EMPTY = "\N{EN DASH}"


def cells_of(line: ArmSummary) -> list[str]:
    """Return the cells of a line, in the order of the header."""
    row = line.row
    return [
        name_of(line),
        str(row["rank"]) if row["rank"] else "",
        "" if row["lr"] is None else f"{row['lr']:g}",
        line.metric,
        show(line.raw, 3) or _EMPTY,
        verdict.show_gap(line) or _EMPTY,
        _short(row["trainable_params"]),
        _short(row["tokens"]),
        _short(row["tokens_with_loss"]),
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        "" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}",
        "; ".join(line.alarms),
    ]


def arm_tables(lines: Sequence[ArmSummary]) -> list[Element]:
    """Return a table for each skill."""
    elements: list[Element] = []
    for skill in SKILLS:
        rows = [cells_of(line) for line in lines if line.skill == skill]
        if rows:
            elements += [Heading(skill.capitalize()), Table(HEADER, rows)]
    return elements


def comparison_tables(found: Sequence[Comparison]) -> list[Element]:
    """Return a table for each thing that arms differ in."""
    if not found:
        return []
    elements: list[Element] = [Heading("Arm beside arm"), Text(comparison_note(found))]
    for topic in dict.fromkeys(each.topic for each in found):
        mine = [each for each in found if each.topic == topic]
        elements += [Text(f"**{topic[0].upper()}{topic[1:]}**"), comparison_table(mine)]
    return elements


def comparison_note(found: Sequence[Comparison]) -> str:
    """Return what a reader must know of comparisons."""
    two = (
        " Beside the interval stands the difference on each base alone: of the draws from two bases a quarter takes "
        "only the one and a quarter only the other, so an arm has to be ahead on both to be called higher."
    )
    return (
        "Differences of arms that differ in one thing, or of an arm and a reference, first less second. Each draw "
        "takes both on the same bases and problems; intervals are 95 % each and not widened for there being "
        f"{len(found)} of them.{two if {len(each.by_base) for each in found} == {2} else ''}"
    )


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Return a row for each comparison; `trials`: of the arm that has fewer."""
    rows = [
        [
            *(each.first, each.second, each.measure, str(each.trials)),
            *(verdict.fixed(value, 3) for value in each.values),
            show(each.difference, 3),
            ", ".join(_signed(value) for value in each.by_base),
            "; ".join((each.verdict, *each.notes)),
        ]
        for each in found
    ]
    columns = ("first", "second", "measure", "trials", "first is", "second is")
    return Table((*columns, "difference [95 %]", "on each base", "the first is"), rows)


def _signed(value: float) -> str:
    return _EMPTY if math.isnan(value) else verdict.signed(value, 3)


def measure_tables(frame: pd.DataFrame) -> list[Element]:
    """Return all other measures, as means over the trials of an arm: a table for each set, a row for each arm."""
    elements: list[Element] = []
    for skill in SKILLS:
        sets = arm_means(frame, skill)
        if sets:
            note = "Means over trials, each base weighing the same; the table has those of each trial, with their "
            note += "intervals. Names as in `peft_study/records.py`."
            elements += [Heading(f"All measures of {skill}"), Text(note)]
        for (set_name, op), arms in sets.items():
            metrics = [metric for metric in METRICS if any(metric in of_arm for of_arm in arms.values())]
            rows = [[arm, *(number(of_arm.get(metric), 3) for metric in metrics)] for arm, of_arm in arms.items()]
            name = f"{set_name} op {op}" if op else set_name
            elements.append(Table((name, *(f"`{metric}`" for metric in metrics)), rows))
    return elements


def arm_means(frame: pd.DataFrame, skill: str) -> dict[tuple[str, int | None], dict[str, dict[str, float]]]:
    """Return what the arms measured, by set and operation count, arm and metric.

    That is the mean over base pairs of the means over the trials on each, as where values are pooled.
    """
    values: dict[tuple[str, int | None], dict[str, dict[str, dict[int, list[float]]]]] = {}
    for row in to_rows(trial_rows(frame)):
        if row["skill"] == skill and row["metric"] and row["value"] is not None:
            of_arm = values.setdefault((row["set"], row["op"]), {}).setdefault(arm_of(row["trial"]), {})
            of_arm.setdefault(row["metric"], {}).setdefault(row["base_seed"], []).append(row["value"])
    return {
        where: {arm: {metric: _mean(bases) for metric, bases in of_arm.items()} for arm, of_arm in arms.items()}
        for where, arms in values.items()
    }


def _mean(of_bases: Mapping[int, Sequence[float]]) -> float:
    return fmean(fmean(values) for values in of_bases.values())


def number(value: float | None, digits: int) -> str:
    """Return `value` as text, '' where there is none."""
    return "" if value is None else verdict.fixed(value, digits)


class Departures(NamedTuple):
    """Where the solutions of an arm first leave the way."""

    shares: dict[str, float]
    """Verdict to its share of all solutions, each base pair weighing the same."""
    solutions: int


def departures_of(record: SweepRecord) -> dict[str, dict[str, Departures]]:
    """Return for each set and arm where its solutions leave the way, over all trials."""
    counts: dict[str, dict[str, dict[int, dict[str, int]]]] = {}
    for trial in record.trials:
        for set_name, kinds in trial.result.get("departures", {}).items():
            of_arm = counts.setdefault(set_name, {}).setdefault(trial.arm, {})
            of_base = of_arm.setdefault(trial.config["base"]["seed"], {})
            for kind, count in kinds.items():
                of_base[kind] = of_base.get(kind, 0) + count
    return {set_name: {arm: _departures(bases) for arm, bases in arms.items()} for set_name, arms in counts.items()}


def _departures(of_bases: Mapping[int, Mapping[str, int]]) -> Departures:
    kinds = dict.fromkeys(kind for of_base in of_bases.values() for kind in of_base)
    counted = [of_base for of_base in of_bases.values() if sum(of_base.values())]
    shares = {kind: fmean(of.get(kind, 0) / sum(of.values()) for of in counted) for kind in kinds} if counted else {}
    return Departures(shares, sum(sum(of_base.values()) for of_base in counted))


def departure_tables(record: SweepRecord) -> list[Element]:
    """Return where solutions first leave the way, as shares of all: a row for each arm."""
    elements: list[Element] = []
    for set_name, arms in departures_of(record).items():
        heading = Heading(f"Where solutions first leave the way: {set_name.replace('_', ' op ')}")
        note = "Shares of an arm's solutions, by the first step that is wrong or unnecessary; `right`: solved."
        elements += [heading, Text(note), departure_table(arms)]
    return elements


def departure_table(arms: Mapping[str, Departures]) -> Table:
    """Return the table of the shares of each arm."""
    kinds = sorted({kind for of_arm in arms.values() for kind in of_arm.shares})
    rows = [
        [arm, *(percent(of.shares.get(kind, 0.0)) if of.shares else "" for kind in kinds), _whole(of.solutions)]
        for arm, of in arms.items()
    ]
    return Table(("arm", *kinds, "solutions"), rows)


def percent(share: float) -> str:
    """Return a share as people read it, e.g. '46 %'."""
    return f"{100 * share:.0f} %"


def paper_tables(lines: Sequence[ArmSummary]) -> list[Element]:
    """Return the paper's rows beside ours, once for each mask that was trained with."""
    trained = [line for line in lines if line.role in (Role.ADAPTER, Role.FULL) and line.skill == "correction"]
    if not trained:
        return []
    header = [
        "row of the paper",
        "med op 15",
        "med op 23",
        "its gap closed",
        "here, out of distribution",
        "gap closed here",
    ]
    note = (
        "Left the paper (arXiv 2408.16293, Figures 4b and 10) at the nearest of its retry rates, right this sweep. Its "
        "cells are the best of four runs, so biased up; its families are med and hard, its adapters on query and value "
        "with twice the rank on the embedding (here the new words' rows are trained instead), and it has no control: "
        "its gap closed is taken on the mean of all cells, from `original` to `pretrain 2x`. Compare the order, not "
        f"the numbers. For detection it reports {published.DETECTION}; the set `pairs` is the one to compare with. Its "
        "`cont. pretrain` and `pretrain 2x` read as many tokens again as pretraining does; here an arm reads far fewer "
        "(`tokens`)."
    )
    elements: list[Element] = [Heading("Beside the paper"), Text(note)]
    masks = sorted({bool(line.row["mask"]) for line in trained}, reverse=True)
    for mask in masks:
        beside = published.beside(lines, retry_rate=trained[0].row["retry_rate"], mask=mask)
        both = any(row.on_its_matrices for row in beside)
        rows = []
        for row in beside:
            cells = ["", ""]
            if row.paper is not None:
                cells = [f"{share:.1f} %" for share in (row.paper.in_distribution, row.paper.out_of_distribution)]
            gap = "" if row.paper_gap is None else verdict.fixed(row.paper_gap, 2)
            arms = (row.ours, row.on_its_matrices) if both else (row.ours,)
            ours = [cell for arm in arms for cell in ((show(arm.raw, 3), verdict.show_gap(arm)) if arm else ("", ""))]
            rows.append([row.text, *cells, gap, *ours])
        if len(masks) > 1:
            elements.append(Text("Without loss on mistakes:" if mask else "With loss on mistakes:"))
        elements.append(Table([*header, "here, on queries and values alone", "gap closed"] if both else header, rows))
    return elements


def provenance_table(record: SweepRecord) -> list[Element]:
    """Return commit, versions, machine and kernels; a value that differs between trials is shown with its count."""
    found: dict[str, dict[str, int]] = {}
    for result in (trial.result for trial in record.trials if trial.result):
        trained = {f"training.{key}": result[key] for key in ("precision", "attention") if result.get(key)}
        for key, value in _flat(result.get("provenance", {}) | trained).items():
            counts = found.setdefault(key, {})
            counts[value] = counts.get(value, 0) + 1
    rows = [
        [key, "; ".join(value if len(counts) == 1 else f"{value} ({n} trials)" for value, n in counts.items())]
        for key, counts in sorted(found.items())
    ]
    return [Heading("Provenance"), Table(("what", "value"), rows)] if rows else []


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
            flat[prefix + key] = text if len(text) <= 80 else f"{text[:80]}..."
    return flat


def unfinished_table(record: SweepRecord) -> list[Element]:
    """Return every trial that has no result, and why."""

    def describe(trial: TrialRecord) -> list[str]:
        return [trial.trial, trial.status.value, " ".join(trial.reason.split())]

    rows = [describe(trial) for trial in record.trials if trial.status is not Status.FINISHED]
    table = Table(("trial", "status", "reason"), rows) if rows else Text("None: every planned trial finished.")
    return [Heading("Trials without a result"), table]


def command_list(record: SweepRecord, frame: pd.DataFrame) -> list[Element]:
    """Return one command for each trial, with what its digits come from."""
    first = {row["trial"]: row for row in reversed(to_rows(trial_rows(frame)))}
    lines = []
    for trial in record.trials:
        origin = ", ".join(_origin(trial))
        lines.append(f"# {trial.trial}" + f" ({origin})" * bool(origin))
        lines.append(shlex.join(["peft-study", "finetune", *overrides_of(first[trial.trial])]))
    note = (
        "One command makes one row again; what is not named is the default. The same is in the column `config`. Digits "
        "are those of the commit and the precision beside a trial, on a processor with the same instructions: ask for "
        "the precision where another would be chosen (`training.precision=bf16`, or `fp32`). A later commit may add up "
        "in another order, which moves a trial as far as another seed does."
    )
    return [Heading("Making a row again"), Text(note), Code(lines)] if lines else []


def _origin(trial: TrialRecord) -> list[str]:
    """Return what the digits of a trial come from, as far as it is known."""
    made_by = trial.result.get("provenance") or {}
    found = [f"commit {made_by['commit'][:9]}"] if made_by.get("commit") else []
    found += ["with changes that were not committed"] if made_by.get("dirty") else []
    return [*found, trial.result["precision"]] if trial.result.get("precision") else found


def _short(number: int | None) -> str:
    return "" if number is None else short_count(number)


def _whole(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
