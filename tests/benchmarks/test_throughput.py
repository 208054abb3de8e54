"""What `make bench` measures: the groups, and asking for what is not there."""

import pytest
import torch

from benchmarks import throughput
from benchmarks.training_sides import SHAPES, products, tokens_of
from peft_study.igsm.families import NANO
from peft_study.models.base import build_base


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [(["--only", "sewing"], "the groups are pretraining-nano"), (["--gpu"], "run make bench")],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        throughput.main(arguments)
    assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "millions"), [("nano", 1.2), ("10M", 10), ("124M", 124)])
def test_shapes_are_as_large_as_they_are_called(shape: str, millions: float) -> None:
    with torch.device("meta"):
        model = build_base(NANO, SHAPES[shape], 0)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1e6 * millions, rel=0.06)


def test_products_are_six_operations_a_weight_of_a_layer_and_token() -> None:
    model = build_base(NANO, SHAPES["nano"], 0)
    weights = sum(p.numel() for name, p in model.named_parameters() if "proj.weight" in name)
    assert products("nano", 3) == 6 * weights * tokens_of(3) == 6 * weights * 3 * NANO.max_tokens
