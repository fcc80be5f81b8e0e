"""Bits per dimension of a network, by the bound, on images that it may never have seen."""

import math
from collections.abc import Callable
from functools import partial

import torch
from scipy import stats
from torch import Tensor

from ddpm_lib.diffusion.elbo import (
    EpsModel,
    bits_per_dim,
    bound_term,
    discretised_log_likelihood,
    posterior_var_clipped,
    prior_term,
)
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.posterior import ReverseVar
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.evaluation.intervals import Measured


@torch.no_grad()
def network_bits(
    eps_model: EpsModel,
    schedule: Schedule,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    *,
    draws: int = 20,
    levels: int = 256,
    reverse_var: ReverseVar = posterior_var_clipped,
) -> tuple[Tensor, Tensor]:
    """Eq. 15.10 (bits of a network). Rate and distortion of each image in bits per dimension, (B,) each, float64.

    Distortion is L_0, and rate all other terms; their sum is an unbiased estimate of the bound on −log₂ P(x_0)/D.
    x_0: (B, C, H, W), values on a grid of `levels` grey levels scaled to [−1, 1] (ValueError for others: the decoder
    gives bins of that grid their probability; what is continuous, as latents are, has none). L_0 and L_T are taken
    for each image; of L_1 to L_{T−1} each image gets `draws` >= 1 terms, one from each of so many equal parts of the
    range of t, and (T − 1) times their mean.
    Source: Ho et al. 2020, §4.3 (their L_{1:T} is our rate, their L_0 our distortion).
    """
    grey = (x_0.double() + 1) * (levels - 1) / 2
    if not ((grey - grey.round()).abs().max() <= 1e-3 and grey.min() > -0.5 and grey.max() < levels - 0.5):
        raise ValueError(f"expected {levels} grey levels, scaled to [−1, 1]: bits are counted in their bins")
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    dims, B, T = x_0[0].numel(), len(x_0), schedule.T
    decoder = partial(discretised_log_likelihood, levels=levels)

    def term(t: Tensor) -> Tensor:
        eps = noise_like(x_0, generator)
        return bound_term(eps_model, schedule, x_0, eps, t, reverse_var=reverse_var, decoder=decoder).cpu()

    distortion = term(torch.ones(B, dtype=torch.int64))
    rate = prior_term(schedule, x_0).cpu()
    if T > 1:
        noise_device = generator.device if generator is not None else None
        for part in range(draws):
            u = torch.rand(B, generator=generator, dtype=torch.float64, device=noise_device).cpu()
            t = 2 + ((part + u) / draws * (T - 1)).long().clamp(max=T - 2)
            rate = rate + (T - 1) / draws * term(t)
    return bits_per_dim(rate, dims), bits_per_dim(distortion, dims)


def measured_bits(
    eps_model: EpsModel,
    schedule: Schedule,
    images: Tensor,
    generator: torch.Generator | None = None,
    *,
    draws: int = 20,
    batch: int = 256,
    levels: int = 256,
    labels: Tensor | None = None,
    reverse_var: ReverseVar = posterior_var_clipped,
) -> dict[str, Measured]:
    """Rate, distortion and their sum over images, (N, C, H, W), N >= 2, with intervals over images and draws.

    The intervals are Student's, of the images' mean. It calls eps_model(x_t, t), or eps_model(x_t, t, labels) where
    labels, (N,), are given.
    """
    if len(images) < 2:
        raise ValueError(f"expected two images at least, got {len(images)}")
    parts = []
    for start in range(0, len(images), batch):
        x_0 = images[start : start + batch]
        model: Callable = eps_model
        if labels is not None:
            own = labels[start : start + batch]
            model = lambda x_t, t, own=own: eps_model(x_t, t, own)  # noqa: E731
        of = network_bits(model, schedule, x_0, generator, draws=draws, levels=levels, reverse_var=reverse_var)
        parts.append(torch.stack(of, 1))
    rate, distortion = torch.cat(parts).T
    values = {"bits per dimension": rate + distortion, "rate": rate, "distortion": distortion}
    how = f"95 % over images, {draws} of {schedule.T - 1} terms each"
    measured, wide = {}, stats.t.ppf(0.975, len(images) - 1)
    for name, value in values.items():
        mean, reach = float(value.mean()), wide * float(value.std()) / math.sqrt(len(value))
        measured[name] = Measured(name, mean, mean - reach, mean + reach, how=how, real=len(images))
    return measured
