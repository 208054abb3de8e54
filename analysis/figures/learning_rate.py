"""The learning rate figure: what each rate reached, for every cell that was tuned."""

import math
from collections.abc import Sequence
from statistics import fmean
from textwrap import fill
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from analysis.style import FAINT, INK, SKILL_COLOURS, error_bars, look, new_figure, short_count, strip_labels
from analysis.summary import SKILLS, Counts, Interval, Row, counts_of
from analysis.table import arm_rows, to_rows, trial_rows
from peft_study.records import Status
from peft_study.study.tuned import TUNING_METRIC, Candidate, Cell, best_of, variant_of

_COLUMNS = 5
"""Panels of a row, at most."""
_TITLE_LETTERS = 18
"""Letters of a title's line, at most: what is longer would run into the next panel's."""
_TOGETHER = 0.05
"""Distance in the metric within which two marks would be printed over each other."""


class Rate(NamedTuple):
    """A learning rate and what it reached."""

    lr: float
    interval: Interval
    loss: float | None


class Tuned(NamedTuple):
    """The rates of one cell, rising."""

    cell: Cell
    rates: tuple[Rate, ...]
    best: Rate
    on_edge: bool


class LearningRateInfo(NamedTuple):
    """What the figure shows."""

    tuned: tuple[Tuned, ...]
    counts: Counts


def compute(frame: pd.DataFrame) -> LearningRateInfo:
    """Return every tuned cell with its rates, and the one that the other sweeps use."""
    losses = _losses(frame)
    found: dict[Cell, dict[float, Rate]] = {}
    for row in to_rows(arm_rows(frame)):
        if not _decides(row):
            continue
        cell, lr = _cell_of(row), row["lr"]
        interval = Interval(row["value"], row["low"], row["high"])
        # The mean over operation counts stands after the single ones, and takes their place.
        found.setdefault(cell, {})[lr] = Rate(lr, interval, losses.get((cell, lr)))
    return LearningRateInfo(
        tuned=tuple(_tuned(cell, tuple(sorted(rates.values()))) for cell, rates in sorted(found.items())),
        counts=counts_of(frame),
    )


def describe(_info: LearningRateInfo) -> str:
    """Return what a reader must know of the marks in the figure."""
    return (
        "Every learning rate that was tried, on validation problems: the mean over operation counts and seeds. Ringed: "
        "the best, which the other sweeps use; `edge!` is an alarm, the best rate lies on the edge of its grid."
    )


def _decides(row: Row) -> bool:
    return row["lr"] is not None and row["value"] is not None and (row["set"], row["metric"]) == _metric_of(row)


def _metric_of(row: Row) -> tuple[str, str]:
    return TUNING_METRIC[row["skill"]]


def _cell_of(row: Row) -> Cell:
    variant = variant_of(
        skill=row["skill"], base=row["base"], retry_rate=row["retry_rate"], mask=row["mask"] is not False
    )
    kind = row["family"], row["skill"], row["method"], row["targets"], variant
    return Cell.of(*kind, tokens=int(row["tokens"] or 0), rank=row["rank"] or 0)


def _losses(frame: pd.DataFrame) -> dict[tuple[Cell, float], float]:
    """Return the mean loss of the trials of each cell and rate."""
    losses: dict[tuple[Cell, float], list[float]] = {}
    for row in to_rows(trial_rows(frame)):
        if row["metric"] == "loss" and row["status"] == Status.FINISHED and row["lr"] is not None:
            losses.setdefault((_cell_of(row), row["lr"]), []).append(row["value"])
    return {key: fmean(values) for key, values in losses.items()}


def _tuned(cell: Cell, rates: tuple[Rate, ...]) -> Tuned:
    tried = {rate.lr: Candidate(rate.interval.value, math.inf if rate.loss is None else rate.loss) for rate in rates}
    lr, on_edge = best_of(tried)
    return Tuned(cell, rates, next(rate for rate in rates if rate.lr == lr), on_edge)


