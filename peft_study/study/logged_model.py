"""What a trial has trained as one of MLflow's models, which MLflow alone can load and serve (served.py)."""

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.study.config import TrialConfig, flatten
from peft_study.study.mlflow_store import quiet

if TYPE_CHECKING:
    from mlflow import MlflowClient

SERVED_BY = ("mlflow", "torch", "transformers", "peft", "bitsandbytes")
"""Libraries that a logged model needs where it is loaded."""


def log_model(
    client: "MlflowClient",
    experiment_id: str,
    run_id: str,
    config: TrialConfig,
    result: Mapping[str, Any],
    trained: Path,
) -> None:
    """Put what a trial has left in the folder `trained` among MLflow's models, once."""
    with quiet():
        import mlflow.pyfunc

    assert config.pretrained is not None
    # A probe is no part of a model that others could load.
    if config.method.name == "probe":
        return
    # MLflow takes no such marks in a name, and rates have points.
    name = re.sub(r"[/:.%\"']", "_", result["trial"])
    for model in client.search_logged_models([experiment_id], f"name = '{name}'"):
        if (model.source_run_id, str(model.status)) == (run_id, "READY"):
            return
        # What a kill has left, or of a run that was deleted to be repeated.
        client.delete_logged_model(model.model_id)
    with TemporaryDirectory(dir=trained.parent) as folder, quiet():
        mlflow.pyfunc.save_model(
            f"{folder}/model",
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"trained": str(trained)},
            model_config=served_config(config, result, trained),
            pip_requirements=_requirements(config),
        )
        model = client.create_logged_model(
            experiment_id,
            name,
            source_run_id=run_id,
            tags={"base_model": config.pretrained.name, "skill": config.skill.name, "method": config.method.name},
            params={key: str(value) for key, value in flatten(config.method.model_dump()).items()},
            model_type="adapter" if config.method.name != "full" else "model",
        )
        client.log_model_artifacts(model.model_id, f"{folder}/model")
    client.finalize_logged_model(model.model_id, "READY")


def _requirements(config: TrialConfig) -> list[str]:
    """Return what must be installed where the model of a trial is loaded."""
    quantized = config.pretrained is not None and config.pretrained.quantization != "none"
    # What follows a + is a build, which no index has.
    return [f"{each}=={version(each).partition('+')[0]}" for each in SERVED_BY if quantized or each != "bitsandbytes"]


def served_config(config: TrialConfig, result: Mapping[str, Any], trained: Path) -> dict[str, Any]:
    """Return what `served.py` must know to load and run what a trial has trained."""
    assert config.pretrained is not None
    assert config.corpus is not None
    pretrained = config.pretrained
    return {
        "base": str(Path(pretrained.name).resolve()) if Path(pretrained.name).is_dir() else pretrained.name,
        "revision": pretrained.revision,
        "dtype": pretrained.dtype,
        "quantization": pretrained.quantization,
        "double_quantization": pretrained.double_quantization,
        "method": config.method.name,
        "skill": config.skill.name,
        "verdict_ids": result["verdict_ids"],
        "stop_ids": result["stop_ids"],
        "chat_template": config.corpus.chat_template is not False,
        "own_tokenizer": (trained / "tokenizer_config.json").is_file(),
        "max_new_tokens": (config.testing or NaturalEvaluationConfig()).max_new_tokens,
        "temperature": 0.0,
    }
