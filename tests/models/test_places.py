from pathlib import Path

from peft_study.models.config import BaseConfig
from peft_study.models.places import base_folder, fingerprint


def test_base_folder() -> None:
    assert base_folder(BaseConfig(name="retry", seed=2), "nano") == Path("checkpoints/nano-retry-seed2")
    assert base_folder(BaseConfig(path="elsewhere"), "nano") == Path("elsewhere")


def test_fingerprint_names_the_weights(tmp_path: Path) -> None:
    assert fingerprint(tmp_path) == ""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(tmp_path)
    assert len(first) == 10
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert fingerprint(tmp_path) != first
