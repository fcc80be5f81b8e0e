"""The checks of chapter 2: the VAE and its bound. The routes are quadratures, exact moments and joint covariances."""

import functools
from fractions import Fraction

import numpy as np
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import UNITS, hermite, log_normal, zoom
from ddpm_lib.checks.guard import STENCIL, Watched, apart_each, relative, slope_gap, until

DOUBLE = torch.float64


@check("2.1", "signed pixels", "implementation", "exact fractions, for whole numbers and for floats", to=1e-6)
@until(1e-5)
def pixels(f):
    """f(images, white) returns the scaled images."""
    f, random = Watched(f), np.random.default_rng(0)
    for white, dtype, shape in (
        (255, torch.uint8, (3, 1, 4, 5)),
        (255, torch.float64, (3, 1, 4, 5)),
        (16, torch.float64, (3, 1, 4, 5)),
        (16, torch.int64, (2, 3, 4, 4)),
        (16, torch.uint8, (2, 3, 4, 4)),
        (15, torch.uint8, (2, 2, 3)),
        (32767, torch.int16, (1, 1, 5, 4)),
        (65535, torch.int32, (2, 4, 3, 5)),
        (1, torch.float64, (1, 2, 4, 3)),
        (200.5, torch.float32, (7,)),
    ):
        levels = random.integers(white // 5, white - white // 9, shape)  # neither black nor white occurs
        if dtype.is_floating_point:  # but here both do, and shades in between
            levels = levels * 0.75
            levels.ravel()[:2] = 0, white
        exact = [float(2 * Fraction(level) / Fraction(white) - 1) for level in levels.ravel().tolist()]
        got = f(torch.from_numpy(levels).to(dtype), white)
        yield apart(got, torch.tensor(exact, dtype=DOUBLE).reshape(shape))
    for level, expected in ((0, -1), (255, 1), (51, -0.6)):  # of one shade alone
        yield apart(f(torch.full((2, 1, 3, 3), level, dtype=torch.uint8), 255), torch.full((2, 1, 3, 3), expected))
    yield f.fault


@pixels.wrong(
    "scaled twice: the data lie in [−3, 1]",
    seen="no public source: a plausible slip (denoising-diffusion-pytorch scales to [−1, 1] by itself)",
    idea="term",
)
def _(images, white):
    return 2 * (images.double() / white * 2 - 1) - 1


@pixels.wrong(
    "left in [0, 1]: grey where there should be black",
    seen="labmlai/annotated_deep_learning_paper_implementations issue 241",
    idea="term",
)
def _(images, white):
    return images.double() / white


@pixels.wrong(
    "divided by the number of levels, 256, instead of by the level of white",
    seen="Daniil-Osokin/lightweight-human-pose-estimation.pytorch issue 140",
    idea="time",
)
def _(images, white):
    return images.double() / (white + 1) * 2 - 1


@pixels.wrong("doubled as bytes, which overflow", seen="no public source: a plausible slip", idea="edge")
def _(images, white):
    return images * 2 / white - 1


@pixels.wrong(
    "each batch stretched to its own darkest and brightest pixel",
    seen="no public source: a plausible slip (“normalise” in plotting code)",
    idea="exchange",
)
def _(images, white):
    low, high = images.double().aminmax()
    return (images.double() - low) / (high - low) * 2 - 1


@pixels.wrong(
    "the batch's mean removed, and divided by its standard deviation",
    seen="no public source: a plausible slip (code for classifiers)",
    idea="exchange",
)
def _(images, white):
    return (images.double() - images.double().mean()) / images.double().std()


# x ~ N(a·z² + b·z + c, s), z ~ N(0, 1), and q(z|x) = N(m, v): the posterior of some has two bumps.


@pixels.wrong("to [−½, ½]", seen="IBM/BAGAN issue 9", idea="term")
def _(images, white):
    return images.double() / white - 0.5


@pixels.wrong(
    "255 is taken for white in every image of bytes",
    seen="no public source: right until white is another level",
    idea="exchange",
)
def _(images, white):
    return images.double() / (255 if images.dtype == torch.uint8 else white) * 2 - 1


@pixels.wrong(
    "shades between whole levels are cut off", seen="no public source: resized images cast to integers", idea="edge"
)
def _(images, white):
    return images.long().double() / white * 2 - 1


@pixels.wrong(
    "floats are scaled where they lie: the data set is overwritten",
    seen="no public source: mul_ and sub_",
    idea="state",
)
def _(images, white):
    if not images.is_floating_point():
        return images.double() / white * 2 - 1
    return images.mul_(2 / white).sub_(1)


CURVED = [  # a, b, c, s, x, m, v
    (0.6, 0.5, -0.4, 0.2, 0.7, 0.8, 0.15),
    (0.6, 0.5, -0.4, 0.2, 0.7, -1.1, 0.6),
    (-0.3, 1.2, 0.2, 0.5, -0.9, -0.4, 0.35),
    (0.2, -0.7, 0.1, 0.3, 1.3, -0.9, 0.25),
    (0.0, 0.3, 0.0, 2.0, 14.0, 1.2, 0.7),  # an x that nobody would expect: p(x) is 4e-21
    (0.05, 0.1, 0.2, 0.004, 0.22, 0.1, 0.3),  # p(x) and the bound lie above 1 and 0
    (0.0, 0.75, 0.1, 0.4375, 0.9, 0.6, 0.4375),  # q is the posterior
    (0.0, 1.0, 0.0, 0.02, 1.5, -2.0, 0.3),  # and here far from it
]
Z = np.linspace(-10, 10, 8001)
STRETCH = np.linspace(-2, 2, 4001)
GRIDS = (  # z and dz: an even grid, and one that is finer in the middle
    (Z, Z[1] - Z[0]),
    (2.7 * np.sinh(STRETCH), 2.7 * np.cosh(STRETCH) * (STRETCH[1] - STRETCH[0])),
)


def log_joint(case, z=Z):
    """log p(x, z) on a grid of z."""
    a, b, c, s, x, _, _ = case
    return log_normal(x, a * z**2 + b * z + c, s) + log_normal(z, 0, 1)


def log_evidence(case):
    """log p(x), by quadrature over z."""
    return float(np.log(np.trapezoid(np.exp(log_joint(case)), Z)))


def bound_by_moments(case):
    """E_q[log p(x, z) − log q(z|x)] without a grid, from the moments E[ε²] = 1 and E[ε⁴] = 3 of z = m + √v·ε."""
    a, b, c, s, x, m, v = case
    r_0, r_1, r_2 = x - a * m**2 - b * m - c, -(2 * a * m + b) * v**0.5, -a * v  # residual r_0 + r_1·ε + r_2·ε²
    square = r_0**2 + r_1**2 + 3 * r_2**2 + 2 * r_0 * r_2
    decoder = -0.5 * (square / s + np.log(2 * np.pi * s))
    prior = -0.5 * (m**2 + v + np.log(2 * np.pi))
    entropy = 0.5 * (1 + np.log(2 * np.pi * v))
    return decoder + prior + entropy


@check("2.2", "evidence lower bound", "identity", "quadrature of p(x), and moments of a curved model", to=1e-9)
@until(1e-8)
def lower_bound(f):
    """f(log_joint, log_q, weight), on a grid of z with weight = q(z|x)·dz, returns log p(x) and its lower bound."""
    f = Watched(f)
    for case in CURVED:
        for z, dz in GRIDS:
            log_q = log_normal(z, case[5], case[6])
            got = [float(v) for v in f(log_joint(case, z), log_q, np.exp(log_q) * dz)]
            yield apart(np.array(got), np.array([log_evidence(case), bound_by_moments(case)]))
    yield f.fault


@lower_bound.states
def _(log_joint, log_q, weight):
    log_ratio = log_joint - log_q
    return np.log((weight * np.exp(log_ratio)).sum()), (weight * log_ratio).sum()


@lower_bound.wrong(
    "= in place of ≥: log p(x) is said to be E_q[log p/q]",
    seen="probml/pml2-book issue 87, in its chapter on diffusion",
    idea="claim",
)
def _(log_joint, log_q, weight):
    bound = (weight * (log_joint - log_q)).sum()
    return bound, bound


@lower_bound.wrong(
    "−log q is left out of the bound: q's entropy is lost", seen="no public source: a plausible slip", idea="term"
)
def _(log_joint, log_q, weight):
    return np.log((weight * np.exp(log_joint - log_q)).sum()), (weight * log_joint).sum()


@lower_bound.wrong(
    "≤ in place of ≥: the sides are swapped",
    seen="no public source: a plausible slip (the inequality of convex functions, used for log)",
    idea="sign",
)
def _(log_joint, log_q, weight):
    log_ratio = log_joint - log_q
    return (weight * log_ratio).sum(), np.log((weight * np.exp(log_ratio)).sum())


@lower_bound.wrong("q is subtracted, not log q", seen="probml/pml2-book issue 23", idea="power")
def _(log_joint, log_q, weight):
    evidence = np.log((weight * np.exp(log_joint - log_q)).sum())
    return evidence, (weight * (log_joint - np.exp(log_q))).sum()


@lower_bound.wrong("1e-12 is added to p(x) before the logarithm", seen="no public source: against log 0", idea="edge")
def _(log_joint, log_q, weight):
    log_ratio = log_joint - log_q
    return np.log((weight * np.exp(log_ratio)).sum() + 1e-12), (weight * log_ratio).sum()


@check(
    "2.3", "gap of the evidence lower bound", "identity", "quadrature of p(x) minus moments of a curved model", to=1e-9
)
@until(1e-8)
def gap(f):
    """f(log_q, log_posterior, log_prior, dz), log-densities on a grid of z, returns log p(x) − ELBO."""
    f = Watched(f)
    for case in CURVED:
        for z in (Z, np.linspace(-9, 8.5, 2001)):
            log_q, evidence = log_normal(z, case[5], case[6]), log_evidence(case)
            got = float(f(log_q, log_joint(case, z) - evidence, log_normal(z, 0, 1), z[1] - z[0]))
            yield abs(got - (evidence - bound_by_moments(case)))
    yield f.fault


@gap.states
def _(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_q) * (log_q - log_posterior)).sum() * dz


