"""The checks of chapter 1, Gaussians. The routes are quadrature on grids, scipy, differences and simulated draws."""

import functools
import math

import numpy as np
import torch
from scipy import integrate, special, stats

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.guard import Watched, apart_each, relative, slope_gap, until

RANDOM = np.random.default_rng(1)
MEAN_1, MEAN_2 = (RANDOM.uniform(-1.5, 1.5, shape) for shape in ((3, 1), (4,)))
VAR_1, VAR_2 = (RANDOM.uniform(0.2, 2.5, shape) for shape in ((1, 4), (3, 1)))
FOUR = [torch.from_numpy(values) for values in (MEAN_1, VAR_1, MEAN_2, VAR_2)]  # shapes that broadcast to (3, 4)
PAIRS = [((-0.7, 0.6), (0.4, 1.7)), ((1.2, 2.3), (-0.5, 0.3)), ((0.3, 0.8), (0.9, 0.8))]  # (mean, variance) twice
LINE = np.linspace(-16, 16, 6401)
UNITS = (2.0**-30, 2.0**10)  # factors of x: in another unit the same must hold, and what is added "for stability" shows


def normal(x, mean, var):
    """scipy's density, for the routes of all chapters."""
    return stats.norm.pdf(x, mean, np.sqrt(var))


def log_normal(x, mean, var):
    return stats.norm.logpdf(x, mean, np.sqrt(var))


def hermite(count, dimensions=1):
    """Gauss–Hermite nodes (N, dimensions) and weights (N,), N = count^dimensions, for expectations over N(0, I)."""
    node, weight = np.polynomial.hermite_e.hermegauss(count)
    nodes = np.stack([axis.ravel() for axis in np.meshgrid(*[node] * dimensions, indexing="ij")], axis=1)
    weights = np.prod(np.meshgrid(*[weight / weight.sum()] * dimensions, indexing="ij"), axis=0).ravel()
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def random_normal(D, seed):
    """A mean (D,) and a covariance (D, D) in which all entries are correlated, and no two variances alike."""
    random = np.random.default_rng(seed)
    factor = random.uniform(-0.5, 0.5, (D, D)) + np.diag(random.uniform(0.7, 1.3, D))
    return torch.from_numpy(random.uniform(-1, 1, D)), torch.from_numpy(factor @ factor.T)


def moments(density, points):
    """Mean (D,) and covariance (D, D) of a density, known up to a factor, at points (..., D) of an even grid."""
    weight, points = density.ravel() / density.sum(), points.reshape(-1, points.shape[-1])
    mean = weight @ points
    return mean, (weight[:, None] * (points - mean)).T @ (points - mean)


def zoom(log_density, low, high):
    """An even grid over that part of low..high in which a log-density with one peak is not negligible."""
    for _ in range(6):
        x = np.linspace(low, high, 4001)
        value = log_density(x)
        near = np.flatnonzero(value > value.max() - 100)
        low, high = x[max(near[0] - 1, 0)], x[min(near[-1] + 1, 4000)]
    return x


def mesh(mean, std, points=161, width=9):
    """Points (n, ..., n, D) of an even grid, `width` standard deviations to either side of the mean."""
    axes = [np.linspace(m - width * s, m + width * s, points) for m, s in zip(mean, std, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


@check("1.1", "normal density", "implementation", "scipy's density; area, mean and variance on a grid", to=1e-9)
@until(1e-8)
def normal_density(f):
    """f(x, mean, var) returns the log-density of each entry of x; the shapes broadcast."""
    f = Watched(f)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (2, 3, 4)))
    x[0, 0, 0] = 40.0  # far out in the tail, where the density itself is 0 in floating point
    yield apart(f(x, *FOUR[:2]), stats.norm.logpdf(x.numpy(), MEAN_1, VAR_1**0.5))
    for mean, var in ((-0.4, 0.3), (0.7, 2.1)):
        density = f(torch.from_numpy(LINE), mean, var).exp().numpy()
        got = [np.trapezoid(density * LINE**k, LINE) for k in range(3)]
        yield apart(np.array(got), np.array([1, mean, mean**2 + var]))
    steps = torch.linspace(-3, 3, 7, dtype=torch.float64)  # and variances as small as a first noise step's, and smaller
    for mean, var in ((0.1, 1e-4), (0.0, 1e-8), (0.0, 1e-16), (0.0, 1e-32), (-0.7, 1e5), (0.0, 1e12), (1, 4)):
        near = mean + var**0.5 * steps
        for kind in (lambda v: v, lambda v: torch.tensor(v, dtype=torch.float64)):
            yield apart(f(near, kind(mean), kind(var)), stats.norm.logpdf(near.numpy(), mean, var**0.5))
    for x in (torch.tensor([1024.0, -512.0]).double(), torch.tensor([[-1e6], [2e7]]).double()):
        yield relative(f(x, 0.0, 1.0), stats.norm.logpdf(x.numpy()))
    yield slope_gap(f, torch.linspace(-2, 2, 12).double().reshape(3, 4), *FOUR[:2])
    yield f.fault


