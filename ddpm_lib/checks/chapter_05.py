"""The checks of chapter 5, the bound. For linear chains all of it is Gaussian, so the joint density of x_0..x_T is one
matrix: the bound, its terms and its gap are compared with what that matrix says, or with quadrature."""

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from scipy import stats
from scipy.special import logsumexp

from ddpm_lib.checks import check
from ddpm_lib.checks.chapter_01 import hermite, log_normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk
from ddpm_lib.checks.chapter_04 import (
    FAINT,
    ONE,
    STRONG,
    TWO,
    UNIT,
    bayes_on_a_grid,
    disturbs,
    images,
    off,
    peak,
    slope_off,
    takes,
)
from ddpm_lib.checks.guard import until
from ddpm_lib.checks.noise import NEVER, law_score, noise_score
from ddpm_lib.diffusion import elbo
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_mean_from_eps
from ddpm_lib.diffusion.schedule import Schedule, coefficient
from ddpm_lib.gaussian import condition, kl_divergence_full, log_density

TINY = Schedule([0.2, 0.35, 0.5])
# Three models of it, p(x_{t−1}|x_t) = N(a·x_t + b, v): (a, b, v) for t = 1, 2, 3
MODELS = (
    ((0.9, 0.1, 0.15), (0.7, -0.2, 0.3), (0.8, 0.05, 0.4)),
    ((1.1, -0.1, 0.3), (0.9, 0.0, 0.2), (0.5, 0.3, 0.6)),
    ((0.6, 0.2, 0.05), (1.0, 0.1, 0.25), (0.6, -0.1, 0.35)),
)
DATA = (0.4, 0.3)  # mean and variance of x_0, where it is drawn
SIX = Schedule([0.2, 0.02, 0.35, 0.5, 0.1, 0.4])
CHAINS = [  # schedule, model, x_0: also one, two, four and six steps, and a model that is certain and wrong
    *((TINY, model, x_0) for model in MODELS for x_0 in (-0.7, 0.2, 1.0)),
    (ONE, MODELS[1][:1], 0.3),
    (TWO, MODELS[2][:2], -0.4),
    (SHORT, (*MODELS[0], (0.9, -0.2, 0.3)), 0.8),
    (SIX, (*MODELS[1], *MODELS[2]), -0.5),
    (TINY, MODELS[2], 60.0),
    (FAINT, MODELS[0][:2], UNIT),
]


def chain(first, links):
    """Mean and covariance of (y_0, ..., y_n) with y_0 ~ N(*first) and y_{k+1} = a·y_k + b + noise of variance v."""
    maps, mean, noise = [[1.0] + [0.0] * len(links)], [first[0]], [first[1], *(v for _, _, v in links)]
    for k, (a, b, _) in enumerate(links):
        maps.append([a * entry for entry in maps[-1]])
        maps[-1][k + 1] = 1.0  # y as a linear map of the independent noises
        mean.append(a * mean[-1] + b)
    maps = torch.tensor(maps, dtype=torch.float64)
    return torch.tensor(mean, dtype=torch.float64), maps @ torch.diag(torch.tensor(noise, dtype=torch.float64)) @ maps.T


def forward_links(schedule):
    return [((1 - beta) ** 0.5, 0.0, beta) for beta in schedule.beta[1:].tolist()]


def joint_of_model(model, end=(0.0, 1.0)):
    """Mean and covariance of (x_0, ..., x_T) under p, which starts at x_T ~ N(*end)."""
    mean, cov = chain(end, model[::-1])
    return mean.flip(0), cov.flip(0, 1)


def true_bound(schedule, model, x_0):
    """−log p(x_0) + KL(q(x_{1:T}|x_0) ‖ p(x_{1:T}|x_0)), from the two joint densities."""
    mean, cov = joint_of_model(model)
    value = torch.tensor([x_0], dtype=torch.float64)
    q_mean, q_cov = chain((x_0, 0.0), forward_links(schedule))
    evidence = log_density(value, mean[:1], cov[0, 0])[0]
    return float(kl_divergence_full(q_mean[1:], q_cov[1:, 1:], *condition(mean, cov, [0], value)) - evidence)


@dataclass
class Path:
    """The log-densities along paths x_1..x_T from one x_0. Lists are indexed by t, entry 0 is unused.

    q_step: log q(x_t|x_{t−1}); q_jump: log q(x_t|x_0); q_back: log q(x_{t−1}|x_t, x_0), for t ≥ 2;
    p_back: log p(x_{t−1}|x_t); p_end: log p(x_T). Each is an array with one entry for every path.
    """

    T: int
    q_step: list
    q_jump: list
    q_back: list
    p_back: list
    p_end: np.ndarray


def paths(schedule, model, x_0, nodes=3):
    """Paths at the nodes of a quadrature that is exact for quadratic functions, and their weights."""
    grid, weights = (v.numpy() for v in hermite(nodes, schedule.T))
    scale, var = (v.tolist() for v in walk(schedule))
    _, cov = (v.numpy() for v in chain((x_0, 0.0), forward_links(schedule)))
    x, none = [np.full(len(grid), x_0)], [None]
    path = Path(schedule.T, none[:], none[:], none[:], none[:], None)
    for t, (a, b, v) in enumerate(forward_links(schedule), start=1):
        x.append(a * x[-1] + b + v**0.5 * grid[:, t - 1])
        path.q_step.append(log_normal(x[t], a * x[t - 1], v))
        path.q_jump.append(log_normal(x[t], scale[t] * x_0, var[t]))
        # By conditioning in the covariance of x_{t−1} and x_t. By Eq. 4.1 the sum would telescope whatever q_jump is.
        gain = cov[t - 1, t] / cov[t, t]
        mean = scale[t - 1] * x_0 + gain * (x[t] - scale[t] * x_0)
        path.q_back.append(log_normal(x[t - 1], mean, cov[t - 1, t - 1] - gain * cov[t - 1, t]) if t > 1 else None)
        a, b, v = model[t - 1]
        path.p_back.append(log_normal(x[t - 1], a * x[t] + b, v))
    path.p_end = log_normal(x[-1], 0.0, 1.0)
    return path, weights


@until(1e-8)
def far_from_the_bound(f):
    """f(path) returns the loss of each path; its mean over q is compared with `true_bound`."""
    for chain_of_steps in CHAINS:
        (path, weights), exact = paths(*chain_of_steps), true_bound(*chain_of_steps)
        yield disturbs(f, path)
        yield off(float((weights * f(path)).sum()), exact, 1 + abs(exact))


