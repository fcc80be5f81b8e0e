"""The training loss L_simple, and the draw of t that it averages over."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.forward import q_sample
from ddpm_lib.schedule import Schedule, to_device


def draw_t(schedule: Schedule, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """t ~ Uniform{1, ..., T}, shape (batch,), int64. Drawn on the generator's device (the CPU without one).

    Keep t on the CPU until the network needs it: there its range is checked without making a GPU wait.
    """
    device = "cpu" if generator is None else generator.device
    return torch.randint(1, schedule.T + 1, (batch,), generator=generator, device=device)


def l_simple(
    eps_model: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """The mean over pixels of (ε − ε_θ(x_t, t))² with x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, one value per example, shape (B,).

    eps_model: called as eps_model(x_t, t) with t on x_0's device, returns ε_θ, shape (B, ...). x_0, eps: (B, ...);
    t: (B,), in 1..T. Its mean over a batch with t ~ Uniform{1..T} is L_simple divided by the number of pixels.
    Source: Ho et al. 2020, Eq. 14.
    """
    x_t = q_sample(schedule, x_0, eps, t)
    eps_hat = eps_model(x_t, to_device(t, x_0.device))
    if eps_hat.shape != eps.shape:
        raise ValueError(f"the model returned shape {tuple(eps_hat.shape)}; expected that of x_t, {tuple(eps.shape)}")
    return (eps - eps_hat).square().flatten(1).mean(1)
