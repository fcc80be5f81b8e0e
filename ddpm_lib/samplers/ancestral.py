"""Ancestral sampling: walk the chain back from noise, one step of p_θ(x_{t−1}|x_t) at a time."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpm_lib.diffusion.forward import Generators, noise_like
from ddpm_lib.diffusion.posterior import ReverseVar, posterior_mean, posterior_var
from ddpm_lib.diffusion.schedule import Schedule, coefficient
from ddpm_lib.diffusion.targets import x_0_from_eps

GOLDEN = 0x9E3779B9  # 2³² over the golden ratio, an odd number: no seed comes twice
OnStep = Callable[[int, Tensor, Tensor], None]


def ancestral_step(
    schedule: Schedule,
    x_t: Tensor,
    x_0_hat: Tensor,
    t: int | Tensor,
    z: Tensor | None,
    reverse_var: ReverseVar = posterior_var,
) -> Tensor:
    """Eq. 7.1 (ancestral step). x_{t−1} = μ̃_t(x_0_hat, x_t) + σ_t·z, with μ̃_t of Eq. 4.4; no noise at t = 1.

    x_t, x_0_hat: (B, ...), the second in [−1, 1] for images; t: an int or shape (B,), in 1..T (ValueError otherwise).
    z: from N(0, I), shape (B, ...); None where t is the int 1. reverse_var: the coefficient that gives σ_t²:
    `posterior_var` (β̃_t) or `forward_var` (β_t), variances; what it says of t = 1 is not heeded.
    Returns x_{t−1}, (B, ...). Source: Ho et al. 2020, Algorithm 2, line 4, with their Eq. 7 for the mean.
    """
    mean = posterior_mean(schedule, x_0_hat, x_t, t)
    if isinstance(t, int) and t == 1:
        return mean
    std = reverse_var(schedule, t, like=x_t).sqrt()
    return mean + torch.where(_is_last(schedule, t, like=x_t) > 0, torch.zeros_like(std), std) * z


@coefficient
def _is_last(schedule: Schedule, t: Tensor) -> Tensor:
    """1 for the step from x_1 to x_0, which adds no noise, else 0."""
    return (t == 1).double()


@torch.no_grad()
def ancestral_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_T: Tensor,
    *,
    reverse_var: ReverseVar = posterior_var,
    clip: bool = True,
    generator: Generators = None,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Eq. 7.3 (ancestral sampling). From x_T by Eq. 7.1 for t = T, ..., 1, each with x_0_hat by Eq. 6.5 and a fresh z.

    eps_model: called as eps_model(x_t, t) with t of shape (B,), returns ε_θ, shape (B, ...).
    x_T: the noise to start from, (B, ...); its dtype and device are used throughout.
    reverse_var: the coefficient that gives σ_t²: `posterior_var` (β̃_t) or `forward_var` (β_t).
    clip: clamp x_0_hat to [−1, 1] in every step; for images it is decisive, for unbounded data turn it off.
    generator: of z, one for all images or one an image, see `generators`; None: torch's own.
    on_step: called as on_step(t, x_t, x_0_hat) after every step with the new t = T−1, ..., 0: a trajectory on request.
    Returns x_0, (B, ...). Source: Ho et al. 2020, Algorithm 2, with their released code's clipping.
    """
    x_t = x_T
    for t in progress_bar(range(schedule.T, 0, -1), progress):
        x_0_hat = predict_x_0(eps_model, schedule, x_t, t, clip)
        z = noise_like(x_t, generator) if t > 1 else None
        x_t = ancestral_step(schedule, x_t, x_0_hat, t, z, reverse_var)
        if on_step is not None:
            on_step(t - 1, x_t, x_0_hat)
    return x_t


def predict_x_0(
    eps_model: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, x_t: Tensor, t: int, clip: bool
) -> Tensor:
    """The clean image that the model's noise estimate implies at step t, (B, ...), clamped to [−1, 1] if `clip`."""
    eps_hat = eps_model(x_t, torch.full((len(x_t),), t, device=x_t.device))
    x_0_hat = x_0_from_eps(schedule, x_t, eps_hat, t)
    return x_0_hat.clamp(-1, 1) if clip else x_0_hat


def progress_bar(steps: Iterable, progress: bool) -> tqdm:
    """`steps` behind a progress bar, which shows only where `progress`."""
    return tqdm(steps, desc="sampling", mininterval=1, leave=False, disable=not progress)


def image_seeds(seed: int, count: int) -> list[int]:
    """A seed of its own for each of `count` images, so that image i is the same alone, in a batch or among thousands.

    Image i has seed + i·g modulo 2³² (a CPU generator heeds no more bits), g = 2³² over the golden ratio. Image 0 has
    `seed` itself, so image_seeds(image_seeds(seed, n)[i], m) goes on from image i. This step keeps the seeds of many
    images far apart: two seeds that differ by less than 50,000 share none of 50,000 images each.
    """
    return [(seed + i * GOLDEN) % 2**32 for i in range(count)]


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One generator an image, on the CPU, so that a seed means the same on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