@check("5.1", "bound as a loss", "identity", "the joint Gaussian of chains of one to six steps", to=1e-9)
def bound(f):
    """f(path) returns the loss of each path, from lists of log-densities along x_1..x_T, indexed by t.

    path.q_step: log q(x_t|x_{t−1}); path.p_back: log p(x_{t−1}|x_t); path.p_end: log p(x_T), no list; and path.T.
    """
    return far_from_the_bound(f)


@bound.states
def _(path):
    return sum(path.q_step[t] - path.p_back[t] for t in range(1, path.T + 1)) - path.p_end


@bound.wrong(
    "the ELBO under the name of a loss: the sign is turned",
    seen="no public source: a plausible slip (a bound and a loss mixed up)",
    idea="sign",
)
def _(path):
    return path.p_end + sum(path.p_back[t] - path.q_step[t] for t in range(1, path.T + 1))


@bound.wrong(
    "the reverse model is given x_0: p(x_{t−1}|x_t, x_0)",
    seen="no public source: a plausible slip (the posterior's condition copied to the model)",
    idea="exchange",
)
def _(path):
    told = [None, path.p_back[1], *path.q_back[2:]]
    return sum(path.q_step[t] - told[t] for t in range(1, path.T + 1)) - path.p_end


@bound.wrong(
    "the prior p(x_T) is left out",
    seen="no public source: a plausible slip (the sum over the steps is taken for the whole)",
    idea="term",
)
def _(path):
    return sum(path.q_step[t] - path.p_back[t] for t in range(1, path.T + 1))


@bound.wrong(
    "the entropy of the noise is left out: −log p(x_{0:T})", seen="no public source: a plausible slip", idea="term"
)
def _(path):
    return -path.p_end - sum(path.p_back[1:])


@bound.wrong("the first three steps only", seen="no public source: a sum written out for T = 3", idea="axis")
def _(path):
    steps = range(1, min(path.T, 3) + 1)
    return sum(path.q_step[t] - path.p_back[t] for t in steps) - path.p_end


@bound.wrong(
    "log-densities of at least −20",
    seen="no public source: log(p + ε), where the model is certain and wrong",
    idea="edge",
)
def _(path):
    steps = range(1, path.T + 1)
    return sum(path.q_step[t] - np.maximum(path.p_back[t], -20) for t in steps) - path.p_end


@check("5.2", "telescoped bound", "identity", "the joint Gaussian of chains of one to six steps", to=1e-9)
def telescoped(f):
    """f(path) returns the loss of each path, from lists of log-densities along x_1..x_T, indexed by t.

    path.q_back: log q(x_{t−1}|x_t, x_0), for t ≥ 2; path.p_back: log p(x_{t−1}|x_t); path.q_jump: log q(x_t|x_0);
    path.p_end: log p(x_T), no list; and path.T.
    """
    return far_from_the_bound(f)


@telescoped.states
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong(
    "log p(x_T) twice, and the sign of log p(x_0|x_1) turned",
    seen="no public source: a plausible slip (a term written twice, a sign lost)",
    idea="term",
)
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - 2 * path.p_end) + steps + path.p_back[1]


@telescoped.wrong(
    "q(x_t|x_{t−1}) is not turned round",
    seen="no public source: a plausible slip (KL between a forward and a reverse step)",
    idea="sign",
)
def _(path):
    steps = sum(path.q_step[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong(
    "the last step's q(x_T|x_{T−1}) in the place of q(x_T|x_0)",
    seen="no public source: a plausible slip",
    idea="exchange",
)
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_step[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong(
    "the reverse model is given x_0, so every step cancels",
    seen="no public source: a plausible slip (the posterior's condition copied to the model)",
    idea="exchange",
)
def _(path):
    return (path.q_jump[path.T] - path.p_end) - path.p_back[1]


@telescoped.wrong("t = 2 and 3 only", seen="no public source: a sum written out for T = 3", idea="axis")
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, min(path.T, 3) + 1))
    return (path.q_jump[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong(
    "q(x_{t−1}|x_0) for q(x_{t−1}|x_t, x_0)", seen="no public source: the condition on x_t, lost", idea="exchange"
)
def _(path):
    steps = sum(path.q_jump[t - 1] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - path.p_end) + steps - path.p_back[1]


def kl_on_a_grid(log_q, log_p, mean, var):
    """∫ q·(log q − log p) for N densities, q with about these means and variances (N,); q is normalised here: (N,)."""
    x = mean[:, None] + var[:, None] ** 0.5 * np.linspace(-11, 11, 4001)
    log_q, log_p = log_q(x), log_p(x)
    log_q = log_q - log_q.max(1, keepdims=True)
    q = np.exp(log_q)
    area = q.sum(1, keepdims=True) * (x[:, 1:2] - x[:, :1])
    return (q / q.sum(1, keepdims=True) * (log_q - np.log(area) - log_p)).sum(1)


def pixels(*values, shape):
    """Numbers and tensors that broadcast to `shape`, as arrays with one entry for each pixel (N,)."""
    return (torch.as_tensor(v, dtype=torch.float64).expand(shape).flatten().numpy() for v in values)


def kl_of_the_end(schedule, x_0, mean=0.0, var=1.0):
    """KL(q(x_T|x_0) ‖ N(mean, var)) of each image, pixel by pixel."""
    scale, noise_var = (v[-1] for v in walk(schedule))
    center, width, mean, var = (v[:, None] for v in pixels(scale * x_0, noise_var, mean, var, shape=x_0.shape))
    each = kl_on_a_grid(
        lambda y: log_normal(y, center, width), lambda y: log_normal(y, mean, var), center[:, 0], width[:, 0]
    )
    return per_image(each, x_0)


def per_image(each, x_0):
    return torch.from_numpy(each).reshape(x_0.shape).flatten(1).sum(1)


def random_images(seed, shape, size=1.3):
    return torch.from_numpy(size * np.random.default_rng(seed).uniform(-1, 1, shape))


@check("5.3", "prior term", "implementation", "quadrature, pixel by pixel", to=1e-9)
@until(1e-8)
def prior(f):
    """f(schedule, x_0) and f(schedule, x_0, mean=, var=) return the divergence of each image."""
    each_pixel, each_channel = random_images(1, (3, 2, 1, 4)), torch.tensor([0.5, 2.0]).double().reshape(1, 2, 1, 1)
    for schedule, shape, size, options in (
        (SHORT, (3, 3, 3, 3), 1.3, {}),  # first: here a sum over the wrong axes gives numbers, not an error
        (LONG, (4, 1, 2, 3), 1.3, {}),
        (TINY, (4, 3, 1, 2), 1.3, {"mean": 0.2, "var": 0.7}),
        (SHORT, (2, 3, 2, 1), 60.0, {}),
        (ONE, (2, 1, 2, 2), 1.3, {}),
        (TWO, (2, 2, 1, 1), 1.3, {"var": 1e-10}),
        (FAINT, (3, 2, 2, 1), UNIT, {}),
        (STRONG, (3, 1, 1, 2), 1.3, {"mean": -3.0}),
        (TINY, (3, 2, 1, 4), 1.3, {"mean": each_pixel, "var": each_channel}),
    ):
        x_0 = random_images(0, shape, size)
        exact = kl_of_the_end(schedule, x_0, **options)
        yield disturbs(lambda *given: f(*given, **options), schedule, x_0)  # noqa: B023
        yield off(f(schedule, x_0, **options), exact, exact.clamp(min=0.1))
    x_0 = random_images(0, (2, 3, 2, 1), 60.0).float()
    exact = kl_of_the_end(SHORT, x_0.double())
    yield off(f(SHORT, x_0), exact, exact)


def _end(schedule, x_0, t=None):
    a = schedule.alpha_bar[schedule.T if t is None else t]
    return a.sqrt() * x_0, 1 - a


def _kl(mean_q, var_q, mean_p, var_p):
    mean_p, var_p = (torch.as_tensor(v, dtype=torch.float64) for v in (mean_p, var_p))
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


@prior.wrong("the divergence the other way round", seen="no public source: a plausible slip", idea="exchange")
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(mean, torch.as_tensor(var).double(), *_end(schedule, x_0)).flatten(1).sum(1)


@prior.wrong(
    "the mean over the pixels instead of the sum",
    seen="no public source: a plausible slip (losses averaged over an image, read as nats)",
    idea="axis",
)
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, x_0), mean, var).flatten(1).mean(1)


@prior.wrong(
    "the image is forgotten: KL(N(0, 1 − ᾱ_T) ‖ p(x_T))", seen="no public source: a plausible slip", idea="term"
)
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, 0 * x_0), mean, var).expand_as(x_0).flatten(1).sum(1)


