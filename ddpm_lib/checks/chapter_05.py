"""The checks of chapter 5, the bound. For linear chains all of it is Gaussian, so the joint density of x_0..x_T is one
matrix: the bound, its terms and its gap are compared with what that matrix says, or with quadrature."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from scipy import stats
from scipy.special import logsumexp

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import hermite, log_normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk
from ddpm_lib.diffusion import elbo
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.posterior import posterior_mean
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


def true_bound(x_0, model):
    """−log p(x_0) + KL(q(x_{1:T}|x_0) ‖ p(x_{1:T}|x_0)), from the two joint densities."""
    mean, cov = joint_of_model(model)
    value = torch.tensor([x_0], dtype=torch.float64)
    q_mean, q_cov = chain((x_0, 0.0), forward_links(TINY))
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


def paths(x_0, model, nodes=3):
    """Paths at the nodes of a quadrature that is exact for quadratic functions, and their weights."""
    grid, weights = (v.numpy() for v in hermite(nodes, 3))
    scale, var = (v.tolist() for v in walk(TINY))
    x, none = [np.full(len(grid), x_0)], [None]
    path = Path(3, none[:], none[:], none[:], none[:], None)
    for t, (a, b, v) in enumerate(forward_links(TINY), start=1):
        x.append(a * x[-1] + b + v**0.5 * grid[:, t - 1])
        path.q_step.append(log_normal(x[t], a * x[t - 1], v))
        path.q_jump.append(log_normal(x[t], scale[t] * x_0, var[t]))
        # Bayes' rule, as it stands in Eq. 4.1
        path.q_back.append(path.q_step[t] + path.q_jump[t - 1] - path.q_jump[t] if t > 1 else None)
        a, b, v = model[t - 1]
        path.p_back.append(log_normal(x[t - 1], a * x[t] + b, v))
    path.p_end = log_normal(x[3], 0.0, 1.0)
    return path, weights


def far_from_the_bound(f):
    """f(path) returns the loss of each path; its mean over q is compared with `true_bound`."""
    worst = 0.0
    for model in MODELS:
        for x_0 in (-0.7, 0.2, 1.0):
            path, weights = paths(x_0, model)
            worst = largest(worst, abs(float((weights * f(path)).sum()) - true_bound(x_0, model)))
    return worst


@check("5.1", "bound as a loss", "identity", "the joint Gaussian of a chain of three steps", to=1e-9)
def bound(f):
    return far_from_the_bound(f)


@bound.states
def _(path):
    return sum(path.q_step[t] - path.p_back[t] for t in range(1, path.T + 1)) - path.p_end


@bound.wrong("the ELBO under the name of a loss: the sign is turned", seen="a student report")
def _(path):
    return path.p_end + sum(path.p_back[t] - path.q_step[t] for t in range(1, path.T + 1))


@bound.wrong("the reverse model is given x_0: p(x_{t−1}|x_t, x_0)", seen="a tuning guide for diffusion models")
def _(path):
    told = [None, path.p_back[1], *path.q_back[2:]]
    return sum(path.q_step[t] - told[t] for t in range(1, path.T + 1)) - path.p_end


@bound.wrong("the prior p(x_T) is left out", seen="a common slip: the sum over the steps is taken for the whole")
def _(path):
    return sum(path.q_step[t] - path.p_back[t] for t in range(1, path.T + 1))


@bound.wrong("the entropy of the noise is left out: −log p(x_{0:T})", seen="a common slip")
def _(path):
    return -path.p_end - sum(path.p_back[1:])


@check("5.2", "telescoped bound", "identity", "the joint Gaussian of a chain of three steps", to=1e-9)
def telescoped(f):
    return far_from_the_bound(f)


@telescoped.states
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong("log p(x_T) twice, and the sign of log p(x_0|x_1) turned", seen="a student report")
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - 2 * path.p_end) + steps + path.p_back[1]


@telescoped.wrong("q(x_t|x_{t−1}) is not turned round", seen="KL between a forward and a reverse step")
def _(path):
    steps = sum(path.q_step[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_jump[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong("the last step's q(x_T|x_{T−1}) in the place of q(x_T|x_0)", seen="a common slip")
def _(path):
    steps = sum(path.q_back[t] - path.p_back[t] for t in range(2, path.T + 1))
    return (path.q_step[path.T] - path.p_end) + steps - path.p_back[1]


@telescoped.wrong("the reverse model is given x_0, so every step cancels", seen="a tuning guide for diffusion models")
def _(path):
    return (path.q_jump[path.T] - path.p_end) - path.p_back[1]


def kl_on_a_grid(log_q, log_p, mean, var):
    """∫ q·(log q − log p) where q has about this mean and variance. q is normalised here, p is not."""
    x = mean + var**0.5 * np.linspace(-11, 11, 4001)
    log_q, log_p = log_q(x), log_p(x)
    q = np.exp(log_q - log_q.max())
    area = q.sum() * (x[1] - x[0])
    return float((q / q.sum() * (log_q - log_q.max() - np.log(area) - log_p)).sum())


def random_images(seed, B):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1.3, 1.3, (B, 1, 2, 3)))


def per_image(values, B):
    return torch.tensor(values, dtype=torch.float64).reshape(B, -1).sum(1)


@check("5.3", "prior term", "implementation", "quadrature, pixel by pixel", to=1e-8)
def prior(f):
    """f(schedule, x_0) and f(schedule, x_0, mean=, var=) return the divergence of each image."""
    worst = 0.0
    for schedule, options in ((SHORT, {}), (LONG, {}), (TINY, {"mean": 0.2, "var": 0.7})):
        x_0 = random_images(0, 4)
        scale, var = (float(v[-1]) for v in walk(schedule))
        m, v = options.get("mean", 0.0), options.get("var", 1.0)
        exact = [
            kl_on_a_grid(lambda y: log_normal(y, scale * x, var), lambda y: log_normal(y, m, v), scale * x, var)  # noqa: B023
            for x in x_0.flatten().tolist()
        ]
        worst = largest(worst, apart(f(schedule, x_0, **options), per_image(exact, 4)))
    return worst


def _end(schedule, x_0, t=None):
    a = schedule.alpha_bar[schedule.T if t is None else t]
    return a.sqrt() * x_0, 1 - a


def _kl(mean_q, var_q, mean_p, var_p):
    mean_p, var_p = (torch.as_tensor(v, dtype=torch.float64) for v in (mean_p, var_p))
    return 0.5 * (torch.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


@prior.wrong("the divergence the other way round", seen="a common slip")
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(mean, torch.as_tensor(var).double(), *_end(schedule, x_0)).flatten(1).sum(1)


@prior.wrong("the mean over the pixels instead of the sum", seen="losses averaged over an image, read as nats")
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, x_0), mean, var).flatten(1).mean(1)


@prior.wrong("the image is forgotten: KL(N(0, 1 − ᾱ_T) ‖ p(x_T))", seen="a common slip")
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, 0 * x_0), mean, var).expand_as(x_0).flatten(1).sum(1)


@prior.wrong("a standard deviation where the variance belongs", seen="a common slip")
def _(schedule, x_0, mean=0.0, var=1.0):
    m, v = _end(schedule, x_0)
    return _kl(m, v.sqrt(), mean, var).flatten(1).sum(1)


@prior.wrong("taken one step before the end", seen="tables with and without an entry for t = 0, mixed up")
def _(schedule, x_0, mean=0.0, var=1.0):
    return _kl(*_end(schedule, x_0, schedule.T - 1), mean, var).flatten(1).sum(1)


@check("5.4", "denoising term", "implementation", "Bayes' rule and quadrature, pixel by pixel", to=1e-8)
def denoising(f):
    """f(schedule, x_0, x_t, mean, var, t) returns the divergence of each image."""
    random, worst = np.random.default_rng(1), 0.0
    for schedule, t in ((SHORT, [2, 4, 3]), (TINY, [3, 2, 2]), (LONG, [2, 500, 1000])):
        x_0, t = random_images(2, 3), torch.tensor(t)
        scale, var = walk(schedule)
        jump_scale, jump_std = (v[t].reshape(-1, 1, 1, 1) for v in (scale, var.sqrt()))
        x_t = jump_scale * x_0 + jump_std * torch.from_numpy(random.standard_normal(x_0.shape))
        beta = schedule.beta[t].reshape(-1, 1, 1, 1)
        mean = x_t + beta.sqrt() * torch.from_numpy(random.uniform(-1, 1, x_0.shape))
        model_var = beta * torch.tensor([0.6, 1.3, 1.0]).double().reshape(-1, 1, 1, 1)
        exact = []
        for i in range(3):
            before, b = [float(v[t[i] - 1]) for v in (scale, var)], float(schedule.beta[t[i]])
            for x, y, m in zip(*(v[i].flatten().tolist() for v in (x_0, x_t, mean)), strict=True):
                exact.append(kl_of_a_step(x, y, *before, b, m, float(model_var[i])))
        worst = largest(worst, apart(f(schedule, x_0, x_t, mean, model_var, t), per_image(exact, 3)))
    return worst


def kl_of_a_step(x_0, x_t, scale, var, beta, model_mean, model_var):
    """KL of x_{t−1}'s density given x_0 and x_t (prior times likelihood on a grid) to the model's."""

    def log_joint(x):
        return log_normal(x, scale * x_0, var) + log_normal(x_t, (1 - beta) ** 0.5 * x, beta)

    rough = np.linspace(*sorted([scale * x_0, x_t / (1 - beta) ** 0.5]), 20_001)
    width = min(var, beta / (1 - beta))  # the narrower one's variance: at least the product's
    mode = rough[np.argmax(log_joint(rough))]
    return kl_on_a_grid(log_joint, lambda x: log_normal(x, model_mean, model_var), mode, width)


def _tilde(schedule, t):
    a, before, beta = (
        table.reshape(-1, 1, 1, 1) for table in (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t])
    )
    return (1 - before) / (1 - a) * beta


@denoising.wrong("the divergence the other way round", seen="a common slip")
def _(schedule, x_0, x_t, mean, var, t):
    return _kl(mean, var, posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t)).flatten(1).sum(1)


@denoising.wrong(
    "only the means: (μ̃ − μ)²/(2σ²), although the variances differ", seen="derivations for σ² = β̃, read with σ² = β"
)
def _(schedule, x_0, x_t, mean, var, t):
    return ((posterior_mean(schedule, x_0, x_t, t) - mean) ** 2 / (2 * var)).flatten(1).sum(1)


@denoising.wrong("the one half is lost", seen="a common slip")
def _(schedule, x_0, x_t, mean, var, t):
    return 2 * _kl(posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t), mean, var).flatten(1).sum(1)


@denoising.wrong(
    "β_t for the posterior's variance", seen="the two choices of Ho et al. for the model, taken for the truth"
)
def _(schedule, x_0, x_t, mean, var, t):
    beta = schedule.beta[t].reshape(-1, 1, 1, 1)
    return _kl(posterior_mean(schedule, x_0, x_t, t), beta, mean, var).flatten(1).sum(1)


@denoising.wrong("the mean over the pixels instead of the sum", seen="losses averaged over an image, read as nats")
def _(schedule, x_0, x_t, mean, var, t):
    return _kl(posterior_mean(schedule, x_0, x_t, t), _tilde(schedule, t), mean, var).flatten(1).mean(1)


@check("5.5", "discretised decoder", "implementation", "quadrature of the density over each bin", to=1e-9)
def discretised(f):
    """f(x_0, mean, var, levels) returns log P for each entry; compared relative to 1 + |log P|."""
    worst, random = 0.0, np.random.default_rng(3)
    for levels, std in ((256, 0.3), (256, 0.01), (256, 3e-4), (17, 0.05), (5, 0.4), (2, 0.7)):
        grey = torch.linspace(-1, 1, levels, dtype=torch.float64)
        ends = grey[[0, 1, -2, -1]]  # the open bins, and those that must not be taken for them
        x_0 = torch.cat([ends, ends, grey[torch.from_numpy(random.integers(0, levels, 4))]]).reshape(3, 1, 2, 2)
        mean = torch.from_numpy(random.uniform(-1.1, 1.1, x_0.shape))
        mean[1] = x_0[1] + std * torch.from_numpy(random.standard_normal(x_0[1].shape))  # and a model that is right
        var = std**2 * torch.tensor([0.6, 1.0, 1.7], dtype=torch.float64).reshape(3, 1, 1, 1)
        rows = zip(*(v.expand(x_0.shape).flatten().tolist() for v in (x_0, mean, var.sqrt())), strict=True)
        exact = torch.tensor([log_mass(*row, levels) for row in rows], dtype=torch.float64).reshape(x_0.shape)
        worst = largest(worst, apart(f(x_0, mean, var, levels) / (1 + exact.abs()), exact / (1 + exact.abs())))
    return worst


def log_mass(x, mean, std, levels):
    """log of ∫ N(y; mean, std²) dy over x's bin: Gauss–Legendre on the part of the bin where the mass is."""
    half = 1 / (levels - 1)
    low = -np.inf if x < -1 + half else x - half
    high = np.inf if x > 1 - half else x + half
    peak = min(max(mean, low), high)
    # beyond 10 standard deviations, or 40 decay lengths of the tail, nothing is left
    reach = min(10 * std, 40 * std**2 / abs(peak - mean)) if peak != mean else 10 * std
    low, high = max(low, peak - reach), min(high, peak + reach)
    node, weight = leggauss(100)
    y = low + (high - low) * (node + 1) / 2
    return logsumexp(log_normal(y, mean, std**2), b=weight * (high - low) / 2)


