"""Our forward pass against transformers and peft, which it must agree with: logits, losses and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_study.models import fused
from peft_study.models.adapters import read_linear
from peft_study.models.attention import first_seen
from peft_study.models.config import MethodConfig
from peft_study.models.fused import Attention, Projection, marked_places, seen_by, side_by_side
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.batches import batch_loss

MakeLearner = Callable[..., Learner]
TakeSteps = Callable[..., list[float]]
MasksOf = Callable[[Tensor, Learner], dict[str, Tensor]]
SkillOf = Callable[[MethodConfig], SkillConfig]


class Reference(nn.Module):
    """A learner whose forward pass is that of transformers and peft."""

    def __init__(self, learner: Learner, masks_of: MasksOf) -> None:
        super().__init__()
        self.learner, self.masks_of = learner, masks_of

    def forward(self, ids_BT: Tensor, where_BT: Tensor, *, verdict: bool) -> Tensor:
        learner = self.learner
        masks: Any = self.masks_of(ids_BT, learner)
        hidden = learner.model.model(input_ids=ids_BT, attention_mask=masks).last_hidden_state[where_BT]
        if verdict and learner.probe is not None:
            return learner.probe(hidden)
        logits = learner.model.lm_head(hidden)
        return logits[:, learner.verdict_ids] if verdict else logits


def loss_and_gradients(model: nn.Module, learner: Learner, batch: Any, skill: SkillConfig) -> dict[str, Tensor]:
    learner.zero_grad()
    torch.manual_seed(0)
    loss = batch_loss(model, batch)
    loss.backward()
    gradients = {name: p.grad for name, p in learner.trainable().items() if p.grad is not None}
    assert gradients.keys() == learner.trainable().keys()
    return {"loss": loss.detach(), **{name: gradient.clone() for name, gradient in gradients.items()}}


def agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float) -> None:
    for name, expected in theirs.items():
        far = (ours[name] - expected).abs().max()
        assert far <= rtol * expected.abs().max().clamp(min=1e-6), (name, float(far), float(expected.abs().max()))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("attention", ["varlen", "sdpa", "eager"])
def test_loss_and_gradients_are_those_of_transformers_and_peft(
    make_learner: MakeLearner,
    method: MethodConfig,
    take_steps: TakeSteps,
    skill_of: SkillOf,
    batches: dict[str, Any],
    masks_of_transformers: MasksOf,
    attention: Attention,
) -> None:
    learner, skill = make_learner(method).train(), skill_of(method)
    take_steps(learner, skill, steps=2)  # at the start half of all gradients of an adapter are 0
    learner.attention = attention
    names = ("correction", "detection") if method.name != "probe" else ("detection",)
    for name in names:
        of_skill = SkillConfig(name=name)  # pyright: ignore[reportArgumentType]
        ours = loss_and_gradients(learner, learner, batches[name], of_skill)
        theirs = loss_and_gradients(Reference(learner, masks_of_transformers), learner, batches[name], of_skill)
        agree(ours, theirs, 1e-4)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("attention", ["varlen", "sdpa"])
def test_windows_without_a_position_that_has_loss(
    make_learner: MakeLearner, method: MethodConfig, batches: dict[str, Any], attention: Attention
) -> None:
    learner = make_learner(method).train()
    learner.attention = attention
    batch = batches["detection"]
    nothing = batch._replace(where_BT=torch.zeros_like(batch.where_BT), answers_N=batch.answers_N[:0])
    found = loss_and_gradients(learner, learner, nothing, SkillConfig(name="detection"))
    assert all(not value.any() for value in found.values())


@pytest.mark.parametrize(("marked", "places"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_marked_places_are_a_multiple_of_64(marked: int, places: int) -> None:
    """A product is made anew for every number of rows; only the marked ones are kept of what comes out."""
    where = torch.zeros(2, 70, dtype=torch.bool)
    where[1, : min(marked, 64)] = True
    where[0, 69] = marked == 65
    found, count = marked_places(where)
    assert len(found) == places
    assert count == int(where.sum())
    assert found[:count].tolist() == where.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("rank", [1, 8, 32])
def test_gradients_at_low_and_high_rank(
    make_learner: MakeLearner,
    take_steps: TakeSteps,
    batches: dict[str, Any],
    masks_of_transformers: MasksOf,
    rank: int,
) -> None:
    """Both ways of making them: by the sides of the update, and by the gradient of the whole matrix."""
    learner, skill = make_learner(MethodConfig(name="lora", rank=rank)).train(), SkillConfig(name="correction")
    take_steps(learner, skill, steps=2)
    ours = loss_and_gradients(learner, learner, batches["correction"], skill)
    theirs = loss_and_gradients(Reference(learner, masks_of_transformers), learner, batches["correction"], skill)
    agree(ours, theirs, 1e-4)


def test_half_precision_keeps_the_update_apart(
    make_learner: MakeLearner, take_steps: TakeSteps, batches: dict[str, Any]
) -> None:
    learner, skill = make_learner(MethodConfig(name="lora", rank=4)), SkillConfig(name="correction")
    take_steps(learner, skill, steps=2)
    exact = loss_and_gradients(learner, learner, batches["correction"], skill)
    learner.bfloat16()
    half = loss_and_gradients(learner, learner, batches["correction"], skill)
    assert half["loss"] == pytest.approx(float(exact["loss"]), rel=0.02)
    # Base and inputs cancel; the update is less than half the last bit of the weights and would vanish in them.
    weight, down, up = torch.ones(8, 8), torch.tensor([[1.0, 0.0] * 4]), torch.full((8, 1), 0.002)
    assert torch.equal((weight + up @ down).bfloat16(), weight.bfloat16())
    parts = [each.bfloat16() for each in (weight, down, up)]
    x = torch.tensor([[1.0, -1.0] * 4]).bfloat16()
    found = Projection(parts[0], None, (parts[1],), parts[2].T, 0.0)(x, training=True)
    assert found.flatten().tolist() == pytest.approx([8e-3] * 8, 0.01)


def test_half_precision_merges_what_costs_more_beside(
    make_learner: MakeLearner,
    take_steps: TakeSteps,
    batches: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not fused._merges(torch.bfloat16, 21, torch.empty(128, 128))
    assert fused._merges(torch.bfloat16, 22, torch.empty(128, 128))
    assert fused._merges(torch.float32, 1, torch.empty(128, 128))
    learner, skill = make_learner(MethodConfig(name="lora", rank=32)), SkillConfig(name="correction")
    take_steps(learner, skill, steps=2)
    exact = loss_and_gradients(learner, learner, batches["correction"], skill)
    learner.bfloat16()
    merged = loss_and_gradients(learner, learner, batches["correction"], skill)
    monkeypatch.setattr(fused, "_merges", lambda *_: False)
    beside = loss_and_gradients(learner, learner, batches["correction"], skill)
    assert any(not torch.equal(merged[name], beside[name]) for name in exact), "both were computed in one way"

    def error(found: dict[str, Tensor]) -> float:
        return sum(float((found[name].float() - exact[name]).norm()) for name in exact if name != "loss")

    size = sum(float(exact[name].norm()) for name in exact if name != "loss")
    assert error(merged) < 0.05 * size
    assert error(merged) < 1.5 * error(beside)


@pytest.mark.parametrize("name", ["_Merged", "_Beside"])
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_adapted_layers_are_right(name: str, rank: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(rank)
    x, weight, bias, down, up = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((3, 4), (6, 4), (6,), (rank, 4), (rank, 6))
    )
    apply: Any = getattr(fused, name).apply
    inputs: Any = (x.requires_grad_(), weight, bias if biased else None, down.requires_grad_(), up.requires_grad_())
    expected = x @ weight.T + (bias if biased else 0) + (x @ down.T) @ up
    assert torch.allclose(apply(*inputs), expected, atol=1e-12)
    assert torch.autograd.gradcheck(apply, inputs)
    first_layer: Any = (x.detach(), *inputs[1:])  # whose input has no gradient
    assert torch.autograd.gradcheck(apply, first_layer)


def test_dropout_is_drawn_for_each_part_and_only_in_training(make_learner: MakeLearner) -> None:
    learner = make_learner(MethodConfig(name="lora", rank=2, dropout=0.5))
    attention: Any = learner.model.model.layers[0].self_attn
    modules = [attention.q_proj, attention.k_proj]
    with torch.no_grad():
        for module in modules:
            module.lora_A["default"].weight.copy_(modules[0].lora_A["default"].weight)
            module.lora_B["default"].weight.fill_(1.0)
    both = side_by_side([read_linear(module) for module in modules])
    assert both.dropout == 0.5
    x = torch.randn(64, both.weight_OI.shape[1])
    plain = torch.cat([module.base_layer(x) for module in modules], dim=-1)

    @torch.no_grad()
    def updates(*, training: bool) -> tuple[Tensor, ...]:
        return (both(x, training=training) - plain).chunk(2, dim=-1)

    query, key = updates(training=False)
    assert torch.allclose(query, key, atol=1e-5)
    assert torch.allclose(query, modules[0].eval()(x) - plain[:, : query.shape[1]], atol=1e-5)
    query, key = updates(training=True)
    assert not torch.allclose(query, key, atol=1e-2)
    draws = torch.stack([updates(training=True)[0] for _ in range(400)])
    off = ((draws.mean(0) - updates(training=False)[0]).abs() / (draws.std(0) / 20)).detach()
    assert float(off.max()) < 6  # standard errors: what is kept makes up for what is dropped


def test_a_part_without_adapter_is_left_alone(make_learner: MakeLearner) -> None:
    learner = make_learner(MethodConfig(name="lora", rank=2, targets="qv"))
    attention: Any = learner.model.model.layers[0].self_attn
    with torch.no_grad():
        attention.v_proj.lora_B["default"].weight.normal_()
    names = ("q_proj", "k_proj", "v_proj")
    projection = side_by_side([read_linear(getattr(attention, name)) for name in names])
    x = torch.randn(5, projection.weight_OI.shape[1])
    expected = torch.cat([getattr(attention, name)(x) for name in names], dim=-1)
    assert torch.allclose(projection(x, training=True), expected, atol=1e-5)


def test_what_is_seen_by_hand() -> None:
    ids = torch.tensor([[1, 7, 9, 1, 8]])
    first = {window: first_seen(ids, 1, window) for window in (0, 2)}
    kernel, masks = seen_by(first, "varlen", torch.float32), seen_by(first, "sdpa", torch.float32)
    assert kernel[0].tolist() == [[0, 0, 0, 3, 3]]
    assert kernel[2].tolist() == [[0, 0, 1, 3, 3]]
    assert all(each.dtype is torch.int32 for each in kernel.values())
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    near = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    for window, expected in ((0, seen), (2, near)):
        assert masks[window].shape == (1, 1, 5, 5)
        assert (masks[window][0, 0] == 0).int().tolist() == expected
        assert masks[window].min() == torch.finfo(torch.float32).min
