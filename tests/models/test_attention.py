"""The attention kernel against masked-dense attention: the same outputs and gradients."""

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from peft_study import native
from peft_study.errors import KernelError
from peft_study.models.attention import additive_mask, first_seen, require_kernel, varlen_attention
from peft_study.native import library

END = 1
WINDOWS, HEADS = 3, 2


def _ids(length: int, documents: int, seed: int = 0) -> Tensor:
    ids = torch.full((WINDOWS, length), 9)
    generator = torch.Generator().manual_seed(seed)
    for row in ids:
        row[torch.randint(length, (documents,), generator=generator)] = END
    ids[:, 0] = END
    return ids


def _attend(kind: str, inputs: list[Tensor], first_BT: Tensor, slope: Tensor) -> list[Tensor]:
    """Return output [B, T, H, D] and the gradients of query, key and value [B, H, T, D]."""
    query, key, value = (each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs)
    scale = 0.3
    if kind == "varlen":
        output = varlen_attention(query, key, value, first_BT.int(), scale)
    else:
        mask = additive_mask(first_BT, torch.float32)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)
    output.backward(slope)
    gradients = [query.grad, key.grad, value.grad]
    assert all(gradient is not None for gradient in gradients)
    return [output.detach(), *gradients]  # pyright: ignore[reportReturnType]


LENGTHS = [(1, 0, 0), (7, 1, 3), (32, 0, 0), (61, 3, 0), (100, 5, 16), (256, 2, 0)]
"""Tokens of a window, documents that begin in it, and how far back a position sees (0: to the document's start)."""


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("length", "documents", "window"), LENGTHS)
def test_equals_masked_dense_attention(length: int, documents: int, window: int, width: int) -> None:
    torch.manual_seed(length)
    # As a model lays them out: positions before heads.
    inputs = [torch.randn(WINDOWS, length, HEADS, width).transpose(1, 2) for _ in range(3)]
    first_BT = first_seen(_ids(length, documents), END, window)
    slope = torch.randn(WINDOWS, length, HEADS, width)
    ours, dense = (_attend(kind, inputs, first_BT, slope) for kind in ("varlen", "dense"))
    for mine, expected in zip(ours, dense, strict=True):
        assert torch.allclose(mine, expected, atol=2e-5, rtol=2e-5), (mine - expected).abs().max()


@pytest.mark.usefixtures("kernel")
def test_inputs_may_lie_in_any_order() -> None:
    torch.manual_seed(0)
    plain = [torch.randn(WINDOWS, HEADS, 20, 16) for _ in range(3)]
    turned = [each.transpose(2, 3).contiguous().transpose(2, 3) for each in plain]
    first_BT, slope = first_seen(_ids(20, 2), END), torch.randn(WINDOWS, 20, HEADS, 16)
    for mine, expected in zip(
        _attend("varlen", turned, first_BT, slope), _attend("varlen", plain, first_BT, slope), strict=True
    ):
        assert torch.equal(mine, expected)


