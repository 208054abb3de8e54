"""What every learner is to the loop that trains it."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import nn


class AbstractLearner(nn.Module, ABC):
    """A model of which something is trained.

    Called with ids [B, T], the positions [B, T] that are asked for and `verdict`, it gives logits [N, V], or [N, 2]
    for right and wrong; with `positions_BT`, the place of each token in its document, it keeps documents apart by that.
    """

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def num_trainable(self) -> int:
        """Return the number of trained values."""
        return sum(parameter.numel() for parameter in self.trainable().values())

    @torch.no_grad()
    def load_trained(self, values: dict[str, torch.Tensor]) -> None:
        """Copy values into what is trained, by name."""
        for name, parameter in self.trainable().items():
            parameter.copy_(values[name])

    @abstractmethod
    def place(self, device: torch.device) -> None:
        """Move to `device`, before the loop copies what is trained."""

    @abstractmethod
    def begin(self, dtype: torch.dtype, attention: str, *, compiled: bool) -> None:
        """Get ready to train, computing in `dtype` with `attention`; what is trained is then written by the loop."""

    @abstractmethod
    def end(self) -> None:
        """Be as before `begin` but for what is trained, which is then written by the loop."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained."""
