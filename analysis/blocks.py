"""Parts of pages that are made from a published sweep, so that no number in them is written by hand.

A page has them between two comments, which stay, and each publication makes anew what stands between:

    <!-- lora_rank: curve -->
    <!-- end -->
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pandas as pd

from analysis import verdict
from analysis.comparisons import CONTRAST, Comparison, compare, full_name
from analysis.curve import curve_table, place_of, pooled_values
from analysis.figures import headline, targets
from analysis.page import Element, Table, Text, to_markdown
from analysis.partners import headline_key
from analysis.rows import SweepRecord, kept_record
from analysis.sections import (
    arm_means,
    comparison_note,
    comparison_table,
    departure_table,
    departures_of,
    number,
    paper_tables,
    percent,
)
from analysis.summary import ArmSummary, Row, caption, counts_of, on_curve, summarize
from analysis.table import read_results, to_rows, trial_rows, write_if_changed
from analysis.verdict import show
from peft_study.errors import DataError
from peft_study.study.reuse import read_trials, trials_path

PAGES = ("README.md", "docs/results.md")
"""Pages of the repository that have such parts."""
_MARKS = re.compile(r"(<!-- ([\w-]+): ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


class Published(NamedTuple):
    """A published sweep."""

    frame: pd.DataFrame
    record: SweepRecord
    """Its finished trials."""
    lines: list[ArmSummary]
    comparisons: list[Comparison]


def read_published(sweep: str, results: Path) -> Published:
    """Return what is published of `sweep` in the folder `results`."""
    table = results / f"{sweep}.csv"
    frame, source = read_results(table), trials_path(table)
    if not source.is_file():
        raise DataError(f"{source} is missing, without which {table} cannot be put into a page; publish {sweep} again")
    kept = read_trials(source.read_bytes(), source=source)
    trials = tuple(kept_record(name, trial) for name, trial in kept.items())
    lines = summarize(frame)
    return Published(frame, SweepRecord(sweep, "", False, {}, (), trials), lines, compare(lines, trials))


def refill(text: str, results: Path, *, sweep: str | None = None) -> str:
    """Return the page `text` with all its parts made anew, or those of `sweep` alone."""
    read: dict[str, Published] = {}

    def make(found: re.Match[str]) -> str:
        opening, name, part, old, end = found.groups()
        if sweep not in (None, name):
            return opening + old + end
        if part not in BLOCKS:
            near = difflib.get_close_matches(part, BLOCKS, n=1, cutoff=0)[0]
            raise DataError(f"there is no part {part!r} of a page; the nearest is {near!r}, all: {', '.join(BLOCKS)}")
        if name not in read:
            read[name] = read_published(name, results)
        return f"{opening}\n{to_markdown(BLOCKS[part](read[name]))}\n{end}"

    return _MARKS.sub(make, text)


def refill_pages(results: Path, *, sweep: str | None = None) -> list[Path]:
    """Make the parts of the pages beside the folder `results` anew, or those of `sweep`; return what was changed."""
    found = [path for path in (results.parent / name for name in PAGES) if path.is_file()]
    return [path for path in found if write_if_changed(path, refill(path.read_text(), results, sweep=sweep).encode())]


# ---- the parts


def _standing(sweep: Published) -> list[Element]:
    counts = counts_of(sweep.frame)
    pruned = counts.unfinished - counts.to_come
    finished = counts.planned - counts.failed - counts.unfinished
    parts = [f"{finished} are finished", f"{counts.failed} failed"]
    parts += [f"{pruned} were stopped on purpose"] * bool(pruned)
    parts += [f"{counts.to_come} are to come"] * bool(counts.to_come)
    progress = f"Of {counts.planned} trials {', '.join(parts)}."
    return [Text(f"{progress} {verdict.standing(counts, first_look=False)}")]


def _answer(sweep: Published) -> list[Element]:
    return [Text(text) for text in verdict.headline_sentences(sweep.lines, sweep.comparisons)]


def _curve(sweep: Published) -> list[Element]:
    return curve_table(sweep.lines, sweep.frame)


def _computed(sweep: Published) -> list[Element]:
    """Return in which precision and on what each arm was trained, since arms that differ in it differ in two things."""
    names = {line.arm: f"{line.skill}: {full_name(line)}" for line in reversed(sweep.lines)}
    arms: dict[tuple[str, str], list[str]] = {}
    for trial in sweep.record.trials:
        if precision := trial.result.get("precision"):
            origin = trial.result["provenance"]
            instructions = f", {origin['cpu_capability']}" if origin["device"].startswith("cpu") else ""
            arms.setdefault((precision, origin["device"] + instructions), []).append(names[trial.arm])
    rows = [[*kind, f"{len(found):,}", "; ".join(dict.fromkeys(found))] for kind, found in sorted(arms.items())]
    return [Table(("trained in", "on", "trials", "of arms"), rows)] if rows else []


def _sets(sweep: Published) -> list[Element]:
    """Return what the sets of detection hold: how many decision points, how many of them are wrong, on each base."""
    found: dict[str, dict[int, Row]] = {}
    covered: dict[int, float] = {}
    for row in to_rows(trial_rows(sweep.frame)):
        if row["metric"] == "detect_base_rate":
            found.setdefault(row["set"], {})[row["base_seed"]] = row
        elif row["metric"] == "own_mistakes_covered":
            covered[row["base_seed"]] = row["value"]
    if not found:
        return [Text("Nothing is measured yet.")]
    rows = [
        [f"`{name}`", str(base), f"{row['n']:,}", percent(row["value"])]
        for name, of_set in found.items()
        for base, row in sorted(of_set.items())
    ]
    elements: list[Element] = [Table(("set", "base pair", "decision points", "wrong"), rows)]
    if covered:
        shares = [f"{percent(share)} on base pair {base}" for base, share in sorted(covered.items())]
        what = "Share of the base's wrong solutions whose first mistake is at an `as`"
        elements.append(Text(f"{what}: {', '.join(shares)}."))
    return elements


def _topic(topic: str) -> Callable[[Published], list[Element]]:
    def part(sweep: Published) -> list[Element]:
        found = [each for each in sweep.comparisons if each.topic.partition(":")[0] == topic]
        if not found:
            return [Text("Nothing to compare yet.")]
        return [*(Text(text) for text in verdict.comparison_sentences(found)), comparison_table(found)]

    return part


def _note(sweep: Published) -> list[Element]:
    return [Text(comparison_note(sweep.comparisons))]


def _paper(sweep: Published) -> list[Element]:
    # Its heading is the page's.
    tables = paper_tables(sweep.lines)[1:]
    accuracies = arm_means(sweep.frame, "detection").get(("pairs", next((x.op for x in sweep.lines), None)), {})
    measured = pooled_values(sweep.frame)
    rows = [
        [
            full_name(line),
            show(measured.get((line.arm, "detect_auroc", "pairs", line.op)), 3),
            number(accuracies.get(line.arm, {}).get("detect_balanced_accuracy"), 3),
        ]
        for line in sweep.lines
        if line.skill == "detection" and line.arm in accuracies and on_curve(line, sweep.lines)
    ]
    if rows:
        note = (
            "Detection on `pairs`. The paper's figure is plain accuracy; the threshold here is chosen on injected "
            "mistakes, not on pairs, and pairs of a parameter that is known already are left out:"
        )
        tables += [Text(note), Table(("arm", "AUROC", "balanced accuracy"), rows)]
    return tables


def _errors(sweep: Published) -> list[Element]:
    """Return where solutions leave the way, and what is taken back, of references and the curves."""
    correcting = [line for line in sweep.lines if line.skill == "correction" and on_curve(line, sweep.lines)]
    shown = sorted(correcting, key=lambda line: (not line.row["mask"], place_of(line)))
    if not shown:
        return [Text("Nothing is measured yet.")]
    key = headline_key(shown[0])
    left = departures_of(sweep.record).get(f"{key.set}_{key.op}", {})
    names = {line.arm: full_name(line) for line in shown}
    taken = arm_means(sweep.frame, "correction").get((key.set, key.op), {})
    rows = [
        [name, *(number(taken[arm].get(metric), 2) for metric in _TAKEN_BACK)]
        for arm, name in names.items()
        if arm in taken
    ]
    return [
        departure_table({name: left[arm] for arm, name in names.items() if arm in left}),
        Table(("arm", *_TAKEN_BACK.values()), rows),
    ]


_TAKEN_BACK = {
    "retries_right": "retractions in a right solution",
    "retries_wrong": "in a wrong one",
    "won_by_retraction": "won with a retraction",
}
"""Measure to the head of its column."""


def _below(figure: ModuleType) -> Callable[[Published], list[Element]]:
    def part(sweep: Published) -> list[Element]:
        counts = counts_of(sweep.frame)
        # Of what is not run to its end the caption says how much is missing.
        first = bool(verdict.missing_for_claim(counts)) and not counts.to_come
        return [Text(f"*{figure.describe(figure.compute(sweep.frame))} {caption(counts, first_look=first)}*")]

    return part


BLOCKS: dict[str, Callable[[Published], list[Element]]] = {
    "standing": _standing,
    "answer": _answer,
    "curve": _curve,
    "below the headline": _below(headline),
    "below the targets": _below(targets),
    "computed": _computed,
    "sets": _sets,
    "comparisons": _note,
    "reference": _topic("beyond the reference below"),
    "clean": _topic("beyond as many clean tokens"),
    "base": _topic("beyond the base as it is"),
    "known": _topic("in distribution, beside the base as it is"),
    "full": _topic("short of full fine-tuning"),
    "rank": _topic("rank"),
    "highest": _topic("short of the highest rank"),
    "matrices": _topic("matrices, at the same rank"),
    "size": _topic("matrices, with as many parameters"),
    "rows": _topic("rows of the new words"),
    "mask": _topic("loss on mistakes too"),
    "noticing": _topic("noticing"),
    "contrast": _topic(CONTRAST),
    "paper": _paper,
    "errors": _errors,
}
"""Name of a part to what makes it."""
