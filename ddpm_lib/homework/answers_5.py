"""The answers of problem set 5 that are a number: only the grader has them."""

import torch
import torch.nn.functional as F
from scipy import integrate

from ddpm_lib.checks import apart
from ddpm_lib.homework.hidden import answer
from ddpm_lib.homework.set_5_personal import line_of_mistake, recent, tower


@answer("5.2.1", to=0.5, route="autograd")
def _(f, case):
    levels, blocks = tower(case.who)
    x = h = torch.ones(1, 1, 4096, dtype=torch.float64, requires_grad=True)
    for level in range(levels):
        h = h.unfold(2, 2, 2).sum(3) if level else h
        for _ in range(2 * blocks):
            h = F.conv1d(h, torch.full((1, 1, 3), 1 / 3, dtype=torch.float64))
    seen = torch.autograd.grad(h[0, 0, h.shape[2] // 2], x)[0].flatten().nonzero()
    return apart(f(), float(seen.max() - seen.min() + 1))


@answer("5.4.1", to=3e-3, route="the integral of the density")  # three digits of γ are enough
def _(f, case):
    first = 1 - recent(case.who) / 100
    return apart(integrate.quad(lambda u: (f() + 1) * u ** f(), first, 1)[0], 0.5)


@answer("5.6", to=0.1, route="your derivation")
def _(f, case):
    return apart(f(), line_of_mistake(case.who))
