"""The cosine schedule: noise that grows evenly, where the linear schedule spends its last third on little but noise."""

import math

import torch

from ddpm_lib.diffusion.schedule import Schedule


def cosine_schedule(T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> Schedule:
    """Eq. 9.2 (cosine schedule). ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s)·π/2), β_t = 1 − ᾱ_t/ᾱ_{t−1} ≤ beta_max.

    Where β is clipped, ᾱ is recomputed from it, so ᾱ_T > 0 and every step stays finite.
    s keeps β_t from getting too small near t = 0. Raises ValueError for T < 1, s < 0 or beta_max outside (0, 1).
    Source: Nichol and Dhariwal 2021, Eq. 17.
    """
    if T < 1 or s < 0 or not 0 < beta_max < 1:
        raise ValueError(f"expected T >= 1, s >= 0 and 0 < beta_max < 1; got T = {T}, s = {s}, beta_max = {beta_max}")
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2
    return Schedule((1 - f[1:] / f[:-1]).clamp(max=beta_max))
