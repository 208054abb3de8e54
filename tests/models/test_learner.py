"""The contract of every method: what it starts from, what it trains, what it saves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from peft_study.igsm.families import NANO
from peft_study.igsm.text import BACK, RIGHT, WRONG
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base
from peft_study.models.config import MethodConfig
from peft_study.models.learner import Learner
from peft_study.skills.config import SkillConfig
from peft_study.training.batches import batch_loss

MakeLearner = Callable[..., Learner]
MasksOf = Callable[[torch.Tensor, Learner], dict[str, torch.Tensor]]
TakeSteps = Callable[..., list[float]]
SkillOf = Callable[[MethodConfig], SkillConfig]


@torch.no_grad()
def everywhere(learner: Learner, batch: Any) -> torch.Tensor:
    """Return the logits over the vocabulary at every position."""
    return learner.eval()(batch.ids_BT, torch.ones_like(batch.ids_BT, dtype=torch.bool), verdict=False)


def num_trained(method: MethodConfig, shape: Architecture) -> int:
    """Return how many values a method trains, worked out from the shape of the model."""
    words, width, wide, rank = len(word_ids(NANO)), shape.width, shape.mlp_width, method.rank
    if method.name == "full":
        head = width // shape.heads
        layer = 4 * width * width + 3 * width * wide + (4 + 2) * width + 2 * head
        return 2 * words * width + width + shape.layers * layer
    if method.name == "probe":
        return 2 * width + 2 + rank * (words + width)
    square, tall = rank * (width + width), rank * (width + wide)
    layer = {"qv": 2 * square, "attention": 4 * square, "mlp": 3 * tall, "all-linear": 4 * square + 3 * tall}
    rows = {"none": 0, "rows": 2 * 3 * width, "lora_2r": 3 * width + 2 * rank * (words + width)}
    return shape.layers * layer[method.targets] + rows[method.embeddings]


def test_starts_equal_to_the_base(make_learner: MakeLearner, method: MethodConfig, batches: dict[str, Any]) -> None:
    base, learner = make_learner(), make_learner(method)
    batch = batches["detection"]
    assert torch.equal(everywhere(learner, batch), everywhere(base, batch))
    with torch.no_grad():
        verdicts = learner(batch.ids_BT, batch.where_BT, verdict=True)
        expected = everywhere(base, batch)[batch.where_BT.flatten()][:, base.verdict_ids]
    # Two rows of the output embedding are another product than all of them: equal but for rounding.
    assert torch.allclose(verdicts, torch.zeros_like(expected) if method.name == "probe" else expected, atol=1e-6)


def test_number_of_trained_values(make_learner: MakeLearner, method: MethodConfig, tiny: Architecture) -> None:
    learner = make_learner(method)
    assert learner.num_trainable() == num_trained(method, tiny)


def test_all_and_only_what_is_meant_trains(
    make_learner: MakeLearner, method: MethodConfig, take_steps: TakeSteps, skill_of: SkillOf
) -> None:
    learner = make_learner(method)
    before = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    take_steps(learner, skill_of(method), steps=3)  # what is multiplied by zeros moves when these have moved
    trained = learner.trainable()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        assert torch.equal(parameter, before[name]) == (name not in trained), name
    names = "\n".join(trained)
    assert ("lora_A" in names) == (method.name == "lora")
    assert ("lora_embedding_A" in names) == (
        method.embeddings == "lora_2r" or (method.name == "probe" and method.rank > 0)
    )
    assert ("embed_tokens.token_adapter" in names) == (method.name == "lora" and method.embeddings == "rows")
    assert ("lm_head.token_adapter" in names) == (method.name == "lora" and method.embeddings != "none")


def test_only_the_rows_of_the_reserved_tokens_move(
    make_learner: MakeLearner, take_steps: TakeSteps, skill_of: SkillOf
) -> None:
    method = MethodConfig(name="lora", rank=2, embeddings="rows")
    base, learner = make_learner(), make_learner(method)
    for skill in ("correction", "detection"):
        take_steps(learner, SkillConfig(name=skill), steps=2)
    merged, ids = learner.merged(), word_ids(NANO)
    for table, moved in (
        ("get_input_embeddings", {BACK}),  # [RIGHT] and [WRONG] never enter the input
        ("get_output_embeddings", {BACK, RIGHT, WRONG}),
    ):
        old, new = (getattr(model, table)().weight for model in (base.model, merged))
        rows = (old != new).any(dim=1).nonzero()[:, 0].tolist()
        assert rows == sorted(ids[word] for word in moved)


def test_loss_falls_on_one_batch(
    make_learner: MakeLearner, method: MethodConfig, take_steps: TakeSteps, skill_of: SkillOf
) -> None:
    losses = take_steps(make_learner(method), skill_of(method), steps=6)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-4


@pytest.mark.parametrize("name", ["full", "lora"])
def test_both_methods_of_both_skills_can_detect(make_learner: MakeLearner, take_steps: TakeSteps, name: str) -> None:
    learner = make_learner(MethodConfig.model_validate({"name": name, "rank": 2}))
    losses = take_steps(learner, SkillConfig(name="detection"), steps=6)
    assert losses == sorted(losses, reverse=True)


def test_merged_model_is_the_adapted_one(
    make_learner: MakeLearner, method: MethodConfig, take_steps: TakeSteps, skill_of: SkillOf, batches: dict[str, Any]
) -> None:
    learner, base = make_learner(method), make_learner()
    take_steps(learner, skill_of(method))
    batch = batches["correction"]
    expected = everywhere(learner, batch)
    merged = learner.merged()
    plain = Learner(merged, MethodConfig(name="none"), word_ids(NANO), 0)
    if method.name == "lora" or method.rank:
        assert merged is not learner.model
    assert set(merged.state_dict()) == set(base.model.state_dict())
    assert torch.allclose(everywhere(plain, batch), expected, atol=1e-5)
    assert not torch.allclose(everywhere(base, batch), expected, atol=1e-3) or method == MethodConfig(name="probe")
    assert torch.equal(everywhere(learner, batch), expected)  # merging left it as it was


def test_a_detector_is_a_plain_model_with_the_outputs_of_the_verdict(
    make_learner: MakeLearner,
    method: MethodConfig,
    take_steps: TakeSteps,
    skill_of: SkillOf,
    batches: dict[str, Any],
    masks_of_transformers: MasksOf,
) -> None:
    learner = make_learner(method)
    learner.model.config.use_cache = False
    take_steps(learner, skill_of(method))
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    ids = batches["correction"].ids_BT
    detector: Any = learner.detector()
    with torch.no_grad():
        expected = learner.eval()(ids, torch.ones_like(ids, dtype=torch.bool), verdict=True)
        found = detector(input_ids=ids, attention_mask=masks_of_transformers(ids, learner)).logits
        assert found.shape == (*ids.shape, 2)
        assert torch.allclose(found.flatten(0, 1), expected, atol=1e-5)
        detector.lm_head.weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_saved_and_loaded_by_strangers(
    make_learner: MakeLearner,
    method: MethodConfig,
    take_steps: TakeSteps,
    skill_of: SkillOf,
    batches: dict[str, Any],
    masks_of_transformers: MasksOf,
    tmp_path: Path,
) -> None:
    """What is saved works in plain transformers and peft, which know nothing of us."""
    learner = make_learner(method)
    learner.model.config.use_cache = False
    make_learner().model.save_pretrained(tmp_path / "base")
    take_steps(learner, skill_of(method))
    learner.save(tmp_path / "saved")
    ids = batches["detection"].ids_BT
    mask = masks_of_transformers(ids, learner)
    model: Any = Qwen3ForCausalLM.from_pretrained(tmp_path / ("saved" if method.name == "full" else "base"))
    if method.name == "lora" or method.rank:
        model = PeftModel.from_pretrained(model, tmp_path / "saved")
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert torch.allclose(output.logits.flatten(0, 1), everywhere(learner, batches["detection"]), atol=1e-6)
    if method.name == "probe":
        head = load_file(tmp_path / "saved" / "probe.safetensors")
        where = batches["detection"].where_BT
        found = functional.linear(output.hidden_states[-1][where], head["weight"], head["bias"])
        with torch.no_grad():
            assert torch.allclose(found, learner(ids, where, verdict=True), atol=1e-6)


def test_saved_and_loaded_by_us(
    make_learner: MakeLearner,
    method: MethodConfig,
    take_steps: TakeSteps,
    skill_of: SkillOf,
    batches: dict[str, Any],
    tiny: Architecture,
    tmp_path: Path,
) -> None:
    learner, skill = make_learner(method), skill_of(method)
    take_steps(learner, skill)
    learner.save(tmp_path)
    loaded = Learner(build_base(NANO, tiny, 0), method, word_ids(NANO), 5, saved=tmp_path)
    with torch.no_grad():
        expected, got = (batch_loss(each.eval(), batches[skill.name]) for each in (learner, loaded))
    assert float(got) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", ["lora", "probe"])
def test_adapter_seed_decides_the_initial_values(make_learner: MakeLearner, name: str) -> None:
    method = MethodConfig.model_validate({"name": name, "rank": 2})
    torch.manual_seed(0)
    first = make_learner(method, seed=1).trainable()
    torch.manual_seed(1)
    same, other = make_learner(method, seed=1).trainable(), make_learner(method, seed=2).trainable()
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_making_a_learner_does_not_touch_the_global_generator(make_learner: MakeLearner) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_learner(MethodConfig(name="lora", rank=2))
    make_learner(MethodConfig(name="probe", rank=2))
    assert torch.equal(torch.rand(3), expected)


def test_a_document_sees_itself_alone(make_learner: MakeLearner) -> None:
    """Documents packed into a window do not disturb each other, and rotary positions are relative."""
    learner, end = make_learner().eval(), word_ids(NANO)["[END]"]
    first, second = [end, 40, 41, 42, 43], [end, 50, 51, 52]
    ids = torch.tensor([[*first, *second]])
    alone = torch.tensor([second])
    where = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        packed = learner(ids, where, verdict=False)[len(first) :]
        expected = learner(alone, torch.ones_like(alone, dtype=torch.bool), verdict=False)
    assert torch.allclose(packed, expected, atol=1e-6)


@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@pytest.mark.usefixtures("kernel")
def test_compiled_adapters_one_after_another_train_alike(batches: dict[str, Any]) -> None:
    """A worker trains adapters of several ranks in turn; what is only measured is not compiled."""
    shape, batch = Architecture(layers=1, width=32, heads=2, mlp_width=32), batches["correction"]
    for rank in (1, 2):
        method = MethodConfig(name="lora", rank=rank)
        plain, compiled = (Learner(build_base(NANO, shape, 0), method, word_ids(NANO), 0) for _ in range(2))
        compiled.compile_layers()
        losses = [batch_loss(learner, batch) for learner in (plain, compiled)]
        assert torch.allclose(losses[0], losses[1], rtol=1e-5)
        for loss in losses:
            loss.backward()
        for name, parameter in compiled.trainable().items():
            expected = plain.trainable()[name].grad
            assert parameter.grad is not None
            assert expected is not None
            assert torch.allclose(parameter.grad, expected, rtol=1e-3, atol=1e-6), name
        assert torch.equal(everywhere(compiled, batch), everywhere(plain, batch))
