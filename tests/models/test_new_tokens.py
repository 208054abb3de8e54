"""New tokens and verdicts: rows that the base has not, tied or not, trained, saved and loaded."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from peft_study.errors import ConfigError
from peft_study.igsm.families import NANO
from peft_study.igsm.text import BACK, RIGHT, WRONG
from peft_study.models.base import Architecture, build_base, save_base
from peft_study.models.hub import load_tokenizer
from peft_study.models.pretrained import verdict_tokens
from peft_study.training.batches import next_words
from tests.models.checkpoints import WORDS, make_checkpoint, make_tokenizer
from tests.models.learners import (
    CPU,
    IDS,
    TARGETS,
    TIED_WARNING,
    config_of,
    logits_of,
    make,
    method_of,
    stranger,
    take_steps,
    verdict_batch,
)

Checkpoint = Callable[[str], Path]
TIED, UNTIED = "qwen2", "llama"
NEW = ("[BACK]", "[HMM]")


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a function that gives checkpoints with more rows of the embeddings than words, as many have."""
    folder = tmp_path_factory.mktemp("roomy")

    @cache
    def get(kind: str) -> Path:
        return make_checkpoint(kind, folder / kind, vocab_size=WORDS + 64)

    return get


@pytest.mark.parametrize("kind", [TIED, UNTIED, "gpt2", "gemma2"])
def test_rows_begin_as_the_mean_of_the_old(checkpoint: Checkpoint, roomy: Checkpoint, kind: str) -> None:
    for folder, rows in ((checkpoint(kind), 0), (roomy(kind), WORDS + 64)):
        learner, before = make(folder, new_tokens=NEW), stranger(folder)
        words = len(load_tokenizer(config_of(folder)))
        assert learner.new_ids == learner.row_ids == [words, words + 1]
        rows = rows or words + 2
        assert learner.tokenizer.convert_ids_to_tokens(learner.new_ids) == list(NEW)
        merged: Any = learner.merged()
        for get in ("get_input_embeddings", "get_output_embeddings"):
            old, new = getattr(before, get)().weight, getattr(merged, get)().weight
            assert len(new) == rows
            assert torch.equal(new[:WORDS], old[:WORDS])
            assert torch.allclose(new[learner.new_ids], old[:words].mean(0).expand(2, -1), atol=1e-6)
        assert merged.config.vocab_size == rows