@normal_density.wrong(
    "the variance taken for the standard deviation",
    seen="SamsungLabs/pytorch-ensembles issue 5, CyberPoint/libpgm issue 10",
    idea="power",
)
def _(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / var**2 + torch.as_tensor(2 * math.pi * var**2).log())


@normal_density.wrong(
    "the normaliser is missing",
    seen="no public source: a plausible slip (a squared error taken for a log-density)",
    idea="term",
)
def _(x, mean, var):
    return -0.5 * (x - mean) ** 2 / torch.as_tensor(var)


@normal_density.wrong(
    "the normaliser without the variance: ½·log 2π only", seen="no public source: a plausible slip", idea="term"
)
def _(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / torch.as_tensor(var) + math.log(2 * math.pi))


@normal_density.wrong(
    "the root of the normaliser is forgotten: log(2πv), not ½·log(2πv)",
    seen="no public source: a plausible slip",
    idea="power",
)
def _(x, mean, var):
    return -0.5 * (x - mean) ** 2 / torch.as_tensor(var) - torch.as_tensor(2 * math.pi * var).log()


@normal_density.wrong(
    "the ½ is missing in the exponent",
    seen="no public source: a plausible slip (exp(−x²), the density with variance ½)",
    idea="term",
)
def _(x, mean, var):
    return -((x - mean) ** 2) / torch.as_tensor(var) - 0.5 * torch.as_tensor(2 * math.pi * var).log()


@normal_density.wrong(
    "in bits", seen="no public source: a plausible slip (log2 in the place of the natural logarithm)", idea="exchange"
)
def _(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / var + torch.as_tensor(2 * math.pi * var).log()) / math.log(2)


def _log_density(x, mean, var):
    mean, var = (torch.as_tensor(part, dtype=x.dtype) for part in (mean, var))
    return torch.distributions.Normal(mean, var.sqrt()).log_prob(x)


@normal_density.wrong("a variance of at least 1e-4", seen="no public source: a clamp for stability", idea="edge")
def _(x, mean, var):
    return _log_density(x, mean, torch.as_tensor(var, dtype=x.dtype).clamp(min=1e-4))


@normal_density.wrong(
    "1e-8 is added to the density before the logarithm", seen="no public source: against log 0", idea="edge"
)
def _(x, mean, var):
    return (_log_density(x, mean, var).exp() + 1e-8).log()


@normal_density.wrong(
    "no gradient reaches the variance", seen="no public source: a variance taken for a constant", idea="gradient"
)
def _(x, mean, var):
    return _log_density(x, mean, torch.as_tensor(var, dtype=x.dtype).detach())


@functools.cache
def mapped(seed, rows, D):
    """A (rows, D), b (rows,), mean and cov of x, and the moments of A·x + b on a grid of x."""
    mean, cov = random_normal(D, seed)
    random = np.random.default_rng(seed + 50)
    A, b = random.uniform(-1.3, 1.3, (rows, D)), random.uniform(-1, 1, rows)
    x = mesh(mean.numpy(), cov.diagonal().sqrt().numpy(), points=81 if D == 3 else 161)
    weight = stats.multivariate_normal(mean.numpy(), cov.numpy()).pdf(x).reshape(x.shape[:-1])
    expected = moments(weight, np.einsum("ij,...j->...i", A, x) + b)  # a point keeps its probability when it is mapped
    return *(torch.from_numpy(v) for v in (A, b)), mean, cov, *expected


@check("1.2", "affine map", "identity", "moments of the mapped points of grids in 1, 2 and 3 dimensions", to=1e-9)
@until(1e-8)
def affine_map(f):
    """f(A, b, mean, cov) returns mean and covariance of A·x + b for x ~ N(mean, cov)."""
    f = Watched(f)
    for seed, (rows, D) in enumerate(((2, 2), (2, 2), (1, 2), (3, 2), (1, 1), (3, 1), (2, 3), (3, 3))):
        A, b, mean, cov, *expected = mapped(seed, rows, D)
        yield apart_each(f(A, b, mean, cov), expected)
        for unit in UNITS:  # x, or x and A·x + b, in another unit
            got_mean, got_cov = f(A, unit * b, unit * mean, unit**2 * cov)
            yield apart_each((got_mean / unit, got_cov / unit**2), expected)
            yield apart_each(f(A / unit, b, unit * mean, unit**2 * cov), expected)
        yield apart_each(f(A, b, mean, 0 * cov), (expected[0], 0 * expected[1]))  # a point is mapped to a point
    yield f.fault


@affine_map.states
def _(A, b, mean, cov):
    return A @ mean + b, A @ cov @ A.T


@affine_map.wrong(
    "A stands on one side only",
    seen="no public source: a plausible slip (a factor that is not squared: Var(a·x) = a·Var(x))",
    idea="power",
)
def _(A, b, mean, cov):
    return A @ mean + b, (A @ cov)[:, : len(A)]


