"""The headline figure: both skills against trainable parameters, raw on the left, as gap closed on the right."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.style import (
    FAINT,
    INK,
    MUTED,
    SKILL_COLOURS,
    SKILL_MARKERS,
    error_bars,
    look,
    new_figure,
    short_count,
    strip_labels,
)
from analysis.summary import SKILLS, ArmSummary, Counts, Interval, Role, counts_of, name_of, on_curve, summarize

_LEAST_SPAN = 0.05
"""Height of a raw panel's axis, at least."""
_GAP_LIMITS = (-1.5, 2.5)
"""The most that the axis of gap closed shows; an interval beyond is cut, and the title says so."""
_REFERENCES = {
    "correction": (Role.BASE, Role.CONTROL, Role.PRETRAINED, Role.UPPER),
    "detection": (Role.PROBE, Role.UPPER),
}
_MASKS = {True: "masked", False: "unmasked"}
_LOWER = {"correction": "control", "detection": "probe"}


class Point(NamedTuple):
    """An arm at its trainable parameters."""

    text: str
    params: int
    interval: Interval


class Curve(NamedTuple):
    """The LoRA ranks of one skill and one kind of adapter, and full fine-tuning beside them."""

    skill: str
    text: str
    points: tuple[Point, ...]
    full: Point | None


class Reference(NamedTuple):
    """A level to compare with."""

    text: str
    interval: Interval


class Panel(NamedTuple):
    """What one pair of axes shows."""

    curves: tuple[Curve, ...]
    references: tuple[Reference, ...]


class HeadlineInfo(NamedTuple):
    """What the figure shows."""

    raw: dict[str, Panel]
    """Skill to its raw values."""
    gap: Panel
    no_gap: tuple[str, ...]
    """Skills without a gap between their references."""
    ops: dict[str, int | None]
    """Skill to the operation count of its problems."""
    counts: Counts


def compute(frame: pd.DataFrame) -> HeadlineInfo:
    """Return the raw values and gaps closed of both skills."""
    lines = summarize(frame)
    of_skills = {skill: [line for line in lines if line.skill == skill] for skill in SKILLS}
    by_skill = {skill: [line for line in of_skill if on_curve(line, of_skill)] for skill, of_skill in of_skills.items()}
    return HeadlineInfo(
        raw={
            skill: Panel(_curves(skill, of_skill, "raw"), _references(skill, of_skill))
            for skill, of_skill in by_skill.items()
            if any(line.raw for line in of_skill)
        },
        gap=Panel(tuple(curve for skill in SKILLS for curve in _curves(skill, by_skill[skill], "gap")), ()),
        no_gap=tuple(skill for skill in SKILLS if any(line.no_gap for line in by_skill[skill])),
        ops={line.skill: line.op for line in lines},
        counts=counts_of(frame),
    )


def describe(info: HeadlineInfo) -> str:
    """Return what a reader must know of the marks and scales in the figure."""
    marks = "Filled: LoRA ranks; hollow: full fine-tuning; dashed: references with their intervals"
    if not info.gap.curves and not info.no_gap:
        return f"{marks}."
    return (
        f"{marks} (+ t: then trained on as many tokens as a trial). Gap closed puts both skills on one scale: 0 is the "
        "control (correction) or the probe of the frozen base (detection), 1 is the base pretrained on retries and "
        "trained on t more tokens: its accuracy, or its own probability of [BACK]."
    )


def _curves(skill: str, lines: Sequence[ArmSummary], scale: str) -> tuple[Curve, ...]:
    """Return a curve for each kind of adapter; its text names what differs between kinds."""
    fulls = {
        bool(line.row["mask"]): point for line in lines if line.role is Role.FULL for point in points_of([line], scale)
    }
    kinds: dict[tuple[str, ...], list[ArmSummary]] = {}
    for line in lines:
        if line.role is Role.ADAPTER:
            row = line.row
            kinds.setdefault((row["targets"], row["embeddings"], _MASKS[bool(row["mask"])]), []).append(line)
    masks = {mask for *_, mask in kinds} | {_MASKS[masked] for masked in fulls}
    varying = [place for place in (0, 1) if len({kind[place] for kind in kinds}) > 1] + [2] * (len(masks) > 1)
    curves = []
    for kind, members in kinds.items():
        text = ", ".join([skill, *(kind[place] for place in varying)])
        # Full fine-tuning hangs on the first curve that learns as it does.
        curves.append(Curve(skill, text, points_of(members, scale), fulls.pop(kind[2] == _MASKS[True], None)))
    curves += [
        Curve(skill, ", ".join([skill] + [_MASKS[masked]] * (2 in varying)), (), full) for masked, full in fulls.items()
    ]
    return tuple(curve for curve in curves if curve.points or curve.full)


