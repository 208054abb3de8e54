"""`make bench-data`: how many problems and tokens a second one core generates, beside what a trainer reads.

Prints a table and writes `benchmarks/results/cpu-data.json`: name, value, unit, per_core, versions, commit. Every
figure is a median on one core: of seven runs, or of twenty steps of training, after what is not counted.
"""

import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from peft_study.igsm.families import FAMILIES
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream, written
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.batches import StreamTask
from peft_study.training.machine import prepare_process, settled
from peft_study.training.pretrain import PretrainConfig
from peft_study.training.supervised import train

RESULTS = Path(__file__).parent / "results" / "cpu-data.json"
PUBLISHED = {"med": 15.6, "hard": 8.9}
"""Problems a second of the published loop on one core of another machine, its tokenizer not counted."""
TRAINERS = {
    "nano": Architecture(),
    "mini": Architecture(layers=8, width=256, heads=8, mlp_width=704),
}
RUNS = 7
WARM_UP, STEPS = 4, 20
"""Steps of training: those that compile and warm up, and those that count."""


def median_rate(work: Callable[[], float]) -> float:
    """Return the median of `work`'s amount by time."""
    work()
    rates = []
    for _ in range(RUNS):
        started = time.perf_counter()
        amount = work()
        rates.append(amount / (time.perf_counter() - started))
    return statistics.median(rates)


def generation(family: str) -> tuple[float, float]:
    """Return problems and tokens a second, training split, the family's own law of op."""
    settings = StreamSettings(family=FAMILIES[family], retry_rate=0.2)
    at, tokens, problems = 0, 0, 0

    def work() -> float:
        nonlocal at, tokens, problems
        count = 2_000
        for index in range(at, at + count):
            tokens += len(written(settings, index).ids)
        at += count
        problems += count
        return count

    rate = median_rate(work)
    return rate, rate * tokens / problems


def training(family: str, folder: Path) -> float:
    """Return the tokens a second that the trainer reads: the median over its steps, as in `make pretrain`."""
    settings = FAMILIES[family]
    learner = Learner(build_base(settings, TRAINERS[family], 0), MethodConfig(name="full"), word_ids(settings), 0)
    stream = WindowStream(StreamSettings(family=settings))
    plan = PretrainConfig().training
    tokens = plan.batch_windows * stream.length
    config = plan.model_copy(update={"tokens": (WARM_UP + STEPS) * tokens, "points": 1, "checkpoint_seconds": 1e9})
    ended: list[float] = []
    shape = learner.model.config
    train(
        learner,
        StreamTask(stream, stream.read(1), SkillConfig(problem_weight=PretrainConfig().problem_weight)),
        settled(config, folder, head_width=shape.head_dim, width=shape.hidden_size),
        folder=folder,
        seed=0,
        on_point=lambda _: ended.append(time.perf_counter()),
    )
    # The last step also measures the validation loss.
    return tokens / statistics.median(after - before for before, after in pairwise(ended[WARM_UP:-1]))


def main() -> None:
    """Measure, print and write."""
    prepare_process(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    versions |= {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    rows: list[dict[str, Any]] = []

    def note(name: str, value: float, unit: str) -> None:
        rows.append(
            {
                "name": name,
                "value": round(value, 2),
                "unit": unit,
                "per_core": True,
                "versions": versions,
                "commit": commit.stdout.strip(),
            }
        )
        print(f"{name:42} {value:14,.1f} {unit}", flush=True)

    made: dict[str, float] = {}
    for family in FAMILIES:
        problems, made[family] = generation(family)
        note(f"{family}: problems", problems, "problems/s")
        note(f"{family}: tokens", made[family], "tokens/s")
        if family in PUBLISHED:
            note(f"{family}: over the published loop", problems / PUBLISHED[family], "ratio")
    with tempfile.TemporaryDirectory() as folder:
        for family in TRAINERS:
            read = training(family, Path(folder) / family)
            note(f"{family}: read by the trainer", read, "tokens/s")
            note(f"{family}: made over read", made[family] / read, "ratio")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
