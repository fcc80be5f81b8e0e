"""The checks of chapter 3, the forward process. The routes walk the chain step by step, or integrate on a grid."""

from fractions import Fraction

import numpy as np
import torch
from scipy import stats

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import normal
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule

LONG = linear_schedule()  # T = 1000
SHORT = Schedule([0.1, 0.5, 0.02, 0.3])  # large, uneven steps, in which errors cannot hide


def walk(schedule):
    """The scale of x_0 and the variance of the noise after t = 0..T steps, one step at a time: two arrays (T+1,)."""
    scale, var = [1.0], [0.0]
    for beta in schedule.beta[1:].tolist():
        scale.append((1 - beta) ** 0.5 * scale[-1])
        var.append((1 - beta) * var[-1] + beta)
    return torch.tensor(scale, dtype=torch.float64), torch.tensor(var, dtype=torch.float64)


@check("3.1", "forward step", "implementation", "moments, shape and independence of 360,000 draws")
def forward_step(f):
    """f(schedule, x_prev, t, generator) draws x_t."""
    n, scores = 20_000, []
    x_prev = torch.tensor([-1.0, 0.3, 0.9], dtype=torch.float64).repeat(n, 1)
    for schedule, t in ((LONG, 1), (LONG, 1000), (SHORT, 2)):
        beta, generator = float(schedule.beta[t]), torch.Generator().manual_seed(t)
        z, again = (  # the noise, which must be N(0, 1), independent, and new in the second call
            ((f(schedule, x_prev, t, generator) - (1 - beta) ** 0.5 * x_prev) / beta**0.5).numpy() for _ in range(2)
        )
        flat = z.ravel()
        lags = np.fft.irfft(np.abs(np.fft.rfft(flat, 2 * flat.size)) ** 2)[1 : flat.size] / flat.size**0.5
        scores += [
            np.abs(z.mean(0)).max() * n**0.5,
            np.abs(z.var(0) - 1).max() * (n / 2) ** 0.5,
            2 * stats.kstest(flat, "norm").statistic * flat.size**0.5,  # the z whose tail is 2·exp(−2nD²)
            np.abs(np.corrcoef(z.T)[np.triu_indices(3, 1)]).max() * n**0.5,
            abs(np.corrcoef(flat, again.ravel())[0, 1]) * flat.size**0.5,
            np.abs(lags).max() - 4.2,  # of 60,000 lags the largest is about 4.2 by chance
        ]
    return largest(*scores)


def _randn(x, generator):
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _step(schedule, x_prev, t, noise):
    return (1 - schedule.beta[t]) ** 0.5 * x_prev + noise


@forward_step.wrong("noise β·U(0, 1) instead of √β·N(0, 1)", seen="acids-ircam/diffusion_models")
def _(schedule, x_prev, t, generator):
    uniform = torch.rand(x_prev.shape, generator=generator, dtype=x_prev.dtype)
    return _step(schedule, x_prev, t, schedule.beta[t] * uniform)


@forward_step.wrong("uniform noise with the right mean and variance", seen="survives every test of mean and variance")
def _(schedule, x_prev, t, generator):
    uniform = torch.rand(x_prev.shape, generator=generator, dtype=x_prev.dtype)
    return _step(schedule, x_prev, t, (12 * schedule.beta[t]) ** 0.5 * (uniform - 0.5))


@forward_step.wrong("ε ~ N(0, β) and √β·ε: β is applied twice", seen="a tuning guide for diffusion models")
def _(schedule, x_prev, t, generator):
    return _step(schedule, x_prev, t, schedule.beta[t] * _randn(x_prev, generator))


@forward_step.wrong("one draw of noise for all pixels of an image", seen="a noise tensor of shape (B, 1, 1, 1)")
def _(schedule, x_prev, t, generator):
    return _step(schedule, x_prev, t, schedule.beta[t] ** 0.5 * _randn(x_prev[:, :1], generator))


@forward_step.wrong("the root is missing: (1 − β)·x_{t−1}", seen="a common slip")
def _(schedule, x_prev, t, generator):
    return (1 - schedule.beta[t]) * x_prev + schedule.beta[t] ** 0.5 * _randn(x_prev, generator)


@forward_step.wrong("the same noise in every step", seen="a seed that is set inside the function")
def _(schedule, x_prev, t, generator):
    return _step(schedule, x_prev, t, schedule.beta[t] ** 0.5 * _randn(x_prev, torch.Generator().manual_seed(0)))


