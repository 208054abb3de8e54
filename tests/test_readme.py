"""The README's first look says what the published table of `quick` says."""

from pathlib import Path

import pytest

from analysis.summary import ArmSummary, name_of, summarize
from analysis.table import read_results
from analysis.verdict import show
from peft_study.study.tuned import RESULTS

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """Return the cells of the README's table by the name of the row."""
    lines = README.read_text().split("## A first look")[1].split("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in table}


@pytest.fixture(scope="module")
def lines() -> dict[tuple[str, str, int], ArmSummary]:
    """Return the lines of the published table by skill, name and rank."""
    summaries = summarize(read_results(RESULTS / "quick.csv"))
    return {(line.skill, name_of(line), int(line.row["rank"] or 0)): line for line in summaries}


TRAINED = {f"LoRA rank {rank}": ("LoRA all-linear", rank) for rank in (1, 4, 16)} | {
    "full fine-tuning": ("full fine-tuning", 0)
}
ENDS = {
    "error-free base: control / probe": ("control", "probe"),
    "base pretrained on mistakes, trained as long": ("retry pretraining + t", "free detector"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_rows_of_what_was_trained(
    rows: dict[str, list[str]], lines: dict[tuple[str, str, int], ArmSummary], name: str
) -> None:
    correction, detection = (lines[skill, *TRAINED[name]] for skill in ("correction", "detection"))
    solved, closed, auroc, _, found = rows[name]
    assert (solved, closed) == (show(correction.raw, 3), show(correction.gap, 2))
    assert (auroc, found) == (show(detection.raw, 3), show(detection.gap, 2))


@pytest.mark.parametrize("name", ENDS)
def test_rows_of_the_ends(rows: dict[str, list[str]], lines: dict[tuple[str, str, int], ArmSummary], name: str) -> None:
    correction, detection = ENDS[name]
    assert rows[name][0] == show(lines["correction", correction, 0].raw, 3)
    assert rows[name][2] == show(lines["detection", detection, 0].raw, 3)


def test_the_table_has_these_rows(rows: dict[str, list[str]]) -> None:
    assert set(rows) == {"", *TRAINED, *ENDS}
