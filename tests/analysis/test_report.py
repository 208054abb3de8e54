"""The report, the terminal table, the published table."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from analysis.comparisons import compare
from analysis.page import Code, Heading, Table, Text, to_html, to_markdown
from analysis.published import beside, published_rows
from analysis.report import TERMINAL_WIDTH, publish, terminal_table, write_report
from analysis.rows import SweepRecord, rows_of
from analysis.sections import provenance_table
from analysis.summary import Counts, Role, caption, counts_of, missing_for_claim, summarize
from analysis.table import read_results, to_frame
from analysis.verdict import headline_sentences, show, standing
from peft_study.errors import DataError
from peft_study.records import Status


def shown(frame: pd.DataFrame) -> str:
    console = Console(width=TERMINAL_WIDTH, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(terminal_table(frame))
    return console.export_text()


def test_terminal_table_has_a_line_an_arm_and_spells_out_alarms(frame: pd.DataFrame) -> None:
    text = shown(frame)
    line = next(line for line in summarize(frame) if line.arm == "correction-r4")
    assert re.search(rf"correction +LoRA all-linear +4 +accuracy +{re.escape(show(line.raw, 3))}", text)
    assert re.search(r"detection +free detector +free_auroc", text)
    assert "(1) 1 of 2 trials failed" in text
    assert "First look." in text
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH


def test_terminal_table_shows_rates_where_arms_differ_in_nothing_else(made: SimpleNamespace) -> None:
    first, second = made.trial("full", 0), replace(made.trial("full", 0), arm="other", trial="other-s0-b0-0123456789")
    second.config["training"]["lr"] = 0.01
    text = shown(to_frame(rows_of(made.sweep([first, second]))))
    assert "0.003" in text
    assert "0.01" in text


def test_roles_come_from_method_base_and_data(frame: pd.DataFrame) -> None:
    roles = {line.arm: line.role for line in summarize(frame)}
    assert roles["base"] is Role.BASE
    assert roles["control"] is Role.CONTROL
    assert roles["pretrained"] is Role.PRETRAINED
    assert roles["upper"] is Role.UPPER
    assert roles["detection-full"] is roles["full"] is Role.FULL


def test_a_curve_that_still_rises_is_an_alarm(made: SimpleNamespace) -> None:
    record = made.trial("full", 0)
    record.result["converged"] = False
    (line,) = summarize(to_frame(rows_of(made.sweep([record]))))
    assert line.alarms == ("not converged",)


def test_what_a_claim_lacks_is_named() -> None:
    counts = Counts((2, 2), (1, 1), 512, 16, 0, 0, 0, ("nano",), ())
    assert missing_for_claim(counts) == [
        "3 seeds on each base pair (an arm has 2)",
        "2 base pairs (an arm has 1)",
        "4,096 problems a cell (an arm has 512)",
    ]
    enough = counts._replace(seeds=(3, 3), bases=(2, 2), problems=4096)
    assert missing_for_claim(enough) == []
    assert missing_for_claim(enough._replace(to_come=3)) == ["3 of the 16 trials planned"]
    assert "First look" in standing(counts, first_look=True)
    assert "No verdict" in standing(counts, first_look=False)
    assert "these runs have them" in standing(enough, first_look=False)


def test_a_base_that_nothing_was_done_to_needs_one_seed(made: SimpleNamespace) -> None:
    names = ("base", "pretrained", "full", "detection-r4")
    trials = [made.trial(name, seed) for name in names for seed in range(1 if name in names[:2] else 3)]
    assert counts_of(to_frame(rows_of(made.sweep(trials)))).seeds == (3, 3)
    assert counts_of(to_frame(rows_of(made.sweep(trials[:2])))).seeds == (1, 1)


def test_a_claim_needs_its_seeds_on_every_base_that_is_planned(made: SimpleNamespace) -> None:
    trials = [made.trial("full", seed) for seed in range(3)]
    failed = made.trial("full", 0, status=Status.FAILED)
    config = failed.config | {"base": failed.config["base"] | {"seed": 1}}
    elsewhere = replace(failed, config=config, trial=failed.trial.replace("-b0-", "-b1-"))
    counts = counts_of(to_frame(rows_of(made.sweep([*trials, elsewhere]))))
    assert (counts.seeds, counts.bases, counts.to_come) == ((0, 3), (1, 1), 0)
    assert missing_for_claim(counts)[:2] == ["3 seeds on each base pair (an arm has 0)", "2 base pairs (an arm has 1)"]


def test_provenance_counts_what_differs_between_trials(made: SimpleNamespace) -> None:
    (_, table) = provenance_table(made.sweep([made.trial(name, 0) for name in ("full", "control", "base")]))
    assert isinstance(table, Table)
    rows = {str(what): value for what, value in table.rows}
    assert rows["training.precision"] == "bf16 (1 trials); fp32 (1 trials)"
    assert rows["commit"] == "0123abc"


def test_caption_says_what_it_rests_on(frame: pd.DataFrame) -> None:
    text = caption(counts_of(frame), first_look=True)
    for part in (
        "First look.",
        "1 to 2 seeds, 1 base pair, 128 problems a cell.",
        "95 % percentile bootstrap",
        "1 of 24 trials failed.",
        "solution alone (nano)",
        "Reference upper rests on 1 of 2 trials.",
    ):
        assert part in text
    assert "First look" not in caption(counts_of(frame), first_look=False)


def test_every_number_of_the_verdict_is_in_the_table(frame: pd.DataFrame, sweep: SweepRecord) -> None:
    lines = summarize(frame)
    text = " ".join(headline_sentences(lines, compare(lines, sweep.trials)))
    known = {show(line.raw, 3) for line in lines} | {show(line.gap, 2) for line in lines}
    intervals = re.findall(r"\S+ \[[^]]*\]", text)
    assert len(intervals) > 10
    assert set(intervals) <= known
    names = (rf"LoRA all-linear rank {rank} \(\+[\d.]+\)" for rank in (1, 4))
    assert re.search(f"detection closes more of its gap than correction at {', '.join(names)}", text)
    one = next(line for line in lines if line.arm == "detection-full")
    assert f"full fine-tuning {show(one.raw, 3)} (1 of 2 trials)" in text


def test_report_is_whole_and_the_same_each_time(runs: Path, sweep: SweepRecord) -> None:
    page = write_report(sweep.name, runs)
    assert page == runs / sweep.name / "report.html"
    written = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in page.parent.iterdir()}
    assert set(written) == {"report.html", "report.md", "headline.png", "headline.svg", "results.csv"}
    write_report(sweep.name, runs)
    assert written == {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in page.parent.iterdir()}
    html, markdown = page.read_text(), (page.parent / "report.md").read_text()
    assert 'src="data:image/svg+xml;base64,' in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "![headline figure of sweep made-up](headline.png)" in markdown
    for text in (
        sweep.question,
        "First look, no verdict.",
        "RuntimeError: loss is nan",
        "not computable",
        "cont. pretrain",
        "2.13.0",
        "peft-study finetune evaluation.n=128 method.name=lora method.rank=16 seed=1 skill.name=detection",
        "(commit 0123abc, bf16)",
    ):
        assert text in html
        assert text in markdown


def test_publish_copies_table_report_and_figures(runs: Path, sweep: SweepRecord, tmp_path: Path) -> None:
    # Also of a sweep that was stopped before it made its table.
    (runs / sweep.name / "results.csv").unlink(missing_ok=True)
    target = publish(sweep.name, runs, tmp_path)
    assert target == tmp_path / "made-up.csv"
    assert target.read_bytes() == (runs / sweep.name / "results.csv").read_bytes()
    read_results(target)
    figure = tmp_path / "made-up-headline.png"
    assert figure.read_bytes() == (runs / sweep.name / "headline.png").read_bytes()
    assert f"]({figure.name})" in (tmp_path / "made-up.md").read_text()
    with pytest.raises(DataError, match="holds no sweep called 'slow'"):
        publish("slow", runs, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "made-up-headline.png",
        "made-up.csv",
        "made-up.md",
        "made-up.npz",
    ]


def test_published_rows_are_the_papers() -> None:
    rows = {(row.name, row.mask, row.retry_rate): row for row in published_rows()}
    assert rows["original", False, 0].out_of_distribution == 77.7
    assert rows["original", False, 0].mean == 91.8
    assert rows["lora qv256e512", True, 0.5].mean == 94.0
    assert {row.rank for row in rows.values()} == {0, 4, 8, 16, 32, 64, 128, 256}
    assert len(rows) == 1 + 4 * 20


def test_the_paper_stands_beside_the_same_rank(frame: pd.DataFrame) -> None:
    lines = summarize(frame)
    rows = {row.text: row for row in beside(lines, retry_rate=0.2, mask=True)}
    assert list(rows)[:3] == ["original", "LoRA rank 1", "LoRA rank 4"]
    assert list(rows)[-3:] == ["cont. pretrain", "pretrain", "pretrain 2x"]
    four = rows["LoRA rank 4"]
    assert four.paper is not None
    assert (four.paper.rank, four.paper.mask, four.paper.retry_rate) == (4, True, 0.2)
    assert four.ours == next(line for line in lines if line.arm == "correction-r4")
    assert four.on_its_matrices is None
    assert rows["LoRA rank 1"].paper is None
    assert rows["LoRA rank 256"].ours is None
    original, best = rows["original"].paper, rows["pretrain 2x"].paper
    assert original is not None
    assert best is not None
    assert four.paper_gap == pytest.approx((four.paper.mean - original.mean) / (best.mean - original.mean))


class Balance(HTMLParser):
    """Counts open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_escapes_and_closes_what_it_opens() -> None:
    elements = [
        Heading("a < b", 1),
        Text("**bold** and `x < y`"),
        Table(("name", "n"), [("a|b", "1"), ("c", "\N{MINUS SIGN}0.53 [0.10, 2.00]")]),
        Code(["echo '<hr>'"]),
    ]
    html = to_html("t <>", elements)
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert "<hr>" not in html
    assert '<td class="number">1</td>' in html
    assert '<td class="number">a' not in html
    assert "| a\\|b | 1 |" in to_markdown(elements)
