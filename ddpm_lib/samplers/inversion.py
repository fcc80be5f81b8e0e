"""From an image to the noise that it would be made of, and between two noises."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import q_sample
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import eps_from_x_0
from ddpm_lib.samplers.ancestral import OnStep, predict_x_0, progress_bar
from ddpm_lib.samplers.ddim import checked_times


@torch.no_grad()
def ddim_invert(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_0: Tensor,
    *,
    steps: int = 50,
    times: Sequence[int] | None = None,
    clip: bool = True,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Eq. 8.11 (DDIM inversion). x_t = √ᾱ_t·x_0_hat + √(1 − ᾱ_t)·ε_hat, both from (x_s, s), from each s to the next t.

    Euler's method for the same ODE, upwards: the network is asked where the image is, not where it goes. At s = 0, of
    which it knows nothing, it is asked at t = 1, and x_0_hat is the image.
    x_0: (B, ...). Other arguments and errors as in `ddim_sample`; the grid is walked from its end. `steps` network
    calls. on_step: called as on_step(t, x_t, x_0_hat) after every step.
    Returns x_T, (B, ...), from which `ddim_sample` comes back to x_0, but for an error of first order in the step.
    Source: Dhariwal and Nichol 2021, appendix F; Song et al. 2021, §5.4.
    """
    x = x_0
    for s, t in progress_bar(list(pairwise(checked_times(schedule.T, steps, times)[::-1])), progress):
        if s == 0:
            x_0_hat, eps_hat = x, eps_model(x, torch.ones(len(x), dtype=torch.long, device=x.device))
        else:
            x_0_hat = predict_x_0(eps_model, schedule, x, s, clip)
            eps_hat = eps_from_x_0(schedule, x, x_0_hat, s)
        x = q_sample(schedule, x_0_hat, eps_hat, t)
        if on_step is not None:
            on_step(t, x, x_0_hat)
    return x


def slerp(x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
    """Eq. 8.12 (spherical interpolation). sin((1 − w)·θ)/sin θ·x + sin(w·θ)/sin θ·y, with θ the angle between x and y.

    x, y: (B, ...), of each image on its own; none of them 0. weight: w, a number or (B,): 0 gives x, 1 gives y.
    Equal lengths keep their length. Parallel images are mixed on a straight line. Returns (B, ...).
    Raises ValueError for shapes that differ, and for opposite images, between which no arc is the shortest.
    Source: Shoemake 1985; for DDIM Song et al. 2021, Eq. 67.
    """
    if x.shape != y.shape:
        raise ValueError(f"expected two batches of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = (v.flatten(1).double() for v in (x, y))
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))  # (B,); exact also near 0, where a cosine is not
    if (torch.pi - angle < 1e-6).any():
        raise ValueError("between opposite images no arc is the shortest: choose other ends")
    w = torch.as_tensor(weight, dtype=torch.float64, device=x.device).expand(len(x))
    parallel = angle < 1e-6
    safe = torch.where(parallel, 1.0, angle)
    first, second = (torch.where(parallel, v, (v * safe).sin() / safe.sin()) for v in (1 - w, w))
    shape = (-1, *[1] * (x.ndim - 1))
    return first.to(x.dtype).reshape(shape) * x + second.to(x.dtype).reshape(shape) * y
