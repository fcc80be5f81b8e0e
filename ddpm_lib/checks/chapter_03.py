"""The checks of chapter 3, the forward process. The routes walk the chain step by step, or integrate on a grid."""

import functools
import math
from fractions import Fraction

import numpy as np
import torch

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import log_normal, normal
from ddpm_lib.checks.guard import Watched, relative, slope_gap, until
from ddpm_lib.checks.noise import NEVER, law_score, noise_score
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule

LONG = linear_schedule()  # T = 1000
SHORT = Schedule([0.1, 0.5, 0.02, 0.3])  # large, uneven steps, in which errors cannot hide
TWO = Schedule([0.8, 0.01])
ONE = Schedule([0.35])
CLEAR = Schedule([2.0**-40])  # so little noise that a clamp would add to it (a power of 2, so 1 − β is exact)
DARK = Schedule([0.9999, 0.99, 0.999])  # so little signal


def walk(schedule):
    """The scale of x_0 and the variance of the noise after t = 0..T steps, one step at a time: two arrays (T+1,)."""
    scale, var = [1.0], [0.0]
    for beta in schedule.beta[1:].tolist():
        scale.append((1 - beta) ** 0.5 * scale[-1])
        var.append((1 - beta) * var[-1] + beta)
    return torch.tensor(scale, dtype=torch.float64), torch.tensor(var, dtype=torch.float64)


STEPS = [  # schedule, t, shape of x
    (SHORT, 2, (5, 2, 3, 4)),
    (LONG, 1, (5, 2, 3, 4)),
    (LONG, 1000, (6, 3)),
    (SHORT, torch.tensor([4, 1, 3]), (3, 3, 3, 3)),  # one t an image, and no size tells the axes apart
    (SHORT, torch.tensor([1, 2, 4, 4]), (4, 1, 4, 5)),
    (TWO, torch.tensor([2, 1]), (2, 3, 1, 2)),
    (TWO, 2, (3, 1, 2, 2)),
    (ONE, torch.tensor([1]), (1, 4, 2, 3)),
    (ONE, 1, (1, 1, 1, 1)),
    (ONE, 1, (5, 2, 3, 4)),
    (CLEAR, 1, (4, 1, 2, 3)),
    (DARK, torch.tensor([1, 2, 3, 1]), (4, 1, 1, 4)),
]


def per_image(values, t, shape):
    """values[t], for one t or one an image, shaped to broadcast against images of this shape."""
    return values[t] if isinstance(t, int) else values[t].reshape(-1, *[1] * (len(shape) - 1))


@functools.cache
def some_images(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


@check("3.1", "forward step", "implementation", "the joint law of its noise, and its slope in the image")
@until(15)
def forward_step(f):
    """f(schedule, x_prev, t, generator) draws x_t.

    What is no matter of chance, the slope in the image for given noise, counts as |z| = 5 if it is off by 1e-9.
    """
    for schedule, t, shape in STEPS:
        x, generator = some_images(*shape), torch.Generator().manual_seed(4)
        scale, std = (per_image(v.sqrt(), t, shape) for v in (1 - schedule.beta, schedule.beta))
        draws = torch.stack([f(schedule, x, t, generator) for _ in range(300)])
        noise = ((draws - scale * x) / std).detach()
        for sums in (noise, noise.flatten(2).sum(2), noise.sum(1)):  # of one entry, of an image, of the batch
            yield law_score((sums * (sums.numel() / noise.numel()) ** 0.5).numpy().ravel())
        yield abs(float((noise * x).sum() / (x.square().sum() * len(draws)) ** 0.5))  # it knows nothing of the image

        away, given, beta = 20 * x.flip(0), x.clone(), schedule.beta.clone()
        one, other = (f(schedule, image, t, torch.Generator().manual_seed(3)) for image in (given, x + away))
        yield 5 * apart(other - one, scale * away) / 1e-9
        yield 0.0 if torch.equal(given, x) and torch.equal(schedule.beta, beta) else NEVER

    def standardised(n, generator):
        x, t = some_images(n, 2, 2, 3), torch.arange(n) % 4 + 1
        scale, std = (per_image(v.sqrt(), t, x.shape) for v in (1 - SHORT.beta, SHORT.beta))
        return (f(SHORT, x, t, generator) - scale * x) / std

    yield noise_score(standardised, (2, 2, 3))


def _randn(x, generator):
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _var(schedule, x, t):
    return per_image(schedule.beta, t, x.shape)


def _step(schedule, x_prev, t, noise):
    return (1 - _var(schedule, x_prev, t)) ** 0.5 * x_prev + noise


@forward_step.wrong(
    "noise β·U(0, 1) instead of √β·N(0, 1)",
    seen="acids-ircam/diffusion_models, diffusion_02_model.ipynb (forward_process)",
    idea="noise",
)
def _(schedule, x_prev, t, generator):
    uniform = torch.rand(x_prev.shape, generator=generator, dtype=x_prev.dtype)
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) * uniform)


