"""Beam search, plain and multinomial (Part 2.2, section 2: beam 4 with sampling), with one prefill for all beams.

The scores and the end are those of `transformers` with its defaults (`length_penalty=1`, `early_stopping=False`), so
the output is the same token for token (a test holds it, sampled with the same generator included).

Shapes: P prompts still searched, K beams of each, C candidates, V words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from peft_study.decoding.engine import by_length, make_decoder
from peft_study.errors import ConfigError
from peft_study.telling import OnShare, unheard

_NEVER = -1e9
"""The score of what may not be chosen."""


class _Beams:
    """The beams of all prompts that are still searched."""

    def __init__(self, prompts: list[int], num_beams: int, device: torch.device) -> None:
        count = len(prompts)
        self.prompts = prompts
        """Index of each prompt."""
        self.num_beams = num_beams
        self.tokens_PKG = torch.zeros(count, num_beams, 0, dtype=torch.long, device=device)
        self.scores_PK = torch.full((count, num_beams), _NEVER, device=device)
        # The beams begin alike, so only the first may choose.
        self.scores_PK[:, 0] = 0
        self.done_scores_PK = torch.full((count, num_beams), _NEVER, device=device)
        self.done_PKG = self.tokens_PKG
        self.is_done_PK = torch.zeros(count, num_beams, dtype=torch.bool, device=device)

    def candidates(self, logits: Tensor, temperature: float | None, generator: torch.Generator | None) -> Tensor:
        """Return for each prompt the places [P, 2K] of its candidates among beam x word, and keep all scores."""
        log_probs = logits.float().log_softmax(-1)
        if temperature is not None:
            log_probs = log_probs / temperature
        count, words = len(self.prompts), log_probs.shape[-1]
        self.all_PC = (log_probs.view(count, self.num_beams, words) + self.scores_PK[..., None]).flatten(1)
        if temperature is None:
            return self.all_PC.topk(2 * self.num_beams).indices
        return torch.multinomial(self.all_PC.softmax(-1), 2 * self.num_beams, generator=generator)

    def advance(self, places_PC: Tensor, words: int, end_id: int, full_P: Tensor) -> tuple[Tensor, Tensor]:
        """Take the candidates up; return the beam each new one continues [P, K] and whether a prompt goes on [P].

        `full_P` says which prompts have no room for a further word.
        """
        parents_PC, chosen_PC = places_PC // words, places_PC % words
        scores_PC = self.all_PC.gather(1, places_PC)
        longer_PCG = torch.cat((_rows(self.tokens_PKG, parents_PC), chosen_PC[..., None]), -1)
        ends_PC = (chosen_PC == end_id) | full_P[:, None]
        length = longer_PCG.shape[-1]

        # Only the best K may end; the others are there to go on in their place.
        ended_PC = ends_PC.clone()
        ended_PC[:, self.num_beams :] = False
        merged_scores = torch.cat((self.done_scores_PK, scores_PC / length + ~ended_PC * _NEVER), 1)
        merged = torch.cat((torch.nn.functional.pad(self.done_PKG, (0, 1), value=-1), longer_PCG), 1)
        merged_done = torch.cat((self.is_done_PK, ended_PC), 1)
        best = merged_scores.topk(self.num_beams).indices
        self.done_scores_PK, self.is_done_PK = merged_scores.gather(1, best), merged_done.gather(1, best)
        self.done_PKG = _rows(merged, best)

        going_PC = scores_PC + ends_PC * _NEVER
        best = going_PC.topk(self.num_beams).indices
        self.scores_PK, self.tokens_PKG = going_PC.gather(1, best), _rows(longer_PCG, best)
        worst_P1 = self.done_scores_PK.min(1, keepdim=True).values
        bar_PK = torch.where(self.is_done_PK, worst_P1, _NEVER)
        goes_on = ((self.scores_PK[:, :1] / length) > bar_PK).any(1) & ~ends_PC.all(1)
        return parents_PC.gather(1, best), goes_on

    def keep(self, rows_P: Tensor) -> None:
        """Drop all prompts but those at `rows_P`."""
        self.prompts = [self.prompts[row] for row in rows_P.tolist()]
        for name in ("tokens_PKG", "scores_PK", "done_scores_PK", "done_PKG", "is_done_PK"):
            setattr(self, name, getattr(self, name)[rows_P])

    def best(self, row: int) -> list[int]:
        """Return the tokens of the best ended beam of a prompt."""
        return [token for token in self.done_PKG[row, 0].tolist() if token >= 0]


def _rows(values_PKG: Tensor, index_PC: Tensor) -> Tensor:
    return values_PKG.gather(1, index_PC[..., None].expand(-1, -1, values_PKG.shape[-1]))


def beam_search(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int,
    end_id: int,
    max_length: int,
    batch_size: int = 64,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
    on_share: OnShare = unheard,
) -> list[list[int]]:
    """Return the likeliest tokens found after each prompt, up to and with `end_id`, prompt and output <= `max_length`.

    With a `temperature` candidates are sampled from `generator`, without replacement, in place of the likeliest;
    outputs then depend on `batch_size`. `on_share` is told before each batch what share of the prompts is done. Raises
    ConfigError where `num_beams` or `temperature` is not positive.
    """
    if num_beams < 1 or (temperature is not None and temperature <= 0):
        raise ConfigError(
            f"num_beams must be at least 1 and temperature above 0, but got {num_beams} and {temperature}; "
            "set num_beams=1 and no temperature for greedy search"
        )
    outputs: list[list[int]] = [[] for _ in prompts]
    done = 0
    for batch in by_length([len(prompt) for prompt in prompts], batch_size):
        on_share(done / len(prompts))
        decoder = make_decoder(model, max_length)
        with decoder.at_work():
            decoder.prefill([prompts[i] for i in batch])
            device = decoder.logits.device
            decoder.keep(torch.arange(len(batch), device=device).repeat_interleave(num_beams))
            beams = _Beams(batch, num_beams, device)
            while beams.prompts:
                words = decoder.logits.shape[-1]
                places_PC = beams.candidates(decoder.logits, temperature, generator)
                full_P = decoder.lengths.view(-1, num_beams)[:, 0] + 1 >= max_length
                parents_PK, goes_on = beams.advance(places_PC, words, end_id, full_P)
                for row in (~goes_on).nonzero()[:, 0].tolist():
                    outputs[beams.prompts[row]] = beams.best(row)
                going = goes_on.nonzero()[:, 0]
                rows = (going[:, None] * num_beams + parents_PK[going]).flatten()
                beams.keep(going)
                if beams.prompts:
                    decoder.keep(rows)
                    decoder.step(beams.tokens_PKG[:, :, -1].flatten())
        done += len(batch)
    return outputs
