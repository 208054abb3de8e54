"""The tuned learning rates: what `sweeps/lr.yaml` and `lr_long.yaml` found, read from their committed results.

For each family, skill, method, target set, variant, token budget and rank the best of the rates that were tried, by
the mean over seeds of the skill's metric on validation problems. Rows from test problems are never read.
"""

import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from peft_study.errors import ConfigError
from peft_study.records import COLUMNS, Status
from peft_study.study.config import TrialConfig

RESULTS = Path(__file__).resolve().parents[2] / "results"
"""The published results that come with the repository."""

TUNING_METRIC = {"correction": ("ood", "accuracy"), "detection": ("injected", "detect_auroc")}
"""Skill to the (set, metric) that decides, the mean over its ops."""


TUNED_FAMILY = "nano"
"""What `sweeps/lr.yaml` and `lr_long.yaml` tune rates of."""


def _remedy(sweep: str) -> str:
    return f"run `make sweep SWEEP={sweep}` and `make publish SWEEP={sweep}`, or set training.lr"


class Cell(NamedTuple):
    """What a learning rate is tuned for."""

    family: str
    skill: str
    method: str
    targets: str
    """Empty for methods without target sets."""
    variant: str
    """What is not as in the headline setting; empty where nothing is."""
    tokens: int
    """What a trial reads."""
    rank: int

    @classmethod
    def of(cls, family: str, skill: str, method: str, targets: str, variant: str, *, tokens: int, rank: int) -> "Cell":
        """Return the cell; target sets and ranks of methods that have none are left out."""
        if method != "lora":
            targets, rank = "", 0
        return cls(family, skill, method, targets, variant, tokens, rank)

    def __str__(self) -> str:
        rank = f"rank {self.rank}" if self.rank else ""
        shown = [self.family, self.skill, self.method, self.targets, self.variant, rank]
        return ", ".join(part for part in shown if part)


def variant_of(*, skill: str, base: str, retry_rate: float, mask: bool) -> str:
    """Return in what a trial is not as in the headline setting: mistakes, masked, on the error-free base.

    >>> variant_of(skill="correction", base="retry", retry_rate=0.5, mask=False)
    'retry base, unmasked'
    """
    parts = {
        "clean tokens": not retry_rate,
        "retry base": base == "retry",
        # Of detectors, and where there is nothing to mask, the mask says nothing.
        "unmasked": skill == "correction" and bool(retry_rate) and not mask,
    }
    return ", ".join(part for part, holds in parts.items() if holds)


class TunedRate(NamedTuple):
    """The rate that won."""

    lr: float
    alarms: tuple[str, ...]
    """Why it may not be the best there is."""


class Candidate(NamedTuple):
    """A rate that was tried, as the mean over its trials."""

    score: float
    loss: float