@forward_step.wrong(
    "uniform noise with the right mean and variance",
    seen="no public source: a plausible slip (survives every test of mean and variance)",
    idea="noise",
)
def _(schedule, x_prev, t, generator):
    uniform = torch.rand(x_prev.shape, generator=generator, dtype=x_prev.dtype)
    return _step(schedule, x_prev, t, (12 * _var(schedule, x_prev, t)) ** 0.5 * (uniform - 0.5))


@forward_step.wrong(
    "ε ~ N(0, β) and √β·ε: β is applied twice",
    seen="huggingface/diffusion-models-class issue 63 (“noise scaled by beta_t”)",
    idea="term",
)
def _(schedule, x_prev, t, generator):
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) * _randn(x_prev, generator))


@forward_step.wrong(
    "one draw of noise for all pixels of an image",
    seen="greatlog/UnpairedSR issue 15: noise of shape (B, 1, 1, 1)",
    idea="noise",
)
def _(schedule, x_prev, t, generator):
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * _randn(x_prev[:, :1], generator))


@forward_step.wrong("the root is missing: (1 − β)·x_{t−1}", seen="no public source: a plausible slip", idea="power")
def _(schedule, x_prev, t, generator):
    return (1 - _var(schedule, x_prev, t)) * x_prev + _var(schedule, x_prev, t) ** 0.5 * _randn(x_prev, generator)


@forward_step.wrong(
    "the same noise in every step",
    seen="no public source: a plausible slip (a seed that is set inside the function)",
    idea="noise",
)
def _(schedule, x_prev, t, generator):
    return _step(
        schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * _randn(x_prev, torch.Generator().manual_seed(0))
    )


@forward_step.wrong(
    "half of the batch repeats the other half's noise",
    seen="no public source: a plausible slip (noise drawn for half a batch, and doubled)",
    idea="noise",
)
def _(schedule, x_prev, t, generator):
    half = _randn(x_prev[: (len(x_prev) + 1) // 2], generator)
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * torch.cat([half, half])[: len(x_prev)])


@forward_step.wrong(
    "the image is not shrunk",
    seen="no public source: a plausible slip (noise added as in denoising autoencoders)",
    idea="term",
)
def _(schedule, x_prev, t, generator):
    return x_prev + _var(schedule, x_prev, t) ** 0.5 * _randn(x_prev, generator)


@forward_step.wrong(
    "one magnitude for all pixels of an image, signs of their own",
    seen="no public source: uncorrelated, not independent",
    idea="noise",
)
def _(schedule, x_prev, t, generator):
    shape = (len(x_prev), *[1] * (x_prev.ndim - 1))
    magnitude = torch.randn(shape, generator=generator, dtype=x_prev.dtype).abs()
    signs = _randn(x_prev, generator).sign()
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * magnitude * signs)


@forward_step.wrong(
    "noise that ignores the generator", seen="no public source: randn_like, which takes none", idea="noise"
)
def _(schedule, x_prev, t, generator):
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * torch.randn_like(x_prev))


