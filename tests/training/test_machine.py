"""The precision that a machine computes fastest in: measured once, then kept."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_study.errors import ConfigError
from peft_study.models.config import PretrainedConfig
from peft_study.training import machine
from peft_study.training.config import TrainingConfig

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is measured")


@pytest.mark.parametrize(("speedup", "precision"), [(1.4, "bf16"), (0.7, "fp32")])
def test_the_faster_precision_is_taken_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speedup: float, precision: str
) -> None:
    monkeypatch.setattr(machine, "bf16_speedup", lambda: speedup)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    sweep = tmp_path / "sweep"
    assert machine.settled(TrainingConfig(), sweep, head_width=32, width=64).precision == precision
    # A later trial of the sweep computes as the first, even where it would measure otherwise.
    monkeypatch.setattr(machine, "bf16_speedup", lambda: 1 / speedup)
    assert machine.settled(TrainingConfig(), sweep, head_width=32, width=64).precision == precision
    assert {path.name for path in sweep.iterdir()} == {"precision.json", f"attention-{precision}-64-32.json"}


def test_what_was_begun_on_another_device_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / "attention-fp32-80-20.json"
    assert machine.settled(TrainingConfig(precision="fp32"), tmp_path, head_width=20, width=80).precision == "fp32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=rf"{kept} says .* on cpu, .* this is cuda; .* delete that file"):
        machine.settled(TrainingConfig(precision="fp32"), tmp_path, head_width=20, width=80)


def test_varlen_is_refused_where_it_cannot_compute() -> None:
    config = TrainingConfig(attention="varlen")
    machine.check_attention(config, torch.device("cpu"))
    with pytest.raises(ConfigError, match="varlen computes on a CPU, but this is cuda"):
        machine.check_attention(config, torch.device("cuda"))


def test_a_processor_without_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "bf16_speedup", lambda: pytest.fail("measured"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert machine.settled(TrainingConfig(), tmp_path, head_width=32, width=64).precision == "fp32"


@pytest.mark.parametrize(("precision", "attention"), [("fp32", "sdpa"), ("bf16", "eager")])
def test_what_is_asked_for_is_taken(tmp_path: Path, precision: str, attention: str) -> None:
    config = TrainingConfig.model_validate({"precision": precision, "attention": attention})
    assert machine.settled(config, tmp_path, head_width=32, width=64) == config
    assert not list(tmp_path.iterdir())
    half_open = config.model_copy(update={"precision": "auto"})
    assert machine.settled(half_open, tmp_path, head_width=32, width=64).attention == attention


@pytest.mark.usefixtures("kernel")
def test_what_was_chosen_for_others_does_not_take_the_place_of_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does what was asked take the place of a choice."""
    seconds = {"sdpa": 0.2, "eager": 0.3, "varlen": 0.1}
    monkeypatch.setattr(machine, "attention_seconds", lambda among, *_: {each: seconds[each] for each in among})
    monkeypatch.setattr(machine, "_choose_precision", lambda: {"precision": "bf16"})

    def chosen(head_width: int = 32, **asked: Any) -> tuple[str, str]:
        config = machine.settled(TrainingConfig(**asked), tmp_path, head_width=head_width, width=64)
        return config.precision, config.attention

    assert chosen(precision="fp32")[0] == "fp32"
    assert chosen(attention="sdpa") == ("bf16", "sdpa")
    fastest = chosen()[1]
    assert chosen(precision="fp32") == ("fp32", fastest)
    assert chosen(attention="eager") == ("bf16", "eager")
    # Heads that the kernel cannot have are computed otherwise, whoever came first.
    assert chosen(head_width=20) == ("bf16", "sdpa")
    assert chosen() == ("bf16", fastest)


