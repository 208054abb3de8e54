"""The config of a trial: the owners' configs composed, and the layers it is read from.

Three layers, in order: defaults (in the owners), YAML, dotted overrides (`method.rank=16`). An unknown key is an
error that names the nearest key.
"""

import difflib
import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from peft_study.corpora.config import CorpusConfig
from peft_study.errors import ConfigError
from peft_study.evaluation.config import EvaluationConfig, NaturalEvaluationConfig
from peft_study.models.config import BaseConfig, MethodConfig, PretrainedConfig
from peft_study.models.places import base_folder
from peft_study.skills.config import DataConfig, SkillConfig
from peft_study.training.config import TrainingConfig

Config = TypeVar("Config", bound=BaseModel)
CONFIG_FILE = "config.yaml"
"""Of a trial's folder: its config, resolved."""
TRAINED_METHODS = ("full", "lora", "probe")
"""Methods that train something, at a learning rate."""


class TrialConfig(BaseModel):
    """One trial: (base, skill, method, hyper-parameters, data, token budget, seed)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseConfig = BaseConfig()
    data: DataConfig = DataConfig()
    skill: SkillConfig = SkillConfig()
    method: MethodConfig = MethodConfig(name="none")
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = 0
    """Seed of the stream's order and of the adapter's initial values."""
    pretrained: PretrainedConfig | None = None
    """The model of a trial on real texts, in the place of `base`; None for a trial of the study itself."""
    corpus: CorpusConfig | None = None
    """What a trial on real texts reads."""
    testing: NaturalEvaluationConfig | None = None
    """What a trial on real texts is measured on, in the place of `evaluation`; None for the defaults."""

    @property
    def base_folder(self) -> Path:
        """Where the model lies that the trial starts from; its name where that is on the Hub."""
        return Path(self.pretrained.name) if self.pretrained else base_folder(self.base, self.data.family)

    @property
    def measuring(self) -> EvaluationConfig | NaturalEvaluationConfig:
        """How the trial is measured, and on which problems."""
        return self.evaluation if self.pretrained is None else self.testing or NaturalEvaluationConfig()

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A trial of the study keeps the name it has, whatever other trials are configured by.
        return {key: value for key, value in dump(self).items() if value is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> "TrialConfig":
        if (self.pretrained is None) != (self.corpus is None):
            given, lacking = ("pretrained", "corpus") if self.corpus is None else ("corpus", "pretrained")
            raise ValueError(f"{given} is set, so {lacking} must be too: set {lacking}.name, or leave both out")
        if self.testing is not None and self.pretrained is None:
            raise ValueError("testing is for real texts: set pretrained.name and corpus.name, or use evaluation")
        if self.pretrained is not None:
            return self
        if self.skill.name == "detection" and not self.data.retry_rate:
            raise ValueError("data.retry_rate must be above 0 for skill detection: without mistakes nothing is wrong")
        return self


def known_keys(model: type[BaseModel] = TrialConfig, prefix: str = "") -> list[str]:
    """Return every dotted key of the config, e.g. `method.rank`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        # Sections that may be left out are unions with None.
        kinds = (field.annotation, *get_args(field.annotation))
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        keys += [key for section in sections for key in known_keys(section, f"{prefix}{name}.")]
        if not sections:
            keys.append(prefix + name)
    return keys


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `tree` with dotted keys: {'a': {'b': 1}} gives {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def parse_override(text: str) -> tuple[str, Any]:
    """Return (dotted key, value) of `key=value`; the value is read as YAML."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"an override must look like key=value, but got {text!r}; e.g. method.rank=16")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        quoted = shlex.quote(f"{key.strip()}={json.dumps(value)}")
        raise ConfigError(
            f"an override's value is read as YAML, which {value!r} of {key.strip()} is not; as a text it is {quoted}"
        ) from None


def check_key(key: str, model: type[BaseModel] = TrialConfig) -> None:
    """Raise ConfigError, naming the nearest key, unless the dotted `key` exists in the config `model`."""
    keys = known_keys(model)
    if key in keys:
        return
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
    raise ConfigError(f"unknown config key {key!r}; the nearest known key is {nearest!r}")


def build_config(*layers: dict[str, Any]) -> TrialConfig:
    """Return the config of flat `layers` (dotted keys), later ones winning."""
    return build(TrialConfig, *layers)


def build(model: type[Config], *layers: dict[str, Any]) -> Config:
    """Return the config `model` of flat `layers` (dotted keys), later ones winning; ConfigError where one is wrong."""
    tree: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            check_key(key, model)
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        text = first["msg"].removeprefix("Value error, ")
        value = first["input"]
        shown = "" if isinstance(value, dict | BaseModel) else f", but got {value!r}"
        raise ConfigError(f"{where}: {text}{shown}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise ConfigError where it is missing, unreadable or no mapping."""
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        there = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.stem, there, n=1)
        nearest = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(
            f"no such file: {path}; there are {', '.join(there) or 'no YAML files there'}{nearest}"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, but holds {type(tree).__name__}")
    return tree


def overrides_layer(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the flat layer of `key=value` texts."""
    return dict(parse_override(text) for text in overrides)


def overrides_from(flat: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Return the `key=value` texts that make the dotted keys `flat` of those that are `usual`."""
    return [f"{key}={_override_value(value)}" for key, value in flat.items() if value != usual.get(key)]


def _override_value(value: Any) -> str:
    """Return what `parse_override` reads as `value`: a text as it is, unless YAML takes it for something else."""
    if isinstance(value, str):
        try:
            if yaml.safe_load(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value)


def config_hash(config: TrialConfig) -> str:
    """Return ten hex digits that name the resolved config."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
