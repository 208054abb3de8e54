"""The tuned learning rates: what `sweeps/lr.yaml` and `lr_long.yaml` found, read from their committed results.

For each family, skill, method, target set, token budget and rank the best of the rates that were tried, by the mean
over seeds of the skill's metric on validation problems. Rows from test problems are never read.
"""

import csv
import itertools
import math
from collections import defaultdict
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


def _remedy(sweep: str) -> str:
    return f"run `make sweep SWEEP={sweep}` and `make publish SWEEP={sweep}`, or set training.lr"


class Cell(NamedTuple):
    """What a learning rate is tuned for."""

    family: str
    skill: str
    method: str
    targets: str
    """Empty for methods without target sets."""
    tokens: int
    """What a trial reads."""
    rank: int

    @classmethod
    def of(cls, family: str, skill: str, method: str, targets: str, tokens: int, rank: int) -> "Cell":
        """Return the cell; target sets and ranks of methods that have none are left out."""
        if method == "full":
            return cls(family, skill, method, "", tokens, 0)
        return cls(family, skill, method, targets if method == "lora" else "", tokens, rank)

    def __str__(self) -> str:
        shown = [self.family, self.skill, self.method, self.targets, f"rank {self.rank}" if self.rank else ""]
        return ", ".join(part for part in shown if part)


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
            cell = Cell.of(row["family"], row["skill"], row["method"], row["targets"], tokens, rank)
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
        """Return the tuned rate for `config`: of the same cell, at the nearest budget and rank that were tuned.

        Base and retry rate do not count: the control and the upper reference are trained as full fine-tuning is. A
        budget that is not near is an alarm.
        """
        method, tokens = config.method, config.training.tokens
        wanted = Cell.of(config.data.family, config.skill.name, method.name, method.targets, tokens, method.rank)
        near = [cell for cell in self.candidates if cell[:4] == wanted[:4]]
        if not near:
            raise ConfigError(f"no tuned learning rate in {self.path} for {wanted}; {_remedy_for(wanted)}")

        def distance(cell: Cell) -> tuple[float, float, int]:
            # Rank 0 counts as one below rank 1; of two equally near ranks the lower one.
            budget = abs(math.log2(max(cell.tokens, 1) / max(wanted.tokens, 1)))
            return budget, abs(math.log2(max(cell.rank, 0.5) / max(wanted.rank, 0.5))), cell.rank

        nearest = min(near, key=distance)
        best = _best(self.candidates[nearest], nearest)
        if distance(nearest)[0] <= 1:
            return best
        elsewhere = f"the learning rate was tuned at {nearest.tokens:,} tokens, not at {tokens:,} ({wanted})"
        return best._replace(alarms=(*best.alarms, elsewhere))


def _remedy_for(wanted: Cell) -> str:
    sweep = "lr_long" if wanted.targets not in ("", "all-linear") else "lr"
    tuned = f"let an arm of sweeps/{sweep}.yaml try method.targets={wanted.targets}, " if wanted.targets else ""
    return f"{tuned}{_remedy(sweep)}"


def _best(tried: dict[float, Candidate], cell: Cell) -> TunedRate:
    """Return the best rate of a cell: highest score, then lowest loss, then the smaller rate."""
    lr = min(tried, key=lambda rate: (-tried[rate].score, tried[rate].loss, rate))
    if min(tried) < lr < max(tried):
        return TunedRate(lr, ())
    edge = f"the tuned learning rate {lr:g} lies on the edge of its grid, {min(tried):g} to {max(tried):g} ({cell})"
    return TunedRate(lr, (edge,))