@gap.wrong(
    "the divergence's arguments swapped",
    seen="no public source: a plausible slip (KL taken for symmetric)",
    idea="exchange",
)
def _(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_posterior) * (log_posterior - log_q)).sum() * dz


@gap.wrong(
    "the divergence to the prior",
    seen="no public source: a plausible slip (the KL of Eq. 2.4 taken for that of Eq. 2.3)",
    idea="exchange",
)
def _(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_q) * (log_q - log_prior)).sum() * dz


@gap.wrong("in bits", seen="no public source: a plausible slip (log2 taken for log)", idea="exchange")
def _(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_q) * (log_q - log_posterior)).sum() * dz / np.log(2)


@gap.wrong("a log-ratio of at most 100", seen="no public source: a clamp for stability", idea="edge")
def _(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_q) * (log_q - log_posterior).clip(max=100)).sum() * dz


@gap.wrong(
    "the spacing of one grid for all grids",
    seen="no public source: a number in the place of a variable",
    idea="exchange",
)
def _(log_q, log_posterior, log_prior, dz):
    return (np.exp(log_q) * (log_q - log_posterior)).sum() * (Z[1] - Z[0])


LINEAR = [(1, (1, 2, 2)), (2, (3,)), (2, (2, 1, 3)), (3, (1,)), (1, (1, 1, 1))]  # latents, shape of x


