"""The answers of problem set 1 that are a number: only the grader has them."""

import math
from collections.abc import Callable

import numpy as np

from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.checks.guard import relative
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.hidden import answer
from ddpm_lib.homework.mine_1 import (
    derivation,
    mine,
    proof,
)


@answer("1.1.1", to=0.002)
def _(f: Callable, case: Case):
    my = mine(case.who)
    scale, noise = walk(my.schedule)
    yield relative(float(f()), float(scale[my.s] ** 2 / noise[my.s] * noise[my.t] / scale[my.t] ** 2))


@answer("1.3.1", to=0.002)
def _(f: Callable, case: Case):
    my = mine(case.who)
    var = walk(my.schedule)[1]
    shared = float(var[my.s]) * math.prod((1 - my.schedule.beta[my.s + 1 : my.t + 1]).sqrt().tolist())
    yield relative(float(f()), shared / float(var[my.s] * var[my.t]) ** 0.5)


@answer("1.4.1", to=0.1)
def _(f: Callable, case: Case):
    my = mine(case.who)
    ratio, left, t = (my.snr_T / my.snr_1) ** (1 / (my.steps - 1)), my.var_0 * my.snr_1, 1
    while left >= 1:
        left, t = left * ratio, t + 1
    yield abs(float(f()) - t)


@answer("1.4.2", to=0.002)
def _(f: Callable, case: Case):
    my, x = mine(case.who), np.linspace(-12, 12, 4001)
    scale, noise = (float(part[-1]) for part in walk(my.schedule))
    log_q = -0.5 * ((x - scale * my.square**0.5) ** 2 / noise + math.log(2 * math.pi * noise))
    log_p = -0.5 * (x**2 + math.log(2 * math.pi))
    yield relative(float(f()), my.pixels * float(np.trapezoid(np.exp(log_q) * (log_q - log_p), x)) / math.log(2))


@answer("1.5", to=0.1)
def _(f: Callable, case: Case):
    asked, right = derivation(case.who).split("\n"), proof({})
    first = next(i for i, line in enumerate(right, 1) if asked[i - 1] != f"{i}. {line}")
    yield abs(float(f()) - first)
