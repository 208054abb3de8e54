"""Optimisers and the schedule. Half-precision weights are trained through fp32 masters."""

import torch
from torch import Tensor, nn

from peft_study.training.config import TrainingConfig
from peft_study.training.muon import Muon
from peft_study.training.sharding import mine, part


def rate(step: int, total_steps: int, warmup_share: float, cooldown_share: float) -> float:
    """Return the learning rate of `step` (from 0) as a share of the peak: linear up, constant, linear down to 0.

    >>> [rate(step, 4, 0.5, 0.5) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = max(1, round(total_steps * warmup_share))
    cooldown = max(1, round(total_steps * cooldown_share))
    return min((step + 1) / warmup, 1.0, (total_steps - step) / cooldown)


class Masters:
    """fp32 copies of the trained parameters: optimisers step these, the model computes with its own dtype.

    Updates below a bf16 weight's last bit would vanish without them.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = {name: p.detach().clone().float().requires_grad_() for name, p in parameters.items()}

    def take_gradients(self, *, add: bool = False) -> None:
        """Move the gradients of the parameters to the masters, with `add` onto those that are there.

        Sums of passes are so in fp32: in bf16 each would be rounded, 16 of them to three times one pass's error.
        """
        to: list[Tensor] = []
        given: list[Tensor] = []
        for name, parameter in self.parameters.items():
            value, gradient = self.values[name], parameter.grad
            kept = torch.zeros_like(value) if value.grad is None else value.grad
            if gradient is None:
                if not add:
                    kept.zero_()
            else:
                to.append(mine(kept))
                given.append(mine(gradient))
            value.grad, parameter.grad = kept, None
        take = torch._foreach_add_ if add else torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
        take(to, given)

    @torch.no_grad()
    def write(self) -> None:
        """Copy the masters into the parameters."""
        to, given = ([mine(each) for each in held.values()] for held in (self.parameters, self.values))
        torch._foreach_copy_(to, given)  # pyright: ignore[reportPrivateImportUsage]


BETAS, EPSILON = (0.9, 0.98), 1e-8
"""Of AdamW."""


class Optimizers:
    """AdamW for all, or Muon for the matrices of the layers and AdamW for the rest (`training.optimizer`).

    With Muon the gains of norms move at Muon's rate too: attention cannot sharpen before those of queries and keys
    have grown.
    """

    def __init__(self, values: dict[str, Tensor], config: TrainingConfig, lr: float) -> None:
        inner = [
            name
            for name, value in values.items()
            if config.optimizer == "muon" and value.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        ]
        rest = [name for name in values if name not in inner]
        self.parts: list[torch.optim.Optimizer] = []
        if inner:
            groups = [{"params": [values[name] for name in inner], "peak": config.muon_lr}]
            self.parts.append(Muon(groups, config.muon_lr, weight_decay=config.weight_decay))
        matrices = [values[name] for name in rest if values[name].ndim >= 2]
        vectors = [values[name] for name in rest if values[name].ndim < 2]
        vector_lr = config.muon_lr if inner else lr
        groups = [
            {"params": matrices, "peak": lr, "weight_decay": config.weight_decay},
            {"params": vectors, "peak": vector_lr, "weight_decay": 0.0},
        ]
        # Of adapters alone, Muon has all.
        if groups := [group for group in groups if group["params"]]:
            self.parts.append(torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPSILON, fused=True))

    def moments(self, value: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return AdamW's means of the gradient and of its square for a trained value, and the steps taken."""
        state = self.parts[-1].state.get(value)
        if not state:
            return torch.zeros_like(value), torch.zeros_like(value), 0
        return state["exp_avg"], state["exp_avg_sq"], int(state["step"])

    def set_moments(self, value: Tensor, mean: Tensor, square: Tensor, steps: int) -> None:
        """Set what `moments` returns."""
        self.parts[-1].state[value] = {
            "step": torch.tensor(float(steps), device=value.device),
            "exp_avg": mean.clone(),
            "exp_avg_sq": square.clone(),
        }

    def step(self, share: float) -> None:
        """Take one step with every learning rate at `share` of its peak."""
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the optimisers' state as tensors by name; of those that are shared out, this process's part."""
        tensors: dict[str, Tensor] = {}
        for i, optimizer in enumerate(self.parts):
            for j, state in optimizer.state_dict()["state"].items():
                tensors.update({f"optimizer.{i}.{j}.{key}": value for key, value in state.items()})
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for i, optimizer in enumerate(self.parts):
            found = optimizer.state_dict()
            stepped = [value for group in optimizer.param_groups for value in group["params"]]
            prefix = f"optimizer.{i}."
            for name in sorted(name for name in tensors if name.startswith(prefix)):
                j, _, key = name.removeprefix(prefix).partition(".")
                found["state"].setdefault(int(j), {})[key] = part(tensors[name], stepped[int(j)])
            optimizer.load_state_dict(found)
