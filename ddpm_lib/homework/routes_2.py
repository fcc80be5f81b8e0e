"""The independent routes of problem set 2: grids, quadrature and covariance matrices."""

import math

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from scipy.special import logsumexp
from torch import Tensor

from ddpm_lib.checks.chapter_01 import log_normal
from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.checks.chapter_04 import peak
from ddpm_lib.checks.guard import fault
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.elbo import denoising_term
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.gaussian import condition, kl_divergence_full, log_density
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.cases_2 import Steps, stretches

NODES, WEIGHTS = hermegauss(8)[0], hermegauss(8)[1] / math.sqrt(2 * math.pi)  # for means over N(0, 1)


def bayes(schedule: Schedule, x_r: Tensor, x_t: Tensor, r: int, s: int, t: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_s for one image each: the walk from r, times the walk to t, summed up on a grid."""
    (a, v), (b, w) = (
        tuple(float(end[-1]) for end in walk(Schedule(schedule.beta[i + 1 : j + 1]))) for i, j in ((r, s), (s, t))
    )
    early, late = (x.double().flatten().numpy() for x in (x_r, x_t))

    def log_joint(x):
        return log_normal(x, a * early[:, None], v) + log_normal(late[:, None], b * x, w)

    narrow = min(v, w / b**2) ** 0.5
    top = peak(log_joint, *np.sort([a * early, late / b], 0))
    x = top[:, None] + narrow * np.linspace(-9, 9, 1201)
    p = np.exp(log_joint(x) - log_joint(top[:, None]))
    mean = (p * x).sum(1) / p.sum(1)
    var = (p * (x - mean[:, None]) ** 2).sum(1) / p.sum(1)
    return torch.from_numpy(mean).reshape(x_r.shape), torch.tensor(var[0])


def tried(case: Case) -> tuple[tuple, list]:
    """Arguments for `between`, and the exact result of each image."""
    given = case.schedule, case.normal(name="x_r"), case.normal(name="x_t"), *stretches(case)
    _, x_r, x_t, *times = given
    return given, [bayes(case.schedule, *each) for each in zip(x_r, x_t, *(t.tolist() for t in times), strict=True)]


def drawn(schedule: Schedule, t: int, x: np.ndarray, s: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x_t at the nodes, one axis more than x_s, and log q(x_t|x_s): by walking from s to t."""
    scale, var = (float(v[-1]) for v in walk(Schedule(schedule.beta[s + 1 : t + 1])))
    x_t = scale * x[..., None] + var**0.5 * NODES
    return x_t, log_normal(x_t, scale * x[..., None], var)


def summed(nats: np.ndarray) -> Tensor:
    return torch.from_numpy(nats).flatten(1).sum(1)


def bound(schedule: Schedule, times: list[int], x_0: float, steps: Steps) -> float:
    """L of one pixel: −log p(x_0) + KL(q(path|x_0) ‖ p(path|x_0)), all of it from covariance matrices."""
    n, (scale, var) = len(times), walk(schedule)
    mean, maps = torch.zeros(n + 1).double(), torch.eye(n + 1).double()  # p's x_0, x at each time: of n + 1 noises
    for i, (a, b, v) in reversed(list(enumerate(steps))):
        mean[i], maps[i] = a * mean[i + 1] + b, a * maps[i + 1]
        maps[i, i] = v**0.5
    cov = maps @ maps.T
    known = torch.tensor([x_0], dtype=torch.float64)
    back = condition(mean, cov, [0], known)
    on, of = scale[times], var[times]
    early, late = torch.minimum(on[:, None], on), torch.maximum(on[:, None], on)
    there = torch.minimum(of[:, None], of) * early / late  # the earlier one's variance, carried on by the scale
    return float(kl_divergence_full(on * x_0, there, *back) - log_density(known, mean[0], cov[0, 0]))


def log_area(low: np.ndarray, high: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    """log of ∫ N(y; mean, var) dy from low to high (or infinity): quadrature from where the density peaks."""
    top = np.clip(mean, low, high)
    away, std = top - mean, var**0.5
    # beyond 10 standard deviations, or 40 decay lengths of the tail, nothing is left
    reach = np.minimum(10 * std, 40 * var / np.maximum(abs(away), 1e-300))
    low, high = np.maximum(low - top, -reach)[..., None], np.minimum(high - top, reach)[..., None]
    node, weight = leggauss(100)
    y = low + (high - low) * (node + 1) / 2  # counted from the peak: nothing is lost by rounding
    log_ratio = -y * (y + 2 * away[..., None]) / (2 * var[..., None])
    return log_normal(top, mean, var) + logsumexp(log_ratio, b=weight * (high - low) / 2, axis=-1)


def exact_log(level: Tensor, mean: Tensor, var: Tensor, values: Tensor) -> Tensor:
    ends = np.array(
        [-np.inf, *((a + b) / 2 for a, b in zip(values.tolist(), values.tolist()[1:], strict=False)), np.inf]
    )
    inside = (x.expand(level.shape).numpy() for x in (mean, var))
    return torch.from_numpy(log_area(ends[level], ends[level + 1], *inside))


def costs(given: tuple, scale: Tensor | float) -> Tensor:
    """The sum of the denoising terms (Eq. 5.4) of the batch, where the variance is scale·β̃_t."""
    schedule, x_0, x_t, mean, t = given
    return denoising_term(schedule, x_0, x_t, mean, scale * posterior_var(schedule, t, like=x_t), t).sum()


def book_decoder(f):
    """f in the arguments of Eq. 5.5: evenly spaced levels from −1 to 1."""

    def decoder(x_0, mean, var, levels=256):
        level = ((x_0.double() + 1) / 2 * (levels - 1)).round().long()
        palette = torch.linspace(-1, 1, levels, dtype=torch.float64)
        return f(level, mean.double() + palette[level] - x_0, var, palette)  # x_0 may be rounded to single precision

    return decoder


def typed(got: Tensor, dtype: torch.dtype) -> float:
    """A fault if a result has another dtype."""
    if got.dtype != dtype:
        note(math.inf, f"It returned {got.dtype}, where {dtype} is expected.", "Cast before you return.")
    return fault(got.dtype != dtype)
