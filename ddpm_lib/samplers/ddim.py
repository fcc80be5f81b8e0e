"""DDIM: the same network, sampled in few steps, with as much or as little fresh noise as wanted."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lib.diffusion.forward import Generators, noise_like
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.targets import eps_from_x_0
from ddpm_lib.samplers.ancestral import OnStep, predict_x_0, progress_bar


def strided_t(T: int, steps: int) -> list[int]:
    """Eq. 8.4 (even grid). `steps` + 1 times from T down to 0, the i-th from below is T·i/steps, rounded (half: up).

    Both ends are always there, none comes twice, and a step is at most 1 longer than another. `steps` need not divide
    T. Returns whole numbers. Raises ValueError unless 1 <= steps <= T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps must lie in 1..{T}, the schedule's T; got {steps}")
    return [(2 * T * i + steps) // (2 * steps) for i in range(steps, -1, -1)]


def checked_times(T: int, steps: int, times: Sequence[int] | None) -> list[int]:
    """`times` as a sampler needs them, or the even grid where there are none.

    Raises ValueError unless they are whole numbers in 0..T that fall, and end in 0.
    """
    if times is None:
        return strided_t(T, steps)
    times = [int(t) if t == int(t) else t for t in times]
    whole = all(isinstance(t, int) for t in times)
    falling = all(later < earlier for earlier, later in pairwise(times))
    if not (whole and falling and len(times) > 1 and times[0] <= T and times[-1] == 0):
        shown = ", ".join(map(str, times if len(times) <= 12 else [*times[:6], "…", *times[-5:]]))
        raise ValueError(f"expected times that fall from at most T = {T} to 0, whole numbers; got [{shown}]")
    return times


def ddim_var(schedule: Schedule, t: int, s: int, eta: float) -> float:
    """Eq. 8.2 (DDIM variance). σ² = η²·(1 − ᾱ_s)/(1 − ᾱ_t)·(1 − ᾱ_t/ᾱ_s), of the fresh noise in a step from t to s < t.

    η = 0: none; η = 1: that of ancestral sampling (β̃_t for s = t − 1). 0 at s = 0. Source: Song et al. 2021, Eq. 16;
    their α is our ᾱ.
    Raises ValueError unless 0 <= s < t <= T.
    """
    if not 0 <= s < t <= schedule.T:
        raise ValueError(f"expected 0 <= s < t <= {schedule.T}; got t = {t}, s = {s}")
    now, then = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s])
    return eta**2 * (1 - then) / (1 - now) * (1 - now / then)


def ddim_step(
    schedule: Schedule,
    x_0_hat: Tensor,
    x_t: Tensor,
    t: int,
    s: int,
    eta: float = 0.0,
    generator: Generators = None,
) -> Tensor:
    """Eq. 8.3 (DDIM step). x_s = √ᾱ_s·x_0_hat + √(1 − ᾱ_s − σ²)·ε_hat + σ·z, with σ² = `ddim_var` and z ~ N(0, I).

    x_0_hat, x_t: (B, ...). ε_hat is the noise in x_t if x_0_hat is the clean image, so the two are consistent also
    where x_0_hat was clipped. t, s: ints. generator: of z, which is drawn only where σ > 0.
    Returns x_s, (B, ...); at s = 0 that is x_0_hat. Raises ValueError unless 0 <= s < t <= T.
    Source: Song et al. 2021, Eq. 12, with their x_0 by Eq. 9.
    """
    eps_hat = eps_from_x_0(schedule, x_t, x_0_hat, t)
    var = ddim_var(schedule, t, s, eta)
    alpha_bar = float(schedule.alpha_bar[s])
    x = alpha_bar**0.5 * x_0_hat + max(1 - alpha_bar - var, 0.0) ** 0.5 * eps_hat
    return x + var**0.5 * noise_like(x, generator) if var > 0 else x


@torch.no_grad()
def ddim_sample(
    eps_model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x_T: Tensor,
    *,
    steps: int = 50,
    times: Sequence[int] | None = None,
    eta: float = 0.0,
    clip: bool = True,
    generator: Generators = None,
    progress: bool = False,
    on_step: OnStep | None = None,
) -> Tensor:
    """Eq. 8.5 (DDIM sampling). `ddim_step` from each time t of a grid to the next one, s, with x_0_hat(x_t, t).

    eps_model: called as eps_model(x_t, t) with t of shape (B,), returns ε_θ, shape (B, ...).
    x_T: the noise to start from, (B, ...). steps: 1..T network calls. eta: 0 (deterministic) to 1 (ancestral).
    times: a grid to use in place of `strided_t(T, steps)`: falling, its last entry 0.
    clip: clamp x_0_hat to [−1, 1]; ε_hat is recomputed from the clamped x_0_hat, so that the two stay consistent.
    generator: of z, one for all images or one an image, see `ancestral.generators`; None: torch's own.
    on_step: called as on_step(s, x_s, x_0_hat) after every step, the last with s = 0.
    Returns x_0, (B, ...). Raises ValueError for steps, times or eta out of range. Source: Song et al. 2021, Eq. 12.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]: 0 is deterministic, 1 ancestral; got {eta}")
    x = x_T
    for t, s in progress_bar(list(pairwise(checked_times(schedule.T, steps, times))), progress):
        x_0_hat = predict_x_0(eps_model, schedule, x, t, clip)
        x = ddim_step(schedule, x_0_hat, x, t, s, eta, generator)
        if on_step is not None:
            on_step(s, x, x_0_hat)
    return x