def linear_case(latents, shape, seed):
    """Batch x (B, *shape), encoder's mean and log_var (B, K), W (D, K), b (D,), decoder variance."""
    generator = torch.Generator().manual_seed(seed)
    size = int(np.prod(shape))
    x, mean, log_var = (torch.randn(4, n, generator=generator, dtype=DOUBLE) for n in (size, latents, latents))
    weight = torch.randn(size, latents, generator=generator, dtype=DOUBLE)
    bias = torch.randn(size, generator=generator, dtype=DOUBLE)
    return x.reshape(4, *shape), mean, log_var - 0.7, weight, bias, 0.3 + 0.2 * seed


def joint_of(weight, bias, decoder_var):
    """Mean and covariance of (z, x), from the linear map that makes them out of independent noise."""
    size, latents = weight.shape
    to_noise = torch.zeros(latents + size, latents + size, dtype=DOUBLE)
    to_noise[:latents, :latents] = torch.eye(latents)
    to_noise[latents:, :latents] = weight
    to_noise[latents:, latents:] = decoder_var**0.5 * torch.eye(size, dtype=DOUBLE)
    return torch.cat([torch.zeros(latents, dtype=DOUBLE), bias]), to_noise @ to_noise.T


def given(mean, cov, latents, x):
    """log p(x) (B,), and the distribution of the first `latents` entries given that the others are x (B, D)."""
    evidence = MultivariateNormal(mean[latents:], cov[latents:, latents:]).log_prob(x)
    precision = torch.linalg.inv(cov)[:latents]  # conditional covariance: the inverse of this block
    posterior_cov = torch.linalg.inv(precision[:, :latents])
    posterior_cov = (posterior_cov + posterior_cov.T) / 2
    posterior_mean = mean[:latents] - (x - mean[latents:]) @ (posterior_cov @ precision[:, latents:]).T
    return evidence, MultivariateNormal(posterior_mean, posterior_cov)


# Mean and log-variance of q for one latent: the prior itself, nearly so, and values at which a clamp would bite.
ENCODED = [(0.0, 0.0), (1e-4, 2e-4), (-60.0, 0.3), (0.4, -8.0), (0.1, -21.0), (-0.3, -45.0), (1.0, 5.0), (0.2, 21.0)]


def kl_by_quadrature(mean, log_var):
    """KL(N(mean, e^log_var) ‖ N(0, 1)) for numbers."""
    u = np.linspace(-12, 12, 2401)  # q's own standard deviations
    log_ratio = log_normal(u, 0, 1) - log_var / 2 - log_normal(mean + np.exp(log_var / 2) * u, 0, 1)
    return float(np.trapezoid(np.exp(log_normal(u, 0, 1)) * log_ratio, u))


@check(
    "2.4",
    "reconstruction and KL",
    "implementation",
    "log p(x) minus the KL to the exact posterior, and its gradients",
    to=1e-9,
)
@until(1e-8)
def reconstruction_and_kl(f):
    """f(x, mean, log_var, decode, decoder_var, eps) returns reconstruction and KL, each (B,).

    Differences are relative to values of more than 1 nat.
    """
    f = Watched(f)
    for seed, (latents, shape) in enumerate(LINEAR):
        x, mean, log_var, weight, bias, decoder_var = linear_case(latents, shape, seed)
        leaves = [x, mean, log_var, weight, bias, torch.tensor(decoder_var, dtype=DOUBLE)]
        x, mean, log_var, weight, bias, var = (leaf.requires_grad_() for leaf in leaves)
        flat = x.flatten(1)

        q = MultivariateNormal(mean, torch.diag_embed(log_var.exp()))
        evidence, posterior = given(*joint_of(weight, bias, var), latents, flat)
        exact = evidence - kl_divergence(q, posterior)
        prior = Independent(Normal(torch.zeros_like(mean), 1.0), 1)
        exact_kl = kl_divergence(Independent(Normal(mean, log_var.exp() ** 0.5), 1), prior)
        slopes = torch.autograd.grad(exact.sum(), leaves)

        nodes, weights = hermite(4, latents)  # exact: with a linear decoder the bound is quadratic in eps
        B, N = len(x), len(nodes)
        rows = [v.repeat_interleave(N, 0) for v in (x, mean, log_var)]
        both = f(
            *rows,
            lambda z, w=weight, b=bias, s=x.shape: (z @ w.T + b).reshape(-1, *s[1:]),
            var,
            nodes.repeat(B, 1),
        )
        parts = [part.reshape(B, N) @ weights for part in both]
        got = parts[0] - parts[1]
        linked = got.sum() + 0 * mean.sum()  # with something to differentiate, if f let no gradient through
        got_slopes = torch.autograd.grad(linked, leaves, allow_unused=True, materialize_grads=True)
        yield largest(apart(got, exact), apart_each(got_slopes, slopes))
        yield apart(both[1], exact_kl.repeat_interleave(N))  # in closed form: the same for every eps

        eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
        x, mean, log_var, weight, bias = (leaf.detach() for leaf in leaves[:5])

        def curved(z, w=weight, b=bias, s=x.shape):
            return torch.sin(z @ w.T + b).reshape(-1, *s[1:])

        center = curved(mean + (log_var.exp() ** 0.5) * eps)
        by_pixel = decoder_var * torch.linspace(0.4, 1.7, flat.shape[1], dtype=DOUBLE).reshape(x.shape[1:])
        by_example = torch.linspace(0.3, 2.1, B, dtype=DOUBLE).reshape(B, *[1] * (x.ndim - 1))
        for var in (by_pixel, by_example, 1e-6, 1e4):
            sample = log_normal(x.numpy(), center.numpy(), np.asarray(var)).reshape(B, -1).sum(1)
            yield relative(f(x, mean, log_var, curved, var, eps)[0], torch.from_numpy(sample), 1.0)
            for i in (0, B - 1):  # one image alone
                alone = var[i : i + 1] if var is by_example else var
                got = f(x[i : i + 1], mean[i : i + 1], log_var[i : i + 1], curved, alone, eps[i : i + 1])
                yield relative(got[0], sample[i : i + 1], 1.0)
                yield apart(got[1], exact_kl[i : i + 1])

    x, eps = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(2), dtype=DOUBLE) * 1e-7
    for m, v in ENCODED:
        mean, log_var = (torch.full((1, 2), value, dtype=DOUBLE) for value in (m, v))
        center = np.sin(m + np.exp(v / 2) * eps[:, :2].numpy() * 1e7) if v < 6 else np.zeros((1, 2))
        got = f(x, mean, log_var, lambda z, big=v >= 6: torch.cat(2 * [1e-7 * torch.sin(z) * (not big)], 1), 1e-14,
                eps[:, :2] * 1e7)  # fmt: skip
        sample = log_normal(x.numpy(), 1e-7 * np.concatenate([center, center], 1), 1e-14).sum(1)
        yield relative(got[0], sample, 1.0)
        yield relative(got[1], [2 * kl_by_quadrature(m, v)], 1.0)
    yield f.fault


