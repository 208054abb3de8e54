"""Weights shared out among processes: trained as in one, stopped and gone on with, and whole again after it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from peft_study.errors import ConfigError
from peft_study.models.config import PretrainedConfig
from peft_study.models.hub import load_pretrained
from peft_study.training.config import TrainingConfig
from peft_study.training.sharding import check_sharded
from tests.processes import run_together

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor
from peft_study.records import Stopped
from peft_study.study.config import build_config
from peft_study.study.texts import TextTrial

config, folder, kernels = build_config(json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
processes = int(os.environ["WORLD_SIZE"])
folder.mkdir(exist_ok=True)
shared, held = [], []

def run(stop=0):
    trial = TextTrial(config, kernels)
    def on_point(point):
        trained = trial.learner.trainable().values()
        shared.append(all(isinstance(p, DTensor) for p in trained))
        # Packed weights stay whole: what communicates them may change their bits.
        assert not any(isinstance(p, DTensor) for p in trial.learner.parameters() if not p.is_floating_point())
        held.append(sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in trained))
        if stop and point.tokens == stop * 4 * 128:
            raise Stopped
    try:
        summary = trial.train(trial.task(), folder, on_point)
    except Stopped:
        return run()
    return trial, summary

trial, summary = run(stop=2)
if int(os.environ["RANK"]) == 0:
    # Alone: it has a whole model again.
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        logits = trial.learner(ids, torch.ones_like(ids, dtype=torch.bool), verdict=False)
    trial.learner.save(folder / "saved")
    torch.save(logits, folder / "logits.pt")
    total = sum(float(p.double().abs().sum()) for p in trial.learner.trainable().values())
    (folder / "found.json").write_text(json.dumps([summary.losses, total, shared, held]))
"""


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of sums with solutions in steps."""
    file = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    sums = [(a, b) for a in range(2, 8) for b in range(2, 8)]
    rows = [{"question": f"{a} + {b}?", "solution": f"It is {a + b}.\n#### {a + b}"} for a, b in sums]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(processes: int, settings: dict[str, Any], folder: Path) -> tuple[list[float], float, list[bool], list[int]]:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    run_together(processes, script, json.dumps(settings), folder, folder.parent)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"method.name": "full", "training.micro_windows": 1},
        {"method.name": "lora", "method.rank": 4, "pretrained.quantization": "nf4"},
    ],
    ids=["full", "lora over nf4"],
)
def test_two_processes_that_share_a_model_train_as_one_does(
    checkpoint: Callable[[str], Path], problems: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {
        "pretrained.name": str(checkpoint("qwen2")),  # Its embeddings are tied.
        "pretrained.attention": "eager",
        "pretrained.shard": True,
        "corpus.name": str(problems),
        "corpus.window": 128,
        "corpus.validation_share": 0.2,
        "training.tokens": 4 * 4 * 128,
        "training.batch_windows": 4,
        "training.points": 2,
        "training.lr": 1e-2,
        "training.precision": "fp32",
        "testing.loss_windows": 2,
        **changes,
    }
    found = [run(processes, settings, tmp_path / str(processes)) for processes in (1, 2)]
    (losses, total, is_shared, held), (*others, are_shared, their_held) = found
    assert others == [pytest.approx(losses, rel=1e-4), pytest.approx(total, rel=1e-4)]
    assert losses[-1] < losses[0]
    # Where the loss was measured, embeddings are whole until the next step.
    assert (any(is_shared), are_shared[0]) == (False, True)
    assert their_held[0] == pytest.approx(held[0] / 2, rel=0.02)
    # What the first process has saved, alone, is what it computed with.
    saved = tmp_path / "2" / "saved"
    if changes["method.name"] == "full":
        plain = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    else:
        base = load_pretrained(PretrainedConfig(name=settings["pretrained.name"], quantization="nf4"))
        plain = PeftModel.from_pretrained(base, saved)
    with torch.no_grad():
        logits = plain(input_ids=torch.arange(1, 13)[None]).logits[0]
    kept = torch.load(tmp_path / "2" / "logits.pt", weights_only=True)
    assert torch.allclose(logits, kept, atol=1e-4)
    one, two = (torch.load(tmp_path / str(n) / "logits.pt", weights_only=True) for n in (1, 2))
    assert torch.allclose(one, two, atol=2e-3)


def test_what_needs_whole_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="muon needs whole matrices"):
        check_sharded(TrainingConfig(optimizer="muon"))
