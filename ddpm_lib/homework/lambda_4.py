"""Problem set 4, the part on half the logarithm of the signal-to-noise ratio, λ = log(√ᾱ/√(1 − ᾱ))."""

import torch
from torch import Tensor

from ddpm_lib.checks import apart
from ddpm_lib.checks.guard import Watched, accepted, slope_gap
from ddpm_lib.diffusion.forward import snr
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem
from ddpm_lib.homework.routes_4 import broken, pictures
from ddpm_lib.samplers.ddim import ddim_step

change = Problem("4.3.1", "DDIM in λ", "f(x_t, eps_hat, lam, h): x_s − x_t")
grid = Problem("4.4", "a grid of equal steps in λ", "f(schedule, steps): times")


def steps_in_lambda(case: Case) -> tuple[Tensor, ...]:
    """t and s >= 1 for each image, with λ_t, h, x_t and ε."""
    t, s, _, eps, _, _ = pictures(case)
    t, s = t.clamp(min=2), s.clamp(min=1)
    lam, then = (snr(case.schedule, k).log() / 2 for k in (t, s))
    return t, s, lam, then - lam, case.normal(name="x_t"), eps


def clean(lam: Tensor, x_t: Tensor, eps: Tensor) -> Tensor:
    lam = lam.reshape(-1, *[1] * (x_t.ndim - 1))
    return x_t * (1 + (-2 * lam).exp()).sqrt() - (-lam).exp() * eps


@change.identity("it is the step of DDIM", 2, route="the library's DDIM", least=2)
def _(f, case):
    t, s, lam, h, x_t, eps = steps_in_lambda(case)
    x_0_hat = clean(lam, x_t, eps)
    steps = [ddim_step(case.schedule, x_0_hat[i : i + 1], x_t[i : i + 1], int(t[i]), int(s[i])) for i in range(len(t))]
    yield apart(f(x_t, eps, lam, h), torch.cat(steps) - x_t)


@change.identity("a tiny step has all its digits", 1, 1e-6, route="the velocity of Eq. 8.6", least=2)
def _(f, case):
    _, _, lam, _, x_t, eps = steps_in_lambda(case)
    noise = torch.sigmoid(-2 * lam).reshape(-1, *[1] * (x_t.ndim - 1))
    speed = noise * x_t - noise.sqrt() * eps
    for h in (1e-8, 1e-11, 1e-14):
        yield apart(f(x_t, eps, lam, torch.full_like(lam, h)), h * speed, h)


@change.identity("a step of infinite width ends at x_0_hat", 1, 1e-8, route="the clean image that ε implies", least=2)
def _(f, case):
    _, _, lam, h, x_t, eps = steps_in_lambda(case)
    yield apart(f(x_t, eps, lam, h / 0), clean(lam, x_t, eps) - x_t)
    yield apart(f(x_t, eps, lam, 0 * h), 0 * x_t)


@change.identity(
    "types, gradients, arguments and errors are as promised", 1, 1e-5, route="calls of every kind", least=2
)
def _(f, case):
    _, _, lam, h, x_t, eps = steps_in_lambda(case)
    single, exact = f(x_t.float(), eps.float(), lam, 1e-6 * h), f(x_t, eps, lam, 1e-6 * h)
    yield broken(single.dtype != torch.float32, f"From float32 it makes {single.dtype}.")
    yield apart(single, exact, float(exact.abs().max()))
    yield slope_gap(lambda x, e: f(x, e, lam, h), x_t, eps)
    watched = Watched(f)
    watched(x_t, eps, lam, h)
    yield watched.fault
    one = torch.arange(len(h)) == len(h) - 1  # is enough
    yield accepted(lambda: f(x_t, eps, lam, torch.where(one, -h, h)))


def numbers_of_steps(T: int) -> list[int]:
    return sorted({1, min(2, T), min(3, T), -(-T // 4), -(-T // 2), max(T - 1, 1), T})


@grid.identity("both ends are there, and no time comes twice", 1, 0.5, route="differences")
def _(f, case):
    for steps in numbers_of_steps(case.T):
        times = torch.tensor(f(case.schedule, steps))
        yield apart(torch.tensor(times.shape), torch.tensor([steps + 1]))
        yield apart(times[[0, -1]], torch.tensor([case.T, 0]))
        yield broken(times.is_floating_point(), "The times are no whole numbers.")
        yield broken(not bool((times.diff() < 0).all()), f"With {steps} steps the times do not fall.")
        yield broken(int(times[-2]) != (1 if steps > 1 else case.T), f"With {steps} steps t_1 = {int(times[-2])}.")


@grid.identity("each time is the nearest in λ that is free", 1, 1e-9, route="all times, tried out", least=3)
def _(f, case):
    lam = snr(case.schedule, torch.arange(1, case.T + 1)).log() / 2
    for steps in numbers_of_steps(case.T)[1:]:
        times = f(case.schedule, steps)[::-1]
        for i in range(2, steps):
            target = lam[0] + (i - 1) / (steps - 1) * (lam[-1] - lam[0])
            free = range(times[i - 1] + 1, case.T - steps + i + 1)  # and i − 1 times stay below it, n − i above
            best = min(float((lam[t - 1] - target).abs()) for t in free)
            yield apart((lam[times[i] - 1] - target).abs(), best)


@grid.identity("numbers of steps that make no sense are refused", 1, 0.5, route="calls that must fail")
def _(f, case):
    for steps in (0, -1, case.T + 1):
        yield accepted(lambda steps=steps: f(case.schedule, steps))