@affine_map.wrong(
    "A's entries are squared one by one",
    seen="no public source: a plausible slip (the rule for independent entries, used for all)",
    idea="noise",
)
def _(A, b, mean, cov):
    return A @ mean + b, torch.diag(A**2 @ cov.diagonal())


@affine_map.wrong("the shift is added to the variances too", seen="no public source: a plausible slip", idea="term")
def _(A, b, mean, cov):
    return A @ mean + b, A @ cov @ A.T + torch.diag(b**2)


@affine_map.wrong(
    "AᵀΣA, transposed", seen="no public source: a plausible slip (row vectors and column vectors mixed up)", idea="axis"
)
def _(A, b, mean, cov):
    square = torch.cat([A, A])[:2]
    return A @ mean + b, (square.T @ cov @ square)[: len(A), : len(A)]


@affine_map.wrong(
    "1e-9 is added to the variances", seen="no public source: jitter, lest a Cholesky factor fail", idea="edge"
)
def _(A, b, mean, cov):
    return A @ mean + b, A @ cov @ A.T + 1e-9 * torch.eye(len(A), dtype=A.dtype)


@functools.cache
def convolved(pair):
    """Mean and variance of the convolution of two normal densities, on a grid, and how far it is from a normal one."""
    (mean_1, var_1), (mean_2, var_2) = pair
    total = np.linspace(-14, 14, 401)
    second = stats.norm.pdf(total[:, None] - LINE, mean_2, var_2**0.5)
    density = np.trapezoid(stats.norm.pdf(LINE, mean_1, var_1**0.5) * second, LINE)
    mean, cov = moments(density, total[:, None])
    return np.array([mean[0], cov[0, 0]]), apart(stats.norm.pdf(total, mean[0], cov[0, 0] ** 0.5), density)


@check("1.3", "sum of independent normals", "identity", "the convolution of the densities, on a grid", to=1e-9)
@until(1e-8)
def sum_of_normals(f):
    """f(mean_1, var_1, mean_2, var_2) returns mean and variance of x_1 + x_2, whose density is normal."""
    f = Watched(f)
    for pair in PAIRS:
        (mean_1, var_1), (mean_2, var_2) = pair
        expected, bent = convolved(pair)
        yield bent
        for unit in (1.0, *UNITS):
            got = f(unit * mean_1, unit**2 * var_1, unit * mean_2, unit**2 * var_2)
            yield apart(np.array(got) / (unit, unit**2), expected)
    for pair in PAIRS:
        (mean_1, var_1), (mean_2, var_2) = pair
        for point in (0.0, -1.6):  # without any scatter of its own it only moves the other
            yield apart(np.array(f(point, 0.0, mean_2, var_2)), np.array([point + mean_2, var_2]))
            yield apart(np.array(f(mean_1, var_1, point, 0.0)), np.array([mean_1 + point, var_1]))
    yield f.fault


@sum_of_normals.states
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, var_1 + var_2


@sum_of_normals.wrong(
    "standard deviations are added instead of variances",
    seen="thodson-usgs/ratingcurve issue 61, hansenlab/minfi issue 290",
    idea="power",
)
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, (var_1**0.5 + var_2**0.5) ** 2


@sum_of_normals.wrong(
    "precisions are added instead of variances",
    seen="no public source: a plausible slip (the rule for products, used for sums)",
    idea="exchange",
)
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, 1 / (1 / var_1 + 1 / var_2)


@sum_of_normals.wrong(
    "the variance of the average",
    seen="no public source: a plausible slip (a mixture of two densities taken for a sum of two variables)",
    idea="exchange",
)
def _(mean_1, var_1, mean_2, var_2):
    return (mean_1 + mean_2) / 2, (var_1 + var_2) / 2 + (mean_1 - mean_2) ** 2 / 4


@sum_of_normals.wrong("each variance is at least 1e-6", seen="no public source: a clamp for stability", idea="edge")
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, max(var_1, 1e-6) + max(var_2, 1e-6)


UNLIKE = [  # mean, variance, mean, variance: one much vaguer than the other, or far from it, or both the same
    (0.0, 1e-10, 0.5, 1.0),
    (0.4, 2.0, 0.0, 3e-12),
    (0.3, 4e6, -0.9, 0.7),
    (-30.0, 1.0, 25.0, 1.0),
    (-80.0, 0.5, 60.0, 0.2),
    (0.6, 0.9, 0.6, 0.9),
]


@functools.cache
def multiplied(mean_1, var_1, mean_2, var_2):
    """Mean and variance of the normalised product of two densities, on a grid."""

    def log_product(x):
        return log_normal(x, mean_1, var_1) + log_normal(x, mean_2, var_2)

    x = zoom(log_product, min(mean_1, mean_2) - 9, max(mean_1, mean_2) + 9)
    mean, cov = moments(np.exp(log_product(x) - log_product(x).max()), x[:, None])
    return mean[0], cov[0, 0]