@prior.wrong("a standard deviation where the variance belongs", seen="no public source: a plausible slip", idea="power")
def _(schedule, x_0, mean=0.0, var=1.0):
    m, v = _end(schedule, x_0)
    return _kl(m, v.sqrt(), mean, var).flatten(1).sum(1)


@prior.wrong(
    "taken one step before the end",
    seen="no public source: a plausible slip (tables with and without an entry for t = 0, mixed up)",
    idea="time",
)
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, x_0, schedule.T - 1), mean, var).flatten(1).sum(1)


@prior.wrong(
    "the mean over the channels, the sum over the pixels", seen="no public source: right for grey images", idea="axis"
)
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, x_0), mean, var).mean(1).flatten(1).sum(1)


@prior.wrong("1 − ᾱ_T of at least 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, x_0, mean=0.0, var=1.0):
    m, v = _end(schedule, x_0)
    return _kl(m, v.clamp(min=1e-8), mean, var).flatten(1).sum(1)


@prior.wrong(
    "in the precision of the images", seen="no public source: sums over many pixels in single precision", idea="edge"
)
def _(schedule, x_0, mean=0.0, var=1.0):
    m, v = (end.to(x_0.dtype) for end in _end(schedule, x_0))
    return _kl(m, v, mean, var).to(x_0.dtype).flatten(1).sum(1)


@functools.cache
def denoising_cases():
    """Cases of arguments (schedule, x_0, x_t, mean, var, t), and the divergence of each image."""
    random, found = np.random.default_rng(1), []
    for schedule, t, shape, size in (
        (SHORT, [2, 4, 3], (3, 3, 3, 3), 1.3),  # first: here a sum over the wrong axes gives numbers, not an error
        (TINY, [3, 2, 2], (3, 1, 2, 3), 1.3),
        (LONG, [2, 500, 1000], (3, 2, 1, 2), 1.3),
        (SHORT, [3, 2], (2, 3, 2, 1), 600.0),
        (TWO, [2, 2], (2, 2, 1, 1), 1.3),
        (FAINT, [2, 2], (2, 2, 1, 2), UNIT),
        (STRONG, [3, 2], (2, 1, 2, 1), 1.3),
    ):
        x_0, t = random_images(2, shape, size), torch.tensor(t)
        scale, var = walk(schedule)
        x_t = images(scale[t]) * x_0 + images(var.sqrt()[t]) * torch.from_numpy(random.standard_normal(shape))
        beta = images(schedule.beta[t])
        mean = x_t + size / 1.3 * beta.sqrt() * torch.from_numpy(random.uniform(-1, 1, shape))
        each_image = beta * images(torch.tensor([0.6, 1.3, 1.0]).double()[: len(t)])
        each_pixel = each_image * torch.from_numpy(random.uniform(0.5, 1.5, shape))
        grids = pixels(images(t), x_0, x_t, shape=shape)
        truth = [torch.from_numpy(v).reshape(shape) for v in bayes_on_a_grid(schedule, *grids)]
        nearly = truth[0] + 0.02 * truth[1].sqrt(), 1.03 * truth[1]
        for m, v in ((mean, each_image), (mean, each_pixel), nearly):
            exact = per_image(kl_of_a_step(schedule, t, x_0, x_t, m, v), x_0)
            found.append(((schedule, x_0, x_t, m, v, t), exact))
        one, v = [image[-1:] for image in (x_0, x_t, mean)], 0.8 * float(beta[-1])
        exact = per_image(kl_of_a_step(schedule, t[-1:], *one, v), one[0])
        found.append(((schedule, *one, v, int(t[-1])), exact))
    return found


@check("5.4", "denoising term", "implementation", "Bayes' rule and quadrature, pixel by pixel", to=1e-8)
@until(1e-7)
def denoising(f):
    """f(schedule, x_0, x_t, mean, var, t) returns the divergence of each image."""
    for (schedule, x_0, x_t, mean, var, t), exact in copy.deepcopy(denoising_cases()):
        yield disturbs(f, schedule, x_0, x_t, mean, var, t)
        yield off(f(schedule, x_0, x_t, mean, var, t), exact, 1 + exact)
        width = float(torch.as_tensor(var).max()) ** 0.5
        yield slope_off(lambda m: f(schedule, x_0, x_t, m, var, t), mean, size=width)  # noqa: B023
        if isinstance(var, torch.Tensor):
            single = [v.float() for v in (x_0, x_t, mean, var)]
            rounded = f(schedule, *(v.double() for v in single), t)
            if schedule is not FAINT:  # the rest of a difference of images, in single precision, is a few digits
                yield off(f(schedule, *single, t), rounded, 1e5 * (1 + rounded))
            yield slope_off(lambda log: f(schedule, x_0, x_t, mean, log.exp(), t), var.log(), size=1e-3)  # noqa: B023


def kl_of_a_step(schedule, t, x_0, x_t, model_mean, model_var):
    """KL of x_{t−1}'s density given x_0 and x_t (prior times likelihood on a grid) to the model's, t ≥ 2.

    t: (B,); tensors (B, ...); model_var broadcasts. One entry for each pixel: (N,).
    """
    t = t.reshape(-1, *[1] * (x_0.ndim - 1))
    scale, var = (v[t - 1] for v in walk(schedule))
    given = pixels(scale * x_0, var, schedule.beta[t], x_t, model_mean, model_var, shape=x_0.shape)
    center, var, beta, x_t, model_mean, model_var = (v[:, None] for v in given)

    def log_joint(x):
        return log_normal(x, center, var) + log_normal(x_t, (1 - beta) ** 0.5 * x, beta)

    mode = peak(log_joint, *np.sort([center[:, 0], (x_t / (1 - beta) ** 0.5)[:, 0]], 0))
    width = np.minimum(var, beta / (1 - beta))[:, 0]  # the narrower one's variance: at least the product's
    return kl_on_a_grid(log_joint, lambda x: log_normal(x, model_mean, model_var), mode, width)


def _tilde(schedule, t):
    a, before, beta = (
        table.reshape(-1, 1, 1, 1) for table in (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t])
    )
    return (1 - before) / (1 - a) * beta


