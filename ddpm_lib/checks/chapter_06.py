"""The checks of chapter 6, L_simple: the weights against divergences by quadrature, the targets against geometry and
autograd, the exact denoiser and the floor of the loss against quadrature over the noise."""

import copy
import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
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
    batches,
    disturbs,
    images,
    linear_in_images,
    off,
    peak,
    takes,
)
from ddpm_lib.checks.chapter_05 import TINY, kl_of_a_step, model_mean
from ddpm_lib.checks.guard import until
from ddpm_lib.checks.noise import NEVER
from ddpm_lib.diffusion.elbo import posterior_var_clipped
from ddpm_lib.diffusion.forward import forward_var, noise_like
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import coefficient
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.gaussian import log_density

STEPS = {
    LONG: [2, 3, 40, 500, 1000],
    SHORT: [2, 3, 4],
    TINY: [2, 3],
    TWO: [2],
    FAINT: [2],
    STRONG: [2, 3],
    ONE: [],
}


@functools.cache
def weight_by_quadrature(schedule, t, var, x_0=0.4, eps=-0.7, eps_hat=2.6):
    """By how many nats a squared error of 1 in ε raises the divergence of one step back."""
    scale, noise_var = walk(schedule)
    step = torch.tensor([t])
    x_0 = torch.tensor([[x_0 * min(1.0, float(noise_var[t]) ** 0.5)]], dtype=torch.float64)
    x_t = scale[t] * x_0 + noise_var[t].sqrt() * eps
    costs = []
    for estimate in (eps, eps_hat):
        mean = model_mean(schedule, step, x_t, torch.full_like(x_t, estimate))
        if t == 1:
            costs.append(-log_normal(float(x_0), float(mean), var))
        else:
            costs.append(float(kl_of_a_step(schedule, step, x_0, x_t, mean, var)[0]))
    return (costs[1] - costs[0]) / (eps_hat - eps) ** 2


@coefficient
def _some_var(schedule, t):
    return schedule.beta[t] * (0.3 + 0.5 / t)


@check("6.1", "weight of the noise loss", "implementation", "divergences of a step, by quadrature", to=1e-9)
@until(1e-8)
def weight(f):
    """f(schedule, t, reverse_var) returns the weight for each t of a batch; relative to it."""
    for reverse_var in (posterior_var_clipped, forward_var, _some_var):
        for schedule, steps in STEPS.items():
            if schedule is ONE and reverse_var is posterior_var_clipped:
                continue  # which is 0 there
            t = torch.tensor([*reversed(steps), 1])
            var = [float(reverse_var(schedule, int(step))) for step in t]
            exact = [weight_by_quadrature(schedule, int(step), v) for step, v in zip(t, var, strict=True)]
            exact = torch.tensor(exact, dtype=torch.float64)
            yield disturbs(f, schedule, t, reverse_var)
            yield off(f(schedule, t, reverse_var), exact, exact)
            yield off(f(schedule, t[:, None], reverse_var), exact[:, None], exact[:, None])
            yield off(f(schedule, int(t[0]), reverse_var), exact[0], exact[0])
            if reverse_var is posterior_var_clipped and takes(f, 2):  # the variance, unless told otherwise
                yield off(f(schedule, t), exact, exact)


def _tables(schedule, t):
    return schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]


@weight.wrong("no weight at all", seen="no public source: a plausible slip (L_simple taken for the bound)", idea="term")
def _(schedule, t, reverse_var):
    return torch.ones(len(t), dtype=torch.float64)


