"""Two schedules that are both called sigmoid: one draws the S-curve in β, the other in ᾱ."""

import torch

from ddpm_lib.diffusion.schedule import Schedule


def sigmoid_beta_schedule(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, reach: float = 6.0) -> Schedule:
    """Eq. 9.3 (sigmoid in beta). β_t = β_1 + (β_T − β_1)·sigmoid(u_t), with u_t in equal steps from −reach to reach.

    T: at least 2. The ends are approached, not reached: sigmoid(−6) is 0.0025, not 0. Raises ValueError for T < 2, for
    reach ≤ 0, or where a β leaves (0, 1). Source: GeoDiff (Xu et al. 2022), their code; diffusers' "sigmoid".
    """
    if T < 2 or reach <= 0:
        raise ValueError(f"expected T >= 2 and reach > 0; got T = {T}, reach = {reach:g}")
    u = torch.linspace(-reach, reach, T, dtype=torch.float64)
    return Schedule(beta_1 + (beta_T - beta_1) * torch.sigmoid(u))


def sigmoid_schedule(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, beta_max: float = 0.999
) -> Schedule:
    """Eq. 9.4 (sigmoid in alpha-bar). ᾱ_t = (S(1) − S(t/T))/(S(1) − S(0)), S(u) = sigmoid((start + u·(end − start))/τ).

    β_t = 1 − ᾱ_t/ᾱ_{t−1}, at most `beta_max`; where β is clipped, ᾱ is recomputed from it, as in the cosine schedule.
    Raises ValueError for T < 1, start ≥ end, tau ≤ 0 or beta_max outside (0, 1).
    Source: Jabri et al. 2022, the code in their appendix (our u is their t); Chen 2023, Algorithm 1.
    """
    if T < 1 or start >= end or tau <= 0 or not 0 < beta_max < 1:
        raise ValueError(
            "expected T >= 1, start < end, tau > 0 and 0 < beta_max < 1; "
            f"got T = {T}, start = {start:g}, end = {end:g}, tau = {tau:g}, beta_max = {beta_max:g}"
        )
    u = torch.arange(T + 1, dtype=torch.float64) / T
    S = torch.sigmoid((start + u * (end - start)) / tau)
    left = S[-1] - S  # ᾱ but for a factor, which the ratios lose
    return Schedule((1 - left[1:] / left[:-1]).clamp(max=beta_max))
