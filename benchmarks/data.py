"""`make bench-data`: how many problems and tokens a second one core generates, beside what a trainer reads.

Prints a table and writes `benchmarks/results/cpu-data.json`: name, value, unit, per_core, versions, commit. Every
figure is the median of seven runs on one core, after a first one that is not counted.
"""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from peft_study.igsm.families import FAMILIES
from peft_study.igsm.settings import StreamSettings
from peft_study.igsm.stream import WindowStream, written
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.attention import VARLEN
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.config import TrainingConfig
from peft_study.training.machine import prepare_process, settled
from peft_study.training.optim import Masters, Optimizers
from peft_study.training.supervised import batch_loss, make_batch

RESULTS = Path(__file__).parent / "results" / "cpu-data.json"
PUBLISHED = {"med": 15.6, "hard": 8.9}
"""Problems a second of the published loop on one core of another machine, its tokenizer not counted."""
TRAINERS = {
    "nano": Architecture(),
    "mini": Architecture(layers=8, width=256, heads=8, mlp_width=704),
}
RUNS = 7


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
    """Return the tokens a second that the trainer reads: whole steps, compiled, as `make pretrain` takes them."""
    settings = FAMILIES[family]
    learner = Learner(build_base(settings, TRAINERS[family], 0), MethodConfig(name="full"), word_ids(settings), 0)
    config = settled(TrainingConfig(optimizer="muon"), folder, learner.model.config.head_dim)
    learner.model.config._attn_implementation = VARLEN if config.attention == "varlen" else config.attention
    if config.precision == "bf16":
        learner.to(torch.bfloat16)
    learner.model.model.compile()
    masters = Masters(learner.trainable())
    optimizers = Optimizers(masters.values, config, 1e-3)
    skill = SkillConfig(problem_weight=0.2)
    stream = WindowStream(StreamSettings(family=settings))
    batch = make_batch(stream.read(16), skill, torch.device("cpu"))

    def work() -> float:
        batch_loss(learner, batch, skill).backward()
        masters.take_gradients()
        optimizers.step(0.1)
        masters.write()
        return batch.ids_BT.numel()

    return median_rate(work)


def main() -> None:
    """Measure, print and write."""
    import tempfile

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