@pytest.mark.usefixtures("kernel")
def test_large_logits_do_not_overflow() -> None:
    inputs = [200 * torch.randn(1, 1, 40, 16, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    first_BT, slope = first_seen(torch.full((1, 40), 9), END), torch.ones(1, 40, 1, 16)
    ours, dense = (_attend(kind, inputs, first_BT, slope) for kind in ("varlen", "dense"))
    assert torch.allclose(ours[0], dense[0], rtol=1e-4, atol=1e-3)
    assert all(bool(torch.isfinite(each).all()) for each in ours)


@pytest.mark.usefixtures("kernel")
def test_half_precision_is_fp32_rounded_at_the_end() -> None:
    """Where no tiles are used: their depth is 32, and here a head has 16 values."""
    torch.manual_seed(16)
    halves = [torch.randn(WINDOWS, 61, HEADS, 16).transpose(1, 2).bfloat16() for _ in range(3)]
    first_BT, slope = first_seen(_ids(61, 3), END), torch.randn(WINDOWS, 61, HEADS, 16).bfloat16()
    found = _attend("varlen", halves, first_BT, slope)
    whole = _attend("varlen", [each.float() for each in halves], first_BT, slope.float())[0]
    assert torch.equal(found[0], whole.bfloat16())


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize(("length", "documents", "window"), LENGTHS)
def test_half_precision_equals_dense_attention_to_its_own_precision(
    length: int, documents: int, window: int, width: int
) -> None:
    torch.manual_seed(length)
    halves = [torch.randn(WINDOWS, length, HEADS, width).transpose(1, 2).bfloat16() for _ in range(3)]
    first_BT = first_seen(_ids(length, documents), END, window)
    slope = torch.randn(WINDOWS, length, HEADS, width).bfloat16()
    found = _attend("varlen", halves, first_BT, slope)
    wholes = _attend("dense", [each.float() for each in halves], first_BT, slope.float())
    # The backward pass reads the rounded output, as every flash attention in half precision does: hence the 0.05 where
    # a single position sees itself alone and the exact gradients are 0.
    for mine, expected in zip(found, wholes, strict=True):
        assert mine.dtype is torch.bfloat16
        assert (mine.float() - expected).norm() <= 0.008 * expected.norm() + 0.05


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_half_precision_does_not_hide_what_is_not_finite(value: float, width: int) -> None:
    query, key, values = (torch.ones(1, 1, 4, width).bfloat16() for _ in range(3))
    values[0, 0, 1, 3] = value
    output = varlen_attention(query, key, values, first_seen(torch.full((1, 4), 9), END).int(), 1.0)
    assert not torch.isfinite(output[0, 1:, 0, 3]).any()


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("kernel", "_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whose", ["PyTorch's", "its own"])
def test_results_do_not_depend_on_threads(whose: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if whose == "its own":
        monkeypatch.setattr(native, "_parallel", lambda: None)
    torch.manual_seed(0)
    inputs = [torch.randn(WINDOWS, HEADS, 50, 32, dtype=dtype) for _ in range(3)]
    first_BT, slope = first_seen(_ids(50, 3), END), torch.randn(WINDOWS, 50, HEADS, 32, dtype=dtype)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(_attend("varlen", inputs, first_BT, slope))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("kernel")
def test_compiled_equals_plain() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 24, 16, requires_grad=True) for _ in range(3))
    first_BT = first_seen(torch.full((2, 24), 9), END).int()

    def run(query: Tensor) -> Tensor:
        return (varlen_attention(query * 2, key, value, first_BT, 0.25) + 1).sum()

    plain = torch.autograd.grad(run(query), query)[0]
    compiled = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(query), query)[0]
    assert torch.allclose(plain, compiled, atol=1e-6)


def test_first_seen_by_hand() -> None:
    ids = torch.tensor([[7, 7, END, 7, 7, 7, END], [END, 7, 7, 7, 7, 7, 7]])
    assert first_seen(ids, END).tolist() == [[0, 0, 2, 2, 2, 2, 6], [0] * 7]
    assert first_seen(ids, END, 3).tolist() == [[0, 0, 2, 2, 2, 3, 6], [0, 0, 0, 1, 2, 3, 4]]


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No kernel compiled so far, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.usefixtures("kernel", "_fresh")
def test_the_kernel_is_compiled_once_and_kept(tmp_path: Path) -> None:
    require_kernel(16)
    [kept] = (tmp_path / "cache" / "peft_study").iterdir()
    written = kept.stat().st_mtime_ns
    library.cache_clear()
    require_kernel(16)
    assert [path.stat().st_mtime_ns for path in kept.parent.iterdir()] == [written]


@pytest.mark.usefixtures("kernel", "_fresh")
def test_threads_that_compile_a_kernel_at_once_all_get_it() -> None:
    found: list[int] = []
    starting = [threading.Thread(target=lambda: found.append(library("layers").rows_of_a_part())) for _ in range(3)]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    assert len(found) == 3


def _fake_compiler(folder: Path) -> Path:
    path = folder / "compiler"
    path.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such vector' >&2\nexit 1\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.usefixtures("_fresh")
def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="multiple of 16 for the kernel, but is 20"):
        require_kernel(20)
    monkeypatch.setenv("CXX", str(_fake_compiler(tmp_path)))
    with pytest.raises(KernelError, match=r"cannot compile .* no such vector"):
        require_kernel(16)
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    with pytest.raises(KernelError, match="nowhere"):
        require_kernel(16)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(KernelError, match="no C\\+\\+ compiler"):
        require_kernel(16)


@pytest.mark.usefixtures("kernel", "_fresh")
def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelError, match="cannot be compiled, written or loaded"):
        require_kernel(16)