@weight.wrong(
    "2·1 − ᾱ for 2·(1 − ᾱ)",
    seen="CompVis/latent-diffusion, ddpm.py, in the weight for x_0: its PR 404 and 406",
    idea="term",
)
def _(schedule, t, reverse_var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta**2 / (reverse_var(schedule, t) * alpha * (2 * 1 - alpha_bar))


@weight.wrong("β_t is not squared", seen="no public source: a plausible slip", idea="power")
def _(schedule, t, reverse_var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta / (2 * reverse_var(schedule, t) * alpha * (1 - alpha_bar))


@weight.wrong(
    "σ_t for σ_t²",
    seen="no public source: a plausible slip (variance and standard deviation under one name)",
    idea="power",
)
def _(schedule, t, reverse_var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta**2 / (2 * reverse_var(schedule, t).sqrt() * alpha * (1 - alpha_bar))


@weight.wrong("ᾱ_t for α_t", seen="no public source: a plausible slip (a bar too many)", idea="exchange")
def _(schedule, t, reverse_var):
    beta, _, alpha_bar = _tables(schedule, t)
    return beta**2 / (2 * reverse_var(schedule, t) * alpha_bar * (1 - alpha_bar))


def _weight(schedule, t, var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta**2 / (2 * var * alpha * (1 - alpha_bar))


@weight.wrong("a weight of at most 1", seen="no public source: harmless for 1,000 steps, not for four", idea="edge")
def _(schedule, t, reverse_var):
    return _weight(schedule, t, reverse_var(schedule, t)).clamp(max=1)


@weight.wrong(
    "β̃_t, whatever variance is asked for", seen="no public source: an argument that is not read", idea="exchange"
)
def _(schedule, t, reverse_var):
    return _weight(schedule, t, posterior_var_clipped(schedule, t))


@weight.wrong("1e-8 is added to the variance", seen="no public source: an ε “for stability”", idea="edge")
def _(schedule, t, reverse_var):
    return _weight(schedule, t, reverse_var(schedule, t) + 1e-8)


@check("6.2", "weight from the signal-to-noise ratio", "identity", "divergences of a step, by quadrature", to=1e-9)
@until(1e-8)
def weight_from_snr(f):
    """f(snr_prev, snr_t) returns the weight of the noise loss at σ² = β̃, from SNR(t − 1) and SNR(t)."""
    for schedule, steps in STEPS.items():
        scale, var = walk(schedule)
        ratio = scale**2 / var
        for t in steps:
            exact = weight_by_quadrature(schedule, t, float(posterior_var(schedule, t)))
            yield off(float(f(ratio[t - 1], ratio[t])), exact, exact)


@weight_from_snr.states
def _(snr_prev, snr_t):
    return 0.5 * (snr_prev / snr_t - 1)


@weight_from_snr.wrong(
    "the weight of the x_0 loss: ½·(SNR(t − 1) − SNR(t))",
    seen="no public source: a plausible slip (variational diffusion models, read for ε)",
    idea="exchange",
)
def _(snr_prev, snr_t):
    return 0.5 * (snr_prev - snr_t)


@weight_from_snr.wrong("the one half is lost", seen="no public source: a plausible slip", idea="term")
def _(snr_prev, snr_t):
    return snr_prev / snr_t - 1


@weight_from_snr.wrong(
    "the ratio upside down", seen="no public source: a plausible slip (indices t and t − 1 swapped)", idea="time"
)
def _(snr_prev, snr_t):
    return 0.5 * (1 - snr_t / snr_prev)


@weight_from_snr.wrong("at most 5", seen="no public source: min-SNR's γ, where there is none", idea="edge")
def _(snr_prev, snr_t):
    return (0.5 * (snr_prev / snr_t - 1)).clamp(max=5)


@weight_from_snr.wrong("1e-8 is added to the denominator", seen="no public source: an ε “for stability”", idea="edge")
def _(snr_prev, snr_t):
    return 0.5 * (snr_prev / (snr_t + 1e-8) - 1)


def _ends(schedule, t):
    """√ᾱ_t and √(1 − ᾱ_t), for images."""
    return images(schedule.alpha_bar[t].sqrt()), images((1 - schedule.alpha_bar[t]).sqrt())


def _network(x_t, t):
    """A stand-in for a network, which depends on t in every value; t must come as it was drawn."""
    values = 0.3 * x_t**2 - 0.5 * x_t.flip(-1) + images((t + 2.0).log())
    return values if t.dtype == torch.int64 else values * torch.inf


def _losses(f, batch, gain, target, errors_of) -> Iterator[float]:
    """The distances of f's losses, and of their slope in a weight of the network, from errors squared one by one."""
    size, calls = batch.x_t.abs().mean(), []

    def model(weight):
        def network(x_t, t):
            calls.append(t)
            return weight * gain * _network(x_t / size, t)

        return network

    def loss(weight):
        errors = errors_of(model(weight)(batch.x_t, batch.t)).flatten(1).tolist()
        return torch.tensor([sum(e * e for e in row) / len(row) for row in errors], dtype=torch.float64)

    exact, weight = loss(1.0), torch.ones((), dtype=torch.float64, requires_grad=True)
    arguments = (model(weight), batch.schedule, batch.x_0, batch.eps, batch.t, *target)
    yield disturbs(f, *arguments)
    calls.clear()
    got = f(*arguments)
    yield off(got, exact, exact)
    yield 0.0 if len(calls) == 1 else math.inf  # one pass through the network
    slope = (loss(1.5) - loss(0.5)).sum()  # exact, for the loss is quadratic in the weight
    found = torch.autograd.grad(got.sum(), weight)[0] if got.requires_grad else torch.zeros(())
    yield off(found, slope, exact.sum())


@check(
    "6.3",
    "L_simple",
    "implementation",
    "the chain walked step by step, errors squared one by one; its slope by differences",
    to=1e-9,
)
@until(1e-8)
def l_simple(f):
    """f(model, schedule, x_0, eps, t) returns one loss for each image, through which a gradient reaches the model.

    Where f takes one thing more, the target, the other three of them are tried too.
    """
    for batch in batches():
        for gain in (1.0, 40.0):
            yield from _losses(f, batch, gain, (), lambda got: batch.eps - got)  # noqa: B023
    if takes(f, 6):
        for batch in batches():
            scale, std = batch.walked()
            further = torch.atan2(std, scale) + math.pi / 2  # the velocity is x_t a quarter of a circle further on
            v = further.cos() * batch.x_0 + further.sin() * batch.eps
            yield from _losses(f, batch, 1.0, ("x_0",), lambda got: batch.x_0 - got)  # noqa: B023
            yield from _losses(f, batch, 1.0, ("v",), lambda got: v - got)  # noqa: B023
            # the score's error counts in units of 1/√(1 − ᾱ_t), its size
            yield from _losses(f, batch, 1.0, ("score",), lambda got: -batch.eps - std * got)  # noqa: B023


def _noisy(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return scale * x_0 + std * eps


@l_simple.wrong(
    "the network is given t − 1, the noisy image is of t",
    seen="udlbook/udlbook, notebook 18.3: its models are trained with t where 18.2 has t + 1",
    idea="time",
)
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t - 1)).square().flatten(1).mean(1)


@l_simple.wrong(
    "compared with the image, not with the noise",
    seen="no public source: a plausible slip (a network for ε, trained on x_0)",
    idea="exchange",
)
def _(model, schedule, x_0, eps, t):
    return (x_0 - model(_noisy(schedule, x_0, eps, t), t)).square().flatten(1).mean(1)


@l_simple.wrong(
    "other noise in the image than in the loss",
    seen="no public source: a plausible slip (a second call of randn)",
    idea="noise",
)
def _(model, schedule, x_0, eps, t):
    other = noise_like(eps, torch.Generator().manual_seed(1))
    return (eps - model(_noisy(schedule, x_0, other, t), t)).square().flatten(1).mean(1)


@l_simple.wrong(
    "absolute values instead of squares",
    seen="loss_type='l1' in lucidrains/denoising-diffusion-pytorch, until May 2023",
    idea="claim",
)
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t)).abs().flatten(1).mean(1)


@l_simple.wrong(
    "variances for roots in the noisy image",
    seen="of this kind: Ryota-Kawamura/How-Diffusion-Models-Work issue 1 (the noise's root only)",
    idea="power",
)
def _(model, schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return (eps - model(scale**2 * x_0 + std**2 * eps, t)).square().flatten(1).mean(1)


@l_simple.wrong(
    "no gradient reaches the network",
    seen="no public source: a plausible slip (no_grad() or detach() left over from sampling)",
    idea="gradient",
)
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t).detach()).square().flatten(1).mean(1)


@l_simple.wrong(
    "the sum over the channels, the mean over the pixels", seen="no public source: right for grey images", idea="axis"
)
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t)).square().sum(1).flatten(1).mean(1)