@forward_step.wrong(
    "no noise in the first step", seen="no public source: the rule of the reverse process, t > 1", idea="edge"
)
def _(schedule, x_prev, t, generator):
    later = per_image(torch.arange(schedule.T + 1) > 1, t, x_prev.shape)
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * later * _randn(x_prev, generator))


@forward_step.wrong(
    "the first image's t for the whole batch", seen="no public source: t[0] where t is meant", idea="time"
)
def _(schedule, x_prev, t, generator):
    t = t if isinstance(t, int) else t[:1].expand(len(t))
    return _step(schedule, x_prev, t, _var(schedule, x_prev, t) ** 0.5 * _randn(x_prev, generator))


@forward_step.wrong("a variance of at least 1e-6", seen="no public source: a clamp for stability", idea="edge")
def _(schedule, x_prev, t, generator):
    var = _var(schedule, x_prev, t).clamp(min=1e-6)
    return _step(schedule, x_prev, t, var**0.5 * _randn(x_prev, generator))


@check("3.2", "linear schedule", "implementation", "its ends, and equal differences between them", to=1e-12)
@until(1e-11)
def linear(f):
    """f(T, beta_1, beta_T) returns a Schedule."""
    f = Watched(f)
    for T, first, last in (
        (1000, 1e-4, 0.02),
        (10, 0.01, 0.4),
        (10, 0.3, 0.02),
        (2, 0.1, 0.3),
        (3, 2.0**-40, 0.9999),
        (7, 0.25, 0.25),
        (40, 0.5, 1e-4),
    ):
        schedule = f(T, first, last)
        yield float(abs(len(schedule.beta) - T - 1))
        yield largest(float(schedule.beta[0]), relative(schedule.beta[[1, T]], [first, last]))
        differences = schedule.beta[1:].diff()
        yield apart(differences, differences.mean().expand(T - 1))
        yield apart(schedule.alpha_bar, walk(schedule)[0] ** 2)
    yield f.fault


@linear.wrong(
    "indexed by t/T instead of (t − 1)/(T − 1)",
    seen="no public source: a plausible slip (t counted from 1, the schedule from 0)",
    idea="time",
)
def _(T, beta_1, beta_T):
    return Schedule(beta_1 + torch.arange(1, T + 1, dtype=torch.float64) / T * (beta_T - beta_1))


@linear.wrong(
    "β_t = β̄/T for every t, which is constant",
    seen="no public source: a plausible slip (a budget spread evenly)",
    idea="exchange",
)
def _(T, beta_1, beta_T):
    return Schedule(torch.full((T,), beta_T / T, dtype=torch.float64))


@linear.wrong("√β is linear, not β", seen="under the name linear: CompVis/stable-diffusion issue 314", idea="power")
def _(T, beta_1, beta_T):
    return Schedule(torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2)


@linear.wrong("the last β scaled with T, the first not", seen="NVlabs/I2SB issue 11", idea="term")
def _(T, beta_1, beta_T):
    return Schedule(torch.linspace(beta_1, min(beta_T * 1000 / T, 0.999), T, dtype=torch.float64))


@linear.wrong("a β of at most 0.999", seen="no public source: the cosine schedule's rule, used here", idea="edge")
def _(T, beta_1, beta_T):
    return Schedule(torch.linspace(beta_1, beta_T, T, dtype=torch.float64).clamp(max=0.999))


@functools.cache
def exact_products():
    """For several schedules, ᾱ in exact fractions."""
    found = []
    for schedule in (SHORT, linear_schedule(40, 1e-3, 0.2), ONE, TWO, CLEAR, DARK, LONG, Schedule(12 * [0.999])):
        exact = [Fraction(1)]
        for beta in schedule.beta[1:].tolist():
            exact.append(exact[-1] * (1 - Fraction(beta)))
        found.append((schedule.beta, torch.tensor([float(a) for a in exact], dtype=torch.float64)))
    return found


