"""The sinusoidal time embedding: how a network is told t."""

import math

import torch
from torch import Tensor


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Eq. 10.1 (time embedding). [sin(ω_1·τ), …, sin(ω_h·τ), cos(ω_1·τ), …, cos(ω_h·τ)], τ = t − 1, h = width/2.

    The frequencies ω fall from 1 to 1/max_period by equal factors: radians a step.
    t: (B,), integers in 1..T. width: even and at least 4 (ValueError otherwise). Returns (B, width), in [−1, 1],
    float32, on t's device; angles up to 1000 cost four of float32's seven digits.
    Published networks count their steps from 0, so τ = t − 1 makes ours(t) equal to theirs(t − 1).
    Source: Vaswani et al. 2017, section 3.5, in the form of Ho et al. 2020's code (sines first, then cosines); their
    pos, d_model are our τ, width.
    """
    if width < 4 or width % 2:
        raise ValueError(f"the embedding holds sines and cosines in pairs: width must be even and >= 4, got {width}")
    half = width // 2
    omega = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(max_period) / (half - 1)))
    angle = (t - 1).float()[:, None] * omega  # (B, half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)  # (B, width)
