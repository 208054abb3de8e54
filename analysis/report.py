"""The answer of a sweep for people: a table in the terminal, a page in HTML and Markdown, a published table."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from analysis import published, verdict
from analysis.comparisons import Comparison, compare
from analysis.export import export_record, read_sweep, results_path
from analysis.figures import headline, learning_rate
from analysis.page import Code, Element, Heading, Picture, Table, Text, to_html, to_markdown
from analysis.rows import SweepRecord, TrialRecord, arm_samples, overrides_of
from analysis.style import render, short_count
from analysis.summary import SKILLS, ArmSummary, Role, caption, counts_of, is_synthetic, name_of, summarize
from analysis.table import arm_of, read_results, to_rows, trial_rows, write_if_changed
from analysis.verdict import show
from peft_study.errors import DataError
from peft_study.records import METRICS, Status
from peft_study.study.reuse import KeptSample, KeptTrial, as_bytes, read_trials, trials_path

FIGURES: dict[str, ModuleType] = {"headline": headline, "learning_rate": learning_rate}
"""Name in a sweep file to the module that computes and draws it; the first is the default."""
_HEADER = (
    "method",
    "rank",
    "lr",
    "metric",
    "value [95 %]",
    "gap closed [95 %]",
    "params",
    "tokens",
    "s",
    "MiB",
    "alarms",
)
_TEXTS = ("skill", "method", "metric", "alarms")
_LEAST_WIDTHS = {"skill": 10, "method": 11, "metric": 12, "value [95 %]": 14, "gap closed [95 %]": 14, "alarms": 6}
"""Columns that a narrow terminal breaks into lines, and how narrow they may get; no other column is broken."""
TERMINAL_WIDTH = 120
"""Columns that the terminal table takes where there is room."""
_EMPTY = "\N{EN DASH}"


def terminal_table(frame: pd.DataFrame) -> TerminalTable:
    """Return the answer as a table: a line for each arm and skill; alarms are numbers, spelled out below."""
    lines = summarize(frame)
    counts = counts_of(frame)
    alarms = list(dict.fromkeys(alarm for line in lines for alarm in line.alarms))
    # A table from too few seeds or problems is a first look, whatever its sweep calls itself.
    below = [caption(counts, first_look=bool(verdict.missing_for_claim(counts)))]
    below += [f"({number}) {alarm}" for number, alarm in enumerate(alarms, start=1)]
    caption_text = TerminalText("\n".join(below), justify="left")
    table = TerminalTable(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, caption=caption_text)
    # Room is scarce, and arms that differ in nothing but their learning rate are those of its own sweep.
    tuning = len({(line.skill, name_of(line), line.row["rank"]) for line in lines}) < len(lines)
    header = [name for name in ("skill", *_HEADER) if name != "lr" or tuning]
    for name in header:
        width = _LEAST_WIDTHS.get(name)
        table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=not width, min_width=width)
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        cells = dict(zip(_HEADER, _cells(line), strict=True)) | {"skill": line.skill}
        cells["alarms"] = " ".join(f"({alarms.index(alarm) + 1})" for alarm in line.alarms)
        # Cells are plain text: an interval in brackets is no markup.
        table.add_row(
            *(TerminalText(cells[name]) for name in header),
            end_section=following is not None and following.skill != line.skill,
        )
    return table


def write_report(sweep: str, runs: Path) -> Path:
    """Bring the tidy table of `sweep` up to date, write its report beside it and return the HTML page.

    Beside `report.html`, which needs no other file, lie `report.md` and each figure as PNG and SVG.
    """
    return _write_report(read_sweep(sweep, runs), runs)


def _write_report(record: SweepRecord, runs: Path) -> Path:
    sweep, table = record.name, export_record(record, runs)
    frame, folder = read_results(table), table.parent
    figures = {record.figure if record.figure in FIGURES else next(iter(FIGURES))}
    elements: list[Element] = [Heading(f"Sweep {sweep}", 1), Text(record.question or "No question was written down.")]
    elements += _verdict(frame, record, figures)
    for name in sorted(figures):
        module = FIGURES[name]
        info = module.compute(frame)
        figure = module.draw(info)
        svg = render(figure, "svg")
        write_if_changed(folder / f"{name}.svg", svg)
        write_if_changed(folder / f"{name}.png", render(figure, "png"))
        below = f"{module.describe(info)} {caption(counts_of(frame), first_look=record.first_look)}"
        elements.append(Picture(name, svg, f"{name} figure of sweep {sweep}", below))
    lines = summarize(frame)
    elements += _arms(lines)
    if "headline" in figures:
        elements += _comparisons(compare(lines, arm_samples(record.trials)))
    elements += _measures(frame) + _departures(record)
    elements += _beside_the_paper(lines) if "headline" in figures and is_synthetic(counts_of(frame)) else []
    elements += _provenance(record) + _unfinished(record) + _commands(frame)
    write_if_changed(folder / "report.md", to_markdown(elements).encode())
    page = folder / "report.html"
    write_if_changed(page, to_html(f"{sweep}: {record.question}", elements).encode())
    return page


def publish(sweep: str, runs: Path, results_dir: Path) -> Path:
    """Copy the tidy table of `sweep` to the published results, its report, figures and trials beside it; return where.

    Of a sweep that was stopped, what there is: trials that are missing are rows that say so.
    Raises DataError where the published table holds finished trials that this sweep plans and has not: they would be
    lost.
    """
    source, target = results_path(sweep, runs), results_dir / f"{sweep}.csv"
    record = read_sweep(sweep, runs)
    if lost := _only_published(record, trials_path(target)):
        raise DataError(
            f"{target} holds {len(lost)} finished trials that {source} lacks, such as {lost[0]}; "
            f"run `make sweep SWEEP={sweep} REUSE=1` to take them in, or delete {trials_path(target)} to drop them"
        )
    report = _write_report(record, runs).with_suffix(".md")
    text = report.read_text()
    for figure in sorted(report.parent.glob("*.png")):
        write_if_changed(results_dir / f"{sweep}-{figure.name}", figure.read_bytes())
        text = text.replace(f"]({figure.name})", f"]({sweep}-{figure.name})")
    write_if_changed(results_dir / f"{sweep}.md", text.encode())
    write_if_changed(target, source.read_bytes())
    write_if_changed(trials_path(target), as_bytes(_kept(record)))
    return target


def _finished(record: SweepRecord) -> list[TrialRecord]:
    return [trial for trial in record.trials if trial.status is Status.FINISHED]


def _only_published(record: SweepRecord, path: Path) -> list[str]:
    """Return the planned trials that are finished in the published file `path` alone."""
    if not path.is_file():
        return []
    here = {trial.trial for trial in _finished(record)}
    there = read_trials(path.read_bytes(), source=path)
    return [trial.trial for trial in record.trials if trial.trial in there and trial.trial not in here]


def _kept(record: SweepRecord) -> dict[str, KeptTrial]:
    """Return the finished trials of a sweep as they are published."""
    kept: dict[str, KeptTrial] = {}
    for trial in _finished(record):
        samples = (
            KeptSample(*key, sample.value, sample.problems, sample.draws.astype(np.float32))
            for key, sample in trial.samples.items()
        )
        result = {name: value for name, value in trial.result.items() if name != "reused"}
        kept[trial.trial] = KeptTrial(result, tuple(samples))
    return kept


def _verdict(frame: pd.DataFrame, record: SweepRecord, figures: set[str]) -> list[Element]:
    standing = verdict.standing(counts_of(frame), first_look=record.first_look)
    if "learning_rate" in figures:
        return [Text(text) for text in verdict.learning_rate_sentences(learning_rate.compute(frame))]
    return [Text(text) for text in (standing, *verdict.headline_sentences(summarize(frame)))]


def _cells(line: ArmSummary) -> list[str]:
    """Return the cells of a line, in the order of the header."""
    row = line.row
    return [
        name_of(line),
        str(row["rank"]) if row["rank"] else "",
        "" if row["lr"] is None else f"{row['lr']:g}",
        line.metric,
        show(line.raw, 3) or _EMPTY,
        "no gap" if line.no_gap else show(line.gap, 2) or _EMPTY,
        _short(row["trainable_params"]),
        _short(row["tokens"]),
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        "" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}",
        "; ".join(line.alarms),
    ]


def _arms(lines: Sequence[ArmSummary]) -> list[Element]:
    """Return a table for each skill."""
    elements: list[Element] = []
    for skill in SKILLS:
        rows = [_cells(line) for line in lines if line.skill == skill]
        if rows:
            elements += [Heading(skill.capitalize()), Table(_HEADER, rows)]
    return elements


def _comparisons(found: Sequence[Comparison]) -> list[Element]:
    """Return a table for each thing that arms differ in."""
    if not found:
        return []
    note = (
        "Differences of arms that differ in one thing, first less second. Each draw takes both on the same bases and "
        f"problems; intervals are 95 % each and not widened for there being {len(found)} of them."
    )
    elements: list[Element] = [Heading("Arm beside arm"), Text(note)]
    for topic in dict.fromkeys(each.topic for each in found):
        rows = [
            [
                *(each.first, each.second, each.measure),
                *(f"{value:.3f}" for value in each.values),
                show(each.difference, 3),
                each.verdict,
            ]
            for each in found
            if each.topic == topic
        ]
        header = ("first", "second", "measure", "first is", "second is", "difference [95 %]", "the first is")
        elements += [Text(f"**{topic[0].upper()}{topic[1:]}**"), Table(header, rows)]
    return elements


def _measures(frame: pd.DataFrame) -> list[Element]:
    """Return all other measures, as means over the trials of an arm: a column for each arm."""
    elements: list[Element] = []
    for skill in SKILLS:
        values: dict[tuple[int, str, int], dict[str, list[float]]] = {}
        for row in to_rows(trial_rows(frame)):
            if row["skill"] == skill and row["metric"] and row["value"] is not None:
                key = list(METRICS).index(row["metric"]), row["set"], row["op"] or 0
                values.setdefault(key, {}).setdefault(arm_of(row["trial"]), []).append(row["value"])
        arms = list(dict.fromkeys(arm for of_arm in values.values() for arm in of_arm))
        rows = [
            [
                f"`{list(METRICS)[metric]}`",
                f"{set_name} op {op}" if op else set_name,
                *(f"{fmean(of_arm[arm]):.3f}".replace("-", verdict.MINUS) if arm in of_arm else "" for arm in arms),
            ]
            for (metric, set_name, op), of_arm in sorted(values.items())
        ]
        if rows:
            note = "Means over trials; intervals are in `results.csv`. Names as in `peft_study/records.py`."
            elements += [Heading(f"All measures of {skill}"), Text(note), Table(("metric", "set", *arms), rows)]
    return elements


def _departures(record: SweepRecord) -> list[Element]:
    """Return where solutions first leave the way, as shares of all."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for trial in record.trials:
        for set_name, kinds in trial.result.get("departures", {}).items():
            of_arm = counts.setdefault(set_name, {}).setdefault(trial.arm, {})
            for kind, count in kinds.items():
                of_arm[kind] = of_arm.get(kind, 0) + count
    elements: list[Element] = []
    for set_name, arms in counts.items():
        kinds = sorted({kind for of_arm in arms.values() for kind in of_arm})
        rows = [[kind, *(_share(of_arm, kind) for of_arm in arms.values())] for kind in kinds]
        rows.append(["solutions", *(_whole(sum(of_arm.values())) for of_arm in arms.values())])
        heading = Heading(f"Where solutions first leave the way: {set_name.replace('_', ' op ')}")
        note = "Shares of an arm's solutions, by the first step that is wrong or unnecessary; `right`: solved."
        elements += [heading, Text(note), Table(("verdict", *arms), rows)]
    return elements


