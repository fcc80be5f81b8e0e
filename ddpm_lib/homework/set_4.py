"""Problem set 4: samplers. What the answers must satisfy."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lib.checks import apart, largest
from ddpm_lib.checks.guard import Watched, accepted, relative, slope_gap
from ddpm_lib.checks.noise import noise_score
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.forward import noise_like, q_sample
from ddpm_lib.homework import (
    lambda_4,  # noqa: F401 (registers problems 4.3.1 and 4.4)
    repair_4,  # noqa: F401 (registers problems 4.5 and 4.6)
)
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem
from ddpm_lib.homework.routes_4 import Asked, broken, knows, other_times, pictures, posterior, seeded, silent, walked
from ddpm_lib.samplers.ddim import ddim_sample, strided_t

jump = Problem("4.1", "jump moments", "f(schedule, x_t, v, t, s): mean and variance of q(x_s|x_t, x_0_hat)")
churn = Problem("4.2.1", "churned sampling", "f(eps_model, schedule, x_T, times, churn, generator): x_0")
share = Problem("4.2.3", "the η of a churned step", "f: a number")


@jump.identity("its mean is that of the product of two bells", 2, 1e-8, route="Bayes' rule on a grid", least=2)
def _(f, case):
    t, s, x_0, _, x_t, v = pictures(case)
    s = s.clamp(min=1)
    mean, _ = f(case.schedule, x_t, v, t.clamp(min=2), s)
    late = t > 1  # where t = 1 there is no earlier s with noise in it
    yield apart(mean[late], posterior(case.schedule, t[late], s[late], x_0[late], x_t[late])[0])


@jump.identity("its variance is that of the product", 2, 1e-8, route="Bayes' rule on a grid", least=2)
def _(f, case):
    t, s, x_0, _, x_t, v = pictures(case)
    t, s = t.clamp(min=2), s.clamp(min=1)
    _, var = f(case.schedule, x_t, v, t, s)
    x_t = q_sample(case.schedule, x_0, 0 * x_0, t)
    yield relative(var.expand_as(x_t), posterior(case.schedule, t, s, x_0, x_t)[1])


@jump.identity("a jump to s = 0 leaves nothing to chance", 1, route="the clean image, from which v was made")
def _(f, case):
    t, _, x_0, _, x_t, v = pictures(case)
    mean, var = f(case.schedule, x_t, v, t, 0 * t)
    yield largest(apart(mean, x_0), apart(var.expand_as(x_0), 0 * x_0))


@jump.identity("types, gradients, arguments and errors are as promised", 1, 1e-5, route="calls of every kind")
def _(f, case):
    t, s, _, _, x_t, v = pictures(case)
    mean, var = f(case.schedule, x_t.float(), v.float(), t, s)
    yield broken({mean.dtype, var.dtype} != {torch.float32}, f"From float32 it makes {mean.dtype} and {var.dtype}.")
    wanted, got = (case.batch, *[1] * len(case.shape)), tuple(var.shape)
    yield broken(got != wanted, f"The variance has shape {got}; expected {wanted}.")
    yield slope_gap(lambda x, v: f(case.schedule, x, v, t, s)[0], x_t, v)
    watched = Watched(f)
    watched(case.schedule, x_t, v, t, s)
    yield watched.fault
    last = torch.arange(case.batch) == case.batch - 1  # one image is enough
    for bad_t, bad_s in ((t, torch.where(last, t, s)), (t, s - (s + 1) * last), (t + case.T * last, s)):
        yield accepted(lambda t=bad_t, s=bad_s: f(case.schedule, x_t, v, t, s))


def churned(case: Case, amount: float = 0.8) -> tuple[list[int], list[int], float]:
    """Times that begin below T where there are enough, the times to ask at, and an amount of churn."""
    times = strided_t(case.T, min(case.T, 4))[(case.T > 4) :]
    up = [min(case.T, t + math.floor(amount * (t - s))) if s else t for t, s in pairwise(times)]
    return times, up, amount


@churn.identity("the network is asked at u", 1, route="a network that keeps a record")
def _(f, case):
    times, up, amount = churned(case)
    network = silent()
    x_T = case.normal().float()
    got = f(network, case.schedule, x_T, times, amount, seeded())
    yield other_times(network, up)
    yield broken(got.dtype != torch.float32, f"From a float32 x_T it makes {got.dtype}.")
    yield broken(not torch.equal(x_T, case.normal().float()), "It changes x_T in place.", "Work on a copy.")


@churn.identity("without churn it is DDIM, and draws nothing", 1, 1e-9, route="the library's DDIM")
def _(f, case):
    generator, x_T, network = seeded(), case.normal(), Asked(lambda x, t: torch.sin(x + t))
    before = generator.get_state()
    got = f(network, case.schedule, x_T, churned(case)[0], 0.0, generator)
    options = {"times": churned(case)[0], "clip": False}
    yield apart(got, ddim_sample(network, case.schedule, x_T, **options))
    yield broken(not torch.equal(before, generator.get_state()), "Without churn it draws from the generator.")


def going_up(case: Case, f: Callable, x: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """What the network is first asked, from x; the noise that was drawn; and what a walk up does. T >= 5."""
    network, t = silent(), case.T // 2
    s = t - math.ceil((case.T - t) / 4)
    u = min(case.T, t + 3 * (t - s))
    f(network, case.schedule, x, [t, s, 0], 3.0, seeded())
    return network.x[0], noise_like(x, seeded()), *walked(case.schedule, t, u)


@churn.identity("going up shrinks the image as a walk from t to u does", 1, route="single forward steps", least=5)
def _(f, case):
    x = case.normal()
    first, _, factor, _ = going_up(case, f, x)
    other, *_ = going_up(case, f, 0 * x)
    yield apart(first - other, factor * x)


@churn.identity("and adds the variance of this walk", 1, route="single forward steps", least=5)
def _(f, case):
    first, z, _, var = going_up(case, f, case.normal() * 0)
    yield apart(first, var**0.5 * z)


@churn.identity("with the image known every x keeps its law", 1, 5, route="the z of mean and variance", trials=2)
def _(f, case):
    times, _, amount = churned(case)
    images = torch.linspace(-1, 1, 3, dtype=torch.float64).repeat(10_000)[:, None]
    network = knows(case.schedule, images)
    start = q_sample(case.schedule, images, case.normal(30_000, 1), times[0])
    end = f(network, case.schedule, start, times, amount, seeded())
    yield 1e9 * apart(end, images)
    for x, t in zip(network.x, network.t, strict=True):
        a = case.schedule.alpha_bar[t]
        z = (x - a.sqrt() * images) / (1 - a).sqrt()
        told = (
            f"Given x_0, x at t = {t} has mean {float(z.mean()):.3g} and variance {float(z.var()):.3g}, standardised."
        )
        score = 30_000**0.5 * largest(float(z.mean().abs()), float((z.var() - 1).abs()) / 2**0.5)
        note(score, told, "Look at the factors of image and noise, up and down.")
        yield score


@churn.identity(
    "the noise is fresh in each step and image, and the generator's", 1, 5, route="tests of noise", trials=0
)
def _(f, case):
    a = case.schedule.alpha_bar
    up = [walked(case.schedule, *way)[1] ** 0.5 for way in ((10, 12), (8, 10))]

    def draw(n, generator):
        network = silent()
        f(network, case.schedule, torch.zeros(n, 2, 3, dtype=torch.float64), [10, 8, 6, 0], 1.0, generator)
        first, second = network.x[:2]  # at 12 and 10; what is left of the first one's noise is taken away
        return torch.stack([first / up[0], (second - (a[10] / a[12]).sqrt() * first) / up[1]], 1)

    yield noise_score(draw)


share.secret("three digits are right", 1)
