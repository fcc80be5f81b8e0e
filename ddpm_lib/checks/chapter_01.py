"""The checks of chapter 1, Gaussians. The routes are quadrature on grids, scipy, differences and simulated draws."""

import functools
import math

import numpy as np
import torch
from scipy import integrate, special, stats

from ddpm_lib.checks import apart, check, largest

RANDOM = np.random.default_rng(1)
MEAN_1, MEAN_2 = (RANDOM.uniform(-1.5, 1.5, shape) for shape in ((3, 1), (4,)))
VAR_1, VAR_2 = (RANDOM.uniform(0.2, 2.5, shape) for shape in ((1, 4), (3, 1)))
FOUR = [torch.from_numpy(values) for values in (MEAN_1, VAR_1, MEAN_2, VAR_2)]  # shapes that broadcast to (3, 4)
PAIRS = [((-0.7, 0.6), (0.4, 1.7)), ((1.2, 2.3), (-0.5, 0.3)), ((0.3, 0.8), (0.9, 0.8))]  # (mean, variance) twice
LINE = np.linspace(-16, 16, 6401)


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


def mesh(mean, std, points=161, width=9):
    """Points (n, ..., n, D) of an even grid, `width` standard deviations to either side of the mean."""
    axes = [np.linspace(m - width * s, m + width * s, points) for m, s in zip(mean, std, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


@check("1.1", "normal density", "implementation", "scipy's density; area, mean and variance on a grid", to=1e-9)
def normal_density(f):
    """f(x, mean, var) returns the log-density of each entry of x; the shapes broadcast."""
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (2, 3, 4)))
    x[0, 0, 0] = 40.0  # far out in the tail, where the density itself is 0 in floating point
    worst = apart(f(x, *FOUR[:2]), stats.norm.logpdf(x.numpy(), MEAN_1, VAR_1**0.5))
    near = torch.linspace(0.07, 0.12, 9, dtype=torch.float64)  # and a variance as small as a first noise step's
    worst = largest(worst, apart(f(near, 0.1, 1e-4), stats.norm.logpdf(near.numpy(), 0.1, 0.01)))
    for mean, var in ((-0.4, 0.3), (0.7, 2.1)):
        density = f(torch.from_numpy(LINE), mean, var).exp().numpy()
        got = [np.trapezoid(density * LINE**k, LINE) for k in range(3)]
        worst = largest(worst, apart(np.array(got), np.array([1, mean, mean**2 + var])))
    return worst


@normal_density.wrong(
    "the variance taken for the standard deviation", seen="a common slip: scipy's `scale`, torch's `scale`"
)
def _(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / var**2 + torch.as_tensor(2 * math.pi * var**2).log())


@normal_density.wrong("the normaliser is missing", seen="a squared error taken for a log-density")
def _(x, mean, var):
    return -0.5 * (x - mean) ** 2 / torch.as_tensor(var)


@normal_density.wrong("the normaliser without the variance: ½·log 2π only", seen="a common slip")
def _(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / torch.as_tensor(var) + math.log(2 * math.pi))


@normal_density.wrong("the root of the normaliser is forgotten: log(2πv), not ½·log(2πv)", seen="a common slip")
def _(x, mean, var):
    return -0.5 * (x - mean) ** 2 / torch.as_tensor(var) - torch.as_tensor(2 * math.pi * var).log()


@normal_density.wrong("the ½ is missing in the exponent", seen="exp(−x²), the density with variance ½")
def _(x, mean, var):
    return -((x - mean) ** 2) / torch.as_tensor(var) - 0.5 * torch.as_tensor(2 * math.pi * var).log()


@normal_density.wrong("in bits", seen="log2 in the place of the natural logarithm")
def _(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / var + torch.as_tensor(2 * math.pi * var).log()) / math.log(2)


