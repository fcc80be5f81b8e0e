"""The variational bound of a DDPM, term by term: L_0, L_1, ..., L_T, in nats."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.forward import noise_like, noise_std, q_sample, signal_scale
from ddpm_lib.diffusion.posterior import ReverseVar, posterior_mean, posterior_mean_from_eps, posterior_var
from ddpm_lib.diffusion.schedule import Schedule, coefficient
from ddpm_lib.gaussian import kl_divergence

EpsModel = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) → ε_θ, shaped like x_t
Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_0, mean, var) → log-likelihood of each entry, in nats


@coefficient
def posterior_var_clipped(schedule: Schedule, t: Tensor) -> Tensor:
    """β̃_t, the lower choice of σ_t², with β̃_2 in the place of β̃_1 = 0 (T ≥ 2). The upper choice is `forward_var`.

    Source: Ho et al. 2020, their code's `posterior_log_variance_clipped`.
    """
    return posterior_var(schedule, t.clamp(min=min(2, schedule.T)))


def prior_term(schedule: Schedule, x_0: Tensor, *, mean: float | Tensor = 0.0, var: float | Tensor = 1.0) -> Tensor:
    """Eq. 5.3 (prior term). L_T = KL(q(x_T|x_0) ‖ N(mean, var)) in nats, summed over the entries, shape (B,).

    x_0: (B, ...). mean, var: those of the prior p(x_T), N(0, I) in every DDPM; they broadcast against x_0.
    Nothing in it is learned. Source: Ho et al. 2020, Eq. 5.
    """
    x_0 = x_0.double()
    scale, std = (f(schedule, schedule.T, like=x_0) for f in (signal_scale, noise_std))
    return kl_divergence(scale * x_0, std**2, mean, var).expand_as(x_0).flatten(1).sum(1)


def denoising_term(
    schedule: Schedule, x_0: Tensor, x_t: Tensor, mean: Tensor, var: Tensor | float, t: int | Tensor
) -> Tensor:
    """Eq. 5.4 (denoising term). KL(q(x_{t−1}|x_t, x_0) ‖ N(mean, var)) in nats, summed over the entries, (B,).

    x_0, x_t: (B, ...); mean, var: the model's p(x_{t−1}|x_t), var > 0 and shaped to broadcast against x_t.
    t: an int or (B,), in 2..T: at t = 1 the posterior is a point and the term is infinite; L_0 is a `decoder`'s.
    Its mean over x_t ~ q(x_t|x_0) is L_{t−1}. Source: Ho et al. 2020, Eq. 5.
    """
    true_mean, true_var = posterior_mean(schedule, x_0, x_t, t), posterior_var(schedule, t, like=x_t)
    return kl_divergence(true_mean, true_var, mean, var).expand_as(x_t).flatten(1).sum(1)


def discretised_log_likelihood(x_0: Tensor, mean: Tensor, var: Tensor | float, levels: int = 256) -> Tensor:
    """Eq. 5.5 (discretised decoder). log P(x_0) in nats for each entry: the mass of N(mean, var) in x_0's bin.

    x_0: grey levels that are scaled to [−1, 1], `levels` values 2/(levels − 1) apart. A bin reaches half-way to its
    neighbours, the outermost two reach to ∓∞, so the levels' probabilities sum to 1. var > 0 (ValueError otherwise).
    Computed in float64 from the logarithms of tail areas, so it is finite for a model that is sharp and wrong.
    Source: Ho et al. 2020, Eq. 13.
    """
    x_0, mean = x_0.double(), mean.double()
    var = torch.as_tensor(var, dtype=torch.float64, device=x_0.device)
    if var.device.type == "cpu" and not (var > 0).all():  # on a GPU it would make us wait: there the result is NaN
        raise ValueError(f"expected a variance > 0, got {float(var.min()):g} (the posterior's is 0 at t = 1)")
    half, std = 1 / (levels - 1), var.sqrt()
    low, high = (x_0 - half - mean) / std, (x_0 + half - mean) / std
    right = low + high > 0  # the bin lies right of the mean: mirror it, for the left tail's logarithm is accurate
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    first, last = x_0 < -1 + half, x_0 > 1 - half
    to_the_left = torch.where(right, last, first)  # after mirroring, the bin that has no lower end ...
    to_the_right = torch.where(right, first, last)  # ... and the one that has no upper end
    log_high = torch.where(to_the_right, torch.zeros_like(high), log_tail(high))
    below = log_tail(low) - log_high  # log of the share of that area which is below the bin
    return log_high + torch.where(to_the_left, torch.zeros_like(below), torch.log(-torch.expm1(below)))


def log_tail(z: Tensor) -> Tensor:
    """log Φ(z), the area to the left of z. torch's log_ndtr has wrong gradients below −1e7, where sharp models are."""
    far = z.clamp(max=-5)
    tail = torch.log(torch.special.erfcx(-far / math.sqrt(2)) / 2) - far**2 / 2
    return torch.where(z > -5, torch.special.log_ndtr(z.clamp(min=-5)), tail)