@check("3.3", "cumulative alpha", "implementation", "the product in exact fractions", to=1e-12)
@until(1e-11)
def cumulative(f):
    """f(beta), with beta[0] = 0, returns ᾱ for t = 0..T; compared relative to it, for it may become very small."""
    f = Watched(f)
    for beta, exact in exact_products():
        yield relative(f(beta), exact)
    yield f.fault


@cumulative.wrong(
    "the product stops at t − 1",
    seen="no public source: a plausible slip (arrays with and without an entry for t = 0, mixed up)",
    idea="time",
)
def _(beta):
    return torch.cumprod(torch.cat([torch.ones(1), 1 - beta[:-1]]), 0)


@cumulative.wrong("the product of the β", seen="LuChengTHU/dpm-solver issue 13: a comment in code", idea="exchange")
def _(beta):
    return torch.cat([torch.ones(1), torch.cumprod(beta[1:], 0)])


@cumulative.wrong(
    "exp(−Σβ), the limit of many small steps",
    seen="no public source: a plausible slip (continuous-time texts, used at finite T)",
    idea="edge",
)
def _(beta):
    return torch.exp(-torch.cumsum(beta, 0))


@cumulative.wrong("at least 1e-12", seen="no public source: a clamp for stability", idea="edge")
def _(beta):
    return torch.cumprod(1 - beta, 0).clamp(min=1e-12)


@check("3.4", "two steps in one", "identity", "two single steps, differentiated by autograd", to=1e-12)
@until(1e-11)
def two_steps(f):
    """f(alpha_prev, alpha_t) returns the scale of x_{t−2} in x_t and the variance of the noise beside it."""
    f = Watched(f)
    for a, b in (
        (0.5, 0.5), (0.9, 0.6), (0.999, 0.98), (0.2, 0.7), (1.0, 0.4), (0.3, 1.0), (1.0, 1.0), (0.0, 0.6), (0.7, 0.0),
        (1 - 2.0**-40, 1.0), (1.0, 1 - 2.0**-40), (2.0**-40, 0.5), (0.5, 2.0**-40),
    ):  # fmt: skip
        x, e_1, e_2 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, -1.0, 0.7))
        x_1 = a**0.5 * x + (1 - a) ** 0.5 * e_1
        x_2 = b**0.5 * x_1 + (1 - b) ** 0.5 * e_2
        dx, d_1, d_2 = torch.autograd.grad(x_2, (x, e_1, e_2))
        yield relative(torch.tensor(f(a, b), dtype=torch.float64), torch.stack([dx, d_1**2 + d_2**2]), 2.0**-60)
    yield f.fault


@two_steps.states
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, 1 - alpha_t * alpha_prev


@two_steps.wrong(
    "scale √α_t·α_{t−1}: the root covers one factor only",
    seen="no public source: a plausible slip (the root drawn too short)",
    idea="power",
)
def _(alpha_prev, alpha_t):
    return alpha_t**0.5 * alpha_prev, 1 - alpha_t * alpha_prev


@two_steps.wrong(
    "the first step's noise is not shrunk by the second", seen="no public source: a plausible slip", idea="term"
)
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, (1 - alpha_t) + (1 - alpha_prev)


@two_steps.wrong(
    "standard deviations are added instead of variances", seen="no public source: a plausible slip", idea="power"
)
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, ((1 - alpha_t) ** 0.5 + (alpha_t * (1 - alpha_prev)) ** 0.5) ** 2


@two_steps.wrong("a variance of at least 1e-8", seen="no public source: a clamp for stability", idea="edge")
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, max(1 - alpha_t * alpha_prev, 1e-8)