def test_a_choice_is_kept_where_there_are_no_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(machine.os, "link", no_links)
    monkeypatch.setattr(machine, "_choose_precision", lambda: {"precision": "fp32"})
    config = TrainingConfig(attention="sdpa")
    assert machine.settled(config, tmp_path, head_width=32, width=64).precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["precision.json"]


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu.max")
    for text, cores in (("max 100000\n", 64), ("200000 100000\n", 2), ("150000 100000\n", 2), ("5000 100000\n", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert machine.usable_cores() == cores


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("fastest", ["sdpa", "eager", "varlen"])
def test_the_fastest_attention_is_taken_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fastest: str) -> None:
    seconds = {"sdpa": 0.2, "eager": 0.3, "varlen": 0.4, fastest: 0.1}
    monkeypatch.setattr(machine, "attention_seconds", lambda *_: seconds)
    config = TrainingConfig(precision="bf16")
    assert machine.settled(config, tmp_path, head_width=32, width=64) == config.model_copy(
        update={"attention": fastest}
    )
    assert json.loads((tmp_path / "attention-bf16-64-32.json").read_text())["attention_ms"][fastest] == 100
    monkeypatch.setattr(machine, "attention_seconds", lambda *_: pytest.fail("measured again"))
    assert machine.settled(config, tmp_path, head_width=32, width=64).attention == fastest


def test_without_the_kernel_attention_is_dense_and_the_reason_kept(tmp_path: Path) -> None:
    assert machine.settled(TrainingConfig(precision="fp32"), tmp_path, head_width=20, width=80).attention in (
        "sdpa",
        "eager",
    )
    kept = json.loads((tmp_path / "attention-fp32-80-20.json").read_text())
    assert "multiple of 16" in kept["why_not_varlen"]
    assert set(kept["attention_ms"]) == {"sdpa", "eager"}
    machine.settled(TrainingConfig(precision="fp32"), tmp_path, head_width=16, width=40)
    kept = json.loads((tmp_path / "attention-fp32-40-16.json").read_text())
    assert "width that is a multiple of 16, but it is 40" in kept["why_not_varlen"]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_attention_is_timed_forward_and_backward(dtype: torch.dtype) -> None:
    seconds = machine.attention_seconds(["sdpa", "eager", "varlen"], dtype, 32, rounds=2)
    assert set(seconds) == {"sdpa", "eager", "varlen"}
    assert all(1e-5 < value < 10 for value in seconds.values())


def test_bf16_speedup_is_a_ratio() -> None:
    """Far slower or faster than any processor would mean that the two were not timed alike."""
    assert 0.001 < machine.bf16_speedup(rounds=2) < 1000


@pytest.mark.usefixtures("headers")
@pytest.mark.parametrize(
    ("asked", "steps", "compiler", "expected"),
    [
        (True, 1, sys.executable, True),
        (False, 10_000, sys.executable, False),
        ("auto", machine.COMPILED_STEPS - 1, sys.executable, False),
        ("auto", machine.COMPILED_STEPS, sys.executable, True),
        ("auto", machine.COMPILED_STEPS, "/nowhere/g++", False),
    ],
)
def test_long_runs_are_compiled_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, asked: Any, steps: int, compiler: str, expected: bool
) -> None:
    monkeypatch.setenv("CXX", compiler)
    assert machine.is_compiled(TrainingConfig(compile=asked, attention="eager"), steps, torch.device("cpu")) is expected


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have headers of Python, wherever the tests run."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda _: str(tmp_path))


@pytest.mark.usefixtures("headers")
def test_compiling_that_is_asked_for_and_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainingConfig(compile=True, attention="eager")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler .*; install them, or set training.compile=auto"):
        machine.is_compiled(config, 1, torch.device("cpu"))
    monkeypatch.setenv("CC", "/nowhere/gcc")
    assert not machine.is_compiled(TrainingConfig(attention="sdpa"), 10_000, torch.device("cuda"))
    monkeypatch.setenv("CC", sys.executable)
    assert machine.is_compiled(TrainingConfig(attention="sdpa"), 10_000, torch.device("cuda"))
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda _: "/nowhere")
    assert not machine.is_compiled(TrainingConfig(attention="sdpa"), 10_000, torch.device("cuda"))


@pytest.mark.usefixtures("headers")
@pytest.mark.parametrize(("asked", "expected"), [("auto", False), (True, True)])
def test_what_kernels_compute_is_compiled_on_demand_only(
    monkeypatch: pytest.MonkeyPatch, asked: Any, expected: bool
) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    config = TrainingConfig(compile=asked, attention="varlen")
    assert machine.is_compiled(config, 10 * machine.COMPILED_STEPS, torch.device("cpu")) is expected


@pytest.mark.parametrize(("faster", "attention"), [("eager", "eager"), ("sdpa", "auto")])
def test_any_model_is_held_in_what_the_run_computes_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faster: str, attention: str
) -> None:
    """The precision is measured and decides the model's dtype; eager attention is taken only where it is faster."""
    monkeypatch.setattr(machine, "_choose_precision", lambda: {"precision": "bf16"})
    seconds = {"eager": 2.0, "sdpa": 2.0} | {faster: 1.0}
    monkeypatch.setattr(machine, "attention_seconds", lambda *_: seconds)
    training, pretrained = machine.settled_pretrained(TrainingConfig(), PretrainedConfig(name="x"), tmp_path)
    assert (training.precision, pretrained.dtype, pretrained.attention) == ("bf16", "bfloat16", attention)
    monkeypatch.delattr(machine, "attention_seconds")  # It is kept.
    again = machine.settled_pretrained(TrainingConfig(), PretrainedConfig(name="x"), tmp_path)
    assert again == (training, pretrained)


def test_what_is_asked_of_any_model_is_taken(tmp_path: Path) -> None:
    asked = PretrainedConfig(name="x", dtype="float32", attention="sdpa")
    training, pretrained = machine.settled_pretrained(TrainingConfig(), asked, tmp_path)
    assert (training.precision, pretrained) == ("fp32", asked)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"must be the same"):
        machine.settled_pretrained(TrainingConfig(precision="bf16"), asked, tmp_path)
    with pytest.raises(ConfigError, match=r"optimizer=muon is for the bases of the study, .*; set adamw"):
        machine.settled_pretrained(TrainingConfig(optimizer="muon"), asked, tmp_path)
    with pytest.raises(ConfigError, match=r"set pretrained.attention"):
        machine.settled_pretrained(TrainingConfig(attention="varlen"), asked, tmp_path)


def test_threads_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert machine.usual_threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.usual_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert machine.usual_threads() == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.usual_threads() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine.usual_threads() == 3