@l_simple.wrong(
    "Huber's loss: errors above 10 count linearly", seen="no public source: a robust loss by another name", idea="claim"
)
def _(model, schedule, x_0, eps, t):
    error = (eps - model(_noisy(schedule, x_0, eps, t), t)).abs()
    return torch.where(error < 10, error**2, 20 * error - 100).flatten(1).mean(1)


@l_simple.wrong(
    "the network is given t as a real number", seen="no public source: an embedding's table needs integers", idea="edge"
)
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t.double())).square().flatten(1).mean(1)


@l_simple.wrong(
    "the image is overwritten with the noisy one",
    seen="no public source: memory saved with mul_ and add_",
    idea="state",
)
def _(model, schedule, x_0, eps, t):
    x_0.copy_(_noisy(schedule, x_0, eps, t))
    return (eps - model(x_0, t)).square().flatten(1).mean(1)


@check(
    "6.4",
    "a random step",
    "implementation",
    "type and range, how often each t comes, how draws hang together, and whether the generator decides",
)
@until(15.0)
def random_step(f):
    """f(schedule, batch, generator) draws t, shape (batch,), int64, on the generator's device, anew in each call."""
    for schedule in (TINY, SHORT, LONG, TWO, ONE):
        T, n = schedule.T, 1_500_000
        yield disturbs(lambda s: f(s, 8, _seeded(0)), schedule)
        t = f(schedule, n, _seeded(7))
        in_range = (
            t.dtype == torch.int64 and t.shape == (n,) and t.device.type == "cpu" and 1 <= t.min() <= t.max() <= T
        )
        yield 0.0 if in_range and f(schedule, 1, _seeded(7)).shape == (1,) else NEVER
        yield _heeds_the_generator(lambda g: f(schedule, n, g), t, T)  # noqa: B023
        if T > 1:
            counts, generator = torch.bincount(t, minlength=T + 1)[1:].numpy(), _seeded(8)
            yield from _evenly_spread(counts, n / T)
            if schedule is TINY:  # a batch of one, again and again
                alone = torch.cat([f(schedule, 1, generator) for _ in range(3000)])
                yield from _evenly_spread(torch.bincount(alone, minlength=T + 1)[1:].numpy(), 3000 / T)
            rows = torch.stack([f(schedule, 64, generator) for _ in range(4000)]).double().numpy()
            yield from _independent(rows, T)


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def _heeds_the_generator(draw, t, T):
    """0 if the generator, and nothing else, decides what is drawn, and the global one is left alone."""
    generator = _seeded(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        again, second, other = draw(generator), draw(generator), draw(_seeded(8))
        kept = torch.equal(torch.get_rng_state(), before)
    fresh = T == 1 or not (torch.equal(t, second) or torch.equal(t, other))
    return 0.0 if kept and fresh and torch.equal(t, again) else NEVER


def _evenly_spread(counts, expected):
    """|z| of Pearson's χ², which is too large for uneven counts and too small for counts that were made even."""
    squares, free = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    for tail in (stats.chi2.sf(squares, free), stats.chi2.cdf(squares, free)):
        yield min(NEVER, max(0.0, stats.norm.isf(tail)))
    yield np.abs(counts - expected).max() / (expected * (1 - 1 / len(counts))) ** 0.5


def _independent(rows, T):
    """|z| of tests that batches (N, B) of draws hang together in no way, within a batch or from batch to batch."""
    (N, B), std = rows.shape, ((T**2 - 1) / 12) ** 0.5
    z = (rows - (T + 1) / 2) / std
    yield abs((z.mean(1) ** 2 * B).mean() - 1) * (N / 2) ** 0.5  # the mean of B scatters with a B-th of the variance
    yield np.abs(z.mean(0)).max() * N**0.5  # no place in the batch has values of its own
    # how often two of a batch are equal, which is rarer where t is dealt out, and commoner where it is repeated
    pairs, p = N * B * (B - 1) / 2, 1 / T
    counts = np.stack([(rows == t).sum(1) for t in range(1, T + 1)])
    yield abs((counts * (counts - 1) / 2).sum() - pairs * p) / (pairs * p * (1 - p)) ** 0.5
    for part in (z, z**2):  # correlations at every distance along the row of all draws
        row = part.ravel() - part.mean()
        if (row == 0).all():  # T = 2: the squares are all alike
            continue
        n, row = row.size, row / row.std()
        lags = np.fft.irfft(np.abs(np.fft.rfft(row, 2 * n)) ** 2)[1:n] / n**0.5
        yield np.abs(lags).max() - stats.norm.isf(0.5 / n)  # the largest of n lags reaches this by chance


def _uniform(low, high, n, generator):
    return torch.randint(low, high, (n,), generator=generator)


@random_step.wrong(
    "from 0 to T − 1, into tables that have an entry for the clean image",
    seen="no public source: a plausible slip (0-based code, copied)",
    idea="time",
)
def _(schedule, batch, generator):
    return _uniform(0, schedule.T, batch, generator)


@random_step.wrong(
    "T is never drawn",
    seen="randint(1, T): its upper end is exclusive. Of this kind: dome272/Diffusion-Models-pytorch, ddpm.py "
    "(there, t counts from 0, so the first step is never drawn)",
    idea="time",
)
def _(schedule, batch, generator):
    return _uniform(1, schedule.T, batch, generator)


@random_step.wrong(
    "a uniform real number, rounded: both ends come half as often",
    seen="no public source: a plausible slip",
    idea="noise",
)
def _(schedule, batch, generator):
    return (1 + torch.rand(batch, generator=generator) * (schedule.T - 1)).round().long()


@random_step.wrong(
    "in pairs t and T + 1 − t",
    seen="ermongroup/ddim, runners/diffusion.py, where they are meant: “antithetic sampling”",
    idea="noise",
)
def _(schedule, batch, generator):
    half = _uniform(1, schedule.T + 1, batch // 2 + 1, generator)
    return torch.cat([half, schedule.T + 1 - half])[:batch]


@random_step.wrong(
    "the same t in every batch",
    seen="no public source: a plausible slip (a seed that is set inside the loop)",
    idea="noise",
)
def _(schedule, batch, generator):
    return _uniform(1, schedule.T + 1, batch, torch.Generator().manual_seed(0))


@random_step.wrong(
    "real numbers", seen="no public source: whole numbers in float32, which no table can be read at", idea="edge"
)
def _(schedule, batch, generator):
    return _uniform(1, schedule.T + 1, batch, generator).float()


@random_step.wrong(
    "the generator is not heeded", seen="no public source: the argument, left out of the call", idea="noise"
)
def _(schedule, batch, generator):
    return _uniform(1, schedule.T + 1, batch, None)


@random_step.wrong(
    "T + 1 once in ten thousand draws", seen="of this kind: TencentARC/T2I-Adapter issue 126", idea="time"
)
def _(schedule, batch, generator):
    rare = torch.rand(batch, generator=generator) < 1e-4
    return torch.where(rare, schedule.T + 1, _uniform(1, schedule.T + 1, batch, generator))


@random_step.wrong(
    "every t once before any comes again", seen="no public source: a permutation, as for images", idea="noise"
)
def _(schedule, batch, generator):
    rounds = -(-batch // schedule.T)
    order = torch.rand(rounds, schedule.T, generator=generator).argsort(1)
    return 1 + order.flatten()[:batch]


@check("6.5", "clean image from noise", "implementation", "the chain walked step by step", to=1e-9)
@until(1e-8)
def clean_image(f):
    """f(schedule, x_t, eps, t) returns x_0."""
    yield from linear_in_images(
        f,
        lambda batch: (batch.x_t, batch.eps),
        lambda batch: batch.x_0,
        lambda batch: 1 / batch.walked()[0],  # where little is left, an image is blown up
    )


@clean_image.wrong("divided by ᾱ_t, not by its root", seen="no public source: a plausible slip", idea="power")
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t)
    return (x_t - std * eps) / scale**2


@clean_image.wrong("the noise is not scaled: (x_t − ε)/√ᾱ_t", seen="no public source: a plausible slip", idea="term")
def _(schedule, x_t, eps, t):
    return (x_t - eps) / _ends(schedule, t)[0]


@clean_image.wrong(
    "one step instead of t: α_t and β_t",
    seen="no public source: a plausible slip (a bar lost in copying)",
    idea="exchange",
)
def _(schedule, x_t, eps, t):
    return (x_t - images(schedule.beta[t].sqrt()) * eps) / images(schedule.alpha[t].sqrt())


@clean_image.wrong(
    "tables read at t − 1", seen="no public source: a plausible slip (a 1-based t with a 0-based table)", idea="time"
)
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t - 1)
    return (x_t - std * eps) / scale


@clean_image.wrong(
    "clipped to [−1, 1]",
    seen="no public source: a plausible slip (samplers' code, where it may be wanted, in the formula itself)",
    idea="edge",
)
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t)
    return ((x_t - std * eps) / scale).clamp(-1, 1)


