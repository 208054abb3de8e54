"""Generation, ours and that of transformers, of the same model for the same problems.

What both have to agree on is a digest of all tokens generated.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.race import Gate
from peft_study.decoding import regret
from peft_study.decoding.beam import beam_search
from peft_study.decoding.decoder import Decoder
from peft_study.decoding.engine import generate, make_decoder
from peft_study.evaluation.problems import draw_problems, prompt_ids
from peft_study.igsm.families import NANO
from peft_study.igsm.text import END, PAD, join, problem_words
from peft_study.igsm.tokenizer import word_ids
from peft_study.models.base import Architecture, build_base, load_model
from peft_study.models.device import this_device
from peft_study.training.machine import prepare_process

LIMIT = 2 * NANO.max_tokens
OP = NANO.headline_op


def _model(base: str | None) -> Any:
    model: Any = load_model(Path(base)) if base else build_base(NANO, Architecture(), 0)
    return model.eval().to(this_device())


def _digest(outputs: list[list[int]]) -> float:
    return float(sum((at + 1) * token for output in outputs for at, token in enumerate(output)))


def ours(gate: Gate, *, base: str | None, prompts: int, threads: int, num_beams: int = 1) -> None:
    """Generate with our engine."""
    prepare_process(threads)
    model, asked = _model(base), _prompts(prompts)
    end_id = word_ids(NANO)[END]
    while True:
        if num_beams == 1:
            outputs = generate(model, asked, end_id=end_id, max_length=LIMIT, batch_size=prompts)
        else:
            outputs = beam_search(
                model, asked, num_beams=num_beams, end_id=end_id, max_length=LIMIT, batch_size=prompts
            )
        gate(_digest(outputs))


@torch.inference_mode()
def transformers(
    gate: Gate, *, base: str | None, prompts: int, threads: int, num_beams: int = 1, cache: str | None = None
) -> None:
    """Generate with transformers, prompts padded on the left."""
    torch.set_num_threads(threads)
    model, asked, ids = _model(base), _prompts(prompts), word_ids(NANO)
    longest = max(map(len, asked))
    device = model.device
    padded = torch.tensor([[ids[PAD]] * (longest - len(prompt)) + prompt for prompt in asked], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked], device=device)
    options = {} if cache is None else {"cache_implementation": cache}
    while True:
        found = model.generate(
            padded,
            attention_mask=mask,
            max_length=LIMIT,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=ids[END],
            pad_token_id=ids[PAD],
            use_cache=True,
            **options,
        )
        rows = found[:, longest:].tolist()
        gate(_digest([row[: row.index(ids[END]) + 1] if ids[END] in row else row for row in rows]))


def retry_upon_regret(gate: Gate, *, base: str | None, prompts: int, threads: int, prefill_again: bool) -> None:
    """Regenerate wrong choices: by going back in the cache, or by computing the prefix again."""
    prepare_process(threads)
    if prefill_again:
        regret.make_decoder = prefilling
    model, documents = _model(base), draw_problems(NANO, OP, prompts, split="test", seed=0)
    problems = [join(problem_words(document.problem, "pq")) for document in documents]
    while True:
        outputs = regret.generate_with_regret(
            model,
            [prompt_ids(document, "pq") for document in documents],
            problems,
            list(word_ids(NANO)),
            end_id=word_ids(NANO)[END],
            max_length=LIMIT,
        )
        gate(_digest(outputs))


def prefilling(model: Any, max_length: int) -> Decoder:
    """Return the quickest decoder there is, which cannot cut its cache."""
    kind = type(make_decoder(model, max_length))

    class Prefilling(kind):
        """Computes the prefix of a row again where it is to go back."""

        def __init__(self) -> None:
            super().__init__(model, max_length)
            self.again = kind(model, max_length)

        def prefill(self, prompts: Any) -> None:
            super().prefill(prompts)
            self.sequences = [list(prompt) for prompt in prompts]

        def step(self, tokens_B: Tensor) -> None:
            super().step(tokens_B)
            for sequence, token in zip(self.sequences, tokens_B.tolist(), strict=True):
                sequence.append(token)

        def keep(self, rows: Tensor) -> None:
            super().keep(rows)
            self.sequences = [self.sequences[row] for row in rows.tolist()]

        def rewind(self, row: int, length: int, logits: Tensor) -> None:
            del self.sequences[row][length:]
            self.again.prefill([self.sequences[row]])
            super().rewind(row, length, logits)

    return Prefilling()


def _prompts(count: int) -> list[list[int]]:
    return [prompt_ids(document, "pq") for document in draw_problems(NANO, OP, count, split="test", seed=0)]
