"""The answers of problem set 3 that are a number: only the grader has them."""

import torch

from ddpm_lib.checks import apart
from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.checks.guard import relative
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.gaussian import kl_divergence
from ddpm_lib.homework.hidden import answer
from ddpm_lib.homework.material_3 import at_fault, floor_by_score, mine

DIGITS = 5.1e-3  # what rounding to three digits may do to a number, and a little more
SHORT = linear_schedule(250, 4e-4, 0.08)  # four times fewer steps, each four times as large


def cost_of_u(who: str) -> float:
    """By how many nats a squared error of 1 in u raises the divergence of the step from 2 to 1."""
    own = mine(who)
    schedule = Schedule(own.beta)
    scale, var = walk(schedule)
    x_t, u = torch.tensor([0.3, 0.3]).double(), torch.tensor([0.7, -0.4]).double()
    rows = torch.tensor([[float(scale[2]), float(var[2]) ** 0.5], [-own.kappa, 1.0]]).double()
    images = torch.linalg.solve(rows, torch.stack([x_t, u]))[0]
    means = posterior_mean(schedule, images, x_t, 2)
    return float(kl_divergence(means[0], posterior_var(schedule, 2), means[1], posterior_var(schedule, 2))) / 1.1**2


def hardest(who: str) -> float:
    """The largest floor of this student's pixel over the times of SHORT."""
    level, weight = (torch.tensor(v, dtype=torch.float64) for v in (mine(who).level, mine(who).weight))
    return max(floor_by_score(SHORT, level, weight, t) for t in range(1, SHORT.T + 1))


@answer("3.3", to=DIGITS, route="the divergence of a step")
def _(f, case):
    return relative(float(f()), cost_of_u(case.who))


@answer("3.6", to=2e-3, route="the floors of all t")
def _(f, case):
    return relative(float(f()), hardest(case.who))


@answer("3.7", to=0.1, route="the derivation")
def _(f, case):
    return apart(float(f()), float(at_fault(case.who)))