JUMPS = [  # schedule, t, shape of x
    (LONG, torch.tensor([1, 334, 667, 1000]), (4, 3, 2, 2)),
    (SHORT, torch.tensor([1, 2, 3, 4]), (4, 3, 2, 2)),
    (SHORT, torch.tensor([4, 1, 3]), (3, 3, 3, 3)),  # no size tells the axes apart
    (SHORT, torch.tensor([2, 2, 4, 1]), (4, 1, 4, 4)),
    (LONG, torch.tensor([500]), (1, 1, 5, 2)),
    (LONG, 1, (3, 1, 2, 4)),
    (SHORT, 1, (1, 3, 4, 2)),
    (SHORT, 4, (1, 3, 4, 2)),
    (ONE, 1, (1, 3, 4, 2)),
    (TWO, torch.tensor([2, 1, 2, 2, 1]), (5, 2, 1, 3)),
    (ONE, torch.tensor([1, 1]), (2, 1, 2, 3)),
    (CLEAR, torch.tensor([1, 1, 1]), (3, 1, 3, 2)),
    (DARK, torch.tensor([3, 1, 2]), (3, 2, 2, 2)),
]


@check("3.5", "forward jump", "implementation", "the chain walked step by step", to=1e-12)
@until(1e-11)
def forward_jump(f):
    """f(schedule, x_0, eps, t) returns x_t, for a batch of t or for one."""
    f = Watched(f)
    for schedule, t, shape in JUMPS:
        scale, var = (per_image(values, t, shape) for values in walk(schedule))
        x_0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        yield apart(f(schedule, x_0, eps, t), scale * x_0 + var.sqrt() * eps)
        yield apart(f(schedule, 50 * x_0, 7 * eps, t), scale * 50 * x_0 + var.sqrt() * 7 * eps)
    yield slope_gap(lambda x_0, eps: f(SHORT, x_0, eps, torch.tensor([2, 4])), *some_images(2, 2, 1, 3, 3), step=1.0)
    yield f.fault


def _jump(x_0, eps, signal, noise):
    return signal.reshape(-1, 1, 1, 1) * x_0 + noise.reshape(-1, 1, 1, 1) * eps


@forward_jump.wrong(
    "the roots are missing: ᾱ_t·x_0 + (1 − ᾱ_t)·ε",
    seen="of this kind: Ryota-Kawamura/How-Diffusion-Models-Work issue 1 (the noise's root only)",
    idea="power",
)
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    return _jump(x_0, eps, a, 1 - a)


@forward_jump.wrong(
    "α_t in place of ᾱ_t", seen="no public source: a plausible slip (a bar lost in copying)", idea="exchange"
)
def _(schedule, x_0, eps, t):
    a = schedule.alpha[t]
    return _jump(x_0, eps, a.sqrt(), (1 - a).sqrt())


@forward_jump.wrong(
    "ᾱ_{t−1} in place of ᾱ_t", seen="no public source: a plausible slip (a 1-based t with a 0-based table)", idea="time"
)
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t - 1]
    return _jump(x_0, eps, a.sqrt(), (1 - a).sqrt())


@forward_jump.wrong(
    "noise scaled by √β_t, that of one step",
    seen="no public source: a plausible slip (Eq. 3.1 and Eq. 3.5 mixed up)",
    idea="exchange",
)
def _(schedule, x_0, eps, t):
    return _jump(x_0, eps, schedule.alpha_bar[t].sqrt(), schedule.beta[t].sqrt())


@forward_jump.wrong(
    "the root is missing on the noise: (1 − ᾱ_t)·ε",
    seen="Ryota-Kawamura/How-Diffusion-Models-Work issue 1",
    idea="power",
)
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    return _jump(x_0, eps, a.sqrt(), 1 - a)


@forward_jump.wrong(
    "coefficients along the width where it equals the batch", seen="no public source: a missing reshape", idea="axis"
)
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    if isinstance(t, int) or len(t) != x_0.shape[-1]:
        return _jump(x_0, eps, a.sqrt(), (1 - a).sqrt())
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps


@forward_jump.wrong("1 − ᾱ_t is at least 1e-10", seen="no public source: a clamp for stability", idea="edge")
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    return _jump(x_0, eps, a.sqrt(), (1 - a).clamp(min=1e-10).sqrt())


@forward_jump.wrong("the result is cut off at −30 and 30", seen="no public source: a clamp for stability", idea="edge")
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    return _jump(x_0, eps, a.sqrt(), (1 - a).sqrt()).clamp(-30, 30)


