"""The forward process q: from an image to noise, one step at a time or in one jump."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.schedule import Schedule, coefficient

Generators = torch.Generator | Sequence[torch.Generator] | None  # one for all images, one an image, or torch's own


@coefficient
def forward_var(schedule: Schedule, t: Tensor) -> Tensor:
    """β_t, the variance that one forward step adds."""
    return schedule.beta[t]


@coefficient
def step_scale(schedule: Schedule, t: Tensor) -> Tensor:
    """√α_t, by which one forward step shrinks the image."""
    return schedule.alpha[t].sqrt()


@coefficient
def signal_scale(schedule: Schedule, t: Tensor) -> Tensor:
    """√ᾱ_t, by which t forward steps shrink the image."""
    return schedule.alpha_bar[t].sqrt()


@coefficient
def noise_std(schedule: Schedule, t: Tensor) -> Tensor:
    """√(1 − ᾱ_t), the standard deviation of the noise after t forward steps."""
    return (1 - schedule.alpha_bar[t]).sqrt()


@coefficient
def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Eq. 3.6 (signal-to-noise ratio). ᾱ_t/(1 − ᾱ_t), a ratio of variances (not of decibels), shaped like t.

    Source: Kingma et al. 2021 (Variational Diffusion Models), Eq. 2; their α_t² is our ᾱ_t, their σ_t² our 1 − ᾱ_t.
    """
    return schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])


def forward_step(
    schedule: Schedule, x_prev: Tensor, t: int | Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Eq. 3.1 (forward step). Draws x_t ~ q(x_t|x_{t−1}): x_t = √(1 − β_t)·x_{t−1} + √β_t·ε with fresh ε ~ N(0, I).

    x_prev: x_{t−1}, shape (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise).
    Returns x_t, shape (B, ...). Source: Ho et al. 2020, Eq. 2.
    """
    eps = noise_like(x_prev, generator)
    return step_scale(schedule, t, like=x_prev) * x_prev + forward_var(schedule, t, like=x_prev).sqrt() * eps


def q_sample(schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 3.5 (forward jump). x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, which is distributed as q(x_t|x_0) if ε ~ N(0, I).

    x_0, eps: (B, ...), the data in [−1, 1]; t: an int or shape (B,), in 1..T (ValueError otherwise).
    Returns x_t, shape (B, ...). Source: Ho et al. 2020, Eq. 4 and the text below their Eq. 8.
    """
    return signal_scale(schedule, t, like=x_0) * x_0 + noise_std(schedule, t, like=x_0) * eps


def noise_like(x: Tensor, generator: Generators = None) -> Tensor:
    """ε ~ N(0, I) with x's shape, dtype and device, drawn where the generator lives: a seed means the same anywhere.

    A sequence holds one generator an image: each image's noise is then its own, whichever others are in the batch.
    Raises ValueError for a sequence of another length than x.
    """
    if not isinstance(generator, Sequence):
        device = x.device if generator is None else generator.device
        return to_device(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device), x.device)
    if len(generator) != len(x):
        raise ValueError(f"expected one generator for each of {len(x)} images, got {len(generator)}")
    each = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=g.device) for g in generator]
    return to_device(torch.stack(each), x.device)
