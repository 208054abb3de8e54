"""The paper's rows beside ours: Physics of Language Models, Part 2.2 (arXiv 2408.16293), Figures 4b and 10.

Its families are med and hard, not nano, its adapters are on query and value with twice the rank on the input
embedding, and each of its cells is the best of four runs, so it is biased up: look at the order, not at the numbers.
"""

import csv
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from analysis.partners import alike, first_of
from analysis.summary import ArmSummary, Role, on_curve

IN_DISTRIBUTION, OUT_OF_DISTRIBUTION = ("med_pq", "15"), ("med_pq", "23")
"""Family and operation count of the cells that are shown: the largest of training, and the largest of all."""
DETECTION = "about 99 % accuracy of its probe, a rank-8 update of the input embedding of the frozen base, on all pairs"
"""Section 3 of the paper; it prints no table of detection by rank."""

_OUR_ROLES = {
    "original": Role.BASE,
    "cont. pretrain": Role.FULL,
    "pretrain": Role.PRETRAINED,
    "pretrain 2x": Role.UPPER,
}
"""Row of the paper and what it is here: continued pretraining is full fine-tuning, twice the tokens on retry data is
the retry base trained on."""


class PublishedRow(NamedTuple):
    """A row of the paper's table, in per cent."""

    name: str
    """As the paper has it, without `mask`."""
    rank: int
    """0 for rows that are no adapters."""
    mask: bool
    retry_rate: float
    """0 for the error-free base."""
    in_distribution: float
    out_of_distribution: float
    mean: float
    """Over all thirty cells of the row."""


class BesideRow(NamedTuple):
    """The paper's row and ours; None where one side has none."""

    text: str
    paper: PublishedRow | None
    paper_gap: float | None
    """Gap closed by the mean over cells, between `original` and `pretrain 2x`."""
    ours: ArmSummary | None
    """The arm of the curve over ranks."""
    on_its_matrices: ArmSummary | None
    """That on the paper's matrices, query and value, where the curve is on others."""


def published_rows() -> list[PublishedRow]:
    """Return all rows that come with the package."""
    source = files("analysis").joinpath("data", "part22_tables.csv")
    cells: dict[tuple[str, float], dict[tuple[str, str], float]] = {}
    for cell in csv.DictReader(source.read_text(encoding="utf-8").splitlines()):
        row = cells.setdefault((cell["row"], float(cell["retry_rate"] or 0)), {})
        row[cell["family"], cell["op"]] = float(cell["percent_right"])
    return [_published(name, rate, values) for (name, rate), values in cells.items()]


def _published(name: str, retry_rate: float, values: dict[tuple[str, str], float]) -> PublishedRow:
    bare = name.removesuffix(" mask")
    # An adapter is called e.g. `lora qv4e8`: rank 4 on query and value, rank 8 on the embedding.
    rank = int(bare.removeprefix("lora qv").partition("e")[0]) if bare.startswith("lora") else 0
    shown = values[IN_DISTRIBUTION], values[OUT_OF_DISTRIBUTION], values["all", "mean"]
    return PublishedRow(bare, rank, bare != name, retry_rate, *shown)


def beside(lines: Sequence[ArmSummary], *, retry_rate: float, mask: bool) -> list[BesideRow]:
    """Return the paper's rows at the nearest of its retry rates beside the correction arms of a summary."""
    every = published_rows()
    nearest = min({row.retry_rate for row in every if row.retry_rate}, key=lambda rate: abs(rate - retry_rate))
    paper = [row for row in every if row.name == "original" or (row.retry_rate, row.mask) == (nearest, mask)]
    scale = {row.name: row.mean for row in paper}
    # What has read no mistakes has had none to mask.
    ours = [
        line
        for line in lines
        if line.skill == "correction" and (line.role is Role.BASE or bool(line.row["mask"]) == mask)
    ]
    rows = []
    for row in [row for row in paper if not row.rank]:
        line = next((line for line in ours if line.role is _OUR_ROLES[row.name]), None)
        rows.append(BesideRow(row.name, row, _gap(row, scale), line, None))
    ranks = {row.rank: row for row in paper if row.rank}
    curve = {line.row["rank"]: line for line in ours if line.role is Role.ADAPTER and on_curve(line, ours)}
    same = {rank: first_of(alike(ours, line, targets="qv")) for rank, line in curve.items()}
    for rank in sorted({*ranks, *curve}):
        row = ranks.get(rank)
        rows.insert(-3, BesideRow(f"LoRA rank {rank}", row, _gap(row, scale), curve.get(rank), same.get(rank)))
    return rows


def _gap(row: PublishedRow | None, scale: dict[str, float]) -> float | None:
    """Return the gap that a row of the paper closes; `scale` has the means of all its rows by name."""
    if row is None or row.name in ("original", "pretrain 2x"):
        return None
    return (row.mean - scale["original"]) / (scale["pretrain 2x"] - scale["original"])
