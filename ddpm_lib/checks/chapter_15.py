"""The checks of chapter 15, evaluation. The routes take roots by another algorithm, differentiate a distance twice,
write a kernel's features out, go through all pairs, all labels and all tables, and integrate.
"""

import inspect
import itertools
import math
from statistics import NormalDist

import numpy as np
import torch
from scipy import integrate, optimize, stats

from ddpm_lib.checks import apart, check
from ddpm_lib.checks.chapter_03 import SHORT, walk
from ddpm_lib.checks.chapter_04 import TWO
from ddpm_lib.checks.guard import Watched, apart_each, relative, until
from ddpm_lib.checks.noise import NEVER
from ddpm_lib.diffusion.elbo import bits_per_dim, bound_term, discretised_log_likelihood, prior_term
from ddpm_lib.diffusion.forward import forward_var, noise_like
from ddpm_lib.evaluation import bits, coverage, intervals, memorised


def double(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def takes(f, option):
    """Whether a function has this optional argument: what it does not have is not asked of it."""
    return option in inspect.signature(f).parameters


# 15.1


def _gaussians():
    """Pairs of means and covariances, and their distance by routes that know nothing of the function."""
    random = np.random.default_rng(0)
    for dims, scale in ((1, 1.0), (2, 1.0), (3, 1e-7), (5, 1e4), (8, 1.0)):
        roots = random.standard_normal((2, dims, dims + 2))
        C, D = (scale * root @ root.T for root in roots)
        m, n = scale**0.5 * random.standard_normal((2, dims))
        yield m, C, n, D, ((m - n) ** 2).sum() + np.trace(C + D) - 2 * _trace_of_root(C @ D)
    a, b = random.standard_normal((2, 4))  # all on one line: the root's trace is that of one number
    yield a, np.outer(a, a), b, np.outer(b, b), ((a - b) ** 2).sum() + a @ a + b @ b - 2 * abs(a @ b)
    s, t = np.array([2.0, 0.5, 0.0, 1.0]), np.array([1.0, 0.5, 3.0, 0.0])  # independent, some constant
    yield np.zeros(4), np.diag(s**2), np.full(4, 0.3), np.diag(t**2), 4 * 0.09 + ((s - t) ** 2).sum()
    turn = np.linalg.qr(random.standard_normal((4, 4)))[0]  # one basis, a large and a small direction exchanged
    s, t = np.array([1.0, 1e-3, 0.5, 1.0]), np.array([1e-3, 1.0, 0.4, 2.0])
    C, D = ((turn * root**2) @ turn.T for root in (s, t))
    m, n = 1e7 + random.standard_normal((2, 4))  # far from the origin, and near to each other
    yield m, (C + C.T) / 2, n, (D + D.T) / 2, ((m - n) ** 2).sum() + ((s - t) ** 2).sum()


def _trace_of_root(matrix):
    """The trace of the principal root, by Denman and Beavers's iteration: averages of a matrix and an inverse."""
    Y, Z = matrix / np.trace(matrix), np.eye(len(matrix))
    for _ in range(30):
        Y, Z = (Y + np.linalg.inv(Z)) / 2, (Z + np.linalg.inv(Y)) / 2
    return np.trace(Y) * np.trace(matrix) ** 0.5


@check(
    "15.1", "distance of Gaussians", "implementation", "the product's root by Denman and Beavers's iteration", to=1e-6
)
@until(1e-5)
def frechet(f):
    """f(mean, cov, other_mean, other_cov) returns the distance of two Gaussians; off relative to the sum of its parts.

    mean, other_mean: (D,); cov, other_cov: (D, D), which may be singular.
    """
    f = Watched(f)
    for m, C, n, D, exact in _gaussians():
        size = ((m - n) ** 2).sum() + np.trace(C + D)
        m, C, n, D = map(double, (m, C, n, D))
        for found in (f(m, C, n, D), f(n, D, m, C)):
            yield apart(found, exact, size)
        yield apart(f(m, C, m, C), 0.0, size)
        yield apart(f(m.float(), C.float(), m.float(), C.float()), 0.0, size)
    yield f.fault


def _root(C):
    value, vector = torch.linalg.eigh(C)
    return vector * value.clamp(min=0).sqrt() @ vector.T


def _frechet(m, C, n, D, cross=None, mean=None):
    cross = torch.linalg.eigvalsh(_root(C) @ D @ _root(C)).clamp(min=0).sqrt().sum() if cross is None else cross
    mean = (m - n).square().sum() if mean is None else mean
    return float(mean + C.trace() + D.trace() - 2 * cross)


@frechet.wrong(
    "the root of each entry of the product, not of the matrix",
    seen="of this kind: bioinf-jku/TTUR issue 12 asks which of the two is meant",
    idea="exchange",
)
def _(m, C, n, D):
    return _frechet(m, C, n, D, (C @ D).clamp(min=0).sqrt().trace())


@frechet.wrong(
    "√C·√C' for √(C·C')", seen="of this kind: crowsonkb/k-diffusion PR 78, a wrong root of the matrix", idea="exchange"
)
def _(m, C, n, D):
    return _frechet(m, C, n, D, (_root(C) @ _root(D)).trace())


@frechet.wrong(
    "the product's eigenvalues as if it were symmetric", seen="toshas/torch-fidelity issue 46 tries it", idea="exchange"
)
def _(m, C, n, D):
    return _frechet(m, C, n, D, torch.linalg.eigvalsh(C @ D).clamp(min=0).sqrt().sum())


@frechet.wrong(
    "1e-6 on both diagonals, always",
    seen="of this kind: mseitzer/pytorch-fid issue 117, where it stands for stability",
    idea="edge",
)
def _(m, C, n, D):
    small = 1e-6 * torch.eye(len(C), dtype=C.dtype)
    return _frechet(m, C + small, n, D + small)


@frechet.wrong(
    "a few steps of Newton and Schulz's iteration, stopped early",
    seen="photosynthesis-team/piq issue 381",
    idea="edge",
)
def _(m, C, n, D):
    size = (C @ D).norm().clamp(min=1e-300)
    Y, Z, one = C @ D / size, torch.eye(len(C), dtype=C.dtype), torch.eye(len(C), dtype=C.dtype)
    for _ in range(4):
        T = (3 * one - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return _frechet(m, C, n, D, Y.trace() * size.sqrt())


@frechet.wrong("|m − m'|, not squared", seen="no public source: a plausible slip", idea="power")
def _(m, C, n, D):
    return _frechet(m, C, n, D, mean=(m - n).norm())


@frechet.wrong("the mean over the features of (m − m')²", seen="no public source: a plausible slip", idea="axis")
def _(m, C, n, D):
    return _frechet(m, C, n, D, mean=(m - n).square().mean())


@frechet.wrong("the root's trace once, not twice", seen="no public source: a plausible slip", idea="term")
def _(m, C, n, D):
    return (_frechet(m, C, n, D) + _frechet(m, C, n, D, 0.0)) / 2


@frechet.wrong("variances alone, as if features were independent", seen="no public source: a shortcut", idea="term")
def _(m, C, n, D):
    return _frechet(m, C.diag().diag(), n, D.diag().diag())


@frechet.wrong("the distance, not its square", seen="no public source: W₂ where its square is meant", idea="power")
def _(m, C, n, D):
    return max(_frechet(m, C, n, D), 0.0) ** 0.5


@frechet.wrong("|C − C'|² in the place of the roots'", seen="no public source: a plausible slip", idea="exchange")
def _(m, C, n, D):
    return float((m - n).square().sum() + (C - D).square().sum())


# 15.2


@check(
    "15.2",
    "bias of the distance",
    "implementation",
    "second differences of the distance, along the directions of Wishart's noise",
    to=1e-4,
)
@until(1e-3)
def bias(f):
    """f(cov, other_cov, n, m) returns the leading term of E[distance of estimates] − distance of the Gaussians.

    cov, other_cov: (D, D), float64; n, m: features from which each pair of mean and covariance is estimated, or inf.
    """
    f = Watched(f)
    random = np.random.default_rng(1)
    for dims, n, m in ((1, 1e4, 3e4), (2, 1e4, math.inf), (3, math.inf, 1e4), (4, 2e4, 1e4), (3, 1e4, 1e4)):
        C, D = (root @ root.T / dims for root in random.standard_normal((2, dims, dims + 2)))
        for first, second in ((C, D), (C, C), (1e-4 * C, 1e-4 * D)):
            exact = (np.trace(first) + _curvature(first, second)) / n + (
                np.trace(second) + _curvature(second, first)
            ) / m
            yield relative(f(double(first), double(second), n, m), exact)
    for s, t in (((1.0, 2.0, 0.5), (1.0, 0.3, 3.0)), ((1.0, 0.0, 2.0, 0.0), (0.5, 0.0, 0.0, 3.0)), ((0.0,), (1.0,))):
        s, t = np.array(s), np.array(t)  # one basis: the eigenvalues are products, and some directions are constant
        pairs = [a * b / (a + b) for a in s * t for b in s * t if a + b]
        both = sum(pairs) / 2 + (s * t).sum() / 4
        exact = ((s**2).sum() + both) / 2e3 + ((t**2).sum() + both) / 7e2
        yield 1e5 * relative(f(double(np.diag(s**2)), double(np.diag(t**2)), 2e3, 7e2), exact)
    yield f.fault


def _curvature(C, D):
    """n times what the noise of an estimated C adds on average: half the distance's second slopes, by differences."""
    dims, L = len(C), np.linalg.cholesky(C)
    total, h = 0.0, 0.02

    def distance(E):
        return np.trace(C + E) - 2 * _trace_of_root((C + E) @ D)

    for i, j in itertools.combinations_with_replacement(range(dims), 2):
        B = np.zeros((dims, dims))  # Wishart's noise is L·B·Lᵀ/√n, with independent B of variance 2 and 1
        B[i, j] += 2**0.5 if i == j else 1
        B[j, i] = B[i, j]
        E = L @ B @ L.T
        values = [distance(k * h * E) for k in range(-3, 4)]
        weights = np.array([2, -27, 270, -490, 270, -27, 2]) / 180
        total += weights @ values / h**2 / 2
    return total


def _bias(C, D, n, m, curved=None, means=(1, 1), covs=(1, 1)):
    s = torch.linalg.eigvalsh(_root(C) @ D @ _root(C)).clamp(min=0).sqrt()
    curved = curved or (lambda s: (s[:, None] * s / (s[:, None] + s)).sum() / 2 + s.sum() / 4)
    first = (means[0] * C.trace() + covs[0] * curved(s)) / n
    return float(first + (means[1] * D.trace() + covs[1] * curved(s)) / m)


def biased(what, function, idea="term"):
    bias.wrong(what, seen="no public source: a plausible slip", idea=idea)(function)


biased("of the means alone", lambda C, D, n, m: _bias(C, D, n, m, covs=(0, 0)))
biased("of the covariances alone", lambda C, D, n, m: _bias(C, D, n, m, means=(0, 0)))
biased(
    "one set's, as if the other's statistics were always exact",
    lambda C, D, n, m: _bias(C, D, n, m, means=(1, 0), covs=(1, 0)),
)
biased(
    "variances alone: of the order of D, not D²",
    lambda C, D, n, m: _bias(C, D, n, m, curved=lambda s: s.sum() / 2),
)
biased(
    "without the diagonal's second part",
    lambda C, D, n, m: _bias(C, D, n, m, curved=lambda s: _curved(s) - s.sum() / 4),
)
biased(
    "(s_i + s_j)/4 for s_i·s_j/(s_i + s_j)",
    lambda C, D, n, m: _bias(C, D, n, m, curved=lambda s: (len(s) + 1) * s.sum() / 4),
    idea="exchange",
)
biased(
    "s² for s: eigenvalues without their root",
    lambda C, D, n, m: _bias(C, D, n, m, curved=lambda s: _curved(s**2)),
    idea="power",
)
biased("covariances make it smaller", lambda C, D, n, m: _bias(C, D, n, m, covs=(-1, -1)), idea="sign")
biased("the ½ of the second order left out", lambda C, D, n, m: _bias(C, D, n, m, covs=(2, 2)))


def _curved(s):
    return (s[:, None] * s / (s[:, None] + s)).sum() / 2 + s.sum() / 4


@bias.wrong("n and m exchanged", seen="no public source: a plausible slip", idea="exchange")
def _(C, D, n, m):
    return _bias(C, D, m, n)


@bias.wrong("1/√n for 1/n", seen="no public source: a standard error's rate", idea="power")
def _(C, D, n, m):
    return _bias(C, D, n**0.5, m**0.5)


# 15.3


def _feature_sets():
    random = np.random.default_rng(2)
    for n, m, dims, offset in ((2, 2, 1, 0.0), (9, 5, 3, 0.4), (6, 6, 2, 0.0), (21, 13, 4, -1.5), (7, 30, 5, 30.0)):
        yield random.standard_normal((n, dims)), 1.3 * random.standard_normal((m, dims)) + offset
    yield np.full((4, 2), 0.5), np.full((3, 2), 0.5)  # nothing differs
    same = random.standard_normal((12, 3))
    yield same, same.copy()  # then it is negative
    yield np.concatenate([same[:4], same[:3]]), np.repeat(same[:2], 3, axis=0)  # points that occur twice are two


def _kernel_by_features(x, y):
    """MMD² from the mean of monomials: (x·y/d + 1)³ is a sum of products of tensor powers, by the binomial theorem."""
    n, m, dims = len(x), len(y), x.shape[1]
    own, other, mixed = 0.0, 0.0, 0.0
    for power in range(4):
        weight = math.comb(3, power) / dims**power
        tx, ty = _powers(x, power), _powers(y, power)
        own += weight * ((tx.sum(0) ** 2).sum() - (tx**2).sum())
        other += weight * ((ty.sum(0) ** 2).sum() - (ty**2).sum())
        mixed += weight * (tx.sum(0) @ ty.sum(0))
    return own / (n * (n - 1)) + other / (m * (m - 1)) - 2 * mixed / (n * m)


def _powers(x, power):
    """All products of `power` entries of each row, (N, D^power)."""
    out = np.ones((len(x), 1))
    for _ in range(power):
        out = (out[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return out


@check("15.3", "kernel distance", "implementation", "means of all monomials up to the third degree", to=1e-9)
@until(1e-8)
def kernel_(f):
    """f(real, fake) returns the unbiased estimate of MMD² with the kernel (x·y/D + 1)³; off relative to that kernel.

    real: (N, D), fake: (M, D), float64 or float32.
    """
    f = Watched(f)
    for x, y in _feature_sets():
        size = max((np.square(z).sum(1).mean() / z.shape[1] + 1) ** 3 for z in (x, y))
        exact = _kernel_by_features(x, y)
        yield apart(f(double(x), double(y)), exact, size)
        yield apart(f(double(y[::-1].copy()), double(x)), exact, size)
        x, y = x.astype(np.float32), y.astype(np.float32)
        yield apart(f(torch.from_numpy(x), torch.from_numpy(y)), _kernel_by_features(*map(np.float64, (x, y))), size)
    x, y = _random_sets(23, 17, 3)
    for block in (1, 17, 40, 10**6) if takes(f.function, "block") else ():  # one row at a time; a rest of rows
        yield apart(f.function(double(x), double(y), block=block), _kernel_by_features(x, y))
    yield f.fault


def _random_sets(n, m, dims):
    random = np.random.default_rng(6)
    return random.standard_normal((n, dims)), random.standard_normal((m, dims)) + 0.3


def _grams(x, y, k=lambda products, dims: (products / dims + 1) ** 3):
    x, y = x.double(), y.double()
    return k(x @ x.T, x.shape[1]), k(y @ y.T, x.shape[1]), k(x @ y.T, x.shape[1])


def _mmd(xx, yy, xy):
    n, m = len(xx), len(yy)
    own = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(own - 2 * xy.mean())


@kernel_.wrong(
    "each point paired with itself, too: biased upwards",
    seen="shogun-toolbox/shogun issue 5133, where the diagonal changes the estimate",
    idea="term",
)
def _(x, y):
    xx, yy, xy = _grams(x, y)
    return float(xx.mean() + yy.mean() - 2 * xy.mean())


@kernel_.wrong(
    "the diagonal left out of the sum, and counted in the mean", seen="no public source: a plausible slip", idea="axis"
)
def _(x, y):
    xx, yy, xy = _grams(x, y)
    own = (xx.sum() - xx.trace()) / len(xx) ** 2 + (yy.sum() - yy.trace()) / len(yy) ** 2
    return float(own - 2 * xy.mean())


@kernel_.wrong("x·y not divided by D", seen="no public source: a plausible slip", idea="term")
def _(x, y):
    return _mmd(*_grams(x, y, lambda products, dims: (products + 1) ** 3))


@kernel_.wrong("the second degree", seen="no public source: a kernel of covariances alone", idea="power")
def _(x, y):
    return _mmd(*_grams(x, y, lambda products, dims: (products / dims + 1) ** 2))


@kernel_.wrong("the 1 inside the bracket left out", seen="no public source: a plausible slip", idea="term")
def _(x, y):
    return _mmd(*_grams(x, y, lambda products, dims: (products / dims) ** 3))


@kernel_.wrong("a Gaussian kernel", seen="no public source: another MMD, not the one of Bińkowski", idea="exchange")
def _(x, y):
    x, y = x.double(), y.double()
    return _mmd(*(torch.exp(-(torch.cdist(a, b) ** 2) / (2 * x.shape[1])) for a, b in ((x, x), (y, y), (x, y))))


@kernel_.wrong("never below 0", seen="no public source: a clamp that brings the bias back", idea="edge")
def _(x, y):
    return max(0.0, _mmd(*_grams(x, y)))


@kernel_.wrong("MMD, not its square", seen="no public source: a plausible slip", idea="power")
def _(x, y):
    value = _mmd(*_grams(x, y))
    return math.copysign(abs(value) ** 0.5, value)


@kernel_.wrong("mixed pairs once", seen="no public source: a plausible slip", idea="term")
def _(x, y):
    xx, yy, xy = _grams(x, y)
    return _mmd(xx, yy, xy / 2)


@kernel_.wrong(
    "only whole blocks of eight rows", seen="IFCA-Advanced-Computing/frouros issue 252: MMD by chunks", idea="axis"
)
def _(x, y):
    whole = [z[: max(2, len(z) // 8 * 8)] for z in (x, y)]
    return _mmd(*_grams(*whole))


@kernel_.wrong("the mixed pairs i = j left out, too", seen="no public source: the U-statistic of n = m", idea="term")
def _(x, y):
    n = min(len(x), len(y))
    xx, yy, xy = _grams(x[:n], y[:n])
    return _mmd(xx, yy, (xy - xy.diag().diag()) * n / (n - 1))


# 15.4 and 15.5


def _clouds():
    """real, fake and k: clouds, tight clusters far apart, a grid with many equal distances, copies."""
    random = np.random.default_rng(3)
    for n, m, dims, k in ((40, 25, 2, 3), (12, 30, 3, 1), (30, 30, 5, 5), (9, 14, 1, 8)):
        yield random.standard_normal((n, dims)), 0.7 * random.standard_normal((m, dims)) + 0.4, k
    far = np.where(np.arange(30)[:, None] < 15, 1e6, 0.0)
    yield far + 1e-3 * random.standard_normal((30, 2)), far + 1e-3 * random.standard_normal((30, 2)), 2
    for k, count in ((1, 2), (4, 5)):  # the farthest of the others
        yield random.standard_normal((count, 2)), random.standard_normal((count, 2)) + 1.5, k
    yield random.integers(0, 4, (15, 2)).astype(float), random.integers(0, 5, (18, 2)).astype(float), 2
    real = random.standard_normal((16, 3))
    yield real, np.concatenate([real[:5], real[:5], 3 + real[5:9]]), 3
    yield real + 1e8, 0.5 * random.standard_normal((10, 3)) + 1e8, 3
    line = np.arange(12.0)[:, None]
    yield line, np.concatenate([line[:6] + 0.25, line[:3] + 40.0]), 2
    yield line, np.array([[-2.0 - 1e-8], [13.0 + 1e-8], [30.0], [60.0]]), 2  # just outside of the first and last ball
    yield line, np.array([[-2.0], [13.0], [30.0], [60.0]]), 2  # on their borders


def _distances(x, y):
    """By plain loops, exactly: two points are as far apart as their differences say, rounded once."""
    return [[math.dist(a, b) for b in y.tolist()] for a in x.tolist()]


def _radii(x, k):
    return [sorted(d for j, d in enumerate(row) if j != i)[k - 1] for i, row in enumerate(_distances(x, x))]


@check("15.4", "precision and recall", "implementation", "plain loops over all pairs", to=1e-12)
@until(1e-11)
def precision(f):
    """f(real, fake, k) returns two shares: of fake points in a real ball, of real points in a fake ball. Balls are
    closed, and reach to the k-th nearest other point of the same set.

    real: (N, D), fake: (M, D).
    """
    f = Watched(f)
    for x, y, k in _clouds():
        in_real = [any(d <= r for d, r in zip(row, _radii(x, k), strict=True)) for row in _distances(y, x)]
        in_fake = [any(d <= r for d, r in zip(row, _radii(y, k), strict=True)) for row in _distances(x, y)]
        yield apart_each(f(double(x), double(y), k), (np.mean(in_real), np.mean(in_fake)))
    yield f.fault


def _cdist(x, y):
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _kth(x, k):
    return _cdist(x, x).kthvalue(min(max(k + 1, 1), len(x)), dim=1).values


def _in(points, centres, radius):
    return (_cdist(points, centres) <= radius).any(1).double().mean().item()


@precision.wrong(
    "the two exchanged",
    seen="toshas/torch-fidelity issue 58: the first input is taken for the real images",
    idea="exchange",
)
def _(x, y, k):
    return coverage.precision_and_recall(y, x, k)


@precision.wrong("each point counts as its own first neighbour", seen="no public source: k for k + 1", idea="time")
def _(x, y, k):
    return _in(y, x, _kth(x, k - 1)), _in(x, y, _kth(y, k - 1))


@precision.wrong("one neighbour more", seen="no public source: k + 2 in a list that begins with oneself", idea="time")
def _(x, y, k):
    return _in(y, x, _kth(x, k + 1)), _in(x, y, _kth(y, k + 1))


@precision.wrong("real points' balls for both", seen="no public source: a plausible slip", idea="exchange")
def _(x, y, k):
    within = _cdist(y, x) <= _kth(x, k)
    return within.any(1).double().mean().item(), within.any(0).double().mean().item()


@precision.wrong(
    "the ball of the nearest point alone", seen="no public source: a shortcut that loses balls", idea="edge"
)
def _(x, y, k):
    def share(points, centres):
        distance, index = _cdist(points, centres).min(1)
        return (distance <= _kth(centres, k)[index]).double().mean().item()

    return share(y, x), share(x, y)


@precision.wrong("one radius for all: the mean", seen="no public source: a plausible slip", idea="axis")
def _(x, y, k):
    return _in(y, x, _kth(x, k).mean()), _in(x, y, _kth(y, k).mean())


@precision.wrong("open balls", seen="of this kind: clovaai/generative-evaluation-prdc, where < stands", idea="edge")
def _(x, y, k):
    def share(points, centres):
        return (_cdist(points, centres) < _kth(centres, k)).any(1).double().mean().item()

    return share(y, x), share(x, y)


@precision.wrong(
    "|a|² + |b|² − 2ab in float32", seen="no public source: the fast formula, where its digits are lost", idea="edge"
)
def _(x, y, k):
    def fast(a, b):
        a, b = a.float(), b.float()
        return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0).sqrt()

    def share(points, centres):
        radius = fast(centres, centres).kthvalue(k + 1, dim=1).values
        return (fast(points, centres) <= radius).any(1).double().mean().item()

    return share(y, x), share(x, y)


@precision.wrong("squares compared with radii", seen="no public source: a plausible slip", idea="power")
def _(x, y, k):
    def share(points, centres):
        return (_cdist(points, centres) ** 2 <= _kth(centres, k)).any(1).double().mean().item()

    return share(y, x), share(x, y)


@check("15.5", "density and coverage", "implementation", "plain loops over all pairs", to=1e-12)
@until(1e-11)
def density(f):
    """f(real, fake, k) returns the mean number of real balls around a fake point, over k, and the share of real balls
    that hold a fake point. Balls are closed, and reach to the k-th nearest other real point.

    real: (N, D), fake: (M, D).
    """
    f = Watched(f)
    few = np.random.default_rng(7).standard_normal((15, 2))
    for x, y, k in itertools.chain(_clouds(), ((few[:12], few[12:13], 4), (few[:12], few[12:], 11))):  # k > M
        radii, table = _radii(x, k), _distances(y, x)
        inside = [[d <= r for d, r in zip(row, radii, strict=True)] for row in table]
        exact = np.mean([sum(row) for row in inside]) / k, np.mean(np.any(inside, axis=0))
        yield apart_each(f(double(x), double(y), k), exact)
    yield f.fault


def _within(x, y, k):
    return _cdist(y, x) <= _kth(x, k)


def dense(what, function, idea="term"):
    density.wrong(what, seen="no public source: a plausible slip", idea=idea)(function)


def _two(w, over_points, over_balls):
    """Both numbers, of how many balls hold each fake point and how many fake points each real ball holds."""
    w = w.double()
    return float(over_points(w.sum(1))), float(over_balls(w.sum(0)))


def _any(counts):
    return (counts > 0).double().mean()


dense("density not divided by k", lambda x, y, k: _two(_within(x, y, k), lambda c: c.mean(), _any))
dense(
    "density of at most 1",
    lambda x, y, k: _two(_within(x, y, k), lambda c: (c / k).clamp(max=1).mean(), _any),
    idea="edge",
)
dense(
    "the mean over real points", lambda x, y, k: _two(_within(x, y, k), lambda c: c.sum() / (k * len(x)), _any), "axis"
)
dense(
    "coverage counts fake points: precision",
    lambda x, y, k: (_two(_within(x, y, k), lambda c: c.mean() / k, _any)[0], _two(_within(x, y, k), _any, _any)[0]),
    idea="axis",
)
dense("density is precision", lambda x, y, k: _two(_within(x, y, k), _any, _any), idea="exchange")
dense("the two exchanged", lambda x, y, k: _two(_within(x, y, k), lambda c: c.mean() / k, _any)[::-1], idea="exchange")
dense(
    "coverage over fakes",
    lambda x, y, k: _two(_within(x, y, k), lambda c: c.mean() / k, lambda c: (c > 0).double().sum() / len(y)),
    idea="axis",
)


@density.wrong("balls around fake points", seen="no public source: a plausible slip", idea="exchange")
def _(x, y, k):
    w = (_cdist(x, y) <= _kth(y, min(k, len(y) - 1))).double()
    return w.sum(1).mean().item() / k, w.amax(1).mean().item()


@density.wrong("each point counts as its own first neighbour", seen="no public source: k for k + 1", idea="time")
def _(x, y, k):
    w = (_cdist(y, x) <= _kth(x, k - 1)).double()
    return w.sum(1).mean().item() / k, w.amax(0).mean().item()


@density.wrong("one neighbour more", seen="no public source: k + 2 in a list that begins with oneself", idea="time")
def _(x, y, k):
    w = (_cdist(y, x) <= _kth(x, k + 1)).double()
    return w.sum(1).mean().item() / k, w.amax(0).mean().item()


@density.wrong("open balls", seen="clovaai/generative-evaluation-prdc, prdc/prdc.py: < for ≤", idea="edge")
def _(x, y, k):
    w = (_cdist(y, x) < _kth(x, k)).double()
    return w.sum(1).mean().item() / k, w.amax(0).mean().item()


# 15.6


@check("15.6", "copying score", "implementation", "all ways to share the labels out", to=1e-9)
@until(1e-8)
def copying(f):
    """f(fake, held_out, train) returns z and the probability that a sample is nearer to `train` than a held-out one is.

    fake: (M, D), held_out: (N, D), train: (L, D). z is negative where samples are nearer.
    """
    f = Watched(f)
    random = np.random.default_rng(4)
    for m, n, size, dims, move in ((3, 4, 6, 2, 0.0), (6, 5, 9, 1, 0.8), (2, 7, 5, 3, -0.5), (5, 5, 4, 2, 2.0)):
        train = random.standard_normal((size, dims))
        fake, held_out = random.standard_normal((m, dims)) * (1 + move / 3), random.standard_normal((n, dims))
        yield _apart_copying(f, fake, held_out, train)
        fake[0], held_out[0] = train[0], train[1]  # copies: equal distances, of 0
        yield _apart_copying(f, fake, held_out, train)
    grid = random.integers(0, 3, (3, 6, 2)).astype(float)  # many ties
    yield _apart_copying(f, grid[0], grid[1][:5], grid[2][:4])
    yield _apart_copying(f, grid[0] * 0 + 7, grid[1][:5], grid[2][:4])
    for scale, middle in ((1e-3, 1e6), (1e-9, 0.0)):  # far from the origin; much nearer than a rounded digit
        sets = (middle + scale * random.standard_normal((count, 2)) for count in (5, 6, 8))
        yield _apart_copying(f, *sets)
    same = double(np.ones((4, 2)))
    yield apart_each(f(same[:2], same, same * 3), (0.0, 0.5))  # nothing but ties
    yield f.fault


def _apart_copying(f, fake, held_out, train):
    x, y = ([min(row) for row in _distances(z, train)] for z in (fake, held_out))
    both = np.array(x + y)
    farther = (both[:, None] > both).astype(float) + (both[:, None] == both) / 2
    counts = []
    for chosen in itertools.combinations(range(len(both)), len(x)):
        others = np.setdiff1d(np.arange(len(both)), chosen)
        counts.append(farther[np.ix_(chosen, others)].sum())
    U = farther[: len(x), len(x) :].sum()
    exact = (U - np.mean(counts)) / np.std(counts), 1 - U / (len(x) * len(y))
    return apart_each(f(*map(double, (fake, held_out, train))), exact)


def _nearest(points, among):
    return _cdist(points, among).min(1).values


def _U(x, y, tie=0.5):
    return float((x[:, None] > y).sum() + tie * (x[:, None] == y).sum())


def _score(x, y, var=None, tie=0.5):
    m, n, U = len(x), len(y), _U(x, y, tie)
    _, counts = torch.cat([x, y]).unique(return_counts=True)
    ties = float((counts.double() ** 3 - counts).sum()) / ((m + n) * (m + n - 1))
    var = m * n / 12 * (m + n + 1 - ties) if var is None else var
    return (U - m * n / 2) / var**0.5, 1 - U / (m * n)


@copying.wrong("the sign turned round: copies positive", seen="no public source: U of the other set", idea="sign")
def _(fake, held_out, train):
    z, nearer = memorised.copying_score(fake, held_out, train)
    return -z, nearer


@copying.wrong("the probability of being farther", seen="no public source: U itself, over m·n", idea="sign")
def _(fake, held_out, train):
    z, nearer = memorised.copying_score(fake, held_out, train)
    return z, 1 - nearer


@copying.wrong(
    "beside the training points' own nearest neighbours, not held-out images",
    seen="no public source: as `share_of_copies`, which is not calibrated",
    idea="exchange",
)
def _(fake, held_out, train):
    own = _cdist(train, train).fill_diagonal_(math.inf).min(1).values
    return _score(_nearest(fake, train), own)


@copying.wrong("distances to the held-out images", seen="no public source: two arguments exchanged", idea="exchange")
def _(fake, held_out, train):
    return _score(_nearest(fake, held_out), _nearest(train, held_out))


@copying.wrong(
    "ties leave the variance as it is", seen="no public source: the formula without its last term", idea="term"
)
def _(fake, held_out, train):
    m, n = len(fake), len(held_out)
    return _score(_nearest(fake, train), _nearest(held_out, train), m * n * (m + n + 1) / 12)


@copying.wrong("ties count nothing", seen="no public source: > alone", idea="edge")
def _(fake, held_out, train):
    return _score(_nearest(fake, train), _nearest(held_out, train), tie=0.0)


@copying.wrong("ties count as farther", seen="no public source: ≥ alone", idea="edge")
def _(fake, held_out, train):
    return _score(_nearest(fake, train), _nearest(held_out, train), tie=1.0)


@copying.wrong("m + n for m + n + 1 in the variance", seen="no public source: a plausible slip", idea="time")
def _(fake, held_out, train):
    x, y = _nearest(fake, train), _nearest(held_out, train)
    z, nearer = _score(x, y)
    return z * ((len(x) + len(y) + 1) / (len(x) + len(y))) ** 0.5, nearer


@copying.wrong("a t-test on mean distances", seen="no public source: one outlier decides", idea="exchange")
def _(fake, held_out, train):
    x, y = _nearest(fake, train), _nearest(held_out, train)
    z = (x.mean() - y.mean()) / (x.var() / len(x) + y.var() / len(y) + 1e-30).sqrt()
    return float(z), _score(x, y)[1]


@copying.wrong("mean distances to all of the training set", seen="no public source: mean for min", idea="exchange")
def _(fake, held_out, train):
    return _score(_cdist(fake, train).mean(1), _cdist(held_out, train).mean(1))


# 15.7


@check("15.7", "interval of a share", "implementation", "the score test's two borders, by bisection", to=1e-9)
@until(1e-8)
def interval(f):
    """f(hits, n, level) returns the two ends of the interval, in [0, 1]."""
    for hits, n, level in (
        *((0, 10, 0.95), (10, 10, 0.95), (1, 1, 0.9), (0, 1, 0.5), (3, 10, 0.95), (497, 500, 0.99)),
        *((50, 100, 0.68), (1, 2000, 0.95), (7, 8, 0.6), (1999, 2000, 0.999)),
    ):
        z = NormalDist().inv_cdf(0.5 + level / 2)

        def over(p, hits=hits, n=n, z=z):
            return (hits - n * p) ** 2 - z**2 * n * p * (1 - p)

        near = hits / n  # at 0 and at 1 the equation has a root that is no border
        low = 0.0 if hits == 0 else optimize.brentq(over, 0.0, min(near, 1 - 1e-9), xtol=1e-14)
        high = 1.0 if hits == n else optimize.brentq(over, max(near, 1e-9), 1.0, xtol=1e-14)
        yield apart_each(f(hits, n, level), (low, high))


def _normal(level):
    return float(stats.norm.isf((1 - level) / 2))


@interval.wrong("p̂ ± z·√(p̂(1 − p̂)/n)", seen="no public source: Wald's, of no width at 0 and n hits", idea="exchange")
def _(hits, n, level):
    reach = _normal(level) * math.sqrt(hits / n * (1 - hits / n) / n)
    return hits / n - reach, hits / n + reach


@interval.wrong("Wald's, clipped to [0, 1]", seen="no public source: the same, made to look right", idea="edge")
def _(hits, n, level):
    reach = _normal(level) * math.sqrt(hits / n * (1 - hits / n) / n)
    return max(0.0, hits / n - reach), min(1.0, hits / n + reach)


@interval.wrong("z of one side", seen="no public source: 1 − level for (1 − level)/2", idea="term")
def _(hits, n, level):
    return intervals.share_interval(hits, n, 2 * level - 1) if level > 0.5 else (0.0, 1.0)


@interval.wrong("always 1.96", seen="no public source: a constant in the place of the level", idea="exchange")
def _(hits, n, level):
    return intervals.share_interval(hits, n, 0.95)


@interval.wrong("z for z²/n in the middle", seen="no public source: a plausible slip", idea="power")
def _(hits, n, level):
    z, p = _normal(level), hits / n
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return tuple((p + z / (2 * n) + sign * reach) / (1 + z / n) for sign in (-1, 1))


@interval.wrong("not divided by 1 + z²/n", seen="no public source: a plausible slip", idea="term")
def _(hits, n, level):
    low, high = intervals.share_interval(hits, n, level)
    return tuple(end * (1 + _normal(level) ** 2 / n) for end in (low, high))


@interval.wrong("Wald's after two hits and two misses more", seen="no public source: near it, not it", idea="exchange")
def _(hits, n, level):
    p = (hits + 2) / (n + 4)
    reach = _normal(level) * math.sqrt(p * (1 - p) / (n + 4))
    return max(0.0, p - reach), min(1.0, p + reach)


# 15.8


@check("15.8", "jackknife", "implementation", "loops over what is left out, and the known error of a mean")
@until(15)
def jackknife(f):
    """f(metric, samples, groups) returns the standard deviation of metric(samples) over draws of the samples.

    samples: (N, ...), float64. The metric is called once for each of `groups` random groups, on all other samples.
    What is no matter of chance counts as |z| = 5 if it is off by 1e-9.
    """
    random = np.random.default_rng(5)
    for n in (2, 7, 12):  # one sample a group: nothing is random
        x = double(random.standard_normal((n, 2)) + 1)
        for metric in (lambda z: z.mean().item(), lambda z: (z**3).mean().item() ** 2, lambda z: z.var().item()):
            if n == 2 and metric(x[:1]) != metric(x[:1]):
                continue
            values = [metric(torch.cat([x[:i], x[i + 1 :]])) for i in range(n)]
            yield 5e9 * apart(f(metric, x, n), math.sqrt((n - 1) * np.var(values)))
    for n, groups in ((60, 20), (23, 5), (10, 10), (9, 2)):
        asked = []
        f(lambda z, asked=asked: asked.append(set(z[:, 0].tolist())) or 0.0, torch.arange(n).double()[:, None], groups)
        yield NEVER * bool(len(asked) != groups)
        left = [set(range(n)) - part for part in asked]
        sizes = sorted(map(len, left))
        yield NEVER * bool(sizes[-1] - sizes[0] > 1 or sorted(itertools.chain(*left)) != list(range(n)))
        asked_once = [len(part) for part in asked]
        yield NEVER * bool(asked_once != [n - len(out) for out in left])  # no sample twice
    sizes = double(np.repeat(np.arange(10.0), 20))[:, None]  # sorted by class, or one class after the other in turn
    for sorted_ in (sizes, sizes.reshape(10, 20).T.reshape(-1, 1)):
        ratio = f(lambda z: z.mean().item(), sorted_, 20) / (sizes.std().item() / 200**0.5)
        yield NEVER * bool(not 0.4 < ratio < 2.5)
    squares = []
    for trial in range(400):  # a mean's error is known: σ/√N, here 1/√40
        x = double(np.random.default_rng(100 + trial).standard_normal((40, 1)))
        squares.append(40 * f(lambda z: z.mean().item(), x, 8) ** 2)
    yield abs(np.mean(squares) - 1) / (np.std(squares) / 20)
    yield from _drawn_groups(f)
    if takes(f, "strata"):
        yield from _strata(f)


def _drawn_groups(f):
    """Images stay images; the groups come from the seed, whatever was drawn elsewhere, and nothing elsewhere moves."""
    x = double(np.random.default_rng(8).standard_normal((24, 1, 2, 2)))
    before = torch.get_rng_state()

    def spread(**options):
        return f(lambda z: (z[:, 0] ** 2).mean((1, 2)).std().item() if z.ndim == 4 else math.nan, x, 6, **options)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, state = spread(), torch.get_rng_state()
        yield NEVER * bool(not math.isfinite(first) or not torch.equal(torch.manual_seed(1).get_state(), state))
        torch.manual_seed(2)
        yield 5e9 * apart(spread(), first)
    yield NEVER * bool(not torch.equal(before, torch.get_rng_state()))
    if takes(f, "seed"):
        yield NEVER * bool(spread(seed=3) == spread(seed=4) or spread(seed=3) != spread(seed=3))


def _strata(f):
    """So many of each label in each group, drawn label by label: a mean's error is that of the means of the labels."""
    labels = torch.arange(10).repeat_interleave(10)
    x = double(np.tile(np.arange(10.0), 10) + 100 * np.repeat(np.arange(10.0), 10))[:, None]
    asked = []
    f(lambda z: asked.append((z[:, 0] / 100).long().bincount().tolist()) or 0.0, x, 5, strata=labels)
    yield NEVER * bool(asked != [[8] * 10] * 5)
    squares = [f(lambda z: z.mean().item(), x, 5, seed=seed, strata=labels) ** 2 for seed in range(200)]
    expected = np.arange(10.0).var(ddof=1) / 10 / 10
    yield abs(np.mean(squares) - expected) / (np.std(squares) / 200**0.5 + 1e-9)
    mixed = torch.randperm(100, generator=torch.Generator().manual_seed(0))  # labels in no order
    squares = [f(lambda z: z.mean().item(), x[mixed], 5, seed=seed, strata=labels[mixed]) ** 2 for seed in range(50)]
    yield abs(np.mean(squares) - expected) / (np.std(squares) / 50**0.5 + 1e-9)


def _left_out(metric, samples, groups, factor=lambda G: (G - 1) / G, pick=None, order=None):
    n = len(samples)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)) if order is None else order
    parts = order.tensor_split(groups)
    pick = pick or (lambda parts, i: torch.cat([p for j, p in enumerate(parts) if j != i]))
    values = double([metric(samples[pick(parts, i)]) for i in range(groups)])
    return float((factor(groups) * (values - values.mean()).square().sum()).sqrt())


def jack(what, function, idea="term"):
    jackknife.wrong(what, seen="no public source: a plausible slip", idea=idea)(function)


jack("the spread of the values as it is: 1/(G − 1)", lambda f, x, G: _left_out(f, x, G, lambda G: 1 / (G - 1)))
jack(
    "1/(G·(G − 1)), as for a mean's error", lambda f, x, G: _left_out(f, x, G, lambda G: 1 / (G * (G - 1))), "exchange"
)
jack("the factor G − 1 left out: 1/G", lambda f, x, G: _left_out(f, x, G, lambda G: 1 / G))
jack("the sum, not (G − 1)/G of it", lambda f, x, G: _left_out(f, x, G, lambda G: 1.0))
jack(
    "each group alone",
    lambda f, x, G: _left_out(f, x, G, lambda G: 1 / (G * (G - 1)), pick=lambda parts, i: parts[i]),
    idea="exchange",
)
jack(
    "one sample left out, not a group",
    lambda f, x, G: _left_out(f, x, G, pick=lambda parts, i: torch.cat(parts)[torch.cat(parts) != parts[i][0]]),
)


@jackknife.wrong("groups in the order of the samples", seen="no public source: chunks of a sorted set", idea="noise")
def _(metric, x, G):
    return _left_out(metric, x, G, order=torch.arange(len(x)))


@jackknife.wrong("every G-th sample a group", seen="no public source: a stride that meets the labels'", idea="noise")
def _(metric, x, G):
    return _left_out(metric, x, G, order=torch.cat([torch.arange(i, len(x), G) for i in range(G)]))


@jackknife.wrong("the variance", seen="no public source: a plausible slip", idea="power")
def _(metric, x, G):
    return _left_out(metric, x, G) ** 2


@jackknife.wrong("a bootstrap: drawn with replacement", seen="no public source: the usual method", idea="noise")
def _(metric, x, G):
    generator = torch.Generator().manual_seed(0)
    drawn = [metric(x[torch.randint(len(x), (len(x),), generator=generator)]) for _ in range(G)]
    return float(double(drawn).std())


# 15.9


@check("15.9", "two kinds of seeds", "implementation", "all tables that two small laws can give", to=1e-9)
@until(1e-8)
def seeds(f):
    """f(values) returns the variance over trainings and that over draws, unbiased. values: (S, R), float64."""
    f = Watched(f)
    for trained, drawn, S, R in (
        ((0.0, 1.0), (-1.0, 1.0), 2, 2),
        ((0.0, 3.0), (0.0, 0.5), 2, 3),
        ((0.0, 0.0), (0.0, 4.0), 3, 2),
        ((1.0, 2.0, 6.0), (0.0, 1.0), 2, 2),
        ((5.0, 5.0), (1.0, 1.0), 4, 3),
        ((0.0, 2.0), (0.0, 1.0), 3, 2),
        ((2.0**30, 2.0**30 + 2), (0.0, 2.0), 2, 2),  # much larger than their differences
    ):
        sums, count = np.zeros(2), 0
        if len(set(drawn)) == 1:
            tables = [np.full((S, R), trained[0] + drawn[0])]
        else:
            tables = (
                np.array(a)[:, None] + np.array(b).reshape(S, R)
                for a in itertools.product(trained, repeat=S)
                for b in itertools.product(drawn, repeat=S * R)
            )
        for table in tables:
            sums, count = sums + np.array(f(double(table))), count + 1
        yield apart_each(sums / count, (np.var(trained), np.var(drawn)))
    yield f.fault


def seeded(what, function, idea="term"):
    seeds.wrong(what, seen="no public source: a plausible slip", idea=idea)(function)


def _numbers(*values):
    return tuple(map(float, values))


seeded("the means' variance as it is", lambda v: _numbers(v.mean(1).var(), v.var(1).mean()))
seeded("never below 0", lambda v: tuple(max(0.0, part) for part in intervals.seed_variances(v)), idea="edge")
seeded(
    "all numbers together, for the draws",
    lambda v: _numbers(v.mean(1).var() - v.var() / v.shape[1], v.var()),
    idea="axis",
)
seeded("the two exchanged", lambda v: intervals.seed_variances(v)[::-1], idea="exchange")
seeded("the draws' variance taken off whole", lambda v: _numbers(v.mean(1).var() - v.var(1).mean(), v.var(1).mean()))
seeded(
    "divided by S, not S − 1",
    lambda v: _numbers(v.mean(1).var(correction=0) - v.var(1).mean() / v.shape[1], v.var(1).mean()),
)
seeded("rows and columns exchanged", lambda v: intervals.seed_variances(v.T), idea="axis")
seeded("deviations", lambda v: _numbers(v.mean(1).std() - v.std(1).mean() / v.shape[1], v.std(1).mean()), idea="power")
seeded("the first draw of each training", lambda v: _numbers(v[:, 0].var(), v.var(1).mean()), idea="exchange")


# 15.10


def _estimator(factor):
    """A network that scales its input, by another factor at each t; the examiner can integrate over its input."""
    return lambda x_t, t: x_t * torch.tensor([0.0, *factor], dtype=x_t.dtype)[t].reshape(-1, *[1] * (x_t.ndim - 1))


def _exact_bits(schedule, factor, x_0, levels, upper=False):
    """Rate and distortion of one entry: Bayes for the step, moments for the middle, quadrature for the last step.

    upper: the reverse steps have the variance β, not the posterior's.
    """
    scale, var = (v.numpy() for v in walk(schedule))
    beta, T = schedule.beta.numpy(), schedule.T
    half = 1 / (levels - 1)

    def reverse(t):
        """The posterior's weight of x_0, and its variance for t >= 2, by adding precisions."""
        total = 1 / var[t - 1] + (1 - beta[t]) / beta[t]
        return scale[t - 1] / var[t - 1] / total, 1 / total

    rate = 0.5 * (scale[T] ** 2 * x_0**2 + var[T] - 1 - math.log(var[T]))
    for t in range(2, T + 1):
        on_x_0, spread = reverse(t)
        clean = (1 - var[t] ** 0.5 * factor[t - 1]) / scale[t]  # x_0_hat over x_t
        # the means differ by on_x_0·(x_0 − clean·x_t), the variances only if they are β
        off, slope = on_x_0 * (1 - clean * scale[t]) * x_0, on_x_0 * clean * var[t] ** 0.5
        chosen = beta[t] if upper else spread
        rate += (off**2 + slope**2) / (2 * chosen) + (spread / chosen - 1 - math.log(spread / chosen)) / 2
    spread = (beta[1] if upper else reverse(2)[1]) ** 0.5  # at t = 1 the chain has β̃_2, or β_1
    clean = (1 - var[1] ** 0.5 * factor[0]) / scale[1]

    def lost(eps):
        mean = clean * (scale[1] * x_0 + var[1] ** 0.5 * eps)
        low = -math.inf if x_0 < -1 + half else (x_0 - half - mean) / spread
        high = math.inf if x_0 > 1 - half else (x_0 + half - mean) / spread
        if low > 0:
            low, high = -high, -low
        return -stats.norm.pdf(eps) * (
            stats.norm.logcdf(high) + math.log1p(-math.exp(stats.norm.logcdf(low) - stats.norm.logcdf(high)))
        )

    return rate / math.log(2), integrate.quad(lost, -9, 9, limit=200)[0] / math.log(2)


@check("15.10", "bits of a network", "implementation", "moments and quadrature for a network that scales its input")
@until(15)
def network(f):
    """f(eps_model, schedule, x_0, generator, draws=, levels=) returns rate and distortion of each image, (B,) each.

    x_0: (B, C, H, W), float64, of `levels` grey levels in [−1, 1].
    """
    blind = tuple(1 / walk(SHORT)[1][1:].sqrt())  # then x_0_hat is 0, and only t is drawn; here each t comes once
    for schedule, factor, levels, draws, shape in (
        (SHORT, blind, 5, 3, (1, 1, 2)),
        (SHORT, blind, 17, 1, (1, 2, 1)),
        (SHORT, (0.3, 0.5, 0.6, 0.8), 17, 2, (1, 1, 2)),
        (SHORT, (0.4, 0.2, 0.9, 0.5), 256, 7, (3, 1, 1)),
        (TWO, (0.6, 0.7), 5, 1, (2, 2, 1)),
        (SHORT, (0.5, 0.5, 0.5, 0.5), 2, 3, (1, 1, 1)),
    ):
        dims = math.prod(shape)
        one = (2 * torch.arange(dims).double() / max(dims - 1, 1) - 1).reshape(shape)
        one = (one * (levels - 1) / 2).round() * 2 / (levels - 1) if levels % 2 else torch.sign(one + 1e-9)
        x_0 = one.expand(3000, *shape)
        generator = torch.Generator().manual_seed(3)
        found = torch.stack(f(_estimator(factor), schedule, x_0, generator, draws=draws, levels=levels), 1)
        yield NEVER * bool(found.shape != (3000, 2) or found.dtype != torch.float64)
        exact = np.mean([_exact_bits(schedule, factor, float(v), levels) for v in one.flatten()], axis=0)
        for mine, value in zip(found.T, exact, strict=True):
            yield abs(float(mine.mean()) - value) / (float(mine.std()) / 3000**0.5 + 1e-9 * abs(value))
        pairs = found[:1500] - found[:1500].mean(0), found[1500:] - found[1500:].mean(0)
        if float(found.var(0).min()) > 1e-12:
            together = (pairs[0] * pairs[1]).mean(0) / found.var(0)
            yield float(together.abs().max()) * 1500**0.5  # the noise of one image says nothing of another's
            yield abs(float(torch.corrcoef(found.T)[0, 1])) * 3000**0.5  # nor that of one term of another's
    x_0 = torch.tensor([-1.0, 0.0, 1.0, 0.5]).double().reshape(4, 1, 1, 1)
    each = [_exact_bits(SHORT, blind, v, 5) for v in x_0.flatten().tolist()]
    found = f(_estimator(blind), SHORT, x_0, torch.Generator().manual_seed(1), draws=3, levels=5)
    yield 5e8 * apart(torch.stack(found, 1), torch.tensor(each))  # each image has its own
    first, again, other = (
        f(_estimator((0.3,) * 4), SHORT, x_0, torch.Generator().manual_seed(s), draws=2, levels=5) for s in (1, 1, 2)
    )
    yield 5e9 * apart_each(again, first) + NEVER * bool(torch.equal(other[0], first[0]))
    if takes(f, "reverse_var"):
        options = {"draws": 3, "levels": 5, "reverse_var": forward_var}
        each = [_exact_bits(SHORT, blind, v, 5, upper=True) for v in x_0.flatten().tolist()]
        found = f(_estimator(blind), SHORT, x_0, torch.Generator().manual_seed(1), **options)
        yield 5e8 * apart(torch.stack(found, 1), torch.tensor(each))


def _network_bits(eps_model, schedule, x_0, generator, draws, levels, terms=None, first=2, count=None, last=None):
    def decoder(x, mean, var):
        return discretised_log_likelihood(x, mean, var, levels)

    def term(t):
        return bound_term(eps_model, schedule, x_0, noise_like(x_0, generator), t, decoder=decoder)

    B, T = len(x_0), schedule.T
    end = T if last is None else last
    distortion, rate = term(torch.ones(B, dtype=torch.int64)), prior_term(schedule, x_0)
    for part in range(draws):
        u = (part + torch.rand(B, generator=generator)) / draws
        t = (first + (u * (end - first + 1)).long()).clamp(max=max(end, first)).clamp(max=T)
        rate = rate + (T - 1 if count is None else count(T)) / draws * term(t)
    return rate, distortion


def counted(what, function, seen="no public source: a plausible slip", idea="term"):
    network.wrong(what, seen=seen, idea=idea)(function)


def _with_sum(rate, distortion):
    return rate, rate + distortion


def _made(x_0, nats):
    return tuple(bits_per_dim(part, x_0[0].numel()) for part in nats)


counted("nats", lambda f, s, x, g, draws, levels: [v / x[0].numel() for v in _network_bits(f, s, x, g, draws, levels)])
counted(
    "a whole image's bits",
    lambda f, s, x, g, draws, levels: [bits_per_dim(v, 1) for v in _network_bits(f, s, x, g, draws, levels)],
    idea="axis",
)
counted(
    "T terms where there are T − 1",
    lambda f, s, x, g, draws, levels: _made(x, _network_bits(f, s, x, g, draws, levels, count=lambda T: T)),
    idea="time",
)
counted(
    "the mean of the terms, not their sum",
    lambda f, s, x, g, draws, levels: _made(x, _network_bits(f, s, x, g, draws, levels, count=lambda T: 1)),
    idea="axis",
)
counted(
    "t = 1 among the middle terms: L_0 counted twice",
    lambda f, s, x, g, draws, levels: _made(x, _network_bits(f, s, x, g, draws, levels, first=1)),
    idea="time",
)
counted(
    "7 bits added, as for a density on [−1, 1]",
    lambda f, s, x, g, draws, levels: [
        v + i * math.log2(127.5) for i, v in enumerate(_made(x, _network_bits(f, s, x, g, draws, levels)))
    ],
    seen="of this kind: yang-song/score_sde_pytorch issue 51, whose likelihood is a density's",
)
counted(
    "rate and distortion exchanged",
    lambda f, s, x, g, draws, levels: _made(x, _network_bits(f, s, x, g, draws, levels))[::-1],
    idea="exchange",
)
counted(
    "rate and their sum",
    lambda f, s, x, g, draws, levels: _with_sum(*_made(x, _network_bits(f, s, x, g, draws, levels))),
    idea="exchange",
)
counted(
    "the batch's mean for every image",
    lambda f, s, x, g, draws, levels: [
        v.mean().expand_as(v) for v in _made(x, _network_bits(f, s, x, g, draws, levels))
    ],
    idea="axis",
)


@network.wrong("without L_T", seen="no public source: what cannot be learned is not counted", idea="term")
def _(eps_model, schedule, x_0, generator, *, draws, levels):
    rate, distortion = bits.network_bits(eps_model, schedule, x_0, generator, draws=draws, levels=levels)
    return rate - bits_per_dim(prior_term(schedule, x_0), x_0[0].numel()), distortion


@network.wrong(
    "a density in the place of a bin's probability",
    seen="of this kind: facebookresearch/DiT issue 52, the decoder of pixels on continuous latents",
    idea="exchange",
)
def _(eps_model, schedule, x_0, generator, *, draws, levels):
    def decoder(x, mean, var):
        return -((x - mean) ** 2) / (2 * var) - torch.log(2 * math.pi * torch.as_tensor(var)) / 2

    rate, _ = bits.network_bits(eps_model, schedule, x_0, generator, draws=draws, levels=levels)
    t = torch.ones(len(x_0), dtype=torch.int64)
    nats = bound_term(eps_model, schedule, x_0, noise_like(x_0, generator), t, decoder=decoder)
    return rate, bits_per_dim(nats, x_0[0].numel())


@network.wrong("256 levels, whatever the images have", seen="no public source: a default left alone", idea="exchange")
def _(eps_model, schedule, x_0, generator, *, draws, levels):
    rate, distortion = _network_bits(eps_model, schedule, x_0, generator, draws, 256)
    return bits_per_dim(rate, x_0[0].numel()), bits_per_dim(distortion, x_0[0].numel())


@network.wrong(
    "the same noise for the whole batch", seen="no public source: noise of one image, expanded", idea="noise"
)
def _(eps_model, schedule, x_0, generator, *, draws, levels):
    rate, distortion = bits.network_bits(eps_model, schedule, x_0[:1], generator, draws=draws, levels=levels)
    return rate.expand(len(x_0)), distortion.expand(len(x_0))