def _reconstruction(x, z, decode, decoder_var, reduce=torch.sum):
    return reduce(Normal(decode(z), decoder_var**0.5).log_prob(x).flatten(1), 1)


def _kl(mean, log_var):
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)


def _z(mean, log_var, eps):
    return mean + (log_var / 2).exp() * eps


@reconstruction_and_kl.wrong("the sign of the KL: the bound adds it", seen="EderSantana/gumbel issue 3", idea="sign")
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), -_kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "the divergence's arguments swapped: KL(p(z) ‖ q(z|x))",
    seen="no public source: a plausible slip (KL taken for symmetric)",
    idea="exchange",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    kl = 0.5 * ((mean**2 + 1) / log_var.exp() - 1 + log_var).sum(1)
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), kl


@reconstruction_and_kl.wrong(
    "e^log_var is taken for a standard deviation",
    seen="rishikksh20/vae_tacotron2 issue 3; keras-team/keras PR 9972",
    idea="power",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, mean + log_var.exp() * eps, decode, decoder_var), _kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "the mean over pixels, not the sum: the KL weighs D times as much",
    seen="torch.nn.functional.mse_loss: its default reduction is 'mean'; orybkin/sigma-vae-pytorch PR 12",
    idea="axis",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var, torch.mean), _kl(mean, log_var)


@reconstruction_and_kl.wrong("the −1 of the KL is lost", seen="no public source: a plausible slip", idea="term")
def _(x, mean, log_var, decode, decoder_var, eps):
    kl = 0.5 * (mean**2 + log_var.exp() - log_var).sum(1)
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), kl


@reconstruction_and_kl.wrong(
    "squared error without the factor 1/(2·variance) and the constant",
    seen="no public source: a plausible slip (mse + KL)",
    idea="term",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return -(x - decode(_z(mean, log_var, eps))).square().flatten(1).sum(1), _kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "the sample is detached: no gradient reaches the encoder",
    seen="torch.distributions: .sample() passes no gradient, .rsample() does",
    idea="gradient",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, _z(mean, log_var, eps).detach(), decode, decoder_var), _kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "the KL by the one sample, too: right on average, but noisy",
    seen="no public source: a plausible slip (log q − log p in code)",
    idea="noise",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    z = _z(mean, log_var, eps)
    kl = (Normal(mean, log_var.exp() ** 0.5).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    return _reconstruction(x, z, decode, decoder_var), kl


@reconstruction_and_kl.wrong(
    "the constant ½·log(2π·variance) is left out",
    seen="no public source: a plausible slip (code whose variance is not learned)",
    idea="term",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    square = (x - decode(_z(mean, log_var, eps))).square() / decoder_var
    return -0.5 * square.flatten(1).sum(1), _kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "the mean is decoded, not a sample",
    seen="no public source: a plausible slip (the code of a plain autoencoder)",
    idea="noise",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, mean, decode, decoder_var), _kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "the mean over latents, not the sum", seen="mkusner/grammarVAE issue 2, keras-team/keras-io issue 270", idea="axis"
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), _kl(mean, log_var) / mean.shape[1]


@reconstruction_and_kl.wrong(
    "one KL for all: the sum over the batch", seen="EDAPINENUT/GNTPP issue 4, GlassyWing/nvae issue 3", idea="axis"
)
def _(x, mean, log_var, decode, decoder_var, eps):
    kl = _kl(mean, log_var).sum().expand(len(x))
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), kl


@reconstruction_and_kl.wrong(
    "−½ once, not once a latent", seen="of this kind: ericjang/draw issue 2, PR 6 (−T/2)", idea="term"
)
def _(x, mean, log_var, decode, decoder_var, eps):
    kl = _kl(mean, log_var) + 0.5 * (mean.shape[1] - 1)
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), kl


@reconstruction_and_kl.wrong("plus log_var in the KL, not minus", seen="FluxML/model-zoo PR 147", idea="sign")
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), _kl(mean, log_var) + log_var.sum(1)


@reconstruction_and_kl.wrong(
    "log_var is cut off at −30 and 20", seen="CompVis/stable-diffusion, DiagonalGaussianDistribution", idea="edge"
)
def _(x, mean, log_var, decode, decoder_var, eps):
    log_var = log_var.clamp(-30, 20)
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), _kl(mean, log_var)


