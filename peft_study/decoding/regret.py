"""Retry upon regret with the perfect detector (Part 2.2, section 3, version P).

At each `Define X as` the truth tells whether X can be computed; where it cannot, the row goes back to the end of
the previous sentence and chooses again, sampling up to the next `as`. What a model gains by this is what knowing
its wrong choices could be worth at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from peft_study.decoding.decoder import Decoder
from peft_study.decoding.engine import make_decoder
from peft_study.igsm.parse import Reference, parse_problem
from peft_study.igsm.text import BACK
from peft_study.igsm.verify import ProblemFacts, parents_of
from peft_study.rng import derive_seed


@dataclass(slots=True)
class _Row:
    facts: ProblemFacts
    tokens: list[int] = field(default_factory=list)
    known: set[Reference] = field(default_factory=set)
    sentence: list[str] = field(default_factory=list)
    """Words since the last full stop."""
    start: tuple[int, int, Tensor | None] = (0, 0, None)
    """Where the sentence began: cached tokens, generated tokens, logits."""
    retries: int = 0
    sampling: bool = False

    def computable(self, reference: Reference) -> bool:
        """Whether all that `reference` is computed from has been defined, rightly or not."""
        candidates = self.facts.expressions(reference)
        return reference not in self.known and any(parents_of(e) <= self.known for _, e in candidates)


def _reference(sentence: list[str]) -> Reference | None:
    """Return what `Define X's Y as` defines, None for any other sentence."""
    if len(sentence) != 5 or sentence[0] != "Define" or sentence[4] != "as":
        return None
    return sentence[1], sentence[3]


def generate_with_regret(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    problems: Sequence[str],
    words: Sequence[str],
    *,
    end_id: int,
    max_length: int,
    max_retries: int = 10,
    seed: int = 0,
) -> list[list[int]]:
    """Return the tokens generated after each prompt, wrong choices taken back; `words` gives the word of each id.

    Greedy but for the choices made again, which are sampled from the model's own distribution.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "regret"))
    rows = [_Row(ProblemFacts(parse_problem(problem))) for problem in problems]
    alive = list(range(len(rows)))
    decoder = make_decoder(model, max_length)
    with decoder.at_work():
        decoder.prefill(prompts)
        for index, row in enumerate(rows):
            row.start = (int(decoder.lengths[index]), 0, decoder.logits[index].clone())
        while alive:
            tokens = decoder.logits.argmax(-1)
            for at, index in enumerate(alive):
                row = rows[index]
                if row.sampling:
                    weights = decoder.logits[at].float().softmax(-1).cpu()
                    tokens[at] = int(torch.multinomial(weights, 1, generator=generator))
                row.tokens.append(int(tokens[at]))
                row.sentence.append(words[int(tokens[at])])
            decoder.step(tokens)
            for at, index in enumerate(alive):
                _look_back(rows[index], decoder, at, max_retries)
            going = [
                at
                for at, index in enumerate(alive)
                if rows[index].tokens[-1:] != [end_id] and decoder.lengths[at] < max_length - 1
            ]
            if len(going) < len(alive):
                decoder.keep(torch.tensor(going, dtype=torch.long))
                alive = [alive[at] for at in going]
    return [row.tokens for row in rows]


def _look_back(row: _Row, decoder: Decoder, at: int, max_retries: int) -> None:
    """Go back to the sentence's start if its choice is wrong; note a sentence that is done."""
    reference = _reference(row.sentence)
    if reference is not None:
        row.sampling = False
        if not row.computable(reference) and row.retries < max_retries:
            length, generated, logits = row.start
            assert logits is not None
            decoder.rewind(at, length, logits)
            del row.tokens[generated:]
            row.sentence = []
            row.retries += 1
            row.sampling = True
    elif row.sentence[-1:] == ["."]:
        if (done := _reference(row.sentence[:5])) and BACK not in row.sentence:
            row.known.add(done)
        row.sentence = []
        row.start = (int(decoder.lengths[at]), len(row.tokens), decoder.logits[at].clone())
