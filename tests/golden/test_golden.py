"""The documents that all results are made from, byte for byte."""

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent


def test_documents_are_those_on_file() -> None:
    spec = importlib.util.spec_from_file_location("golden_update", HERE / "update.py")
    assert spec is not None
    assert spec.loader is not None
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    expected = (HERE / "nano_documents.txt").read_bytes().decode()
    assert update.render() == expected, "if this change is meant: python tests/golden/update.py, and CHANGELOG.md"