@check("1.2", "affine map", "identity", "moments of the mapped points of a 2-D grid", to=1e-9)
def affine_map(f):
    """f(A, b, mean, cov) returns mean and covariance of A·x + b for x ~ N(mean, cov)."""
    worst = 0.0
    for seed, A, b in (
        (0, [[0.8, -0.5], [0.3, 1.1]], [0.4, -0.9]),
        (1, [[1.3, 0.6], [-0.7, 0.4]], [-0.2, 0.5]),
        (2, [[0.6, -1.2]], [0.7]),  # two variables to one
    ):
        mean, cov = random_normal(2, seed)
        A, b = (torch.tensor(v, dtype=torch.float64) for v in (A, b))
        x = mesh(mean.numpy(), cov.diagonal().sqrt().numpy())
        weight = stats.multivariate_normal(mean.numpy(), cov.numpy()).pdf(x)
        y = np.einsum("ij,...j->...i", A.numpy(), x) + b.numpy()
        expected = moments(weight, y)  # a point keeps its probability wherever it is mapped to
        worst = largest(worst, *(apart(g, e) for g, e in zip(f(A, b, mean, cov), expected, strict=True)))
    return worst


@affine_map.states
def _(A, b, mean, cov):
    return A @ mean + b, A @ cov @ A.T


@affine_map.wrong("A stands on one side only", seen="a factor that is not squared: Var(a·x) = a·Var(x)")
def _(A, b, mean, cov):
    return A @ mean + b, (A @ cov)[:, : len(A)]


@affine_map.wrong("A's entries are squared one by one", seen="the rule for independent entries, used for all")
def _(A, b, mean, cov):
    return A @ mean + b, torch.diag(A**2 @ cov.diagonal())


@affine_map.wrong("the shift is added to the variances too", seen="a common slip")
def _(A, b, mean, cov):
    return A @ mean + b, A @ cov @ A.T + torch.diag(b**2)


@affine_map.wrong("AᵀΣA, transposed", seen="row vectors and column vectors mixed up")
def _(A, b, mean, cov):
    square = torch.cat([A, A])[:2]
    return A @ mean + b, (square.T @ cov @ square)[: len(A), : len(A)]


@check("1.3", "sum of independent normals", "identity", "the convolution of the densities, on a grid", to=1e-9)
def sum_of_normals(f):
    """f(mean_1, var_1, mean_2, var_2) returns mean and variance of x_1 + x_2; compared is the whole density."""
    worst, total = 0.0, np.linspace(-6, 6, 61)
    for (mean_1, var_1), (mean_2, var_2) in PAIRS:
        first = stats.norm.pdf(LINE, mean_1, var_1**0.5)
        second = stats.norm.pdf(total[:, None] - LINE, mean_2, var_2**0.5)
        mean, var = f(mean_1, var_1, mean_2, var_2)
        worst = largest(worst, apart(stats.norm.pdf(total, mean, np.sqrt(var)), np.trapezoid(first * second, LINE)))
    return worst


@sum_of_normals.states
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, var_1 + var_2


@sum_of_normals.wrong("standard deviations are added instead of variances", seen="a common slip")
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, (var_1**0.5 + var_2**0.5) ** 2


@sum_of_normals.wrong("precisions are added instead of variances", seen="the rule for products, used for sums")
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, 1 / (1 / var_1 + 1 / var_2)


@sum_of_normals.wrong("the variance of the average", seen="a mixture of two densities taken for a sum of two variables")
def _(mean_1, var_1, mean_2, var_2):
    return (mean_1 + mean_2) / 2, (var_1 + var_2) / 2 + (mean_1 - mean_2) ** 2 / 4


@check("1.4", "product of normal densities", "implementation", "moments of the product, on a grid", to=1e-9)
def product_of_densities(f):
    """f(mean_1, var_1, mean_2, var_2) returns mean and variance of the normalised product; the shapes broadcast."""
    x = LINE[:, None, None]
    density = np.exp(stats.norm.logpdf(x, MEAN_1, VAR_1**0.5) + stats.norm.logpdf(x, MEAN_2, VAR_2**0.5))
    weight = density / density.sum(0)
    mean = (weight * x).sum(0)
    got_mean, got_var = f(*FOUR)
    return largest(apart(got_mean, mean), apart(got_var, (weight * (x - mean) ** 2).sum(0)))


def _weighted(mean_1, mean_2, weight_1, weight_2):
    return (weight_1 * mean_1 + weight_2 * mean_2) / (weight_1 + weight_2)


@product_of_densities.wrong("variances are added instead of precisions", seen="the rule for sums, used for products")
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, 1 / var_1, 1 / var_2), var_1 + var_2


