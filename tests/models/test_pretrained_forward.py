"""The forward pass over any architecture: places, documents, padding, soft caps and types."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_study.errors import ConfigError
from peft_study.training.batches import batch_loss, next_words
from tests.models.checkpoints import END, WORDS, make_checkpoint
from tests.models.learners import (
    CPU,
    EVERYWHERE,
    IDS,
    KINDS,
    QUANTIZATIONS,
    TARGETS,
    logits_of,
    make,
    method_of,
    take_steps,
    verdict_batch,
)

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint in bf16, as most are."""
    return make_checkpoint("llama", tmp_path_factory.mktemp("half"), dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_model_where_they_are_asked_for(checkpoint: Checkpoint, kind: str) -> None:
    learner, where = make(checkpoint(kind), method_of("none")).eval(), verdict_batch().where_BT
    with torch.no_grad():
        expected = learner.model(IDS).logits[where]
        chosen = learner(IDS, where, verdict=False)
        verdicts = learner(IDS, where, verdict=True)
        nowhere = learner(IDS, torch.zeros_like(where), verdict=False)
    assert torch.allclose(chosen, expected, atol=1e-5)
    assert torch.allclose(verdicts, expected[:, learner.verdict_ids], atol=1e-5)
    assert nowhere.shape == (0, WORDS)


def test_the_vocabulary_is_computed_where_some_row_asks(checkpoint: Checkpoint) -> None:
    learner, where, sizes = make(checkpoint("llama")).eval(), torch.zeros_like(EVERYWHERE), []
    where[0, 3] = where[1, 7] = where[1, 3] = True
    head: Any = learner.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, got: sizes.append(got.shape))
    found = learner(IDS, where, verdict=False)
    assert sizes == [(2, 2, WORDS)]
    learner._accepted.remove("logits_to_keep")  # as of an architecture that does not know it
    assert torch.allclose(learner(IDS, where, verdict=False), found, atol=1e-6)
    assert sizes[1] == (*IDS.shape, WORDS)


def test_soft_caps_hold(checkpoint: Checkpoint) -> None:
    """Of logits at the end, 2 in the checkpoint, and of attention, which sdpa cannot."""
    learner = make(checkpoint("gemma2"))
    assert learner.model.config._attn_implementation == "eager"
    assert 1.5 < float(logits_of(learner).abs().max()) <= 2.0
    with pytest.raises(ConfigError, match=r"pretrained\.attention=sdpa cannot be had .*pretrained\.attention=auto"):
        make(checkpoint("gemma2"), attention="sdpa")