@check("1.4", "product of normal densities", "implementation", "moments of the product, on a grid", to=1e-9)
@until(1e-8)
def product_of_densities(f):
    """f(mean_1, var_1, mean_2, var_2) returns mean and variance of the normalised product; the shapes broadcast."""
    f, x = Watched(f), LINE[:, None, None]
    density = np.exp(stats.norm.logpdf(x, MEAN_1, VAR_1**0.5) + stats.norm.logpdf(x, MEAN_2, VAR_2**0.5))
    weight = density / density.sum(0)
    mean = (weight * x).sum(0)
    var = (weight * (x - mean) ** 2).sum(0)
    mean_1, var_1, mean_2, var_2 = FOUR
    for unit in (1.0, *UNITS):
        got = f(unit * mean_1, unit**2 * var_1, unit * mean_2, unit**2 * var_2)
        yield apart_each((got[0] / unit, got[1] / unit**2), (mean, var))
    for case in UNLIKE:
        for shape in ((), (1,), (2, 1, 1)):
            got_mean, got_var = f(*(torch.full(shape, number, dtype=torch.float64) for number in case))
            expected_mean, expected_var = (np.full(shape, part) for part in multiplied(*case))
            yield largest(apart(got_mean, expected_mean), relative(got_var, expected_var, 1e-6))
    # A variance of 0 is a point, which wins; the entries beside it are what they were.
    mean_1, var_1 = (part.expand(3, 4).clone() for part in (mean_1, var_1))
    for entry in ((0, 1), (2, 3)):
        mean[entry], var[entry], var_1[entry] = mean_1[entry], 0, 0
    yield apart_each(f(mean_1, var_1, mean_2, var_2), (mean, var))
    yield apart_each(f(mean_2, var_2, mean_1, var_1), (mean, var))
    yield slope_gap(f, *FOUR)
    yield f.fault


def _weighted(mean_1, mean_2, weight_1, weight_2):
    return (weight_1 * mean_1 + weight_2 * mean_2) / (weight_1 + weight_2)


@product_of_densities.wrong(
    "variances are added instead of precisions",
    seen="no public source: a plausible slip (the rule for sums, used for products)",
    idea="exchange",
)
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, 1 / var_1, 1 / var_2), var_1 + var_2


@product_of_densities.wrong(
    "the plain average of the means",
    seen="no public source: a plausible slip (right for equal variances only)",
    idea="exchange",
)
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, 1, 1) + 0 * var_1, 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong(
    "each mean is weighted with its own variance",
    seen="no public source: a plausible slip (weights swapped: the vaguer one wins)",
    idea="exchange",
)
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, var_1, var_2), 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong(
    "weights 1/std instead of 1/var",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, var_1**-0.5, var_2**-0.5), 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong(
    "the two means are added",
    seen="no public source: a plausible slip (the product of densities taken for a sum of variables)",
    idea="exchange",
)
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong(
    "by precisions, which are infinite at a point", seen="no public source: the formula as it is printed", idea="edge"
)
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, 1 / var_1, 1 / var_2), 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong(
    "1e-8 is added to each variance", seen="no public source: against a division by 0", idea="edge"
)
def _(mean_1, var_1, mean_2, var_2):
    weight_1, weight_2 = 1 / (var_1 + 1e-8), 1 / (var_2 + 1e-8)
    return _weighted(mean_1, mean_2, weight_1, weight_2), 1 / (weight_1 + weight_2)


SLICES = (  # number of entries, the known ones, their values
    (2, [0], [0.9]),
    (2, [1], [-0.6]),
    (3, [1], [4.5]),
    (3, [2, 0], [-0.7, 0.5]),
    (4, [3, 1], [0.4, -1.1]),
    (4, [2, 0, 3], [-2.0, 0.3, 0.8]),
    (5, [3, 0, 4], [0.6, -0.9, 0.2]),
    (6, [1, 5, 0, 3, 2], [0.1, 0.7, -0.2, -0.5, 0.9]),
)


@functools.cache
def sliced(i):
    """The normal vector of a case, and mean and covariance of its open entries, from a slice on a grid."""
    D, known, values = SLICES[i]
    mean, cov = random_normal(D, seed=D + known[0])
    rest = [j for j in range(D) if j not in known]
    x = mesh(mean[rest].numpy(), cov.diagonal()[rest].sqrt().numpy(), points=251, width=14)
    cut = np.empty((*x.shape[:-1], D))
    cut[..., rest], cut[..., known] = x, values
    return mean, cov, moments(stats.multivariate_normal(mean.numpy(), cov.numpy()).pdf(cut), x)