@discretised.wrong("density times width of the bin", seen="a continuous likelihood, discretised after the fact")
def _(x_0, mean, var, levels):
    return log_density(x_0, mean, var) + np.log(2 / (levels - 1))


@discretised.wrong("the outermost bins are closed, so the probabilities do not sum to 1", seen="a common slip")
def _(x_0, mean, var, levels):
    return elbo.discretised_log_likelihood(torch.zeros_like(x_0), mean - x_0, var, levels)  # 0 is in no outermost bin


@discretised.wrong("bins of half the width, those of data in [0, 1]", seen="data scaled to [−1, 1], bins not")
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
    seen="the code of Ho et al., and what descends from it",
)
def _(*arguments):
    return _from_areas(torch.special.ndtr, *arguments)


@discretised.wrong(
    "a tanh formula for the normal distribution's area (and the clamp)",
    seen="the code of Ho et al., openai/improved-diffusion and guided-diffusion",
)
def _(*arguments):
    return _from_areas(lambda x: 0.5 * (1 + torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))), *arguments)


COPIES = 20_000


@coefficient
def _some_var(schedule, t):
    return schedule.beta[t] * (0.5 + 0.2 * t)  # depends on t in its own way


def _some_model(x_t, t):
    return (0.4 + 0.1 * t.reshape(-1, 1)) * x_t - 0.2 * t.reshape(-1, 1)