@clean_image.wrong("√ᾱ_t of at least 0.001", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t)
    return (x_t - std * eps) / scale.clamp(min=1e-3)


@check("6.6", "noise from clean image", "implementation", "the chain walked step by step", to=1e-9)
@until(1e-8)
def noise(f):
    """f(schedule, x_t, x_0, t) returns ε."""
    yield from linear_in_images(f, lambda batch: (batch.x_t, batch.x_0), lambda batch: batch.eps)


def _visible(image):
    """The same image, made large where it is small: any two will do for a velocity."""
    return image / image.abs().max().clamp(max=1.0)


@noise.wrong(
    "the image is not shrunk: (x_t − x_0)/√(1 − ᾱ_t)",
    seen="no public source: a plausible slip (noise taken for what was added)",
    idea="term",
)
def _(schedule, x_t, x_0, t):
    return (x_t - x_0) / _ends(schedule, t)[1]


@noise.wrong("divided by 1 − ᾱ_t, not by its root", seen="no public source: a plausible slip", idea="power")
def _(schedule, x_t, x_0, t):
    scale, std = _ends(schedule, t)
    return (x_t - scale * x_0) / std**2


@noise.wrong("the sign is turned", seen="no public source: a plausible slip (score and noise mixed up)", idea="sign")
def _(schedule, x_t, x_0, t):
    scale, std = _ends(schedule, t)
    return (scale * x_0 - x_t) / std


@noise.wrong("1e-5 is added to the denominator", seen="no public source: an ε “for stability”", idea="edge")
def _(schedule, x_t, x_0, t):
    scale, std = _ends(schedule, t)
    return (x_t - scale * x_0) / (std + 1e-5)


@noise.wrong("no gradient reaches x_0", seen="no public source: detach() left over from sampling", idea="gradient")
def _(schedule, x_t, x_0, t):
    scale, std = _ends(schedule, t)
    return (x_t - scale * x_0.detach()) / std


@check(
    "6.7", "velocity", "implementation", "the derivative of x_t along the circle from x_0 to ε, by autograd", to=1e-9
)
@until(1e-8)
def velocity(f):
    """f(schedule, x_0, eps, t) returns v."""

    def by_autograd(batch):
        scale, std = batch.walked()
        _, v = torch.autograd.functional.jvp(
            lambda angle: angle.cos() * _visible(batch.x_0) + angle.sin() * batch.eps,
            torch.atan2(std, scale),
            torch.ones_like(std),
        )
        return v

    yield from linear_in_images(f, lambda batch: (_visible(batch.x_0), batch.eps), by_autograd)