@product_of_densities.wrong("the plain average of the means", seen="right for equal variances only")
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, 1, 1) + 0 * var_1, 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong("each mean is weighted with its own variance", seen="weights swapped: the vaguer one wins")
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, var_1, var_2), 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong("weights 1/std instead of 1/var", seen="variance and standard deviation mixed up")
def _(mean_1, var_1, mean_2, var_2):
    return _weighted(mean_1, mean_2, var_1**-0.5, var_2**-0.5), 1 / (1 / var_1 + 1 / var_2)


@product_of_densities.wrong("the two means are added", seen="the product of densities taken for a sum of variables")
def _(mean_1, var_1, mean_2, var_2):
    return mean_1 + mean_2, 1 / (1 / var_1 + 1 / var_2)


@check("1.5", "conditioning", "implementation", "a slice through the joint density, on a grid", to=1e-9)
def conditioning(f):
    """f(mean, cov, known, value) returns mean and covariance of the other entries."""
    worst = 0.0
    for D, known, values in (
        (2, [0], [0.9]),
        (2, [1], [-0.6]),
        (3, [1], [0.8]),
        (3, [2, 0], [-0.7, 0.5]),
        (4, [3, 1], [0.4, -1.1]),
        (5, [3, 0, 4], [0.6, -0.9, 0.2]),
    ):
        mean, cov = random_normal(D, seed=D + known[0])
        rest = [i for i in range(D) if i not in known]
        x = mesh(mean[rest].numpy(), cov.diagonal()[rest].sqrt().numpy())
        cut = np.empty((*x.shape[:-1], D))
        cut[..., rest], cut[..., known] = x, values
        expected = moments(stats.multivariate_normal(mean.numpy(), cov.numpy()).pdf(cut), x)
        got = f(mean, cov, known, torch.tensor(values, dtype=torch.float64))
        worst = largest(worst, *(apart(g, e) for g, e in zip(got, expected, strict=True)))
    return worst


def _blocks(mean, cov, known):
    """mean_r, mean_k, Σ_rr, Σ_rk, Σ_kk"""
    rest = [i for i in range(len(mean)) if i not in known]
    return mean[rest], mean[known], cov[rest][:, rest], cov[rest][:, known], cov[known][:, known]


@conditioning.wrong("the known entries are dropped: the marginal", seen="the block of the others, mean and all, as is")
def _(mean, cov, known, value):
    mean_r, _, rr, _, _ = _blocks(mean, cov, known)
    return mean_r, rr


@conditioning.wrong("the mean of the known entries is not subtracted", seen="formulas for mean 0 copied")
def _(mean, cov, known, value):
    mean_r, _, rr, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk.inverse() @ value, rr - rk @ kk.inverse() @ rk.T


@conditioning.wrong("the variance stays as it was", seen="regression: the line without the residual's variance")
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk.inverse() @ (value - mean_k), rr


@conditioning.wrong("Σ_kk is not inverted", seen="right if the known entries have variance 1 and no correlation")
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk @ (value - mean_k), rr - rk @ kk @ rk.T


@conditioning.wrong("each known entry corrects by itself", seen="correlations among the known entries forgotten")
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, known)
    gain = rk / kk.diagonal()
    return mean_r + gain @ (value - mean_k), rr - gain @ rk.T


@conditioning.wrong("the known entries are sorted and their values are not", seen="a mask in the place of indices")
def _(mean, cov, known, value):
    mean_r, mean_k, rr, rk, kk = _blocks(mean, cov, sorted(known))
    return mean_r + rk @ kk.inverse() @ (value - mean_k), rr - rk @ kk.inverse() @ rk.T


@conditioning.wrong("a block of the precision matrix, not inverted", seen="precision taken for covariance")
def _(mean, cov, known, value):
    mean_r, mean_k, _, rk, kk = _blocks(mean, cov, known)
    return mean_r + rk @ kk.inverse() @ (value - mean_k), _blocks(mean, cov.inverse(), known)[2]


@check("1.6", "KL divergence", "implementation", "quadrature of the mean log-ratio", to=1e-9)
def kl(f):
    """f(mean_q, var_q, mean_p, var_p) returns the divergence in nats, entry by entry; the shapes broadcast."""
    x = np.linspace(-20, 20, 4001)[:, None, None]
    log_q, log_p = (stats.norm.logpdf(x, m, v**0.5) for m, v in ((MEAN_1, VAR_1), (MEAN_2, VAR_2)))
    expected = np.trapezoid(np.exp(log_q) * (log_q - log_p), x, axis=0)
    worst = apart(f(*FOUR), expected)
    return largest(worst, apart(f(*FOUR[:2], *FOUR[:2]), np.zeros((3, 4))))  # of a density from itself