def test_attention_is_chosen(checkpoint: Checkpoint) -> None:
    eager = make(checkpoint("llama"), attention="eager")
    assert eager.model.config._attn_implementation == "eager"
    assert torch.allclose(logits_of(eager), logits_of(make(checkpoint("llama"))), atol=1e-4)
    with pytest.raises(ConfigError, match="flash_attention_2 cannot be had"):
        make(checkpoint("llama"), attention="flash_attention_2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_documents_are_kept_apart(checkpoint: Checkpoint, kind: str, quantization: str) -> None:
    assert make(checkpoint(kind), quantization=quantization).isolates()


@pytest.mark.parametrize("kind", ["bloom", "opt", "falcon", "mamba"])
def test_an_architecture_that_lets_documents_see_each_other_is_found_out(checkpoint: Checkpoint, kind: str) -> None:
    learner = make(checkpoint(kind), method_of("none")).train()
    assert not learner.isolates()
    assert learner.training
    positions = torch.arange(24).expand(2, -1)
    learner(IDS, EVERYWHERE, verdict=False, positions_BT=positions)  # refused by none of them


def test_a_leak_is_seen_in_half_precision_too(checkpoint: Checkpoint) -> None:
    assert make(checkpoint("llama"), dtype="bfloat16").isolates()
    assert not make(checkpoint("opt"), dtype="bfloat16").isolates()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_packed_documents_train_as_they_do_alone(checkpoint: Checkpoint, kind: str) -> None:
    learner = make(checkpoint(kind))
    where = TARGETS & (torch.arange(24) != 11)
    packed = next_words(IDS.view(1, 48), TARGETS.view(1, 48), CPU)
    positions = torch.arange(24).repeat(2)[None]
    gradients = []
    for batch in (packed._replace(positions_BT=positions), next_words(IDS, TARGETS, CPU)):
        learner.zero_grad()
        batch_loss(learner, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in learner.trainable().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == learner.trainable().keys()
    assert all(torch.allclose(value, gradients[1][name], atol=1e-5) for name, value in gradients[0].items())
    assert where.any()


def test_flash_attention_is_given_one_row(checkpoint: Checkpoint) -> None:
    """In a batch of several transformers would not look for documents."""
    learner, seen = make(checkpoint("llama"), method_of("none")), {}

    def forward(input_ids: Tensor, logits_to_keep: Tensor, **options: Any) -> Any:
        seen.update(options, input_ids=input_ids)
        return type("Output", (), {"logits": torch.zeros(1, len(logits_to_keep), WORDS)})

    learner.model.config._attn_implementation_internal = "flash_attention_2"
    learner.model.forward = forward
    positions, where = torch.arange(24).expand(2, -1), verdict_batch().where_BT
    assert learner(IDS, where, verdict=False, positions_BT=positions).shape == (int(where.sum()), WORDS)
    assert torch.equal(seen["input_ids"], IDS.view(1, -1))
    assert torch.equal(seen["position_ids"], positions.reshape(1, -1))


def test_end_stands_in_for_a_missing_pad_token(checkpoint: Checkpoint) -> None:
    learner = make(checkpoint("llama"))
    assert learner.tokenizer.pad_token_id is None
    assert learner.pad_id == learner.tokenizer.convert_tokens_to_ids(END)
    assert len(learner.tokenizer) == WORDS
    learner.tokenizer.add_special_tokens({"pad_token": "!"})
    assert learner.pad_id == learner.tokenizer.convert_tokens_to_ids("!")


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(checkpoint: Checkpoint, kind: str) -> None:
    """Windows are padded at their end, which no token before it sees, whatever the pad token is."""
    learner = make(checkpoint(kind), method_of("none"))
    short, expected = IDS[:, :10], logits_of(learner, IDS[:, :10])
    for pad in (learner.pad_id, 7):
        padded = torch.cat([short, torch.full((2, 6), pad)], dim=1)
        for positions in (None, torch.cat([torch.arange(10), torch.arange(6)]).expand(2, -1)):
            with torch.no_grad():
                where = torch.arange(16).expand(2, -1) < 10
                found = learner(padded, where, verdict=False, positions_BT=positions)
            assert torch.allclose(found.view(2, 10, -1), expected, atol=1e-5)


def test_the_end_is_learned_though_it_pads(tmp_path: Path) -> None:
    """A table with a padding row would keep its gradient from it."""
    learner = make(make_checkpoint("llama", tmp_path, pad_token_id=0), method_of("full"))
    ids = IDS.clone()
    ids[:, 12] = learner.pad_id
    batch_loss(learner, next_words(ids, TARGETS, CPU)).backward()
    table: Any = learner.model.get_input_embeddings()
    assert table.padding_idx is None
    assert table.weight.grad[learner.pad_id].any()


@pytest.mark.parametrize("method", ["lora", "full", "probe"])
def test_a_half_precision_checkpoint_is_full_precision_on_a_cpu(half: Path, method: str) -> None:
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    learner = make(half, method_of(method))
    assert learner.dtype is torch.float32
    assert {p.dtype for p in learner.parameters()} == {torch.float32}


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_half_precision_when_asked_for(checkpoint: Checkpoint, quantization: str) -> None:
    learner = make(checkpoint("llama"), dtype="bfloat16", quantization=quantization)
    assert {p.dtype for p in learner.trainable().values()} == {torch.bfloat16}
    assert logits_of(learner).dtype is torch.bfloat16
    losses = take_steps(learner)
    assert losses[-1] < losses[0]


def test_the_loop_must_compute_in_the_same(checkpoint: Checkpoint) -> None:
    learner = make(checkpoint("llama"))
    learner.begin(torch.float32, "sdpa", compiled=True)
    with pytest.raises(
        ConfigError, match=r"that of the model, float32, but got bfloat16; .*pretrained\.dtype=bfloat16"
    ):
        learner.begin(torch.bfloat16, "sdpa", compiled=False)
