"""The checks of chapter 4: the posterior. The independent route is Bayes' rule, multiplied out on a grid of x_{t−1}."""

import numpy as np
import torch

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import log_normal, normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk

CASES = [(LONG, t) for t in (1, 2, 3, 50, 500, 999, 1000)] + [(SHORT, t) for t in (1, 2, 3, 4)]


def bayes_on_a_grid(schedule, t, x_0, x_t):
    """Mean and variance of q(x_{t−1}|x_t, x_0) from prior times likelihood on a grid (at t = 1 it is x_0)."""
    if t == 1:
        return x_0, 0.0
    scale, var = (float(v[t - 1]) for v in walk(schedule))
    beta = float(schedule.beta[t])

    def log_joint(x):
        return log_normal(x, scale * x_0, var) + log_normal(x_t, (1 - beta) ** 0.5 * x, beta)

    ends = sorted([scale * x_0, x_t / (1 - beta) ** 0.5])  # the mode lies between prior and likelihood
    for _ in range(4):
        coarse = np.linspace(*ends, 2001)
        mode = coarse[np.argmax(log_joint(coarse))]
        width = (ends[1] - ends[0]) / 1000
        ends = [mode - width, mode + width]
    narrow = min(var, beta / (1 - beta)) ** 0.5
    x = mode + narrow * np.linspace(-9, 9, 1201)
    p = np.exp(log_joint(x) - log_joint(x).max())
    mean = (p * x).sum() / p.sum()
    return mean, (p * (x - mean) ** 2).sum() / p.sum()


def inputs(seed=0):
    """For each case: schedule, t, and random x_0, ε and x_t, where x_t comes from walking the chain."""
    random = np.random.default_rng(seed)
    for schedule, t in CASES:
        x_0, eps = random.uniform(-1, 1), random.standard_normal()
        scale, var = (float(v[t]) for v in walk(schedule))
        yield schedule, t, x_0, eps, scale * x_0 + var**0.5 * eps


def batches(seed=0):
    """All cases as two batches of images (B, 1, 2, 3): schedule, t, x_0, ε and x_t. x_0 also leaves [−1, 1]."""
    random = np.random.default_rng(seed)
    for schedule in (LONG, SHORT):
        t = torch.tensor([t for s, t in CASES if s is schedule])
        scale, var = (images(v[t]) for v in walk(schedule))
        x_0 = torch.from_numpy(random.uniform(-2, 2, (len(t), 1, 2, 3)))
        eps = torch.from_numpy(2 * random.standard_normal(x_0.shape))
        yield schedule, t, x_0, eps, scale * x_0 + var.sqrt() * eps


def exact(schedule, t, x_0, x_t):
    """The posterior's mean and variance for every pixel of a batch, by Bayes' rule on a grid."""
    t = images(t).expand(x_0.shape)
    rows = zip(t.flatten().tolist(), x_0.flatten().tolist(), x_t.flatten().tolist(), strict=True)
    pairs = torch.tensor([bayes_on_a_grid(schedule, *row) for row in rows], dtype=torch.float64)
    return pairs[:, 0].reshape(x_0.shape), pairs[:, 1].reshape(x_0.shape)


def images(values):
    """(B,) → (B, 1, 1, 1), to broadcast against images."""
    return values.reshape(-1, 1, 1, 1)


@check(
    "4.1",
    "Bayes' rule for one step back",
    "identity",
    "conditioning in the joint Gaussian's covariance matrix",
    to=1e-9,
)
def bayes_rule(f):
    """f(step, prior, marginal) combines q(x_t|x_{t−1}), q(x_{t−1}|x_0) and q(x_t|x_0), values on a grid of x_{t−1}."""
    worst = 0.0
    for schedule, t, x_0, _, x_t in inputs():
        if t == 1:
            continue
        (m, m_t), (v, v_t) = ((float(w[t - 1]), float(w[t])) for w in walk(schedule))
        a, beta = float(schedule.alpha[t]) ** 0.5, float(schedule.beta[t])
        # x_{t−1} and x_t as linear maps of two independent noises: [[√v, 0], [a·√v, √β]]
        to_noise = np.array([[v**0.5, 0.0], [a * v**0.5, beta**0.5]])
        cov = to_noise @ to_noise.T
        mean = m * x_0 + cov[0, 1] / cov[1, 1] * (x_t - m_t * x_0)
        var = cov[0, 0] - cov[0, 1] ** 2 / cov[1, 1]
        x = mean + var**0.5 * np.linspace(-4, 4, 101)
        got = f(normal(x_t, a * x, beta), normal(x, m * x_0, v), normal(x_t, m_t * x_0, v_t))
        worst = largest(worst, apart(got * var**0.5, normal(x, mean, var) * var**0.5))
    return worst