def bound_term(
    eps_model: EpsModel,
    schedule: Schedule,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    *,
    reverse_var: ReverseVar = posterior_var_clipped,
    decoder: Decoder = discretised_log_likelihood,
) -> Tensor:
    """L_{t−1} at x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε: one sample of it for each example, in nats, (B,), float64.

    That is the denoising term for t ≥ 2, and −decoder(x_0, mean, var) for t = 1. The model is
    p(x_{t−1}|x_t) = N(μ_θ, reverse_var), with μ_θ from eps_model(x_t, t) by Eq. 4.6. x_0, eps: (B, ...); t: (B,).
    It sees x_t in x_0's dtype; the rest is in float64.
    """
    x_0_, eps_ = x_0.double(), eps.double()
    x_t = q_sample(schedule, x_0_, eps_, t)
    eps_hat = eps_model(x_t.to(x_0.dtype), to_device(t, x_0.device))
    if eps_hat.shape != x_t.shape:
        raise ValueError(f"the model returned shape {tuple(eps_hat.shape)}; expected that of x_t, {tuple(x_t.shape)}")
    mean, var = posterior_mean_from_eps(schedule, x_t, eps_hat.double(), t), reverse_var(schedule, t, like=x_t)
    on_host = t.device.type == "cpu"  # there nobody waits for the answer which terms are needed
    if on_host and bool((t > 1).all()):
        return denoising_term(schedule, x_0_, x_t, mean, var, t)
    reconstruction = -decoder(x_0_, mean, var).expand_as(x_t).flatten(1).sum(1)
    if on_host and bool((t == 1).all()):
        return reconstruction
    divergence = denoising_term(schedule, x_0_, x_t, mean, var, t.clamp(min=2))
    return torch.where(to_device(t, x_0.device) == 1, reconstruction, divergence)


@torch.no_grad()
def bound_terms(
    eps_model: EpsModel,
    schedule: Schedule,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    *,
    reverse_var: ReverseVar = posterior_var_clipped,
    decoder: Decoder = discretised_log_likelihood,
) -> Tensor:
    """Eq. 5.6 (bound, term by term). L_0, L_1, ..., L_T in nats per example, (B, T+1), float64, on the CPU.

    Their sum over the last dimension is an unbiased estimate of L ≥ −log p_θ(x_0): L_T is exact, each other term is
    taken at one x_t, with noise of its own. It calls eps_model(x_t, t) T times, with all of x_0, (B, ...), at once.
    `bound_term` says what reverse_var and decoder are. Source: Ho et al. 2020, Eq. 5 (their L_{t−1} is [:, t−1]).
    """
    terms = []
    for step in range(1, schedule.T + 1):
        t, eps = torch.full((len(x_0),), step), noise_like(x_0, generator)
        terms.append(bound_term(eps_model, schedule, x_0, eps, t, reverse_var=reverse_var, decoder=decoder))
    return torch.stack([*terms, prior_term(schedule, x_0)], dim=1).cpu()


def bits_per_dim(nats: Tensor, dims: int) -> Tensor:
    """Eq. 5.7 (bits per dimension). nats/(dims·log 2), shaped like nats: how many bits each number of an image takes.

    nats: −log P of whole images, or a bound on it, for values on a grid (`discretised_log_likelihood`).
    dims: the numbers in one image, C·H·W. Source: the usual unit; Theis et al. 2016 say why it needs a grid.
    """
    return nats / (dims * math.log(2))
