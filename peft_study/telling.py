"""How far something is, as what does it tells what shows it."""

import math
from collections.abc import Callable
from typing import NamedTuple

OnShare = Callable[[float], None]
"""Is told what share of the work is done, 0 to 1."""
OnPhase = Callable[[str, float | None], None]
"""Is told what goes on beside training, and what share of it is done; None where nobody counts."""


def unheard(*_: object) -> None:
    """Take what is told and do nothing."""


class Point(NamedTuple):
    """Where a training is."""

    tokens: int
    """Tokens read."""
    total: int
    """Tokens to be read in all."""
    metrics: dict[str, float]
    """Empty between the points that are logged."""


class Progress(NamedTuple):
    """How far a trial is."""

    tokens: int
    """Read so far."""
    total: int
    """To be read in all."""
    loss: float
    """Last validation loss, nan before the first."""
    phase: str = "train"
    """What it does: `train`, `load`, `solve op 6` and such."""
    share: float | None = None
    """How much of the phase is done, 0 to 1; None where nobody counts."""


class Teller:
    """Tells how far a trial is while it goes on."""

    def __init__(
        self, on_progress: Callable[[Progress], None], on_metrics: Callable[[int, dict[str, float]], None] = unheard
    ) -> None:
        self.on_progress, self.on_metrics = on_progress, on_metrics
        self.progress = Progress(0, 0, math.nan)

    def point(self, point: Point) -> None:
        """Tell where the training is."""
        loss = point.metrics.get("validation/loss", self.progress.loss)
        if point.metrics:
            self.on_metrics(point.tokens, point.metrics)
        self.progress = Progress(point.tokens, point.total, loss, share=point.tokens / point.total)
        self.on_progress(self.progress)

    def phase(self, name: str, share: float | None = None) -> None:
        """Tell what goes on beside training, and how much of it is done."""
        self.on_progress(self.progress._replace(phase=name, share=share))