@check("1.5", "conditioning", "implementation", "a slice through the joint density, on a grid", to=1e-9)
@until(1e-8)
def conditioning(f):
    """f(mean, cov, known, value) returns mean and covariance of the other entries."""
    f = Watched(f)
    for i, (D, known, values) in enumerate(SLICES):
        mean, cov, expected = sliced(i)
        value = torch.tensor(values, dtype=torch.float64)
        yield apart_each(f(mean, cov, known, value), expected)
        rest = [j for j in range(D) if j not in known]
        each = torch.logspace(-6, 6, D, base=2, dtype=torch.float64)  # for each entry a unit of its own
        for units in (*(unit * torch.ones(D, dtype=torch.float64) for unit in UNITS), each):
            got = f(units * mean, units.outer(units) * cov, known, units[known] * value)
            yield apart_each((got[0] / units[rest], got[1] / units[rest].outer(units[rest])), expected)
    root = torch.linalg.cholesky(cov)
    yield slope_gap(lambda m, root, v: f(m, root @ root.T, known, v), mean, root, value)
    yield f.fault


def _blocks(mean, cov, known):
    """mean_r, mean_k, Σ_rr, Σ_rk, Σ_kk"""
    rest = [i for i in range(len(mean)) if i not in known]
    return mean[rest], mean[known], cov[rest][:, rest], cov[rest][:, known], cov[known][:, known]


@conditioning.wrong(
    "the known entries are dropped: the marginal",
    seen="no public source: a plausible slip (the block of the others, mean and all, as is)",
    idea="exchange",
)
def _(mean, cov, known, value):
    mean_r, _, rr, _, _ = _blocks(mean, cov, known)
    return mean_r, rr


@conditioning.wrong(
    "the mean of the known entries is not subtracted",
    seen="no public source: a plausible slip (formulas for mean 0 copied)",
    idea="term",
)
def _(mean, cov, known, value):
    mean_r, _, rr, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk.inverse() @ value, rr - rk @ kk.inverse() @ rk.T


@conditioning.wrong(
    "the variance stays as it was",
    seen="distillpub/post--visual-exploration-gaussian-processes issue 64: a figure's code",
    idea="term",
)
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk.inverse() @ (value - mean_k), rr


@conditioning.wrong(
    "Σ_kk is not inverted",
    seen="no public source: a plausible slip (right if the known entries have variance 1 and no correlation)",
    idea="exchange",
)
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk @ (value - mean_k), rr - rk @ kk @ rk.T


@conditioning.wrong(
    "each known entry corrects by itself",
    seen="no public source: a plausible slip (correlations among the known entries forgotten)",
    idea="noise",
)
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    gain = rk / kk.diagonal()
    return mean_r + gain @ (value - mean_k), rr - gain @ rk.T


@conditioning.wrong(
    "the known entries are sorted and their values are not",
    seen="no public source: a plausible slip (a mask in the place of indices)",
    idea="axis",
)
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, sorted(known))
    return mean_r + rk @ kk.inverse() @ (value - mean_k), rr - rk @ kk.inverse() @ rk.T


@conditioning.wrong(
    "a block of the precision matrix, not inverted",
    seen="no public source: a plausible slip (precision taken for covariance)",
    idea="exchange",
)
def _(mean, cov, known, value):
    mean_r, mean_k, _, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk.inverse() @ (value - mean_k), _blocks(mean, cov.inverse(), known)[2]


@conditioning.wrong(
    "1e-10 is added to the known entries' variances",
    seen="no public source: jitter, lest a Cholesky factor fail",
    idea="edge",
)
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    gain = rk @ (kk + 1e-10 * torch.eye(len(known), dtype=kk.dtype)).inverse()
    return mean_r + gain @ (value - mean_k), rr - gain @ rk.T


WIDE = torch.tensor(  # mean and variance of q, then of p: far apart, or close together
    [
        (0.0, 1e-10, 0.0, 1.0),
        (0.2, 1e-32, -0.5, 0.7),
        (0.3, 1.0, 0.3, 1e-6),
        (0.0, 1e9, 0.4, 1.0),
        (5.0, 1.3, -60.0, 0.4),
        (0.0, 1.0005, 0.01, 1.0),
        (0.0, 1e-20, 2e-10, 3e-20),
    ],
    dtype=torch.float64,
).T


@check("1.6", "KL divergence", "implementation", "quadrature of the mean log-ratio", to=1e-9)
@until(1e-8)
def kl(f):
    """f(mean_q, var_q, mean_p, var_p) returns the divergence in nats, entry by entry; the shapes broadcast.

    Differences are relative to a divergence of more than 1 nat.
    """
    f = Watched(f)
    for mean_q, var_q, mean_p, var_p in (FOUR, WIDE, FOUR[2:] + FOUR[:2]):
        ndim = max(part.ndim for part in (mean_q, var_q, mean_p, var_p))
        u = np.linspace(-12, 12, 2401).reshape(-1, *[1] * ndim)  # x − mean_q, in q's own standard deviations
        log_q = log_normal(u, 0, 1) - np.log(var_q.numpy()) / 2
        log_p = log_normal((mean_q - mean_p).numpy() + var_q.sqrt().numpy() * u, 0, var_p.numpy())
        expected = np.trapezoid(stats.norm.pdf(u) * (log_q - log_p), u, axis=0)
        yield relative(f(mean_q, var_q, mean_p, var_p), expected, 1.0)
    yield apart(f(*FOUR[:2], *FOUR[:2]), np.zeros((3, 4)))  # of a density from itself
    yield 1 / float(f(*torch.tensor([0.3, 0.0, 0.1, 0.5], dtype=torch.float64)))  # of a point: infinite
    yield slope_gap(f, *FOUR)
    yield f.fault