@check("3.6", "signal-to-noise ratio", "implementation", "the chain walked step by step", to=1e-9)
@until(1e-8)
def signal_to_noise(f):
    """f(schedule, t) returns the ratio for each t; compared relative to it, for it runs from 1e12 to 1e-9."""
    f = Watched(f)
    for schedule in (LONG, SHORT, TWO, ONE, CLEAR, DARK):
        scale, var = walk(schedule)
        exact = scale**2 / var
        every = torch.arange(1, schedule.T + 1)
        for t in (every, every.flip(0), every[-1:], torch.stack([every, every.flip(0)]), every[-1], schedule.T):
            yield relative(f(schedule, t), exact[t], 1e-6)
    yield f.fault


@signal_to_noise.wrong(
    "a ratio of standard deviations",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(schedule, t):
    return (schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])).sqrt()


@signal_to_noise.wrong(
    "upside down", seen="no public source: a plausible slip (samplers written in σ² = 1/SNR)", idea="sign"
)
def _(schedule, t):
    return (1 - schedule.alpha_bar[t]) / schedule.alpha_bar[t]


@signal_to_noise.wrong(
    "of one step: α_t/β_t", seen="no public source: a plausible slip (a bar lost in copying)", idea="exchange"
)
def _(schedule, t):
    return schedule.alpha[t] / schedule.beta[t]


@signal_to_noise.wrong(
    "1e-8 is added to the noise's variance", seen="no public source: against a division by 0", idea="edge"
)
def _(schedule, t):
    return schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t] + 1e-8)


@signal_to_noise.wrong(
    "of t in falling order of the ratio, whatever the order of t", seen="no public source: a sorted table", idea="axis"
)
def _(schedule, t):
    ratio = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    return ratio if ratio.ndim != 1 else ratio.sort(descending=True)[0]


LEAPS = [  # schedule, s, t
    (LONG, 100, 300),
    (LONG, 400, 1000),
    (SHORT, 1, 4),
    (SHORT, 2, 3),
    (SHORT, 0, 1),
    (SHORT, 0, 4),
    (SHORT, 0, 2),
    (LONG, 0, 1),
    (LONG, 0, 1000),
    (LONG, 1, 2),
    (LONG, 999, 1000),
    (TWO, 0, 2),
    (TWO, 1, 2),
    (ONE, 0, 1),
    (CLEAR, 0, 1),
    (DARK, 1, 3),
    (DARK, 0, 3),
]


@check("3.7", "jump between any two times", "identity", "the tower property, by quadrature over x_s", to=1e-9)
@until(1e-8)
def jump_between(f):
    """f(schedule, s, t), 0 ≤ s < t, returns the scale of x_s in x_t and the variance of the noise beside it."""
    f = Watched(f)
    for schedule, s, t in LEAPS:
        scale, std = (v.numpy() for v in (walk(schedule)[0], walk(schedule)[1].sqrt()))
        step_scale, step_var = (float(v) for v in f(schedule, s, t))
        yield 0.0 if step_var > 0 else math.inf
        for x_0 in (0.8 / scale[s], -3 / scale[s]):
            x_t = scale[t] * x_0 + std[t] * np.linspace(-4, 4, 41)
            if s:
                x_s = scale[s] * x_0 + std[s] * np.linspace(-10, 10, 2001)
                step = normal(x_t[:, None], step_scale * x_s, step_var)
                mixed = np.trapezoid(step * normal(x_s, scale[s] * x_0, std[s] ** 2), x_s)
            else:  # x_0 itself, which is given
                mixed = normal(x_t, step_scale * x_0, step_var)
            yield apart(std[t] * mixed, std[t] * normal(x_t, scale[t] * x_0, std[t] ** 2))
    yield f.fault


@jump_between.states
def _(schedule, s, t):
    ratio = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return ratio.sqrt(), 1 - ratio