def exact_terms(schedule, x_0, model, reverse_var):
    """L_0, ..., L_T for one number x_0 and a model whose ε_θ is linear in x_t: quadrature over x_t and x_{t−1}."""
    z, weight = (v.numpy() for v in hermite(5))
    scale, var = (v.tolist() for v in walk(schedule))
    terms = []
    for t in range(1, schedule.T + 1):
        x_t = scale[t] * x_0 + var[t] ** 0.5 * z[:, 0]
        beta = float(schedule.beta[t])
        eps = model(torch.tensor(x_t).double()[:, None], torch.full((5,), t))[:, 0].numpy()
        mean = (x_t - beta / var[t] ** 0.5 * eps) / (1 - beta) ** 0.5
        v = float(reverse_var(schedule, t))
        if t == 1:
            costs = -log_normal(x_0, mean, v)
        else:
            rows = zip(x_t, mean, strict=True)
            costs = np.array([kl_of_a_step(x_0, y, scale[t - 1], var[t - 1], beta, m, v) for y, m in rows])
        terms.append((weight * costs).sum())
    end = kl_on_a_grid(
        lambda y: log_normal(y, scale[-1] * x_0, var[-1]), lambda y: log_normal(y, 0.0, 1.0), scale[-1] * x_0, var[-1]
    )
    return np.array([*terms, end])