def _kl(mean_q, var_q, mean_p, var_p):
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


@kl.wrong("the arguments swapped", seen="no public source: a plausible slip (KL taken for symmetric)", idea="exchange")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_p, var_p, mean_q, var_q)


@kl.wrong("the −1 is missing", seen="probml/pml2-book issue 297", idea="term")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) + 0.5


@kl.wrong("the logarithm's sign", seen="no public source: a plausible slip", idea="sign")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) - torch.log(var_p / var_q)


@kl.wrong(
    "standard deviations where the variances belong",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q.sqrt(), mean_p, var_p.sqrt())


@kl.wrong(
    "the distance of the means, scaled with q's variance", seen="no public source: a plausible slip", idea="exchange"
)
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_q, var_p) + 0.5 * (mean_q - mean_p) ** 2 / var_q


@kl.wrong("the factor ½ is missing", seen="no public source: a plausible slip", idea="term")
def _(mean_q, var_q, mean_p, var_p):
    return 2 * _kl(mean_q, var_q, mean_p, var_p)


@kl.wrong(
    "in bits",
    seen="no public source: a plausible slip (units mixed up in reports of bits per dimension)",
    idea="exchange",
)
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) / math.log(2)


@kl.wrong("variances of at least 1e-6", seen="no public source: a clamp for stability", idea="edge")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q.clamp(min=1e-6), mean_p, var_p.clamp(min=1e-6))


@kl.wrong(
    "1e-16 is added inside the logarithm",
    seen="kasparmartens/NeuralProcesses issue 1, in the code it quotes",
    idea="edge",
)
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) + 0.5 * (torch.log(var_q) - torch.log(var_q + 1e-16))


@kl.wrong("at most 100 nats", seen="no public source: a clamp for stability", idea="edge")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p).clamp(max=100)


@kl.wrong("no gradient reaches p", seen="no public source: a prior taken for a constant", idea="gradient")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p.detach(), var_p.detach())


@check("1.7", "KL divergence, full covariance", "implementation", "quadrature in 1 to 5 dimensions", to=1e-9)
@until(1e-8)
def kl_full(f):
    """f(mean_q, cov_q, mean_p, cov_p) returns the divergence in nats.

    Differences are relative to a divergence of more than 1 nat.
    """
    f = Watched(f)
    for narrow, wide in ((1.0, 1.0), (2.0**-30, 1.0), (1.0, 2.0**-20)):
        for D in (1, 2, 3, 4, 5):
            (mean_q, cov_q), (mean_p, cov_p) = random_normal(D, seed=D), random_normal(D, seed=D + 10)
            cov_q, cov_p = narrow * cov_q, wide * cov_p
            nodes, weights = hermite(4, D)  # exact, for a log-ratio is quadratic
            x = mean_q + nodes @ torch.linalg.cholesky(cov_q).T
            log_q, log_p = (
                stats.multivariate_normal(m.numpy(), c.numpy()).logpdf(x.numpy())
                for m, c in ((mean_q, cov_q), (mean_p, cov_p))
            )
            expected = weights @ torch.from_numpy(log_q - log_p)
            for unit in (1.0, *UNITS):  # a divergence has no unit
                got = f(unit * mean_q, unit**2 * cov_q, unit * mean_p, unit**2 * cov_p)
                yield relative(got, expected, 1.0)
            yield apart(f(mean_q, cov_q, mean_q, cov_q), 0.0)
    (mean_q, cov_q), (mean_p, cov_p) = random_normal(3, seed=3), random_normal(3, seed=13)
    roots = [torch.linalg.cholesky(cov) for cov in (cov_q, cov_p)]
    yield slope_gap(lambda m, a, n, b: f(m, a @ a.T, n, b @ b.T), mean_q, roots[0], mean_p, roots[1])
    yield f.fault


def _kl_full(mean_q, cov_q, mean_p, cov_p, dimensions=None):
    shift = (mean_q - mean_p) @ cov_p.inverse() @ (mean_q - mean_p)
    spread = torch.trace(cov_p.inverse() @ cov_q)
    return 0.5 * (cov_p.logdet() - cov_q.logdet() + spread + shift - (dimensions or len(mean_q)))


@kl_full.wrong(
    "the diagonals only: a sum over the entries",
    seen="no public source: a plausible slip (the formula for independent entries, used for all)",
    idea="noise",
)
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q.diagonal().diag(), mean_p, cov_p.diagonal().diag())


@kl_full.wrong(
    "−1 instead of −D", seen="no public source: a plausible slip (the constant of one dimension)", idea="term"
)
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q, mean_p, cov_p, dimensions=1)


