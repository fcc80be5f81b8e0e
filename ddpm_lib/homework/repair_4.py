"""Problem set 4, the part on slips: a sampler to repair, the noise of the last step, a derivation with a wrong line."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.checks import apart
from ddpm_lib.checks.noise import noise_score
from ddpm_lib.diffusion.forward import noise_like, q_sample
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem
from ddpm_lib.homework.routes_4 import Asked, broken, knows, other_times, posterior, seeded, silent, walked
from ddpm_lib.samplers.ddim import strided_t

lines = Problem("4.5.1", "the lines with slips", "f: their numbers, with two digits each")
walk = Problem("4.5.2", "the repaired sampler", "f(eps_model, schedule, x, times, w, generator): x_0")
grey = Problem("4.5.5", "noise of the last step", "f: a number of grey levels")
mistake = Problem("4.6", "the wrong line", "f: its number")


lines.secret("these are the lines", 2)


def gone(case: Case, f: Callable, x: Tensor, eps: Tensor, w: float, t: int, s: int) -> Tensor:
    """Where a step from t to s leads."""
    network = Asked(lambda x, t: eps.to(x))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        end = f(network, case.schedule, x, [t, s, 0], w, seeded())
    return network.x[1] if len(network.x) > 1 else end


def strides(T: int) -> list[tuple[int, int]]:
    return [(T, T // 2), (T, T - 1), (max(T // 2, 2), 1)]


@walk.identity("the network is asked at every time but the last", 1, 0.5, route="a network that keeps a record")
def _(f, case):
    for times in (strided_t(case.T, case.T), strided_t(case.T, -(-case.T // 3)), [max(1, case.T // 2), 0]):
        network = silent()
        f(network, case.schedule, case.normal(), times, 0.5, seeded())
        yield other_times(network, times[:-1])


@walk.identity("the mean of a step is the posterior's", 1, 1e-8, route="Bayes' rule on a grid", least=2)
def _(f, case):
    for t, s in strides(case.T):
        x_0, eps = case.normal(name="x_0"), case.normal(name="eps")
        x_t, one = q_sample(case.schedule, x_0, eps, t), torch.ones(1, dtype=torch.long)
        mean, _ = posterior(case.schedule, t * one, s * one, x_0, x_t)
        noise = gone(case, f, 0 * x_t, 0 * eps, 0.5, t, s)
        yield apart(gone(case, f, x_t, eps, 0.5, t, s) - noise, mean)


@walk.identity("the variance is between its two bounds as w says", 1, 1e-8, route="a grid, and a walk", least=2)
def _(f, case):
    for t, s in strides(case.T):
        nothing, one = 0 * case.normal(), torch.ones(1, dtype=torch.long)
        _, low = posterior(case.schedule, t * one, s * one, nothing[:1], nothing[:1])
        z, high = noise_like(nothing, seeded()), walked(case.schedule, s, t)[1]
        for w in (0.0, 0.3, 1.0):
            std = float(low.max()) ** ((1 - w) / 2) * high ** (w / 2)
            yield apart(gone(case, f, nothing, nothing, w, t, s) / std, z)


@walk.identity("the last step returns x_0_hat without noise", 1, 1e-8, route="a network that knows the image")
def _(f, case):
    image = case.normal()
    for w in (0.0, 1.0):
        for times in (strided_t(case.T, -(-case.T // 2)), [case.T, 0]):
            yield apart(f(knows(case.schedule, image), case.schedule, case.normal(name="x"), times, w, seeded()), image)


@walk.identity("the noise is fresh in each step and image, and the generator's", 1, 5, route="tests of noise", trials=0)
def _(f, case):
    def steps(n, generator):  # from 0, with a network that sees no noise: x_6 is noise, and x_2 keeps a part of it
        network = silent()
        end = f(network, case.schedule, torch.zeros(n, 2, 3, dtype=torch.float64), [9, 6, 2, 0], 1.0, generator)
        return [*network.x, end][1:3]

    first, later = steps(5, seeded())
    yield broken(not bool(torch.stack([first, later]).isfinite().all()), "What a step returns is not finite.")
    generator = seeded()
    z = [noise_like(first, generator) for _ in "12"]
    size = (first * z[0]).mean() / (z[0] ** 2).mean()  # what is multiplied with z, right or wrong, is another matter
    kept, rest = torch.linalg.lstsq(torch.stack([first, z[1]], -1).reshape(-1, 2), later.reshape(-1, 1)).solution

    def draw(n, generator):
        first, later = steps(n, generator)
        return torch.stack([first / size, (later - kept * first) / rest], 1)

    yield noise_score(draw)


grey.secret("three digits are right", 1)
mistake.secret("this is the line", 1)
