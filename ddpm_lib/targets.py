"""What a network may predict, and how one prediction is turned into another: ε ↔ x_0."""

from torch import Tensor

from ddpm_lib.forward import noise_std, signal_scale
from ddpm_lib.schedule import Schedule


def x_0_from_eps(schedule: Schedule, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """x_0 = (x_t − √(1 − ᾱ_t)·ε)/√ᾱ_t: the clean image that a noise estimate implies.

    x_t, eps: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...), not clipped.
    Near t = T an error in ε is multiplied by √(1 − ᾱ_t)/√ᾱ_t (157 for the linear schedule).
    Source: Ho et al. 2020, Eq. 15.
    """
    return (x_t - noise_std(schedule, t, like=x_t) * eps) / signal_scale(schedule, t, like=x_t)


def eps_from_x_0(schedule: Schedule, x_t: Tensor, x_0: Tensor, t: int | Tensor) -> Tensor:
    """ε = (x_t − √ᾱ_t·x_0)/√(1 − ᾱ_t): the noise that an estimate of the clean image implies.

    x_t, x_0: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...).
    """
    return (x_t - signal_scale(schedule, t, like=x_t) * x_0) / noise_std(schedule, t, like=x_t)
