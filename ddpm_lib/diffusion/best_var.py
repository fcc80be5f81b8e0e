"""The best fixed variance of the reverse step, in closed form: one number for each t, from a network's loss."""

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import forward_var, noise_std, step_scale
from ddpm_lib.diffusion.posterior import ReverseVar, posterior_var
from ddpm_lib.diffusion.schedule import Schedule, coefficient


def best_var(schedule: Schedule, t: int | Tensor, loss: float | Tensor) -> Tensor:
    """Eq. 9.8 (best variance). σ*² = β̃_t + β_t²/(α_t·(1 − ᾱ_t))·E(ε − ε_θ)², the variance with the smallest L_{t−1}.

    t: an int or an integer tensor, in 1..T; loss: the network's mean squared error at t, per number of an image: what
    `l_simple` estimates, shaped like t. Returns float64, shaped like t. At t = 1 it is the variance of the best
    Gaussian decoder. Where ᾱ_T = 0 the error in ε says nothing of x_0, and the result is not finite.
    Source: Bao et al. 2022, Theorem 1, for any network instead of the exact score.
    """
    from_eps_to_mean = forward_var(schedule, t) / (step_scale(schedule, t) * noise_std(schedule, t))
    return posterior_var(schedule, t) + from_eps_to_mean**2 * loss


def var_table(var: Tensor) -> ReverseVar:
    """σ_1², ..., σ_T², (T,), as what bounds and samplers take for `reverse_var`.

    Raises ValueError for values that are not positive, and when it is read with a schedule of another length.
    """
    table = torch.as_tensor(var, dtype=torch.float64, device="cpu").detach().clone()
    if table.ndim != 1 or not (table > 0).all():
        raise ValueError(f"expected T variances > 0, shape (T,); got shape {tuple(table.shape)}: {table}")

    @coefficient
    def reverse_var(schedule: Schedule, t: Tensor) -> Tensor:
        if len(table) != schedule.T:
            raise ValueError(f"expected a schedule of {len(table)} steps, one a variance; got T = {schedule.T}")
        return table[t - 1]

    return reverse_var