def _share(counts: dict[str, int], kind: str) -> str:
    total = sum(counts.values())
    return f"{100 * counts.get(kind, 0) / total:.0f} %" if total else ""


def _beside_the_paper(lines: Sequence[ArmSummary]) -> list[Element]:
    trained = [line for line in lines if line.role in (Role.ADAPTER, Role.FULL) and line.skill == "correction"]
    if not trained:
        return []
    header = (
        "row of the paper",
        "med op 15",
        "med op 23",
        "its gap closed",
        "here, out of distribution",
        "gap closed here",
    )
    note = (
        "Left the paper (arXiv 2408.16293, Figures 4b and 10) at the nearest of its retry rates, right this sweep. Its "
        "cells are the best of four runs, so biased up; its families are med and hard, its adapters on query and value "
        "with twice the rank on the embedding, and it has no control: its gap closed is taken on the mean of all "
        "cells, from `original` to `pretrain 2x`. Compare the order, not the numbers. For detection it reports "
        f"{published.DETECTION}; the set `pairs` is the one to compare with."
    )
    elements: list[Element] = [Heading("Beside the paper"), Text(note)]
    masks = sorted({bool(line.row["mask"]) for line in trained}, reverse=True)
    for mask in masks:
        rows = []
        for line in published.beside(lines, retry_rate=trained[0].row["retry_rate"], mask=mask):
            cells = ["", ""]
            if line.paper is not None:
                cells = [f"{share:.1f} %" for share in (line.paper.in_distribution, line.paper.out_of_distribution)]
            gap = "" if line.paper_gap is None else f"{line.paper_gap:.2f}".replace("-", verdict.MINUS)
            rows.append([line.text, *cells, gap, show(line.ours, 3), show(line.our_gap, 2)])
        if len(masks) > 1:
            elements.append(Text("Without loss on mistakes:" if mask else "With loss on mistakes:"))
        elements.append(Table(header, rows))
    return elements


