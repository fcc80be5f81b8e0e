"""The answers of problem set 2 that are a number: only the grader has them."""

import math

import torch

from ddpm_lib.checks import apart
from ddpm_lib.gaussian import product
from ddpm_lib.homework.cases_2 import posterised, two_levels, two_steps
from ddpm_lib.homework.hidden import answer
from ddpm_lib.homework.lines_2 import chain
from ddpm_lib.homework.routes_2 import bound, exact_log


@answer("2.1.1", to=0.0002, route="a search")
def _(f, case):
    early, late = two_levels(case.who)
    middle = torch.linspace(early, late, 100_001, dtype=torch.float64)[1:-1]
    says_r, says_t = 1 - middle / early, (1 - late / middle) / (late / middle)
    return apart(float(f()), float(product(0.0, says_r, 0.0, says_t)[1].max()))


@answer("2.2.1", to=0.001, route="matrices of whole paths")
def _(f, case):
    schedule, times, x_0, ((a, b, v), (a_2, b_2, v_2)) = two_steps(case.who)
    one = [(a * a_2, a * b_2 + b, a**2 * v_2 + v)]
    both = bound(schedule, times, x_0, [(a, b, v), (a_2, b_2, v_2)])
    return apart(float(f()), both - bound(schedule, times[1:], x_0, one))


@answer("2.4.1", to=0.002, route="quadrature")
def _(f, case):
    level, mean, values = posterised(case.who)
    nats = -exact_log(level, mean, torch.tensor(0.2, dtype=torch.float64), values)
    return apart(float(f()), float(nats.mean() / math.log(2)))


@answer("2.5", to=0.0, route="the derivation")
def _(f, case):
    return apart(float(f()), float(chain(case.who)[0][0]))