@denoising.wrong("the divergence the other way round", seen="no public source: a plausible slip", idea="exchange")
def _(schedule, x_0, x_t, mean, var, t):
    return _kl(mean, var, posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t)).flatten(1).sum(1)


@denoising.wrong(
    "only the means: (μ̃ − μ)²/(2σ²), although the variances differ",
    seen="no public source: a plausible slip (derivations for σ² = β̃, read with σ² = β)",
    idea="term",
)
def _(schedule, x_0, x_t, mean, var, t):
    return ((posterior_mean(schedule, x_0, x_t, t) - mean) ** 2 / (2 * var)).flatten(1).sum(1)


@denoising.wrong("the one half is lost", seen="no public source: a plausible slip", idea="term")
def _(schedule, x_0, x_t, mean, var, t):
    return 2 * _kl(posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t), mean, var).flatten(1).sum(1)


@denoising.wrong(
    "β_t for the posterior's variance",
    seen="Ho et al. 2020, section 3.2: a choice for the model, taken for the posterior's variance",
    idea="exchange",
)
def _(schedule, x_0, x_t, mean, var, t):
    beta = schedule.beta[t].reshape(-1, 1, 1, 1)
    return _kl(posterior_mean(schedule, x_0, x_t, t), beta, mean, var).flatten(1).sum(1)


@denoising.wrong(
    "the mean over the pixels instead of the sum",
    seen="no public source: a plausible slip (losses averaged over an image, read as nats)",
    idea="axis",
)
def _(schedule, x_0, x_t, mean, var, t):
    return _kl(posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t), mean, var).flatten(1).mean(1)


@denoising.wrong("variances of at least 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, x_0, x_t, mean, var, t):
    tilde = _tilde(schedule, t).clamp(min=1e-8)
    var = torch.as_tensor(var, dtype=torch.float64).clamp(min=1e-8)
    return _kl(posterior_mean(schedule, x_0, x_t, t), tilde, mean, var).flatten(1).sum(1)


@denoising.wrong(
    "no gradient reaches the variance",
    seen="no public source: right for a variance that is not learned",
    idea="gradient",
)
def _(schedule, x_0, x_t, mean, var, t):
    var = torch.as_tensor(var, dtype=torch.float64).detach()
    return _kl(posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t), mean, var).flatten(1).sum(1)


@denoising.wrong("at most 100 nats", seen="no public source: a clamp against outliers", idea="edge")
def _(schedule, x_0, x_t, mean, var, t):
    exact = _kl(posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t), mean, var).flatten(1).sum(1)
    return exact.clamp(max=100)


GREYS = [  # levels, standard deviation, how far the means go
    (256, 0.3, 1.1),
    (256, 0.01, 1.1),
    (256, 3e-4, 1.1),
    (17, 0.05, 1.1),
    (5, 0.4, 1.1),
    (2, 0.7, 1.1),
    (3, 0.2, 5.0),
    (17, 60.0, 5.0),  # flat
    (4096, 3e-3, 1.1),  # levels closer than 0.001
    (256, 1e-6, 1.1),  # and as certain as a clamp would forbid
    (256, 1e-12, 1.1),
]


@check("5.5", "discretised decoder", "implementation", "quadrature of the density over each bin", to=1e-9)
@until(1e-8)
def discretised(f):
    """f(x_0, mean, var, levels) returns log P for each entry; compared relative to 1 + |log P|."""
    random = np.random.default_rng(3)
    for levels, std, reach in GREYS:
        grey = torch.linspace(-1, 1, levels, dtype=torch.float64)
        ends = grey[[0, min(1, levels - 2), max(-2, 1 - levels), -1]]  # the open bins, and those beside them
        x_0 = torch.cat([ends, ends, grey[torch.from_numpy(random.integers(0, levels, 4))]]).reshape(3, 2, 2, 1)
        mean = torch.from_numpy(reach * random.uniform(-1, 1, x_0.shape))
        mean[1] = x_0[1] + std * torch.from_numpy(random.standard_normal(x_0[1].shape))  # and a model that is right
        each_image = std**2 * images(torch.tensor([0.6, 1.0, 1.7], dtype=torch.float64))
        each_pixel = each_image * torch.from_numpy(random.uniform(0.5, 1.5, x_0.shape))
        for var in (each_image, each_pixel, std**2):
            exact = log_mass(x_0, mean, var, levels)[0]
            yield disturbs(f, x_0, mean, var, levels)
            yield off(f(x_0, mean, var, levels), exact, 1 + exact.abs())
        moved = [v.clone().requires_grad_() for v in (mean, each_pixel)]
        got = f(x_0, *moved, levels).sum()
        found = torch.autograd.grad(got, moved, allow_unused=True) if got.requires_grad else [None, None]
        for slope, exact in zip(found, log_mass(x_0, mean, each_pixel, levels)[1:], strict=True):
            yield math.inf if slope is None else off(slope, exact, exact.abs() + 1e-3 * exact.abs().mean())
        single = [v.float() for v in (x_0 * (1 - 1e-6), mean)]  # as levels that are computed in single precision
        exact = log_mass(*(v.double() for v in single), std**2, levels)[0]
        yield off(f(*single, std**2, levels), exact, 1 + exact.abs())
    if takes(f, 3):  # 256 levels, unless told otherwise
        x_0, mean = torch.tensor([[-1.0, -0.4, 1.0], [-0.9, -0.5, 0.3]], dtype=torch.float64)
        yield off(f(x_0, mean, 0.01), log_mass(x_0, mean, 0.01, 256)[0])