@reconstruction_and_kl.wrong(
    "1e-8 is added inside the KL's logarithm",
    seen="hwalsuklee/tensorflow-mnist-CVAE issue 2, in the code it quotes",
    idea="edge",
)
def _(x, mean, log_var, decode, decoder_var, eps):
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - (log_var.exp() + 1e-8).log()).sum(1)
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), kl


@reconstruction_and_kl.wrong(
    "a KL of at least 0.001 nats", seen="no public source: free bits, called the bound", idea="edge"
)
def _(x, mean, log_var, decode, decoder_var, eps):
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), _kl(mean, log_var).clamp(min=1e-3)


@reconstruction_and_kl.wrong(
    "a decoder's variance of at least 1e-6", seen="no public source: a clamp for stability", idea="edge"
)
def _(x, mean, log_var, decode, decoder_var, eps):
    decoder_var = torch.as_tensor(decoder_var, dtype=DOUBLE).clamp(min=1e-6)
    return _reconstruction(x, _z(mean, log_var, eps), decode, decoder_var), _kl(mean, log_var)


SMOOTH = [  # f: (N, K) → (N,), and q's means and standard deviations
    (lambda z: torch.sin(2 * z[:, 0]) + 0.3 * z[:, 0] ** 3 + 1.5, [0.4], [0.7]),
    (lambda z: torch.exp(-0.5 * z[:, 0] ** 2) * z[:, 0] - 0.8, [-0.9], [1.3]),
    (lambda z: torch.cos(z[:, 0] - 2 * z[:, 1]) + 0.5 * z[:, 0] * z[:, 1] ** 2, [0.6, -0.3], [0.5, 0.9]),
]


def expectation(f, mean, std):
    """E[f(z)] for z ~ N(mean, std²), on a grid of z that does not move with them."""
    points = np.linspace(-12, 12, 241)
    z = np.stack([axis.ravel() for axis in np.meshgrid(*[points] * len(mean), indexing="ij")], axis=1)
    density = np.exp(sum(log_normal(z[:, k], mean[k], std[k] ** 2) for k in range(len(mean))))
    return float((density * f(torch.from_numpy(z)).numpy()).sum() * (points[1] - points[0]) ** len(mean))


def differences(f, mean, std, h=0.01):
    """The derivatives of E[f(z)] with respect to each mean and each standard deviation, by finite differences."""
    both, slopes = np.array([mean, std]), np.zeros((2, len(mean)))
    for i in np.ndindex(slopes.shape):
        for steps, factor in STENCIL:
            moved = both.copy()
            moved[i] += steps * h
            slopes[i] += factor * expectation(f, *moved) / h
    return torch.from_numpy(slopes)


@functools.cache
def exact_slopes():
    return [differences(*case) for case in SMOOTH]


def cubic(z):
    """z_1 + z_1² + z_2·z_3, whose expectation is m_1 + m_1² + s_1² + m_2·m_3: slopes that need no quadrature."""
    return z[:, 0] + z[:, 0] ** 2 + z[:, 1] * z[:, 2]


def unbiased(estimator):
    """How far the estimator's expectation, by Gauss–Hermite quadrature, is from the derivatives of E[f(z)].

    Yields distances; among them, how much an estimate depends on the other draws of its batch.
    """
    for (function, mean, std), exact in zip(SMOOTH, exact_slopes(), strict=True):
        eps, weight = hermite(48, len(mean))
        mean, std = torch.tensor([mean, std], dtype=DOUBLE)
        got = estimator(function, mean, std, eps)
        yield apart_each([weight @ part.detach() for part in got], exact)
        for rows in ([7], [len(eps) - 9, 3], [20, 21, 22]):
            yield apart_each(estimator(function, mean, std, eps[rows]), [part[rows] for part in got])
    eps, weight = hermite(4, 3)
    mean, std = torch.tensor([[0.5, -1.0, 1.5], [1.0, 0.5, 2.0]], dtype=DOUBLE)
    for unit, size in ((1.0, 1.0), (2.0**-40, 2.0**10), (2.0**12, 1.0)):  # of z, and of the function's values
        got = estimator(lambda z, u=unit, s=size: s * cubic(z / u), unit * mean, unit * std, eps)
        got = [unit / size * (weight @ part.detach()) for part in got]
        yield apart_each(got, ([2.0, 1.5, -1.0], [2.0, 0.0, 0.0]))


@check("2.5", "reparameterised gradient", "identity", "finite differences of a quadrature", to=1e-9)
@until(1e-8)
def reparameterised(f):
    """f(function, mean, std, eps) returns estimates (N, K) of the derivatives by mean and by std, one for each eps."""
    f = Watched(f)
    yield from unbiased(f)
    for function, mean, std in SMOOTH:  # it sees slopes only: a constant changes no estimate, not even of one eps
        arguments = *torch.tensor([mean, std], dtype=DOUBLE), hermite(5, len(mean))[0]
        lifted = f(lambda z, g=function: g(z) + 3.5, *arguments)
        yield apart_each(lifted, f(function, *arguments))
    yield f.fault


@check("2.6", "score-function gradient", "identity", "finite differences of a quadrature", to=1e-9)
@until(1e-8)
def score_function(f):
    """f(function, mean, std, eps) returns estimates (N, K) of the derivatives by mean and by std, one for each eps."""
    f = Watched(f)

    def sees_values_only(function, *arguments):
        return f(lambda z: function(z.detach()) + 0 * z.sum(1), *arguments)  # whose slope, by autograd, is 0

    yield from unbiased(f)
    yield from unbiased(sees_values_only)
    yield f.fault


