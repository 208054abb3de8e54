"""Measure a saved checkpoint: a base, or what a trial has trained."""

from pathlib import Path
from typing import Any

from peft_study.errors import CheckpointError, ConfigError
from peft_study.evaluation.cells import Evaluator
from peft_study.evaluation.config import EvaluationConfig
from peft_study.igsm.families import family_named
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import PRETRAINING_FILE, load_base, load_model, read_pretraining
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.models.places import CHECKPOINTS
from peft_study.study.config import CONFIG_FILE, TRAINED_METHODS, TrialConfig, build_config, flatten, read_yaml
from peft_study.study.texts import is_text_trial, open_trial
from peft_study.study.trial import evaluate_learner
from peft_study.telling import OnPhase, unheard
from peft_study.training.machine import prepare_process, usual_threads


def open_checkpoint(folder: Path) -> tuple[Learner, TrialConfig]:
    """Return the learner in `folder` and the config it stands for."""
    trial = folder.parent if folder.name == "adapter" else folder
    if (trial / CONFIG_FILE).is_file():
        config = build_config(flatten(read_yaml(trial / CONFIG_FILE)))
        words = word_ids(family_named(config.data.family))
        saved = trial / "adapter" if config.method.name in TRAINED_METHODS else None
        base = load_base(config.base, config.data.family)
        return Learner(base, config.method, words, config.seed, saved=saved).eval(), config
    if not (folder / PRETRAINING_FILE).is_file():
        raise CheckpointError(
            f"{folder} is neither a base ({PRETRAINING_FILE} is missing) nor a trial ({CONFIG_FILE} is missing); "
            f"give a folder under {CHECKPOINTS}/ or under runs/<sweep>/"
        )
    made = read_pretraining(folder)["config"]
    layer = {"base.path": str(folder), "base.name": made["base"], "base.seed": made["seed"]}
    config = build_config({"data.family": made["family"], "data.retry_rate": made["retry_rate"], **layer})
    words = word_ids(family_named(made["family"]))
    return Learner(load_model(folder), MethodConfig(name="none"), words, 0).eval(), config


def _evaluate_texts(
    trial: Path, skill: str, op: int | None, split: str, n: int, seed: int, on_phase: OnPhase
) -> dict[str, dict[str, Any]]:
    if op is not None:
        raise ConfigError(f"op is for iGSM problems, but {trial} was trained on real texts; leave --op out")
    prepare_process(threads=usual_threads())
    opened = open_trial(trial, {"split": split, "n": n, "seed": seed})
    if (trained := opened.config.skill.name) != skill:
        raise ConfigError(f"{trial} was trained for {trained}; try --skill {trained}, or give another checkpoint")
    found = opened.measure(None, None, on_phase)
    named = {("" if m.set in ("id", "injected") else f"{m.set} ") + m.metric: m for m in found.measures}
    return {name: {"value": m.value, "low": m.low, "high": m.high, "n": m.n} for name, m in named.items()}


HEADLINE = 4
"""Operations of the problems that are measured where that is not said."""


def evaluate_checkpoint(
    folder: Path, skill: str, op: int | None, split: str, n: int, seed: int, on_phase: OnPhase = unheard
) -> dict[str, dict[str, Any]]:
    """Return metric name -> value, low, high, n of the checkpoint in `folder` on problems with `op` operations.

    Of a trial on real texts, on the problems of its corpus, which have no `op`.

    Detection names are `<set> <metric>` but for the `injected` set, which has the plain name. `detection` of a
    checkpoint without a trained detector measures its own [BACK] (`free_auroc`), and is an error where it has none.
    Of a retry base without its error-free one beside it, `own` and `won_by_retraction` are left out.
    """
    trial = folder.parent if folder.name == "adapter" else folder
    if is_text_trial(trial):
        return _evaluate_texts(trial, skill, op, split, n, seed, on_phase)
    prepare_process(threads=1)
    learner, config = open_checkpoint(folder)
    changed = {"evaluation": EvaluationConfig.model_validate({"split": split, "n": n, "seed": seed})}
    config = config.model_copy(update=changed)
    rate = config.data.retry_rate
    evaluator = Evaluator(config.evaluation, config.data, mistakes_rate=rate, op=op or HEADLINE, on_phase=on_phase)
    found = evaluate_learner(learner, config, evaluator, cache=None, may_be_alone=True)
    wanted = ("detect_", "free_") if skill == "detection" else ("",)
    measures = [m for m in found.measures if m.metric.startswith(wanted)]
    if skill == "correction":
        measures = [m for m in measures if not m.metric.startswith(("detect_", "free_", "own_"))]
    if not measures:
        trained = "correction" if skill == "detection" else "detection"
        raise ConfigError(f"{folder} was not trained for {skill}; try --skill {trained}, or give another checkpoint")
    named = {("" if m.set in ("id", "ood", "injected") else f"{m.set} ") + m.metric: m for m in measures}
    return {name: {"value": m.value, "low": m.low, "high": m.high, "n": m.n} for name, m in named.items()}