def log_mass(x_0, mean, var, levels):
    """log of ∫ N(y; mean, var) dy over x_0's bin, and its derivatives by mean and var.

    Gauss–Legendre on the part of the bin where the mass is; the derivatives are means over the bin.
    """
    x, mean, var = (v[:, None] for v in pixels(x_0, mean, var, shape=x_0.shape))
    half, std = 1 / (levels - 1), var**0.5
    low, high = np.where(x < -1 + half, -np.inf, x - half), np.where(x > 1 - half, np.inf, x + half)
    peak_at = np.clip(mean, low, high)
    away = peak_at - mean
    # beyond 10 standard deviations, or 40 decay lengths of the tail, nothing is left
    reach = np.where(away == 0, 10 * std, np.minimum(10 * std, 40 * var / np.maximum(abs(away), 1e-300)))
    low, high = np.maximum(low - peak_at, -reach), np.minimum(high - peak_at, reach)
    node, weight = leggauss(100)
    y, weight = low + (high - low) * (node + 1) / 2, weight * (high - low) / 2  # counted from the peak: no rounding
    log_ratio = -y * (y + 2 * away) / (2 * var)  # to the density at the peak
    log_share = logsumexp(log_ratio, b=weight, axis=1, keepdims=True)
    share, y = weight * np.exp(log_ratio - log_share), y + away
    log_p = log_normal(peak_at, mean, var) + log_share
    by_mean, by_var = (share * y / var).sum(1), (share * (y**2 / var - 1) / (2 * var)).sum(1)
    return [torch.from_numpy(v).reshape(x_0.shape) for v in (log_p, by_mean, by_var)]


@discretised.wrong(
    "density times width of the bin",
    seen="no public source: a plausible slip (a continuous likelihood, discretised after the fact)",
    idea="edge",
)
def _(x_0, mean, var, levels):
    return log_density(x_0, mean, var) + np.log(2 / (levels - 1))


@discretised.wrong(
    "the outermost bins are closed, so the probabilities do not sum to 1",
    seen="no public source: a plausible slip",
    idea="edge",
)
def _(x_0, mean, var, levels):
    return elbo.discretised_log_likelihood(torch.zeros_like(x_0), mean - x_0, var, levels)  # 0 is in no outermost bin


@discretised.wrong(
    "bins of half the width, those of data in [0, 1]",
    seen="no public source: a plausible slip (data scaled to [−1, 1], bins not)",
    idea="term",
)
def _(x_0, mean, var, levels):
    return elbo.discretised_log_likelihood(x_0, mean, var, 2 * levels - 1)


def _from_areas(cdf, x_0, mean, var, levels):
    """The log of a difference of two areas, clamped."""
    half = 1 / (levels - 1)
    low, high = (cdf((x_0 + side - mean) / var.sqrt()) for side in (-half, half))
    mass = torch.where(x_0 > 1 - half, 1, high) - torch.where(x_0 < -1 + half, 0, low)
    return mass.clamp(min=1e-12).log()


@discretised.wrong(
    "log of the mass clamped at 1e-12: no error costs more than 28 nats",
    seen="hojonathanho/diffusion, utils.py; copied in openai/improved-diffusion and guided-diffusion, losses.py",
    idea="edge",
)
def _(*arguments):
    return _from_areas(torch.special.ndtr, *arguments)


@discretised.wrong(
    "a tanh formula for the normal distribution's area (and the clamp)",
    seen="hojonathanho/diffusion, utils.py; copied in openai/improved-diffusion and guided-diffusion, losses.py",
    idea="edge",
)
def _(*arguments):
    return _from_areas(lambda x: 0.5 * (1 + torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))), *arguments)


@discretised.wrong(
    "the open bins begin at ±0.999", seen="no public source: right for 256 levels, not for 4,096", idea="edge"
)
def _(x_0, mean, var, levels):
    ends = torch.where(x_0.abs() > 0.999, x_0.sign(), x_0)
    return elbo.discretised_log_likelihood(ends, mean, var, levels)


@discretised.wrong("variances of at least 1e-20", seen="no public source: a clamp “for stability”", idea="edge")
def _(x_0, mean, var, levels):
    var = torch.as_tensor(var, dtype=torch.float64).clamp(min=1e-20)
    return elbo.discretised_log_likelihood(x_0, mean, var, levels)


@discretised.wrong(
    "no gradient far out in the tails", seen="no public source: a clamp of what is very unlikely", idea="gradient"
)
def _(x_0, mean, var, levels):
    log_p = elbo.discretised_log_likelihood(x_0, mean, var, levels)
    return torch.where(log_p < -1e6, log_p.detach(), log_p)


COPIES = 20_000


@coefficient
def _some_var(schedule, t):
    return schedule.beta[t] * (0.5 + 0.2 * t)  # depends on t in its own way


@coefficient
def _lower_var(schedule, t):
    """β̃_t, and β̃_2 at t = 1: the default. From conditioning in the covariance of x_{t−1} and x_t."""
    t = torch.as_tensor(t).clamp(min=2)
    var = walk(schedule)[1]
    return var[t - 1] - (1 - schedule.beta[t]) * var[t - 1] ** 2 / var[t]


def _some_model(x_t, t):
    t = t.reshape(-1, *[1] * (x_t.ndim - 1))
    return (0.4 + 0.1 * t) * x_t - 0.2 * t


def model_mean(schedule, t, x_t, eps):
    """The mean of x_{t−1}, by Eq. 4.6, which chapter 4 checks."""
    t = t.reshape(-1, *[1] * (x_t.ndim - 1))
    var = walk(schedule)[1]
    return (x_t - schedule.beta[t] / var[t].sqrt() * eps) / (1 - schedule.beta[t]).sqrt()


def exact_terms(schedule, x_0, model, reverse_var):
    """L_0, ..., L_T for one number x_0 and a model whose ε_θ is linear in x_t: quadrature over x_t and x_{t−1}."""
    z, weight = (v.numpy() for v in hermite(5))
    scale, var = walk(schedule)
    x_0, terms = torch.full((5, 1), x_0, dtype=torch.float64), []
    for t in range(1, schedule.T + 1):
        x_t, step = scale[t] * x_0 + var[t] ** 0.5 * torch.from_numpy(z), torch.full((5,), t)
        mean, v = model_mean(schedule, step, x_t, model(x_t, step)), float(reverse_var(schedule, t))
        if t == 1:
            costs = -log_normal(x_0, mean, v)[:, 0]
        else:
            costs = kl_of_a_step(schedule, step, x_0, x_t, mean, v)
        terms.append((weight * costs).sum())
    return np.array([*terms, float(kl_of_the_end(schedule, x_0[:1]))])


