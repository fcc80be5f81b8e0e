"""The answers of problem set 4 that are a number: only the grader has them."""

import torch

from ddpm_lib.checks import apart
from ddpm_lib.checks.guard import relative
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.homework import hunt_4, numbers
from ddpm_lib.homework.hidden import answer
from ddpm_lib.homework.routes_4 import walked
from ddpm_lib.samplers.ddim import ddim_step, ddim_var, strided_t

DIGITS = 6e-3  # what rounding to three digits may do to a number, and a little more


def lines_of_slips(who: str | None = None) -> list[int]:
    """The lines with slips in a student's sampler, in rising order; that of `def` is line 1."""
    return [i + 3 + (i > 3) for i in hunt_4.slips(who)]


@answer("4.2.3", to=DIGITS, route="the steps on one number")
def _(f, case):
    t = numbers.whole("t", 300, 700, case.who)
    s, u = t - numbers.whole("stride", 40, 100, case.who), t + numbers.whole("up", 10, 40, case.who)
    schedule = linear_schedule()
    up = torch.full((1, 1), walked(schedule, t, u)[1] ** 0.5, dtype=torch.float64)  # of x_t = 0, x_0 = 0 and z = 1
    fresh = float(ddim_step(schedule, 0 * up, up, u, s))
    return relative(float(f()), fresh / ddim_var(schedule, t, s, 1.0) ** 0.5)


@answer("4.5.1", to=0.5, route="your text")
def _(f, case):
    return apart(float(f()), float("".join(f"{line:02}" for line in lines_of_slips(case.who))))


@answer("4.5.5", to=DIGITS, route="single forward steps")
def _(f, case):
    first = strided_t(1000, numbers.whole("steps", 8, 40, case.who))[-2]
    return relative(float(f()), walked(linear_schedule(), 0, first)[1] ** 0.5 * 255 / 2)


@answer("4.6", to=0.1, route="your derivation")
def _(f, case):
    return apart(float(f()), float(hunt_4.mistake(case.who)))