def _kl(mean_q, var_q, mean_p, var_p):
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


@kl.wrong("the arguments swapped", seen="KL taken for symmetric")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_p, var_p, mean_q, var_q)


@kl.wrong("the −1 is missing", seen="a common slip: KL(q ‖ q) is then ½")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) + 0.5


@kl.wrong("the logarithm's sign", seen="a common slip")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) - torch.log(var_p / var_q)


@kl.wrong("standard deviations where the variances belong", seen="variance and standard deviation mixed up")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q.sqrt(), mean_p, var_p.sqrt())


@kl.wrong("the distance of the means, scaled with q's variance", seen="a common slip")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_q, var_p) + 0.5 * (mean_q - mean_p) ** 2 / var_q


@kl.wrong("the factor ½ is missing", seen="a common slip")
def _(mean_q, var_q, mean_p, var_p):
    return 2 * _kl(mean_q, var_q, mean_p, var_p)


@kl.wrong("in bits", seen="units mixed up in reports of bits per dimension")
def _(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q, mean_p, var_p) / math.log(2)


@check("1.7", "KL divergence, full covariance", "implementation", "quadrature in 1, 2 and 3 dimensions", to=1e-9)
def kl_full(f):
    """f(mean_q, cov_q, mean_p, cov_p) returns the divergence in nats."""
    worst = 0.0
    for D in (1, 2, 3):
        (mean_q, cov_q), (mean_p, cov_p) = random_normal(D, seed=D), random_normal(D, seed=D + 10)
        z = mesh(np.zeros(D), np.ones(D), points=41)
        x = mean_q.numpy() + z @ np.linalg.cholesky(cov_q.numpy()).T  # an even grid, in q's own directions
        log_q, log_p = (
            stats.multivariate_normal(m.numpy(), c.numpy()).logpdf(x) for m, c in ((mean_q, cov_q), (mean_p, cov_p))
        )
        expected = (np.exp(log_q) * (log_q - log_p)).sum() / np.exp(log_q).sum()
        worst = largest(worst, apart(f(mean_q, cov_q, mean_p, cov_p), expected))
    return worst


def _kl_full(mean_q, cov_q, mean_p, cov_p, dimensions=None):
    shift = (mean_q - mean_p) @ cov_p.inverse() @ (mean_q - mean_p)
    spread = torch.trace(cov_p.inverse() @ cov_q)
    return 0.5 * (cov_p.logdet() - cov_q.logdet() + spread + shift - (dimensions or len(mean_q)))


@kl_full.wrong("the diagonals only: a sum over the entries", seen="the formula for independent entries, used for all")
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q.diagonal().diag(), mean_p, cov_p.diagonal().diag())


@kl_full.wrong("−1 instead of −D", seen="the constant of one dimension")
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q, mean_p, cov_p, dimensions=1)


@kl_full.wrong("the arguments swapped", seen="KL taken for symmetric")
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_p, cov_p, mean_q, cov_q)


@kl_full.wrong("the determinants' ratio upside down", seen="a common slip")
def _(mean_q, cov_q, mean_p, cov_p):
    return _kl_full(mean_q, cov_q, mean_p, cov_p) + cov_q.logdet() - cov_p.logdet()


@kl_full.wrong("the trace of a product taken for the product of the traces", seen="a common slip")
def _(mean_q, cov_q, mean_p, cov_p):
    inverse = cov_p.inverse()
    right = _kl_full(mean_q, cov_q, mean_p, cov_p)
    return right + 0.5 * (inverse.trace() * cov_q.trace() - (inverse @ cov_q).trace())


@check("1.8", "derivative of SiLU", "identity", "autograd, and central differences of scipy's sigmoid", to=1e-9)
def silu_derivative(f):
    """f(z), z (N,), returns d silu/dz."""
    z = torch.from_numpy(np.random.default_rng(0).normal(0, 4, 200)).requires_grad_()
    (autograd,) = torch.autograd.grad((z * torch.sigmoid(z)).sum(), z)
    z, h = z.detach(), 1e-3
    silu = {k: (z.numpy() + k * h) * special.expit(z.numpy() + k * h) for k in (-2, -1, 1, 2)}
    differences = (8 * (silu[1] - silu[-1]) - (silu[2] - silu[-2])) / (12 * h)  # errors of order h⁴
    return largest(apart(f(z), autograd), apart(f(z), differences))


