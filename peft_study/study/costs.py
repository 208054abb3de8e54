"""What a plan will take: every cell with its tokens and the minutes that are missing."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from peft_study.records import Status
from peft_study.study.config import TrialConfig, build_config
from peft_study.study.plan import Plan
from peft_study.study.stores import read_result

TOKENS_PER_SECOND = 12_000
"""Training where nothing has been measured yet: `nano` on two CPU cores."""
PROBLEMS_PER_SECOND = 50
"""Evaluation: problems of a cell, with all that is measured on them, `nano` on two CPU cores."""
SIMILAR = 4
"""A result counts as measurement for trials of up to this many times its tokens, or as little."""


class CellCost(NamedTuple):
    """A cell of the plan."""

    arm: str
    skill: str
    method: str
    rank: int
    targets: str
    lr: float | None
    tokens: int
    """Of one trial."""
    trials: int
    done: int
    """Trials that have ended."""
    minutes: float
    """Expected for the trials that have not, one after another."""
    alarms: tuple[str, ...]


class Measured(NamedTuple):
    """What training a finished trial took."""

    model: str
    """Name of the model, or family of the study's bases."""
    skill: str
    method: str
    tokens: int
    seconds: float


def measurements(runs: Path, taken: Iterable[Mapping[str, Any]] = ()) -> Iterator[Measured]:
    """Yield what the finished trials of all sweeps under `runs` took, and those with the results `taken`."""
    there = (read_result(path.parent) for path in sorted(runs.glob("*/*/result.json")))
    for result in itertools.chain(there, taken):
        if result and result["status"] == Status.FINISHED and result["tokens"]:
            config = result["config"]
            model = config["pretrained"]["name"] if "pretrained" in config else config["data"]["family"]
            named = model, config["skill"]["name"], config["method"]["name"]
            yield Measured(*named, result["tokens"], result["seconds"])


def _shares(plan: Plan, cell: str) -> tuple[float, float]:
    """Return the share of its tokens that a trial of `cell` reads on average, and of trials evaluated."""
    halving = plan.sweep.arms[plan.arms[cell]].halving
    if halving is None:
        return 1.0, 1.0
    cells = sum(arm == plan.arms[cell] for arm in plan.arms.values())
    return halving.share_trained(cells), halving.kept(cells, halving.rungs - 1) / cells


def expected_seconds(
    config: TrialConfig, measured: list[Measured], trained: float = 1.0, evaluated: float = 1.0
) -> float:
    """Return the seconds a trial will take: training as the nearest of its kind took, per token, and evaluation.

    `trained` is the share of its tokens that it reads, `evaluated` that of such trials which are evaluated.
    """
    tokens = config.training.tokens
    model = config.pretrained.name if config.pretrained else config.data.family
    near = [m for m in measured if m.model == model and m.tokens / SIMILAR <= tokens <= m.tokens * SIMILAR]
    kind = (config.skill.name, config.method.name)
    same = [m for m in near if (m.skill, m.method) == kind] or [m for m in near if m.skill == kind[0]] or near
    seconds_per_token = median(m.seconds / m.tokens for m in same) if same else 1 / TOKENS_PER_SECOND
    return tokens * trained * seconds_per_token + evaluated * config.measuring.n / PROBLEMS_PER_SECOND


def describe(plan: Plan, runs: Path, taken: Mapping[str, Mapping[str, Any]] | None = None) -> list[CellCost]:
    """Return every cell of the plan; `taken`: trial id to its result, for those that are to be taken from elsewhere."""
    taken = taken or {}
    measured = list(measurements(runs, taken.values()))
    search, folder = plan.sweep.search, runs / plan.sweep.name
    rows: list[CellCost] = []
    for cell, flat in plan.cells.items():
        trials = [planned for planned in plan.trials if planned.arm == cell]
        done = sum(each.trial in taken or read_result(folder / each.trial) is not None for each in trials)
        if search is None:
            config, num_trials = trials[0].config, len(trials)
        else:
            config = build_config(flat, {key: values.low for key, values in search.space.items()})
            num_trials = search.trials
        seconds = expected_seconds(config, measured, *_shares(plan, cell)) * (num_trials - done)
        rows.append(
            CellCost(
                cell,
                config.skill.name,
                config.method.name,
                config.method.rank,
                config.method.targets if config.method.name == "lora" else "",
                config.training.lr if search is None else None,
                config.training.tokens,
                num_trials,
                done,
                seconds / 60,
                trials[0].alarms if trials else (),
            )
        )
    return rows


def plan_table(plan: Plan, runs: Path, workers: int, taken: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """Return every cell of a plan with what it takes, and what is to go with `workers` trials side by side.

    `taken` as in `describe`.
    """
    cells = describe(plan, runs, taken)
    alarms = list(dict.fromkeys(alarm for cell in cells for alarm in cell.alarms))
    trials, done = sum(cell.trials for cell in cells), sum(cell.done for cell in cells)
    minutes = sum(cell.minutes for cell in cells) / max(1, min(workers, trials - done))
    beside = f" with {workers} side by side" if workers > 1 else ""
    caption = [f"{trials} trials, {done} done; about {minutes:.0f} minutes to go{beside}"]
    caption += [f"({i}) {alarm}" for i, alarm in enumerate(alarms, start=1)]
    # Plain texts: what stands in brackets is no markup.
    title = Text(f"sweep {plan.sweep.name}: {plan.sweep.question}")
    table = Table(title=title, caption=Text("\n".join(caption), justify="left"), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "skill", "method"):
        table.add_column(column, overflow="fold")
    for column in ("rank", "lr", "tokens", "trials", "done", "minutes"):
        table.add_column(column, justify="right")
    for cell in cells:
        marks = "".join(f" ({alarms.index(alarm) + 1})" for alarm in cell.alarms)
        lr = "" if cell.lr is None else f"{cell.lr:g}"
        numbers = (str(cell.rank or ""), lr + marks, f"{cell.tokens:,}", cell.trials, cell.done, f"{cell.minutes:.1f}")
        table.add_row(cell.arm, cell.skill, " ".join((cell.method, cell.targets)).strip(), *map(str, numbers))
    return table
