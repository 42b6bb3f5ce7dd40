"""What changes the weights: AdamW, or Muon for the matrices and AdamW for the rest, as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adamw", "muon")
_NARROW = 16  # a matrix with a shorter side is no mixing of features: actions in and out, for one


class Optimizer:
    """Over all parameters of a model that are trained.

    "muon" (Jordan et al. 2024; arXiv 2502.16982): the step of a linear layer's matrix is its momentum with
    all singular values made alike, scaled to the size of an AdamW step, so that one learning rate serves
    both. Embeddings, norms, biases and narrow matrices have AdamW. It fits better in as many steps
    (docs/learning.md, The optimiser). Raises ValueError on another name.
    """

    def __init__(self, model: nn.Module, name: str, rate: float, weight_decay: float) -> None:
        if name not in OPTIMIZERS:
            raise ValueError(f"optimizer is {name!r}, wanted one of {', '.join(OPTIMIZERS)}")
        mixing = _matrices(model) if name == "muon" else []
        chosen = {id(p) for p in mixing}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        self._parts: list[torch.optim.Optimizer] = []
        if others:
            self._parts.append(
                torch.optim.AdamW(others, rate, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True)
            )
        if mixing:
            self._parts.append(
                torch.optim.Muon(mixing, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What it remembers of a parameter, by name; filling these tensors fills its memory."""
        part = next(
            p for p in self._parts if any(parameter is q for g in p.param_groups for q in g["params"])
        )
        found = part.state[parameter]
        if isinstance(part, torch.optim.Muon):
            names = ["momentum_buffer"]
        else:
            names = ["exp_avg", "exp_avg_sq"]
            found.setdefault("step", torch.zeros((), device=parameter.device))  # as the fused AdamW wants it
        for name in names:
            if name not in found:
                found[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return dict(found)


def _matrices(model: nn.Module) -> list[Tensor]:
    layers = (m for m in model.modules() if isinstance(m, nn.Linear))
    return [m.weight for m in layers if m.weight.requires_grad and min(m.weight.shape) >= _NARROW]
