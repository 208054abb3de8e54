"""The state of a run in progress: whole or an error."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peft_study.errors import CheckpointError
from peft_study.training.checkpoint import FILE, load_state, save_state


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor(7), "rng": torch.get_rng_state()}
    meta = {"step": 3, "losses": [0.1 + 0.2, 1e-30], "seconds": 1.5}
    save_state(tmp_path / "new", tensors, meta)
    loaded = load_state(tmp_path / "new")
    assert loaded is not None
    assert loaded[1] == meta
    assert {name: tensor.tolist() for name, tensor in loaded[0].items()} == {k: t.tolist() for k, t in tensors.items()}
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE]


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "no folder") is None


def test_a_kill_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    save_state(tmp_path, {"a": torch.ones(2)}, {"step": 1})
    (tmp_path / f"{FILE}.tmp").write_bytes(b"half")
    loaded = load_state(tmp_path)
    assert loaded is not None
    assert loaded[1] == {"step": 1}
    save_state(tmp_path, {"a": torch.zeros(2)}, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("kept", [0, 5, -1])
def test_truncated_is_an_error(tmp_path: Path, kept: int) -> None:
    save_state(tmp_path, {"a": torch.ones(50)}, {"step": 1})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"is damaged .* delete {tmp_path} to start this run again"):
        load_state(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"meta": "{"}])
def test_foreign_is_an_error(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / FILE, metadata)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_state(tmp_path)


def test_meta_is_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_state(tmp_path, {}, {"step": torch.ones(1)})
    assert load_state(tmp_path) is None
