"""The training loss L_simple, the draw of t that it averages over, and the weights that it leaves out."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.elbo import posterior_var_clipped
from ddpm_lib.diffusion.forward import forward_var, noise_std, q_sample, step_scale
from ddpm_lib.diffusion.posterior import ReverseVar
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import find_target


def bound_weight(schedule: Schedule, t: int | Tensor, reverse_var: ReverseVar = posterior_var_clipped) -> Tensor:
    """Eq. 6.1 (weight of the noise loss). β_t²/(2·σ_t²·α_t·(1 − ᾱ_t)), float64, shaped like t.

    It turns a squared error ‖ε − ε_θ‖², summed over an image, into nats of the bound's term L_{t−1}, up to what does
    not depend on the network. t: an int or an integer tensor, in 1..T; at t = 1 it is the weight in the
    log-likelihood of a Gaussian decoder. reverse_var: σ_t², `posterior_var_clipped` (β̃_t) or `forward_var` (β_t).
    Source: Ho et al. 2020, Eq. 12.
    """
    from_eps_to_mean = forward_var(schedule, t) / (step_scale(schedule, t) * noise_std(schedule, t))
    return from_eps_to_mean**2 / (2 * reverse_var(schedule, t))


def draw_t(schedule: Schedule, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Eq. 6.4 (a random step). t ~ Uniform{1, ..., T}, shape (batch,), int64. Drawn on the generator's device, or CPU.

    Keep t on the CPU until the network needs it: there its range is checked without making a GPU wait.
    Source: Ho et al. 2020, Algorithm 1, line 3.
    """
    device = "cpu" if generator is None else generator.device
    return torch.randint(1, schedule.T + 1, (batch,), generator=generator, device=device)


def l_simple(
    model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    target: str = "eps",
) -> Tensor:
    """Eq. 6.3 (L_simple). The mean over pixels of (ε − ε_θ(x_t, t))² with x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, shape (B,).

    model: called as model(x_t, t) with t on x_0's device, returns ε_θ, shape (B, ...). x_0, eps: (B, ...);
    t: (B,), in 1..T. Its mean over a batch with t ~ Uniform{1..T} estimates L_simple over the number of pixels.
    target: what the model predicts instead, one of `diffusion.targets.TARGETS`, whose weighted error is then returned.
    Source: Ho et al. 2020, Eq. 14.
    """
    wanted = find_target(target)
    x_t, goal = q_sample(schedule, x_0, eps, t), wanted.of(schedule, x_0, eps, t)
    got = model(x_t, to_device(t, x_0.device))
    if got.shape != goal.shape:
        raise ValueError(f"the model returned shape {tuple(got.shape)}; expected that of x_t, {tuple(goal.shape)}")
    error = (goal - got).square()
    if wanted.weight is not None:
        error = wanted.weight(schedule, t, x_t) * error
    return error.flatten(1).mean(1)