@jump_between.wrong(
    "variance 1 − ᾱ_t, as if x_s were clean",
    seen="no public source: a plausible slip (strided samplers)",
    idea="exchange",
)
def _(schedule, s, t):
    return (schedule.alpha_bar[t] / schedule.alpha_bar[s]).sqrt(), 1 - schedule.alpha_bar[t]


@jump_between.wrong(
    "variances subtracted: (1 − ᾱ_t) − (1 − ᾱ_s)",
    seen="no public source: a plausible slip (forgets that x_s is shrunk, with its noise)",
    idea="term",
)
def _(schedule, s, t):
    return (schedule.alpha_bar[t] / schedule.alpha_bar[s]).sqrt(), schedule.alpha_bar[s] - schedule.alpha_bar[t]


@jump_between.wrong(
    "β_t, the variance of the last step of the jump",
    seen="huggingface/diffusers PR 3006 (“when skipping timesteps, self.betas[t] is the wrong beta”)",
    idea="exchange",
)
def _(schedule, s, t):
    return (schedule.alpha_bar[t] / schedule.alpha_bar[s]).sqrt(), schedule.beta[t]


@jump_between.wrong("ᾱ_1 in place of ᾱ_0 = 1", seen="no public source: tables that begin at t = 1", idea="time")
def _(schedule, s, t):
    ratio = schedule.alpha_bar[t] / schedule.alpha_bar[max(s, 1)]
    return ratio.sqrt(), 1 - ratio


@jump_between.wrong("a variance of at least 1e-8", seen="no public source: a clamp for stability", idea="edge")
def _(schedule, s, t):
    ratio = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return ratio.sqrt(), (1 - ratio).clamp(min=1e-8)


MIXTURES = [  # weights, means, variances
    ((0.3, 0.7), (-1.0, 0.6), (0.01, 0.04)),
    ((1.0,), (0.4,), (0.3,)),
    ((0.2, 0.5, 0.3), (0.9, -3.0, 0.1), (0.5, 2.0, 0.0)),  # one of them a point
    ((0.6, 0.4), (0.5, -0.5), (0.0, 3e-7)),
]


@check("3.8", "marginal of a mixture", "identity", "quadrature over the data", to=1e-9)
@until(1e-8)
def mixture_marginal(f):
    """f(x_t, weight, mean, var, alpha_bar) returns q(x_t) on a grid, for data from a 1-D Gaussian mixture.

    Differences are relative to a density of more than 1.
    """
    f, u = Watched(f), np.linspace(-10, 10, 4001)
    of_short = [float(scale) ** 2 for scale in walk(SHORT)[0][[1, 2, 4]]]
    for alpha_bar in (*of_short, 1 - 2.0**-20, 1e-6, 0.0, 1.0):
        for weight, mean, var in (map(np.array, mixture) for mixture in MIXTURES):
            if (alpha_bar == 1 and not var.all()) or 0 < 1 - alpha_bar < 1e-4 * var.max():
                continue  # a point that stays one has no density; the grid is too coarse for so little noise
            scale, noise_var = alpha_bar**0.5, 1 - alpha_bar
            near = (scale * mean)[:, None] + ((var + noise_var) ** 0.5)[:, None] * np.linspace(-4, 4, 9)
            x_t, exact = np.concatenate([near.ravel(), np.linspace(-4, 4, 21)]), 0.0
            for w, m, v in zip(weight, mean, var, strict=True):
                clean = m + v**0.5 * u  # of this component
                if noise_var:
                    kernel = normal(x_t[:, None], scale * clean, noise_var)
                    exact = exact + w * np.trapezoid(kernel * normal(u, 0, 1), u)
                else:
                    exact = exact + w * normal(x_t, m, v)
            yield relative(f(x_t, weight, mean, var, alpha_bar), exact, 1.0)
    yield f.fault


def _mixture(x, weight, mean, var):
    return (weight * normal(np.asarray(x)[:, None], mean, var)).sum(1)


@mixture_marginal.states
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, alpha_bar * var + 1 - alpha_bar)