def test_a_new_token_is_one_token_and_stays_in_the_text(checkpoint: Checkpoint) -> None:
    tokenizer = make(checkpoint("llama"), new_tokens=NEW).tokenizer
    ids = tokenizer("no[BACK] so [HMM]", add_special_tokens=False)["input_ids"]
    assert [ids.count(WORDS), ids.count(WORDS + 1)] == [1, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "no[BACK] so [HMM]"


@pytest.mark.filterwarnings(TIED_WARNING)
@pytest.mark.parametrize("room", [False, True])
@pytest.mark.parametrize("embeddings", ["rows", "lora_2r", "none"])
@pytest.mark.parametrize("kind", [TIED, UNTIED, "gpt2", "gemma2"])
def test_trained_saved_and_loaded(
    checkpoint: Checkpoint, roomy: Checkpoint, kind: str, embeddings: str, room: bool, tmp_path: Path
) -> None:
    folder, method = (roomy if room else checkpoint)(kind), method_of(embeddings=embeddings)
    learner = make(folder, method, new_tokens=NEW)
    ids = IDS.clone()
    ids[:, 3::7] = learner.new_ids[0]
    take_steps(learner, next_words(ids, TARGETS, CPU))
    learner.save(tmp_path / "adapter")
    expected = logits_of(learner, ids)

    again = make(folder, method, new_tokens=NEW, saved=tmp_path / "adapter")
    assert torch.equal(logits_of(again, ids), expected)

    base = stranger(folder)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer.convert_tokens_to_ids(list(NEW)) == learner.new_ids
    if len(tokenizer) > len(base.get_input_embeddings().weight):
        base.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    words = [*range(WORDS), *learner.new_ids]  # less a pad token that Qwen2's tokenizer adds, which is never used
    assert torch.allclose(theirs[..., words], expected[..., words], atol=1e-5)

    merged: Any = learner.merged()
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
        assert torch.allclose(stranger(tmp_path / "merged")(ids).logits, merged(ids).logits, atol=1e-6)


@pytest.mark.parametrize(("kind", "tables"), [(TIED, 1), (UNTIED, 2)])
def test_only_the_new_rows_move_and_tied_ones_together(checkpoint: Checkpoint, kind: str, tables: int) -> None:
    learner = make(checkpoint(kind), method_of(embeddings="rows"), new_tokens=NEW)
    rows = [name for name in learner.trainable() if "trainable_tokens" in name]
    assert len(rows) == tables
    assert learner.num_trainable() == make(checkpoint(kind)).num_trainable() + tables * 2 * 64
    before: Any = learner.merged()
    ids = IDS.clone()
    ids[:, 3::7] = learner.new_ids[0]
    take_steps(learner, next_words(ids, TARGETS, CPU))
    after: Any = learner.merged()
    for get in ("get_input_embeddings", "get_output_embeddings"):
        moved = (getattr(before, get)().weight != getattr(after, get)().weight).any(1).nonzero()[:, 0].tolist()
        assert learner.new_ids[0] in moved
        assert set(moved) <= set(learner.new_ids)
    is_tied = after.get_input_embeddings().weight is after.get_output_embeddings().weight
    assert is_tied == after.config.tie_word_embeddings == (tables == 1)


@pytest.mark.parametrize("kind", [TIED, UNTIED])
def test_a_low_rank_update_is_of_the_input_alone(checkpoint: Checkpoint, kind: str) -> None:
    learner = make(checkpoint(kind), method_of(embeddings="lora_2r"), new_tokens=NEW)
    table: Any = learner.model.get_input_embeddings()
    assert (table.r["default"], table.scaling["default"]) == (8, 2.0)
    take_steps(learner)
    merged: Any = learner.merged()
    old = stranger(checkpoint(kind)).get_output_embeddings().weight
    assert torch.equal(merged.get_output_embeddings().weight[:WORDS], old)
    assert not torch.allclose(merged.get_input_embeddings().weight[:WORDS], old, atol=1e-3)
    assert not merged.config.tie_word_embeddings


def test_quantised_bases_take_them_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for quantization in ("nf4", "int8"):
        learner = make(checkpoint(TIED), quantization=quantization, new_tokens=NEW)
        ids = IDS.clone()
        ids[:, 3::7] = learner.new_ids[0]
        losses = take_steps(learner, next_words(ids, TARGETS, CPU))
        assert losses[-1] < losses[0]
        learner.save(tmp_path / quantization)
        again = make(checkpoint(TIED), quantization=quantization, new_tokens=NEW, saved=tmp_path / quantization)
        assert torch.equal(logits_of(again, ids), logits_of(learner, ids))


def test_full_fine_tuning_keeps_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    learner = make(checkpoint(UNTIED), method_of("full"), new_tokens=NEW)
    take_steps(learner, lr=1e-3)
    learner.save(tmp_path)
    again = make(checkpoint(UNTIED), method_of("full"), new_tokens=NEW, saved=tmp_path)
    assert again.row_ids == learner.row_ids
    assert torch.equal(logits_of(again), logits_of(learner))


def test_tokens_without_a_row_get_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A tokenizer may have more words than the model has rows; a pad token alone is done without."""
    folder = shutil.copytree(checkpoint(UNTIED), tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    learner = make(folder)
    assert (learner.new_ids, learner.pad_id) == ([], 0)
    assert logits_of(learner).shape[-1] == WORDS
    tokenizer.add_tokens(["<turn>"])
    tokenizer.save_pretrained(folder)
    learner = make(folder)
    assert (learner.new_ids, learner.row_ids, learner.pad_id) == ([WORDS + 1], [], WORDS)
    assert logits_of(learner).shape[-1] == WORDS + 2
    assert learner.notes[-1].startswith("tokens without a row in the model: 1;")
    learner.save(tmp_path / "adapter")
    assert torch.equal(logits_of(make(folder, saved=tmp_path / "adapter")), logits_of(learner))


def test_tokens_that_are_there_already_are_used_as_they_are(tmp_path: Path) -> None:
    """The study's own bases have theirs."""
    base = build_base(NANO, Architecture(layers=2, width=64, heads=2, mlp_width=64, local_layers=1), 0)
    save_base(base, NANO, tmp_path, {})
    learner = make(tmp_path, quantization="nf4", new_tokens=(BACK, RIGHT, WRONG))
    vocabulary = learner.tokenizer.get_vocab()
    assert learner.new_ids == []
    assert learner.row_ids == [vocabulary[word] for word in (BACK, RIGHT, WRONG)]
    assert learner.verdict_ids == learner.row_ids[1:]
    assert learner.isolates()
    assert sum("trainable_tokens" in name for name in learner.trainable()) == 2
    mine: Any = learner.model.get_input_embeddings()
    theirs: Any = base.get_input_embeddings()
    assert torch.equal(mine.token_adapter.get_base_layer().weight, theirs.weight)


def test_an_output_bias_that_peft_would_drop_is_an_error(checkpoint: Checkpoint) -> None:
    make(checkpoint("phi"), method_of(embeddings="none"), new_tokens=NEW)
    with pytest.raises(ConfigError, match=r"method\.embeddings must be none for PhiForCausalLM.*but got rows"):
        make(checkpoint("phi"), new_tokens=NEW)


def test_words_stand_in(checkpoint: Checkpoint) -> None:
    learner = make(checkpoint("llama"), method_of("none"))
    assert learner.tokenizer.convert_ids_to_tokens(learner.verdict_ids) == ["Ġright", "Ġwrong"]


def test_texts_of_ones_own(checkpoint: Checkpoint) -> None:
    learner = make(checkpoint("llama"), method_of("none"), verdicts=("+", "-1"))
    assert learner.tokenizer.convert_ids_to_tokens(learner.verdict_ids) == ["+", "-"]


def test_new_tokens_can_be_verdicts(checkpoint: Checkpoint) -> None:
    learner = make(checkpoint("llama"), new_tokens=(RIGHT, WRONG))
    assert learner.verdict_ids == [WORDS, WORDS + 1]
    losses = take_steps(learner, verdict_batch())
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # both rows are the mean
    assert losses[-1] < losses[0]


def test_a_tokenizer_that_splits_every_letter() -> None:
    letters = make_tokenizer(words=257)
    assert letters.convert_ids_to_tokens(verdict_tokens(letters, ("", ""))) == ["r", "w"]
    with pytest.raises(ConfigError, match=r"begin with different tokens, but \(' yes', ' no'\) do not; set them to"):
        verdict_tokens(letters, (" yes", " no"))