@velocity.wrong("the sign is turned", seen="no public source: a plausible slip", idea="sign")
def _(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return std * x_0 - scale * eps


@velocity.wrong("the two factors are swapped", seen="no public source: a plausible slip", idea="exchange")
def _(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return std * eps - scale * x_0


@velocity.wrong(
    "ε − x_0, the velocity of a straight line",
    seen="no public source: a plausible slip (flow matching, where paths are not circles)",
    idea="exchange",
)
def _(schedule, x_0, eps, t):
    return eps - x_0


@velocity.wrong("the first channel's image for all", seen="no public source: right for grey images", idea="axis")
def _(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return scale * eps - std * x_0[:, :1]


@check("6.8", "noise from velocity", "implementation", "two linear equations in x_0 and ε, solved", to=1e-9)
@until(1e-8)
def noise_from_velocity(f):
    """f(schedule, x_t, v, t) returns ε."""

    def solved(batch):
        a, b = (v.flatten() for v in batch.walked())
        rows = torch.stack([torch.stack([a, b], -1), torch.stack([-b, a], -1)], -2)  # (B, 2, 2)
        x_t, v = _visible(batch.x_t), batch.eps
        both = torch.linalg.solve(rows, torch.stack([x_t.flatten(1), v.flatten(1)], 1))
        return both[:, 1].reshape(x_t.shape)

    yield from linear_in_images(f, lambda batch: (_visible(batch.x_t), batch.eps), solved)


@noise_from_velocity.wrong(
    "the clean image's formula", seen="no public source: a plausible slip (ε and x_0 mixed up)", idea="exchange"
)
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale * x_t - std * v


@noise_from_velocity.wrong("the two factors are swapped", seen="no public source: a plausible slip", idea="exchange")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale * x_t + std * v


@noise_from_velocity.wrong(
    "the sign of v is turned",
    seen="no public source: a plausible slip (a v of the other sign, as some texts define it)",
    idea="sign",
)
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return std * x_t - scale * v


@noise_from_velocity.wrong(
    "by way of an x_0 that is clipped to [−1, 1]", seen="no public source: a sampler's line", idea="edge"
)
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return (x_t - scale * (scale * x_t - std * v).clamp(-1, 1)) / std


@check("6.9", "score from noise", "implementation", "the gradient of log q(x_t|x_0), by autograd", to=1e-9)
@until(1e-8)
def score(f):
    """f(schedule, eps, t) returns the score; compared in units of 1/√(1 − ᾱ_t), for at t = 1 it is large."""

    def in_units(schedule, eps, t):
        return f(schedule, eps, t) * images(walk(schedule)[1][t].sqrt())

    def by_autograd(batch):
        scale, std = batch.walked()
        x_t = batch.x_t.requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(x_t, scale * batch.x_0, std**2).sum(), x_t)
        return gradient * std

    yield from linear_in_images(in_units, lambda batch: (batch.eps,), by_autograd)


@score.wrong(
    "the sign is lost",
    seen="the text of acids-ircam/diffusion_models, diffusion_02_model.ipynb: ∇ log q = (x̃ − x)/σ²",
    idea="sign",
)
def _(schedule, eps, t):
    return eps / _ends(schedule, t)[1]


@score.wrong(
    "not divided by the noise's size",
    seen="no public source: a plausible slip (the score said to be minus the noise)",
    idea="term",
)
def _(schedule, eps, t):
    return -eps


@score.wrong(
    "divided by 1 − ᾱ_t, not by its root",
    seen="no public source: a plausible slip (the formula in x_t − √ᾱ_t·x_0, with ε put in)",
    idea="power",
)
def _(schedule, eps, t):
    return -eps / _ends(schedule, t)[1] ** 2


@score.wrong("1e-8 is added under the root", seen="no public source: an ε “for stability”", idea="edge")
def _(schedule, eps, t):
    return -eps / (_ends(schedule, t)[1] ** 2 + 1e-8).sqrt()


@check(
    "6.10",
    "one error in four units",
    "identity",
    "two estimates of one image, converted by solving for the rest",
    to=1e-9,
)
@until(1e-8)
def units(f):
    """f(snr) returns the squared errors in ε, v and the score that go with a squared error of 1 in x_0."""
    for alpha_bar in (0.98, 0.7, 0.4, 0.05, 1 - 2.0**-30, 2.0**-30):
        a, b, x_t = alpha_bar**0.5, (1 - alpha_bar) ** 0.5, 0.6
        found = []
        for x_0 in (0.2, 1.2):  # a distance of 1
            eps = np.linalg.solve([[1.0, 0.0], [a, b]], [x_0, x_t])[1]
            found.append([eps, a * eps - b * x_0, -(x_t - a * x_0) / b**2])
        squares = (np.array(found[1]) - np.array(found[0])) ** 2
        yield off(np.array([float(v) for v in f(alpha_bar / (1 - alpha_bar))]), squares, squares)


@units.states
def _(snr):
    return snr, snr + 1, snr * (snr + 1)


@units.wrong(
    "v is weighted as ε is: min-SNR's min(SNR, γ)/SNR for v",
    seen="bmaltais/kohya_ss issue 1555 (min(1, γ/SNR) whatever the network predicts)",
    idea="exchange",
)
def _(snr):
    return snr, snr, snr * (snr + 1)


@units.wrong("deviations for variances: √SNR", seen="no public source: a plausible slip", idea="power")
def _(snr):
    return snr**0.5, snr + 1, snr * (snr + 1)


@units.wrong(
    "the score weighted as ε is",
    seen="no public source: a plausible slip (the score said to be minus the noise)",
    idea="exchange",
)
def _(snr):
    return snr, snr + 1, snr


@units.wrong("no factor above 10,000", seen="no public source: a clamp “for stability”", idea="edge")
def _(snr):
    return tuple(min(factor, 1e4) for factor in (snr, snr + 1, snr * (snr + 1)))


MIX = (np.array([0.35, 0.65]), np.array([-0.8, 0.5]), np.array([0.03, 0.08]))  # weights, means, variances
SHARES = [  # ᾱ_t, and how large the data are: also where an ε or a clamp would change the result
    (0.97, 1.0),
    (0.6, 1.0),
    (0.15, 1.0),
    (1 - 1e-4, 1.0),
    (2.0**-34, 1.0),
    (0.6, 20.0),
    (0.6, 1e-3),
    (1 - 2.0**-44, UNIT),
]


def noised_mixture(alpha_bar, size):
    """log q(x) of the noised mixture, as a function of a tensor x (n,)."""
    weight, mean, var = (torch.from_numpy(v) for v in MIX)
    mean, var = alpha_bar**0.5 * size * mean, alpha_bar * size**2 * var + (1 - alpha_bar)
    return lambda x: (weight.log() + log_density(x[:, None], mean, var)).logsumexp(1)


def score_of_mixture(x, alpha_bar, size):
    x = torch.as_tensor(x, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(noised_mixture(alpha_bar, size)(x).sum(), x)
    return gradient.numpy()


def pairs_of_mixture(alpha_bar, size, nodes=24):
    """Nodes (x_0, ε) and weights of a quadrature over the data and the noise, and x_t at each."""
    pairs, w = (v.numpy() for v in hermite(nodes, 2))
    weight, mean, var = (v[:, None] for v in MIX)
    x_0, eps = size * (mean + var**0.5 * pairs[:, 0]), np.broadcast_to(pairs[:, 1], (len(mean), len(pairs)))
    x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
    return x_0.ravel(), eps.ravel(), (weight * w).ravel(), x_t.ravel()


@functools.cache
def grid_of_x_t(alpha_bar, size):
    """A grid of x_t, the probability of each of its points, and the score there."""
    x = max(size, (1 - alpha_bar) ** 0.5) * np.linspace(-9, 9, 20_001)
    q = np.exp(noised_mixture(alpha_bar, size)(torch.from_numpy(x)).numpy())
    return x, q / q.sum(), score_of_mixture(x, alpha_bar, size)


@functools.cache
def denoised_by_quadrature(alpha_bar, size):
    """Points x_t and E[x_0|x_t]."""
    weight, mean, var = MIX
    std = (1 - alpha_bar) ** 0.5
    x_t = max(size, std) * np.linspace(-2, 2, 41)
    reach = 12 * std / alpha_bar**0.5  # the data lie within ±3, in units of their size
    low, high = (np.clip(x_t / alpha_bar**0.5 + side, -3 * size, 3 * size) for side in (-reach, reach))
    x_0 = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 3001)
    data = (weight * np.exp(log_normal(x_0[..., None], size * mean, size**2 * var))).sum(-1)
    joint = np.exp(log_normal(x_t[:, None], alpha_bar**0.5 * x_0, 1 - alpha_bar)) * data
    return x_t, (joint * x_0).sum(1) / joint.sum(1)


@check("6.11", "Tweedie's formula", "identity", "quadrature of E[x_0|x_t] over the data", to=1e-8)
@until(1e-7)
def tweedie(f):
    """f(x_t, score, alpha_bar) returns E[x_0|x_t]."""
    for alpha_bar, size in SHARES:
        x_t, exact = copy.deepcopy(denoised_by_quadrature(alpha_bar, size))
        score = score_of_mixture(x_t, alpha_bar, size)
        yield disturbs(f, x_t, score, alpha_bar)
        yield off(f(x_t, score, alpha_bar), exact, size)


@tweedie.states
def _(x_t, score, alpha_bar):
    return (x_t + (1 - alpha_bar) * score) / alpha_bar**0.5


@tweedie.wrong(
    "against the slope: x_t − (1 − ᾱ)·score",
    seen="no public source: a plausible slip (a sign lost between score and noise)",
    idea="sign",
)
def _(x_t, score, alpha_bar):
    return (x_t - (1 - alpha_bar) * score) / alpha_bar**0.5


@tweedie.wrong(
    "the root of 1 − ᾱ", seen="no public source: a plausible slip (score and noise estimate mixed up)", idea="power"
)
def _(x_t, score, alpha_bar):
    return (x_t + (1 - alpha_bar) ** 0.5 * score) / alpha_bar**0.5


@tweedie.wrong(
    "not divided by √ᾱ_t",
    seen="no public source: a plausible slip (the formula for data that are not shrunk)",
    idea="term",
)
def _(x_t, score, alpha_bar):
    return x_t + (1 - alpha_bar) * score


@tweedie.wrong("ᾱ_t of at least 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(x_t, score, alpha_bar):
    return (x_t + (1 - alpha_bar) * score) / max(alpha_bar, 1e-8) ** 0.5


@tweedie.wrong("clipped to ±10", seen="no public source: images are in [−1, 1], other data are not", idea="edge")
def _(x_t, score, alpha_bar):
    return ((x_t + (1 - alpha_bar) * score) / alpha_bar**0.5).clip(-10, 10)


def some_score(x):
    """Any function will do for a model of the score."""
    return 0.4 - 1.1 * x + 0.2 * x**2


@check("6.12", "denoising score matching", "identity", "quadrature over the noisy data", to=1e-8)
@until(1e-7)
def score_matching(f):
    """f(denoising, conditional, marginal) returns E(s − ∇log q(x_t))².

    denoising: E(s − ∇log q(x_t|x_0))²; conditional: E(∇log q(x_t|x_0))²; marginal: E(∇log q(x_t))².
    """
    for alpha_bar, size in SHARES:
        x, q, truth = grid_of_x_t(alpha_bar, size)
        _, eps, weights, x_t = pairs_of_mixture(alpha_bar, size)
        given_x_0 = -eps / (1 - alpha_bar) ** 0.5
        width = max(size, (1 - alpha_bar) ** 0.5)
        denoising = (weights * (some_score(x_t / width) / width - given_x_0) ** 2).sum()
        got = f(denoising, (weights * given_x_0**2).sum(), (q * truth**2).sum())
        exact = (q * (some_score(x / width) / width - truth) ** 2).sum()
        yield off(float(got), exact, max(1.0, 1 / width**2))


@score_matching.states
def _(denoising, conditional, marginal):
    return denoising - conditional + marginal


@score_matching.wrong(
    "the two losses said to be equal", seen="no public source: a plausible slip (the constant, forgotten)", idea="claim"
)
def _(denoising, conditional, marginal):
    return denoising


@score_matching.wrong(
    "the marginal score's part forgotten",
    seen="no public source: a plausible slip (the constant, half of it)",
    idea="term",
)
def _(denoising, conditional, marginal):
    return denoising - conditional


@score_matching.wrong("the constant's sign turned", seen="no public source: a plausible slip", idea="sign")
def _(denoising, conditional, marginal):
    return denoising + conditional - marginal


@score_matching.wrong("no term above 100", seen="no public source: a clamp against the scores of small t", idea="edge")
def _(denoising, conditional, marginal):
    return min(denoising, 100) - min(conditional, 100) + min(marginal, 100)


BLOBS = GaussianMixture(
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    torch.tensor([[-0.7, 0.1], [0.6, 0.6], [0.3, -0.8]], dtype=torch.float64),
    torch.tensor([[0.3, 0.1], [0.2, 0.25], [0.15, 0.4]], dtype=torch.float64),
)


def noise_by_quadrature(mixture, x_t, scale, std):
    """E[ε|x_t] and the log-density of x_t, component by component (K, D) and (K,), for one point x_t (D,).

    The components' dimensions are independent, so each is a quadrature over x_0 on a line: around its peak, in
    logarithms, so that nothing underflows.
    """
    K, D = mixture.mean.shape
    mean, var = (v.flatten().numpy()[:, None] for v in (mixture.mean, mixture.var))
    x_t = x_t.repeat(K).numpy()[:, None]

    def log_joint(x_0):
        return log_normal(x_0, mean, var) + log_normal(x_t, scale * x_0, std**2)

    ends = np.sort([mean[:, 0], x_t[:, 0] / scale], 0)  # the peak lies between data and likelihood
    width = np.minimum(var**0.5, std / scale)
    x_0 = peak(log_joint, *ends)[:, None] + width * np.linspace(-9, 9, 601)
    log_p = log_joint(x_0)
    total = logsumexp(log_p, axis=1, keepdims=True)
    eps = (np.exp(log_p - total) * (x_t - scale * x_0) / std).sum(1)
    log_area = (total + np.log(width * 18 / 600))[:, 0]
    return eps.reshape(K, D), mixture.weight.log().numpy() + log_area.reshape(K, D).sum(1)


def exact_noise(parts, labels):
    """E[ε|x_t] of points whose components are given, as by `noise_by_quadrature`; K stands for no label."""
    rows = []
    for (eps, log_p), label in zip(parts, labels.tolist(), strict=True):
        rows.append(eps[label] if label < len(eps) else np.exp(log_p - logsumexp(log_p)) @ eps)
    return torch.from_numpy(np.array(rows))


def noise_on_a_plane(mixture, schedule, x_t, t):
    """The same for D = 2, on a grid of ε: no component by itself, and nothing assumed but their density."""
    scale, std = (v[t][:, None] for v in (walk(schedule)[0], walk(schedule)[1].sqrt()))
    line = torch.linspace(-9, 9, 201, dtype=torch.float64)
    eps, exact = torch.cartesian_prod(line, line), []
    for x, a, b in zip(x_t, scale, std, strict=True):
        x_0 = (x - b * eps) / a  # the image that goes with each noise
        density = mixture.weight * log_density(x_0[:, None], mixture.mean, mixture.var).sum(-1).exp()
        share = density.sum(1) * torch.exp(-0.5 * eps.square().sum(1))
        exact.append((share[:, None] * eps).sum(0) / share.sum())
    return torch.stack(exact)


def random_mixture(K, D, size=1.0, spread=0.5, seed=0):
    """K components in D dimensions, no two alike: means of about `size`, deviations of about size·spread."""
    random = np.random.default_rng(seed)
    weight, mean = random.dirichlet(np.full(K, 5.0)), size * random.standard_normal((K, D))
    var = (size * spread * random.uniform(0.5, 1.5, (K, D))) ** 2
    return GaussianMixture(*(torch.from_numpy(v) for v in (weight, mean, var)))


@functools.cache
def denoiser_cases():
    """Cases (mixture, schedule, x_t, t, [(labels, E[ε|x_t])]); first come labels that stand for none."""
    random, found = np.random.default_rng(9), []
    for mixture, schedule, t, reach in (
        (random_mixture(3, 3), SHORT, [4, 1, 2], 1.0),  # first: here a wrong axis gives numbers, not an error
        (BLOBS, SHORT, [1, 3, 2, 4], 40.0),  # far from all data, where densities are 0 in floating point
        (BLOBS, SHORT, [2, 1, 4], 1000.0),
        (random_mixture(1, 1), ONE, [1, 1], 1.0),
        (random_mixture(2, 1), TINY, [1, 3], 1.0),
        (random_mixture(4, 2, size=40.0, spread=0.2), TWO, [2, 1, 2], 1.0),
        (random_mixture(3, 2, spread=1e-6), SHORT, [1, 2, 4], 1.0),  # all but points
        (random_mixture(3, 2, size=UNIT), FAINT, [1, 2], UNIT),
        (random_mixture(2, 2), STRONG, [2, 1, 3], 1.0),
        (random_mixture(3, 500, spread=2.0), SHORT, [3, 2], 2.0),  # as many numbers as an image: products underflow
        (random_mixture(3, 2), LONG, [1, 1000, 30, 400], 1.0),
    ):
        K, t = len(mixture.weight), torch.tensor(t)
        x_t = torch.from_numpy(reach * random.standard_normal((len(t), mixture.mean.shape[1])))
        scale, std = walk(schedule)[0], walk(schedule)[1].sqrt()
        parts = [noise_by_quadrature(mixture, x, *map(float, (scale[s], std[s]))) for x, s in zip(x_t, t, strict=True)]
        labels = torch.arange(len(t)).flip(0) % (K + 1)
        every = torch.full_like(t, K), labels, (labels + 1) % (K + 1)
        found.append((mixture, schedule, x_t, t, [(some, exact_noise(parts, some)) for some in every]))
    return found


@check("6.13", "exact denoiser", "implementation", "quadrature over the noise, and over the data", to=1e-9)
@until(1e-8)
def exact_denoiser(f):
    """f(mixture, schedule) returns a function of (x_t, t), and of (x_t, t, labels) if it can, which is E[ε|x_t]."""
    for mixture, schedule, x_t, t, with_labels in copy.deepcopy(denoiser_cases()):
        denoiser, exact = f(mixture, schedule), with_labels[0][1]
        yield disturbs(lambda m, s, *given: f(m, s)(*given), mixture, schedule, x_t, t)
        yield off(denoiser(x_t, t), exact, 1 + exact.abs())
        yield off(denoiser(x_t[-1:], int(t[-1])), exact[-1:], 1 + exact[-1:].abs())
        if takes(denoiser, 3):
            for labels, exact in with_labels:
                yield off(denoiser(x_t, t, labels), exact, 1 + exact.abs())
                yield off(denoiser(x_t[-1:], int(t[-1]), labels[-1:]), exact[-1:], 1 + exact[-1:].abs())
    t = torch.tensor([1, 3, 2, 4])
    x_t = torch.tensor([[0.2, -0.4], [-0.9, 0.3], [0.5, 0.7], [-0.3, -1.2]], dtype=torch.float64)
    exact = noise_on_a_plane(BLOBS, SHORT, x_t, t)
    yield off(f(BLOBS, SHORT)(x_t, t), exact)
    single = f(BLOBS, SHORT)(x_t.float(), t)  # in single precision, as x_t
    yield off(single, exact, 1e4) if single.dtype == torch.float32 else math.inf


@exact_denoiser.wrong(
    "components treated as points",
    seen="no public source: a plausible slip (the formula for a finite data set, used for blobs)",
    idea="term",
)
def _(mixture, schedule):
    points = GaussianMixture(mixture.weight, mixture.mean, torch.full_like(mixture.var, 1e-9))
    return ExactDenoiser(points, schedule)


@exact_denoiser.wrong(
    "all components count the same",
    seen="no public source: a plausible slip (mixture weights left out of Bayes' rule)",
    idea="term",
)
def _(mixture, schedule):
    equal = torch.full_like(mixture.weight, 1 / len(mixture.weight))
    return ExactDenoiser(GaussianMixture(equal, mixture.mean, mixture.var), schedule)


@exact_denoiser.wrong(
    "the estimate of x_0 in the place of ε",
    seen="no public source: a plausible slip (x_0- and ε-prediction mixed up)",
    idea="exchange",
)
def _(mixture, schedule):
    return ExactDenoiser(mixture, schedule).x_0_hat


@exact_denoiser.wrong(
    "minus the score, not scaled by √(1 − ᾱ_t)",
    seen="no public source: a plausible slip (score and noise estimate mixed up)",
    idea="term",
)
def _(mixture, schedule):
    exact = ExactDenoiser(mixture, schedule)
    return lambda x_t, t: exact(x_t, t) / (1 - schedule.alpha_bar[t]).sqrt()[:, None]


@exact_denoiser.wrong(
    "the likeliest component only",
    seen="no public source: a plausible slip (a hard assignment in the place of the average)",
    idea="exchange",
)
def _(mixture, schedule):
    exact = ExactDenoiser(mixture, schedule)

    def hard(x_t, t):
        noisy = [mixture.diffused(schedule, int(step)) for step in t]
        k = [int(m.component_log_density(x[None]).argmax()) for m, x in zip(noisy, x_t, strict=True)]
        return exact(x_t, t, torch.tensor(k))

    return hard


def _shares_from(densities):
    """The denoiser whose components count by densities(weight, difference, variance), (n, K), which need no sum."""

    def denoiser(mixture, schedule):
        def eps(x_t, t):
            t = torch.as_tensor(t).reshape(-1, 1)
            a = schedule.alpha_bar[t][:, None]
            var, difference = a * mixture.var + 1 - a, x_t[:, None] - a.sqrt() * mixture.mean
            share = densities(mixture.weight, difference, var)
            each = mixture.mean + a.sqrt() * mixture.var / var * difference
            x_0 = (share / share.sum(1, keepdim=True))[..., None] * each
            return (x_t - a[:, 0].sqrt() * x_0.sum(1)) / (1 - a[:, 0]).sqrt()

        return eps

    return denoiser


@exact_denoiser.wrong(
    "densities as they are, no log-sum-exp", seen="no public source: 0/0 far from all data", idea="edge"
)
def _(mixture, schedule):
    return _shares_from(lambda w, x, v: w * log_density(x, 0.0, v).exp().prod(-1))(mixture, schedule)


@exact_denoiser.wrong("densities of at least 1e-30", seen="no public source: an ε against 0/0", idea="edge")
def _(mixture, schedule):
    return _shares_from(lambda w, x, v: w * log_density(x, 0.0, v).exp().prod(-1) + 1e-30)(mixture, schedule)


@exact_denoiser.wrong("variances of at least 1e-4", seen="no public source: a clamp “for stability”", idea="edge")
def _(mixture, schedule):
    return ExactDenoiser(GaussianMixture(mixture.weight, mixture.mean, mixture.var.clamp(min=1e-4)), schedule)


@exact_denoiser.wrong(
    "labels are not read", seen="no public source: an argument that is accepted and forgotten", idea="term"
)
def _(mixture, schedule):
    exact = ExactDenoiser(mixture, schedule)
    return lambda x_t, t, labels=None: exact(x_t, t)


@check("6.14", "loss above its floor", "identity", "quadrature over data and noise", to=1e-8)
@until(1e-7)
def floor(f):
    """f(alpha_bar, fisher, distance) returns E(ε − ε_θ)² for one number of an image.

    fisher: E(∇log q(x_t))²; distance: E(ε* − ε_θ)², from the exact denoiser.
    """
    for gain in (1.0, 30.0):
        for alpha_bar, size in SHARES:
            x, q, truth = grid_of_x_t(alpha_bar, size)
            width = max(size, (1 - alpha_bar) ** 0.5)
            distance = (q * (-((1 - alpha_bar) ** 0.5) * truth - gain * some_score(x / width)) ** 2).sum()
            _, eps, weights, x_t = pairs_of_mixture(alpha_bar, size)
            loss = (weights * (eps - gain * some_score(x_t / width)) ** 2).sum()
            yield off(float(f(alpha_bar, (q * truth**2).sum(), distance)), loss, max(1.0, loss / 10))


@floor.states
def _(alpha_bar, fisher, distance):
    return 1 - (1 - alpha_bar) * fisher + distance


@floor.wrong(
    "no floor: a perfect network has loss 0",
    seen="no public source: a plausible slip (a loss near 1 at small t taken for a failure)",
    idea="claim",
)
def _(alpha_bar, fisher, distance):
    return distance


@floor.wrong(
    "the floor is 1: noise cannot be predicted",
    seen="no public source: a plausible slip (E ε² taken for Var(ε|x_t))",
    idea="claim",
)
def _(alpha_bar, fisher, distance):
    return 1 + distance


@floor.wrong(
    "the score's mean square is not scaled",
    seen="no public source: a plausible slip (score and noise estimate mixed up)",
    idea="term",
)
def _(alpha_bar, fisher, distance):
    return 1 - fisher + distance


@floor.wrong("a floor of at least 0.01", seen="no public source: a clamp “for stability”", idea="edge")
def _(alpha_bar, fisher, distance):
    return max(1 - (1 - alpha_bar) * fisher, 0.01) + distance


@floor.wrong("distances of at most 10", seen="no public source: a clamp against outliers", idea="edge")
def _(alpha_bar, fisher, distance):
    return 1 - (1 - alpha_bar) * fisher + min(distance, 10)