@forward_step.wrong(
    "half of the batch repeats the other half's noise", seen="noise drawn for half a batch, and doubled"
)
def _(schedule, x_prev, t, generator):
    half = _randn(x_prev[: len(x_prev) // 2], generator)
    return _step(schedule, x_prev, t, schedule.beta[t] ** 0.5 * torch.cat([half, half]))


@forward_step.wrong("the image is not shrunk", seen="noise added as in denoising autoencoders")
def _(schedule, x_prev, t, generator):
    return x_prev + schedule.beta[t] ** 0.5 * _randn(x_prev, generator)


@check("3.2", "linear schedule", "implementation", "its ends, and equal differences between them", to=1e-12)
def linear(f):
    """f(T, beta_1, beta_T) returns a Schedule."""
    worst = 0.0
    for T, first, last in ((1000, 1e-4, 0.02), (10, 0.01, 0.4)):
        beta = f(T, first, last).beta
        differences = beta[1:].diff()
        ends = torch.tensor([0, first, last], dtype=torch.float64)
        worst = largest(worst, apart(beta[[0, 1, T]], ends), apart(differences, differences.mean().expand(T - 1)))
    return worst


@linear.wrong("indexed by t/T instead of (t − 1)/(T − 1)", seen="an overview article")
def _(T, beta_1, beta_T):
    return Schedule(beta_1 + torch.arange(1, T + 1, dtype=torch.float64) / T * (beta_T - beta_1))


@linear.wrong("β_t = β̄/T for every t, which is constant", seen="a tuning guide for diffusion models")
def _(T, beta_1, beta_T):
    return Schedule(torch.full((T,), beta_T / T, dtype=torch.float64))


@linear.wrong("√β is linear, not β", seen="CompVis/latent-diffusion, under the name linear")
def _(T, beta_1, beta_T):
    return Schedule(torch.linspace(beta_1**0.5, beta_T**0.5, T, dtype=torch.float64) ** 2)


@check("3.3", "cumulative alpha", "implementation", "the product in exact fractions", to=1e-12)
def cumulative(f):
    """f(beta), with beta[0] = 0, returns ᾱ for t = 0..T."""
    worst = 0.0
    for schedule in (SHORT, linear_schedule(40, 1e-3, 0.2)):
        exact = [Fraction(1)]
        for beta in schedule.beta[1:].tolist():
            exact.append(exact[-1] * (1 - Fraction(beta)))
        worst = largest(worst, apart(f(schedule.beta), torch.tensor([float(a) for a in exact], dtype=torch.float64)))
    return worst


@cumulative.wrong("the product stops at t − 1", seen="arrays with and without an entry for t = 0, mixed up")
def _(beta):
    return torch.cumprod(torch.cat([torch.ones(1), 1 - beta[:-1]]), 0)


@cumulative.wrong("the product of the β", seen="a slip of the pen")
def _(beta):
    return torch.cat([torch.ones(1), torch.cumprod(beta[1:], 0)])


@cumulative.wrong("exp(−Σβ), the limit of many small steps", seen="continuous-time texts, used at finite T")
def _(beta):
    return torch.exp(-torch.cumsum(beta, 0))


@check("3.4", "two steps in one", "identity", "two single steps, differentiated by autograd", to=1e-12)
def two_steps(f):
    """f(alpha_prev, alpha_t) returns the scale of x_{t−2} in x_t and the variance of the noise beside it."""
    worst = 0.0
    for a, b in ((0.5, 0.5), (0.9, 0.6), (0.999, 0.98)):
        x, e_1, e_2 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, -1.0, 0.7))
        x_1 = a**0.5 * x + (1 - a) ** 0.5 * e_1
        x_2 = b**0.5 * x_1 + (1 - b) ** 0.5 * e_2
        dx, d_1, d_2 = torch.autograd.grad(x_2, (x, e_1, e_2))
        worst = largest(worst, apart(torch.tensor(f(a, b), dtype=torch.float64), torch.stack([dx, d_1**2 + d_2**2])))
    return worst


@two_steps.states
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, 1 - alpha_t * alpha_prev


@two_steps.wrong("scale √α_t·α_{t−1}: the root covers one factor only", seen="a student report")
def _(alpha_prev, alpha_t):
    return alpha_t**0.5 * alpha_prev, 1 - alpha_t * alpha_prev


@two_steps.wrong("the first step's noise is not shrunk by the second", seen="a common slip")
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, (1 - alpha_t) + (1 - alpha_prev)


