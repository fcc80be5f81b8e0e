"""The posterior q(x_{t−1}|x_t, x_0): one step back when the clean image is known. A Gaussian, by Bayes' rule."""

from collections.abc import Callable

from torch import Tensor

from ddpm_lib.diffusion.forward import forward_var, noise_std, step_scale
from ddpm_lib.diffusion.schedule import Schedule, coefficient

ReverseVar = Callable[..., Tensor]  # σ_t², a `coefficient`: (schedule, t, like=x) → a variance


@coefficient
def posterior_var(schedule: Schedule, t: Tensor) -> Tensor:
    """Eq. 4.3 (posterior variance). β̃_t = (1 − ᾱ_{t−1})/(1 − ᾱ_t)·β_t, shaped like t; exactly 0 at t = 1.

    A variance: take its square root before you multiply noise with it. Source: Ho et al. 2020, Eq. 7.
    """
    return (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]


@coefficient
def x_0_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """√ᾱ_{t−1}·β_t/(1 − ᾱ_t), the weight of x_0 in the posterior mean; 1 at t = 1."""
    return schedule.alpha_bar[t - 1].sqrt() * schedule.beta[t] / (1 - schedule.alpha_bar[t])


@coefficient
def x_t_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """√α_t·(1 − ᾱ_{t−1})/(1 − ᾱ_t), the weight of x_t in the posterior mean; 0 at t = 1."""
    return schedule.alpha[t].sqrt() * (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t])


def posterior_mean(schedule: Schedule, x_0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 4.4 (posterior mean). μ̃_t = √ᾱ_{t−1}·β_t/(1 − ᾱ_t)·x_0 + √α_t·(1 − ᾱ_{t−1})/(1 − ᾱ_t)·x_t.

    x_0, x_t: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns E[x_{t−1}|x_t, x_0], (B, ...);
    at t = 1 that is x_0. Source: Ho et al. 2020, Eq. 7.
    """
    return x_0_weight(schedule, t, like=x_t) * x_0 + x_t_weight(schedule, t, like=x_t) * x_t


def posterior_mean_from_eps(schedule: Schedule, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 4.6 (posterior mean from noise). μ̃_t = (x_t − β_t/√(1 − ᾱ_t)·ε)/√α_t, with x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε.

    x_t, eps: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns the same mean as
    `posterior_mean`, (B, ...), without x_0. Source: Ho et al. 2020, Eq. 10.
    """
    shift = forward_var(schedule, t, like=x_t) / noise_std(schedule, t, like=x_t)
    return (x_t - shift * eps) / step_scale(schedule, t, like=x_t)


def eps_from_posterior_mean(schedule: Schedule, x_t: Tensor, mean: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 4.7 (noise from posterior mean). ε = √(1 − ᾱ_t)/β_t·(x_t − √α_t·μ̃_t), the inverse of Eq. 4.6 in ε.

    x_t, mean: (B, ...); t: an int or shape (B,), in 1..T (ValueError otherwise). Returns ε, (B, ...). Source: Ho et
    al. 2020, Eq. 10 solved for ε.
    """
    scale = noise_std(schedule, t, like=x_t) / forward_var(schedule, t, like=x_t)
    return scale * (x_t - step_scale(schedule, t, like=x_t) * mean)
