"""Batched generation: tokens are chosen, rows that end leave the batch, and the others go on."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from peft_study.decoding.compiled import CompiledDecoder
from peft_study.decoding.decoder import Decoder
from peft_study.errors import ConfigError, KernelError
from peft_study.telling import OnShare, unheard


def make_decoder(model: Qwen3ForCausalLM, max_length: int) -> Decoder:
    """Return the quickest decoder there is for `model`: outputs are the same, token for token but for rounding."""
    try:
        return CompiledDecoder(model, max_length)
    except KernelError as error:
        if model.lm_head.weight.device.type == "cpu":
            logging.getLogger(__name__).info("decoding with PyTorch: %s", error)
        return Decoder(model, max_length)


def greedy(logits_BV: Tensor) -> Tensor:
    """Return the likeliest token of each row."""
    return logits_BV.argmax(-1)


def sampled(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a choice that draws the token of each row from its distribution at `temperature`; 0 is greedy.

    What is drawn depends on which rows share a batch.
    """
    if temperature < 0:
        raise ConfigError(f"temperature must be at least 0, but got {temperature}; set 0 for the likeliest token")

    def draw(logits_BV: Tensor) -> Tensor:
        weights_BV = (logits_BV.float() / temperature).softmax(-1)
        return torch.multinomial(weights_BV, 1, generator=generator)[:, 0]

    return draw if temperature else greedy


def by_length(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def generate(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_length: int,
    batch_size: int = 256,
    choose: Callable[[Tensor], Tensor] = greedy,
    on_share: OnShare = unheard,
) -> list[list[int]]:
    """Return the tokens generated after each prompt, up to and with `end_id`, prompt and output <= `max_length`.

    A sequence that does not end with `end_id` was cut by the limit. A prompt that stands several times in a batch, as
    where several answers of it are sampled, is computed once. `on_share` is told before each batch what share of the
    prompts is done.
    """
    outputs: list[list[int]] = [[] for _ in prompts]
    done = 0
    for batch in by_length([len(prompt) for prompt in prompts], batch_size):
        on_share(done / len(prompts))
        decoder = make_decoder(model, max_length)
        with decoder.at_work():
            row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(tuple(prompts[i]) for i in batch))}
            decoder.prefill(list(row_of))
            if len(row_of) < len(batch):
                rows = torch.tensor([row_of[tuple(prompts[i])] for i in batch], device=decoder.logits.device)
                decoder.keep(rows)
            alive = batch
            while alive:
                tokens = choose(decoder.logits)
                for i, token in zip(alive, tokens.tolist(), strict=True):
                    outputs[i].append(token)
                going = (tokens != end_id) & (decoder.lengths + 1 < max_length)
                if not bool(going.all()):
                    rows = going.nonzero()[:, 0]
                    decoder.keep(rows)
                    tokens = tokens[rows]
                    alive = [alive[row] for row in rows.tolist()]
                if alive:
                    decoder.step(tokens)
        done += len(batch)
    return outputs
