"""Beam search against transformers' own."""

from typing import Any, cast

import pytest
import torch
from transformers import Qwen3ForCausalLM

from peft_study.decoding.beam import beam_search
from peft_study.decoding.engine import generate, sampled
from peft_study.errors import ConfigError
from peft_study.igsm.families import NANO
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base

LIMIT = 30
LENGTHS = [3, 17, 1, 9, 9, 26, 5]


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> Qwen3ForCausalLM:
    """Return a random model that is sure enough for its beams to differ, and ends now and then."""
    model = build_base(NANO, tiny, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, len(word_ids(NANO)), (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def by_transformers(model: Qwen3ForCausalLM, prompt: list[int], end_id: int, **options: Any) -> list[int]:
    output = cast(Any, model).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_length=LIMIT,
        eos_token_id=end_id,
        pad_token_id=0,
        use_cache=True,
        top_k=0,
        **options,
    )
    tokens = output[0, len(prompt) :].tolist()
    return tokens[: tokens.index(end_id) + 1] if end_id in tokens else tokens


@pytest.fixture(scope="module")
def end_id(model: Qwen3ForCausalLM) -> int:
    """Return a token that many outputs come to, at different places."""
    free = [token for output in generate(model, prompts(LENGTHS), end_id=-1, max_length=LIMIT) for token in output]
    return max(set(free), key=free.count)


@pytest.mark.parametrize("num_beams", [2, 4])
def test_equals_transformers_token_for_token(model: Qwen3ForCausalLM, end_id: int, num_beams: int) -> None:
    asked = prompts(LENGTHS)
    outputs = beam_search(model, asked, num_beams=num_beams, end_id=end_id, max_length=LIMIT)
    expected = [by_transformers(model, prompt, end_id, num_beams=num_beams, do_sample=False) for prompt in asked]
    assert outputs == expected
    assert outputs != generate(model, asked, end_id=end_id, max_length=LIMIT)
    assert len({len(output) for output in outputs}) > 3


@pytest.mark.parametrize(("num_beams", "end_id"), [(2, 15), (2, 30), (4, 15), (4, 48)])
def test_a_lesser_candidate_may_not_end(model: Qwen3ForCausalLM, num_beams: int, end_id: int) -> None:
    """With these, an end that comes in the lower half of the candidates would be the best of all in the end."""
    (prompt,) = prompts(LENGTHS[:1])
    (output,) = beam_search(model, [prompt], num_beams=num_beams, end_id=end_id, max_length=LIMIT)
    assert output == by_transformers(model, prompt, end_id, num_beams=num_beams, do_sample=False)


def test_batches_do_not_change_outputs(model: Qwen3ForCausalLM, end_id: int) -> None:
    asked = prompts(LENGTHS)
    whole = beam_search(model, asked, num_beams=3, end_id=end_id, max_length=LIMIT)
    assert beam_search(model, asked, num_beams=3, end_id=end_id, max_length=LIMIT, batch_size=2) == whole


def test_one_beam_is_greedy(model: Qwen3ForCausalLM, end_id: int) -> None:
    asked = prompts(LENGTHS)
    assert beam_search(model, asked, num_beams=1, end_id=end_id, max_length=LIMIT) == generate(
        model, asked, end_id=end_id, max_length=LIMIT
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_equals_transformers_with_the_same_generator(
    model: Qwen3ForCausalLM, end_id: int, temperature: float
) -> None:
    drawn: list[list[int]] = []
    for seed in range(5):
        for prompt in prompts([4, 9]):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                expected = by_transformers(model, prompt, end_id, num_beams=4, do_sample=True, temperature=temperature)
            generator = torch.Generator().manual_seed(seed)
            (output,) = beam_search(
                model,
                [prompt],
                num_beams=4,
                end_id=end_id,
                max_length=LIMIT,
                temperature=temperature,
                generator=generator,
            )
            assert output == expected
            drawn.append(output)
    assert len({tuple(output) for output in drawn}) > 2


def test_refuses_what_makes_no_sense(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(ConfigError, match=r"num_beams must be at least 1 .* but got 0"):
        beam_search(model, prompts([3]), num_beams=0, end_id=1, max_length=LIMIT)
    with pytest.raises(ConfigError, match=r"but got 4 and -1\.0"):
        beam_search(model, prompts([3]), num_beams=4, end_id=1, max_length=LIMIT, temperature=-1.0)
    with pytest.raises(ConfigError, match="temperature must be at least 0, but got -1"):
        sampled(-1, torch.Generator())


def test_sampling_follows_the_distribution(model: Qwen3ForCausalLM) -> None:
    """The first token after one prompt, drawn often: shares as the softmax says, at two temperatures."""
    (prompt,) = prompts([5])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    for temperature in (1.0, 0.5):
        choose = sampled(temperature, torch.Generator().manual_seed(0))
        outputs = generate(model, [prompt] * 4_000, end_id=-1, max_length=6, choose=choose, batch_size=4_000)
        counts = torch.bincount(torch.tensor(outputs)[:, 0], minlength=len(logits)) / 4_000
        expected = (logits / temperature).softmax(-1)
        spread = (expected * (1 - expected) / 4_000).sqrt()
        assert bool(((counts - expected).abs() < 5 * spread + 1e-3).all())
    assert generate(model, [prompt], end_id=-1, max_length=9, choose=sampled(0, torch.Generator())) == generate(
        model, [prompt], end_id=-1, max_length=9
    )
