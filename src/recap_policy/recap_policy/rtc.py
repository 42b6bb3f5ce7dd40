"""Real-time chunking by in-painting (arXiv 2506.07339): a new chunk is pulled towards the last one's rest.

The paper runs the flow on the time steps themselves. Here the steps that are known are a linear function of
what is denoised, y = H z, with H the codec's basis and deviations, of which the paper's selection of rows is
one case. Step i counts with the weight W_i: it is taken as measured with the variance (1 - W_i) / W_i times
its own under the unit normal prior of z. The pull is then K (y - H ẑ) with

    K = Hᵀ (H Hᵀ + R)⁻¹,  R = diag((1 - W_i) / W_i · (H Hᵀ)_ii)

and where H is diagonal ("steps") K is diag(W) in normalised units: the paper's equation 2 to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recap_policy.normalize import ActionCodec

GREATEST_WEIGHT = 5.0  # the paper's β, for 5 denoising steps
_LEAST_VARIANCE = 1e-4  # of a frozen step, in units of its own: coefficients cannot express every chunk


@dataclass(frozen=True)
class Inpainting:
    """previous: (B, n, dof) what the last chunk holds from this observation's tick on [rad; gripper 0..1];
    frozen: how many of these are carried out before the new chunk arrives; greatest: limit of the weight."""

    previous: Tensor
    frozen: int
    greatest: float = GREATEST_WEIGHT


def soft_mask(frozen: int, overlap: int, horizon: int) -> Tensor:
    """(horizon,): 1 for the frozen steps, then falling to 0 where the last chunk ends (equation 5).

    Raises ValueError unless 0 <= frozen <= overlap <= horizon.
    """
    if not 0 <= frozen <= overlap <= horizon:
        raise ValueError(f"{frozen} frozen of {overlap} steps, wanted 0 <= frozen <= steps <= {horizon}")
    step = torch.arange(horizon, dtype=torch.float32)
    fading = ((overlap - step) / (overlap - frozen + 1)).clamp(0, 1)
    weight = fading * torch.expm1(fading) / torch.expm1(torch.ones(()))
    return torch.where(step < frozen, 1.0, weight)


def pull_weight(time: float, greatest: float) -> float:
    """Of the pull at flow time `time` (1: noise): the paper's min(β, (1 - τ) / (τ r²)) with τ = 1 - t."""
    done = 1.0 - time
    if done <= 0.0 or time <= 0.0:
        return greatest
    return min(greatest, (time**2 + done**2) / (time * done))


class Pull:
    """From a denoised estimate to the change of it that the last chunk asks for."""

    def __init__(self, codec: ActionCodec, inpainting: Inpainting, state: Tensor) -> None:
        """state: (B, dof) measured. Raises ValueError on steps that do not fit the horizon."""
        self.codec, self.state, self.greatest = codec, state, inpainting.greatest
        horizon, known = codec.basis.shape[1], inpainting.previous.shape[1]
        weight = soft_mask(inpainting.frozen, known, horizon).to(codec.basis)
        self.gain, self.frozen_gain = _gain(codec, weight), _gain(codec, weight.eq(1.0).to(weight))
        self.target = torch.nn.functional.pad(inpainting.previous, (0, 0, 0, horizon - known))

    def __call__(self, denoised: Tensor) -> Tensor:
        """(B, T, dof) → (B, T, dof), both normalised coefficients."""
        return self._towards(denoised, self.gain)

    def hold(self, actions: Tensor) -> Tensor:
        """(B, T, dof) → those with the frozen steps met: a step towards them only, which the weights of the
        paper leave undone by a little, and which coefficients, not being steps, would show as a jump."""
        return actions + self._towards(actions, self.frozen_gain)

    def _towards(self, actions: Tensor, gain: Tensor) -> Tensor:
        missing = self.target - self.codec.decode(actions, self.state)
        return torch.einsum("jth,bhj->btj", gain, missing)


def _gain(codec: ActionCodec, weight: Tensor) -> Tensor:
    """K of each joint, (dof, T, H). Written so that steps of weight 0, of infinite variance, drop out."""
    root = weight.double().sqrt()
    steps = codec.basis.T.double() * codec.deviation.T.double()[:, None]  # H: (dof, horizon, T)
    product = steps @ steps.mT
    own = product.diagonal(dim1=1, dim2=2)
    variance = (1 - weight + _LEAST_VARIANCE * weight).double() * own
    inner = root[:, None] * product * root + torch.diag_embed(variance)
    return (torch.linalg.solve(inner, root[:, None] * steps) * root[:, None]).mT.to(codec.basis)