def _slope(function, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


@reparameterised.states
def _(function, mean, std, eps):
    slope = _slope(function, mean + std * eps)
    return slope, slope * eps


@reparameterised.wrong(
    "the sample is detached, and the gradient 0",
    seen="torch.distributions: .sample() passes no gradient, .rsample() does",
    idea="gradient",
)
def _(function, mean, std, eps):
    return 0 * eps, 0 * eps


@reparameterised.wrong(
    "ε is missing in the derivative by the standard deviation", seen="no public source: a plausible slip", idea="term"
)
def _(function, mean, std, eps):
    slope = _slope(function, mean + std * eps)
    return slope, slope


@reparameterised.wrong(
    "the derivative by the log-variance, given as that by the deviation",
    seen="no public source: a plausible slip",
    idea="power",
)
def _(function, mean, std, eps):
    slope = _slope(function, mean + std * eps)
    return slope, slope * eps * std / 2


@reparameterised.wrong(
    "the slope at the mean, not at the sample",
    seen="no public source: a plausible slip (the code of a plain autoencoder)",
    idea="noise",
)
def _(function, mean, std, eps):
    slope = _slope(function, mean.expand_as(eps))
    return slope, slope * eps


@reparameterised.wrong(
    "the values are used, not the slopes: Eq. 2.6 under the name of Eq. 2.5",
    seen="no public source: a plausible slip",
    idea="exchange",
)
def _(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    return value * eps / std, value * (eps**2 - 1) / std


@reparameterised.wrong(
    "averaged over the batch, for every ε", seen="no public source: the estimate in the place of its terms", idea="axis"
)
def _(function, mean, std, eps):
    slope = _slope(function, mean + std * eps)
    return slope.mean(0).expand_as(eps), (slope * eps).mean(0).expand_as(eps)


@reparameterised.wrong(
    "a standard deviation of at least 1e-6", seen="no public source: a clamp for stability", idea="edge"
)
def _(function, mean, std, eps):
    slope = _slope(function, mean + std.clamp(min=1e-6) * eps)
    return slope, slope * eps


@score_function.states
def _(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    return value * eps / std, value * (eps**2 - 1) / std


@score_function.wrong(
    "the gradient of q, not of log q",
    seen="no public source: a plausible slip (a logarithm lost in copying)",
    idea="power",
)
def _(function, mean, std, eps):
    density = torch.exp(-0.5 * eps**2) / (2 * torch.pi) ** 0.5 / std
    value = function(mean + std * eps)[:, None]
    return value * density * eps / std, value * density * (eps**2 - 1) / std


@score_function.wrong(
    "the sample moves with q's parameters: ∂ log q is 0 and −1/σ",
    seen="tensorflow/tensorflow issue 7236",
    idea="gradient",
)
def _(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    return 0 * value * eps, -value / std + 0 * eps


@score_function.wrong(
    "the −1 is lost: the density's normalisation does not move", seen="no public source: a plausible slip", idea="term"
)
def _(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    return value * eps / std, value * eps**2 / std


@score_function.wrong(
    "f is differentiated too: both gradients are added",
    seen="no public source: a plausible slip (a loss whose z was not detached)",
    idea="gradient",
)
def _(function, mean, std, eps):
    z = mean + std * eps
    slope, value = _slope(function, z), function(z)[:, None]
    return value * eps / std + slope, value * (eps**2 - 1) / std + slope * eps


@score_function.wrong(
    "f is differentiated: Eq. 2.5 under the name of Eq. 2.6",
    seen="no public source: a plausible slip (autograd, where f has no slope)",
    idea="exchange",
)
def _(function, mean, std, eps):
    slope = _slope(function, mean + std * eps)
    return slope, slope * eps


@score_function.wrong("minus the mean of the same batch: biased by 1/n", seen="jsboige/CoursIA PR 15256", idea="axis")
def _(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    value = value - value.mean()
    return value * eps / std, value * (eps**2 - 1) / std


@score_function.wrong(
    "1e-8 is added to the standard deviation", seen="no public source: against a division by 0", idea="edge"
)
def _(function, mean, std, eps):
    value = function(mean + std * eps)[:, None]
    return value * eps / (std + 1e-8), value * (eps**2 - 1) / (std + 1e-8)


EVIDENCE = [  # latents, entries of x, factor of W, of x, decoder's variance
    (1, 4, 1.0, 1.0, 1.3),
    (2, 3, 1.0, 1.0, 1.5),
    (2, 6, 1.0, 1.0, 0.4),
    (1, 1, 1.0, 1.0, 0.7),
    (2, 1, 1.0, 1.0, 0.3),
    (2, 2, 1.0, 1.0, 2.0),
    (2, 3, 0.0, 1.0, 0.6),  # a decoder that does not listen: the posterior is the prior
    (1, 3, 1.0, 500.0, 0.8),  # an x far away
    (1, 2, 1.0, 1.0, 1e-5),  # and a decoder that is nearly sure of itself
    (1, 2, 1.0, 1.0, 1e7),
]


@functools.cache
def by_integration(i):
    """x (B, D), W, b and the decoder's variance; and for each x, log p(x), the posterior's mean and covariance."""
    latents, size, of_weight, of_x, var = EVIDENCE[i]
    generator = torch.Generator().manual_seed(i + 20)
    x, weight, bias = (
        torch.randn(*s, generator=generator, dtype=DOUBLE) for s in ((3, size), (size, latents), (size,))
    )
    x, weight, exact = of_x * x, of_weight * weight, []
    for row in x.numpy():

        def log_joint(z, row=row):
            center = z @ weight.numpy().T + bias.numpy()
            return log_normal(z, 0, 1).sum(1) + log_normal(row, center, var).sum(1)

        grid = zoom(lambda z: log_joint(z[:, None]), -3000, 3000) if latents == 1 else np.linspace(-9, 9, 241)
        z = np.stack([axis.ravel() for axis in np.meshgrid(*[grid] * latents, indexing="ij")], axis=1)
        log_p = log_joint(z)
        p = np.exp(log_p - log_p.max())
        evidence = log_p.max() + np.log(p.sum() * (grid[1] - grid[0]) ** latents)
        mean = p @ z / p.sum()
        exact.append((evidence, mean, (z - mean).T @ ((z - mean) * p[:, None]) / p.sum()))
    return x, weight, bias, var, exact


@check("2.7", "linear model's evidence", "implementation", "quadrature over z, in one and two dimensions", to=1e-9)
@until(1e-8)
def linear_evidence(f):
    """f(x, weight, bias, decoder_var) returns log p(x) (B,), and the posterior's means (B, K) and covariance (K, K).

    Differences are relative to a log p(x) of more than 1 nat.
    """
    f = Watched(f)
    for i in range(len(EVIDENCE)):
        x, weight, bias, var, exact = by_integration(i)
        for rows in (slice(None), slice(1, 2)):  # and one image alone
            for unit in (1.0, *UNITS):  # in another unit of x the density is another, and the code the same
                evidence, mean, cov = f(unit * x[rows], unit * weight, unit * bias, unit**2 * var)
                for j, (log_p, z, z_cov) in enumerate(exact[rows]):
                    yield relative(evidence[j] + x.shape[1] * np.log(unit), log_p, 1.0)
                    yield largest(apart(mean[j], z), apart(cov, z_cov))
                    yield relative(cov.diagonal(), z_cov.diagonal().copy())
    x, weight, bias, var, exact = by_integration(1)
    yield apart(f(x, weight, bias, torch.tensor(var, dtype=DOUBLE))[0], [part[0] for part in exact])
    yield slope_gap(f, x, weight, bias, torch.tensor(var, dtype=DOUBLE))
    yield f.fault


def _posterior(x, weight, bias, decoder_var, prior_precision=1.0):
    eye = torch.eye(weight.shape[1], dtype=DOUBLE)
    cov = torch.linalg.inv(prior_precision * eye + weight.T @ weight / decoder_var)
    return (x - bias) @ weight @ cov / decoder_var, cov


def _evidence(x, weight, bias, noise_cov):
    return MultivariateNormal(bias, weight @ weight.T + noise_cov).log_prob(x)


def _noise(x, decoder_var):
    return decoder_var * torch.eye(x.shape[1], dtype=DOUBLE)


@linear_evidence.wrong(
    "the decoder's variance is squared",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(x, weight, bias, decoder_var):
    evidence = _evidence(x, weight, bias, _noise(x, decoder_var**2))
    return evidence, *_posterior(x, weight, bias, decoder_var**2)


@linear_evidence.wrong(
    "the pixels are taken as independent: only W·Wᵀ's diagonal",
    seen="no public source: a plausible slip (p(x|z) mixed up with p(x))",
    idea="noise",
)
def _(x, weight, bias, decoder_var):
    var = weight.square().sum(1) + decoder_var
    return Normal(bias, var**0.5).log_prob(x).sum(1), *_posterior(x, weight, bias, decoder_var)


@linear_evidence.wrong(
    "the posterior without its prior: least squares",
    seen="no public source: a plausible slip (the pseudo-inverse as an encoder)",
    idea="term",
)
def _(x, weight, bias, decoder_var):
    evidence = _evidence(x, weight, bias, _noise(x, decoder_var))
    return evidence, *_posterior(x, weight, bias, decoder_var, prior_precision=0.0)


@linear_evidence.wrong(
    "log p(x|z) at the posterior's mean",
    seen="no public source: a plausible slip (the decoder's likelihood taken for the evidence)",
    idea="exchange",
)
def _(x, weight, bias, decoder_var):
    mean, cov = _posterior(x, weight, bias, decoder_var)
    return Normal(mean @ weight.T + bias, decoder_var**0.5).log_prob(x).sum(1), mean, cov


@linear_evidence.wrong(
    "the covariance without the decoder's variance: (I + Wᵀ·W)⁻¹",
    seen="no public source: a plausible slip",
    idea="term",
)
def _(x, weight, bias, decoder_var):
    evidence = _evidence(x, weight, bias, _noise(x, decoder_var))
    return evidence, *_posterior(x, weight, bias, 1.0)


# Chains x_0 → x_1 → … → x_T. Encoder x_t ~ N(a·x_{t−1}, b), decoder x_{t−1} ~ N(c·x_t + d, s), p(x_T) = N(m, v).


@linear_evidence.wrong(
    "1e-6 is added to the variances of x", seen="no public source: jitter, lest a Cholesky factor fail", idea="edge"
)
def _(x, weight, bias, decoder_var):
    evidence = _evidence(x, weight, bias, _noise(x, decoder_var + 1e-6))
    return evidence, *_posterior(x, weight, bias, decoder_var)


@linear_evidence.wrong("a log p(x) of at least −1000", seen="no public source: a clamp for stability", idea="edge")
def _(x, weight, bias, decoder_var):
    evidence = _evidence(x, weight, bias, _noise(x, decoder_var)).clamp(min=-1000)
    return evidence, *_posterior(x, weight, bias, decoder_var)


CHAINS = [  # x_0, [(a, b) for t = 1..T], [(c, d, s) for t = 1..T], (m, v)
    (0.7, [(0.9, 0.3), (0.6, 0.5)], [(0.8, 0.1, 0.4), (0.5, -0.3, 0.7)], (0.2, 0.8)),
    (-1.2, [(0.9, 0.2), (0.7, 0.4), (0.5, 0.6)], [(0.9, -0.2, 0.3), (0.6, 0.2, 0.5), (0.4, 0.1, 0.9)], (-0.1, 1.3)),
    (0.4, [(0.8, 0.36)], [(0.7, 0.15, 0.45)], (0.3, 0.6)),
    (0.1, [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4), (0.5, 0.5)], 5 * [(0.6, 0.1, 0.3)], (0.0, 1.0)),
    (30.0, [(0.9, 0.3), (0.6, 0.5)], [(0.2, 0.1, 0.01), (0.5, -0.3, 0.02)], (0.2, 0.05)),  # far from what p expects
    (0.02, [(0.5, 1e-4), (0.5, 2e-5)], [(2.0, 0.0, 1e-3), (2.0, 0.0, 2e-4)], (0.01, 1e-3)),  # densities above 1
]


def chain_exactly(case):
    """log p(x_0), and the bound as log p(x_0) − KL(q(x_1..x_T|x_0) ‖ p(x_1..x_T|x_0)), from covariance matrices."""
    x_0, encoder, decoder, (m, v) = case
    T = len(encoder)
    # p: x_T from noise, then down to x_0. Row t of `maps` gives x_t as a linear map of the T + 1 noises.
    mean, maps = torch.zeros(T + 1, dtype=DOUBLE), torch.zeros(T + 1, T + 1, dtype=DOUBLE)
    mean[T], maps[T, T] = m, v**0.5
    for t in range(T, 0, -1):
        c, d, s = decoder[t - 1]
        mean[t - 1], maps[t - 1] = c * mean[t] + d, c * maps[t]
        maps[t - 1, t - 1] = s**0.5
    order = [*range(1, T + 1), 0]
    p_mean, p_cov = mean[order], (maps @ maps.T)[order][:, order]
    evidence, posterior = given(p_mean, p_cov, T, torch.tensor([[x_0]], dtype=DOUBLE))
    # q: up from the known x_0
    mean, maps = torch.zeros(T + 1, dtype=DOUBLE), torch.zeros(T + 1, T + 1, dtype=DOUBLE)
    mean[0] = x_0
    for t, (a, b) in enumerate(encoder, start=1):
        mean[t], maps[t] = a * mean[t - 1], a * maps[t - 1]
        maps[t, t] = b**0.5
    q = MultivariateNormal(mean[1:], (maps @ maps.T)[1:, 1:])
    return float(evidence), float(evidence - kl_divergence(q, posterior))


@check("2.8", "bound of a chain", "identity", "log p(x_0) minus a KL, from covariance matrices", to=1e-9)
@until(1e-8)
def chain_bound(f):
    """f(log_p_end, log_p, log_q, weight) returns the bound, from values at N paths x_1..x_T with weights (N,).

    log_p_end: log p(x_T), (N,); log_p: log p(x_{t−1}|x_t), (T, N); log_q: log q(x_t|x_{t−1}), (T, N).
    Differences are relative to a bound of more than 1 nat.
    """
    f = Watched(f)
    for case in CHAINS:
        x_0, encoder, decoder, (m, v) = case
        for count in (3, 4):
            eps, weight = (part.numpy() for part in hermite(count, len(encoder)))
            path, log_q = [np.full(len(eps), x_0)], []
            for t, (a, b) in enumerate(encoder):
                path.append(a * path[-1] + b**0.5 * eps[:, t])
                log_q.append(log_normal(path[-1], a * path[-2], b))
            log_p = [log_normal(path[t], c * path[t + 1] + d, s) for t, (c, d, s) in enumerate(decoder)]
            got = float(f(log_normal(path[-1], m, v), np.stack(log_p), np.stack(log_q), weight))
            yield relative(got, chain_exactly(case)[1], 1.0)
    yield f.fault


@chain_bound.states
def _(log_p_end, log_p, log_q, weight):
    return weight @ (log_p_end + log_p.sum(0) - log_q.sum(0))


@chain_bound.wrong(
    "log p(x_T) twice, and minus log p(x_0|x_1)",
    seen="no public source: a plausible slip (the telescoped form of chapter 5, copied with a sign lost)",
    idea="term",
)
def _(log_p_end, log_p, log_q, weight):
    return weight @ (2 * log_p_end + log_p[1:].sum(0) - log_p[0] - log_q.sum(0))


@chain_bound.wrong(
    "the encoder's entropy is left out",
    seen="no public source: a plausible slip (“it has no parameters”: true, but it has a value)",
    idea="term",
)
def _(log_p_end, log_p, log_q, weight):
    return weight @ (log_p_end + log_p.sum(0))


@chain_bound.wrong(
    "the last step's encoder only, as if there were one latent",
    seen="no public source: a plausible slip (the bound of a VAE, copied)",
    idea="term",
)
def _(log_p_end, log_p, log_q, weight):
    return weight @ (log_p_end + log_p.sum(0) - log_q[-1])


@chain_bound.wrong(
    "the logarithm outside of the expectation: log p(x_0) itself",
    seen="no public source: a plausible slip (the line before Jensen’s inequality, copied)",
    idea="exchange",
)
def _(log_p_end, log_p, log_q, weight):
    return np.log(weight @ np.exp(log_p_end + log_p.sum(0) - log_q.sum(0)))


@chain_bound.wrong(
    "the first three steps of any chain", seen="no public source: a sum written out for one T", idea="axis"
)
def _(log_p_end, log_p, log_q, weight):
    return weight @ (log_p_end + log_p[:3].sum(0) - log_q[:3].sum(0))


@chain_bound.wrong("log-densities of at least −100", seen="no public source: a clamp for stability", idea="edge")
def _(log_p_end, log_p, log_q, weight):
    return weight @ (log_p_end + log_p.clip(min=-100).sum(0) - log_q.sum(0))