@two_steps.wrong("standard deviations are added instead of variances", seen="a common slip")
def _(alpha_prev, alpha_t):
    return (alpha_t * alpha_prev) ** 0.5, ((1 - alpha_t) ** 0.5 + (alpha_t * (1 - alpha_prev)) ** 0.5) ** 2


@check("3.5", "forward jump", "implementation", "the chain walked step by step", to=1e-12)
def forward_jump(f):
    """f(schedule, x_0, eps, t) returns x_t, for a batch of t."""
    worst = 0.0
    for schedule in (LONG, SHORT):
        t = torch.linspace(1, schedule.T, 4).long()
        scale, var = walk(schedule)
        generator = torch.Generator().manual_seed(0)
        x_0, eps = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
        expected = scale[t][:, None, None, None] * x_0 + var[t].sqrt()[:, None, None, None] * eps
        worst = largest(worst, apart(f(schedule, x_0, eps, t), expected))
    return worst


def _jump(x_0, eps, signal, noise):
    return signal.reshape(-1, 1, 1, 1) * x_0 + noise.reshape(-1, 1, 1, 1) * eps


@forward_jump.wrong("the roots are missing: ᾱ_t·x_0 + (1 − ᾱ_t)·ε", seen="variance and standard deviation mixed up")
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t]
    return _jump(x_0, eps, a, 1 - a)


@forward_jump.wrong("α_t in place of ᾱ_t", seen="a bar lost in copying")
def _(schedule, x_0, eps, t):
    a = schedule.alpha[t]
    return _jump(x_0, eps, a.sqrt(), (1 - a).sqrt())


@forward_jump.wrong("ᾱ_{t−1} in place of ᾱ_t", seen="a 1-based t with a 0-based table")
def _(schedule, x_0, eps, t):
    a = schedule.alpha_bar[t - 1]
    return _jump(x_0, eps, a.sqrt(), (1 - a).sqrt())


@forward_jump.wrong("noise scaled by √β_t, that of one step", seen="Eq. 3.1 and Eq. 3.5 mixed up")
def _(schedule, x_0, eps, t):
    return _jump(x_0, eps, schedule.alpha_bar[t].sqrt(), schedule.beta[t].sqrt())


@check("3.6", "signal-to-noise ratio", "implementation", "the chain walked step by step", to=1e-9)
def signal_to_noise(f):
    """f(schedule, t) returns the ratio for each t; compared relative to it, for it runs from 1e4 to 1e-5."""
    worst = 0.0
    for schedule in (LONG, SHORT):
        t = torch.arange(1, schedule.T + 1)
        scale, var = walk(schedule)
        worst = largest(worst, apart(f(schedule, t) * var[t] / scale[t] ** 2, torch.ones(schedule.T)))
    return worst


@signal_to_noise.wrong("a ratio of standard deviations", seen="variance and standard deviation mixed up")
def _(schedule, t):
    return (schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])).sqrt()


@signal_to_noise.wrong("upside down", seen="samplers written in σ² = 1/SNR")
def _(schedule, t):
    return (1 - schedule.alpha_bar[t]) / schedule.alpha_bar[t]


@signal_to_noise.wrong("of one step: α_t/β_t", seen="a bar lost in copying")
def _(schedule, t):
    return schedule.alpha[t] / schedule.beta[t]


@check("3.7", "jump between any two times", "identity", "the tower property, by quadrature over x_s", to=1e-9)
def jump_between(f):
    """f(schedule, s, t), s < t, returns the scale of x_s in x_t and the variance of the noise beside it."""
    worst, x_0 = 0.0, 0.8
    for schedule, s, t in ((LONG, 100, 300), (LONG, 400, 1000), (SHORT, 1, 4), (SHORT, 2, 3)):
        scale, var = (v.numpy() for v in walk(schedule))
        step_scale, step_var = (float(v) for v in f(schedule, s, t))
        x_s = np.linspace(scale[s] * x_0 - 10 * var[s] ** 0.5, scale[s] * x_0 + 10 * var[s] ** 0.5, 2001)
        x_t = np.linspace(-4, 4, 41)[:, None]
        mixed = np.trapezoid(normal(x_t, step_scale * x_s, step_var) * normal(x_s, scale[s] * x_0, var[s]), x_s)
        worst = largest(worst, apart(mixed, normal(x_t[:, 0], scale[t] * x_0, var[t])))
    return worst


@jump_between.states
def _(schedule, s, t):
    ratio = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return ratio.sqrt(), 1 - ratio


