"""Problem set 3, L_simple, targets and an exact denoiser: what the answers must satisfy."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ddpm_lib.checks import apart
from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.checks.chapter_04 import FAINT, UNIT
from ddpm_lib.checks.guard import Watched, fault, relative, slope_gap
from ddpm_lib.diffusion.loss import l_simple
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.material_3 import (
    as_eps,
    by_tweedie,
    ends,
    floor_by_score,
    image_list,
    kappas,
    network,
    noisy_list,
)
from ddpm_lib.homework.problem import Problem

FROM_LINE = Problem("3.1", "a fifth target", "f(schedule, x_t, u, t, kappa) returns (x_0, eps)")


def _parts(f: Callable, case: Case, part: int) -> Iterator[float]:
    exact = case.normal(name="x_0"), case.normal(name="eps")
    s, n = ends(case)
    for kappa in kappas(case):
        x_t, u = s * exact[0] + n * exact[1], exact[1] - kappa * exact[0]
        yield apart(f(case.schedule, x_t, u, case.t, kappa)[part], exact[part])
        alone = f(case.schedule, x_t[-1:], u[-1:], int(case.t[-1]), kappa)
        yield apart(alone[part], exact[part][-1:])


@FROM_LINE.identity("the clean image comes back", 2, route="the chain walked step by step")
def _(f, case):
    yield from _parts(f, case, 0)


@FROM_LINE.identity("the noise comes back", 2, route="the chain walked step by step")
def _(f, case):
    yield from _parts(f, case, 1)


@FROM_LINE.identity("gradients pass, float32 stays, nothing is overwritten", 1, 1e-6, route="its own values")
def _(f, case):
    watched = Watched(f)
    kappa, x_t, u = kappas(case)[0], case.normal(name="x_0"), case.normal(name="eps")
    size = max(1.0, float(1 / ends(case)[0].min()))
    yield slope_gap(lambda x, y: f(case.schedule, x, y, case.t, kappa), x_t, u) / size
    double, single = (watched(case.schedule, x, y, case.t, kappa) for x, y in ((x_t, u), (x_t.float(), u.float())))
    for wide, narrow in zip(double, single, strict=True):
        yield fault(narrow.dtype != torch.float32)
        yield apart(narrow, wide) / (100 * size)
    yield watched.fault


FROM_LINE.book("clean image from noise", 1, lambda f: lambda schedule, x_t, eps, t: f(schedule, x_t, eps, t, 0.0)[0])


LOSS = Problem("3.2", "a loss on known pixels", "f(model, schedule, x_0, eps, t, kappa, known) returns (B,) losses")


def _known(case: Case, channels: int) -> Tensor:
    known = case.uniform(0, 1, case.batch, channels, *case.shape[1:], name=f"known {channels}") < 0.5
    known[..., -1] = True
    known[-1] = False
    known[-1, 0, 0, 0] = True  # one of the last image's
    return known


@LOSS.identity("all known: L_simple of the noise behind u", 2, route="the library's loss, u turned into noise")
def _(f, case):
    x_0, eps, watched = case.normal(name="x_0"), case.normal(name="eps"), Watched(f)
    every = torch.ones(case.batch, 1, *case.shape[1:], dtype=torch.bool)
    for kappa in kappas(case):
        exact = l_simple(as_eps(case, kappa), case.schedule, x_0, eps, case.t)
        yield apart(watched(network, case.schedule, x_0, eps, case.t, kappa, every), exact, exact.mean())
        yield watched.fault
    narrow = f(network, case.schedule, x_0.float(), eps.float(), case.t, kappa, every)
    yield fault(narrow.dtype != torch.float32)


@LOSS.identity("only known numbers count, each as much", 2, route="errors squared one by one")
def _(f, case):
    x_0, eps, kappa = case.normal(name="x_0"), case.normal(name="eps"), kappas(case)[0]
    s, n = ends(case)
    error = eps - as_eps(case, kappa)(s * x_0 + n * eps, case.t)
    for channels in {1, case.shape[0]}:
        known, exact = _known(case, channels), []
        for row, seen in zip(error.flatten(1).tolist(), known.expand(case.size).flatten(1).tolist(), strict=True):
            squares = [e * e for e, k in zip(row, seen, strict=True) if k]
            exact.append(sum(squares) / len(squares))
        got = f(network, case.schedule, x_0, eps, case.t, kappa, known)
        yield apart(got, torch.tensor(exact, dtype=torch.float64), sum(exact) / len(exact))


@LOSS.identity("nothing known costs nothing", 1, route="its value, and the gradient with and without this image")
def _(f, case):
    x_0, eps, kappa, known = case.normal(name="x_0"), case.normal(name="eps"), kappas(case)[0], _known(case, 1)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def losses(keep: slice) -> Tensor:
        model = lambda x_t, t: weight * network(x_t, t)  # noqa: E731
        return f(model, case.schedule, x_0[keep], eps[keep], case.t[keep], kappa, known[keep])

    known[0] = False
    got = losses(slice(None))
    yield apart(got[:1], torch.zeros(1))
    (slope,) = torch.autograd.grad(got.sum(), weight)
    others = torch.zeros(())
    if case.batch > 1:
        (others,) = torch.autograd.grad(losses(slice(1, None)).sum(), weight)
    yield apart(slope, others, 1 + others.abs())


LOSS.book(
    "L_simple",
    1,
    lambda f: (
        lambda model, schedule, x_0, eps, t: f(
            model, schedule, x_0, eps, t, 0.0, torch.ones(len(x_0), 1, *x_0.shape[2:], dtype=torch.bool)
        )
    ),
)


BOUND = Problem("3.3", "its weight in the bound", "a number: the weight of the squared error in u, at t = 2")
BOUND.secret("the weight at t = 2", 2)


MOMENTS = Problem("3.4", "an exact denoiser", "f(schedule, images, weight, x_t, t) returns (mean, var)")


def _moments(f: Callable, case: Case, part: int) -> Iterator[float]:
    images, weight, x_t = noisy_list(case)
    got = f(case.schedule, images, weight, x_t, case.t)[part]
    for i, (s, n) in enumerate(zip(*(v.flatten() for v in ends(case)), strict=True)):
        exact = by_tweedie(images.flatten(1), weight, x_t[i].flatten(), s, n)[part].reshape(case.shape)
        yield apart(got[i], exact, 1 + float((n / s) ** 2) * 1e-3)
    alone = f(case.schedule, images, weight, x_t[-1:], int(case.t[-1]))[part]
    yield apart(alone, got[-1:])


@MOMENTS.identity("the mean is Tweedie's", 2, route="the score of the mixture, by autograd")
def _(f, case):
    yield from _moments(f, case, 0)


@MOMENTS.identity("the variance follows from the score's slope", 2, route="second derivatives by autograd")
def _(f, case):
    yield from _moments(f, case, 1)


@MOMENTS.identity("unequal weights: variances add up to that of the data", 1, route="quadrature, one pixel")
def _(f, case):
    level, weight = image_list(case, 1)[0], case.uniform(0.2, 5.0, 6, name="weight")
    p = (weight / weight.sum())[:, None]
    noise = torch.linspace(-9, 9, 181, dtype=torch.float64)
    mass = torch.exp(-(noise**2) / 2) / math.sqrt(2 * math.pi) * (noise[1] - noise[0])
    scale, var = walk(case.schedule)
    for t in {1, (case.T + 1) // 2, case.T}:
        x_t = (scale[t] * level + var[t].sqrt() * noise).reshape(-1, 1)  # (6·181, 1)
        mean, spread = (v.reshape(6, -1) for v in f(case.schedule, level, weight, x_t, t))
        centre = (p * level).sum()
        yield apart((p * mass * mean).sum(), centre)
        inside, between = (p * mass * spread).sum(), (p * mass * (mean - centre) ** 2).sum()
        yield apart(inside + between, (p * (level - centre) ** 2).sum())


@MOMENTS.identity("hardly any noise, and points far away", 1, route="the only image that is possible")
def _(f, case):
    images, weight = image_list(case, *case.shape)
    alone = case.whole(0, 5, case.batch, name="which")
    for part, exact in enumerate((images[alone], torch.zeros(case.size))):
        yield apart(f(FAINT, images, weight, images[alone], 2)[part], exact)
    x_t = UNIT * case.normal(name="eps")  # images of the size of the noise: they are mixed up again
    std = walk(FAINT)[1][2].sqrt()
    exact = by_tweedie(UNIT * images.flatten(1), weight, x_t[0].flatten(), torch.ones(()).double(), std)
    for got, right, unit in zip(f(FAINT, UNIT * images, weight, x_t, 2), exact, (UNIT, UNIT**2), strict=True):
        yield apart(got[0], right.reshape(case.shape), unit)
    far = images[images.flatten(1).norm(dim=1).argmax()].expand(case.size)  # no other lies so far in its direction
    for part, exact in enumerate((far, torch.zeros(case.size))):
        yield apart(f(case.schedule, images, weight, 1e7 * far, case.t)[part], exact)


@MOMENTS.identity("float32: images that are nearly alike; gradients", 1, 0.02, route="the same in float64")
def _(f, case):
    watched, (images, weight, x_t) = Watched(f), noisy_list(case)
    t = torch.full_like(case.t, case.T)
    yield slope_gap(lambda x: f(case.schedule, images, weight, x, t), x_t)
    near = (0.9 + 3e-4 * images / images.std()).float()
    x_t = (ends(case)[0] * 0.9 + ends(case)[1] * case.normal(name="eps")).float()
    got = watched(case.schedule, near, weight.float(), x_t, case.t)
    yield watched.fault
    wide = f(case.schedule, near.double(), weight.float().double(), x_t.double(), case.t)
    for narrow, exact in zip(got, wide, strict=True):
        yield fault(narrow.dtype != torch.float32)
        yield relative(narrow, exact)


FLOOR = Problem("3.5", "the floor of the loss", "f(schedule, level, weight, t) returns the least mean squared error")


@FLOOR.identity("the floor at t", 2, 1e-6, route="the mean square of the score, by quadrature")
def _(f, case):
    weight = case.uniform(0.2, 5.0, 6, name="weight")
    for size in (0.7, 2.0):
        level, p = size * case.normal(6, name="level"), weight / weight.sum()
        for t in {1, (case.T + 1) // 3 + 1, case.T} & set(range(1, case.T + 1)):
            yield apart(float(f(case.schedule, level, p, t)), floor_by_score(case.schedule, level, p, t))


@FLOOR.identity("moving all levels changes nothing; one level has floor 0", 1, 1e-6, route="its own values")
def _(f, case):
    level, weight = case.normal(3, name="level"), torch.tensor([0.2, 0.5, 0.3]).double()
    for t in {1, case.T}:
        yield apart(float(f(case.schedule, level + 100, weight, t)), float(f(case.schedule, level, weight, t)))
        yield apart(float(f(case.schedule, level[:1], weight[:1] / weight[:1], t)), 0.0)


HARDEST = Problem("3.6", "the hardest time", "a number: the largest floor of all t")
HARDEST.secret("the largest floor", 2)


MISTAKE = Problem("3.7", "find the mistake", "a whole number: the line with the mistake")
MISTAKE.secret("the line with the mistake", 2)
