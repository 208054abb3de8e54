"""The whole path with real trials: bases, sweep, MLflow, table, figure and report, twice."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.table import read_results
from peft_study.igsm.families import NANO
from peft_study.models.base import Architecture, build_base, save_base

ROOT = Path(__file__).parents[1]
TINY = Architecture(layers=2, width=32, heads=2, mlp_width=48, local_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep files and an untrained base pair, in which the smoke sweep has run."""
    place = tmp_path_factory.mktemp("smoke")
    shutil.copytree(ROOT / "sweeps", place / "sweeps")
    for seed, name in enumerate(("error-free", "retry")):
        save_base(build_base(NANO, TINY, seed), NANO, place / "checkpoints" / f"nano-{name}-seed0", {})
    assert sweep(place).returncode == 0
    return place


def sweep(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "peft_study", "sweep", "smoke", *options)
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "160"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done


def test_every_trial_is_in_the_table(folder: Path) -> None:
    frame = read_results(folder / "runs/smoke/results.csv")
    assert set(frame["status"]) == {"finished"}
    trials = frame[frame["seed"].notna()]
    assert len(set(trials["trial"])) == 5
    assert {"accuracy", "detect_auroc", "free_auroc", "loss"} <= set(trials["metric"])
    assert set(trials["tokens"]) == {8_192}


def test_both_skills_read_equal_tokens_and_lose_on_different_ones(folder: Path) -> None:
    results = [json.loads(path.read_text()) for path in (folder / "runs/smoke").glob("*/result.json")]
    with_loss = {r["arm"]: r["tokens_with_loss"] for r in results}
    assert with_loss["detection-lora"] == with_loss["probe"]
    assert 0 < with_loss["detection-lora"] < with_loss["correction-lora"] < 8_192


def test_figure_and_report_are_there_and_in_mlflow(folder: Path) -> None:
    names = {"headline.png", "headline.svg", "report.html", "report.md", "results.csv"}
    made = {path.name for path in (folder / "runs/smoke").iterdir()}
    assert names <= made
    assert names <= {path.name for path in (folder / "runs/mlartifacts").rglob("*")}
    with sqlite3.connect(folder / "runs/mlflow.db") as database:
        statuses = database.execute("SELECT status FROM runs").fetchall()
    assert statuses == [("FINISHED",)] * 6


def test_a_second_run_changes_nothing(folder: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = (path for path in (folder / "runs").rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    done = sweep(folder)
    assert done.returncode == 0
    assert state() == before


def test_a_missing_base_is_one_line_with_its_remedy(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    done = sweep(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no checkpoint in checkpoints/nano-")
    assert "make pretrain FAMILY=nano BASE=" in done.stderr
    assert len(done.stderr.splitlines()) == 1
