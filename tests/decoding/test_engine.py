"""The decoder against transformers' own generation, and against itself in other batches."""

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from peft_study.decoding import decoder as decoder_module
from peft_study.decoding import engine
from peft_study.decoding.beam import beam_search
from peft_study.decoding.compiled import CompiledDecoder
from peft_study.decoding.decoder import Decoder
from peft_study.decoding.engine import generate, make_decoder, sampled
from peft_study.errors import KernelError
from peft_study.igsm.families import NANO
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base

END = 1
LIMIT = 40


@pytest.fixture(scope="module")
def model(tiny: Architecture) -> Qwen3ForCausalLM:
    """Return a random model whose weights are so large that its outputs differ."""
    model = build_base(NANO, tiny, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim == 2 else parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=generator)
            )
    return model


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, len(word_ids(NANO)), (length,), generator=generator).tolist() for length in lengths]


LENGTHS = [3, 17, 1, 9, 9, 26, 5]


@torch.no_grad()
def by_transformers(model: Qwen3ForCausalLM, prompt: list[int], end_id: int) -> list[int]:
    output = cast(Any, model).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_length=LIMIT,
        do_sample=False,
        eos_token_id=end_id,
        pad_token_id=0,
        use_cache=True,
    )
    return output[0, len(prompt) :].tolist()


def test_greedy_equals_transformers_token_for_token(model: Qwen3ForCausalLM) -> None:
    asked = prompts(LENGTHS)
    outputs = generate(model, asked, end_id=END, max_length=LIMIT)
    assert outputs == [by_transformers(model, prompt, END) for prompt in asked]
    assert len({token for output in outputs for token in output}) > 30  # no endless repetition


def test_the_share_that_is_done_is_told_before_each_batch(model: Qwen3ForCausalLM) -> None:
    shares: list[float] = []
    generate(model, prompts(LENGTHS), end_id=END, max_length=LIMIT, batch_size=3, on_share=shares.append)
    beam_search(
        model, prompts(LENGTHS), num_beams=2, end_id=END, max_length=LIMIT, batch_size=4, on_share=shares.append
    )
    assert shares == [0, 3 / 7, 6 / 7, 0, 4 / 7]


def test_rows_that_end_early_leave_the_others_alone(model: Qwen3ForCausalLM) -> None:
    """With another end mark, some rows end soon: they are dropped from the batch."""
    asked = prompts(LENGTHS)
    free = generate(model, asked, end_id=-1, max_length=LIMIT)
    end_id = free[3][2]
    outputs = generate(model, asked, end_id=end_id, max_length=LIMIT)
    assert outputs == [by_transformers(model, prompt, end_id) for prompt in asked]
    expected = [output[: output.index(end_id) + 1] if end_id in output else output for output in free]
    assert outputs == expected
    assert len({len(output) for output in outputs}) > 2


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 8), order=st.permutations(range(len(LENGTHS))))
def test_batches_do_not_change_outputs(model: Qwen3ForCausalLM, batch_size: int, order: list[int]) -> None:
    asked = prompts(LENGTHS)
    expected = generate(model, asked, end_id=END, max_length=LIMIT)
    outputs = generate(model, [asked[i] for i in order], end_id=END, max_length=LIMIT, batch_size=batch_size)
    assert outputs == [expected[i] for i in order]


