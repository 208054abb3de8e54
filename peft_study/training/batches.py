"""What a step reads: windows of tokens made into inputs, places with loss and answers, and the loss itself.

Shapes: B windows, T tokens of a window, N positions with loss, V words.
"""

from collections.abc import Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from peft_study.errors import ConfigError
from peft_study.igsm.stream import Tokens, WindowStream
from peft_study.igsm.text import Kind
from peft_study.skills.config import SkillConfig
from peft_study.skills.targets import NOT_A_DECISION, WRONG, correction_targets, decision_labels
from peft_study.training.losses import correction_loss, detection_loss

MEASURED_WINDOWS = 8
"""Windows of a pass that only measures."""


class Batch(NamedTuple):
    """What one pass reads."""

    ids_BT: Tensor
    where_BT: Tensor
    """Positions whose output has loss."""
    answers_N: Tensor
    """Next words, or with `verdict` 1 where the step is wrong."""
    weights_N: Tensor | None = None
    """Weight of each, where they differ."""
    positions_BT: Tensor | None = None
    """Place of each token in its document; None where the learner finds the documents itself."""
    verdict: bool = False
    """Whether the outputs are two, right and wrong, instead of the vocabulary."""


class Source(Protocol):
    """What a run reads, as far as its checkpoint is concerned."""

    @property
    def length(self) -> int:
        """Return the tokens of a window."""
        ...

    @property
    def next_index(self) -> int:
        """Return where it is to go on."""
        ...

    @next_index.setter
    def next_index(self, index: int) -> None: ...


Stream = TypeVar("Stream", bound=Source)


class Task(Source, Protocol):
    """What a run reads and is measured on."""

    def batches(self, windows: int, part: slice, micro: int, device: torch.device) -> list[Batch]:
        """Read the next `windows` windows and return those of `part` as batches of at most `micro`, 0 for all."""
        ...

    def validation(self, device: torch.device) -> Iterable[Batch]:
        """Return what the loss is measured on."""
        ...


class Reader(Generic[Stream]):
    """A source that is where its stream is."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    @property
    def length(self) -> int:
        """Return the tokens of a window."""
        return self.stream.length

    @property
    def next_index(self) -> int:
        """Return the index, in the stream, of what is read next."""
        return self.stream.next_index

    @next_index.setter
    def next_index(self, index: int) -> None:
        self.stream.next_index = index


class StreamTask(Reader[WindowStream]):
    """A skill on the synthetic stream."""

    def __init__(self, stream: WindowStream, validation: Tokens, skill: SkillConfig) -> None:
        super().__init__(stream)
        self.skill, self._validation = skill, validation

    def batches(self, windows: int, part: slice, micro: int, device: torch.device) -> list[Batch]:
        """Read the next `windows` windows and return those of `part` as batches of at most `micro`, 0 for all."""
        read = self.stream.read(windows)
        mine = Tokens(read.ids[part], read.kinds[part])
        return [make_batch(each, self.skill, device) for each in split(mine, micro or windows)]

    def validation(self, device: torch.device) -> Iterator[Batch]:
        """Yield what the loss is measured on; problems have no weight there."""
        measured = self.skill.model_copy(update={"problem_weight": 0.0})
        for part in split(self._validation, MEASURED_WINDOWS):
            yield make_batch(part, measured, device)


def split(tokens: Tokens, windows: int) -> Iterator[Tokens]:
    """Yield tokens [B, T] in pieces of at most `windows` windows."""
    for start in range(0, len(tokens.ids), windows):
        yield Tokens(tokens.ids[start : start + windows], tokens.kinds[start : start + windows])


def make_batch(tokens: Tokens, skill: SkillConfig, device: torch.device) -> Batch:
    """Return the inputs, the positions and the answers of `skill` for windows of tokens [B, T]."""
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    if skill.name == "detection":
        labels = torch.from_numpy(decision_labels(tokens.kinds))
        where = labels != NOT_A_DECISION
        answers = (labels == WRONG)[where].long()
        return Batch(ids.to(device), where.to(device), answers.to(device), verdict=True)
    targets = torch.from_numpy(correction_targets(tokens.kinds, masked=skill.masked))
    weights = None
    if skill.problem_weight:
        given = torch.from_numpy(tokens.kinds == Kind.PROBLEM)
        given[:, 0] = False
        spread = given * (skill.problem_weight / max(1, int(given.sum()))) + targets / max(1, int(targets.sum()))
        targets = targets | given
        weights = spread[targets].to(device)
    return next_words(ids, targets, device)._replace(weights_N=weights)


def next_words(ids_BT: Tensor, targets_BT: Tensor, device: torch.device) -> Batch:
    """Return the batch in which the tokens at `targets_BT`, none of them the first of a window, are predicted."""
    # The output at a position predicts the next token, so everything moves one to the left.
    where = torch.zeros_like(targets_BT)
    where[:, :-1] = targets_BT[:, 1:]
    return Batch(ids_BT.to(device), where.to(device), ids_BT[targets_BT].to(device))


def batch_loss(learner: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of a batch, in nats."""
    options = {} if batch.positions_BT is None else {"positions_BT": batch.positions_BT}
    return loss_of(learner(batch.ids_BT, batch.where_BT, verdict=batch.verdict, **options), batch)


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean loss of logits [N, V], or [N, 2] for verdicts, in nats; 0 where nothing has loss."""
    if not len(batch.answers_N):
        return logits.sum() * 0.0
    if batch.verdict:
        return detection_loss(logits, batch.answers_N)
    return correction_loss(logits, batch.answers_N, batch.weights_N)


@torch.no_grad()
def validation_loss(learner: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the mean loss over all positions of `batches`."""
    learner.eval()
    total, count = 0.0, 0
    for batch in batches:
        total += float(batch_loss(learner, batch)) * len(batch.answers_N)
        count += len(batch.answers_N)
    learner.train()
    return total / max(1, count)


def share_of(windows: int, index: int, processes: int) -> slice:
    """Return which windows of a step process `index` takes; ConfigError where they cannot be shared evenly.

    >>> list(range(8))[share_of(8, 1, 2)]
    [1, 3, 5, 7]
    """
    if windows % processes:
        raise ConfigError(
            f"training.batch_windows must be a multiple of the {processes} processes, but is {windows}; "
            f"set training.batch_windows={processes * max(1, round(windows / processes))}"
        )
    return slice(index, None, processes)
