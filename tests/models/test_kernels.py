"""The kernels between a layer's products against the formulas that they stand for: values and every gradient."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_study import native
from peft_study.models import kernels
from peft_study.models.fused import Formulas

EPS = 1e-5
HEADS, WIDTH = 3, 16
TURN = torch.rand(20, WIDTH, generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
"""Stands for cosine and sine, which halves of a head need not share."""
FIRST = torch.tensor([[0] * 7 + [7] * 13, [0] * 20], dtype=torch.int32)

pytestmark = pytest.mark.usefixtures("kernel")


def _norm(do: Any, x: Tensor, weight: Tensor) -> Any:
    return do.norm(x, weight, EPS)


def _add_norm(do: Any, x: Tensor, update: Tensor, weight: Tensor) -> Any:
    return do.add_norm(x, update, weight, EPS)


def _attention(do: Any, qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Any:
    dtype = qkv.dtype
    return do.self_attention(qkv, q_norm, k_norm, FIRST, (TURN.to(dtype), TURN.flip(0).to(dtype)), EPS)


def _gated(do: Any, both: Tensor) -> Any:
    return do.gated(both)


CASES = {
    "norm": (_norm, [(2, 70, 48), (48,)]),
    "add_norm": (_add_norm, [(2, 70, 48), (2, 70, 48), (48,)]),
    "self_attention": (_attention, [(2, 20, 3, HEADS, WIDTH), (WIDTH,), (WIDTH,)]),
    "gated": (_gated, [(2, 70, 64)]),
    "gated, no whole vectors": (_gated, [(3, 5, 2 * 21)]),
}


def _inputs(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).mul(1.5).to(dtype).requires_grad_() for shape in shapes]


def _run(op: Callable[..., Any], do: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Return what `op` gives, and the gradients of its inputs where all that it gives is used."""
    found = op(do, *inputs)
    outputs = list(found) if isinstance(found, tuple) else [found]
    generator = torch.Generator().manual_seed(2)
    slopes = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, slopes)]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formulas(name: str) -> None:
    op, shapes = CASES[name]
    inputs = _inputs(shapes, torch.float32)
    ours, theirs = _run(op, kernels, inputs), _run(op, Formulas("varlen"), inputs)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-5, atol=2e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_fp32(name: str) -> None:
    """So it is about as near to fp32 as what rounds its outputs alone; attention rounds what it reads too."""
    op, shapes = CASES[name]
    halves = _inputs(shapes, torch.bfloat16)
    ours = _run(op, kernels, halves)
    exact = _run(op, Formulas("varlen"), [each.detach().float().requires_grad_() for each in halves])
    for mine, expected in zip(ours, exact, strict=True):
        assert mine.dtype is torch.bfloat16
        assert (mine.float() - expected).norm() <= (0.02 if op is _attention else 0.004) * expected.norm()


@pytest.mark.parametrize("name", CASES)
def test_inputs_may_lie_anywhere(name: str) -> None:
    op, shapes = CASES[name]
    inputs = _inputs(shapes, torch.float32)
    spread = [torch.stack((each, each), dim=-1)[..., 0].detach().requires_grad_() for each in inputs]
    assert not spread[0].is_contiguous()
    ours, theirs = _run(op, kernels, spread), _run(op, kernels, inputs)
    assert all(torch.equal(mine, expected) for mine, expected in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_of_any_size(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 90.0, 200.0]).to(dtype)
    both = torch.cat((gate, torch.ones_like(gate))).requires_grad_()
    ours = _run(_gated, kernels, [both])
    theirs = _run(_gated, Formulas("varlen"), [both.detach().double().requires_grad_()])
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.double(), expected, rtol=1e-5 if dtype is torch.float32 else 0.008, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(name: str, value: float) -> None:
    op, shapes = CASES[name]
    for dtype in (torch.float32, torch.bfloat16):
        inputs = _inputs(shapes, dtype)
        with torch.no_grad():
            inputs[0].view(-1)[0] = value
        found = _run(op, kernels, inputs)
        assert any(not torch.isfinite(each).all() for each in found)


def test_an_update_of_another_shape_or_type_is_not_read() -> None:
    x, weight = torch.randn(4, 48), torch.ones(48)
    for update in (torch.randn(2, 48), torch.randn(4, 48).bfloat16()):
        with pytest.raises(AssertionError):
            kernels.add_norm(x, update, weight, EPS)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whose", ["PyTorch's", "its own"])
@pytest.mark.parametrize("name", CASES)
def test_results_do_not_depend_on_threads(
    name: str, whose: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whose == "its own":
        monkeypatch.setattr(native, "_parallel", lambda: None)
    op, shapes = CASES[name]
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(_run(op, kernels, _inputs(shapes, dtype)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_weights_that_are_not_trained_have_no_gradient() -> None:
    x, weight = _inputs(CASES["norm"][1], torch.float32)
    output = kernels.norm(x, weight.detach(), EPS)
    (slope,) = torch.autograd.grad(output.sum(), x)
    (expected,) = torch.autograd.grad(Formulas.norm(x, weight.detach(), EPS).sum(), x)
    assert torch.allclose(slope, expected, atol=1e-5)
