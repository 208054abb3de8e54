"""The target sets figure: both skills against trainable parameters, a curve for each set of adapted matrices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from analysis.figures.headline import Point, Reference, points_of
from analysis.style import FAINT, INK, MUTED, SKILL_COLOURS, error_bars, look, new_figure, short_count, strip_labels
from analysis.summary import SKILLS, ArmSummary, Counts, Role, counts_of, name_of, on_curve, summarize

_MARKS = {
    "all-linear": (INK, "o"),
    "attention": ("#009e73", "^"),
    "mlp": ("#cc79a7", "D"),
    "qv": ("#e69f00", "s"),
}
"""Colours of Okabe and Ito, and marks that differ where colours do not."""
# The probe is so far below all adapters that they could not be told apart beside it.
_LEVELS = {"correction": (Role.CONTROL, Role.FULL), "detection": (Role.FULL,)}
# Ranks that make sets equally large leave sizes a few hundredths apart; marks of neighbours are drawn a tenth apart.
_SAME_SIZE = 1.03
_STEP = 1.1


class TargetCurve(NamedTuple):
    """The ranks of one target set."""

    targets: str
    points: tuple[Point, ...]


class TargetPanel(NamedTuple):
    """What one skill shows."""

    curves: tuple[TargetCurve, ...]
    references: tuple[Reference, ...]
    op: int | None


class TargetsInfo(NamedTuple):
    """What the figure shows."""

    panels: dict[str, TargetPanel]
    """Skill to its raw values."""
    counts: Counts


def compute(frame: pd.DataFrame) -> TargetsInfo:
    """Return the raw values of adapters that train the new words' rows, correction without loss on mistakes."""
    lines = summarize(frame)
    panels = {}
    for skill in SKILLS:
        mine = [line for line in lines if line.skill == skill and (skill == "detection" or line.row["mask"])]
        curves = tuple(
            TargetCurve(targets, points)
            for targets in _MARKS
            if (points := points_of([line for line in mine if _is_on(line, targets)], "raw"))
        )
        references = tuple(
            Reference(name_of(line), line.raw)
            for role in _LEVELS[skill]
            for line in mine
            if line.role is role and line.raw is not None and on_curve(line, lines)
        )
        if curves:
            panels[skill] = TargetPanel(curves, references, mine[0].op)
    return TargetsInfo(panels, counts_of(frame))


def _is_on(line: ArmSummary, targets: str) -> bool:
    return line.role is Role.ADAPTER and (line.row["targets"], line.row["embeddings"]) == (targets, "rows")


def describe(info: TargetsInfo) -> str:
    """Return what a reader must know of the marks in the figure."""
    mask = " without loss on mistakes" if "correction" in info.panels else ""
    return (
        f"Adapters on sets of matrices{mask}, each mark with its rank; what stands above another on a vertical line is "
        "better for the same number of trained parameters (marks of sets as large as one another stand side by side). "
        "Dashed, with their intervals: full fine-tuning, for correction the control too."
    )


def draw(info: TargetsInfo) -> Figure:
    """Draw a panel for each skill."""
    with look():
        figure = new_figure(10.0, 4.4)
        grid = figure.add_gridspec(1, len(info.panels) or 1)
        if not info.panels:
            figure.text(0.5, 0.5, "No adapter has finished yet.", ha="center", color=MUTED)
        drawn: list[tuple[Axes, TargetPanel]] = []
        for column, (skill, panel) in enumerate(info.panels.items()):
            axes = figure.add_subplot(grid[0, column])
            _draw_panel(axes, panel)
            of = f" at op {panel.op}" if panel.op is not None else ""
            metric = f"share solved{of}" if skill == "correction" else f"AUROC{of}, injected mistakes"
            axes.set_title(f"{skill.capitalize()}: {metric}", color=SKILL_COLOURS[skill])
            drawn.append((axes, panel))
        # Below, where it covers no interval.
        named: dict[str, Any] = {}
        for axes, _ in drawn:
            handles, texts = axes.get_legend_handles_labels()
            named.update(zip(texts, handles, strict=True))
        if named:
            figure.legend(
                list(named.values()), list(named), loc="outside lower center", ncols=4, fontsize=9, frameon=False
            )
        # The layout must settle before labels can be kept apart in points.
        figure.canvas.draw()
        for axes, panel in drawn:
            texts = [reference.text for reference in panel.references]
            values = [reference.interval.value for reference in panel.references]
            strip_labels(axes, 1.01, values, texts, [MUTED] * len(texts))
    return figure


def side_by_side(curves: Sequence[TargetCurve]) -> dict[tuple[str, str], tuple[float, bool]]:
    """Return where each mark stands, by set and text: its place on the axis, and whether its text goes to the left.

    A mark stands at its number of parameters, but where sets are as large as one another their intervals would
    cover each other; there they are spread around that number.
    """
    marks = sorted(
        (point.params, at, curve.targets, point.text) for at, curve in enumerate(curves) for point in curve.points
    )
    groups: list[list[tuple[float, int, str, str]]] = []
    for mark in marks:
        if groups and mark[0] <= groups[-1][0][0] * _SAME_SIZE:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    places = {}
    for group in groups:
        for at, (params, _, targets, text) in enumerate(sorted(group, key=lambda mark: mark[1])):
            # Texts of neighbours go to either side in turn.
            to_left = len(group) > 1 and at % 2 == 0
            places[targets, text] = (params * _STEP ** (at - (len(group) - 1) / 2), to_left)
    return places


def _draw_panel(axes: Axes, panel: TargetPanel) -> None:
    places = side_by_side(panel.curves)
    for reference in panel.references:
        axes.axhline(reference.interval.value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.axhspan(reference.interval.low, reference.interval.high, color=MUTED, alpha=0.08, linewidth=0, zorder=0)
    for curve in panel.curves:
        colour, marker = _MARKS[curve.targets]
        xs = [places[curve.targets, point.text][0] for point in curve.points]
        values = [point.interval.value for point in curve.points]
        bars = error_bars([point.interval for point in curve.points])
        style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2, "label": curve.targets}
        axes.errorbar(xs, values, yerr=bars, elinewidth=1, zorder=3, **style)
        for x, point in zip(xs, curve.points, strict=True):
            left = places[curve.targets, point.text][1]
            place = {"xytext": (-4 if left else 4, 5), "textcoords": "offset points", "ha": "right" if left else "left"}
            axes.annotate(point.text, (x, point.interval.value), **place, color=colour, fontsize=7.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    # As many digits as tell the marks apart: detectors lie close together.
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    # Room at the right for the last rank, which must not run into the names of the references.
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("trainable parameters (log scale)")