@check("5.6", "bound, term by term", "implementation", "each term's exact mean, 20,000 draws of the noise")
def terms(f):
    """f(eps_model, schedule, x_0, generator, reverse_var=, decoder=) returns L_0..L_T for each example, (B, T+1)."""
    scores = []
    for schedule, x in ((SHORT, (0.6, -0.9)), (TINY, (0.3, 0.8))):
        x_0 = torch.tensor(x, dtype=torch.float64).expand(COPIES, 2)
        exact = sum(exact_terms(schedule, value, _some_model, _some_var) for value in x)
        got = f(
            _some_model,
            schedule,
            x_0,
            torch.Generator().manual_seed(4),
            reverse_var=_some_var,
            decoder=log_density,
        ).numpy()
        error, spread = got.mean(0) - exact, got.std(0) / COPIES**0.5
        scores += [*np.abs(error[:-1] / spread[:-1]), abs(error[-1]) / 1e-8]  # the last one has no noise in it
        together = got[:, :-1].sum(1)  # fresh noise for each term: the variances add
        scores.append(abs(together.var() / got[:, :-1].var(0).sum() - 1) / (2 / COPIES) ** 0.5)
    return largest(*scores)


@terms.wrong("the ELBO's sign", seen="a student report: the ELBO, minimised")
def _(*arguments, **options):
    return -elbo.bound_terms(*arguments, **options)


@terms.wrong("every term one place too late", seen="L_{t−1} stored under t")
def _(*arguments, **options):
    return elbo.bound_terms(*arguments, **options).roll(1, 1)


