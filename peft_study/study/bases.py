"""Making a base: pretrain, measure, accept or not, and write checkpoint and card."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from peft_study.errors import CheckpointError, ConfigError, StoreError
from peft_study.evaluation.acceptance import acceptance, measure_base
from peft_study.evaluation.problems import draw_problems, solve_problems
from peft_study.files import write_atomic
from peft_study.igsm.families import family_named
from peft_study.models.base import PRETRAINING_FILE, Architecture, read_pretraining, save_base
from peft_study.models.config import BaseConfig
from peft_study.models.learner import Learner
from peft_study.models.places import base_folder
from peft_study.study.cards import base_card
from peft_study.study.config import flatten, overrides_from
from peft_study.study.provenance import provenance
from peft_study.telling import Teller
from peft_study.training.checkpoint import FILE as STATE
from peft_study.training.pretrain import PretrainConfig, pretrain

GENERATED = 64
"""Problems of each op that are solved at a point on the way."""


def make_base(config: PretrainConfig, runs: Path, teller: Teller, *, n: int = 1024) -> Path:
    """Pretrain and measure the base of `config`; return its folder under `checkpoints/`.

    Goes on from `runs/pretrain/...` where it was stopped; ConfigError where that was another config. A finished base is
    never overwritten: StoreError.
    """
    family = family_named(config.family)
    target = base_folder(BaseConfig(name=config.base, seed=config.seed), config.family)
    if (target / PRETRAINING_FILE).exists():
        raise StoreError(f"{target} holds a finished base; move it away to make it again")
    command = pretrain_command(config)
    config, before = _continued(config)
    work = runs / "pretrain" / target.name
    _begin(config, work)
    checks = {
        op: draw_problems(family, op, GENERATED, split="validation", seed=0)
        for op in (family.op_max, family.headline_op)
    }

    def generation_accuracy(learner: Learner) -> dict[str, float]:
        model = learner.copy_fp32()
        return {
            f"accuracy/op{op}": sum(attempt.strict.ok for attempt in solve_problems(model, documents, "pq")) / GENERATED
            for op, documents in checks.items()
        }

    learner, summary = pretrain(config, work, on_point=teller.point, generation_accuracy=generation_accuracy)
    learner.to(torch.device("cpu"))
    report = measure_base(learner.model, family, n=n, on_phase=teller.phase)
    record = {
        "command": command,
        "config": config.model_dump(mode="json"),
        "family": family.model_dump(mode="json"),
        "training": summary._asdict(),
        "measured": report,
        "continued_from": before,
        "acceptance": acceptance(report, family) if config.base == "error-free" else None,
        "provenance": {key: value for key, value in provenance().items() if key != "diff"},
        "curve": [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()],
    }
    write_base(learner, target, record)
    shutil.rmtree(work)
    return target


def _begin(config: PretrainConfig, work: Path) -> None:
    """Keep `config` in the folder `work`; ConfigError where what was begun there has another one."""
    path, asked = work / "config.json", config.model_dump(mode="json")
    # What was refused before its first checkpoint may be asked for otherwise.
    if path.is_file() and (work / STATE).exists():
        now, begun = flatten(asked), flatten(json.loads(path.read_text()))
        others = [
            f"{key}={begun.get(key)}, not {now.get(key)}" for key in begun | now if begun.get(key) != now.get(key)
        ]
        if others:
            raise ConfigError(
                f"{work} holds a base that was begun with {', '.join(others)}; ask for the same, or remove {work} to "
                "begin anew"
            )
    work.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asked, indent=1) + "\n")


def pretrain_command(config: PretrainConfig) -> str:
    """Return the command that makes the base of `config` with the code and the defaults of this commit."""
    chosen = {"family": config.family, "base": config.base, "seed": config.seed}
    usual = flatten(PretrainConfig.model_validate(chosen).model_dump())
    changed = overrides_from(flatten(config.model_dump()), usual)
    if not changed:
        return "make pretrain " + " ".join(f"{key.upper()}={value}" for key, value in chosen.items())
    options = " ".join(f"--{key} {value}" for key, value in chosen.items())
    return f"peft-study pretrain {shlex.join(changed)} {options}"


def _continued(config: PretrainConfig) -> tuple[PretrainConfig, dict[str, Any] | None]:
    """Return `config` with the shape of the base it starts from, and how that one was made; CheckpointError else."""
    if config.start is None:
        return config, None
    before = read_pretraining(Path(config.start))
    for key, value in (("family", config.family), ("base", config.base)):
        if before["config"][key] != value:
            raise CheckpointError(
                f"{config.start} is of {key} {before['config'][key]}, but {value} is asked for; "
                "start from a base of the same kind"
            )
    kept = ("command", "config", "training", "provenance", "measured", "continued_from")
    architecture = Architecture.model_validate(before["config"]["architecture"])
    shaped = config.model_copy(update={"architecture": architecture})
    return shaped, {key: before[key] for key in kept if key in before}


def write_base(learner: Learner, target: Path, record: dict[str, Any]) -> None:
    """Write weights, tokenizer, record and card; the record comes last, so a folder that has it is whole."""
    family = family_named(record["config"]["family"])
    (target / PRETRAINING_FILE).unlink(missing_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    (target / "README.md").write_text(base_card(record))
    save_base(learner.model, family, target, record)
