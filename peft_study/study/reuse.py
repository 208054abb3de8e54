"""Finished trials beside a published table, so that a sweep can go on from it on another machine.

A table holds rounded measures; pooled intervals also need each trial's bootstrap draws. `<sweep>.npz` holds both whole:
`draws` [S, resamples] in fp32, and `trials`, JSON as bytes: trial id to its `result` and `samples`, one for each row of
`draws` in turn. No pickle.
"""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from peft_study.errors import ConfigError, DataError
from peft_study.files import write_atomic
from peft_study.records import Status
from peft_study.study.plan import Plan, PlannedTrial
from peft_study.study.stores import read_result
from peft_study.study.weights import BaseWeights

SAMPLES = "samples.npz"
"""In the folder of a trial that was taken from a published table, in place of its outcomes."""


class KeptSample(NamedTuple):
    """A pooled measure of one trial."""

    metric: str
    set: str
    op: int | None
    value: float
    problems: int
    draws: NDArray[np.float32]


class KeptTrial(NamedTuple):
    """A finished trial."""

    result: dict[str, Any]
    samples: tuple[KeptSample, ...]


def trials_path(table: Path) -> Path:
    """Return where the trials of a published table lie."""
    return table.with_suffix(".npz")


def as_bytes(trials: Mapping[str, KeptTrial]) -> bytes:
    """Return the content of a file of `trials`; the same trials give the same bytes."""
    about = {
        name: {"result": kept.result, "samples": [sample[:-1] for sample in kept.samples]}
        for name, kept in trials.items()
    }
    rows = [sample.draws for kept in trials.values() for sample in kept.samples]
    draws = np.stack(rows).astype(np.float32) if rows else np.zeros((0, 0), np.float32)
    text = json.dumps(about, sort_keys=False).encode()
    content = io.BytesIO()
    np.savez_compressed(content, draws=draws, trials=np.frombuffer(text, np.uint8))
    return content.getvalue()


def read_trials(content: bytes, *, source: Path) -> dict[str, KeptTrial]:
    """Return the trials of a file; DataError, which names `source`, where it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            draws, about = file["draws"], json.loads(file["trials"].tobytes())
        rows = iter(draws)
        return {
            name: KeptTrial(kept["result"], tuple(KeptSample(*sample, draws=next(rows)) for sample in kept["samples"]))
            for name, kept in about.items()
        }
    except (ValueError, KeyError, TypeError, RuntimeError, EOFError, OSError, BadZipFile) as error:
        raise DataError(
            f"{source} must hold the trials of a published table, but cannot be read ({error}); restore it from git"
        ) from error


def reuse(plan: Plan, runs: Path, results: Path, *, over_failed: bool = False) -> int:
    """Put the finished trials of the published table of `plan` into the folder `runs`; return how many.

    Those that have a result there stay as they are, but failed ones with `over_failed`. Trials are told by their ids,
    which hold a hash of their config. Raises DataError where nothing was published, or the file is damaged;
    ConfigError where trials depend on others; StoreError where they were made from other weights. Then nothing is put.
    """
    taken = reusable(plan, runs, results, over_failed=over_failed)
    weights, remedy = BaseWeights(), "leave REUSE (--reuse) out"
    for planned, kept in taken:
        begun = kept.result["provenance"]["base_weights"]
        weights.refuse_others(planned.config, begun, what=f"the published {planned.trial}", remedy=remedy)
    source = trials_path(results / f"{plan.sweep.name}.csv")
    for planned, kept in taken:
        folder = runs / plan.sweep.name / planned.trial
        if folder.is_dir():
            # What a failed attempt has left, or one that was stopped.
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / SAMPLES).write_bytes(as_bytes({planned.trial: kept}))
        result = kept.result | {"reused": str(source)}
        write_atomic(folder / "provenance.json", json.dumps(result["provenance"], indent=1) + "\n")
        # Last, as a trial does: without it the trial is not finished.
        write_atomic(folder / "result.json", json.dumps(result, indent=1) + "\n")
    return len(taken)


def reusable(
    plan: Plan, runs: Path, results: Path, *, over_failed: bool = False
) -> list[tuple[PlannedTrial, KeptTrial]]:
    """Return the trials of `plan` that `reuse` would put into the folder `runs`, each with what is kept of it."""
    chooses = "a search" if plan.sweep.search else "halving" if any(a.halving for a in plan.sweep.arms.values()) else ""
    if chooses:
        raise ConfigError(
            f"sweep {plan.sweep.name} has {chooses}, which must see how every trial learned, and published trials do "
            "not say that; leave REUSE (--reuse) out"
        )
    source = trials_path(results / f"{plan.sweep.name}.csv")
    if not source.is_file():
        raise DataError(
            f"there are no published trials to reuse: {source} is missing; leave REUSE (--reuse) out, "
            f"or make it with `make publish SWEEP={plan.sweep.name}`"
        )
    kept = read_trials(source.read_bytes(), source=source)
    found: list[tuple[PlannedTrial, KeptTrial]] = []
    for planned in plan.trials:
        there, published = read_result(runs / plan.sweep.name / planned.trial), kept.get(planned.trial)
        is_open = there is None or (over_failed and there["status"] == Status.FAILED)
        if is_open and published is not None and published.result["status"] == Status.FINISHED:
            found.append((planned, published))
    return found