@terms.wrong("the mean over the entries of an image", seen="losses averaged over an image, read as nats")
def _(*arguments, **options):
    return elbo.bound_terms(*arguments, **options) / 2  # there are two entries


@terms.wrong("the model is given t − 1 where it was trained with t", seen="UDL notebook 18.3")
def _(model, schedule, x_0, generator, **options):
    return elbo.bound_terms(lambda x_t, t: model(x_t, t - 1), schedule, x_0, generator, **options)


@terms.wrong("one draw of the noise for all steps", seen="a common slip: right on average, and noisier in sum")
def _(model, schedule, x_0, generator, **options):
    eps = noise_like(x_0, generator)
    steps = [torch.full((len(x_0),), t) for t in range(1, schedule.T + 1)]
    found = [elbo.bound_term(model, schedule, x_0, eps, t, **options) for t in steps]
    return torch.stack([*found, elbo.prior_term(schedule, x_0)], 1)


@terms.wrong("‖ε − ε_θ‖² with no weight", seen="a student report")
def _(model, schedule, x_0, generator, **options):
    found = []
    for step in range(1, schedule.T + 1):
        t, eps, a = torch.full((len(x_0),), step), noise_like(x_0, generator), schedule.alpha_bar[step]
        found.append((eps - model(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t)).square().sum(1))
    return torch.stack([*found, elbo.prior_term(schedule, x_0)], 1)


@check("5.7", "bits per dimension", "implementation", "entropies counted in bits, with base-2 logarithms", to=1e-9)
def bits(f):
    """f(nats, dims) returns bits for each number of an image."""
    worst, random = 0.0, np.random.default_rng(5)
    for levels, dims in ((256, 3 * 32 * 32), (17, 64), (2, 5)):
        P = random.dirichlet(np.ones(levels), dims)  # a distribution of its own for each number of the image
        exact = np.mean([stats.entropy(p, base=2) for p in P])
        nats = torch.tensor([-(P * np.log(P)).sum(), dims * np.log(levels)])
        worst = largest(worst, apart(f(nats, dims), torch.tensor([exact, np.log2(levels)])))
    return worst


@bits.wrong("not divided by log 2: nats under the name of bits", seen="a common slip")
def _(nats, dims):
    return nats / dims


@bits.wrong("multiplied by log 2", seen="a common slip")
def _(nats, dims):
    return nats / dims * np.log(2)


@bits.wrong("not divided by the number of dimensions", seen="bits per image and bits per dimension mixed up")
def _(nats, dims):
    return nats / np.log(2)


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


def gaps(model, end):
    """The gaps of a model for data N(*DATA), by conditioning in the joint Gaussian and quadrature."""
    mean, cov = chain(DATA, forward_links(TINY))

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
        3,
        float(kl_divergence_full(mean[3:], cov[3:, 3:], end_mean, end_cov[None])),
        [None, *(average([t], t - 1, *model[t - 1]) for t in (1, 2, 3))],
        average([0], 3, 0.0, *end),
        [None, None, *(average([0, t], t - 1, *model[t - 1]) for t in (2, 3))],
    )


@check("5.8", "gap of the bound", "identity", "the divergence of the joint densities of a whole chain", to=1e-9)
def gap(f):
    """f(gaps) returns E[L] minus the entropy of the data, which is KL(q(x_{0:T}) ‖ p(x_{0:T}))."""
    worst = 0.0
    for model, end in zip(MODELS, ((0.0, 1.0), (0.2, 0.8), (0.1, 1.3)), strict=True):
        q, p = chain(DATA, forward_links(TINY)), joint_of_model(model, end)
        worst = largest(worst, abs(float(f(gaps(model, end))) - float(kl_divergence_full(*q, *p))))
    return worst


@gap.states
def _(gaps):
    return gaps.end + sum(gaps.steps[1:])


@gap.wrong("the bound's own terms are taken for the gap", seen="a loss that is above 0 read as room for improvement")
def _(gaps):
    return gaps.end_given_x_0 + gaps.steps[1] + sum(gaps.steps_given_x_0[2:])


@gap.wrong("averaged over the steps", seen="a loss averaged over t, read as a bound")
def _(gaps):
    return gaps.end + sum(gaps.steps[1:]) / gaps.T


@gap.wrong("the step from x_1 to x_0 is left out", seen="sums from t = 2, with no L_0")
def _(gaps):
    return gaps.end + sum(gaps.steps[2:])


@gap.wrong("the prior's part is left out", seen="L_T has no parameters, so it is dropped")
def _(gaps):
    return sum(gaps.steps[1:])
