"""What a trial has trained, for use elsewhere: its adapter, or a whole model with the adapter merged in."""

import shutil
from pathlib import Path

from peft_study.errors import CheckpointError, ConfigError
from peft_study.igsm.families import family_named
from peft_study.igsm.tokenizer import build_tokenizer
from peft_study.study.config import CONFIG_FILE
from peft_study.study.evaluate import open_checkpoint
from peft_study.study.texts import is_text_trial, open_trial
from peft_study.study.tracking import ADAPTER, CARD


def export_trial(folder: Path, target: Path, *, merged: bool) -> Path:
    """Write what the trial in `folder` has trained to `target`, which must be new or empty, and return that.

    Without `merged` that is the adapter in peft's format (of full fine-tuning the model), with its card; with it a
    plain model and its tokenizer, in the base's own precision. CheckpointError where there is no finished trial,
    ConfigError where `target` holds files.
    """
    if not (folder / CONFIG_FILE).is_file() or not (folder / ADAPTER).is_dir():
        raise CheckpointError(
            f"{folder} holds no trial that has trained something ({CONFIG_FILE} and {ADAPTER}/ must be there); give a "
            "folder under runs/<sweep>/ or runs/finetune/"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} must be new or an empty folder, but holds files; give another one")
    if not merged:
        return Path(shutil.copytree(folder / ADAPTER, target, dirs_exist_ok=True))
    if is_text_trial(folder):
        learner = open_trial(folder, as_stored=True).learner
        tokenizer = learner.tokenizer
    else:
        learner, config = open_checkpoint(folder)
        tokenizer = build_tokenizer(family_named(config.data.family))
    if learner.probe is not None:
        raise ConfigError(f"{folder} has trained a probe, which no model can hold; export it without --merged")
    model = learner.merged()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if (card := folder / ADAPTER / CARD).is_file():
        shutil.copyfile(card, target / CARD)
    return target