def watched(f, schedule, x_0, generator=None, model=_some_model, **options):
    """What f returns, and {t: (x_t, ε_θ)} of its calls to the model; None where a call was not as it should be."""
    calls = []

    def watch(x_t, t):
        calls.append((t, x_t.clone(), model(x_t, t)))
        return calls[-1][2]

    got, found = f(watch, schedule, x_0, generator, **options), {}
    for t, *seen in calls:
        if t.dtype != torch.int64 or t.shape != x_0.shape[:1] or (t != t[0]).any() or seen[0].dtype != x_0.dtype:
            return got, None
        found[int(t[0])] = seen
    return got, found if len(calls) == schedule.T and set(found) == set(range(1, schedule.T + 1)) else None


def off_where_it_was(schedule, x_0, got, calls, reverse_var, decoder) -> float:
    """How far each term is from its value at the x_t that the model was shown."""
    if calls is None:
        return NEVER
    terms = []
    for t in range(1, schedule.T + 1):
        x_t, eps = calls[t]
        step = torch.full((len(x_0),), t)
        mean, v = model_mean(schedule, step, x_t, eps), reverse_var(schedule, t)
        if t == 1:
            terms.append(-decoder(x_0, mean, v).flatten(1).sum(1))
        else:
            terms.append(per_image(kl_of_a_step(schedule, step, x_0, x_t, mean, v), x_0))
    exact = torch.stack([*terms, kl_of_the_end(schedule, x_0)], 1)
    return off(got, exact, 1 + exact.abs())


def _noise(schedule, x_0, calls):
    """The noise in the x_t that the model was shown, step by step: (n, T, ...)."""
    scale, var = walk(schedule)
    return torch.stack([(calls[t][0] - scale[t] * x_0) / var[t].sqrt() for t in range(1, schedule.T + 1)], 1)


def _noise_of(f):
    """A draw for `noise_score`: the noise of images (2, 1, 2), step by step, (n, T, 2, 1, 2)."""

    def draw(n, generator):
        x_0 = torch.tensor([0.5, -1.0, 0.25, 0.75], dtype=torch.float64).reshape(2, 1, 2).repeat(n, 1, 1, 1)
        options = {"reverse_var": _some_var, "decoder": log_density}
        _, calls = watched(f, TINY, x_0, generator, lambda x_t, t: torch.zeros_like(x_t), **options)
        return _noise(TINY, x_0, calls) if calls else torch.full((n, TINY.T, 2, 1, 2), math.nan, dtype=torch.float64)

    return draw


def noise_at_a_glance(noise) -> Iterator[float]:
    """|z| of a first look at noise (n, D): the law of its entries, correlations of them and of their squares."""
    pairs = np.triu_indices(noise.shape[1], 1)
    yield law_score(noise.ravel())
    for part in (noise, noise**2):
        with np.errstate(invalid="ignore"):  # a constant has no correlation: NaN, which is as bad
            yield np.abs(np.corrcoef(part.T)[pairs]).max() * len(noise) ** 0.5


@check(
    "5.6",
    "bound, term by term",
    "implementation",
    "each term at its noise by quadrature, and on average; the law of the noise",
)
@until(15.0)
def terms(f):
    """f(eps_model, schedule, x_0, generator, reverse_var=, decoder=) returns L_0..L_T for each example, (B, T+1)."""
    options = {"reverse_var": _some_var, "decoder": log_density}
    few = torch.tensor([[0.6, -0.9]], dtype=torch.float64)
    yield disturbs(lambda *given: f(*given, torch.Generator().manual_seed(0), **options), _some_model, SHORT, few)
    for schedule, x in ((SHORT, (0.6, -0.9)), (TINY, (0.3, 0.8))):
        x_0 = torch.tensor(x, dtype=torch.float64).expand(COPIES, 2)
        exact = sum(exact_terms(schedule, value, _some_model, _some_var) for value in x)
        got, calls = watched(f, schedule, x_0, torch.Generator().manual_seed(4), **options)
        yield from on_average(got, exact)
        yield 0.0 if calls else NEVER
        yield from noise_at_a_glance(_noise(schedule, x_0, calls).flatten(1).numpy())

    def shown(schedule, x_0, model=_some_model):
        got, calls = watched(f, schedule, x_0.clone(), torch.Generator().manual_seed(5), model, **options)
        return off_where_it_was(schedule, x_0, got, calls, _some_var, lambda x, m, v: _log_normal(x, m, v)) / 1e-9

    for schedule, shape, size in (
        (SHORT, (3, 4), 1.3),
        (SHORT, (3, 3, 2, 1), 1.3),
        (SHORT, (2, 1, 2, 2), 600.0),
        (ONE, (2, 2, 1, 2), 1.3),
        (TWO, (2, 1, 1, 3), 1.3),
        (FAINT, (2, 2, 1, 1), UNIT),
        (STRONG, (2, 1, 2, 1), 1.3),
        (SIX, (1, 2, 1, 1), 1.3),
    ):
        yield shown(schedule, random_images(6, shape, size))
    if takes(f, 3):
        with torch.random.fork_rng(devices=[]):  # and with no generator, no choice of a variance and no decoder
            torch.manual_seed(0)
            x_0 = torch.linspace(-1, 1, 256, dtype=torch.float64)[[0, 30, 128, 255]].reshape(2, 1, 1, 2)
            got, calls = watched(lambda m, s, x, _: f(m, s, x), SHORT, x_0)
        decoder = lambda x, m, v: log_mass(x, m, v, 256)[0]  # noqa: E731
        yield off_where_it_was(SHORT, x_0, got, calls, _lower_var, decoder) / 1e-9
    # images in single precision, in which hardly any noise is left; the bound is to keep it all the same
    x_0 = torch.tensor([1.7, -1.3], dtype=torch.float32).expand(COPIES, 2)
    exact = sum(exact_terms(FAINT, float(value), _small_model, _some_var) for value in x_0[0])
    got, calls = watched(f, FAINT, x_0, torch.Generator().manual_seed(6), _small_model, **options)
    yield from on_average(got, exact) if calls else [NEVER]
    yield noise_score(_noise_of(f), (3, 2, 1, 2))


def _small_model(x_t, t):
    return 0.3 + 0 * x_t


