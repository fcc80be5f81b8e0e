"""A variance that the network chooses for each pixel, between β̃_t and β_t, and the loss that teaches it to choose."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.elbo import (
    Decoder,
    EpsModel,
    bits_per_dim,
    bound_term,
    discretised_log_likelihood,
    posterior_var_clipped,
)
from ddpm_lib.diffusion.forward import forward_var, q_sample
from ddpm_lib.diffusion.posterior import ReverseVar
from ddpm_lib.diffusion.schedule import Schedule, coefficient


@coefficient
def log_var_low(schedule: Schedule, t: Tensor) -> Tensor:
    """log β̃_t, with β̃_2 at t = 1, where β̃_1 = 0 has no logarithm. Raises ValueError for T = 1: there is no β̃_2."""
    if schedule.T < 2:
        raise ValueError("expected at least two steps, for at t = 1 the lower variance is that of step 2; got T = 1")
    return posterior_var_clipped(schedule, t).log()


@coefficient
def log_var_high(schedule: Schedule, t: Tensor) -> Tensor:
    """log β_t."""
    return forward_var(schedule, t).log()


def learned_var(schedule: Schedule, v: Tensor, t: int | Tensor) -> Tensor:
    """Eq. 9.10 (learned variance). Σ = exp(v·log β_t + (1 − v)·log β̃_t), with β̃_2 at t = 1: a variance, not its log.

    v: (B, ...), one for each number of an image: 0 gives β̃_t, 1 gives β_t, and nothing keeps it in between. A network's
    output in [−1, 1] is turned into v by `split_output`. t: an int or shape (B,), in 1..T. Returns (B, ...), > 0.
    Raises ValueError for T = 1. Source: Nichol and Dhariwal 2021, Eq. 15.
    """
    high, low = (f(schedule, t, like=v) for f in (log_var_high, log_var_low))
    return torch.exp(v * high + (1 - v) * low)


def split_output(output: Tensor) -> tuple[Tensor, Tensor]:
    """ε_θ and v, (B, C, ...) each, from a network's 2·C outputs: the first half, and (second half + 1)/2.

    Raises ValueError for an odd number. Source: openai/improved-diffusion, model_var_type LEARNED_RANGE.
    """
    if output.ndim < 2 or output.shape[1] % 2:
        raise ValueError(f"expected shape (B, 2C, ...), noise and variance for C channels; got {tuple(output.shape)}")
    eps_hat, raw = output.chunk(2, dim=1)
    return eps_hat, (raw + 1) / 2


def hybrid_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    vlb_weight: float = 0.001,
    decoder: Decoder = discretised_log_likelihood,
) -> Tensor:
    """Eq. 9.11 (hybrid loss). L_simple + λ·T·L_{t−1}, with L_{t−1} in bits/dim and no gradient to ε_θ from it: (B,).

    model: called as model(x_t, t), returns 2·C channels for `split_output`. x_0, eps: (B, C, ...); t: (B,), in 1..T.
    vlb_weight: λ. T·L_{t−1} at a uniform t estimates the bound L_0 + ... + L_{T−1}. L_{t−1} is `bound_term`'s, with
    its decoder at t = 1. Returned in x_0's dtype; the bound is computed in float64.
    Source: Nichol and Dhariwal 2021, Eq. 16, in the units of their code (RESCALED_MSE).
    """
    x_t = q_sample(schedule, x_0, eps, t)
    eps_hat, v = split_output(model(x_t, to_device(t, x_0.device)))
    if eps_hat.shape != x_t.shape:
        raise ValueError(
            f"expected twice the channels of x_t, {tuple(x_t.shape)}; half of what came is {tuple(eps_hat.shape)}"
        )
    simple = (eps - eps_hat).square().flatten(1).mean(1)
    frozen = eps_hat.detach()  # else the bound, whose terms differ by orders of magnitude, would drive the mean
    term = bound_term(
        lambda x_t, t: frozen,
        schedule,
        x_0,
        eps,
        t,
        reverse_var=lambda schedule, t, like: learned_var(schedule, v.to(like), t),
        decoder=decoder,
    )
    return simple + (vlb_weight * schedule.T * bits_per_dim(term, x_0[0].numel())).to(simple)


def eps_and_var(model: Callable[[Tensor, Tensor], Tensor]) -> tuple[EpsModel, ReverseVar]:
    """A model with 2·C outputs as the pair (eps_model, reverse_var) that bounds and `ancestral_sample` ask for.

    They call eps_model(x_t, t) before they read the variance of this step: reverse_var answers for the last x_t that
    eps_model saw. It raises RuntimeError where that x_t had another shape, or where there was none.
    """
    last: list[Tensor] = []

    def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
        eps_hat, v = split_output(model(x_t, t))
        last[:] = [v]
        return eps_hat

    def reverse_var(schedule: Schedule, t: int | Tensor, like: Tensor) -> Tensor:
        if not last or last[0].shape != like.shape:
            seen = tuple(last[0].shape) if last else "none"
            raise RuntimeError(f"expected eps_model to be asked about {tuple(like.shape)} first; its last was {seen}")
        return learned_var(schedule, last[0].to(like), t)

    return eps_model, reverse_var
