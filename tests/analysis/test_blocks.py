"""Parts of pages that come from a published sweep, and the pages of the repository."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from analysis.blocks import BLOCKS, PAGES, read_published, refill
from analysis.report import publish
from analysis.rows import SweepRecord
from analysis.summary import ArmSummary, Interval
from analysis.table import arm_rows, to_rows
from analysis.verdict import show
from peft_study.cli import app
from peft_study.errors import DataError
from peft_study.igsm.families import NANO
from peft_study.study.tuned import RESULTS

ROOT = RESULTS.parent
SWEEP = "made-up"


@pytest.fixture(scope="module")
def results(runs: Path, sweep: SweepRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of results in which the made-up sweep is published, with a page beside it."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "README.md").write_text(page("curve"))
    publish(sweep.name, runs, folder / "results")
    return folder / "results"


def page(*parts: str, sweep: str = SWEEP, old: str = "what stood here") -> str:
    return "".join(f"Before {part}.\n<!-- {sweep}: {part} -->\n{old}\n<!-- end -->\nAfter.\n" for part in parts)


def table_of(text: str) -> list[list[str]]:
    """Return the rows of the tables in a page, without their rules."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip(" |") for cell in row] for row in rows if not row[0].strip().startswith("---")]


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_the_repository_say_what_is_published(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- end -->" in text
    assert refill(text, RESULTS) == text, f"{name} is out of date; `peft-study pages` makes its parts anew"


def test_publishing_brings_a_page_up_to_date(results: Path) -> None:
    text = (results.parent / "README.md").read_text()
    assert text.startswith("Before curve.\n<!-- made-up: curve -->\n\n|  | correction: solved at op 6 |")
    assert text.endswith(" |\n\n(1) 1 of 2 trials failed.\n\n<!-- end -->\nAfter.\n")
    assert "what stood here" not in text
    assert refill(text, results) == text


def test_pages_are_brought_up_to_date_by_themselves(results: Path) -> None:
    page_there = results.parent / "README.md"
    text = page_there.read_text()
    page_there.write_text(page("curve"))
    assert CliRunner().invoke(app, ["pages", "--results", str(results)]).stdout == f"{page_there}\n"
    assert page_there.read_text() == text
    assert CliRunner().invoke(app, ["pages", "--results", str(results)]).stdout == ""


def test_arms_are_listed_by_what_they_were_trained_in(results: Path) -> None:
    head, *rows = table_of(refill(page("computed"), results))
    assert head == ["trained in", "on", "trials", "of arms"]
    assert [row[:3] for row in rows] == [
        ["bf16", "cpu (x86_64), AVX512", "2"],
        ["fp32", "cpu (x86_64), AVX512", "17"],
    ]
    assert rows[0][3] == "correction: full fine-tuning"
    named = rows[1][3].split("; ")
    assert {"correction: control", "correction: LoRA all-linear rank 4", "detection: probe"} <= set(named)
    assert len(named) == len(set(named))
    assert not [name for name in named if "as it is" in name or name == "correction: retry pretraining"]


def test_the_curve_has_both_skills_in_a_row(results: Path) -> None:
    rows = {row[0]: row[1:] for row in table_of(refill(page("curve"), results))}
    assert list(rows) == [
        "",
        "error-free base as it is",
        "lower reference: control / probe",
        *(f"LoRA rank {rank}" for rank in (1, 4, 16)),
        "full fine-tuning",
        "retry base as it is",
        "upper reference: retry base, trained as long",
    ]
    found = read_published(SWEEP, results)
    lines: dict[str, ArmSummary] = {line.arm: line for line in found.lines}
    pooled = {
        (row["trial"], row["set"]): Interval(row["value"], row["low"], row["high"])
        for row in to_rows(arm_rows(found.frame))
        if row["metric"] != "gap_closed" and row["op"] in (NANO.op_max, NANO.headline_op)
    }
    correction, detection = lines["correction-r4"], lines["detection-r4"]
    assert rows["LoRA rank 4"] == [
        show(correction.raw, 3),
        show(correction.gap, 2),
        show(pooled["correction-r4", "id"], 3),
        show(detection.raw, 3),
        show(detection.gap, 2),
        "",
        show(pooled["detection-r4", "pairs"], 3),
    ]
    assert rows["lower reference: control / probe"][0] == show(lines["control"].raw, 3)
    assert rows["lower reference: control / probe"][3] == show(lines["probe"].raw, 3)
    assert rows["full fine-tuning"][3] == f"{show(lines['detection-full'].raw, 3)} (1)"
    assert "\n(1) 1 of 2 trials failed.\n" in refill(page("curve"), results)


def test_a_curve_with_loss_on_mistakes_has_a_column_of_its_own(
    make_results: Callable[[list[str]], Path], made: SimpleNamespace
) -> None:
    folder = make_results(["correction-r1", "correction-r4", "detection-r4"])
    rows = {row[0]: row[1:] for row in table_of(refill(page("curve"), folder))}
    assert rows[""][3] == "solved, loss on mistakes too"
    assert [bool(cell) for cell in rows["LoRA rank 1"][:5]] == [False, False, False, True, False]
    assert [bool(cell) for cell in rows["LoRA rank 4"][:5]] == [True, False, True, False, True]


@pytest.fixture
def make_results(made: SimpleNamespace, tmp_path: Path) -> Callable[[list[str]], Path]:
    """Return a function that publishes made-up trials, that of rank 1 with loss on mistakes."""

    def make(arms: list[str]) -> Path:
        trials = [made.trial(arm, 0) for arm in arms]
        trials[0].config["skill"]["mask"] = False
        made.store(tmp_path / "runs", made.sweep(trials))
        publish(SWEEP, tmp_path / "runs", tmp_path / "results")
        return tmp_path / "results"

    return make


def test_errors_are_shares_of_all_solutions(results: Path) -> None:
    rows = {row[0]: row[1:] for row in table_of(refill(page("errors"), results))[:9]}
    # Two seeds of 40 + seed and 12 each.
    assert rows["arm"][:2] == ["lookup", "not computable"]
    assert rows["LoRA all-linear rank 4"] == ["23 %", "77 %", "105"]
    assert list(rows)[:3] == ["arm", "base as it is", "control"]


def test_sets_of_detection_are_described_by_base(made: SimpleNamespace, tmp_path: Path) -> None:
    trial = made.trial("detection-r4", 0)
    common = {"split": "test", "op": NANO.headline_op, "low": 0.0, "high": 1.0}
    trial.result["measures"] += [
        {**common, "set": "own", "metric": "detect_base_rate", "value": 0.084, "n": 1_234},
        {**common, "set": "own", "metric": "own_mistakes_covered", "value": 0.71, "n": 100},
    ]
    made.store(tmp_path / "runs", made.sweep([trial]))
    publish(SWEEP, tmp_path / "runs", tmp_path / "results")
    text = refill(page("sets"), tmp_path / "results")
    assert table_of(text)[1:] == [["`own`", "0", "1,234", "8 %"]]
    assert "whose first mistake is at an `as`: 71 % on base pair 0." in text


def test_every_number_of_a_comparison_sentence_is_in_its_table(results: Path) -> None:
    text = refill(page("reference"), results)
    sentences, table = text.split("| first |")
    said = [found.strip("(+") for found in re.findall(r"\([+\N{MINUS SIGN}][\d.]+", sentences)]
    # Four trained arms of each skill, those that detect on two sets.
    assert len(said) == 4 + 2 * 4
    assert all(f"| {difference} [" in table for difference in said)
    assert re.search(r"full fine-tuning \(\+[\d.]+; 1 of 2 trials of the first\)", sentences)
    assert re.search(r"higher: .*full fine-tuning", sentences)


@pytest.mark.parametrize("part", BLOCKS)
def test_all_parts_can_be_made(results: Path, part: str) -> None:
    text = refill(page(part), results)
    assert "what stood here" not in text
    assert refill(text, results) == text


def test_parts_of_other_sweeps_stay(results: Path) -> None:
    text = page("curve", sweep="other", old="theirs") + page("standing", old="ours")
    found = refill(text, results, sweep=SWEEP)
    assert found.startswith(page("curve", sweep="other", old="theirs"))
    assert "Of 24 trials 23 are finished, 1 failed." in found
    assert "ours" not in found


def test_what_cannot_be_made_is_said(results: Path) -> None:
    with pytest.raises(DataError, match="there is no part 'curves' of a page; the nearest is 'curve', all: standing,"):
        refill(page("curves"), results)
    with pytest.raises(DataError, match="no such table"):
        refill(page("curve", sweep="other"), results)
    (results / "bare.csv").write_bytes((results / f"{SWEEP}.csv").read_bytes())
    with pytest.raises(DataError, match=r"bare.npz is missing, .* publish bare again"):
        refill(page("curve", sweep="bare"), results)