def _log_normal(x, mean, var):
    return torch.from_numpy(log_normal(x.numpy(), mean.numpy(), float(var)))


def on_average(got, exact) -> Iterator[float]:
    """|z| of the means of the terms L_0, ..., L_T of copies of one image, and of the variance of their sum."""
    got = got.numpy()
    error, spread = got.mean(0) - exact, got.std(0) / len(got) ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread at all: no noise, or no numbers
        yield from np.nan_to_num(np.abs(error[:-1] / spread[:-1]), nan=NEVER)
    yield off(got[:, -1], np.full(len(got), exact[-1]), 1 + exact[-1]) / 1e-9  # there is no noise in it
    together = got[:, :-1].sum(1)  # fresh noise for each term: the variances add
    yield abs(together.var() / got[:, :-1].var(0).sum() - 1) / (2 / len(got)) ** 0.5


@terms.wrong("the ELBO's sign", seen="no public source: a plausible slip (the ELBO, minimised)", idea="sign")
def _(*arguments, **options):
    return -elbo.bound_terms(*arguments, **options)


@terms.wrong(
    "every term one place too late", seen="no public source: a plausible slip (L_{t−1} stored under t)", idea="time"
)
def _(*arguments, **options):
    return elbo.bound_terms(*arguments, **options).roll(1, 1)


@terms.wrong(
    "the mean over the entries of an image",
    seen="no public source: a plausible slip (losses averaged over an image, read as nats)",
    idea="axis",
)
def _(*arguments, **options):
    return elbo.bound_terms(*arguments, **options) / 2  # there are two entries


@terms.wrong(
    "the model is given t − 1 where it was trained with t",
    seen="udlbook/udlbook, notebook 18.3: its models are trained with t where 18.2 has t + 1",
    idea="time",
)
def _(model, schedule, x_0, generator, **options):
    return elbo.bound_terms(lambda x_t, t: model(x_t, t - 1), schedule, x_0, generator, **options)


@terms.wrong(
    "one draw of the noise for all steps",
    seen="no public source: a plausible slip (right on average, and noisier in sum)",
    idea="noise",
)
def _(model, schedule, x_0, generator, **options):
    eps = noise_like(x_0, generator)
    steps = [torch.full((len(x_0),), t) for t in range(1, schedule.T + 1)]
    found = [elbo.bound_term(model, schedule, x_0, eps, t, **options) for t in steps]
    return torch.stack([*found, elbo.prior_term(schedule, x_0)], 1)


@terms.wrong(
    "‖ε − ε_θ‖² with no weight", seen="no public source: a plausible slip (L_simple taken for the bound)", idea="term"
)
def _(model, schedule, x_0, generator, **options):
    found = []
    for step in range(1, schedule.T + 1):
        t, eps, a = torch.full((len(x_0),), step), noise_like(x_0, generator), schedule.alpha_bar[step]
        found.append((eps - model(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t)).square().sum(1))
    return torch.stack([*found, elbo.prior_term(schedule, x_0)], 1)


def _with_noise(draw, model, schedule, x_0, generator, **options):
    """The right terms, at the noise that draw(x_0, generator) returns."""
    with torch.no_grad():
        found = [
            elbo.bound_term(model, schedule, x_0, draw(x_0, generator), torch.full((len(x_0),), t), **options)
            for t in range(1, schedule.T + 1)
        ]
    return torch.stack([*found, elbo.prior_term(schedule, x_0)], 1)


@terms.wrong(
    "±1 in the place of normal noise",
    seen="no public source: right mean, right variance, and a lower bound",
    idea="noise",
)
def _(*arguments, **options):
    return _with_noise(lambda x_0, generator: noise_like(x_0, generator).sign(), *arguments, **options)


@terms.wrong(
    "uniform noise of variance 1",
    seen="of this kind: acids-ircam/diffusion_models (β·U(0, 1))",
    idea="noise",
)
def _(*arguments, **options):
    def draw(x_0, generator):
        return (torch.rand(x_0.shape, generator=generator, dtype=x_0.dtype) - 0.5) * 12**0.5

    return _with_noise(draw, *arguments, **options)


@terms.wrong(
    "one number of noise for all pixels of an image", seen="no public source: noise of shape (B, 1, 1, 1)", idea="noise"
)
def _(*arguments, **options):
    def draw(x_0, generator):
        return noise_like(x_0.flatten(1)[:, :1], generator).reshape(-1, *[1] * (x_0.ndim - 1)).expand_as(x_0)

    return _with_noise(draw, *arguments, **options)


@terms.wrong("the generator is not heeded", seen="no public source: torch.randn_like takes none", idea="noise")
def _(*arguments, **options):
    return _with_noise(lambda x_0, generator: torch.randn_like(x_0), *arguments, **options)


@terms.wrong(
    "the model is given t as a real number", seen="no public source: no embedding can be read at 3.0", idea="edge"
)
def _(model, *arguments, **options):
    return elbo.bound_terms(lambda x_t, t: model(x_t, t.double()), *arguments, **options)


@terms.wrong(
    "all in the precision of the images",
    seen="no public source: differences of images in single precision",
    idea="edge",
)
def _(model, schedule, x_0, generator=None, *, reverse_var=_lower_var, decoder=elbo.discretised_log_likelihood):
    found = []
    for step in range(1, schedule.T + 1):
        t, eps, a = torch.full((len(x_0),), step), noise_like(x_0, generator), schedule.alpha_bar[step].to(x_0.dtype)
        x_t, v = a.sqrt() * x_0 + (1 - a).sqrt() * eps, reverse_var(schedule, t, like=x_0)
        mean = posterior_mean_from_eps(schedule, x_t, model(x_t, t), t)
        if step == 1:
            found.append(-decoder(x_0, mean, v).flatten(1).sum(1).double())
        else:
            found.append(elbo.denoising_term(schedule, x_0, x_t, mean, v, t).double())
    return torch.stack([*found, elbo.prior_term(schedule, x_0)], 1)


@check("5.7", "bits per dimension", "implementation", "entropies counted in bits, with base-2 logarithms", to=1e-9)
@until(1e-8)
def bits(f):
    """f(nats, dims) returns bits for each number of an image."""
    random = np.random.default_rng(5)
    for levels, dims in ((256, 3 * 32 * 32), (17, 64), (2, 5), (3, 1)):
        P = random.dirichlet(np.ones(levels), 7)  # the numbers of an image take turns with seven distributions
        turns = np.arange(dims) % 7
        exact = np.mean(np.array([stats.entropy(p, base=2) for p in P])[turns])
        nats = torch.tensor([np.array([stats.entropy(p) for p in P])[turns].sum(), dims * np.log(levels)])
        yield disturbs(f, nats, dims)
        yield off(f(nats, dims), [exact, np.log2(levels)])
        yield off(f(nats[0], dims), exact)
        # densities may exceed 1, and numbers that hold much more than 8 bits: 2 to that power is e to the nats
        nats = torch.tensor([[-40.0, 1e-3, 300.0], [-1e-7, 0.0, 650.0]], dtype=torch.float64)
        yield off(f(nats, dims), np.log2(np.exp(nats.numpy().astype(np.longdouble))).astype(float) / dims)
        yield slope_off(lambda n: f(n, dims), nats)  # noqa: B023