def _provenance(record: SweepRecord) -> list[Element]:
    """Return commit, versions and machine; a value that differs between trials is shown with its count."""
    found: dict[str, dict[str, int]] = {}
    finished = [trial.result.get("provenance", {}) for trial in record.trials if trial.result]
    for provenance in finished:
        for key, value in _flat(provenance).items():
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


def _unfinished(record: SweepRecord) -> list[Element]:
    def describe(trial: TrialRecord) -> list[str]:
        return [trial.trial, trial.status.value, " ".join(trial.reason.split())]

    rows = [describe(trial) for trial in record.trials if trial.status is not Status.FINISHED]
    table = Table(("trial", "status", "reason"), rows) if rows else Text("None: every planned trial finished.")
    return [Heading("Trials without a result"), table]


def _commands(frame: pd.DataFrame) -> list[Element]:
    """Return one command for each trial."""
    first = {row["trial"]: row for row in reversed(to_rows(trial_rows(frame)))}
    lines = []
    for trial in dict.fromkeys(trial_rows(frame)["trial"]):
        lines += [f"# {trial}", shlex.join(["peft-study", "finetune", *overrides_of(first[trial])])]
    note = "One command makes one row again; what is not named is the default. The same is in the column `config`."
    return [Heading("Making a row again"), Text(note), Code(lines)] if lines else []


def _short(number: int | None) -> str:
    return "" if number is None else short_count(number)


def _whole(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
