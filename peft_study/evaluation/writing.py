"""Solutions written by any causal language model of transformers: in batches, each as it would be written alone.

Prompts are padded on the left and masked. The options that a checkpoint brings (sampling, penalties) are left aside, so
that all models are asked alike; the model is afterwards as it was before.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from peft_study.decoding.engine import by_length
from peft_study.evaluation.config import NaturalEvaluationConfig
from peft_study.rng import derive_seed
from peft_study.telling import OnShare, unheard


class Written(NamedTuple):
    """What a model wrote."""

    text: str
    finished: bool
    """Whether the model ended it; else the limit did."""
    num_tokens: int
    """Tokens, less the one that ends it."""


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Have a model in eval mode and without gradients, and then every part of it as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """Return the tokens that end a solution: the end of a text, and that of a turn where there is a chat template."""
    generation: Any = model.generation_config
    ends = [tokenizer.eos_token_id, model.config.eos_token_id, generation.eos_token_id if generation else None]
    found = {end for each in ends if each is not None for end in (each if isinstance(each, list) else [each])}
    if tokenizer.chat_template:
        said = "zqxj"
        turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": said}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
        after = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
        special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
        found |= set([token for token in after if token in special][:1])
    return found


_CACHE_BYTES = 2**30
"""What keys and values may take where no batch is asked for."""
_FEWEST, _MOST = 8, 64


def rows_at_once(model: PreTrainedModel, tokens: int) -> int:
    """Return how many rows of `tokens` tokens are computed at once where no batch is asked for.

    A small model is slow by the number of its steps, a large one by what it must hold.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # of a model without attention nothing is known here
        return _FEWEST
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    a_row = 2 * config.num_hidden_layers * kept * width * model.dtype.itemsize * tokens
    return max(_FEWEST, min(_MOST, _CACHE_BYTES // a_row))


def write(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    config: NaturalEvaluationConfig,
    *,
    on_share: OnShare = unheard,
) -> list[Written]:
    """Return what `model` writes after each prompt, given as token ids; nothing after one that has none.

    What does not fit behind its prompt into the positions that the model has is cut off there. `on_share` is told
    before each batch what share of the prompts is done.
    """
    stops = stop_ids(model, tokenizer)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    # Only what has the same room is written together, so that nobody's limit is another's.
    rooms = [int(min(config.max_new_tokens, max(0, positions - len(p)))) if len(p) else 0 for p in prompts]
    written: dict[int, Written] = {i: Written("", False, 0) for i, room in enumerate(rooms) if not room}
    order = sorted((i for i, room in enumerate(rooms) if room), key=rooms.__getitem__)
    with measuring(model), _own_options_aside(model):
        for room, same in groupby(order, key=rooms.__getitem__):
            mine = list(same)
            longest = max(len(prompts[i]) for i in mine) + room
            for rows in by_length([len(prompts[i]) for i in mine], config.batch or rows_at_once(model, longest)):
                on_share(len(written) / len(prompts))
                chosen = [mine[row] for row in rows]
                seed = derive_seed(config.seed, "writing", chosen[0])
                outputs = _generate(model, [prompts[i] for i in chosen], room, stops, config.temperature, seed)
                for i, new in zip(chosen, outputs, strict=True):
                    written[i] = _read(tokenizer, prompts[i], new, stops)
    return [written[i] for i in range(len(prompts))]


@contextmanager
def _own_options_aside(model: PreTrainedModel) -> Iterator[None]:
    """Have a model without the options of its checkpoint, which would fill in whatever is not given."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    room: int,
    stops: Collection[int],
    temperature: float,
    seed: int,
) -> list[list[int]]:
    """Return the new tokens of each prompt; behind the first of `stops` there may be more."""
    width, pad = max(map(len, prompts)), min(stops, default=0)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    options = GenerationConfig(
        **({"do_sample": False} | drawing),
        max_new_tokens=room,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        generate: Any = model.generate
        output = generate(ids.to(device), attention_mask=mask.to(device), generation_config=options)
    return output[:, width:].tolist()


def _read(tokenizer: Any, prompt: Sequence[int], new: Sequence[int], stops: Collection[int]) -> Written:
    end = next((at for at, token in enumerate(new) if token in stops), None)
    kept = list(new[:end])
    # Behind its prompt: some tokenizers leave out a space with which a text begins, which a program would miss.
    before, whole, alone = (
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (prompt, [*prompt, *kept], kept)
    )
    return Written(whole.removeprefix(before) if whole.startswith(before) else alone, end is not None, len(kept))
