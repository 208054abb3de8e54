"""The schedule, the masters and the optimisers."""

from typing import Any

import pytest
import torch
from torch import nn

from peft_study.training.config import TrainingConfig
from peft_study.training.muon import Muon, orthogonalized
from peft_study.training.optim import Masters, Optimizers, rate


def parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed_tokens.weight": (6, 4), "q_proj.weight": (4, 4), "norm.weight": (4,), "lm_head.weight": (6, 4)}
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def take(optimizers: Optimizers, values: dict[str, torch.Tensor], step: int, share: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for value in values.values():
        value.grad = torch.randn(value.shape, generator=generator)
    optimizers.step(share)


@pytest.mark.parametrize(
    ("total", "warmup", "cooldown", "expected"),
    [
        (4, 0.5, 0.5, [1 / 2, 1, 1, 1 / 2]),
        (5, 0.0, 0.4, [1, 1, 1, 1, 1 / 2]),  # no warm-up; two steps of cooling down
        (4, 0.25, 0.75, [1, 1, 2 / 3, 1 / 3]),
        (4, 0.0, 1.0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (3, 1.0, 1.0, [1 / 3, 2 / 3, 1 / 3]),  # where both lie over each other the lower counts
        (1, 0.05, 0.95, [1]),
    ],
)
def test_rate_by_hand(total: int, warmup: float, cooldown: float, expected: list[float]) -> None:
    assert [rate(step, total, warmup, cooldown) for step in range(total)] == pytest.approx(expected)


def test_masters_keep_updates_that_bf16_loses() -> None:
    """The last bit of a bf16 number near 1 is 2^-7; a hundred steps of 2^-10 are lost one by one."""
    lost = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(100):
        lost -= 2**-10
    assert float(lost) == 1.0
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    masters = Masters({"w": parameter})
    optimizer = torch.optim.SGD(masters.values.values(), lr=2**-10)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        masters.take_gradients()
        optimizer.step()
        masters.write()
    assert float(masters.values["w"].detach()) == pytest.approx(1 - 100 * 2**-10)
    assert float(parameter.detach()) == pytest.approx(1 - 100 * 2**-10, abs=2**-8)
    assert parameter.grad is None


def test_masters_take_zero_where_there_is_no_gradient() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in "ab"}
    masters = Masters(parameters)
    parameters["a"].grad = torch.tensor([1.0, 2.0])
    masters.take_gradients()
    gradients = [value.grad for value in masters.values.values()]
    assert [g.tolist() for g in gradients if g is not None] == [[1.0, 2.0], [0.0, 0.0]]


def test_passes_add_up_in_fp32() -> None:
    """In bf16 the small ones of many passes would be lost beside the sum."""
    parameters = {"a": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), "b": nn.Parameter(torch.ones(2))}
    masters = Masters(parameters)
    for number, gradient in enumerate([1.0] + [2**-9] * 64):
        parameters["a"].grad = torch.full((2,), gradient, dtype=torch.bfloat16)
        masters.take_gradients(add=number > 0)
    first, other = (value.grad for value in masters.values.values())
    assert first is not None
    assert other is not None
    assert first.tolist() == [1.125, 1.125]
    assert other.tolist() == [0.0, 0.0]


def test_muon_may_have_all() -> None:
    values = {"lora_A": torch.randn(2, 4).requires_grad_()}
    optimizers = Optimizers(values, TrainingConfig(optimizer="muon"), 1e-3)
    assert [type(part).__name__ for part in optimizers.parts] == ["Muon"]


def test_muon_is_for_the_matrices_of_the_layers_alone() -> None:
    values = parameters()
    muon = Optimizers(values, TrainingConfig(optimizer="muon"), 1e-3)
    members = [[id(p) for group in part.param_groups for p in group["params"]] for part in muon.parts]
    assert [type(part).__name__ for part in muon.parts] == ["Muon", "AdamW"]
    assert members[0] == [id(values["q_proj.weight"])]
    assert sorted(members[0] + members[1]) == sorted(map(id, values.values()))
    adamw = Optimizers(values, TrainingConfig(optimizer="adamw"), 1e-3)
    assert [type(part).__name__ for part in adamw.parts] == ["AdamW"]


def test_share_scales_every_rate() -> None:
    optimizers = Optimizers(parameters(), TrainingConfig(optimizer="muon", muon_lr=0.5), 0.25)
    take(optimizers, parameters(), 0, share=0.5)
    # Muon, AdamW for embeddings, AdamW for the gains of norms, which move at Muon's rate.
    assert [group["lr"] for part in optimizers.parts for group in part.param_groups] == [0.25, 0.125, 0.25]


def test_weight_decay_is_for_matrices_alone() -> None:
    values = parameters()
    before = {name: value.detach().clone() for name, value in values.items()}
    optimizers = Optimizers(values, TrainingConfig(weight_decay=0.1), 0.5)
    for value in values.values():
        value.grad = torch.zeros_like(value)
    optimizers.step(1.0)
    for name, value in values.items():
        factor = 1.0 if name == "norm.weight" else 1 - 0.5 * 0.1
        assert torch.allclose(value, before[name] * factor), name


def test_muon_steps_as_that_of_torch_does() -> None:
    """Which computes in bf16, matrix by matrix: the same steps to a hundredth."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 8), (24, 8), (8, 24)]
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    theirs = [value.clone() for value in ours]
    before = [value.clone() for value in ours]
    muon = Muon([{"params": ours}], 0.02, weight_decay=0.1)
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        muon.step()
        peer.step()
    for mine, other, start in zip(ours, theirs, before, strict=True):
        assert float((mine - other).norm() / (other - start).norm()) < 0.02


def test_muon_leaves_gradients_as_they_are() -> None:
    value = torch.eye(3).requires_grad_()
    value.grad = torch.ones(3, 3)
    Muon([{"params": [value]}], 0.1).step()
    assert torch.equal(value.grad, torch.ones(3, 3))


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4)])
def test_orthogonalized_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * 50
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3
    alone = torch.cat([orthogonalized(matrix[None]) for matrix in matrices])
    assert torch.allclose(orthogonalized(matrices), alone, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_round_trip_goes_on_bit_for_bit(optimizer: Any) -> None:
    config = TrainingConfig(optimizer=optimizer)
    straight_values = parameters()
    straight = Optimizers(straight_values, config, 1e-2)
    for step in range(3):
        take(straight, straight_values, step)
    values = {name: value.detach().clone().requires_grad_() for name, value in straight_values.items()}
    resumed = Optimizers(values, config, 1e-2)
    resumed.load_state({name: tensor.clone() for name, tensor in straight.state().items()})
    for step in range(3, 6):
        take(straight, straight_values, step)
        take(resumed, values, step)
    assert all(torch.equal(straight_values[name], values[name]) for name in values)


def test_one_step_of_adamw_by_hand() -> None:
    """The first step moves each value by the rate against the sign of its gradient."""
    value = torch.tensor([[1.0, -2.0]]).requires_grad_()
    optimizers = Optimizers({"w": value}, TrainingConfig(), 0.1)
    value.grad = torch.tensor([[3.0, -0.5]])
    optimizers.step(0.5)
    assert value.tolist() == [pytest.approx([0.95, -1.95], abs=1e-6)]
