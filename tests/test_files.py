from pathlib import Path

import pytest

from peft_study.files import write_atomic


def test_replaces_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, "a longer text")
    write_atomic(path, "short")
    assert path.read_text() == "short"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