@bayes_rule.states
def _(step, prior, marginal):
    return step * prior / marginal


@bayes_rule.wrong(
    "not divided by q(x_t|x_0): the curve does not integrate to 1", seen="proportional to, read as equal to"
)
def _(step, prior, marginal):
    return step * prior


@bayes_rule.wrong("the prior q(x_{t−1}|x_0) is left out", seen="the likelihood taken for the posterior")
def _(step, prior, marginal):
    return step / marginal


@bayes_rule.wrong("prior and likelihood are divided, not multiplied", seen="a slip of the pen")
def _(step, prior, marginal):
    return prior / step / marginal


@check("4.2", "completing the square", "identity", "moments of the product, on a grid", to=1e-9)
def completing_the_square(f):
    """f(a, y, v_y, m, v_m) returns mean and variance of the density ∝ N(y; a·x, v_y)·N(x; m, v_m) in x."""
    worst, x = 0.0, np.linspace(-12, 12, 24_001)
    for a, y, v_y, m, v_m in (
        (0.9, 0.5, 0.3, -0.2, 0.8),
        (0.5, -1.0, 1.0, 0.4, 0.1),
        (1.0, 0.0, 0.5, 1.0, 0.5),
        (-0.7, 0.6, 0.4, 0.3, 0.5),
    ):
        p = np.exp(log_normal(y, a * x, v_y) + log_normal(x, m, v_m))
        mean = (p * x).sum() / p.sum()
        var = (p * (x - mean) ** 2).sum() / p.sum()
        worst = largest(worst, apart(np.array(f(a, y, v_y, m, v_m)), np.array([mean, var])))
    return worst


@completing_the_square.states
def _(a, y, v_y, m, v_m):
    var = 1 / (a**2 / v_y + 1 / v_m)
    return var * (a * y / v_y + m / v_m), var


@completing_the_square.wrong("variances are added instead of precisions", seen="the rule for sums, used for products")
def _(a, y, v_y, m, v_m):
    var = a**2 * v_y + v_m
    return var * (a * y / v_y + m / v_m), var


@completing_the_square.wrong("the factor a is not squared in the precision", seen="a common slip")
def _(a, y, v_y, m, v_m):
    var = 1 / (a / v_y + 1 / v_m)
    return var * (a * y / v_y + m / v_m), var


@completing_the_square.wrong(
    "each centre is weighted with its own variance", seen="weights swapped: the vaguer one wins"
)
def _(a, y, v_y, m, v_m):
    return (v_y * y / a + v_m * m) / (v_y + v_m), 1 / (a**2 / v_y + 1 / v_m)


@check("4.3", "posterior variance", "implementation", "Bayes' rule on a grid", to=1e-9)
def posterior_var(f):
    """f(schedule, t) returns the variance for each t of a batch."""
    worst = 0.0
    for schedule, t, x_0, _, x_t in batches():
        got = f(schedule, t)
        worst = largest(worst, apart(got, exact(schedule, t, x_0, x_t)[1][:, 0, 0, 0]))
        worst += float(got[0] != 0)  # t = 1: exactly 0, for no tolerance excuses noise in the last step
    return worst


@posterior_var.wrong(
    "β_t, the variance of the forward step",
    seen="the upper bound of the two choices of Ho et al., taken for the posterior's",
)
def _(schedule, t):
    return schedule.beta[t]


@posterior_var.wrong("the ratio upside down", seen="indices t and t − 1 swapped")
def _(schedule, t):
    before = 1 - schedule.alpha_bar[(t - 1).clamp(min=1)]
    return (1 - schedule.alpha_bar[t]) / before * schedule.beta[t]


@posterior_var.wrong(
    "a standard deviation under a variance's name",
    seen="diffusers issue 14569: variance, deviation and log-variance under one name",
)
def _(schedule, t):
    return ((1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]).sqrt()


@posterior_var.wrong("β̃_1 replaced by β̃_2, as under a logarithm", seen="clipped log-variances, exponentiated again")
def _(schedule, t):
    t = t.clamp(min=2)
    return (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]


