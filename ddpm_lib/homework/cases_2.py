"""What the answers of problem set 2 are tried on, and the numbers that are a student's."""

import torch
from torch import Tensor

from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.homework import numbers
from ddpm_lib.homework.case import Case
from ddpm_lib.images.data import digits

Steps = list[tuple[float, float, float]]  # (a, b, v): p(x_s|x_t) = N(a·x_t + b, v)


def stretches(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Times r < s < t, (B,) each, for T ≥ 2; the first stretch goes from 0 to T."""
    u, T = case.uniform(0, 1, 3, case.batch, name="times"), case.T
    r = (u[0] * (T - 1)).long()
    t = r + 2 + (u[1] * (T - r - 1)).long()
    r[0], t[0] = 0, T
    return r, r + 1 + (u[2] * (t - r - 1)).long(), t


def two_levels(who: str | None = None) -> tuple[float, float]:
    """The student's ᾱ_r and ᾱ_t, ᾱ_r > ᾱ_t."""
    return numbers.real("2.1 early", 0.7, 0.95, 3, who), numbers.real("2.1 late", 0.05, 0.4, 3, who)


def a_model(case: Case, most: int = 4) -> tuple[list[int], Tensor, Steps]:
    """Up to `most` times, the last not always T; images; and any linear steps (a, b, v)."""
    drawn = case.whole(1, case.T, most, name="chosen").tolist()
    times = sorted(set(drawn[case.seed % 2 :]))
    a, b, v = case.uniform(0, 1, 3, len(times), name="steps")
    return times, case.normal(name="x_0"), list(zip(*(x.tolist() for x in (a, b - 0.5, 0.1 + v)), strict=True))


def two_steps(who: str | None = None) -> tuple[Schedule, list[int], float, Steps]:
    """The student's model of two steps, for one pixel: the schedule, the times, x_0, and (a, b, v) of each step."""

    def real(name, low, high):
        return numbers.real(f"2.2 {name}", low, high, 2, who)

    schedule = Schedule([real("beta_1", 0.1, 0.3), real("beta_2", 0.2, 0.4), real("beta_3", 0.3, 0.6)])
    steps = [(real("a_1", 0.6, 0.9), real("b_1", -0.2, 0.2), real("v_1", 0.15, 0.4))]
    steps += [(real("a_2", 0.4, 0.8), real("b_2", -0.2, 0.2), real("v_2", 0.3, 0.6))]
    return schedule, [1, 3], real("x_0", -0.8, 0.8), steps


def a_batch(case: Case) -> tuple:
    """Noisy images at times t ≥ 2, and a model's means, which miss the posterior's by more in some steps."""
    x_0, x_t, t = case.normal(name="x_0"), case.normal(name="x_t"), case.t.clamp(min=2)
    miss = case.uniform(0.2, 2.0, case.batch, *[1] * len(case.shape), name="miss") * case.normal(name="mean")
    mean = posterior_mean(case.schedule, x_0, x_t, t) + posterior_var(case.schedule, t, like=x_t).sqrt() * miss
    return case.schedule, x_0, x_t, mean, t


def a_palette(case: Case, std: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levels of a palette of 2 to 6 uneven values, means about it, and variances, of one number an image."""
    gaps = case.uniform(0.1, 0.9, 2 + case.batch % 5, name="palette")
    values = gaps.cumsum(0) - case.uniform(0.5, 1.5)
    level = case.whole(0, len(values) - 1, *case.size, name="level")
    var = std**2 * case.uniform(0.5, 2.0, case.batch, *[1] * len(case.shape), name="var")
    return level, case.uniform(-1.5, 2.5, *case.size, name="mean"), var, values


def posterised(who: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """100 held-out digits in the student's four greys: the level of each pixel, the mean of each, and the palette."""
    train, held_out = (part.images.double() for part in digits())
    dark, light = numbers.real("2.4 dark", -0.6, -0.2, 2, who), numbers.real("2.4 light", 0.1, 0.6, 2, who)
    values = torch.tensor([-1.0, dark, light, 1.0], dtype=torch.float64)
    return (held_out[:100, ..., None] - values).abs().argmin(-1), train.mean(0), values
