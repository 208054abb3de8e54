"""Muon: momentum whose matrices are made nearly orthogonal before each step (Jordan et al., 2024).

torch.optim.Muon gives the same steps, matrix by matrix and in bf16. Here all matrices of a shape are one batched
product, in their own precision: that is faster for small models, most of all where a CPU is slow at bf16 (LOG.md).
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: chosen for its slope at 0, not for convergence to 1 (Jordan et al., 2024)."""


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return [n, rows, columns] with the singular values of each matrix brought to between about 0.5 and 1.5."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, at the rate times sqrt(max(1, rows / columns)); decoupled weight decay."""

    def __init__(
        self, params: list[dict[str, Any]], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; parameters, all of them matrices, without a gradient stay as they are."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Any]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for (rows, columns), parameters in alike.items():
                gradients = torch.stack([parameter.grad for parameter in parameters])
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    state = self.state[parameter]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                    gradient.lerp_(state["momentum_buffer"], group["momentum"])
                updates = orthogonalized(gradients).mul_(-group["lr"] * max(1, rows / columns) ** 0.5)
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update)