def draw(info: LearningRateInfo) -> Figure:
    """Draw rows for each skill, a panel for each method, target set and variant, a curve for each rank."""
    panels: dict[tuple[str, ...], list[Tuned]] = {}
    cells = [tuned.cell for tuned in info.tuned]
    many_families, many_budgets = (len({cell[place] for cell in cells}) > 1 for place in (0, 5))
    for tuned in info.tuned:
        family, *kind, tokens, _ = tuned.cell
        more = [str(family)] * many_families + [f"{short_count(int(tokens))} tokens"] * many_budgets
        panels.setdefault((*map(str, kind), *more), []).append(tuned)
    rows: list[list[tuple[str, ...]]] = []
    for skill in SKILLS:
        of_skill = [key for key in panels if key[0] == skill]
        rows += [of_skill[at : at + _COLUMNS] for at in range(0, len(of_skill), _COLUMNS)]
    columns = max(map(len, rows), default=1)
    with look():
        figure = new_figure(10.0, 0.4 + 2.5 * max(1, len(rows)))
        grid = figure.add_gridspec(max(1, len(rows)), columns)
        drawn: list[tuple[Axes, list[Tuned]]] = []
        firsts: dict[str, Axes] = {}
        for row, keys in enumerate(rows):
            for column, key in enumerate(keys):
                skill, *kind = key
                axes = figure.add_subplot(grid[row, column], sharey=firsts.get(skill))
                # The skill is said once: many panels leave no room for more.
                title = "" if skill in firsts else f"{skill.capitalize()}: "
                firsts.setdefault(skill, axes)
                _draw_panel(axes, panels[key])
                axes.set_title(fill(title + " ".join(filter(None, kind)), _TITLE_LETTERS), color=SKILL_COLOURS[skill])
                axes.set_xlabel("peak learning rate")
                axes.set_ylabel(_axis_text(skill) if column == 0 else "")
                drawn.append((axes, panels[key]))
        # The layout must settle before labels can be kept apart in points.
        figure.canvas.draw()
        for axes, curves in drawn:
            ends = [tuned.rates[-1].interval.value for tuned in curves]
            texts = [f"r{tuned.cell.rank}" if tuned.cell.rank else "" for tuned in curves]
            strip_labels(axes, 1.0, ends, texts, _shades(curves))
    return figure


def _draw_panel(axes: Axes, curves: Sequence[Tuned]) -> None:
    axes.set_xscale("log")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.1, y=0.2)
    for tuned, colour in zip(curves, _shades(curves), strict=True):
        lrs = [rate.lr for rate in tuned.rates]
        values = [rate.interval.value for rate in tuned.rates]
        bars = error_bars([rate.interval for rate in tuned.rates])
        axes.errorbar(lrs, values, yerr=bars, color=colour, marker="o", markersize=4, elinewidth=1)
        best = [tuned.best.lr], [tuned.best.interval.value]
        axes.plot(*best, marker="o", markersize=10, markerfacecolor="none", markeredgecolor=INK, zorder=4)
    said: list[tuple[float, float]] = []
    for tuned in sorted(curves, key=lambda tuned: -tuned.best.interval.value):
        lr, value = tuned.best.lr, tuned.best.interval.value
        # Two bests that lie together share the word.
        if tuned.on_edge and all(lr != other or abs(value - at) > _TOGETHER for other, at in said):
            said.append((lr, value))
            place = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center"}
            axes.annotate("edge!", (lr, value), **place, color=INK, fontsize=8.5, fontweight="bold")
    tried = sorted({rate.lr for tuned in curves for rate in tuned.rates})
    axes.xaxis.set_minor_locator(NullLocator())
    # A narrow panel has room for four; of more every other one is named.
    every = 1 if len(tried) <= 4 else 2
    axes.set_xticks(tried, ["" if place % every else _short(lr) for place, lr in enumerate(tried)], fontsize=8)


def _short(lr: float) -> str:
    """Return a rate in few letters.

    >>> _short(0.0003), _short(0.01)
    ('3e-4', '1e-2')
    """
    digits, exponent = f"{lr:.3e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def _axis_text(skill: str) -> str:
    return "share solved, ood" if skill == "correction" else "AUROC, injected"


def _shades(curves: Sequence[Tuned]) -> list[str]:
    """Return a colour for each curve, the paler the lower the rank."""
    shades = []
    for place, tuned in enumerate(curves):
        red, green, blue = to_rgb(SKILL_COLOURS[tuned.cell.skill])
        pale = 0.55 * (1 - (place + 1) / len(curves))
        shades.append(to_hex((red + (1 - red) * pale, green + (1 - green) * pale, blue + (1 - blue) * pale)))
    return shades
