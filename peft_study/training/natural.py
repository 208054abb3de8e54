"""A skill on windows of encoded texts, for any causal language model. Shapes: B windows, T tokens of a window."""

from collections.abc import Iterator

import numpy as np
import torch

from peft_study.skills.packing import CorpusStream, Windows
from peft_study.skills.targets import NOT_A_DECISION, WRONG
from peft_study.training.batches import MEASURED_WINDOWS, Batch, Reader, next_words


class CorpusTask(Reader[CorpusStream]):
    """Documents in windows: correction predicts what is learned, detection judges the ends of steps."""

    def __init__(self, stream: CorpusStream, validation: Windows, *, verdict: bool) -> None:
        super().__init__(stream)
        self.windows, self.verdict = validation, verdict

    def batches(self, windows: int, part: slice, micro: int, device: torch.device) -> list[Batch]:
        """Read the next `windows` windows and return those of `part` as batches of at most `micro`, 0 for all."""
        mine = self.stream.read(windows).rows(part)
        return [corpus_batch(each, device, verdict=self.verdict) for each in _split(mine, micro or windows)]

    def validation(self, device: torch.device) -> Iterator[Batch]:
        """Yield what the loss is measured on."""
        for part in _split(self.windows, MEASURED_WINDOWS):
            yield corpus_batch(part, device, verdict=self.verdict)


def _split(windows: Windows, size: int) -> Iterator[Windows]:
    for start in range(0, len(windows.ids), size):
        yield windows.rows(slice(start, start + size))


def corpus_batch(windows: Windows, device: torch.device, *, verdict: bool) -> Batch:
    """Return the inputs, the positions and the answers of windows [B, T]."""
    ids = torch.from_numpy(windows.ids.astype(np.int64))
    positions = torch.from_numpy(windows.positions.astype(np.int64)).to(device)
    if verdict:
        labels = torch.from_numpy(windows.verdicts)
        where = labels != NOT_A_DECISION
        answers = (labels == WRONG)[where].long()
        batch = Batch(ids.to(device), where.to(device), answers.to(device), verdict=True)
    else:
        batch = next_words(ids, torch.from_numpy(windows.learned), device)
    return batch._replace(positions_BT=positions)