def test_a_prompt_that_is_asked_several_times_is_computed_once(
    model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts([9, 9, 4, 9])
    twice = [asked[i] for i in (0, 1, 0, 2, 3, 1, 0)]
    expected = generate(model, asked, end_id=END, max_length=LIMIT)
    computed: list[list[int]] = []
    kind = type(make_decoder(model, LIMIT))

    class Counting(kind):
        def prefill(self, prompts: Any) -> None:
            computed.extend(list(prompt) for prompt in prompts)
            super().prefill(prompts)

    monkeypatch.setattr(engine, "make_decoder", Counting)
    outputs = generate(model, twice, end_id=END, max_length=LIMIT)
    assert outputs == [expected[i] for i in (0, 1, 0, 2, 3, 1, 0)]
    assert sorted(computed) == sorted(asked)


def test_answers_of_one_prompt_are_drawn_apart(model: Qwen3ForCausalLM) -> None:
    choose = sampled(1.0, torch.Generator().manual_seed(0))
    outputs = generate(model, prompts([9]) * 6, end_id=END, max_length=LIMIT, choose=choose)
    assert len(set(map(tuple, outputs))) > 3


def test_length_limit_counts_prompt_and_output(model: Qwen3ForCausalLM) -> None:
    asked = prompts([LIMIT - 1, LIMIT - 2, 4])
    outputs = generate(model, asked, end_id=-1, max_length=LIMIT)
    assert [len(output) for output in outputs] == [1, 2, LIMIT - 4]
    assert generate(model, [], end_id=END, max_length=LIMIT) == []


def test_a_cache_that_grows_changes_nothing(model: Qwen3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts([4, 9, 6])
    monkeypatch.setattr(decoder_module, "_ROOM", 3)
    outputs = generate(model, asked, end_id=END, max_length=LIMIT)
    assert outputs == [by_transformers(model, prompt, END) for prompt in asked]
    assert max(map(len, outputs)) > 30, "rows end before the cache has grown, by room or by pages, several times"


def test_weights_may_lie_anywhere(model: Qwen3ForCausalLM) -> None:
    spread = copy.deepcopy(model)
    for parameter in spread.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.T.contiguous().T
    assert not spread.lm_head.weight.is_contiguous()
    asked = prompts(LENGTHS)
    expected = generate(model, asked, end_id=END, max_length=LIMIT)
    assert generate(spread, asked, end_id=END, max_length=LIMIT) == expected


def test_choice_is_an_argument(model: Qwen3ForCausalLM) -> None:
    def second(logits_BV: torch.Tensor) -> torch.Tensor:
        return logits_BV.topk(2).indices[:, 1]

    (output,) = generate(model, prompts([5]), end_id=END, max_length=10, choose=second)
    assert output != generate(model, prompts([5]), end_id=END, max_length=10)[0]


def fresh(model: Qwen3ForCausalLM, sequence: list[int]) -> torch.Tensor:
    """Return the logits after `sequence`, computed by transformers at once."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([sequence])).logits[0, -1]


def assert_near(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()


def test_logits_after_prefill_and_steps_are_those_of_the_whole_sequence(model: Qwen3ForCausalLM) -> None:
    asked = prompts([4, 9, 6])
    decoder = make_decoder(model, LIMIT)
    decoder.prefill(asked)
    for row, prompt in enumerate(asked):
        assert_near(decoder.logits[row], fresh(model, prompt))
    for token in (7, 8, 9):
        asked = [[*prompt, token + row] for row, prompt in enumerate(asked)]
        decoder.step(torch.tensor([prompt[-1] for prompt in asked]))
        assert decoder.lengths.tolist() == [len(prompt) for prompt in asked]
        for row, prompt in enumerate(asked):
            assert_near(decoder.logits[row], fresh(model, prompt))


@pytest.mark.parametrize("biased", [False, True])
def test_what_is_read_is_what_follows_the_tokens_at_the_places(model: Qwen3ForCausalLM, biased: bool) -> None:
    """Places of a sequence may be none, several, or its last; the outputs may be fewer than the words."""
    sequences, places = prompts([4, 30, 6, 12]), [[1, 3], [0, 7, 8, 29], [], [5]]
    model = copy.deepcopy(model)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, 3, bias=biased)
    found = make_decoder(model, LIMIT).read(sequences, places)
    expected = [
        fresh(model, sequence[: place + 1]) for sequence, mine in zip(sequences, places, strict=True) for place in mine
    ]
    assert found.shape == (7, 3)
    for logits, wanted in zip(found, expected, strict=True):
        assert_near(logits, wanted)


def test_rewind_equals_a_fresh_prefill(model: Qwen3ForCausalLM) -> None:
    """One row goes back, the others go on; what was cached beyond the shorter length is overwritten."""
    asked = prompts([4, 9, 6])
    decoder = make_decoder(model, LIMIT)
    decoder.prefill(asked)
    back_to = decoder.logits[1].clone()
    for token in (7, 8, 9):
        decoder.step(torch.full((3,), token))
    decoder.rewind(1, 9, back_to)
    assert decoder.lengths.tolist() == [7, 9, 9]
    assert_near(decoder.logits[1], fresh(model, asked[1]))
    for token in (50, 51):
        decoder.step(torch.full((3,), token))
    sequences = [[*asked[0], 7, 8, 9, 50, 51], [*asked[1], 50, 51], [*asked[2], 7, 8, 9, 50, 51]]
    again = make_decoder(model, LIMIT)
    again.prefill(sequences)
    for row, sequence in enumerate(sequences):
        assert_near(decoder.logits[row], fresh(model, sequence))
        assert_near(again.logits[row], decoder.logits[row])


def test_rows_fork_and_go_their_own_ways(model: Qwen3ForCausalLM) -> None:
    """A row that is kept twice is two rows, whether or not there is a free place in the cache."""
    sequences = prompts([4, 9, 6])
    decoder = make_decoder(model, LIMIT)
    decoder.prefill(sequences)
    forks = ([0, 0, 1, 1, 2, 2], [0, 2, 5, 2], [1, 1, 1, 3], [3, 0])
    for step, rows in enumerate(forks):
        decoder.keep(torch.tensor(rows))
        sequences = [[*sequences[row], 11 + at + 7 * step] for at, row in enumerate(rows)]
        decoder.step(torch.tensor([sequence[-1] for sequence in sequences]))
        assert decoder.lengths.tolist() == [len(sequence) for sequence in sequences]
        for row, sequence in enumerate(sequences):
            assert_near(decoder.logits[row], fresh(model, sequence))


def test_threads_do_not_change_what_is_computed(model: Qwen3ForCausalLM) -> None:
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        decoder = make_decoder(model, LIMIT)
        decoder.prefill(prompts([4, 30, 6, 20, 30, 30, 30, 30, 9]))
        decoder.step(torch.arange(11, 20))
        found.append(decoder.logits)
    torch.set_num_threads(1)
    if isinstance(decoder, CompiledDecoder):  # PyTorch's sums depend on the number of threads
        assert torch.equal(*found)
    assert torch.allclose(*found, atol=1e-4)


def test_the_kernel_says_what_it_is_not_made_for(tiny: Architecture, decoder_kind: str) -> None:
    if decoder_kind == "torch":
        pytest.skip("there is no kernel to ask")
    odd = build_base(NANO, tiny.model_copy(update={"width": 48, "heads": 4}), 0)
    with pytest.raises(KernelError, match=r"multiples of 16, but this model is torch.float32 on cpu, with heads of 12"):
        CompiledDecoder(odd, LIMIT)
    assert type(make_decoder(odd, LIMIT)) is Decoder
    with pytest.raises(KernelError, match="in fp32 on a CPU"):
        CompiledDecoder(build_base(NANO, tiny, 0).bfloat16(), LIMIT)


def test_keep_drops_the_other_rows(model: Qwen3ForCausalLM) -> None:
    asked = prompts([4, 9, 6])
    decoder = make_decoder(model, LIMIT)
    decoder.prefill(asked)
    decoder.keep(torch.tensor([2, 0]))
    decoder.step(torch.tensor([11, 12]))
    assert decoder.lengths.tolist() == [7, 5]
    assert_near(decoder.logits[0], fresh(model, [*asked[2], 11]))
    assert_near(decoder.logits[1], fresh(model, [*asked[0], 12]))


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 4},
        {"heads": 1},
        {"layers": 1, "mlp_width": 16},
        {"width": 48, "heads": 4},
        {"local_layers": 0},
        {"local_layers": 2, "local_window": 3},
    ],
)
def test_other_shapes(tiny: Architecture, shape: dict[str, int], assert_same: Callable[..., None]) -> None:
    assert_same(build_base(NANO, tiny.model_copy(update=shape), 3).eval())


def test_without_biases(tiny: Architecture, assert_same: Callable[..., None]) -> None:
    model = build_base(NANO, tiny, 3).eval()
    layers: Any = model.model.layers
    for layer in layers:
        for name in "qkvo":
            getattr(layer.self_attn, f"{name}_proj").bias = None
    assert_same(model)


@pytest.fixture
def assert_same() -> Callable[..., None]:
    def check(model: Qwen3ForCausalLM) -> None:
        asked = prompts([3, 8])
        decoder = make_decoder(model, LIMIT)
        decoder.prefill(asked)
        for row, prompt in enumerate(asked):
            assert_near(decoder.logits[row], fresh(model, prompt))

    return check
