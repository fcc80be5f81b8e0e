"""Solvers of the probability-flow ODE whose error falls with the square of the step: Heun's, and DPM-Solver++ (2M).

Both ask the same network as DDIM does, at whole times of the same grid, and both are DDIM where it ends: a step to
s = 0 is of first order, for there the noise is 0, its logarithm −∞, and the network has no answer at t = 0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import signal_scale, snr
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import eps_from_x_0
from ddpm_lib.samplers.ancestral import OnStep, predict_x_0, progress_bar
from ddpm_lib.samplers.ddim import checked_times, ddim_step


def noise_ratio(schedule: Schedule, t: int) -> float:
    """σ̂_t = √((1 − ᾱ_t)/ᾱ_t), the noise in x_t/√ᾱ_t: in this variable DDIM is Euler's method. t in 1..T, an int."""
    return float(snr(schedule, t)) ** -0.5


@torch.no_grad()
def heun_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_T: Tensor,
    *,
    steps: int = 25,
    times: Sequence[int] | None = None,
    clip: bool = True,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Eq. 8.9 (Heun sampling). y_s = y_t + (σ̂_s − σ̂_t)·½(ε_hat(x_t, t) + ε_hat(x', s)), y = x/√ᾱ, x' by a DDIM step.

    Arguments, errors and result as in `ddim_sample`, without noise. A step asks the network twice, the last one (to
    s = 0, a plain DDIM step) once: 2·steps − 1 calls. on_step's x_0_hat is that of (x_t, t).
    Source: Karras et al. 2022, Algorithm 1; their σ is our σ̂, their x our x/√ᾱ.
    """
    x = x_T
    for t, s in progress_bar(list(pairwise(checked_times(schedule.T, steps, times))), progress):
        x_0_hat = predict_x_0(eps_model, schedule, x, t, clip)
        end = ddim_step(schedule, x_0_hat, x, t, s)
        if s > 0:
            there = predict_x_0(eps_model, schedule, end, s, clip)
            change = eps_from_x_0(schedule, end, there, s) - eps_from_x_0(schedule, x, x_0_hat, t)
            width = noise_ratio(schedule, s) - noise_ratio(schedule, t)
            end = end + signal_scale(schedule, s, like=x) * (width / 2) * change
        x = end
        if on_step is not None:
            on_step(s, x, x_0_hat)
    return x


@torch.no_grad()
def dpm_solver_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_T: Tensor,
    *,
    steps: int = 25,
    times: Sequence[int] | None = None,
    clip: bool = True,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Eq. 8.10 (DPM-Solver++ sampling). A DDIM step with x_0_hat + h/(2h')·(x_0_hat − x_0_hat') in place of x_0_hat.

    h = λ_s − λ_t is the width of the step in λ = log(√ᾱ/√(1 − ᾱ)), a dash marks the step before: the line through the
    last two estimates, in the middle of the step. The first step and the last (to s = 0) are DDIM's.
    Arguments, errors and result as in `ddim_sample`, without noise; `steps` network calls. With `clip` the estimates
    are clamped, not the line through them. on_step's x_0_hat is the estimate.
    Source: Lu et al. 2022 (DPM-Solver++), Algorithm 2; their α and σ are our √ᾱ and √(1 − ᾱ).
    """
    x, before = x_T, None
    for t, s in progress_bar(list(pairwise(checked_times(schedule.T, steps, times))), progress):
        x_0_hat = middle = predict_x_0(eps_model, schedule, x, t, clip)
        now = math.log(float(snr(schedule, t))) / 2
        if before is not None and s > 0:
            then = math.log(float(snr(schedule, s))) / 2
            middle = x_0_hat + (then - now) / (2 * (now - before[0])) * (x_0_hat - before[1])
        x = ddim_step(schedule, middle, x, t, s)
        before = now, x_0_hat
        if on_step is not None:
            on_step(s, x, x_0_hat)
    return x