class TunedRates:
    """The tables of tuned rates, read when first asked for; all but the first may be missing."""

    def __init__(self, *paths: Path) -> None:
        """Take the published tables where no `paths` are given."""
        self.path, *self.more = paths or (RESULTS / "lr.csv", RESULTS / "lr_long.csv")

    @cached_property
    def candidates(self) -> dict[Cell, dict[float, Candidate]]:
        """Every cell's rates and what they reached."""
        scores: dict[tuple[Cell, float], list[float]] = defaultdict(list)
        losses: dict[tuple[Cell, float], list[float]] = defaultdict(list)
        tables = [self.path, *(path for path in self.more if path.exists())]
        for row in itertools.chain.from_iterable(map(self._rows, tables)):
            tokens, rank = (int(float(row[key] or 0)) for key in ("tokens", "rank"))
            skill, retry_rate = row["skill"], float(row["retry_rate"])
            variant = variant_of(skill=skill, base=row["base"], retry_rate=retry_rate, mask=row["mask"] != "false")
            cell = Cell.of(row["family"], skill, row["method"], row["targets"], variant, tokens=tokens, rank=rank)
            key = cell, float(row["lr"])
            if (row["set"], row["metric"]) == TUNING_METRIC[row["skill"]]:
                scores[key].append(float(row["value"]))
            elif row["metric"] == "loss":
                losses[key].append(float(row["value"]))
        found: dict[Cell, dict[float, Candidate]] = defaultdict(dict)
        for (cell, lr), values in scores.items():
            loss = fmean(losses[cell, lr]) if losses[cell, lr] else math.inf
            found[cell][lr] = Candidate(fmean(values), loss)
        return dict(found)

    def _rows(self, path: Path) -> list[dict[str, str]]:
        """Return the rows that may decide: finished trials, validation problems, a value."""
        if not path.exists():
            raise ConfigError(
                f"training.lr is not set and there are no tuned rates: {path} is missing; {_remedy('lr')}"
            )
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path} is no result table: it has no column {missing[0]!r}; {_remedy(path.stem)}")
            rows = list(reader)
        return [
            row
            for row in rows
            # Rows without a seed are pooled over trials.
            if row["status"] == Status.FINISHED and row["split"] == "validation" and row["seed"] and row["value"]
            if row["lr"] and row["skill"] in TUNING_METRIC
        ]

    def look_up(self, config: TrialConfig) -> TunedRate:
        """Return the tuned rate for `config`: of the same cell, at the nearest budget that was tuned.

        Between two ranks that were tuned the rate lies on the line through their best, both on log scales: with a
        scale of alpha/r that is the same at every rank, high ranks want lower rates. Outside them it is that of the
        nearest. A variant that was not tuned takes the rate of the headline setting. That, and a budget or a rank
        that is not near, is an alarm.
        """
        wanted = cell_of(config)
        variant, tokens = wanted.variant, wanted.tokens
        cells = {cell for cell in self.candidates if cell[:4] == wanted[:4] and cell.variant in ("", variant)}
        if not cells:
            raise ConfigError(f"no tuned learning rate in {self.path} for {wanted}; {_remedy_for(wanted)}")
        alarms: list[str] = []
        budget = min((cell.tokens for cell in cells), key=lambda tuned: (_octaves(tuned, tokens), tuned))
        if _octaves(budget, tokens) > 1:
            alarms.append(f"the learning rate was tuned at {budget:,} tokens, not at {tokens:,} ({wanted})")
        cells = {cell for cell in cells if cell.tokens == budget}
        if all(cell.variant != variant for cell in cells):
            instead = "that of masked mistakes on the error-free base"
            alarms.append(f"no learning rate was tuned for {wanted}, so it is {instead}")
            variant = ""
        ranks = sorted(cell.rank for cell in cells if cell.variant == variant)
        low = max((rank for rank in ranks if rank <= wanted.rank), default=ranks[0])
        high = min((rank for rank in ranks if rank >= wanted.rank), default=ranks[-1])
        if low == high and _octaves(low, wanted.rank) > 1:
            alarms.append(f"the learning rate was tuned at rank {low}, not near {wanted.rank} ({wanted})")
        ends = [wanted._replace(variant=variant, tokens=budget, rank=rank) for rank in sorted({low, high})]
        best = [_best(self.candidates[end], end) for end in ends]
        alarms += [alarm for each in best for alarm in each.alarms]
        share = math.log(wanted.rank / low) / math.log(high / low) if low != high else 0.0
        return TunedRate(_between(best[0].lr, best[-1].lr, share), tuple(alarms))


def _between(low: float, high: float, share: float) -> float:
    """Return the rate at `share` of the way between two on a log scale, to two digits; the ends as they are.

    >>> _between(0.01, 0.001, 0.5)
    0.0032
    """
    return low if low == high or share == 0 else float(f"{low * (high / low) ** share:.2g}")


def cell_of(config: TrialConfig) -> Cell:
    """Return what a trial's learning rate is to be tuned for."""
    data, skill, method = config.data, config.skill, config.method
    variant = variant_of(skill=skill.name, base=config.base.name, retry_rate=data.retry_rate, mask=skill.mask)
    tokens = config.training.tokens
    return Cell.of(data.family, skill.name, method.name, method.targets, variant, tokens=tokens, rank=method.rank)


def _octaves(one: int, other: int) -> float:
    """Return how far apart two numbers are, in powers of two."""
    return abs(math.log2(max(one, 1) / max(other, 1)))


def _remedy_for(wanted: Cell) -> str:
    if wanted.family != TUNED_FAMILY:
        return f"the published rates are of {TUNED_FAMILY}; set training.lr"
    sweep = "lr_long" if wanted.targets not in ("", "all-linear") else "lr"
    is_new = wanted.targets not in ("", "all-linear")
    tuned = f"let an arm of sweeps/{sweep}.yaml try method.targets={wanted.targets}, " if is_new else ""
    return f"{tuned}{_remedy(sweep)}"


def best_of(tried: Mapping[float, Candidate]) -> tuple[float, bool]:
    """Return the best rate, of highest score, then lowest loss, then the smaller, and whether it is on the edge.

    >>> best_of({0.001: Candidate(0.4, 0.2), 0.003: Candidate(0.5, 0.2), 0.01: Candidate(0.5, 0.3)})
    (0.003, False)
    """
    lr = min(tried, key=lambda rate: (-tried[rate].score, tried[rate].loss, rate))
    return lr, lr in (min(tried), max(tried))


def _best(tried: Mapping[float, Candidate], cell: Cell) -> TunedRate:
    lr, on_edge = best_of(tried)
    edge = f"the tuned learning rate {lr:g} lies on the edge of its grid, {min(tried):g} to {max(tried):g} ({cell})"
    return TunedRate(lr, (edge,) if on_edge else ())
