"""The answer of a sweep for people: a table in the terminal, a page in HTML and Markdown, a published table."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text as TerminalText

from analysis import verdict
from analysis.blocks import refill_pages
from analysis.comparisons import Comparison, compare
from analysis.export import export_record, read_sweep, results_path
from analysis.figures import headline, learning_rate, targets
from analysis.page import Element, Heading, Picture, Text, to_html, to_markdown
from analysis.rows import SweepRecord, TrialRecord
from analysis.sections import (
    HEADER,
    arm_tables,
    cells_of,
    command_list,
    comparison_tables,
    departure_tables,
    measure_tables,
    paper_tables,
    provenance_table,
    unfinished_table,
)
from analysis.style import render
from analysis.summary import ArmSummary, caption, counts_of, is_synthetic, name_of, summarize
from analysis.table import read_results, write_if_changed
from peft_study.errors import DataError
from peft_study.records import Status
from peft_study.study.reuse import KeptSample, KeptTrial, as_bytes, read_trials, trials_path

FIGURES: dict[str, ModuleType] = {"headline": headline, "targets": targets, "learning_rate": learning_rate}
"""Name in a sweep file to the module that computes and draws it."""
_TEXTS = ("skill", "method", "metric", "alarms")
_LEAST_WIDTHS = {"skill": 10, "method": 11, "metric": 12, "value [95 %]": 14, "gap closed [95 %]": 14, "alarms": 6}
"""Columns that a narrow terminal breaks into lines, and how narrow they may get; no other column is broken."""
TERMINAL_WIDTH = 120
"""Columns that the terminal table takes where there is room."""


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
    header = [name for name in ("skill", *HEADER) if name != "with loss" and (name != "lr" or tuning)]
    for name in header:
        width = _LEAST_WIDTHS.get(name)
        table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=not width, min_width=width)
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        cells = dict(zip(HEADER, cells_of(line), strict=True)) | {"skill": line.skill}
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
    figures = _figures_of(record)
    elements: list[Element] = [Heading(f"Sweep {sweep}", 1), Text(record.question or "No question was written down.")]
    lines = summarize(frame)
    # Of a sweep of rates, arms that differ in nothing else are no comparison.
    found = [] if "learning_rate" in figures else compare(lines, record.trials)
    elements += _verdict(frame, record, lines, found)
    for name in figures:
        module = FIGURES[name]
        info = module.compute(frame)
        figure = module.draw(info)
        svg = render(figure, "svg")
        write_if_changed(folder / f"{name}.svg", svg)
        write_if_changed(folder / f"{name}.png", render(figure, "png"))
        below = f"{module.describe(info)} {caption(counts_of(frame), first_look=record.first_look)}"
        elements.append(Picture(name, svg, f"{name} figure of sweep {sweep}", below))
    elements += arm_tables(lines)
    if "headline" in figures:
        elements += comparison_tables(found)
    elements += measure_tables(frame) + departure_tables(record)
    elements += paper_tables(lines) if "headline" in figures and is_synthetic(counts_of(frame)) else []
    elements += provenance_table(record) + unfinished_table(record) + command_list(record, frame)
    write_if_changed(folder / "report.md", to_markdown(elements).encode())
    page = folder / "report.html"
    write_if_changed(page, to_html(f"{sweep}: {record.question}", elements).encode())
    return page


def publish(sweep: str, runs: Path, results_dir: Path) -> Path:
    """Copy the tidy table of `sweep` to the published results, its report, figures and trials beside it; return where.

    Of a sweep that was stopped, what there is: trials that are missing are rows that say so. Pages beside the folder
    of results whose parts are about this sweep are brought up to date.
    Raises DataError where the published table holds finished trials that this sweep plans and has not: they would be
    lost; and where the sweep was changed on the command line, and so is not the one of that name.
    """
    source, target = results_path(sweep, runs), results_dir / f"{sweep}.csv"
    record = read_sweep(sweep, runs)
    if record.overrides:
        raise DataError(
            f"sweep {sweep} was last run with {' '.join(record.overrides)}, so {runs / sweep} is not what its file "
            f"plans; run `make sweep SWEEP={sweep}`, or give what you ran a sweep file of its own"
        )
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
    refill_pages(results_dir, sweep=sweep)
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


def _figures_of(record: SweepRecord) -> tuple[str, ...]:
    if unknown := [name for name in record.figures if name not in FIGURES]:
        raise DataError(
            f"sweep {record.name} feeds a figure {unknown[0]!r}, but figures are {', '.join(FIGURES)}; "
            "mend `figures` in its sweep file and run the sweep again, which keeps its trials"
        )
    return record.figures


def _verdict(
    frame: pd.DataFrame, record: SweepRecord, lines: Sequence[ArmSummary], found: Sequence[Comparison]
) -> list[Element]:
    standing = verdict.standing(counts_of(frame), first_look=record.first_look)
    if "learning_rate" in record.figures:
        return [Text(text) for text in verdict.learning_rate_sentences(learning_rate.compute(frame))]
    return [Text(text) for text in (standing, *verdict.headline_sentences(lines, found))]
