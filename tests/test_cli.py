"""The command line: what it prints, and its exit codes."""

import importlib.util
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from peft_study import __version__, cli
from peft_study.study import sweep as sweep_module

ROOT = Path(__file__).parents[1]
SWEEP: dict[str, Any] = {
    "question": "Does the command line work?",
    "first_look": True,
    "trial": {"training": {"tokens": 1_200, "lr": 0.001}, "evaluation": {"n": 16}},
    "arms": {
        "control": {"trial": {"data": {"retry_rate": 0}, "method": {"name": "full"}}},
        "upper": {"trial": {"base": {"name": "retry"}, "method": {"name": "full"}}},
        "correction-lora": {"trial": {"method": {"name": "lora"}}, "grid": {"method.rank": [1, 4]}},
        "detection-full": {"trial": {"skill": {"name": "detection"}, "method": {"name": "full"}}},
    },
    "gap": {"correction": {"lower": "control", "upper": "upper"}},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEFT_STUDY_RUNS", raising=False)


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Return a sweep file."""
    path = tmp_path / "made_up.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return path


@pytest.fixture
def fake_trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a fake trial in place of training and return it."""
    path = Path(__file__).with_name("study") / "fake_sweep.py"
    spec = importlib.util.spec_from_file_location("fake_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fake_sweep", module)
    spec.loader.exec_module(module)
    trial = module.FakeTrial()
    monkeypatch.setattr(sweep_module, "train_trial", trial)
    return trial


def call(*arguments: object) -> Any:
    """Return what the command line does with `arguments`: exit_code, stdout, stderr."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "",
        "data",
        "data show",
        "data sample",
        "data verify",
        "data build",
        "pretrain",
        "finetune",
        "evaluate",
        "sweep",
        "report",
        "publish",
        "ui",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert len(result.stdout.split()) > 20


def test_version() -> None:
    assert call("--version").stdout.strip() == __version__


def test_a_sweep_ends_in_table_figure_and_report(made_up: Path, fake_trial: Any) -> None:
    first = call("sweep", made_up, "--workers", 0)
    assert first.exit_code == 0, first.output
    assert len(fake_trial.ran) == 5
    assert "gap closed" in first.stdout
    assert "First look" in first.stdout
    runs = Path("runs")
    for name in ("results.csv", "report.html", "report.md", "headline.png"):
        assert (runs / "made_up" / name).stat().st_size > 0
        assert len(list((runs / "mlartifacts").glob(f"*/artifacts/{name}"))) == 1

    before = contents(runs)
    again = call("sweep", made_up, "--workers", 0)
    assert (again.exit_code, len(fake_trial.ran)) == (0, 5)
    assert contents(runs) == before
    assert again.stdout.splitlines()[-3:] == first.stdout.splitlines()[-3:]

    (runs / "made_up" / "report.html").unlink()
    assert call("report", "made_up").exit_code == 0
    assert contents(runs) == before

    assert call("publish", "made_up").exit_code == 0
    assert Path("results/made_up.csv").read_bytes() == before["made_up/results.csv"]


def test_a_failed_trial_is_exit_code_1_with_its_reason(made_up: Path, fake_trial: Any) -> None:
    fake_trial.failing = ("upper",)
    failed = call("sweep", made_up, "--workers", 0)
    assert failed.exit_code == 1
    assert "failed: upper-s0-b0" in failed.stderr
    assert "loss is nan" in failed.stderr
    assert "--retry-failed" in failed.stderr
    fake_trial.failing = ()
    assert call("sweep", made_up, "--workers", 0).exit_code == 1
    assert call("sweep", made_up, "--workers", 0, "--retry-failed").exit_code == 0
    assert len(fake_trial.ran) == 6


def test_a_stop_says_how_to_go_on(made_up: Path, fake_trial: Any) -> None:
    def stop(trial: str, step: int) -> None:
        raise KeyboardInterrupt

    fake_trial.at_step = stop
    stopped = call("sweep", made_up, "--workers", 0)
    assert (stopped.exit_code, stopped.stderr) == (130, "stopped; the same command goes on from here\n")


def test_plan_prints_and_touches_nothing(made_up: Path) -> None:
    result = call("sweep", made_up, "training.tokens=2400", "--plan")
    assert result.exit_code == 0
    assert "2,400" in result.stdout
    assert "5 trials, 0 done" in result.stdout
    assert "side by side" not in call("sweep", made_up, "--plan", "--workers", 1).stdout
    assert "with 3 side by side" in call("sweep", made_up, "--plan", "--workers", 3).stdout
    assert not Path("runs").exists()


def test_plan_of_a_sweep_without_tuned_rates_is_printed_with_the_alarm(made_up: Path) -> None:
    made_up.write_text(yaml.safe_dump({**SWEEP, "trial": {"data": {"family": "mini"}}}))
    result = call("sweep", made_up, "--plan")
    assert result.exit_code == 0
    assert "(1) " in result.stdout
    refused = call("sweep", made_up)
    assert refused.exit_code == 2
    assert "no tuned learning rate" in refused.stderr
    assert not Path("runs").exists()


FAULTS = {
    "unknown key": (["sweep", "smoke", "method.rnk=2"], "nearest known key is 'method.rank'"),
    "unknown sweep": (["sweep", "smok"], "; the nearest is smoke"),
    "no sweep": (["sweep", "base"], "has no arms"),
    "impossible value": (["finetune", "method.name=lora"], "method.rank must be at least 1"),
    "unknown family": (["data", "show", "--family", "nan"], "family must be one of nano"),
    "impossible rate": (["data", "show", "--retry-rate", "1"], "retry_rate must be in [0, 1)"),
    "missing checkpoint": (["evaluate", "nowhere"], "nowhere"),
    "missing base": (["finetune", "base.seed=77"], "make pretrain"),
    "no runs to show": (["ui"], "make sweep"),
    "no runs to report": (["report", "quick"], "sweep"),
    "nothing to publish": (["publish", "quick"], "no runs are stored in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_user_can_put_right_is_one_line_and_exit_code_2(fault: str) -> None:
    arguments, text = FAULTS[fault]
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert text in result.stderr


def test_a_foreign_database_is_refused_and_unharmed(made_up: Path, tmp_path: Path) -> None:
    Path("elsewhere").mkdir()
    connection = sqlite3.connect("elsewhere/mlflow.db")
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = contents(tmp_path)
    result = call("sweep", made_up, "--runs", "elsewhere")
    assert result.exit_code == 2
    assert "mlflow.db must be the database of MLflow, but belongs to something else (tables: songs)" in result.stderr
    assert contents(tmp_path) == before


def test_data_show_marks_mistakes_and_what_has_no_loss() -> None:
    result = call("data", "show", "-n", 6, "--retry-rate", 0.5, "--op", 3)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert text.count("{Define") == text.count("as} [BACK].") > 0
    assert text.count("[ANSWER]") == 6
    clean = call("data", "show", "-n", 6, "--retry-rate", 0, "--op", 3).stdout
    assert "{" not in clean
    assert "[BACK]" not in clean


def test_the_module_is_a_program_that_runs_anywhere(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "peft_study", "sweep", "smoke", "--plan"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "sweep smoke" in ended.stdout
