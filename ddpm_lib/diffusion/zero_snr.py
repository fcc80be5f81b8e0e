"""Schedules whose last x_T is noise and nothing else, and what a network must predict there: v (or x_0), not ε."""

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import noise_std, signal_scale
from ddpm_lib.diffusion.schedule import Schedule


def zero_snr_schedule(schedule: Schedule, alpha_bar_T: float = 0.0) -> Schedule:
    """Eq. 9.5 (zero terminal SNR). √ᾱ'_t = √ᾱ_1·(√ᾱ_t − √ᾱ_T)/(√ᾱ_1 − √ᾱ_T): the first is kept, the last becomes 0.

    alpha_bar_T: what ᾱ'_T becomes instead; the map of √ᾱ is then the one with these two ends. With 0, β'_T = 1 and ε
    says nothing of x_0 at T: a network must predict v or x_0. Code that goes by way of ε, as our samplers do, wants
    2**-24, where float32 keeps x_0 to a few thousandths.
    Raises ValueError for T < 2, or an alpha_bar_T that is neither 0 nor in 2**-40..ᾱ_1: 1 − β_T would lose it.
    Source: Lin et al. 2023, Algorithm 1; 2**-24 is what diffusers' EulerDiscreteScheduler takes.
    """
    first = float(schedule.alpha_bar[1])
    if schedule.T < 2 or not (alpha_bar_T == 0 or 2**-40 <= alpha_bar_T < first):
        raise ValueError(
            f"expected at least two steps, and alpha_bar_T = 0 or 2**-40 <= alpha_bar_T < alpha_bar[1] = {first:.6g}; "
            f"got T = {schedule.T}, alpha_bar_T = {alpha_bar_T:g}"
        )
    root, last = schedule.alpha_bar[1:].sqrt(), alpha_bar_T**0.5
    root = last + (root[0] - last) * ((root - root[-1]) / (root[0] - root[-1]))
    beta = 1 - (root[1:] / root[:-1]) ** 2
    return Schedule(torch.cat([schedule.beta[1:2], beta]), zero_terminal=True)


def x_0_from_v(schedule: Schedule, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 9.6 (clean image from velocity). x_0 = √ᾱ_t·x_t − √(1 − ᾱ_t)·v: nothing is divided, also where ᾱ_T = 0.

    x_t, v: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns (B, ...), not clipped.
    Source: Salimans and Ho 2022, appendix D; their α_t and σ_t are our √ᾱ_t and √(1 − ᾱ_t).
    """
    return signal_scale(schedule, t, like=x_t) * x_t - noise_std(schedule, t, like=x_t) * v