@jump_between.wrong("variance 1 − ᾱ_t, as if x_s were clean", seen="strided samplers")
def _(schedule, s, t):
    return (schedule.alpha_bar[t] / schedule.alpha_bar[s]).sqrt(), 1 - schedule.alpha_bar[t]


@jump_between.wrong("variances subtracted: (1 − ᾱ_t) − (1 − ᾱ_s)", seen="forgets that x_s is shrunk, with its noise")
def _(schedule, s, t):
    return (schedule.alpha_bar[t] / schedule.alpha_bar[s]).sqrt(), schedule.alpha_bar[s] - schedule.alpha_bar[t]


@jump_between.wrong("β_t, the variance of the last step of the jump", seen="diffusers PR 3006: the β of a skipped step")
def _(schedule, s, t):
    return (schedule.alpha_bar[t] / schedule.alpha_bar[s]).sqrt(), schedule.beta[t]


@check("3.8", "marginal of a mixture", "identity", "quadrature over the data", to=1e-9)
def mixture_marginal(f):
    """f(x_t, weight, mean, var, alpha_bar) returns q(x_t) on a grid, for data from a 1-D Gaussian mixture."""
    weight, mean, var = np.array([0.3, 0.7]), np.array([-1.0, 0.6]), np.array([0.01, 0.04])
    x_0, x_t, worst = np.linspace(-3, 3, 4001), np.linspace(-4, 4, 81), 0.0
    data = (weight * normal(x_0[:, None], mean, var)).sum(1)
    for t in (1, 2, 4):
        scale, noise_var = (float(v[t]) for v in walk(SHORT))
        exact = np.trapezoid(normal(x_t[:, None], scale * x_0, noise_var) * data, x_0)
        worst = largest(worst, apart(f(x_t, weight, mean, var, scale**2), exact))
    return worst


def _mixture(x, weight, mean, var):
    return (weight * normal(np.asarray(x)[:, None], mean, var)).sum(1)


@mixture_marginal.states
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, alpha_bar * var + 1 - alpha_bar)


@mixture_marginal.wrong("each component is treated as a point: variance 1 − ᾱ_t", seen="q(x_t|x_0) taken for q(x_t)")
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, 1 - alpha_bar)


@mixture_marginal.wrong("the components' means are not shrunk", seen="noise added as in denoising autoencoders")
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, mean, alpha_bar * var + 1 - alpha_bar)


@mixture_marginal.wrong(
    "the variance is shrunk by √ᾱ_t instead of ᾱ_t", seen="variance and standard deviation mixed up"
)
def _(x_t, weight, mean, var, alpha_bar):
    return _mixture(x_t, weight, alpha_bar**0.5 * mean, alpha_bar**0.5 * var + 1 - alpha_bar)


@check("3.9", "distance from pure noise", "identity", "quadrature of the divergence", to=1e-9)
def distance_from_noise(f):
    """f(x_0, alpha_bar) returns KL(q(x_t|x_0) ‖ N(0, 1)) in nats, for one pixel."""
    x, worst = np.linspace(-14, 14, 20_001), 0.0
    for x_0, alpha_bar in ((1.0, 0.5), (-0.7, 0.9), (0.4, 4e-5)):
        q = normal(x, alpha_bar**0.5 * x_0, 1 - alpha_bar)
        log_ratio = np.log(np.maximum(q, 1e-300)) - np.log(normal(x, 0, 1))
        worst = largest(worst, apart(f(x_0, alpha_bar), np.trapezoid(q * log_ratio, x)))
    return worst


@distance_from_noise.states
def _(x_0, alpha_bar):
    return 0.5 * (alpha_bar * (x_0**2 - 1) - np.log(1 - alpha_bar))


@distance_from_noise.wrong("the logarithm's sign", seen="a common slip")
def _(x_0, alpha_bar):
    return 0.5 * (alpha_bar * (x_0**2 - 1) + np.log(1 - alpha_bar))


@distance_from_noise.wrong("the mean only: ½·ᾱ_t·x_0²", seen="forgets that the variance is not yet 1")
def _(x_0, alpha_bar):
    return 0.5 * alpha_bar * x_0**2


@distance_from_noise.wrong("the arguments of the divergence swapped", seen="KL taken for symmetric")
def _(x_0, alpha_bar):
    return 0.5 * ((1 + alpha_bar * x_0**2) / (1 - alpha_bar) - 1 + np.log(1 - alpha_bar))
