"""The checks of chapter 9: schedules against turns, areas and straight lines, weights and variances against the chain
walked forwards, the hybrid loss against quadrature and differences, the draw of t against counts."""

import copy
import functools
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from scipy import special, stats

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import hermite, normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk
from ddpm_lib.checks.chapter_04 import (
    FAINT,
    FINE,
    NEAR,
    ONE,
    STRONG,
    TWO,
    UNIT,
    WIDE,
    bayes_on_a_grid,
    disturbs,
    images,
    linear_in_images,
    off,
    takes,
)
from ddpm_lib.checks.chapter_05 import kl_of_a_step, log_mass, model_mean
from ddpm_lib.checks.guard import STENCIL, Watched, fault, relative, slope_gap, until
from ddpm_lib.checks.noise import NEVER
from ddpm_lib.diffusion.elbo import discretised_log_likelihood
from ddpm_lib.diffusion.loss import draw_t
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.timesteps import LossSecondMoment

HARSH = Schedule([0.5, 1 - 2.0**-12, 0.3])  # STRONG would cost more digits than are left after a difference
ZERO = Schedule([0.3, 0.6, 1.0], zero_terminal=True)
SCALED = Schedule(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)


def tables(schedule, T) -> Iterator[float]:
    """How far a schedule's tables are from T steps that hang together: ᾱ is what walking the chain leaves."""
    yield float(abs(len(schedule.beta) - T - 1) + abs(len(schedule.alpha_bar) - T - 1))
    yield largest(apart(schedule.beta[0], 0.0), apart(schedule.alpha, 1 - schedule.beta))
    yield apart(schedule.alpha_bar[0], 1.0)
    yield relative(schedule.alpha_bar, walk(schedule)[0] ** 2, 1e-300)


def with_alpha_bar(schedule, values):
    """A schedule whose ᾱ is not that of its β."""
    other = copy.copy(schedule)
    other._tables, other.alpha_bar = {}, torch.as_tensor(values, dtype=torch.float64)
    return other


def _steps(low, high, T):
    return torch.linspace(low, high, T, dtype=torch.float64)


ENDS = [(1000, 1e-4, 0.02), (10, 0.01, 0.4), (10, 0.3, 0.02), (2, 0.1, 0.3), (3, 2.0**-40, 0.9999), (40, 0.5, 1e-4)]


@check("9.1", "scaled-linear schedule", "implementation", "its ends, and equal differences of the roots", to=1e-12)
@until(1e-11)
def scaled_linear(f):
    """f(T, beta_1, beta_T) returns a Schedule."""
    f = Watched(f)
    for T, first, last in [*ENDS, (7, 0.25, 0.25)]:
        schedule = f(T, first, last)
        yield from tables(schedule, T)
        yield relative(schedule.beta[[1, T]], [first, last])
        differences = schedule.beta[1:].sqrt().diff()
        yield apart(differences, differences.mean().expand(T - 1))
    if takes(f.function, 0):
        schedule = f()
        yield float(abs(schedule.T - 1000))
        yield relative(schedule.beta[[1, 1000]], [0.00085, 0.012])
    yield f.fault


@scaled_linear.wrong(
    "β itself is linear",
    seen="the other schedule under the name linear: CompVis/stable-diffusion issue 314",
    idea="power",
)
def _(T, beta_1, beta_T):
    return Schedule(_steps(beta_1, beta_T, T))


@scaled_linear.wrong(
    "the roots, not squared again", seen="no public source: a plausible slip (√β taken for β)", idea="power"
)
def _(T, beta_1, beta_T):
    return Schedule(_steps(beta_1**0.5, beta_T**0.5, T))


@scaled_linear.wrong(
    "indexed by t/T instead of (t − 1)/(T − 1)",
    seen="no public source: a plausible slip (t counted from 1, the schedule from 0)",
    idea="time",
)
def _(T, beta_1, beta_T):
    share = torch.arange(1, T + 1, dtype=torch.float64) / T
    return Schedule((beta_1**0.5 + share * (beta_T**0.5 - beta_1**0.5)) ** 2)


@scaled_linear.wrong("the last β scaled with T, the first not", seen="of this kind: NVlabs/I2SB issue 11", idea="term")
def _(T, beta_1, beta_T):
    return Schedule(_steps(beta_1**0.5, min(beta_T * 1000 / T, 0.999) ** 0.5, T) ** 2)


@scaled_linear.wrong(
    "β_t = β̄/T, constant", seen="no public source: a plausible slip (a budget spread evenly)", idea="exchange"
)
def _(T, beta_1, beta_T):
    return Schedule(torch.full((T,), beta_T / T, dtype=torch.float64))


@scaled_linear.wrong(
    "squares of the ends, squared again",
    seen="quadratic_beta_schedule of huggingface/blog, annotated-diffusion.md, as first published",
    idea="power",
)
def _(T, beta_1, beta_T):
    return Schedule(_steps(beta_1**2, beta_T**2, T) ** 2)


@scaled_linear.wrong(
    "log β is linear", seen="no public source: a plausible slip (another curve between the same ends)", idea="exchange"
)
def _(T, beta_1, beta_T):
    return Schedule(torch.exp(_steps(math.log(beta_1), math.log(beta_T), T)))


@scaled_linear.wrong(
    "in single precision", seen="huggingface/diffusers, DDPMScheduler and others: their tables are float32", idea="edge"
)
def _(T, beta_1, beta_T):
    return Schedule(torch.linspace(beta_1**0.5, beta_T**0.5, T) ** 2)


@scaled_linear.wrong(
    "a β of at most 0.999", seen="no public source: the cosine schedule's rule, used here", idea="edge"
)
def _(T, beta_1, beta_T):
    return Schedule((_steps(beta_1**0.5, beta_T**0.5, T) ** 2).clamp(max=0.999))


@functools.cache
def turned(T, s):
    """1 − ᾱ_t/ᾱ_{t−1} for t = 1..T: a hand turns by equal angles up to a right one, and ᾱ is its shadow squared."""
    start, turn = (np.exp(1j * math.pi / 2 * angle) for angle in (s / (1 + s), 1 / (1 + s) / T))
    hand = start * turn ** np.arange(T + 1)
    rise = (hand.imag[1:] - hand.imag[:-1]) * (hand.imag[1:] + hand.imag[:-1])  # the shadow loses what the height gains
    return torch.from_numpy(rise / hand.real[:-1] ** 2)


@check("9.2", "cosine schedule", "implementation", "a hand that turns by equal angles, and the chain walked", to=1e-9)
@until(1e-8)
def cosine(f):
    """f(T, s, beta_max) returns a Schedule."""
    f = Watched(f)
    for T, s, beta_max in (
        (4, 0.008, 0.999),
        (1000, 0.008, 0.999),
        (1000, 0.0, 0.999),
        (2000, 0.0, 0.999),
        (10, 0.008, 0.4),
        (1, 0.008, 0.999),
        (2, 0.0, 0.9),
        (50, 0.3, 0.9999),
        (20, 2.0, 0.999),
        (300, 0.008, 0.02),
    ):
        schedule = f(T, s, beta_max)
        yield from tables(schedule, T)
        yield relative(schedule.beta[1:], turned(T, s).clamp(max=beta_max))
    if takes(f.function, 0):
        yield relative(f().beta[1:], turned(1000, 0.008).clamp(max=0.999))
    yield f.fault


def _cos(T, s=0.008, power=2):
    return torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** power


def _from_alpha_bar(a, beta_max):
    return Schedule((1 - a[1:] / a[:-1]).clamp(max=beta_max))


@cosine.wrong("without the square", seen="no public source: a plausible slip (ᾱ and √ᾱ mixed up)", idea="power")
def _(T, s, beta_max):
    return _from_alpha_bar(_cos(T, s, 1), beta_max)


@cosine.wrong(
    "ᾱ_t = cos(t/T·π/2)/cos(π/2): divided by the last value, which is 0",
    seen="no public source: a plausible slip (f(0) taken for f at the angle π/2)",
    idea="exchange",
)
def _(T, s, beta_max):
    a = _cos(T, 0.0, 1)
    return with_alpha_bar(_from_alpha_bar(a, beta_max), a / math.cos(math.pi / 2))


@cosine.wrong(
    "linspace(0, T, T + 1), divided by T + 1: the end is not reached",
    seen="proposed in jannerm/diffuser issue 68 (where both are T + 1, which is the same as both T)",
    idea="time",
)
def _(T, s, beta_max):
    x = _steps(0, T, T + 1) / (T + 1)
    return _from_alpha_bar(torch.cos((x + s) / (1 + s) * math.pi / 2) ** 2, beta_max)