@silu_derivative.states
def _(z):
    return torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))


@silu_derivative.wrong("the product rule's second term is forgotten: σ(z)", seen="a common slip")
def _(z):
    return torch.sigmoid(z)


@silu_derivative.wrong("σ(1 − σ), the derivative of the sigmoid", seen="SiLU and sigmoid mixed up")
def _(z):
    return torch.sigmoid(z) * (1 - torch.sigmoid(z))


@silu_derivative.wrong("σ(z) + z·σ(z): the factor 1 − σ is lost", seen="the derivative of exp in the place of σ's")
def _(z):
    return torch.sigmoid(z) * (1 + z)


@silu_derivative.wrong("ReLU's step", seen="a hand-written backward pass for the wrong activation")
def _(z):
    return (z > 0).double()


@check("1.9", "moments of ReLU", "identity", "adaptive quadrature", to=1e-9)
def relu_moments(f):
    """f(var) returns E[relu(z)] and E[relu(z)²] for z ~ N(0, var)."""
    worst = 0.0
    for var in (0.3, 1.0, 2.6):
        density = stats.norm(0, var**0.5).pdf
        first, second = (
            integrate.quad(lambda z, k=k, p=density: z**k * p(z), 0, 40, epsabs=1e-12, points=[1, 4])[0] for k in (1, 2)
        )
        worst = largest(worst, apart(np.array(f(var)), np.array([first, second])))
    return worst


@relu_moments.states
def _(var):
    return (var / (2 * math.pi)) ** 0.5, var / 2


@relu_moments.wrong("the moments of |z|: the negative half is folded, not cut off", seen="half-normal formulas copied")
def _(var):
    return (2 * var / math.pi) ** 0.5, var


@relu_moments.wrong("the variance in the place of the second moment", seen="forgets that ReLU's mean is not 0")
def _(var):
    return (var / (2 * math.pi)) ** 0.5, var / 2 - var / (2 * math.pi)


@relu_moments.wrong("the mean grows with the variance, not with its root", seen="variance and deviation mixed up")
def _(var):
    return var / (2 * math.pi) ** 0.5, var / 2


@functools.cache
def rejection_rates(tests=200_000):
    """((delta, n, c), share of the simulated tests with |z| > c, its standard error) for a few settings."""
    found, random = [], np.random.default_rng(0)
    for delta, n, c in ((0.0, 16, 1.0), (0.05, 25, 1.5), (-0.4, 25, 2.0), (0.6, 16, 3.0), (0.3, 50, 1.2)):
        z = random.normal(delta, 1, (tests, n)).mean(1) * n**0.5
        rate = (np.abs(z) > c).mean()
        found.append(((delta, n, c), rate, (rate * (1 - rate) / tests) ** 0.5))
    return found


@check("1.10", "power of a z-test", "identity", "rejections counted in 200,000 simulated z-tests")
def power(f):
    """f(delta, n, c) returns P(|z| > c), z = √n·average, for n draws of variance 1 with mean delta."""
    return largest(*(abs(rate - f(*setting)) / error for setting, rate, error in rejection_rates()))


@power.states
def _(delta, n, c):
    shift = delta * n**0.5
    return special.ndtr(shift - c) + special.ndtr(-shift - c)


@power.wrong("one tail only", seen="the second term dropped, which is right for large shifts only")
def _(delta, n, c):
    return special.ndtr(abs(delta) * n**0.5 - c)


@power.wrong("δ·n in the place of δ·√n", seen="the root lost: the sum's shift without the sum's spread")
def _(delta, n, c):
    return special.ndtr(delta * n - c) + special.ndtr(-delta * n - c)


@power.wrong("the number of draws is forgotten", seen="a deviation of the draws taken for that of their average")
def _(delta, n, c):
    return special.ndtr(delta - c) + special.ndtr(-delta - c)


@power.wrong("the probability to miss", seen="power and its complement mixed up")
def _(delta, n, c):
    shift = delta * n**0.5
    return special.ndtr(c - shift) - special.ndtr(-shift - c)
