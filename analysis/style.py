"""How figures look, and how they become the same bytes each time."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1f2328", "#59636e", "#d0d7de"
SKILL_COLOURS = {"correction": "#0072b2", "detection": "#d55e00"}
"""Two colours of Okabe and Ito that remain apart in all common forms of colour blindness, and in grey."""
SKILL_MARKERS = {"correction": "o", "detection": "s"}
DPI = 200

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "peft_study",
    "svg.fonttype": "path",
    "figure.dpi": 100,
}


def short_count(count: float) -> str:
    """Return a count in few letters.

    >>> short_count(258), short_count(42_000), short_count(1_050_000)
    ('258', '42 k', '1.05 M')
    """
    if count < 1000:
        return f"{count:.3g}"
    return f"{count / 1000:.3g} k" if count < 1_000_000 else f"{count / 1_000_000:.3g} M"


@contextmanager
def look() -> Iterator[None]:
    """Draw in the style of the project; nothing outside is changed."""
    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as `png` or `svg`, without a date or a version in it."""
    buffer = io.BytesIO()
    with look():
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def spread(positions: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Return `positions` moved as little as keeps them `apart`, in their order, and inside low to high.

    >>> spread([0.5, 0.52, 0.9], apart=0.1, low=0, high=1)
    [0.46, 0.56, 0.9]
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    # Blocks of touching labels: [sum of wanted starts, count]; each settles at its mean start.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([positions[index] - rank * apart, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    last = high - (len(order) - 1) * apart
    starts = [min(max(total / count, low), last) for total, count in blocks for _ in range(int(count))]
    placed = [0.0] * len(order)
    for rank, (index, start) in enumerate(zip(order, starts, strict=True)):
        placed[index] = round(start + rank * apart, 9)
    return placed


def error_bars(intervals: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float]]:
    """Return how far bars reach below and above each value of (value, low, high).

    A percentile interval can miss its own value by a hair, and a bar of negative length cannot be drawn.

    >>> error_bars([(2.0, 1.5, 4.0), (1.0, 1.25, 1.5)])
    ([0.5, 0.0], [2.0, 0.5])
    """
    below = [max(0.0, value - low) for value, low, _ in intervals]
    above = [max(0.0, high - value) for value, _, high in intervals]
    return below, above


def strip_labels(axes: Axes, x: float, values: Sequence[float], texts: Sequence[str], colours: Sequence[str]) -> None:
    """Write `texts` at x (0 to 1 across the axes), each near its value and none over another."""
    low, high = axes.get_ylim()
    apart = (high - low) * 13.0 / (axes.bbox.height / axes.figure.dpi * 72)
    for value, text, colour in zip(spread(values, apart, low, high), texts, colours, strict=True):
        axes.text(
            x, value, text, color=colour, transform=axes.get_yaxis_transform(), va="center", ha="left", fontsize=8.5
        )
