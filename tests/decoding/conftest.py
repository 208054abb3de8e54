"""Every test of generation runs with the kernel and with PyTorch alone."""

from typing import Any

import pytest

from peft_study.decoding import compiled
from peft_study.errors import KernelError


@pytest.fixture(autouse=True, params=["kernel", "torch"])
def decoder_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the decoders computed by the kernel, or by PyTorch as where there is no compiler."""
    if request.param == "kernel":
        request.getfixturevalue("kernel")
        return request.param

    def missing(*_: Any, **__: Any) -> None:
        raise KernelError("no compiler here")

    monkeypatch.setattr(compiled, "library", missing)
    return request.param
