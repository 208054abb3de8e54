"""The table of both skills over ranks, which the README and the page of results show."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analysis.page import Element, Table, Text
from analysis.summary import NOT_CONVERGED, ArmSummary, Interval, Role, on_curve, other_settings
from analysis.table import arm_rows, to_rows
from analysis.verdict import show, show_gap
from peft_study.igsm.families import FAMILIES


class Place(NamedTuple):
    """Where an arm stands in the table of both skills; arms that are compared stand together."""

    order: int
    rank: int
    role: Role


_ROW_NAMES = {
    Role.BASE: "error-free base as it is",
    Role.CONTROL: "lower reference: control / probe",
    Role.ADAPTER: "LoRA rank",
    Role.FULL: "full fine-tuning",
    Role.PRETRAINED: "retry base as it is",
    Role.UPPER: "upper reference: retry base, trained as long",
}


_MEANINGS = {
    NOT_CONVERGED: "not converged: in a trial of it the last third of the tokens brings more than a tenth of the whole "
    "fall of the validation loss"
}
"""Alarms that the table over ranks says in more words than others do."""


def place_of(line: ArmSummary) -> Place:
    """Return where an arm stands in the table; lower references of both skills stand together."""
    role = Role.CONTROL if line.role is Role.PROBE else line.role
    return Place(list(_ROW_NAMES).index(role), int(line.row["rank"] or 0) if role is Role.ADAPTER else 0, role)


def curve_table(lines: Sequence[ArmSummary], frame: pd.DataFrame) -> list[Element]:
    """Return both skills side by side: references, ranks, full fine-tuning; below, what must be known of a cell."""
    measured = pooled_values(frame)
    others = other_settings(lines)
    lines = [line for line in lines if on_curve(line, lines)]
    columns = {"": [line for line in lines if line.skill == "correction" and line.row["mask"]]}
    columns["unmasked"] = [line for line in lines if line.skill == "correction" and not line.row["mask"]]
    columns["detection"] = [line for line in lines if line.skill == "detection"]
    placed = {column: {place_of(line): line for line in of} for column, of in columns.items()}
    op = next((line.op for line in lines if line.op), None)
    known = next((FAMILIES[line.row["family"]].op_max for line in lines if line.op), None)
    alarms: dict[str, int] = {}

    def value_of(line: ArmSummary | None) -> str:
        """Return what an arm reached, and the numbers of its alarms, which are spelled out below."""
        if line is None or line.raw is None:
            return ""
        numbers = sorted(alarms.setdefault(alarm, len(alarms) + 1) for alarm in line.alarms)
        return " ".join((show(line.raw, 3), *(f"({number})" for number in numbers)))

    def beside(line: ArmSummary | None, name: str, at: int | None) -> str:
        """Return the same metric of an arm on another set."""
        return show(measured.get((line.arm, line.metric, name, at)), 3) if line else ""

    rows = []
    for place in sorted({place for of in placed.values() for place in of}):
        solved, unmasked, detected = (of.get(place) for of in placed.values())
        cells = [_ROW_NAMES[place.role] + (f" {place.rank}" if place.rank else "")]
        cells += [value_of(solved), show_gap(solved) if solved else ""]
        cells += [beside(solved, "id", known)] * bool(known)
        cells += [value_of(unmasked)] * bool(columns["unmasked"])
        cells += [value_of(detected), show_gap(detected) if detected else ""]
        rows.append([*cells, beside(detected, "own", op), beside(detected, "pairs", op)])
    at = f" at op {op}" if op else ""
    header = ["", f"correction: solved{at}", "gap closed"] + [f"at op {known}, as in training"] * bool(known)
    header += ["solved, loss on mistakes too"] * bool(columns["unmasked"])
    table = Table([*header, f"detection: AUROC{at}", "gap closed", "own mistakes", "pairs"], rows)
    said = [f"({number}) {_MEANINGS.get(alarm, alarm)}" for alarm, number in alarms.items()]
    notes = ["; ".join(said) + "."] if said else []
    return [table, *(Text(note) for note in (*notes, others) if note)]


def pooled_values(frame: pd.DataFrame) -> dict[tuple[str, str, str, int | None], Interval]:
    """Return what was pooled of each arm: by arm, metric, set and operation count."""
    return {
        (row["trial"], row["metric"], row["set"], row["op"]): Interval(row["value"], row["low"], row["high"])
        for row in to_rows(arm_rows(frame))
        if row["value"] is not None
    }