@bits.wrong("not divided by log 2: nats under the name of bits", seen="no public source: a plausible slip", idea="term")
def _(nats, dims):
    return nats / dims


@bits.wrong("multiplied by log 2", seen="no public source: a plausible slip", idea="sign")
def _(nats, dims):
    return nats / dims * np.log(2)


@bits.wrong(
    "not divided by the number of dimensions",
    seen="no public source: a plausible slip (bits per image and bits per dimension mixed up)",
    idea="term",
)
def _(nats, dims):
    return nats / np.log(2)


@bits.wrong("at least 0", seen="no public source: true of probabilities, not of densities", idea="edge")
def _(nats, dims):
    return (nats / dims / np.log(2)).clamp(min=0)


@dataclass
class Gaps:
    """Divergences of the truth q from a model p, averaged over the data. Lists are indexed by t, from 1.

    end: KL(q(x_T) ‖ p(x_T)); steps[t]: KL(q(x_{t−1}|x_t) ‖ p(x_{t−1}|x_t)).
    end_given_x_0, steps_given_x_0[t], t ≥ 2: the same for q(x_T|x_0) and q(x_{t−1}|x_t, x_0), as in the bound's terms.
    """

    T: int
    end: float
    steps: list
    end_given_x_0: float
    steps_given_x_0: list


@functools.cache
def gaps(schedule, model, end):
    """The gaps of a model for data N(*DATA), by conditioning in the joint Gaussian and quadrature."""
    mean, cov = chain(DATA, forward_links(schedule))
    T = schedule.T

    def average(known, target, a, b, v):
        """The mean over x[known] of KL(q(x[target]|x[known]) ‖ N(a·x + b, v)), with x the last one known."""
        nodes, weights = hermite(5, len(known))
        values = mean[known] + nodes @ torch.linalg.cholesky(cov[known][:, known]).T
        both, total = [*known, target], 0.0
        for weight, value in zip(weights, values, strict=True):
            q = condition(mean[both], cov[both][:, both], list(range(len(known))), value)
            total += float(weight * kl_divergence_full(*q, a * value[-1:] + b, cov.new_full((1, 1), v)))
        return total

    end_mean, end_cov = torch.tensor(end, dtype=torch.float64).reshape(2, 1)
    return Gaps(
        T,
        float(kl_divergence_full(mean[T:], cov[T:, T:], end_mean, end_cov[None])),
        [None, *(average([t], t - 1, *model[t - 1]) for t in range(1, T + 1))],
        average([0], T, 0.0, *end),
        [None, None, *(average([0, t], t - 1, *model[t - 1]) for t in range(2, T + 1))],
    )


def nearly_true(schedule, miss=0.01):
    """The model whose steps are the truth's, q(x_{t−1}|x_t), but for a little; and the truth's x_T."""
    mean, cov = chain(DATA, forward_links(schedule))
    steps = []
    for t in range(1, schedule.T + 1):
        a = cov[t - 1, t] / cov[t, t]
        step = a, mean[t - 1] - a * mean[t], cov[t - 1, t - 1] - a * cov[t - 1, t]
        steps.append(tuple((1 + miss) * float(v) for v in step))
    return tuple(steps), (float(mean[-1]), float(cov[-1, -1]))


@check("5.8", "gap of the bound", "identity", "the divergence of the joint densities of a whole chain", to=1e-9)
@until(1e-8)
def gap(f):
    """f(gaps) returns E[L] minus the entropy of the data, which is KL(q(x_{0:T}) ‖ p(x_{0:T}))."""
    for schedule, model, end in (
        *((TINY, model, end) for model, end in zip(MODELS, ((0.0, 1.0), (0.2, 0.8), (0.1, 1.3)), strict=True)),
        (ONE, MODELS[0][:1], (0.1, 0.9)),
        (TWO, MODELS[1][:2], (0.0, 1.0)),
        (SHORT, (*MODELS[2], (0.8, 0.1, 0.5)), (-0.2, 1.2)),
        (TINY, ((0.9, 30.0, 0.01), (0.7, -20.0, 0.3), (0.8, 9.0, 0.4)), (7.0, 0.1)),
        (SHORT, *nearly_true(SHORT)),
    ):
        q, p = chain(DATA, forward_links(schedule)), joint_of_model(model, end)
        exact = float(kl_divergence_full(*q, *p))
        found = copy.deepcopy(gaps(schedule, model, end))
        yield disturbs(f, found)
        yield off(float(f(found)), exact, 1 + exact)


@gap.states
def _(gaps):
    return gaps.end + sum(gaps.steps[1:])


@gap.wrong(
    "the bound's own terms are taken for the gap",
    seen="no public source: a plausible slip (a loss that is above 0 read as room for improvement)",
    idea="exchange",
)
def _(gaps):
    return gaps.end_given_x_0 + gaps.steps[1] + sum(gaps.steps_given_x_0[2:])


@gap.wrong(
    "averaged over the steps",
    seen="no public source: a plausible slip (a loss averaged over t, read as a bound)",
    idea="axis",
)
def _(gaps):
    return gaps.end + sum(gaps.steps[1:]) / gaps.T


@gap.wrong(
    "the step from x_1 to x_0 is left out",
    seen="no public source: a plausible slip (sums from t = 2, with no L_0)",
    idea="term",
)
def _(gaps):
    return gaps.end + sum(gaps.steps[2:])


@gap.wrong(
    "the prior's part is left out",
    seen="no public source: a plausible slip (L_T has no parameters, so it is dropped)",
    idea="term",
)
def _(gaps):
    return sum(gaps.steps[1:])


@gap.wrong("the steps from x_1, x_2 and x_3", seen="no public source: a sum written out for T = 3", idea="axis")
def _(gaps):
    return gaps.end + sum(gaps.steps[1:4])


@gap.wrong("no divergence above 10", seen="no public source: a clamp against outliers", idea="edge")
def _(gaps):
    return min(gaps.end, 10) + sum(min(step, 10) for step in gaps.steps[1:])