@kl_full.wrong(
    "the arguments swapped", seen="no public source: a plausible slip (KL taken for symmetric)", idea="exchange"
)
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_p, cov_p, mean_q, cov_q)


@kl_full.wrong("the determinants' ratio upside down", seen="no public source: a plausible slip", idea="sign")
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q, mean_p, cov_p) + cov_q.logdet() - cov_p.logdet()


@kl_full.wrong(
    "the trace of a product taken for the product of the traces",
    seen="no public source: a plausible slip",
    idea="exchange",
)
def _(mean_q, cov_q, mean_p, cov_p):
    inverse = cov_p.inverse()
    right = _kl_full(mean_q, cov_q, mean_p, cov_p)
    return right + 0.5 * (inverse.trace() * cov_q.trace() - (inverse @ cov_q).trace())


@kl_full.wrong(
    "1e-12 is added to p's variances", seen="no public source: jitter, lest a Cholesky factor fail", idea="edge"
)
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q, mean_p, cov_p + 1e-12 * torch.eye(len(mean_p), dtype=cov_p.dtype))


@kl_full.wrong(
    "−D for D up to 3 only", seen="no public source: a constant that was tried in few dimensions", idea="term"
)
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q, mean_p, cov_p, dimensions=min(len(mean_q), 3))


@check("1.8", "derivative of SiLU", "identity", "autograd, and central differences of scipy's sigmoid", to=1e-9)
@until(1e-8)
def silu_derivative(f):
    """f(z), z (N,), returns d silu/dz."""
    f, h = Watched(f), 1e-3
    for z in (np.random.default_rng(0).normal(0, 4, 200), np.linspace(-45, 45, 181)):  # with 0
        leaf = torch.from_numpy(z).requires_grad_()
        (autograd,) = torch.autograd.grad((leaf * torch.sigmoid(leaf)).sum(), leaf)
        silu = {k: (z + k * h) * special.expit(z + k * h) for k in (-2, -1, 1, 2)}
        differences = (8 * (silu[1] - silu[-1]) - (silu[2] - silu[-2])) / (12 * h)  # errors of order h⁴
        got = f(torch.from_numpy(z))
        yield largest(apart(got, autograd), apart(got, differences))
    far_out = torch.tensor([-1e4, -800.0, -100.0, 100.0, 800.0, 1e4], dtype=torch.float64)
    yield apart(f(far_out), torch.tensor([0.0, 0, 0, 1, 1, 1]))
    yield f.fault


@silu_derivative.states
def _(z):
    return torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))


@silu_derivative.wrong(
    "the product rule's second term is forgotten: σ(z)", seen="no public source: a plausible slip", idea="term"
)
def _(z):
    return torch.sigmoid(z)


@silu_derivative.wrong(
    "σ(1 − σ), the derivative of the sigmoid",
    seen="no public source: a plausible slip (SiLU and sigmoid mixed up)",
    idea="exchange",
)
def _(z):
    return torch.sigmoid(z) * (1 - torch.sigmoid(z))


@silu_derivative.wrong(
    "σ(z) + z·σ(z): the factor 1 − σ is lost",
    seen="no public source: a plausible slip (the derivative of exp in the place of σ's)",
    idea="term",
)
def _(z):
    return torch.sigmoid(z) * (1 + z)


@silu_derivative.wrong(
    "ReLU's step",
    seen="no public source: a plausible slip (a hand-written backward pass for the wrong activation)",
    idea="exchange",
)
def _(z):
    return (z > 0).double()


@silu_derivative.wrong(
    "z is cut off at −10 and 10", seen="no public source: against an overflow of exp(−z)", idea="edge"
)
def _(z):
    z = z.clamp(-10, 10)
    return torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))


@silu_derivative.wrong(
    "written with eᶻ, which overflows", seen="no public source: e^z·(1 + z + e^z)/(1 + e^z)²", idea="edge"
)
def _(z):
    return torch.exp(z) * (1 + z + torch.exp(z)) / (1 + torch.exp(z)) ** 2


@check("1.9", "moments of ReLU", "identity", "adaptive quadrature", to=1e-9)
@until(1e-8)
def relu_moments(f):
    """f(var) returns E[relu(z)] and E[relu(z)²] for z ~ N(0, var)."""
    f = Watched(f)
    for var in (0.3, 1.0, 2.6):
        density = stats.norm(0, var**0.5).pdf
        expected = [
            integrate.quad(lambda z, k=k, p=density: z**k * p(z), 0, 40, epsabs=1e-12, points=[1, 4])[0] for k in (1, 2)
        ]
        yield apart(np.array(f(var)), np.array(expected))
        for unit in UNITS:
            yield apart(np.array(f(unit**2 * var)) / (unit, unit**2), np.array(expected))
    yield apart(np.array(f(0.0)), np.zeros(2))
    yield f.fault


@relu_moments.states
def _(var):
    return (var / (2 * math.pi)) ** 0.5, var / 2


