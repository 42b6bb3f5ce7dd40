"""Scaled states and action coefficients: what the network sees instead of radians, and the way back.

Both are modules, so that their statistics travel in the checkpoint's tensors.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn


class StateNormalizer(nn.Module):
    """Each joint's 1 % .. 99 % range → [-1, 1], clipped a little outside."""

    low: Tensor
    high: Tensor

    def __init__(self, dof: int) -> None:
        super().__init__()
        self.register_buffer("low", -torch.ones(dof))
        self.register_buffer("high", torch.ones(dof))

    def fit(self, states: Tensor, margin: float = 0.1, least: float = 0.02) -> None:
        """states: (N, dof) [rad; gripper 0..1]. The range is widened by `margin` and is at least `least`."""
        states = states.float()
        quantiles = torch.stack([torch.quantile(column, torch.tensor([0.01, 0.99])) for column in states.T])
        middle, half = quantiles.mean(1), quantiles.diff(dim=1)[:, 0] / 2
        half = (half * (1 + margin)).clamp_min(least)
        self.low.copy_(middle - half)
        self.high.copy_(middle + half)

    def scaled(self, state: Tensor) -> Tensor:
        """(…, dof) → (…, dof): the data's range to [-1, 1], held within a little more."""
        return ((state - self.low) / (self.high - self.low) * 2.0 - 1.0).clamp(-1.2, 1.2)


class ActionCodec(nn.Module):
    """Chunks of joint commands ↔ normalised coefficients of unit variance.

    Arm joints are taken relative to the state measured at the chunk's observation, grippers absolute; then
    the first `tokens` DCT-II coefficients over time (or the steps themselves), each less its mean and
    divided by its deviation over the data. A chunk that the basis can express comes back exactly.
    """

    basis: Tensor
    relative: Tensor
    mean: Tensor
    deviation: Tensor
    lowest: Tensor
    highest: Tensor
    near_mean: Tensor
    near_deviation: Tensor

    def __init__(
        self,
        dof: int,
        horizon: int,
        tokens: int,
        basis: Literal["dct", "steps"] = "dct",
        committed: int = 0,
    ) -> None:
        super().__init__()
        matrix = dct_matrix(horizon)[:tokens] if basis == "dct" else torch.eye(horizon)
        self.committed = committed
        self.register_buffer("basis", matrix, persistent=False)
        self.register_buffer("relative", torch.ones(dof))
        self.register_buffer("mean", torch.zeros(tokens, dof))
        self.register_buffer("deviation", torch.ones(tokens, dof))
        self.register_buffer("lowest", torch.full((tokens, dof), -4.0))
        self.register_buffer("highest", torch.full((tokens, dof), 4.0))
        self.register_buffer("near_mean", torch.zeros(dof))
        self.register_buffer("near_deviation", torch.ones(dof))

    def fit(self, chunks: Tensor, states: Tensor, is_gripper: Tensor, least: float = 1e-3) -> None:
        """chunks: (N, horizon, dof), states: (N, dof) [rad; gripper 0..1]; is_gripper: (dof,) bool.

        `least` [rad] bounds each deviation from below, so that a joint that never moves stays quiet.
        """
        self.relative.copy_(1.0 - is_gripper.float())
        coefficients = self._coefficients(chunks.float(), states.float())
        self.mean.copy_(coefficients.mean(0))
        floor = (
            least * math.sqrt(self.basis.shape[1]) if coefficients.shape[1] < self.basis.shape[1] else least
        )
        self.deviation.copy_(coefficients.std(0, correction=0).clamp_min(floor))
        normalised = (coefficients - self.mean) / self.deviation
        self.lowest.copy_(normalised.amin(0))
        self.highest.copy_(normalised.amax(0))
        near = (chunks[:, : max(1, self.committed)].float() - (states * self.relative)[:, None]).flatten(0, 1)
        self.near_mean.copy_(near.mean(0))
        self.near_deviation.copy_(near.std(0, correction=0).clamp_min(least))

    def encode(self, chunks: Tensor, states: Tensor) -> Tensor:
        """(B, horizon, dof) and (B, dof) → (B, tokens, dof) of about unit variance."""
        return (self._coefficients(chunks, states) - self.mean) / self.deviation

    def decode(self, coefficients: Tensor, states: Tensor) -> Tensor:
        """(B, tokens, dof) and (B, dof) → (B, horizon, dof) absolute joint commands."""
        chunks = self.basis.T @ (coefficients * self.deviation + self.mean)
        return chunks + (states * self.relative)[:, None]

    def commitment(self, steps: Tensor, count: Tensor, states: Tensor) -> Tensor:
        """The first commands of a chunk as the expert is told them → (B, committed · (dof + 1)).

        steps: (B, committed, dof) absolute; count: (B,) how many of them are committed to, the rest is
        ignored; states: (B, dof). Which ones count is told too.
        """
        near = (steps - (states * self.relative)[:, None] - self.near_mean) / self.near_deviation
        counts = torch.arange(self.committed, device=steps.device) < count[:, None]
        told = torch.cat([near, torch.ones_like(near[..., :1])], -1)
        return torch.where(counts[..., None], told, 0.0).flatten(1)

    @property
    def importance(self) -> Tensor:
        """(tokens, dof) of mean 1: weight of each coefficient's error in the loss.

        By how far the coefficient moves the joint, next to that joint's largest: nearly all of a chunk's
        shape lies in the lowest frequencies, and the highest hold little but noise, which unit variance
        would make as important. No less than a tenth.
        """
        weight = (self.deviation / self.deviation.amax(0)).clamp_min(0.1)
        return weight / weight.mean()

    def clamp(self, coefficients: Tensor) -> Tensor:
        """Coefficients held within what the data showed: a strong guidance must not leave the support."""
        return torch.minimum(torch.maximum(coefficients, self.lowest), self.highest)

    def moved(self, chunks: Tensor, states: Tensor) -> Tensor:
        """(B, horizon, dof) absolute → arm joints relative to the states (B, dof), grippers as they are."""
        return chunks - (states * self.relative)[:, None]

    def _coefficients(self, chunks: Tensor, states: Tensor) -> Tensor:
        return self.basis @ self.moved(chunks, states)


def dct_matrix(n: int) -> Tensor:
    """(n, n) orthonormal DCT-II: row k holds the k-th cosine over n time steps."""
    k, t = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (t + 0.5) * k / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
