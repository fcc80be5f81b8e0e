"""The scaled-linear schedule of latent diffusion: the standard deviation √β_t is linear in t, not the variance β_t."""

import torch

from ddpm_lib.diffusion.schedule import Schedule


def scaled_linear_schedule(T: int = 1000, beta_1: float = 0.00085, beta_T: float = 0.012) -> Schedule:
    """Eq. 9.1 (scaled-linear schedule). √β_t = √β_1 + (t − 1)/(T − 1)·(√β_T − √β_1) for t = 1..T.

    T: at least 2. The ends are reached exactly and are not rescaled with T. Raises ValueError where a β leaves (0, 1).
    Source: Rombach et al. 2022, their code's `make_beta_schedule`, which calls it "linear"; diffusers' "scaled_linear".
    """
    if T < 2:
        raise ValueError(f"a scaled-linear schedule has two ends, so T must be at least 2; got T = {T}")
    if not (0 < beta_1 < 1 and 0 < beta_T < 1):  # the root of a negative end would be NaN
        raise ValueError(f"both ends must lie strictly between 0 and 1; got {beta_1:g} and {beta_T:g}")
    beta = torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2
    beta[0], beta[-1] = beta_1, beta_T
    return Schedule(beta)