@check("4.4", "posterior mean", "implementation", "Bayes' rule on a grid", to=1e-9)
def posterior_mean(f):
    """f(schedule, x_0, x_t, t) returns the mean."""
    return largest(
        *(apart(f(schedule, x_0, x_t, t), exact(schedule, t, x_0, x_t)[0]) for schedule, t, x_0, _, x_t in batches())
    )


def _at(schedule, t):
    return (images(v) for v in (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t], schedule.alpha[t]))


def _mean(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = _at(schedule, t)
    return (a_prev.sqrt() * beta * x_0 + alpha.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong(
    "√ᾱ_t in place of √α_t in x_t's weight",
    seen="a student report; the text, not the code, of acids-ircam/diffusion_models",
)
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, _ = _at(schedule, t)
    return (a_prev.sqrt() * beta * x_0 + a.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong("√ᾱ_t in place of √ᾱ_{t−1} in x_0's weight", seen="indices t and t − 1 swapped")
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = _at(schedule, t)
    return (a.sqrt() * beta * x_0 + alpha.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong("the two weights swapped", seen="arguments x_0 and x_t in the wrong order")
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = _at(schedule, t)
    return (a_prev.sqrt() * beta * x_t + alpha.sqrt() * (1 - a_prev) * x_0) / (1 - a)


@posterior_mean.wrong("x_0 noised to t − 1, and x_t forgotten", seen="predict x_0, then noise it again")
def _(schedule, x_0, x_t, t):
    return images(schedule.alpha_bar[t - 1]).sqrt() * x_0


@posterior_mean.wrong(
    "x_0 clipped to [−1, 1] on the way", seen="samplers, where clipping belongs to the estimate of x_0"
)
def _(schedule, x_0, x_t, t):
    return _mean(schedule, x_0.clamp(-1, 1), x_t, t)


@posterior_mean.wrong("the first t is used for the whole batch", seen="code that was only ever run with one t")
def _(schedule, x_0, x_t, t):
    return _mean(schedule, x_0, x_t, t[:1].expand(len(t)))


@check("4.5", "one step back keeps the marginal", "identity", "the chain walked step by step", to=1e-9)
def keeps_the_marginal(f):
    """f(schedule, t) returns x_0's weight, x_t's weight and the variance of a step back, to q(x_{t−1}|x_0)."""
    worst = 0.0
    for schedule, t in CASES:
        scale, var = (v.tolist() for v in walk(schedule))
        on_x_0, on_x_t, step_var = (float(v) for v in f(schedule, t))
        worst = largest(
            worst,
            abs(on_x_0 + on_x_t * scale[t] - scale[t - 1]),
            abs(on_x_t**2 * var[t] + step_var - var[t - 1]),
        )
    return worst


def _weights(schedule, t):
    a, a_prev = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    on_x_0 = a_prev.sqrt() * schedule.beta[t] / (1 - a)
    on_x_t = schedule.alpha[t].sqrt() * (1 - a_prev) / (1 - a)
    return on_x_0, on_x_t, (1 - a_prev) / (1 - a) * schedule.beta[t]


@keeps_the_marginal.states
def _(schedule, t):
    return _weights(schedule, t)


@keeps_the_marginal.wrong(
    "√ᾱ_t in place of √α_t in x_t's weight",
    seen="a student report; the text, not the code, of acids-ircam/diffusion_models",
)
def _(schedule, t):
    on_x_0, on_x_t, var = _weights(schedule, t)
    return on_x_0, on_x_t * schedule.alpha_bar[t - 1].sqrt(), var


@keeps_the_marginal.wrong("no noise: a “deterministic DDPM”", seen="a student report")
def _(schedule, t):
    return *_weights(schedule, t)[:2], 0.0


@keeps_the_marginal.wrong("noise at t = 1 too", seen="noise added at the last step, in several tutorials")
def _(schedule, t):
    on_x_0, on_x_t, var = _weights(schedule, t)
    return on_x_0, on_x_t, schedule.beta[1] if t == 1 else var


@check("4.6", "posterior mean from noise", "implementation", "Bayes' rule on a grid", to=1e-9)
def mean_from_eps(f):
    """f(schedule, x_t, eps, t) returns the mean."""
    return largest(
        *(apart(f(schedule, x_t, eps, t), exact(schedule, t, x_0, x_t)[0]) for schedule, t, x_0, eps, x_t in batches())
    )


@mean_from_eps.wrong("divided by √ᾱ_t in place of √α_t", seen="the formula for x_0 and the one for the mean mixed up")
def _(schedule, x_t, eps, t):
    a, _, beta, _ = _at(schedule, t)
    return (x_t - beta / (1 - a).sqrt() * eps) / a.sqrt()


@mean_from_eps.wrong("β_t/(1 − ᾱ_t): the root is missing", seen="variance and standard deviation mixed up")
def _(schedule, x_t, eps, t):
    a, _, beta, alpha = _at(schedule, t)
    return (x_t - beta / (1 - a) * eps) / alpha.sqrt()


@mean_from_eps.wrong(
    "√β_t·ε removed: the noise of one step, not its expected share", seen="the forward step run backwards"
)
def _(schedule, x_t, eps, t):
    _, _, beta, alpha = _at(schedule, t)
    return (x_t - beta.sqrt() * eps) / alpha.sqrt()


@check("4.7", "noise from posterior mean", "implementation", "Bayes' rule on a grid, from a known ε", to=1e-9)
def eps_from_mean(f):
    """f(schedule, x_t, mean, t) returns the ε that x_t was made with."""
    return largest(
        *(apart(f(schedule, x_t, exact(schedule, t, x_0, x_t)[0], t), eps) for schedule, t, x_0, eps, x_t in batches())
    )


@eps_from_mean.wrong("(x_t − √(1 − ᾱ_t)·μ)/√(1 − ᾱ_t)", seen="a tuning guide for diffusion models")
def _(schedule, x_t, mean, t):
    std = (1 - images(schedule.alpha_bar[t])).sqrt()
    return (x_t - std * mean) / std


@eps_from_mean.wrong(
    "the mean is taken for x_0", seen="a network that predicts the mean, read as one that predicts x_0"
)
def _(schedule, x_t, mean, t):
    a = images(schedule.alpha_bar[t])
    return (x_t - a.sqrt() * mean) / (1 - a).sqrt()


@eps_from_mean.wrong("√α_t is missing before the mean", seen="a common slip")
def _(schedule, x_t, mean, t):
    a, _, beta, _ = _at(schedule, t)
    return (1 - a).sqrt() / beta * (x_t - mean)


WEIGHT, MEAN, VAR = np.array([0.35, 0.65]), np.array([-0.8, 0.5]), np.array([0.02, 0.05])


def reverse_step_on_a_grid(schedule, t, x_t):
    """Grid of x_{t−1}, and q(x_{t−1}|x_t) on it, for mixture data: Bayes' rule on the marginal, by quadrature."""
    if t == 1:
        return x_0_given_x_t(schedule, 1, x_t)
    scale, var = (float(v[t - 1]) for v in walk(schedule))
    beta = float(schedule.beta[t])
    x_0 = np.linspace(-2.5, 2.5, 801)
    data = (WEIGHT * normal(x_0[:, None], MEAN, VAR)).sum(1)
    center = x_t / (1 - beta) ** 0.5
    x = center + (beta / (1 - beta)) ** 0.5 * np.linspace(-12, 12, 601)
    marginal = np.trapezoid(normal(x[:, None], scale * x_0, var) * data, x_0)
    joint = normal(x_t, (1 - beta) ** 0.5 * x, beta) * marginal
    return x, joint / np.trapezoid(joint, x)


REVERSE = [(SHORT, 2, 0.4), (SHORT, 4, -0.3), (SHORT, 3, 2.5), (LONG, 300, 0.2), (LONG, 700, -1.0)]


def x_0_given_x_t(schedule, t, x_t):
    """Grid of x_0, and q(x_0|x_t) on it, for mixture data."""
    scale, var = (float(v[t]) for v in walk(schedule))
    x_0 = np.linspace(-2.5, 2.5, 801)
    joint = (WEIGHT * normal(x_0[:, None], MEAN, VAR)).sum(1) * normal(x_t, scale * x_0, var)
    return x_0, joint / np.trapezoid(joint, x_0)


@check("4.8", "true reverse step", "identity", "Bayes' rule on the marginal q(x_{t−1})", to=1e-9)
def true_reverse_step(f):
    """f(posterior, weight) averages q(x_{t−1}|x_t, x_0), (N, len(x_0)), with q(x_0|x_t)·dx_0, (len(x_0),)."""
    worst = 0.0
    for schedule, t, x_t in REVERSE:
        x, exact = reverse_step_on_a_grid(schedule, t, x_t)
        x_0, density = x_0_given_x_t(schedule, t, x_t)
        means, var = zip(*(bayes_on_a_grid(schedule, t, x, x_t) for x in x_0[:: len(x_0) - 1]), strict=True)
        mean = means[0] + (x_0 - x_0[0]) / (x_0[-1] - x_0[0]) * (means[1] - means[0])  # the mean is affine in x_0
        got = f(normal(x[:, None], mean, var[0]), density * (x_0[1] - x_0[0]))
        worst = largest(worst, apart(got, exact) / exact.max())
    return worst


@true_reverse_step.states
def _(posterior, weight):
    return posterior @ weight


@true_reverse_step.wrong(
    "the posterior at the mean of x_0, not the mean of the posteriors",
    seen="the Gaussian that is sampled, taken for the truth",
)
def _(posterior, weight):
    center = round(float((weight * np.arange(len(weight))).sum() / weight.sum()))
    return posterior[:, center]


@true_reverse_step.wrong("all x_0 weighted alike", seen="q(x_0|x_t) forgotten")
def _(posterior, weight):
    return posterior.mean(1)


@check("4.9", "reverse variance", "identity", "moments of the true reverse step on a grid", to=1e-9)
def reverse_variance(f):
    """f(schedule, t, x_0_var), with x_0_var = Var(x_0|x_t), returns Var(x_{t−1}|x_t)."""
    worst = 0.0
    for schedule, t, x_t in [(SHORT, 1, 0.2), *REVERSE]:
        x, density = reverse_step_on_a_grid(schedule, t, x_t)
        mean = np.trapezoid(density * x, x)
        x_0, weight = x_0_given_x_t(schedule, t, x_t)
        x_0_mean = np.trapezoid(weight * x_0, x_0)
        x_0_var = np.trapezoid(weight * (x_0 - x_0_mean) ** 2, x_0)
        worst = largest(worst, apart(float(f(schedule, t, x_0_var)), np.trapezoid(density * (x - mean) ** 2, x)))
    return worst


@reverse_variance.states
def _(schedule, t, x_0_var):
    on_x_0, _, var = _weights(schedule, t)
    return var + on_x_0**2 * x_0_var


@reverse_variance.wrong("β̃_t only: x_0 is taken as known", seen="the posterior taken for the reverse step")
def _(schedule, t, x_0_var):
    return _weights(schedule, t)[2]


@reverse_variance.wrong("β_t, whatever the data", seen="the choice for N(0, 1) data taken for a law")
def _(schedule, t, x_0_var):
    return schedule.beta[t]


@reverse_variance.wrong("x_0's weight is not squared", seen="variance and standard deviation mixed up")
def _(schedule, t, x_0_var):
    on_x_0, _, var = _weights(schedule, t)
    return var + on_x_0 * x_0_var


@check("4.10", "reverse mean from the score", "identity", "the mean of the true reverse step on a grid", to=1e-9)
def reverse_mean(f):
    """f(schedule, x_t, score, t), with score = d log q(x_t)/dx_t, returns E[x_{t−1}|x_t]."""
    worst = 0.0
    for schedule, t, x_t in [(SHORT, 1, 0.2), *REVERSE]:
        x, density = reverse_step_on_a_grid(schedule, t, x_t)
        scale, var = (float(v[t]) for v in walk(schedule))
        point = torch.tensor(x_t, dtype=torch.float64, requires_grad=True)
        w, m, v = (torch.tensor(p) for p in (WEIGHT, MEAN, VAR))
        total = scale**2 * v + var
        log_q = (w.log() - (point - scale * m) ** 2 / (2 * total) - 0.5 * total.log()).logsumexp(0)
        (score,) = torch.autograd.grad(log_q, point)
        worst = largest(worst, apart(f(schedule, x_t, float(score), t), np.trapezoid(density * x, x)))
    return worst


@reverse_mean.states
def _(schedule, x_t, score, t):
    return (x_t + schedule.beta[t] * score) / schedule.alpha[t].sqrt()


@reverse_mean.wrong("the sign of the score", seen="a step downhill, away from the data")
def _(schedule, x_t, score, t):
    return (x_t - schedule.beta[t] * score) / schedule.alpha[t].sqrt()


@reverse_mean.wrong(
    "β_t/2, the step of Langevin dynamics",
    seen="the drift of the probability-flow ODE taken for the reverse mean",
)
def _(schedule, x_t, score, t):
    return (x_t + 0.5 * schedule.beta[t] * score) / schedule.alpha[t].sqrt()


@reverse_mean.wrong("not divided by √α_t", seen="the variance-exploding formula in a variance-preserving chain")
def _(schedule, x_t, score, t):
    return x_t + schedule.beta[t] * score