@relu_moments.wrong(
    "the moments of |z|: the negative half is folded, not cut off",
    seen="no public source: a plausible slip (half-normal formulas copied)",
    idea="exchange",
)
def _(var):
    return (2 * var / math.pi) ** 0.5, var


@relu_moments.wrong(
    "the variance in the place of the second moment",
    seen="no public source: a plausible slip (forgets that ReLU's mean is not 0)",
    idea="exchange",
)
def _(var):
    return (var / (2 * math.pi)) ** 0.5, var / 2 - var / (2 * math.pi)


@relu_moments.wrong(
    "the mean grows with the variance, not with its root",
    seen="no public source: a plausible slip (variance and deviation mixed up)",
    idea="power",
)
def _(var):
    return var / (2 * math.pi) ** 0.5, var / 2


@relu_moments.wrong("a variance of at least 1e-12", seen="no public source: a clamp for stability", idea="edge")
def _(var):
    return (max(var, 1e-12) / (2 * math.pi)) ** 0.5, max(var, 1e-12) / 2


@functools.cache
def rejection_rates(tests=200_000):
    """((delta, n, c), share of the simulated tests with |z| > c, its standard error) for a few settings."""
    found, random = [], np.random.default_rng(0)
    for delta, n, c in ((0.0, 16, 1.0), (0.05, 25, 1.5), (-0.4, 25, 2.0), (0.6, 16, 3.0), (0.3, 50, 1.2)):
        z = random.normal(delta, 1, (tests, n)).mean(1) * n**0.5
        rate = (np.abs(z) > c).mean()
        found.append(((delta, n, c), rate, (rate * (1 - rate) / tests) ** 0.5))
    return found


AREAS = ((0.0, 1, 5.0), (0.7, 1, 1.0), (-0.7, 1, 1.0), (0.3, 2, 0.0), (0.2, 2, 1.3), (-1.1, 3, 2.5), (2.0, 6, 3.0))


@functools.cache
def areas():
    """P(|z| > c) for these delta, n, c: the density of the sum of n draws is that of one, convolved."""
    found, x = [], np.linspace(-30, 40, 701)
    node, weight = np.polynomial.legendre.leggauss(100)
    for delta, n, c in AREAS:
        edge = c * n**0.5  # |z| > c is |sum| > c·√n
        density = normal(x, delta, 1)
        for _ in range(n - 2):
            density = normal(x[:, None] - x, delta, 1) @ density * (x[1] - x[0])
        inside = normal(edge * node[:, None] - x, delta, 1) @ density * (x[1] - x[0])
        found.append(1 - edge * weight @ (inside if n > 1 else normal(edge * node, delta, 1)))
    return found


@check(
    "1.10", "power of a z-test", "identity", "rejections counted in 200,000 simulated z-tests, and convolved densities"
)
@until(15)
def power(f):
    """f(delta, n, c) returns P(|z| > c), z = √n·average, for n draws of variance 1 with mean delta.

    What no count can tell, a probability that is off by 1e-9, counts as |z| = 5.
    """
    f = Watched(f)
    yield largest(*(abs(rate - f(*setting)) / error for setting, rate, error in rejection_rates()))
    yield from (5 * apart(f(*setting), area) / 1e-9 for setting, area in zip(AREAS, areas(), strict=True))
    yield f.fault


@power.states
def _(delta, n, c):
    shift = delta * n**0.5
    return special.ndtr(shift - c) + special.ndtr(-shift - c)


@power.wrong(
    "one tail only",
    seen="no public source: a plausible slip (the second term dropped, which is right for large shifts only)",
    idea="term",
)
def _(delta, n, c):
    return special.ndtr(abs(delta) * n**0.5 - c)


@power.wrong(
    "δ·n in the place of δ·√n",
    seen="no public source: a plausible slip (the root lost: the sum's shift without the sum's spread)",
    idea="power",
)
def _(delta, n, c):
    return special.ndtr(delta * n - c) + special.ndtr(-delta * n - c)


@power.wrong(
    "the number of draws is forgotten",
    seen="no public source: a plausible slip (a deviation of the draws taken for that of their average)",
    idea="term",
)
def _(delta, n, c):
    return special.ndtr(delta - c) + special.ndtr(-delta - c)


@power.wrong(
    "the probability to miss",
    seen="no public source: a plausible slip (power and its complement mixed up)",
    idea="exchange",
)
def _(delta, n, c):
    shift = delta * n**0.5
    return special.ndtr(c - shift) - special.ndtr(-shift - c)


def _power(shift, c):
    return special.ndtr(shift - c) + special.ndtr(-shift - c)


@power.wrong(
    "one tail where the shift is above 1", seen="no public source: the other tail taken for negligible", idea="edge"
)
def _(delta, n, c):
    shift = abs(delta) * n**0.5
    return special.ndtr(shift - c) if shift > 1 else _power(shift, c)


@power.wrong("a power of at least 1e-6", seen="no public source: a clamp for stability", idea="edge")
def _(delta, n, c):
    return max(_power(delta * n**0.5, c), 1e-6)