@cosine.wrong(
    "linspace(0, T + 1, T + 1), divided by T", seen="no public source: a plausible slip (one T + 1 mended)", idea="time"
)
def _(T, s, beta_max):
    a = torch.cos((_steps(0, T + 1, T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
    return Schedule((1 - a[1:] / a[:-1]).clamp(1e-9, beta_max))


@cosine.wrong(
    "ᾱ = 1 stored as the first of T entries: 1 − ᾱ is 0 at the first step",
    seen="Project-MONAI/GenerativeModels issue 489, Project-MONAI/MONAI PR 8427",
    idea="time",
)
def _(T, s, beta_max):
    schedule = _from_alpha_bar(_cos(T, s), beta_max)
    return with_alpha_bar(schedule, torch.cat([schedule.alpha_bar[:1], schedule.alpha_bar[:-1]]))


@cosine.wrong(
    "ᾱ is not recomputed where β is clipped",
    seen="Project-MONAI/MONAI PR 8427, which mends it with the entry of ᾱ = 1",
    idea="exchange",
)
def _(T, s, beta_max):
    a = _cos(T, s)
    return with_alpha_bar(_from_alpha_bar(a, beta_max), a / a[0])


@cosine.wrong(
    "β is not clipped: β_T = 1",
    seen="lucidrains/denoising-diffusion-pytorch 1.6.0, clip(betas, 0, 1.), for a while",
    idea="edge",
)
def _(T, s, beta_max):
    a = _cos(T, s)
    return Schedule(1 - a[1:] / a[:-1], zero_terminal=True)


@cosine.wrong(
    "β of at least 1e-4", seen="huggingface/blog, annotated-diffusion.md: clip(betas, 0.0001, 0.9999)", idea="edge"
)
def _(T, s, beta_max):
    a = _cos(T, s)
    return Schedule((1 - a[1:] / a[:-1]).clamp(1e-4, beta_max))


@cosine.wrong("s is left out", seen="no public source: a plausible slip (an argument that is not used)", idea="term")
def _(T, s, beta_max):
    return _from_alpha_bar(_cos(T, 0.0), beta_max)


@cosine.wrong("not divided by 1 + s: the end is passed", seen="no public source: a plausible slip", idea="term")
def _(T, s, beta_max):
    a = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) * math.pi / 2) ** 2
    return Schedule((1 - a[1:] / a[:-1]).clamp(1e-9, beta_max))


@cosine.wrong(
    "s at the wrong end: it keeps ᾱ_t from getting small near T",
    seen="no public source: a plausible slip (what s is for, turned round)",
    idea="sign",
)
def _(T, s, beta_max):
    return _from_alpha_bar(
        torch.cos(torch.arange(T + 1, dtype=torch.float64) / T / (1 + s) * math.pi / 2) ** 2, beta_max
    )


@cosine.wrong(
    "in single precision",
    seen="no public source: torch.linspace without a dtype, and β_1 loses four digits",
    idea="edge",
)
def _(T, s, beta_max):
    a = torch.cos((torch.linspace(0, 1, T + 1) + s) / (1 + s) * math.pi / 2) ** 2
    return Schedule((1 - a[1:] / a[:-1]).clamp(max=beta_max).clamp(min=1e-9))


@check("9.3", "sigmoid in beta", "implementation", "equal steps of the logit, from −6 to 6", to=1e-9)
@until(1e-8)
def sigmoid_in_beta(f):
    """f(T, beta_1, beta_T) returns a Schedule; f(T, beta_1, beta_T, reach) steps from −reach to reach instead."""
    f = Watched(f)
    for T, first, last in ENDS:
        for reach in (6.0, 2.5) if takes(f.function, 4) else (6.0,):
            schedule = f(T, first, last, *([reach] if reach != 6.0 else []))
            yield from tables(schedule, T)
            share = (schedule.beta[1:] - first) / (last - first)
            inside = ((share > 0) & (share < 1)).all()
            yield 0.0 if inside else math.inf
            yield apart(special.logit(share.numpy()), np.linspace(-reach, reach, T), reach)
    if takes(f.function, 0):
        yield relative(f().beta, f(1000, 1e-4, 0.02).beta, 1e-300)
    yield f.fault


def _between(beta_1, beta_T, share):
    return Schedule(beta_1 + (beta_T - beta_1) * share)


@sigmoid_in_beta.wrong(
    "from −3 to 3", seen="no public source: a plausible slip (the ends of the other sigmoid)", idea="term"
)
def _(T, beta_1, beta_T):
    return _between(beta_1, beta_T, torch.sigmoid(_steps(-3, 3, T)))


@sigmoid_in_beta.wrong(
    "the S-curve in ᾱ",
    seen="lucidrains/denoising-diffusion-pytorch, sigmoid_beta_schedule: the other schedule of this name",
    idea="exchange",
)
def _(T, beta_1, beta_T):
    left = torch.sigmoid(_steps(3, -3, T + 1)) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
    return Schedule((1 - left[1:] / left[:-1]).clamp(max=0.999))


@sigmoid_in_beta.wrong(
    "the ends are put into the sigmoid",
    seen="no public source: a plausible slip (linspace(β_1, β_T) in place of −6, 6)",
    idea="exchange",
)
def _(T, beta_1, beta_T):
    return _between(beta_1, beta_T, torch.sigmoid(_steps(beta_1, beta_T, T)))


@sigmoid_in_beta.wrong(
    "stretched until both ends are reached",
    seen="no public source: a plausible slip (a min–max rescaling)",
    idea="term",
)
def _(T, beta_1, beta_T):
    share = torch.sigmoid(_steps(-6, 6, T))
    return _between(beta_1, beta_T, (share - share[0]) / (share[-1] - share[0]))


@sigmoid_in_beta.wrong(
    "in steps of t/T from −6",
    seen="no public source: a plausible slip (t counted from 1, the schedule from 0)",
    idea="time",
)
def _(T, beta_1, beta_T):
    return _between(beta_1, beta_T, torch.sigmoid(-6 + 12 * torch.arange(1, T + 1, dtype=torch.float64) / T))


@sigmoid_in_beta.wrong("one end scaled with T", seen="of this kind: NVlabs/I2SB issue 11", idea="term")
def _(T, beta_1, beta_T):
    return _between(beta_1, min(beta_T * 1000 / T, 0.999), torch.sigmoid(_steps(-6, 6, T)))


@sigmoid_in_beta.wrong(
    "in single precision", seen="huggingface/diffusers, DDPMScheduler: its tables are float32", idea="edge"
)
def _(T, beta_1, beta_T):
    return _between(beta_1, beta_T, torch.sigmoid(torch.linspace(-6, 6, T)))


@functools.cache
def logistic_areas(T, start, end, tau):
    """For t = 1..T: the share of the area from t − 1 to the end which lies between t − 1 and t, by quadrature."""
    node, weight = leggauss(40)
    edge = np.linspace(start, end, T + 1) / tau
    middle, half = (edge[1:] + edge[:-1]) / 2, (edge[1] - edge[0]) / 2
    x = middle[:, None] + half * node
    area = half * (weight / (4 * np.cosh(x / 2) ** 2)).sum(1)  # the logistic density, a derivative of the sigmoid
    return torch.from_numpy(area / np.cumsum(area[::-1])[::-1])


@check("9.4", "sigmoid in alpha-bar", "implementation", "areas under the logistic density, by quadrature", to=1e-9)
@until(1e-8)
def sigmoid_in_alpha_bar(f):
    """f(T, start, end, tau, beta_max) returns a Schedule."""
    f = Watched(f)
    for T, start, end, tau, beta_max in (
        (5, -3.0, 3.0, 1.0, 0.999),
        (1000, -3.0, 3.0, 1.0, 0.999),
        (10, -3.0, 3.0, 0.7, 0.4),
        (6, 0.0, 3.0, 0.3, 0.999),
        (1, -3.0, 3.0, 1.0, 0.9),
        (2, -1.0, 4.0, 1.1, 0.9999),
        (300, -3.0, 3.0, 0.9, 0.02),
    ):
        schedule = f(T, start, end, tau, beta_max)
        yield from tables(schedule, T)
        yield relative(schedule.beta[1:], logistic_areas(T, start, end, tau).clamp(max=beta_max))
    if takes(f.function, 0):
        yield relative(f().beta[1:], logistic_areas(1000, -3.0, 3.0, 1.0).clamp(max=0.999))
    yield f.fault


def _s(T, start, end, tau):
    return torch.sigmoid(_steps(start, end, T + 1) / tau)


@sigmoid_in_alpha_bar.wrong(
    "neither moved nor stretched: ᾱ_0 is not 1, ᾱ_T not 0",
    seen="no public source: a plausible slip (the sigmoid itself taken for ᾱ)",
    idea="term",
)
def _(T, start, end, tau, beta_max):
    return _from_alpha_bar(1 - _s(T, start, end, tau), beta_max)


@sigmoid_in_alpha_bar.wrong(
    "τ is left out", seen="no public source: a plausible slip (an argument that is not used)", idea="term"
)
def _(T, start, end, tau, beta_max):
    left = _s(T, start, end, 1.0)
    return _from_alpha_bar(left[-1] - left, beta_max)


@sigmoid_in_alpha_bar.wrong(
    "τ under the sigmoid, but not at the ends",
    seen="no public source: a plausible slip (sigmoid(end) where sigmoid(end/τ) is meant)",
    idea="term",
)
def _(T, start, end, tau, beta_max):
    a = torch.sigmoid(torch.tensor(max(end, end / tau), dtype=torch.float64)) + 1e-3 - _s(T, start, end, tau)
    return _from_alpha_bar(a, beta_max)


@sigmoid_in_alpha_bar.wrong(
    "the ends of the sigmoid in single precision, the rest in double",
    seen="lucidrains/denoising-diffusion-pytorch, sigmoid_beta_schedule: torch.tensor(end / tau).sigmoid()",
    idea="edge",
)
def _(T, start, end, tau, beta_max):
    a = torch.sigmoid(torch.tensor(end / tau)).double() - _s(T, start, end, tau)
    return _from_alpha_bar(a, beta_max)


@sigmoid_in_alpha_bar.wrong(
    "the S-curve in β",
    seen="huggingface/diffusers, beta_schedule “sigmoid”: the other schedule of this name",
    idea="exchange",
)
def _(T, start, end, tau, beta_max):
    return _between(1e-4, 0.02, torch.sigmoid(_steps(-6, 6, T)))


@sigmoid_in_alpha_bar.wrong(
    "T values from (t − 1)/(T − 1)",
    seen="no public source: a plausible slip (T entries of ᾱ where there are T + 1)",
    idea="time",
)
def _(T, start, end, tau, beta_max):
    a = _s(max(T - 1, 1), start, end, tau)
    a = (a[-1] - a) / (a[-1] - a[0])
    return Schedule((1 - torch.cat([a[1:2], a[1:]])[:T] / torch.cat([a[:1], a])[:T]).clamp(1e-9, beta_max))


@sigmoid_in_alpha_bar.wrong(
    "ᾱ is not recomputed where β is clipped", seen="of this kind: Project-MONAI/MONAI PR 8427", idea="exchange"
)
def _(T, start, end, tau, beta_max):
    left = _s(T, start, end, tau)
    a = (left[-1] - left) / (left[-1] - left[0])
    return with_alpha_bar(_from_alpha_bar(a, beta_max), a)


@sigmoid_in_alpha_bar.wrong(
    "the root of ᾱ follows the curve", seen="no public source: a plausible slip (ᾱ and √ᾱ mixed up)", idea="power"
)
def _(T, start, end, tau, beta_max):
    left = _s(T, start, end, tau)
    return _from_alpha_bar((left[-1] - left) ** 2, beta_max)


@check("9.5", "zero terminal SNR", "implementation", "the straight line through two ends, solved", to=1e-9)
@until(1e-8)
def zero_snr(f):
    """f(schedule) returns a Schedule with ᾱ_T = 0; f(schedule, alpha_bar_T) one with this ᾱ_T."""
    f = Watched(f)
    for schedule in (SHORT, SCALED, LONG, TWO, HARSH, ZERO, FAINT):
        for last in (0.0, 2.0**-12, 2.0**-24) if takes(f.function, 2) else (0.0,):
            root = np.cumprod(np.sqrt(1 - schedule.beta[1:].numpy()))  # √ᾱ_1, ..., √ᾱ_T
            ends = np.stack([np.ones(2), root[[0, -1]]], 1)
            moved, stretched = np.linalg.solve(ends, [root[0], last**0.5]) if schedule.T > 2 else (0.0, 0.0)
            wanted = (moved + stretched * root) ** 2
            wanted[[0, -1]] = root[0] ** 2, last  # where nothing may be rounded away
            got = f(schedule, *([last] if last else []))
            yield float(abs(got.T - schedule.T))
            yield relative(got.alpha_bar[1:], wanted, 1e-5 if last else 1e-300)
            yield from tables(got, schedule.T)
            yield relative(got.beta[1], schedule.beta[1])
    yield f.fault


def _from_root(root, first):
    """The schedule of √ᾱ_1, ..., √ᾱ_T whose first β is known."""
    return Schedule(torch.cat([first, 1 - (root[1:] / root[:-1]) ** 2]), zero_terminal=True)


@zero_snr.wrong(
    "ᾱ is moved and stretched, not its root", seen="no public source: a plausible slip (a root forgotten)", idea="power"
)
def _(schedule):
    a = schedule.alpha_bar[1:]
    a = a[0] * (a - a[-1]) / (a[0] - a[-1])
    return _from_root(a.sqrt(), schedule.beta[1:2])


@zero_snr.wrong("the root taken for ᾱ", seen="no public source: a plausible slip (not squared again)", idea="power")
def _(schedule):
    root = schedule.alpha_bar[1:].sqrt()
    root = root[0] * (root - root[-1]) / (root[0] - root[-1])
    return _from_root(root.sqrt(), schedule.beta[1:2])


@zero_snr.wrong("only the last step is changed", seen="no public source: a plausible slip (β_T set to 1)", idea="edge")
def _(schedule):
    return Schedule(torch.cat([schedule.beta[1:-1], torch.ones(1).double()]), zero_terminal=True)


@zero_snr.wrong(
    "moved, not stretched: the first step gets noisier", seen="no public source: a plausible slip", idea="term"
)
def _(schedule):
    root = schedule.alpha_bar[1:].sqrt()
    root = root - root[-1]
    return _from_root(root, (1 - root[:1] ** 2).clamp(max=0.9999))


@zero_snr.wrong(
    "stretched from t = 0, not from t = 1", seen="no public source: a plausible slip (a table with ᾱ_0)", idea="time"
)
def _(schedule):
    root = schedule.alpha_bar.sqrt()
    root = (root - root[-1]) / (1 - root[-1])
    return _from_root(root[1:], 1 - root[1:2] ** 2)


@zero_snr.wrong(
    "β of at most 0.999, as in the cosine schedule",
    seen="no public source: a plausible slip (a schedule that has to keep β below 1)",
    idea="edge",
)
def _(schedule):
    root = schedule.alpha_bar[1:].sqrt()
    root = root[0] * (root - root[-1]) / (root[0] - root[-1])
    return Schedule(_from_root(root, schedule.beta[1:2]).beta[1:].clamp(max=0.999))


@zero_snr.wrong(
    "ᾱ_T = 2^-24 where 0 is meant",
    seen="huggingface/diffusers PR 6024: a patch of its EulerDiscreteScheduler, on purpose",
    idea="edge",
)
def _(schedule):
    root = schedule.alpha_bar[1:].sqrt()
    root = root[0] * (root - root[-1]) / (root[0] - root[-1])
    return _from_root(root.clamp(min=2.0**-12), schedule.beta[1:2])


@check("9.6", "clean image from velocity", "implementation", "two linear equations in x_0 and ε, solved", to=1e-9)
@until(1e-8)
def clean_image(f):
    """f(schedule, x_t, v, t) returns x_0."""

    def solved(scale, std, x_t, v):
        a, b = scale.flatten(), std.flatten()
        rows = torch.stack([torch.stack([a, b], -1), torch.stack([-b, a], -1)], -2)  # (B, 2, 2)
        both = torch.linalg.solve(rows, torch.stack([x_t.flatten(1), v.flatten(1)], 1))
        return both[:, 0].reshape(x_t.shape)

    yield from linear_in_images(
        f,
        lambda batch: (batch.x_t, _as_large(batch)),
        lambda batch: solved(*batch.walked(), batch.x_t, _as_large(batch)),
    )
    x_t, v = torch.randn(2, 3, 2, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([3, 1, 2])
    scale, var = walk(ZERO)
    exact = solved(images(scale[t]), images(var[t].sqrt()), x_t, v)
    yield off(f(ZERO, x_t, v, t), exact)
    yield off(f(ZERO, x_t.float(), v.float(), t), exact, 1e4)


def _as_large(batch):
    """A velocity of the size of the image: its noise where that is as large, and else the image itself, turned."""
    return batch.eps * (batch.x_0.abs().max() / batch.eps.abs().max())


def _ends(schedule, t):
    a = images(schedule.alpha_bar[t])
    return a.sqrt(), (1 - a).sqrt()


@clean_image.wrong(
    "by way of ε, divided by √ᾱ_t, which is 0 at T",
    seen="of this kind: zituitui/BELM issue 8 (v and zero terminal SNR)",
    idea="edge",
)
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return (x_t - std * (std * x_t + scale * v)) / scale


@clean_image.wrong("the sign of v is turned", seen="no public source: a plausible slip", idea="sign")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale * x_t + std * v


@clean_image.wrong("the formula for ε", seen="no public source: a plausible slip (ε and x_0 mixed up)", idea="exchange")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return std * x_t + scale * v


@clean_image.wrong("the two factors are swapped", seen="no public source: a plausible slip", idea="exchange")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return std * x_t - scale * v


@clean_image.wrong("variances for roots", seen="no public source: a plausible slip", idea="power")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale**2 * x_t - std**2 * v


@clean_image.wrong("clipped to [−1, 1]", seen="no public source: a sampler's line, in the formula", idea="edge")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return (scale * x_t - std * v).clamp(-1, 1)


@clean_image.wrong("√ᾱ of at least 1e-4", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale.clamp(min=1e-4) * x_t - std * v


WEIGHED = [(SHORT, [4, 1, 3, 2]), (LONG, [1, 20, 300, 500, 1000]), (TWO, [2, 1]), (ONE, [1]), (STRONG, [2, 3, 1])]
WEIGHED += [(FAINT, [2, 1]), (ZERO, [3, 2, 1])]


@functools.cache
def error_weights(schedule, t, gamma):
    """For ε, x_0 and v: what an error's square must be multiplied with to be min(SNR, γ) times that of x_0."""
    scale, var = (float(v[t]) for v in walk(schedule))
    std, limit = var**0.5, min(scale**2 / var, gamma)
    if scale == 0:
        return {"eps": 1.0, "x_0": 0.0, "v": 0.0}  # the limit of the last two lines
    # x_t stays; an error of 1 in the target and what it does to x_0, from x_t = scale·x_0 + std·ε and v's definition
    by_eps = np.linalg.solve([[scale, std], [0.0, 1.0]], [0.0, 1.0])[0]
    by_v = np.linalg.solve([[scale, std], [-std, scale]], [0.0, 1.0])[0]
    return {"eps": limit * by_eps**2, "x_0": limit, "v": limit * by_v**2}


@check("9.7", "min-SNR weight", "implementation", "errors in the target, solved for those in x_0", to=1e-9)
@until(1e-8)
def min_snr(f):
    """f(schedule, t, target, gamma) returns the weight for each t of a batch, with target "eps", "x_0" or "v".

    f(schedule, t, target, gamma, like) gives it like's dtype, shaped to broadcast; tried where it is offered.
    """
    f = Watched(f)
    for schedule, steps in WEIGHED:
        t = torch.tensor(steps)
        for gamma in (5.0, 0.3, 1.0, 200.0):
            for target in ("eps", "x_0", "v"):
                exact = [error_weights(schedule, step, gamma)[target] for step in steps]
                exact = torch.tensor(exact, dtype=torch.float64)
                yield relative(f(schedule, t, target, gamma), exact, 1e-300)
                yield relative(f(schedule, t[:, None], target, gamma), exact[:, None], 1e-300)
                yield relative(f(schedule, steps[-1], target, gamma), exact[-1], 1e-300)
    if takes(f.function, 2):
        exact = [error_weights(LONG, step, 5.0)["eps"] for step in WEIGHED[1][1]]
        yield relative(f(LONG, torch.tensor(WEIGHED[1][1])), exact)
    if takes(f.function, 5):  # like: its dtype, and a shape that broadcasts against it
        t, like = torch.tensor([4, 1, 3]), torch.zeros(3, 2, 3)
        weight = f(SHORT, t, "v", 5.0, like)
        yield fault(weight.dtype != like.dtype or weight.shape != (3, 1, 1))
        exact = [error_weights(SHORT, step, 5.0)["v"] for step in t.tolist()]
        yield relative(weight.flatten(), exact) / 1e4
    yield f.fault


def _snr(schedule, t):
    a = schedule.alpha_bar[t]
    return a / (1 - a)


def _min_snr(schedule, t, target, gamma):
    ratio = _snr(schedule, t)
    if target == "eps":
        return (gamma / ratio).clamp(max=1)
    return ratio.clamp(max=gamma) / (ratio + 1 if target == "v" else 1)


@min_snr.wrong("v weighted as ε, min(SNR, γ)/SNR", seen="bmaltais/kohya_ss issue 1555", idea="exchange")
def _(schedule, t, target, gamma):
    return _min_snr(schedule, t, "eps" if target == "v" else target, gamma)


@min_snr.wrong(
    "for v, min(SNR + 1, γ)/(SNR + 1)",
    seen="huggingface/diffusers issue 5654, mended by PR 6307; proposed in bmaltais/kohya_ss issue 1555",
    idea="term",
)
def _(schedule, t, target, gamma):
    if target == "v":
        return (gamma / (_snr(schedule, t) + 1)).clamp(max=1)
    return _min_snr(schedule, t, target, gamma)


@min_snr.wrong(
    "for v, 1 is added to ε's weight", seen="huggingface/diffusers PR 5238, which moves the 1 elsewhere", idea="term"
)
def _(schedule, t, target, gamma):
    return _min_snr(schedule, t, "eps", gamma) + 1 if target == "v" else _min_snr(schedule, t, target, gamma)


@min_snr.wrong(
    "max(SNR, γ) in place of min", seen="lucidrains/denoising-diffusion-pytorch PR 363, which mends it", idea="exchange"
)
def _(schedule, t, target, gamma):
    ratio = _snr(schedule, t)
    return ratio.clamp(min=gamma) / {"eps": ratio, "x_0": 1, "v": ratio + 1}[target]


@min_snr.wrong(
    "0/0 where the SNR is 0",
    seen="TiankaiHang/Min-SNR-Diffusion-Training issue 2 and PR 4: the loss becomes NaN",
    idea="edge",
)
def _(schedule, t, target, gamma):
    ratio = _snr(schedule, t)
    return ratio.clamp(max=gamma) / ratio if target == "eps" else _min_snr(schedule, t, target, gamma)


@min_snr.wrong(
    "x_0's weight for all", seen="no public source: a plausible slip (the target is not asked for)", idea="exchange"
)
def _(schedule, t, target, gamma):
    return _min_snr(schedule, t, "x_0", gamma)


@min_snr.wrong(
    "the ratio of deviations, not of variances", seen="no public source: a plausible slip (√SNR for SNR)", idea="power"
)
def _(schedule, t, target, gamma):
    ratio = _snr(schedule, t).sqrt()
    return {"eps": (gamma / ratio).clamp(max=1), "x_0": ratio.clamp(max=gamma)}.get(
        target, ratio.clamp(max=gamma) / (ratio + 1)
    )


@min_snr.wrong(
    "α_t in place of ᾱ_t", seen="no public source: a plausible slip (a bar lost in copying)", idea="exchange"
)
def _(schedule, t, target, gamma):
    return _min_snr(with_alpha_bar(schedule, schedule.alpha), t, target, gamma)


@min_snr.wrong(
    "γ is always 5", seen="no public source: a plausible slip (an argument that is not used)", idea="exchange"
)
def _(schedule, t, target, gamma):
    return _min_snr(schedule, t, target, 5.0)


@min_snr.wrong("an SNR of at least 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, t, target, gamma):
    ratio = _snr(schedule, t).clamp(min=1e-8)
    return ratio.clamp(max=gamma) / {"eps": ratio, "x_0": 1, "v": ratio + 1}[target]


TRIED = [
    (SHORT, [2, 4, 3, 1]),
    (LONG, [1, 2, 30, 500, 1000]),
    (TWO, [2, 1]),
    (ONE, [1]),
    (FAINT, [2, 1]),
    (STRONG, [2, 3]),
]


@functools.cache
def misses(schedule, t, gain):
    """E(ε − ε_θ)² and E(x_{t−1} − μ_θ)² for one number of an image, of a model that is cubic in x_t: quadrature.

    x_{t−1} and x_t are walked forwards, from three values of x_0; ε is what then stands in x_t.
    """
    z, weight = (v.flatten() for v in hermite(12))
    scale, var = walk(schedule)
    size = UNIT if schedule is FAINT else 1.0
    x_0, chance = (
        size * torch.tensor([-0.9, 0.2, 0.7], dtype=torch.float64)[:, None, None],
        torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    )
    before = scale[t - 1] * x_0 + var[t - 1].sqrt() * z[:, None]
    x_t = (1 - schedule.beta[t]).sqrt() * before + schedule.beta[t].sqrt() * z
    eps = (x_t - scale[t] * x_0) / var[t].sqrt()
    u = x_t / max(size, 1.0 if schedule is not FAINT else 0.0)
    eps_hat = gain * (0.8 * u - 0.2 * u**3 + 0.1)
    mean = (x_t - schedule.beta[t] / var[t].sqrt() * eps_hat) / (1 - schedule.beta[t]).sqrt()

    def expected(square):
        return float((square * chance[:, None, None] * weight[:, None] * weight).sum())

    return expected((eps - eps_hat) ** 2), expected((before - mean) ** 2)


@check("9.8", "best variance", "implementation", "x_{t−1} walked forwards, its mean square distance from μ_θ", to=1e-9)
@until(1e-8)
def best_variance(f):
    """f(schedule, t, loss), with loss = E(ε − ε_θ)² at each t, returns σ*² for each t of a batch; relative to it."""
    for schedule, steps in TRIED:
        t = torch.tensor(steps)
        for gain in (1.0, 0.0, 20.0):
            loss, exact = torch.tensor([misses(schedule, s, gain) for s in steps], dtype=torch.float64).T
            yield disturbs(f, schedule, t, loss)
            yield relative(f(schedule, t, loss), exact)
            yield relative(f(schedule, t[:, None], loss[:, None]), exact[:, None])
            yield relative(f(schedule, steps[-1], float(loss[-1])), exact[-1])
        low = torch.from_numpy(bayes_on_a_grid(schedule, np.array(steps), 0.0, 0.0)[1])
        little = 2.0**-40  # of the loss of a model that is nearly without error: nothing is cut off below
        yield relative(f(schedule, t, little * loss), low + little * (exact - low))
        yield slope_gap(lambda loss: f(schedule, t, loss) / exact, loss)  # noqa: B023
        single = f(schedule, t, loss.float())
        yield relative(single, f(schedule, t, loss.float().double())) / (1.0 if single.dtype == loss.dtype else 1e2)


def _tilde(schedule, t):
    t = torch.as_tensor(t)
    return (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]


def _added(schedule, t):
    """What stands before the loss."""
    return schedule.beta[t] ** 2 / (schedule.alpha[t] * (1 - schedule.alpha_bar[t]))


@best_variance.wrong("β̃_t alone", seen="the lower of the two choices of Ho et al. 2020, section 3.2", idea="term")
def _(schedule, t, loss):
    return _tilde(schedule, t) + 0 * loss


@best_variance.wrong(
    "β_t, whatever the loss", seen="the upper of the two choices of Ho et al. 2020, section 3.2", idea="exchange"
)
def _(schedule, t, loss):
    return schedule.beta[t] + 0 * loss


@best_variance.wrong(
    "β_t, not β̃_t, is what the loss is added to", seen="no public source: a plausible slip", idea="exchange"
)
def _(schedule, t, loss):
    return schedule.beta[t] + _added(schedule, t) * loss


@best_variance.wrong("ᾱ_t in place of α_t", seen="no public source: a plausible slip (a bar too many)", idea="exchange")
def _(schedule, t, loss):
    return _tilde(schedule, t) + _added(schedule, t) * schedule.alpha[t] / schedule.alpha_bar[t] * loss


@best_variance.wrong(
    "the factor is not squared", seen="no public source: a plausible slip (deviation and variance)", idea="power"
)
def _(schedule, t, loss):
    return _tilde(schedule, t) + _added(schedule, t).sqrt() * loss


@best_variance.wrong(
    "1 − loss in place of the loss",
    seen="no public source: a plausible slip (E‖ε_θ‖² and the loss mixed up)",
    idea="exchange",
)
def _(schedule, t, loss):
    return _tilde(schedule, t) + _added(schedule, t) * (1 - loss)


@best_variance.wrong("the deviation, not the variance", seen="no public source: a plausible slip", idea="power")
def _(schedule, t, loss):
    return (_tilde(schedule, t) + _added(schedule, t) * loss).sqrt()


@best_variance.wrong(
    "at most β_t", seen="no public source: true of the exact denoiser, not of every network", idea="edge"
)
def _(schedule, t, loss):
    return torch.minimum(_tilde(schedule, t) + _added(schedule, t) * loss, schedule.beta[t] + 0 * _added(schedule, t))


@best_variance.wrong("β̃_2 at t = 1", seen="no public source: the rule for logarithms, used here", idea="edge")
def _(schedule, t, loss):
    t = torch.as_tensor(t)
    return _tilde(schedule, t.clamp(min=min(2, schedule.T))) + _added(schedule, t) * loss


@best_variance.wrong("a loss of at least 1e-6", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, t, loss):
    return _tilde(schedule, t) + _added(schedule, t) * torch.as_tensor(loss, dtype=torch.float64).clamp(min=1e-6)


FROM_SCORE = [(NEAR, SHORT, t) for t in (1, 2, 4)] + [(NEAR, LONG, t) for t in (1, 2, 300, 1000)]
FROM_SCORE += [(NEAR, TWO, 2), (NEAR, HARSH, 2), (WIDE, SHORT, 3), (WIDE, ONE, 1), (FINE, FAINT, 2)]


@functools.cache
def score_and_variance(data, schedule, t):
    """E(∇log q(x_t))² and E[Var(x_{t−1}|x_t)] for mixture data, by quadrature over x_t and x_{t−1}."""
    scale, var = (v.numpy() for v in walk(schedule))
    beta = float(schedule.beta[t])
    center, spread = scale[t] * data.mean, (scale[t] ** 2 * data.var + var[t]) ** 0.5
    x_t = np.linspace((center - 9 * spread).min(), (center + 9 * spread).max(), 1201)
    middle, reach = x_t / (1 - beta) ** 0.5, 9 * (beta / (1 - beta)) ** 0.5
    mean, spread = scale[t - 1] * data.mean, (scale[t - 1] ** 2 * data.var + var[t - 1]) ** 0.5
    low, high = (mean - 9 * spread).min(), (mean + 9 * spread).max()
    low, high = np.clip([middle - reach, middle + reach], low, high)  # where likelihood and marginal are
    width = (high - low)[:, None]
    before = low[:, None] + width * np.linspace(0, 1, 301)
    prior = sum(w * normal(before, m, s**2) for w, m, s in zip(data.weight, mean, spread, strict=True))
    joint = width * prior * normal(x_t[:, None], (1 - beta) ** 0.5 * before, beta)
    q = joint.sum(1)
    seen = q > 1e-200 * q.max()
    x_t, before, joint, q = x_t[seen], before[seen], joint[seen], q[seen]
    mean = (joint * before).sum(1) / q
    variance = (joint * (before - mean[:, None]) ** 2).sum(1)  # times q
    score = (joint * ((1 - beta) ** 0.5 * before - x_t[:, None]) / beta).sum(
        1
    ) / q  # d log q(x_t|x_{t−1})/dx_t, averaged
    return float((q * score**2).sum() / q.sum()), float(variance.sum() / q.sum())


@check("9.9", "best variance from the score", "identity", "E Var(x_{t−1}|x_t) by quadrature over both", to=1e-8)
@until(1e-7)
def from_the_score(f):
    """f(schedule, t, score_square), with score_square = E(∇log q(x_t))² for one number of an image, returns σ*²."""
    for data, schedule, t in FROM_SCORE:
        score_square, exact = score_and_variance(data, schedule, t)
        yield disturbs(f, schedule, t, score_square)
        yield relative(float(f(schedule, t, score_square)), exact)


@from_the_score.states
def _(schedule, t, score_square):
    return _tilde(schedule, t) + _added(schedule, t) * (1 - (1 - schedule.alpha_bar[t]) * score_square)


@from_the_score.wrong("β̃_t alone", seen="the lower of the two choices of Ho et al. 2020, section 3.2", idea="term")
def _(schedule, t, score_square):
    return _tilde(schedule, t)


@from_the_score.wrong(
    "ᾱ_t in place of 1 − ᾱ_t",
    seen="no public source: a plausible slip (the paper's β̄ is our 1 − ᾱ, and its ᾱ is not in this place)",
    idea="exchange",
)
def _(schedule, t, score_square):
    return _tilde(schedule, t) + _added(schedule, t) * (1 - schedule.alpha_bar[t] * score_square)


@from_the_score.wrong(
    "the score is not scaled", seen="no public source: a plausible slip (E‖ε*‖² is meant)", idea="term"
)
def _(schedule, t, score_square):
    return _tilde(schedule, t) + _added(schedule, t) * (1 - score_square)


@from_the_score.wrong("the sign of the score's part", seen="no public source: a plausible slip", idea="sign")
def _(schedule, t, score_square):
    return _tilde(schedule, t) + _added(schedule, t) * (1 + (1 - schedule.alpha_bar[t]) * score_square)


@from_the_score.wrong("no less than β̃_t + 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, t, score_square):
    exact = _tilde(schedule, t) + _added(schedule, t) * (1 - (1 - schedule.alpha_bar[t]) * score_square)
    return torch.maximum(exact, _tilde(schedule, t) + 1e-8)


@functools.cache
def var_ends(schedule):
    """β̃_t (Bayes on a grid; that of t = 2 at t = 1) and β_t for t = 0..T, where 0 stands for nothing: (T+1,) each."""
    steps = np.maximum(np.arange(1, schedule.T + 1), 2) if schedule.T < 50 else None
    if steps is None:
        steps = np.array([2, 2, 3, 40, 500, 1000])
    low = torch.full((schedule.T + 1,), math.nan, dtype=torch.float64)
    low[torch.from_numpy(steps)] = torch.from_numpy(bayes_on_a_grid(schedule, steps, 0.0, 0.0)[1])
    low[1] = low[2]
    return low, schedule.beta


def learned_cases():
    """Schedule, t, and v in eighths, from −1/2 to 3/2: (B, C, H, W)."""
    random = np.random.default_rng(2)
    for schedule, t, shape in (
        (SHORT, [4, 1, 3], (3, 3, 3, 3)),  # first: here factors along a wrong axis give numbers, not an error
        (LONG, [1, 2, 3, 40, 500, 1000], (6, 2, 1, 3)),
        (TWO, [2, 1], (2, 1, 3, 2)),
        (FAINT, [1, 2], (2, 2, 1, 1)),
        (STRONG, [3, 1, 2], (3, 1, 2, 1)),
    ):
        yield schedule, torch.tensor(t), torch.from_numpy(random.integers(-4, 13, shape))


@check("9.10", "learned variance", "implementation", "eighth powers are products of eight of the two ends", to=1e-9)
@until(1e-8)
def learned(f):
    """f(schedule, v, t) returns the variance for each number of an image."""
    for schedule, t, eighths in learned_cases():
        low, high = (images(v[t]) for v in var_ends(schedule))
        wanted = (low ** (8 - eighths)) * high**eighths  # whole powers
        v = eighths / 8.0
        v = v.double()
        yield disturbs(f, schedule, v, t)
        got = f(schedule, v, t)
        yield relative(got**8, wanted) / 8
        for place, end in ((0.0, low), (1.0, high)):
            yield relative(f(schedule, torch.full_like(v, place), t), end.expand_as(v))
        if schedule is SHORT:
            for place in (-5, 6):  # far beyond the ends: nothing keeps v in between
                far = low ** (1 - place) * high**place
                yield relative(f(schedule, torch.full_like(v, place), t), far.expand_as(v))
        yield relative(f(schedule, v[-1:], int(t[-1])) ** 8, wanted[-1:]) / 8
        yield slope_gap(lambda v: f(schedule, v, t) / low, v, step=1e-2)  # noqa: B023
        single = f(schedule, v.float(), t)
        yield fault(single.dtype != torch.float32)
        yield relative(single.double(), got) / 1e4


def _log_ends(schedule, t):
    t = torch.as_tensor(t)
    return images(_tilde(schedule, t.clamp(min=2)).log()), images(schedule.beta[t].log())


def _learned(schedule, v, t):
    low, high = _log_ends(schedule, t)
    return torch.exp(v * high + (1 - v) * low)


@learned.wrong("log β̃_1 = −∞ at t = 1", seen="no public source: a plausible slip (β̃_1 is 0)", idea="edge")
def _(schedule, v, t):
    low, high = images(_tilde(schedule, t).log()), images(schedule.beta[torch.as_tensor(t)].log())
    return torch.exp(v * high + (1 - v) * low)


@learned.wrong(
    "β̃_1 clamped to 1e-20: a logarithm of −46",
    seen="huggingface/diffusers PR 3006, DDPMScheduler with learned_range",
    idea="edge",
)
def _(schedule, v, t):
    low, high = (images(x.clamp(min=1e-20).log()) for x in (_tilde(schedule, t), schedule.beta[torch.as_tensor(t)]))
    return torch.exp(v * high + (1 - v) * low)


@learned.wrong(
    "the variances are interpolated, not their logarithms",
    seen="huggingface/diffusers PR 2090, which mends it",
    idea="power",
)
def _(schedule, v, t):
    low, high = _log_ends(schedule, t)
    return v * high.exp() + (1 - v) * low.exp()


@learned.wrong(
    "the log-variance, under a variance's name", seen="of this kind: huggingface/diffusers issue 14569", idea="power"
)
def _(schedule, v, t):
    low, high = _log_ends(schedule, t)
    return v * high + (1 - v) * low


@learned.wrong("the deviation, exp of half the log-variance", seen="no public source: a plausible slip", idea="power")
def _(schedule, v, t):
    return _learned(schedule, v, t).sqrt()


@learned.wrong(
    "v = 1 gives β̃_t, v = 0 gives β_t",
    seen="no public source: a plausible slip (the two ends swapped)",
    idea="exchange",
)
def _(schedule, v, t):
    return _learned(schedule, 1 - v, t)


@learned.wrong(
    "v from [−1, 1] where it lies in [0, 1] already",
    seen="no public source: a plausible slip (the code's (v + 1)/2 put into the paper's formula)",
    idea="term",
)
def _(schedule, v, t):
    return _learned(schedule, (v + 1) / 2, t)


@learned.wrong(
    "v is clamped to [0, 1]", seen="no public source: a plausible slip, and no gradient beyond the ends", idea="edge"
)
def _(schedule, v, t):
    return _learned(schedule, v.clamp(0, 1), t)


@learned.wrong("one variance an image", seen="no public source: a plausible slip (a mean over the pixels)", idea="axis")
def _(schedule, v, t):
    return _learned(schedule, v.flatten(1).mean(1).reshape(-1, 1, 1, 1).expand_as(v), t)


@learned.wrong(
    "the first t is used for the whole batch", seen="no public source: code that was run with one t only", idea="time"
)
def _(schedule, v, t):
    return _learned(schedule, v, torch.as_tensor(t).flatten()[:1].expand(len(v)))


@learned.wrong("no gradient passes", seen="no public source: no_grad() left over from sampling", idea="gradient")
def _(schedule, v, t):
    return _learned(schedule, v, t).detach()


@learned.wrong(
    "v is clamped to [−1, 2]", seen="no public source: a plausible slip (a limit that is seldom reached)", idea="edge"
)
def _(schedule, v, t):
    return _learned(schedule, v.clamp(-1, 2), t)


@functools.cache
def hybrid_cases():
    """Batches (schedule, t, x_0, ε, levels), the outputs of a model, and the noisy images that it must be shown."""
    random, found = np.random.default_rng(4), []
    for schedule, t, shape, levels in (
        (SHORT, [4, 1, 3], (3, 3, 3, 3), 17),  # no size tells the axes apart
        (LONG, [2, 1, 500, 1000], (4, 1, 2, 2), 256),
        (TWO, [2, 1, 2], (3, 2, 1, 1), 5),
        (SHORT, [2, 4], (2, 1, 1, 3), 17),  # no t = 1
        (STRONG, [1, 1], (2, 1, 2, 1), 17),  # nothing else
    ):
        grey = torch.linspace(-1, 1, levels, dtype=torch.float64)
        x_0 = grey[torch.from_numpy(random.integers(0, levels, shape))]
        eps, wrong = (torch.from_numpy(random.standard_normal(shape)) for _ in range(2))
        raw = torch.from_numpy(random.uniform(-1.3, 1.3, shape) * (3.0 if schedule is TWO else 1.0))
        t = torch.tensor(t)
        scale, var = walk(schedule)
        x_t = images(scale[t]) * x_0 + images(var[t].sqrt()) * eps
        found.append(((schedule, t, x_0, eps, levels), torch.cat([eps + 0.3 * wrong, raw], 1), x_t))
    return found


def nats_by_quadrature(schedule, t, x_0, x_t, eps_hat, raw, levels):
    """L_{t−1} of each number of an image: a divergence, or at t = 1 a logarithm of a bin's mass, (B, C, H, W)."""
    low, high = (images(v[t]) for v in var_ends(schedule))
    var = low ** ((1 - raw) / 2) * high ** ((1 + raw) / 2)
    mean = model_mean(schedule, t, x_t, eps_hat)
    nats = torch.empty_like(x_0)
    later = t > 1
    if later.any():
        part = [v[later] for v in (t, x_0, x_t, mean, var)]
        divergence = kl_of_a_step(schedule, *part)
        nats[later] = torch.as_tensor(divergence).reshape(part[1].shape)
    if not later.all():
        nats[~later] = -log_mass(x_0[~later], mean[~later], var[~later], levels)[0]
    return nats


@functools.cache
def hybrid_parts():
    """For each case: squared error and bits per dimension of each image, and the slope of the bits by each output."""
    found = []
    for (schedule, t, x_0, eps, levels), output, x_t in hybrid_cases():
        eps_hat, raw = output.chunk(2, dim=1)
        dims = x_0[0].numel()
        error = ((eps - eps_hat) ** 2).flatten(1).sum(1) / dims

        def bits(raw):
            return nats_by_quadrature(schedule, t, x_0, x_t, eps_hat, raw, levels) / (dims * math.log(2))  # noqa: B023

        slope = sum(factor * bits(raw + 0.02 * k) for k, factor in STENCIL) / 0.02
        found.append((error, bits(raw).flatten(1).sum(1), slope))
    return found


@check(
    "9.11",
    "hybrid loss",
    "implementation",
    "errors one by one, divergences by quadrature, slopes by differences",
    to=1e-8,
)
@until(1e-7)
def hybrid(f):
    """f(model, schedule, x_0, eps, t, vlb_weight, decoder) returns one loss for each image.

    model(x_t, t) returns twice the channels: the noise, then what becomes v in [0, 1] after adding 1 and halving.
    """
    for case, (error, bits, slope) in zip(copy.deepcopy(hybrid_cases()), hybrid_parts(), strict=True):
        (schedule, t, x_0, eps, levels), output, x_t = case
        decoder = partial(discretised_log_likelihood, levels=levels)
        for weight in (0.001, 1.0):
            exact = error + weight * schedule.T * bits
            leaf, seen = output.clone().requires_grad_(), []

            def model(x, step):
                seen.append((x.detach().clone(), step))  # noqa: B023
                return leaf + 0  # noqa: B023

            given = [v.clone() for v in (x_0, eps, t)]
            got = f(model, schedule, *given, weight, decoder)
            yield off(got, exact, 1 + exact.abs())
            yield max(off(now, then) for now, then in zip(given, (x_0, eps, t), strict=True))
            yield fault(len(seen) != 1)  # a second call would draw another dropout
            for x, step in seen:
                same = step.dtype == torch.int64 and step.shape == t.shape and bool((step == t).all())
                yield off(x, x_t) if same else math.inf
            (found,) = torch.autograd.grad(got.sum(), leaf) if got.requires_grad else (torch.zeros_like(leaf),)
            by_eps, by_raw = found.chunk(2, dim=1)
            wanted = -2 * (eps - output.chunk(2, dim=1)[0]) / x_0[0].numel()
            yield off(by_eps, wanted, 1 + wanted.abs())
            yield off(by_raw, weight * schedule.T * slope, weight * schedule.T * (1e-2 + slope.abs()))
        shown = []

        def in_single(x, step):
            shown.append(x.dtype)  # noqa: B023
            return output.float()  # noqa: B023

        single = f(in_single, schedule, x_0.float(), eps.float(), t, 1.0, decoder)
        yield fault({single.dtype, *shown} != {torch.float32})
        exact = error + schedule.T * bits
        yield off(single.double(), exact, 1e5 * (1 + exact.abs()))
    if takes(f, 5):
        (schedule, t, x_0, eps, _), output, _ = hybrid_cases()[1]
        error, bits, _ = hybrid_parts()[1]
        yield off(f(lambda x, step: output, schedule, x_0, eps, t), error + bits, 1 + bits)


LOG_2 = math.log(2)


def _hybrid(model, schedule, x_0, eps, t, weight, decoder, freeze=True, unit=LOG_2, factor=None, raw_is_v=False):
    """The hybrid loss in one piece, with switches for what is usually wrong."""
    a = images(schedule.alpha_bar[t])
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    eps_hat, raw = model(x_t, t).chunk(2, dim=1)
    v = raw if raw_is_v else (raw + 1) / 2
    var = _learned(schedule, v, t)
    used = eps_hat.detach() if freeze else eps_hat
    beta, alpha, before = (images(x) for x in (schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t - 1]))
    mean = (x_t - beta / (1 - a).sqrt() * used) / alpha.sqrt()
    true = before.sqrt() * beta / (1 - a) * x_0 + alpha.sqrt() * (1 - before) / (1 - a) * x_t
    tilde = images(_tilde(schedule, t.clamp(min=2)))
    kl = 0.5 * ((var / tilde).log() + (tilde + (true - mean) ** 2) / var - 1)
    nats = torch.where(images(t) == 1, -decoder(x_0, mean, var).to(kl), kl) if decoder else kl
    bits = nats.flatten(1).mean(1) / unit
    return (eps - eps_hat).square().flatten(1).mean(1) + weight * (schedule.T if factor is None else factor) * bits


@hybrid.wrong(
    "the bound's gradient reaches the mean",
    seen="no public source: a plausible slip (detach() forgotten)",
    idea="gradient",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight, decoder, freeze=False)


@hybrid.wrong(
    "no gradient from the bound at all",
    seen="no public source: a plausible slip (the whole output detached)",
    idea="gradient",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    whole = _hybrid(model, schedule, x_0, eps, t, weight, decoder).detach()
    mse = _hybrid(model, schedule, x_0, eps, t, 0.0, decoder)
    return mse + (whole - mse.detach())


@hybrid.wrong(
    "one term in place of the bound: λ·L_{t−1} without T",
    seen="lucidrains/denoising-diffusion-pytorch, learned_gaussian_diffusion.py: 0.001 times one term",
    idea="term",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight, decoder, factor=1)


@hybrid.wrong(
    "1000·λ for T·λ, right for T = 1000 only",
    seen="loss type MSE of openai/improved-diffusion, asked about in its issues 17 and 153",
    idea="exchange",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight, decoder, factor=1000)


@hybrid.wrong("nats, not bits", seen="no public source: a plausible slip (log 2 forgotten)", idea="term")
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight, decoder, unit=1.0)


@hybrid.wrong(
    "the output is v, not (output + 1)/2",
    seen="no public source: a plausible slip (code and paper mixed up)",
    idea="term",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight, decoder, raw_is_v=True)


@hybrid.wrong("the two halves of the output are swapped", seen="no public source: a plausible slip", idea="exchange")
def _(model, schedule, x_0, eps, t, weight, decoder):
    def swapped(x_t, t):
        return torch.cat(model(x_t, t).chunk(2, dim=1)[::-1], 1)

    return _hybrid(swapped, schedule, x_0, eps, t, weight, decoder)


@hybrid.wrong(
    "a divergence at t = 1 too, no decoder", seen="no public source: a plausible slip (L_0 forgotten)", idea="edge"
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight, None)


@hybrid.wrong(
    "the sum over the pixels of the bound",
    seen="no public source: bits for an image, read as bits per dim",
    idea="axis",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, weight * x_0[0].numel(), decoder)


@hybrid.wrong("the bound is subtracted", seen="no public source: a plausible slip (the ELBO's sign)", idea="sign")
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(model, schedule, x_0, eps, t, -weight, decoder)


@hybrid.wrong(
    "the network is given t − 1",
    seen="udlbook/udlbook, notebook 18.3: a model trained with t is asked at t − 1",
    idea="time",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    return _hybrid(lambda x_t, t: model(x_t, t - 1), schedule, x_0, eps, t, weight, decoder)


@hybrid.wrong(
    "the network is asked twice, once for each part",
    seen="no public source: a plausible slip (another dropout)",
    idea="term",
)
def _(model, schedule, x_0, eps, t, weight, decoder):
    whole = _hybrid(model, schedule, x_0, eps, t, weight, decoder)
    return whole + 0 * _hybrid(model, schedule, x_0, eps, t, 0.0, decoder)


MOMENTS = [
    [1.0, 4.0, 0.25, 9.0],
    [1e-12, 3.0, 1e8, 0.1, 2.0],
    [1e-30, 2e-30, 5e-31],
    [7.0],
    [2.0, 2.0],
]


@check("9.12", "best probabilities", "identity", "no move of probability lowers the variance, by autograd", to=1e-9)
@until(1e-8)
def probabilities(f):
    """f(second_moment), with E[L_t²] for t = 1..T, (T,), returns the probabilities of t, (T,)."""
    for values in MOMENTS:
        moment = torch.tensor(values, dtype=torch.float64)
        yield disturbs(f, moment)
        p = f(moment)
        yield 0.0 if p.shape == moment.shape and bool((p > 0).all()) else math.inf
        yield apart(p.sum(), 1.0)
        p = p.clone().requires_grad_()
        second_moment = (moment / p).sum()  # of L_t/(T·p_t) with t ~ p, times T²
        (slope,) = torch.autograd.grad(second_moment, p)
        yield relative(slope, slope.mean().expand_as(slope))  # equal: what one gains, another loses


@probabilities.states
def _(second_moment):
    root = second_moment.sqrt()
    return root / root.sum()


@probabilities.wrong(
    "in proportion to E[L²], without the root",
    seen="no public source: a plausible slip (the moment, not its root)",
    idea="power",
)
def _(second_moment):
    return second_moment / second_moment.sum()


@probabilities.wrong("uniform", seen="Ho et al. 2020, Algorithm 1: what is to be improved on", idea="noise")
def _(second_moment):
    return torch.full_like(second_moment, 1 / len(second_moment))


@probabilities.wrong(
    "a softmax of the roots", seen="no public source: a plausible slip (another way to a sum of 1)", idea="exchange"
)
def _(second_moment):
    return second_moment.sqrt().softmax(0).clamp(min=1e-300)


@probabilities.wrong(
    "the inverse: rare losses drawn more often", seen="no public source: the factors, not the draws", idea="sign"
)
def _(second_moment):
    root = 1 / second_moment.sqrt()
    return root / root.sum()


@probabilities.wrong("the root of at least 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(second_moment):
    root = second_moment.sqrt().clamp(min=1e-8)
    return root / root.sum()


HISTORY, SHARE = 10, 0.001
DRAWS = 400_000


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def told(sampler, schedule, seed, rounds=HISTORY + 3):
    """Tell the sampler losses of every t, `rounds` of them, the first three huge. Returns all: (T, rounds)."""
    size = torch.tensor([1.0, 6.0, 0.2, 2.0, 0.0, 3.0])[: schedule.T].float()
    losses = size[:, None] * (0.5 + torch.rand(schedule.T, rounds, generator=_seeded(seed)))
    losses[:, :3] = 50.0
    for row in losses.T:
        order = torch.randperm(schedule.T, generator=_seeded(seed))
        sampler.update(order + 1, row[order])
    return losses.double()


def drawn(sampler, n, seed, T) -> tuple[torch.Tensor, torch.Tensor] | None:
    """t and its factors, 1 where they are None; nothing where type, shape or range are not as they should be."""
    t, factor = sampler.draw(n, _seeded(seed))
    good = t.dtype == torch.int64 and t.shape == (n,) and 1 <= int(t.min()) and int(t.max()) <= T
    if factor is None:
        factor = torch.ones(n)
    return (t, factor.double()) if good and isinstance(factor, torch.Tensor) and factor.shape == (n,) else None


def spread_as(counts, p):
    """|z| of Pearson's χ² for counts that should have come with probabilities p."""
    expected = counts.sum() * p
    squares = ((counts - expected) ** 2 / expected).sum()
    if len(p) == 1:
        return 0.0 if counts[0] == expected[0] else NEVER
    with np.errstate(divide="ignore"):
        return min(NEVER, max(0.0, stats.norm.isf(stats.chi2.sf(squares, len(p) - 1))))


SIX = Schedule([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@check(
    "9.13",
    "loss-second-moment sampling",
    "implementation",
    "how often each t comes, whether its factor makes up for it, and whether a stored state goes on the same way",
)
@until(15.0)
def second_moment(f):
    """f(schedule) returns a sampler of t: draw(batch, generator), update(t, loss), state() and load_state(state)."""
    for schedule in (SHORT, SIX, TWO, ONE):
        T, sampler = schedule.T, f(schedule)
        every = torch.arange(1, T + 1)
        for told_of in range(HISTORY):  # until all have ten: uniform
            sampler.update(every, torch.full((T,), 1.0) * every**3)
            if told_of < HISTORY - 1:
                yield uniform_so_far(sampler, T, told_of)
        sampler = f(schedule)
        for row in range(HISTORY):  # one of them has nine, another far more
            for _ in range(1 + 4 * (T > 1)):
                sampler.update(every[:-1], 0.1 * every[:-1].double())
            if row < HISTORY - 1:
                sampler.update(every[-1:], torch.ones(1))
        yield uniform_so_far(sampler, T, 99)

        if schedule is SIX:
            yield from one_by_one(f(schedule), T)
        sampler = f(schedule)
        losses = told(sampler, schedule, 1)
        yield from as_they_should(sampler, losses[:, -HISTORY:], T)
        many = every.repeat_interleave(2 * HISTORY + 3)  # in one batch, more of each than it remembers
        values = torch.rand(len(many), generator=_seeded(5)) * (1.0 + many) * (1e5 if schedule is SHORT else 1e-5)
        sampler.update(many, values)
        yield from as_they_should(sampler, values.reshape(T, -1)[:, -HISTORY:].double(), T)
        yield from one_by_one(sampler, T)
        yield fault(drawn(sampler, 1, 0, T) is None)
        yield heeds(sampler, T)
        yield from remembers(f, schedule)
        yield goes_on(f, sampler, schedule)


def uniform_so_far(sampler, T, seed):
    """|z| of the hypothesis that nothing has been learned yet."""
    got = drawn(sampler, 20_000, seed, T)
    if got is None or not (got[1] == 1).all():
        return NEVER
    return spread_as(torch.bincount(got[0], minlength=T + 1)[1:].numpy(), np.full(T, 1 / T))


def as_they_should(sampler, latest, T) -> Iterator[float]:
    """Whether a sampler that was told these latest losses of each t, (T, history), draws and weighs as it should."""
    got = drawn(sampler, DRAWS, 7, T)
    if got is None:
        yield NEVER
        return
    t, factor = got
    chance = torch.full((T,), math.nan, dtype=torch.float64)
    chance[t - 1] = 1 / (T * factor)  # what the factors say
    yield (
        0.0 if bool(chance.isfinite().all()) and apart(chance[t - 1] * T * factor, torch.ones(len(t))) < 1e-6 else NEVER
    )
    yield 5 * apart(chance.sum(), 1.0) / 1e-5
    yield spread_as(torch.bincount(t, minlength=T + 1)[1:].numpy(), chance.numpy() / float(chance.sum()))
    learned_part = (chance - SHARE / T) / (1 - SHARE)
    moment = (latest**2).mean(1)
    some = moment > 0
    price = (
        moment[some] / learned_part[some] ** 2
    )  # equal for the best probabilities: no move of them lowers the variance
    yield 5 * relative(price, price.mean().expand_as(price)) / 1e-4
    yield 5 * float(learned_part[~some].abs().sum()) / 1e-6
    g = torch.arange(1, T + 1).double() ** 2  # any quantity: its weighted mean is the uniform one
    weighted = factor * g[t - 1]
    spread = float(weighted.std()) / DRAWS**0.5
    yield abs(float(weighted.mean() - g.mean())) / max(spread, 1e-5 * float(g.mean()))


def one_by_one(sampler, T) -> Iterator[float]:
    """|z| of the hypothesis that the draws are independent of each other, within a batch and from batch to batch."""
    batches, size, generator = 1000, 64, _seeded(8)
    got = [sampler.draw(size, generator)[0] for _ in range(batches)]
    t = torch.stack(got)
    # A score of mean 0 and variance 1 for each t, which grows with t
    share = torch.bincount(t.flatten(), minlength=T + 1)[1:].double() / t.numel()
    score = share.cumsum(0) - share / 2
    score = score - (share * score).sum()
    spread = (share * score**2).sum().sqrt()
    if not spread > 0:
        return
    g = (score / spread)[t - 1]
    for first, second in ((g[:, 1:], g[:, :-1]), (g[:, : size // 2], g[:, size // 2 :]), (g[1:], g[:-1])):
        yield abs(float((first * second).sum())) / first.numel() ** 0.5
    means = g.mean(1) * size**0.5  # of variance 1: neither all alike nor too even
    yield abs(float((means**2).sum()) - batches) / (2 * batches) ** 0.5


def remembers(f, schedule) -> Iterator[float]:
    """0 if it remembers losses as they were when it was told them, no NaN or infinite ones, and copes with zeros."""
    T = schedule.T
    every = torch.arange(1, T + 1).repeat(HISTORY)
    losses = torch.rand(len(every), generator=_seeded(6)) + every
    losses[::2] *= -1  # minus a log-likelihood may be of either sign
    sampler = f(schedule)
    t, told_of = every.clone(), losses.clone()
    sampler.update(t, told_of)
    yield fault(not torch.equal(t, every) or not torch.equal(told_of, losses))
    t.fill_(1)
    told_of.fill_(1e3)
    for bad in (math.nan, math.inf, -math.inf):
        sampler.update(torch.arange(1, T + 1), torch.full((T,), bad))
    yield from as_they_should(sampler, losses.reshape(HISTORY, T).T.double(), T)
    sampler = f(schedule)
    sampler.update(every, torch.zeros(len(every)))
    yield uniform_so_far(sampler, T, 98)


def heeds(sampler, T):
    """0 if the generator, and nothing else, decides what is drawn, and the global one is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        generator = _seeded(3)
        first, second = (sampler.draw(500, generator)[0] for _ in range(2))
        again, other = (sampler.draw(500, _seeded(seed))[0] for seed in (3, 4))
        kept = torch.equal(torch.get_rng_state(), before)
    fresh = T == 1 or not (torch.equal(first, second) or torch.equal(first, other))
    return 0.0 if kept and fresh and torch.equal(first, again) else NEVER


def goes_on(f, sampler, schedule):
    """0 if a new sampler with the old one's state draws the same, now and after more losses, and shares no memory."""
    state = {name: value.clone() for name, value in sampler.state().items()}
    other, third = f(schedule), f(schedule)
    other.load_state(state)
    third.load_state(state)
    third.update(torch.ones(40, dtype=torch.int64), torch.full((40,), 300.0))
    third.draw(8, _seeded(0))
    if any(not torch.equal(value, sampler.state()[name]) for name, value in state.items()):
        return NEVER
    for seed in range(3):
        for (t, factor), (t_2, factor_2) in [(sampler.draw(64, _seeded(seed)), other.draw(64, _seeded(seed)))]:
            same = torch.equal(t, t_2) and (factor is factor_2 is None or torch.equal(factor, factor_2))
            if not same:
                return NEVER
        losses = torch.rand(64, generator=_seeded(seed)) * 5
        sampler.update(t, losses)
        other.update(t, losses)
    return 0.0


class _Changed(LossSecondMoment):
    """Its probabilities, from `root` of the mean square and the latest losses."""

    def root(self):
        return self.losses.square().mean(1).sqrt()

    def ready(self):
        return bool((self.count >= self.losses.shape[1]).all())

    def probabilities(self):
        self._read()
        root = self.root()
        if not self.ready() or not root.sum() > 0:
            return torch.full((len(root),), 1 / len(root), dtype=torch.float64)
        return (1 - self.uniform) * root / root.sum() + self.uniform / len(root)

    def draw(self, batch, generator):
        p = self.probabilities()
        if not self.ready():
            return draw_t(self.schedule, batch, generator), None
        index = torch.multinomial(p, batch, replacement=True, generator=generator)
        return index + 1, self.factor(p, index)

    def factor(self, p, index):
        return (1 / (len(p) * p[index])).float()


def _variant(schedule, **methods):
    """A sampler with some of its methods replaced."""
    return type("Variant", (_Changed,), methods)(schedule)


@second_moment.wrong(
    "no factors: the mean loss is biased", seen="no public source: a plausible slip (draws alone)", idea="term"
)
def _(schedule):
    return _variant(schedule, factor=lambda self, p, index: torch.ones(len(index)))


@second_moment.wrong("factors p·T, upside down", seen="no public source: a plausible slip", idea="sign")
def _(schedule):
    return _variant(schedule, factor=lambda self, p, index: (len(p) * p[index]).float())


@second_moment.wrong(
    "factors 1/p, without T", seen="no public source: a plausible slip (the mean taken for the sum)", idea="term"
)
def _(schedule):
    return _variant(schedule, factor=lambda self, p, index: (1 / p[index]).float())


@second_moment.wrong(
    "factors divided by the batch's mean of them", seen="no public source: self-normalised weights", idea="axis"
)
def _(schedule):
    return _variant(schedule, factor=lambda self, p, index: (1 / p[index] / (1 / p[index]).mean()).float())


@second_moment.wrong(
    "the mean loss, not the root of its square", seen="no public source: a plausible slip", idea="power"
)
def _(schedule):
    return _variant(schedule, root=lambda self: self.losses.mean(1))


@second_moment.wrong("the mean square, without the root", seen="no public source: a plausible slip", idea="power")
def _(schedule):
    return _variant(schedule, root=lambda self: self.losses.square().mean(1))


@second_moment.wrong(
    "the deviation of the losses", seen="no public source: a plausible slip (central moments)", idea="exchange"
)
def _(schedule):
    return _variant(schedule, root=lambda self: self.losses.std(1) + 1e-9)


@second_moment.wrong(
    "nothing is drawn uniformly: a step without loss is forgotten", seen="no public source: u = 0", idea="noise"
)
def _(schedule):
    def probabilities(self):
        p = _Changed.probabilities(self)
        return ((p - self.uniform / len(p)) / (1 - self.uniform)).clamp(min=1e-12) if self.ready() else p

    return _variant(schedule, probabilities=probabilities)


@second_moment.wrong(
    "starts to learn when one step has its ten", seen="no public source: any() for all()", idea="exchange"
)
def _(schedule):
    return _variant(schedule, ready=lambda self: bool((self.count >= self.losses.shape[1]).any()))


@second_moment.wrong(
    "t counted from 0", seen="openai/improved-diffusion, resample.py: right there, where t is 0..T − 1", idea="time"
)
def _(schedule):
    def draw(self, batch, generator):
        t, factor = _Changed.draw(self, batch, generator)
        return t - 1, factor

    return _variant(schedule, draw=draw)


@second_moment.wrong(
    "the first ten losses, never the latest", seen="no public source: a memory that is full", idea="state"
)
def _(schedule):
    def update(self, t, loss):
        self._read()
        keep = self.count[t - 1] < self.losses.shape[1]
        _Changed.update(self, t[keep], loss[keep])
        self._read()

    return _variant(schedule, update=update)


@second_moment.wrong(
    "the generator is not heeded", seen="openai/improved-diffusion, resample.py: np.random.choice", idea="noise"
)
def _(schedule):
    def draw(self, batch, generator):
        return _Changed.draw(self, batch, torch.Generator().manual_seed(int(torch.randint(2**31, (1,)))))

    return _variant(schedule, draw=draw)


@second_moment.wrong(
    "the state is not stored: a resumed run learns anew", seen="no public source: a plausible slip", idea="state"
)
def _(schedule):
    return _variant(schedule, state=lambda self: {}, load_state=lambda self, state: None)


@second_moment.wrong(
    "a batch of draws that is too even", seen="no public source: stratified, as in particle filters", idea="noise"
)
def _(schedule):
    def draw(self, batch, generator):
        p = self.probabilities()
        u = (torch.arange(batch) + torch.rand(batch, generator=generator).double()) / batch
        index = torch.searchsorted(p.cumsum(0) / p.sum(), u).clamp(max=len(p) - 1)
        index = index[torch.randperm(batch, generator=generator)]
        return index + 1, self.factor(p, index) if self.ready() else None

    return _variant(schedule, draw=draw)


@second_moment.wrong(
    "the caller's tensors are kept, and read later",
    seen="no public source: losses that are multiplied in place",
    idea="state",
)
def _(schedule):
    def update(self, t, loss):
        self._told.append((t, loss.detach()))

    return _variant(schedule, update=update)


@second_moment.wrong(
    "a NaN is remembered as 0", seen="no public source: nan_to_num, where nothing should be learned", idea="state"
)
def _(schedule):
    def update(self, t, loss):
        _Changed.update(self, t, torch.nan_to_num(loss.detach()))

    return _variant(schedule, update=update)
