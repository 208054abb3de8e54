"""Where a result comes from."""

import subprocess
from pathlib import Path

import pytest

from peft_study.study import provenance as module
from peft_study.study.provenance import ROOT, provenance


def test_the_commit_is_the_packages_wherever_it_is_called_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    here = provenance()["commit"]
    assert len(here) == 40
    subprocess.run(("git", "init", "-q", str(tmp_path)), check=True)
    monkeypatch.chdir(tmp_path)
    assert provenance()["commit"] == here


def test_a_package_inside_of_another_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "theirs")
    for arguments in (("init", "-q"), commit):
        subprocess.run(("git", "-C", str(tmp_path), *arguments), check=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    assert (provenance()["commit"], provenance()["dirty"]) == (None, False)
