"""Problem 1.1: what a function must satisfy that combines several readings of one image with what was known before."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lib.checks import apart
from ddpm_lib.checks.guard import Watched, fault, slope_gap
from ddpm_lib.checks.record import note
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Problem

FUSE = Problem(
    "1.1",
    "Several readings of one image",
    "f(reading, gain, var, prior_mean, prior_var) returns mean and variance of the image, given all readings",
)


def readings(case: Case, K: int) -> tuple[Tensor, ...]:
    """What fuse is given: K readings of a batch of images, some gains negative."""
    prior_mean, prior_var = case.normal(name="mean"), case.uniform(0.3, 2.0, *case.size, name="prior")
    x = prior_mean + prior_var.sqrt() * case.normal(name="x")
    gain = case.uniform(0.2, 1.0, K, name="gain") * (1 - 2 * (torch.arange(K, dtype=torch.float64) % 2))
    var = case.uniform(0.05, 2.0, K, name="var")
    shape = (K, *[1] * x.ndim)
    noise = case.normal(K, *case.size, name="noise")
    return gain.reshape(shape) * x + var.sqrt().reshape(shape) * noise, gain, var, prior_mean, prior_var


def on_a_grid(
    reading: Tensor, gain: Tensor, var: Tensor, prior_mean: Tensor, prior_var: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel by Bayes' rule on a grid of values from −18 to 18."""
    x = torch.linspace(-18, 18, 3001, dtype=torch.float64)
    log_p = -0.5 * (x - prior_mean[..., None]) ** 2 / prior_var[..., None]
    for one, scale, v in zip(reading, gain.tolist(), var.tolist(), strict=True):
        log_p = log_p - 0.5 * (one[..., None] - scale * x) ** 2 / v
    weight = torch.softmax(log_p, -1)
    mean = (weight * x).sum(-1)
    return mean, (weight * (x - mean[..., None]) ** 2).sum(-1)


@FUSE.identity("posterior mean", 2, route="Bayes' rule on a grid")
def _(f: Callable, case: Case):
    for K in {1, min(case.T, 4), case.size[-1]}:
        yield apart(f(*readings(case, K))[0], on_a_grid(*readings(case, K))[0])


@FUSE.identity("posterior variance", 2, route="Bayes' rule on a grid")
def _(f: Callable, case: Case):
    for K in {1, min(case.T, 4), case.size[-1]}:
        yield apart(f(*readings(case, K))[1], on_a_grid(*readings(case, K))[1])


@FUSE.identity("all at once or one after another", 1, route="each posterior as the next reading's prior")
def _(f: Callable, case: Case):
    reading, gain, var, *belief = readings(case, 3)
    for k in (2, 0, 1):
        belief = f(reading[k : k + 1], gain[k : k + 1], var[k : k + 1], *belief)
    yield from (apart(*pair) for pair in zip(f(*readings(case, 3)), belief, strict=True))


@FUSE.identity("a reading that tells nothing", 1, route="the prior, and the readings without it")
def _(f: Callable, case: Case):
    reading, gain, var, *prior = readings(case, 3)
    silent = f(reading, gain * torch.tensor([1.0, 0.0, 1.0]), var, *prior)
    yield from (apart(*pair) for pair in zip(silent, f(reading[::2], gain[::2], var[::2], *prior), strict=True))
    yield from (apart(*pair) for pair in zip(f(reading[:0], gain[:0], var[:0], *prior), prior, strict=True))
    yield from (apart(*pair) for pair in zip(f(reading[:1], 0 * gain[:1], var[:1], *prior), prior, strict=True))


@FUSE.identity("dtype, gradients and arguments", 1, to=1e-6, route="differences of its own values")
def _(f: Callable, case: Case):
    given, watched = readings(case, 2), Watched(f)
    half = watched(*(v.float() if v.ndim > 1 else v for v in given))
    wrong = any(v.dtype != torch.float32 for v in half)
    note(float(wrong), "Images in float32 come back in another dtype.", "Cast gain and var to the readings' dtype.")
    yield fault(wrong)
    yield watched.fault
    row = f(given[0].flatten(1), *given[1:3], *(v.flatten() for v in given[3:]))
    yield from (apart(got, image.flatten()) for got, image in zip(row, f(*given), strict=True))
    yield slope_gap(f, *given)