def points_of(lines: Sequence[ArmSummary], scale: str) -> tuple[Point, ...]:
    """Return the measured arms in the order of their trainable parameters."""
    found = []
    for line in lines:
        interval = line.raw if scale == "raw" else line.gap
        params = line.row["trainable_params"]
        if interval is not None and params:
            text = f"r{line.row['rank']}" if line.role is Role.ADAPTER else "full"
            found.append(Point(text, params, interval))
    return tuple(sorted(found, key=lambda point: point.params))


def _references(skill: str, lines: Sequence[ArmSummary]) -> tuple[Reference, ...]:
    return tuple(
        Reference(name_of(line), line.raw)
        for role in _REFERENCES[skill]
        for line in lines
        if line.role is role and line.raw is not None
    )


def draw(info: HeadlineInfo) -> Figure:
    """Draw the figure: at most two small panels on the left, one large on the right."""
    with look():
        figure = new_figure(10.0, 5.2)
        grid = figure.add_gridspec(len(info.raw) or 1, 2, width_ratios=(1.0, 1.0))
        panels = [figure.add_subplot(grid[row, 0]) for row in range(len(info.raw))]
        right = figure.add_subplot(grid[:, 1])
        for axes, (skill, panel) in zip(panels, info.raw.items(), strict=True):
            _draw_raw(axes, panel, skill, info.ops.get(skill))
        _draw_gap(right, info)
        for axes in (*panels, right):
            _parameter_axis(axes, info, labelled=axes is right or axes is panels[-1])
        # The layout must settle before labels can be kept apart in points.
        figure.canvas.draw()
        for axes, (skill, panel) in zip(panels, info.raw.items(), strict=True):
            digits = 3 if skill == "detection" else 2
            texts = [f"{ref.text} {ref.interval.value:.{digits}f}" for ref in panel.references]
            strip_labels(axes, 1.02, [ref.interval.value for ref in panel.references], texts, [MUTED] * len(texts))
        _label_gap(right, info)
    return figure


def _draw_raw(axes: Axes, panel: Panel, skill: str, op: int | None) -> None:
    of = f" at op {op}" if op is not None else ""
    beyond = ", out of distribution" if op is not None else ""
    metric = f"share solved{of}{beyond}" if skill == "correction" else f"AUROC{of}, injected mistakes"
    axes.set_title(f"{skill.capitalize()}: {metric}", color=SKILL_COLOURS[skill])
    for reference in panel.references:
        axes.axhline(reference.interval.value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.axhspan(reference.interval.low, reference.interval.high, color=MUTED, alpha=0.08, linewidth=0, zorder=0)
    for place, curve in enumerate(panel.curves):
        _draw_curve(axes, curve, place)
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:
        # Where all values are the same, an axis of a millionth would pretend that they differ.
        axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)


def _draw_gap(axes: Axes, info: HeadlineInfo) -> None:
    intervals = [point.interval for point in _all_points(info.gap)]
    low = max(min([-0.1, *(interval.low for interval in intervals)]), _GAP_LIMITS[0])
    high = min(max([1.1, *(interval.high for interval in intervals)]), _GAP_LIMITS[1])
    cut = any(interval.low < low or interval.high > high for interval in intervals)
    axes.set_title("Gap closed, the common scale" + (" (intervals cut)" if cut else ""), color=INK)
    axes.set_ylim(low - 0.05, high + 0.05)
    for level in (0, 1):
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for curve in info.gap.curves:
        same = [other for other in info.gap.curves if other.skill == curve.skill]
        _draw_curve(axes, curve, same.index(curve))
    text = "" if info.gap.curves else "references are missing"
    if info.no_gap:
        text = f"{' and '.join(info.no_gap)}: no gap\nbetween the references"
    if text:
        axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", color=MUTED, fontsize=9)


