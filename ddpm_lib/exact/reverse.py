"""The true reverse step q(x_{t−1}|x_t) of mixture data, which a sampler imitates, and the exact law of its samples."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import noise_std, signal_scale
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var, x_0_weight
from ddpm_lib.exact.oracle import ExactDenoiser
from ddpm_lib.gaussian import log_density

Step = Callable[[Tensor, int], tuple[Tensor, Tensor | float]]  # (x_t, t) → mean and variance of x_{t−1}
START_REACH, START_PLACES = 8.0, 2001  # the grid for x_T, in deviations: less than 1e-14 lies outside
PLACES, FINAL_PLACES = 200, 1001  # that a grid has at least, and the last one, from which the law is read
NOISE_REACH = 7.0  # deviations of a step's noise that are looked at
NEGLIGIBLE = 1e-14  # of the largest probability


def reverse_mean(denoiser: ExactDenoiser, x_t: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 7.4 (mean of the true step). E[x_{t−1}|x_t] = μ̃_t(E[x_0|x_t], x_t), with μ̃_t of Eq. 4.4.

    x_t: (n, D); t: an int or shape (n,), in 1..T (ValueError otherwise). Returns (n, D). At t = 1 it is E[x_0|x_1].
    Gradients reach x_t, here and in Eq. 7.5 to 7.7.
    Source: the tower rule, for μ̃_t is linear in x_0.
    """
    return posterior_mean(denoiser.schedule, denoiser.x_0_hat(x_t, t), x_t, t)


