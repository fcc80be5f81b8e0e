"""Wrong versions of the equations of chapter 15 that stand beside no check: each is rejected all the same."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from held_out import registry, rejecting

from ddpm_lib.diffusion.elbo import bits_per_dim, bound_term, discretised_log_likelihood, prior_term
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.evaluation.bits import network_bits
from ddpm_lib.evaluation.coverage import density_and_coverage, precision_and_recall
from ddpm_lib.evaluation.frechet import frechet_bias, gaussian_distance
from ddpm_lib.evaluation.intervals import jackknife_std, seed_variances, share_interval
from ddpm_lib.evaluation.kernel import kernel_distance
from ddpm_lib.evaluation.memorised import copying_score
from ddpm_lib.evaluation.neighbours import rows

pytestmark = pytest.mark.soak  # with those of the other chapters: many versions, each a function of its own

WRONG, wrong = registry()


# Distances


@wrong("distance of Gaussians", "in float32")
def _(m, C, n, D):
    value, vector = torch.linalg.eigh(C.float())
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    cross = torch.linalg.eigvalsh(root @ D.float() @ root).clamp(min=0).sqrt().sum()
    return float((m - n).float().square().sum() + C.float().trace() + D.float().trace() - 2 * cross)


@wrong("distance of Gaussians", "eigenvalues below 1e-6 count as 0")
def _(m, C, n, D):
    value, vector = torch.linalg.eigh(C.double())
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    found = torch.linalg.eigvalsh(root @ D.double() @ root)
    cross = found[found > 1e-6].sqrt().sum()
    return float((m - n).double().square().sum() + C.trace() + D.trace() - 2 * cross)


@wrong("distance of Gaussians", "the root of C' alone on both sides")
def _(m, C, n, D):
    return float((m - n).square().sum() + C.trace() + D.trace() - 2 * D.trace())


@wrong("distance of Gaussians", "twice the means' part")
def _(m, C, n, D):
    return gaussian_distance(m, C, n, D) + float((m - n).square().sum())


@wrong("distance of Gaussians", "the root of the traces' product")
def _(m, C, n, D):
    return float((m - n).square().sum() + C.trace() + D.trace() - 2 * (C.trace() * D.trace()).sqrt())


@wrong("distance of Gaussians", "without the means")
def _(m, C, n, D):
    return gaussian_distance(m * 0, C, n * 0, D)


@wrong("distance of Gaussians", "eigenvalues paired by size, as if they had one basis")
def _(m, C, n, D):
    a, b = (torch.linalg.eigvalsh(x).clamp(min=0).sqrt() for x in (C, D))
    return float((m - n).square().sum() + (a - b).square().sum())


@wrong("distance of Gaussians", "Mahalanobis's distance of the means")
def _(m, C, n, D):
    gap = m - n
    return gaussian_distance(m, C, m, D) + float(gap @ torch.linalg.pinv((C + D) / 2) @ gap)


def bias_with(name, change):
    wrong("bias of the distance", name)(change)


bias_with("n - 1 for n in the means' part", lambda C, D, n, m: frechet_bias(C, D, n, m) + C.trace().item() / n)
bias_with("both from the first covariance", lambda C, D, n, m: frechet_bias(C, C, n, m))
bias_with("both from the second covariance", lambda C, D, n, m: frechet_bias(D, D, n, m))
bias_with("the smaller of both counts", lambda C, D, n, m: frechet_bias(C, D, min(n, m), min(n, m)))
bias_with("the counts added", lambda C, D, n, m: frechet_bias(C, D, n + m, n + m) if math.isfinite(n + m) else 0.0)
bias_with("as if white", lambda C, D, n, m: frechet_bias(torch.eye(len(C)), torch.eye(len(C)), n, m))
bias_with("half of it", lambda C, D, n, m: frechet_bias(C, D, n, m) / 2)
bias_with("as a deviation", lambda C, D, n, m: frechet_bias(C, D, n, m) ** 0.5)


def kernel_with(name, change):
    wrong("kernel distance", name)(change)


kernel_with("in float32", lambda x, y: kernel_in(x.float(), y.float()))
kernel_with("features of length 1 first", lambda x, y: kernel_in(*(z / z.norm(dim=1, keepdim=True) for z in (x, y))))
kernel_with("centred first", lambda x, y: kernel_distance(x - x.mean(0), y - x.mean(0)))
kernel_with(
    "the larger set cut to the smaller", lambda x, y: kernel_distance(*(z[: min(len(x), len(y))] for z in (x, y)))
)
kernel_with("the real set's own pairs left out", lambda x, y: kernel_distance(x, y) - kernel_own(x))
kernel_with("(x·y + 1)³/D³", lambda x, y: kernel_in(x.double(), y.double(), lambda p, d: (p + 1) ** 3 / d**3))
kernel_with("(x·y/√D + 1)³", lambda x, y: kernel_in(x.double(), y.double(), lambda p, d: (p / d**0.5 + 1) ** 3))
kernel_with("the fourth degree", lambda x, y: kernel_in(x.double(), y.double(), lambda p, d: (p / d + 1) ** 4))
kernel_with("each pair once", lambda x, y: kernel_distance(x, y) / 2)
kernel_with("a median over the mixed pairs", lambda x, y: kernel_in(x.double(), y.double(), mixed=torch.median))


def kernel_own(x):
    K = (x.double() @ x.double().T / x.shape[1] + 1) ** 3
    return float((K.sum() - K.trace()) / (len(x) * (len(x) - 1)))


def kernel_in(x, y, k=lambda p, d: (p / d + 1) ** 3, mixed=torch.mean):
    xx, yy, xy = (k(a @ b.T, x.shape[1]) for a, b in ((x, x), (y, y), (x, y)))
    own = [(K.sum() - K.trace()) / (len(K) * (len(K) - 1)) for K in (xx, yy)]
    return float(own[0] + own[1] - 2 * mixed(xy))


# Shares


def away(a, b):
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def manhattan(a, b):
    return torch.cdist(a.double(), b.double(), p=1)


def balls_of(points, centres, k, distance=away, radius=None):
    own = distance(centres, centres)
    radius = own.kthvalue(k + 1, dim=1).values if radius is None else radius(own)
    return (distance(points, centres) <= radius).double()


@wrong("precision and recall", "Manhattan's distances")
def _(x, y, k):
    return tuple(float(balls_of(a, b, k, manhattan).amax(1).mean()) for a, b in ((y, x), (x, y)))


@wrong("precision and recall", "the mean distance to the k nearest, for the k-th")
def _(x, y, k):
    def mean(own):
        return own.topk(k + 1, largest=False).values.sum(1) / k

    return tuple(float(balls_of(a, b, k, radius=mean).amax(1).mean()) for a, b in ((y, x), (x, y)))


@wrong("precision and recall", "in two balls at least")
def _(x, y, k):
    return tuple(float((balls_of(a, b, k).sum(1) > 1).double().mean()) for a, b in ((y, x), (x, y)))


@wrong("precision and recall", "k of 3 whatever was asked")
def _(x, y, k):
    return precision_and_recall(x, y, 3)


@wrong("precision and recall", "copies left out of each set first")
def _(x, y, k):
    return precision_and_recall(x, y.unique(dim=0), k)


@wrong("precision and recall", "recall is one minus precision")
def _(x, y, k):
    precision = precision_and_recall(x, y, k)[0]
    return precision, 1 - precision


@wrong("precision and recall", "the radius of a ball from the other set")
def _(x, y, k):
    def share(points, centres):
        return float((away(points, centres) <= away(centres, points).kthvalue(k, dim=1).values).double().amax(1).mean())

    return share(y, x), share(x, y)


@wrong("density and coverage", "Manhattan's distances")
def _(x, y, k):
    held = balls_of(y, x, k, manhattan)
    return float(held.sum(1).mean()) / k, float(held.amax(0).mean())


@wrong("density and coverage", "density over k + 1")
def _(x, y, k):
    density, covered = density_and_coverage(x, y, k)
    return density * k / (k + 1), covered


@wrong("density and coverage", "coverage of at least two samples a ball")
def _(x, y, k):
    return density_and_coverage(x, y, k)[0], float((balls_of(y, x, k).sum(0) > 1).double().mean())


@wrong("density and coverage", "sets exchanged")
def _(x, y, k):
    return density_and_coverage(y, x, min(k, len(y) - 1))


@wrong("density and coverage", "the median number of balls")
def _(x, y, k):
    return float(balls_of(y, x, k).sum(1).median()) / k, density_and_coverage(x, y, k)[1]


@wrong("density and coverage", "k of 5 whatever was asked")
def _(x, y, k):
    return density_and_coverage(x, y, min(5, len(x) - 1))


@wrong("density and coverage", "copies left out of the samples first")
def _(x, y, k):
    return density_and_coverage(x, y.unique(dim=0), k)


# Copies


def near(points, among):
    return away(points, among).min(1).values


@wrong("copying score", "the second nearest training image")
def _(fake, held_out, train):
    x, y = (away(p, train).kthvalue(2, dim=1).values[:, None] for p in (fake, held_out))
    return copying_score(x, y, torch.zeros(1, 1).double() - 1)


@wrong("copying score", "training images' distances to the two sets")
def _(fake, held_out, train):
    x, y = (near(train, p)[:, None] for p in (fake, held_out))
    return copying_score(x, y, torch.zeros(1, 1).double() - 1)


@wrong("copying score", "a continuity correction")
def _(fake, held_out, train):
    z, nearer = copying_score(fake, held_out, train)
    return z - math.copysign(0.5, z) / (len(fake) * len(held_out) * (len(fake) + len(held_out) + 1) / 12) ** 0.5, nearer


@wrong("copying score", "held-out and samples exchanged")
def _(fake, held_out, train):
    return copying_score(held_out, fake, train)


@wrong("copying score", "z of at most 0")
def _(fake, held_out, train):
    z, nearer = copying_score(fake, held_out, train)
    return min(z, 0.0), nearer


@wrong("copying score", "the variance, not its root")
def _(fake, held_out, train):
    z, nearer = copying_score(fake, held_out, train)
    return z / (len(fake) * len(held_out) * (len(fake) + len(held_out) + 1) / 12) ** 0.5, nearer


@wrong("copying score", "held-out images among the training set")
def _(fake, held_out, train):
    return copying_score(fake, held_out, torch.cat([train, held_out]))


# Intervals


@wrong("interval of a share", "Clopper and Pearson's")
def _(hits, n, level):
    from scipy import stats

    a = (1 - level) / 2
    low = stats.beta.ppf(a, hits, n - hits + 1) if hits else 0.0
    return low, (stats.beta.isf(a, hits + 1, n - hits) if hits < n else 1.0)


@wrong("interval of a share", "n - 1 for n in the variance")
def _(hits, n, level):
    return share_interval(hits, max(n - 1, hits, 1), level)


@wrong("interval of a share", "the ends exchanged")
def _(hits, n, level):
    return share_interval(hits, n, level)[::-1]


@wrong("interval of a share", "misses for hits")
def _(hits, n, level):
    return share_interval(n - hits, n, level)


@wrong("interval of a share", "with a continuity correction")
def _(hits, n, level):
    low, high = share_interval(hits, n, level)
    return max(0.0, low - 1 / (2 * n)), min(1.0, high + 1 / (2 * n))


@wrong("interval of a share", "in per cent")
def _(hits, n, level):
    return tuple(100 * end for end in share_interval(hits, n, level))


@wrong("jackknife", "half the groups")
def _(metric, x, groups):
    return jackknife_std(metric, x, max(2, groups // 2))


@wrong("jackknife", "around the metric of all samples")
def _(metric, x, groups):
    parts = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tensor_split(groups)
    values = [metric(x[torch.cat([p for j, p in enumerate(parts) if j != i])]) for i in range(groups)]
    return math.sqrt((groups - 1) / groups * sum((v - metric(x)) ** 2 for v in values))


@wrong("jackknife", "the mean absolute deviation")
def _(metric, x, groups):
    parts = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tensor_split(groups)
    values = np.array([metric(x[torch.cat([p for j, p in enumerate(parts) if j != i])]) for i in range(groups)])
    return float((groups - 1) / groups**0.5 * np.abs(values - values.mean()).mean())


@wrong("jackknife", "a standard error: over the root of the groups")
def _(metric, x, groups):
    return jackknife_std(metric, x, groups) / groups**0.5


@wrong("jackknife", "95 % of it: 1.96 deviations")
def _(metric, x, groups):
    return 1.96 * jackknife_std(metric, x, groups)


@wrong("jackknife", "pairs of halves")
def _(metric, x, groups):
    generator = torch.Generator().manual_seed(0)
    halves = [x[torch.randperm(len(x), generator=generator)[: max(1, len(x) // 2)]] for _ in range(groups)]
    return float(np.std([metric(h) for h in halves]))


def seeds_with(name, change):
    wrong("two kinds of seeds", name)(lambda values: tuple(map(float, change(values))))


seeds_with("divided by R, not R - 1", lambda v: (seed_variances(v)[0], v.var(1, correction=0).mean()))
seeds_with("the draws' part over S, not R", lambda v: (v.mean(1).var() - v.var(1).mean() / len(v), v.var(1).mean()))
seeds_with("the part added", lambda v: (v.mean(1).var() + v.var(1).mean() / v.shape[1], v.var(1).mean()))
seeds_with("total less draws", lambda v: (v.var() - v.var(1).mean(), v.var(1).mean()))
seeds_with("medians of the trainings", lambda v: (v.median(1).values.var(), v.var(1).mean()))
seeds_with("absolute value", lambda v: (abs(seed_variances(v)[0]), seed_variances(v)[1]))
seeds_with("the largest row's variance", lambda v: (seed_variances(v)[0], v.var(1).max()))
seeds_with("draws over R", lambda v: (seed_variances(v)[0], v.var(1).mean() / v.shape[1]))


# Bits


def bits_with(name, change):
    def version(eps_model, schedule, x_0, generator, *, draws, levels):
        return change(eps_model, schedule, x_0, generator, draws, levels)

    wrong("bits of a network", name)(version)


def made(*args, draws=None, levels=None):
    eps_model, schedule, x_0, generator, asked, grey = args
    return network_bits(eps_model, schedule, x_0, generator, draws=draws or asked, levels=levels or grey)


bits_with("the network is told t - 1", lambda f, *a: made(lambda x, t: f(x, (t - 1).clamp(min=1)), *a))
bits_with(
    "rate without its middle terms", lambda f, s, x, g, n, k: (0 * made(f, s, x, g, n, k)[0], made(f, s, x, g, n, k)[1])
)
bits_with("distortion of twice the levels", lambda f, s, x, g, n, k: made(f, s, x, g, n, k, levels=2 * k - 1))
bits_with("in bits of a byte: over 8", lambda *a: tuple(v / 8 for v in made(*a)))
bits_with("log10 for log2", lambda *a: tuple(v * math.log10(2) for v in made(*a)))
bits_with("minus the bound", lambda *a: tuple(-v for v in made(*a)))
bits_with("the draws added, not averaged", lambda *a: (made(*a)[0] * a[4], made(*a)[1]))
bits_with("sorted", lambda *a: tuple(v.sort().values for v in made(*a)))
bits_with("in float32", lambda *a: tuple(v.float() for v in made(*a)))
bits_with("its own generator", lambda f, s, x, g, n, k: made(f, s, x, torch.Generator().manual_seed(0), n, k))


@wrong("bits of a network", "the upper variance, β")
def _(eps_model, schedule, x_0, generator, *, draws, levels):
    from ddpm_lib.diffusion.forward import forward_var

    return network_bits(eps_model, schedule, x_0, generator, draws=draws, levels=levels, reverse_var=forward_var)


# What a reader of the chapter alone wrote, and the checks once let through


@wrong("distance of Gaussians", "directions of little variance cut off")
def _(m, C, n, D):
    value, vector = torch.linalg.eigh(C.double())
    root = vector * torch.where(value > 1e-3 * value.max(), value, 0.0).sqrt() @ vector.T
    cross = torch.linalg.eigvalsh(root @ D.double() @ root).clamp(min=0).sqrt().sum()
    return float((m - n).double().square().sum() + C.trace() + D.trace() - 2 * cross)


@wrong("distance of Gaussians", "the means' part multiplied out")
def _(m, C, n, D):
    return gaussian_distance(m * 0, C, n * 0, D) + max(float(m @ m + n @ n - 2 * m @ n), 0.0)


@wrong("bias of the distance", "in float32")
def _(C, D, n, m):
    C, D = C.float(), D.float()
    value, vector = torch.linalg.eigh(C)
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    s = torch.linalg.eigvalsh(root @ D @ root).clamp(min=0).sqrt()
    total = s[:, None] + s
    curved = (s[:, None] * s / torch.where(total > 0, total, 1.0)).sum() / 2 + s.sum() / 4
    return float((C.trace() + curved) / n + (D.trace() + curved) / m)


@wrong("bias of the distance", "0/0 where both directions are constant")
def _(C, D, n, m):
    value, vector = torch.linalg.eigh(C)
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    s = torch.linalg.eigvalsh(root @ D @ root).clamp(min=0).sqrt()
    curved = (s[:, None] * s / (s[:, None] + s)).sum() / 2 + s.sum() / 4
    return float((C.trace() + curved) / n + (D.trace() + curved) / m)


@wrong("kernel distance", "a rest of rows lost in blocks")
def _(x, y, *, block=2**22):
    step = max(1, block // len(y))
    return kernel_distance(x[: len(x) // step * step] if len(x) > step else x, y)


@wrong("kernel distance", "pairs of equal points left out")
def _(x, y):
    def own(x):
        K, same = (x @ x.T / x.shape[1] + 1) ** 3, (x[:, None] == x).all(-1)
        return K[~same].mean() if (~same).any() else K.mean()

    x, y = rows(x, y)
    return float(own(x) + own(y) - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())


def shares_of(x, y, k, distance=away, slack=0.0):
    """Precision, recall, density and coverage."""
    in_real, in_fake = (
        distance(a, b) <= distance(b, b).kthvalue(min(k + 1, len(b)), dim=1).values * (1 + slack)
        for a, b in ((y, x), (x, y))
    )
    shares = [float(held.any(1).double().mean()) for held in (in_real, in_fake)]
    return (*shares, float(in_real.sum(1).double().mean()) / k, float(in_real.any(0).double().mean()))


def fast(a, b):
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")


wrong("precision and recall", "cdist's fast formula, for many points")(
    lambda x, y, k: shares_of(x, y, k, torch.cdist)[:2]
)
wrong("precision and recall", "a tolerance of 1e-6")(lambda x, y, k: shares_of(x, y, k, slack=1e-6)[:2])
wrong("precision and recall", "never the farthest neighbour")(
    lambda x, y, k: (
        shares_of(x, y, max(1, min(k, len(x) - 2)))[0],
        shares_of(x, y, max(1, min(k, len(y) - 2)))[1],
    )
)
wrong("density and coverage", "cdist's fast formula, for many points")(
    lambda x, y, k: shares_of(x, y, k, torch.cdist)[2:]
)
wrong("density and coverage", "a tolerance of 1e-6")(lambda x, y, k: shares_of(x, y, k, slack=1e-6)[2:])
wrong("density and coverage", "k of at most the number of samples")(lambda x, y, k: shares_of(x, y, min(k, len(y)))[2:])


def ranked(x, y):
    """The score of distances that are there."""
    return copying_score(x[:, None], y[:, None], torch.zeros(1, 1).double())


wrong("copying score", "distances in float32")(
    lambda fake, held_out, train: ranked(*(away(p.float(), train.float()).min(1).values for p in (fake, held_out)))
)
wrong("copying score", "the fast formula of distances")(
    lambda fake, held_out, train: ranked(*(fast(p, train).min(1).values for p in (fake, held_out)))
)
wrong("copying score", "distances rounded to six decimals")(
    lambda fake, held_out, train: ranked(*((near(p, train) * 1e6).round() / 1e6 for p in (fake, held_out)))
)


@wrong("copying score", "0/0 where all distances are equal")
def _(fake, held_out, train):
    z, nearer = copying_score(fake, held_out, train)
    one = len(torch.cat([near(fake, train), near(held_out, train)]).unique()) == 1
    return (math.nan if one else z), nearer


def groups_with(name, choose, labelled=None):
    """labelled(labels, groups, seed) returns the groups where labels are given, choose(N, seed) an order of all."""

    def version(metric, samples, groups=20, seed=0, *, strata=None):
        order = choose(len(samples), seed)
        parts = order.tensor_split(groups)
        if strata is not None:
            sorted_ = order[strata[order].argsort(stable=True)]
            parts = labelled(strata, groups, seed) if labelled else [sorted_[i::groups] for i in range(groups)]
        left = [torch.cat([p for j, p in enumerate(parts) if j != i]) for i in range(groups)]
        values = torch.tensor([metric(samples[kept]) for kept in left]).double()
        return float(((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt())

    wrong("jackknife", name)(version)


def seeded_order(count, seed):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def as_they_come(labels, groups, seed):
    order = labels.argsort(stable=True)
    return [order[i::groups] for i in range(groups)]


def in_runs(labels, groups, seed):
    of_label = [(labels == c).nonzero()[:, 0].tensor_split(groups) for c in labels.unique()]
    return [torch.cat(parts) for parts in zip(*of_label, strict=True)]


def one_order(labels, groups, seed):
    of_label = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    return [torch.cat([i[seeded_order(len(i), seed)][g::groups] for i in of_label]) for g in range(groups)]


def shuffled_after(count, seed):
    torch.manual_seed(seed)
    return torch.randperm(count)


groups_with("groups from whatever was drawn before", lambda count, seed: torch.randperm(count))
groups_with("everybody's seed is set", shuffled_after)
groups_with("the seed is not asked", lambda count, seed: seeded_order(count, 0))
groups_with("within a label as they come", seeded_order, as_they_come)
groups_with("runs of each label", seeded_order, in_runs)
groups_with("one order for all labels", seeded_order, one_order)


@wrong("jackknife", "labels are not asked")
def _(metric, samples, groups=20, seed=0, *, strata=None):
    return jackknife_std(metric, samples, groups, seed)


@wrong("jackknife", "images as rows")
def _(metric, samples, groups=20, seed=0, *, strata=None):
    return jackknife_std(metric, samples.flatten(1), groups, seed, strata=strata)


seeds_with("more rows than columns are turned round", lambda v: seed_variances(v.T if len(v) > v.shape[1] else v))


@wrong("two kinds of seeds", "means of squares less squares of means")
def _(values):
    def var(x, dim):
        n = x.shape[dim]
        return ((x * x).mean(dim) - x.mean(dim) ** 2) * n / (n - 1)

    drawn = float(var(values, 1).mean())
    return float(var(values.mean(1), 0)) - drawn / values.shape[1], drawn


@wrong("bits of a network", "one noise for all terms of an image")
def _(eps_model, schedule, x_0, generator, *, draws, levels):
    def term(t):
        return bound_term(eps_model, schedule, x_0, eps, t, decoder=partial(discretised_log_likelihood, levels=levels))

    eps = noise_like(x_0, generator)
    rate, T = prior_term(schedule, x_0), schedule.T
    for part in range(draws):
        u = torch.rand(len(x_0), generator=generator, dtype=torch.float64)
        rate = rate + (T - 1) / draws * term(2 + ((part + u) / draws * (T - 1)).long().clamp(max=T - 2))
    nats = rate, term(torch.ones(len(x_0), dtype=torch.int64))
    return tuple(bits_per_dim(v, x_0[0].numel()) for v in nats)


@wrong("bits of a network", "the reverse variance is not asked")
def _(eps_model, schedule, x_0, generator=None, *, draws=20, levels=256, reverse_var=None):
    return network_bits(eps_model, schedule, x_0, generator, draws=draws, levels=levels)


test_is_rejected = rejecting(WRONG)