def _draw_curve(axes: Axes, curve: Curve, place: int) -> None:
    """Draw ranks as a line and full fine-tuning as a hollow point that hangs on it by dots."""
    colour = SKILL_COLOURS[curve.skill]
    marker = SKILL_MARKERS[curve.skill] if place == 0 else "^vD"[place % 3]
    style = ("-", "--", "-.", ":")[place % 4]
    if curve.points:
        _draw_points(axes, curve.points, color=colour, marker=marker, linestyle=style, label=curve.text)
    if curve.full is None:
        return
    named = {} if curve.points else {"label": curve.text}
    if curve.points:
        last = curve.points[-1]
        ends = (last.params, curve.full.params), (last.interval.value, curve.full.interval.value)
        axes.plot(*ends, color=colour, linewidth=1.0, linestyle=(0, (1, 2)), zorder=2)
    _draw_points(axes, [curve.full], color=colour, marker=marker, linestyle="none", markerfacecolor="white", **named)


def _draw_points(axes: Axes, points: Sequence[Point], **style: str) -> None:
    values = [point.interval.value for point in points]
    bars = error_bars([point.interval for point in points])
    params = [point.params for point in points]
    axes.errorbar(params, values, yerr=bars, markersize=6, capsize=0, elinewidth=1.2, zorder=3, **style)  # pyright: ignore[reportArgumentType]


def _label_gap(axes: Axes, info: HeadlineInfo) -> None:
    """Write beside the right panel what its levels are and which curve is which."""
    curves = info.gap.curves
    lower = [_LOWER[skill] for skill in dict.fromkeys(curve.skill for curve in curves)]
    values, colours = [0.0, 1.0], [MUTED, MUTED]
    texts = [f"0: {' / '.join(lower) or 'lower reference'}", f"1: {Role.UPPER.value}"]
    if len({curve.skill for curve in curves}) == len(curves):
        values += [(curve.full or curve.points[-1]).interval.value for curve in curves]
        texts += [curve.text for curve in curves]
        colours += [SKILL_COLOURS[curve.skill] for curve in curves]
    else:
        # Several kinds of adapters end at much the same height: there only a legend tells them apart. Between the two
        # levels' names it covers neither them nor an interval.
        place = {"bbox_to_anchor": (1.0, 0.5), "bbox_transform": axes.get_yaxis_transform()}
        axes.legend(loc="center left", **place, fontsize=8, frameon=False, handlelength=3.5)
    strip_labels(axes, 1.02, values, texts, colours)


def _parameter_axis(axes: Axes, info: HeadlineInfo, *, labelled: bool) -> None:
    """Make the x axis logarithmic; where a rank has one number of parameters, ticks are ranks with that."""
    panels = (*info.raw.values(), info.gap)
    points = sorted((point for panel in panels for point in _all_points(panel)), key=lambda point: point.params)
    axes.set_xscale("log")
    axes.grid(axis="y", color=FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}".replace("-", "\N{MINUS SIGN}")))
    axes.xaxis.set_minor_locator(NullLocator())
    names: dict[int, str] = {}
    counted = 0.0
    for point in points:
        if any(params / 1.5 < point.params < params * 1.5 for params in names):
            continue
        # Counts need more room than ranks do.
        roomy = point.params > 2.7 * counted
        counted = point.params if roomy else counted
        names[point.params] = f"{point.text}\n{short_count(point.params)}" if roomy else point.text
    sizes: dict[str, list[int]] = {}
    for point in points:
        sizes.setdefault(point.text, []).append(point.params)
    if all(max(params) < 1.2 * min(params) for params in sizes.values()):
        axes.set_xticks(list(names), list(names.values()))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.tick_params(axis="x", labelbottom=labelled)
    if points:
        axes.set_xlim(points[0].params / 1.6, points[-1].params * 1.6)
    if labelled:
        axes.set_xlabel("trainable parameters (log scale)")


def _all_points(panel: Panel) -> list[Point]:
    return [point for curve in panel.curves for point in (*curve.points, *([curve.full] if curve.full else []))]