def x_0_var(denoiser: ExactDenoiser, x_t: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 7.5 (what x_t leaves open). Var[x_0|x_t] of each entry: within the components, and between their means.

    x_t: (n, D); t: an int or shape (n,), in 1..T (ValueError otherwise). Returns (n, D), ≥ 0, in squares of the data's
    unit: the diagonal of the covariance, for entries may hang together when x_t is known.
    Source: the law of total variance, for the mixture q(x_0|x_t).
    """
    weight, mean, var = _clean_image(denoiser, x_t, t)
    center = (weight * mean).sum(1, keepdim=True)
    return (weight * (var + (mean - center) ** 2)).sum(1)


def reverse_var_exact(denoiser: ExactDenoiser, x_t: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 7.6 (variance of the true step). Var[x_{t−1}|x_t] = β̃_t + c_0²·Var[x_0|x_t], with c_0 = `x_0_weight`.

    x_t: (n, D); t: an int or shape (n,), in 1..T (ValueError otherwise). Returns a variance for each entry, (n, D):
    the diagonal of the covariance. At t = 1 it is Var[x_0|x_1]. It depends on x_t; β̃_t is a lower bound.
    Source: the law of total variance (Eq. 4.9), with Eq. 7.5 for the mixture.
    """
    rest = x_0_weight(denoiser.schedule, t, like=x_t) ** 2 * x_0_var(denoiser, x_t, t)
    return posterior_var(denoiser.schedule, t, like=x_t) + rest


def reverse_components(denoiser: ExactDenoiser, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 7.7 (the true step is a mixture). q(x_{t−1}|x_t) = Σ_k r_k·N(mean_k, diag(var_k)), for each x_t its own.

    x_t: (n, D); t: an int or shape (n,), in 1..T (ValueError otherwise). Returns r (n, K), which sums to 1: the
    probability of each component given x_t; and mean and var, (n, K, D): those of x_{t−1} given x_t and component.
    Source: Eq. 4.8 for one component at a time, for which everything is Gaussian.
    """
    weight, mean, var = _clean_image(denoiser, x_t, t)
    here = x_t[:, None]
    var = posterior_var(denoiser.schedule, t, like=here) + x_0_weight(denoiser.schedule, t, like=here) ** 2 * var
    return weight[..., 0], posterior_mean(denoiser.schedule, mean, here, t), var


def reverse_log_density(denoiser: ExactDenoiser, x_prev: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
    """log q(x_{t−1}|x_t) in nats, (n,), of the mixture of Eq. 7.7. x_prev, x_t: (n, D); t: an int or (n,), in 1..T."""
    weight, mean, var = reverse_components(denoiser, x_t, t)
    return (weight.log() + log_density(x_prev[:, None], mean, var).sum(-1)).logsumexp(1)


def _clean_image(denoiser: ExactDenoiser, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture q(x_0|x_t): weights (n, K, 1), means (n, K, D) and variances (n, K, D)."""
    here = x_t[:, None]
    weight, mean, var = (p.to(x_t) for p in (denoiser.mixture.weight, denoiser.mixture.mean, denoiser.mixture.var))
    scale, std = (f(denoiser.schedule, t, like=here) for f in (signal_scale, noise_std))
    marginal_var = scale**2 * var + std**2
    difference = here - scale * mean
    log_joint = weight.log() + log_density(difference, 0.0, marginal_var).sum(-1)
    known = (std**2 * var / marginal_var).expand_as(difference)
    return log_joint.softmax(1)[..., None], mean + scale * var / marginal_var * difference, known


@torch.no_grad()
def law_of_samples(step: Step, T: int, *, points: float = 3.0) -> tuple[Tensor, Tensor]:
    """Eq. 7.10 (law of the samples). p_{t−1}(y) = ∫ N(y; mean_t(x), var_t(x))·p_t(x) dx, from p_T = N(0, 1) to p_0.

    The law of what a sampler returns where data are single numbers: by quadrature, without a random draw.
    step: called as step(x_t, t) with x_t (n, 1), float64, and t = T, ..., 1, each once or twice; returns the mean of
    its x_{t−1}, (n, 1), and the variance, (n, 1) or one number for all. A variance of 0: a step without noise.
    points: how close the grid is, in places to a deviation of the noise that a step adds.
    Returns places in ascending order, (n,), and the probability of each, (n,), which sum to 1.
    Raises ValueError for variances that are 0 in some places and not in others, or negative.
    Source: the law of total probability (Chapman and Kolmogorov's equation), step by step.
    """
    x = torch.linspace(-START_REACH, START_REACH, START_PLACES, dtype=torch.float64)
    mass = torch.exp(log_density(x, 0.0, 1.0))
    mean, var = _moments(step, x, T)
    for t in range(T, 0, -1):
        if (var > 0).any():
            kept = mass > NEGLIGIBLE * mass.max()
            mean, order = mean[kept].sort()
            var, mass = var[kept][order], mass[kept][order]
            std, reach = var.min().sqrt(), NOISE_REACH * var.max().sqrt()
            x, after = _grid(step, float(mean[0] - reach), float(mean[-1] + reach), float(std), points, t - 1)
            height, arrived = mass / var.sqrt(), []
            for part in x.split(128):  # only places from where it can be reached
                near = slice(*torch.searchsorted(mean, torch.stack([part[0] - reach, part[-1] + reach])).tolist())
                arrived.append(torch.exp((part[:, None] - mean[near]) ** 2 * (-0.5 / var[near])) @ height[near])
            mass = torch.cat(arrived)
            mean, var = after
        else:
            x = mean
            mean, var = _moments(step, x, t - 1)
        mass = mass / mass.sum()
    x, order = x.sort()
    return x, mass[order]


def _moments(step: Step, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Means and variances, (n,) each, of a step from each of the places x (n,). At t = 0 nothing moves."""
    mean, var = step(x[:, None], t) if t > 0 else (x[:, None], 0.0)
    var = torch.as_tensor(var, dtype=x.dtype).expand(len(x), 1)[:, 0]
    if (var < 0).any() or ((var > 0).any() and (var == 0).any()):
        raise ValueError(f"expected variances that are all positive or all 0 at t = {t}; got {float(var.min()):g}")
    return mean.expand(len(x), 1)[:, 0], var


def _grid(
    step: Step, low: float, high: float, std: float, points: float, t: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Places from low to high for x_t, which came with noise of deviation `std`, and the moments of the step from them.

    To that deviation there are `points` places or more; and so many that the bells of the next step, too, have their
    centres no farther apart.
    """
    count = max(PLACES if t > 1 else FINAL_PLACES, math.ceil((high - low) / std * points))
    x = torch.linspace(low, high, count, dtype=torch.float64)
    mean, var = _moments(step, x, t)
    if (var > 0).all():
        closer = float(mean.diff().abs().max() / (var.min().sqrt() / points))
        if closer > 1:
            x = torch.linspace(low, high, math.ceil(count * closer), dtype=torch.float64)
            mean, var = _moments(step, x, t)
    return x, (mean, var)