@mixture_marginal.wrong(
    "each component is treated as a point: variance 1 − ᾱ_t",
    seen="no public source: a plausible slip (q(x_t|x_0) taken for q(x_t))",
    idea="term",
)
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, 1 - alpha_bar)


@mixture_marginal.wrong(
    "the components' means are not shrunk",
    seen="no public source: a plausible slip (noise added as in denoising autoencoders)",
    idea="term",
)
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, mean, alpha_bar * var + 1 - alpha_bar)


@mixture_marginal.wrong(
    "the variance is shrunk by √ᾱ_t instead of ᾱ_t",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, alpha_bar**0.5 * var + 1 - alpha_bar)


@mixture_marginal.wrong("variances of at least 1e-4", seen="no public source: a clamp for stability", idea="edge")
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, np.maximum(alpha_bar * var + 1 - alpha_bar, 1e-4))


@mixture_marginal.wrong(
    "one normal with the mixture's mean and variance", seen="no public source: two moments for all", idea="noise"
)
def _(x_t, weight, mean, var, alpha_bar):
    center = weight @ mean
    spread = alpha_bar * (weight @ (var + mean**2) - center**2) + 1 - alpha_bar
    return normal(x_t, alpha_bar**0.5 * center, spread)


@check("3.9", "distance from pure noise", "identity", "quadrature of the divergence", to=1e-9)
@until(1e-8)
def distance_from_noise(f):
    """f(x_0, alpha_bar) returns KL(q(x_t|x_0) ‖ N(0, 1)) in nats, for one pixel."""
    f, u = Watched(f), np.linspace(-12, 12, 4001)  # q's own standard deviations
    for x_0, alpha_bar in (
        (1.0, 0.5), (-0.7, 0.9), (0.4, 4e-5), (0.0, 0.3), (3.0, 0.6), (-1.0, 0.01), (0.5, 1 - 2.0**-40), (20.0, 0.8),
        (0.9, 0.0), (-40.0, 1e-6),
    ):  # fmt: skip
        mean, std = alpha_bar**0.5 * x_0, (1 - alpha_bar) ** 0.5
        log_ratio = log_normal(u, 0, 1) - np.log(std) - log_normal(mean + std * u, 0, 1)
        yield apart(f(x_0, alpha_bar), np.trapezoid(normal(u, 0, 1) * log_ratio, u))
    yield f.fault


@distance_from_noise.states
def _(x_0, alpha_bar):
    return 0.5 * (alpha_bar * (x_0**2 - 1) - np.log(1 - alpha_bar))


@distance_from_noise.wrong("the logarithm's sign", seen="no public source: a plausible slip", idea="sign")
def _(x_0, alpha_bar):
    return 0.5 * (alpha_bar * (x_0**2 - 1) + np.log(1 - alpha_bar))


@distance_from_noise.wrong(
    "the mean only: ½·ᾱ_t·x_0²",
    seen="no public source: a plausible slip (forgets that the variance is not yet 1)",
    idea="term",
)
def _(x_0, alpha_bar):
    return 0.5 * alpha_bar * x_0**2


@distance_from_noise.wrong(
    "the arguments of the divergence swapped",
    seen="no public source: a plausible slip (KL taken for symmetric)",
    idea="exchange",
)
def _(x_0, alpha_bar):
    return 0.5 * ((1 + alpha_bar * x_0**2) / (1 - alpha_bar) - 1 + np.log(1 - alpha_bar))


@distance_from_noise.wrong("1e-8 is added inside the logarithm", seen="no public source: against log 0", idea="edge")
def _(x_0, alpha_bar):
    return 0.5 * (alpha_bar * (x_0**2 - 1) - np.log(1 - alpha_bar + 1e-8))


@distance_from_noise.wrong(
    "the pixel is cut off at −1 and 1", seen="no public source: a clamp of the data's range", idea="edge"
)
def _(x_0, alpha_bar):
    return 0.5 * (alpha_bar * (np.clip(x_0, -1, 1) ** 2 - 1) - np.log(1 - alpha_bar))
