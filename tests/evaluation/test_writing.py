"""Writing: the same as one token at a time, whatever is beside it, and the model as it was before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.evaluation.writing import Written, rows_at_once, stop_ids, write
from peft_study.models.config import MethodConfig, PretrainedConfig
from peft_study.models.pretrained import PretrainedLearner

Load = Callable[[str], tuple[Any, Any]]
QUESTIONS = (
    "Tom has",
    "Ann had 9 plums and ate 5. How many plums are left?",
    "How",
    "Tom has 3 + 4 = 7 apples. The step is right. The answer is",
    "9 - 5",
    "no, that is",
    "The answer",
    "How many apples does Tom have?",
    "4",
)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|turn|>{% endif %}{% endfor %}"
)


def config(**changes: Any) -> NaturalEvaluationConfig:
    return NaturalEvaluationConfig.model_validate({"max_new_tokens": 16} | changes)


def slow_ids(model: Any, prompt: list[int], most: int) -> list[int]:
    """Return what is written greedily, with a pass over the whole text for each token; 0 is the end."""
    new: list[int] = []
    with torch.no_grad():
        while len(new) < most and 0 not in new:
            new.append(int(model.eval()(torch.tensor([prompt + new])).logits[0, -1].argmax()))
    return new


def slow(model: Any, tokenizer: Any, prompt: list[int], most: int) -> Written:
    ids = slow_ids(model, prompt, most)
    new = ids[:-1] if 0 in ids else ids
    return Written(tokenizer.decode(prompt + new).removeprefix(tokenizer.decode(prompt)), 0 in ids, len(new))


def test_as_many_rows_as_keep_their_keys_and_values_in_a_gigabyte(load_tiny: Load) -> None:
    with torch.device("meta"):
        # 2 x 4 layers x 8 heads of keys and values x 128 values x 2 bytes: 16 KiB a token.
        shape: dict[str, Any] = {
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        }
        model = LlamaForCausalLM(LlamaConfig(hidden_size=64, vocab_size=8, intermediate_size=8, **shape)).bfloat16()
    assert [rows_at_once(model, tokens) for tokens in (10, 2_048, 4_096, 100_000)] == [64, 32, 16, 8]
    assert rows_at_once(model.float(), 2_048) == 16
    for kind in ("gpt2", "bloom", "opt"):
        assert rows_at_once(load_tiny(kind)[0], 100) == 64


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "bloom", "opt"])
def test_a_batch_writes_what_each_prompt_gets_alone(load_tiny: Load, kind: str) -> None:
    model, tokenizer = load_tiny(kind)
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    assert len({len(prompt) for prompt in prompts}) > 4
    alone = write(model, tokenizer, prompts, config(batch=1))
    assert alone == write(model, tokenizer, prompts, config(batch=8))
    shares: list[float] = []
    write(model, tokenizer, prompts, config(batch=1), on_share=shares.append)
    assert shares == [done / len(prompts) for done in range(len(prompts))]
    assert alone == [slow(model, tokenizer, prompt, 16) for prompt in prompts]
    assert len({one.text for one in alone}) > 3


def test_what_ends_a_text_ends_it(load_tiny: Load) -> None:
    model, tokenizer = load_tiny("llama")
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS[:2]]
    first, second = (slow_ids(model, prompt, 16) for prompt in prompts)
    at = next(i for i in range(1, 16) if first[i] not in first[:i] + second)
    other = write(model, tokenizer, prompts[1:], config())
    assert not other[0].finished
    for place in (model.config, model.generation_config):
        place.eos_token_id = [0, first[at]]  # some checkpoints name several
        ended, again = write(model, tokenizer, prompts, config(batch=2))
        assert ended == Written(tokenizer.decode(prompts[0] + first[:at]).removeprefix(QUESTIONS[0]), True, at)
        assert again == other[0]
        place.eos_token_id = 0


def test_the_end_of_a_turn_is_an_end(load_tiny: Load) -> None:
    model, tokenizer = load_tiny("llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    assert stop_ids(model, tokenizer) == {0}
    tokenizer.chat_template = TEMPLATE
    assert stop_ids(model, tokenizer) == {0, tokenizer.convert_tokens_to_ids("<|turn|>")}
    tokenizer.chat_template = TEMPLATE.replace("<|turn|>", ".")
    assert stop_ids(model, tokenizer) == {0}


def test_a_checkpoint_that_brings_options_is_asked_as_the_others(load_tiny: Load) -> None:
    model, tokenizer = load_tiny("llama")
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    plain = write(model, tokenizer, prompts, config())
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.min_new_tokens, own.max_length = True, 3.0, 9.0, 9, 20
    assert write(model, tokenizer, prompts, config()) == plain
    assert model.generation_config is own
    assert own.repetition_penalty == 9.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_in_training_is_left_as_it_was(load_tiny: Load, temperature: float) -> None:
    model, tokenizer = load_tiny("gpt2")
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.5
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    plain = write(model, tokenizer, prompts, config(temperature=temperature))
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    model.train()
    model.transformer.h[1].eval()
    tokenizer.padding_side = "right"
    training = [module.training for module in model.modules()]
    torch.rand(1)
    chance = torch.get_rng_state()
    assert write(model, tokenizer, prompts, config(temperature=temperature)) == plain
    assert [module.training for module in model.modules()] == training
    assert True in training
    assert False in training
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False
    assert tokenizer.padding_side == "right"
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.is_grad_enabled()


def test_what_is_drawn_depends_on_the_seed_alone(load_tiny: Load) -> None:
    model, tokenizer = load_tiny("llama")
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    drawn = [write(model, tokenizer, prompts, config(temperature=1.0, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_there_is_room_for_what_the_model_has_positions_for(load_tiny: Load) -> None:
    model, tokenizer = load_tiny("gpt2")
    words = tokenizer(" ".join(QUESTIONS) * 4)["input_ids"]
    assert len(words) > 130
    prompts = [words[:120], words[:128], words[:130], words[:10], words[:119], []]
    for batch in (1, 8):
        written = write(model, tokenizer, prompts, config(batch=batch))
        assert [one.num_tokens for one in written] == [8, 0, 0, 16, 9, 0]
        assert not any(one.finished for one in written)
        assert written[1].text == written[5].text == ""
        assert written[0] == slow(model, tokenizer, prompts[0], 8)
        assert written[4] == slow(model, tokenizer, prompts[4], 9)


def test_a_space_at_the_beginning_is_kept(make_scripted: Callable[..., Any]) -> None:
    """Though many tokenizers leave it out when they decode what comes after a prompt alone."""
    learner = make_scripted({"ab": "  cd|"})
    plain = learner.tokenizer.decode
    learner.tokenizer.decode = lambda ids, **options: plain(ids, **options).removeprefix(" ")
    assert learner.tokenizer.decode([ord(" "), ord("c")]) == "c"
    (written,) = write(learner.model, learner.tokenizer, [[ord("a"), ord("b")]], config())
    assert written == Written("  cd", True, 4)


def test_an_adapter_writes_what_the_merged_model_does(checkpoint: Callable[[str], Path]) -> None:
    """Words that are new to the base are there to be read, such as the one that takes a step back."""
    pretrained = PretrainedConfig(name=str(checkpoint("llama")), dtype="float32", new_tokens=("[BACK]",))
    learner = PretrainedLearner(pretrained, MethodConfig(name="lora", rank=2), 0)
    prompts = [learner.tokenizer(question)["input_ids"] for question in QUESTIONS]
    before = write(learner.model, learner.tokenizer, prompts, config())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in learner.trainable().values():
            torch.nn.init.normal_(parameter, std=0.3)
    written = write(learner.model, learner.tokenizer, prompts, config())
    assert written == write(learner.merged(), learner.tokenizer, prompts, config())
    assert written != before
    assert any("[BACK]" in one.text for one in written)
