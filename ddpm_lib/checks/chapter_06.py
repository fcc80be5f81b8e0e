"""The checks of chapter 6, L_simple: the weights against divergences by quadrature, the targets against geometry and
autograd, the exact denoiser and the floor of the loss against quadrature over the noise."""

import numpy as np
import torch

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import hermite, log_normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk
from ddpm_lib.checks.chapter_05 import TINY, kl_of_a_step
from ddpm_lib.diffusion.elbo import posterior_var_clipped
from ddpm_lib.diffusion.forward import forward_var, noise_like
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.gaussian import log_density

STEPS = [(LONG, t) for t in (2, 3, 40, 500, 1000)] + [(SHORT, t) for t in (2, 3, 4)] + [(TINY, 2)]


def weight_by_quadrature(schedule, t, var, x_0=0.4, eps=-0.7, eps_hat=2.6):
    """By how many nats a squared error of 1 in ε raises the divergence of one step back."""
    scale, noise_var = walk(schedule)
    beta, std = float(schedule.beta[t]), float(noise_var[t]) ** 0.5
    x_t = float(scale[t]) * x_0 + std * eps
    costs = []
    for estimate in (eps, eps_hat):
        mean = (x_t - beta / std * estimate) / (1 - beta) ** 0.5
        if t == 1:
            costs.append(-log_normal(x_0, mean, var))
        else:
            costs.append(kl_of_a_step(x_0, x_t, float(scale[t - 1]), float(noise_var[t - 1]), beta, mean, var))
    return (costs[1] - costs[0]) / (eps_hat - eps) ** 2


@check("6.1", "weight of the noise loss", "implementation", "divergences of a step, by quadrature", to=1e-8)
def weight(f):
    """f(schedule, t, reverse_var) returns the weight for each t of a batch."""
    worst = 0.0
    for schedule, reverse_var in (
        (LONG, posterior_var_clipped),
        (LONG, forward_var),
        (SHORT, forward_var),
        (TINY, forward_var),
    ):
        t = torch.tensor([1, *(t for s, t in STEPS if s is schedule)])
        exact = [weight_by_quadrature(schedule, int(step), float(reverse_var(schedule, int(step)))) for step in t]
        worst = largest(worst, apart(f(schedule, t, reverse_var), torch.tensor(exact, dtype=torch.float64)))
    return worst


def _tables(schedule, t):
    return schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]


@weight.wrong("no weight at all", seen="a student report")
def _(schedule, t, reverse_var):
    return torch.ones(len(t), dtype=torch.float64)


@weight.wrong("2·1 − ᾱ for 2·(1 − ᾱ)", seen="CompVis/latent-diffusion PR 404 and 406, in a weight of this kind")
def _(schedule, t, reverse_var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta**2 / (reverse_var(schedule, t) * alpha * (2 * 1 - alpha_bar))


@weight.wrong("β_t is not squared", seen="a common slip")
def _(schedule, t, reverse_var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta / (2 * reverse_var(schedule, t) * alpha * (1 - alpha_bar))


@weight.wrong("σ_t for σ_t²", seen="variance and standard deviation under one name")
def _(schedule, t, reverse_var):
    beta, alpha, alpha_bar = _tables(schedule, t)
    return beta**2 / (2 * reverse_var(schedule, t).sqrt() * alpha * (1 - alpha_bar))


@weight.wrong("ᾱ_t for α_t", seen="a bar too many")
def _(schedule, t, reverse_var):
    beta, _, alpha_bar = _tables(schedule, t)
    return beta**2 / (2 * reverse_var(schedule, t) * alpha_bar * (1 - alpha_bar))


@check("6.2", "weight from the signal-to-noise ratio", "identity", "divergences of a step, by quadrature", to=1e-7)
def weight_from_snr(f):
    """f(snr_prev, snr_t) returns the weight of the noise loss at σ² = β̃, from SNR(t − 1) and SNR(t)."""
    worst = 0.0
    for schedule, t in STEPS:
        scale, var = walk(schedule)
        ratio = scale**2 / var
        exact = weight_by_quadrature(schedule, t, float(posterior_var(schedule, t)))
        worst = largest(worst, abs(float(f(ratio[t - 1], ratio[t])) - exact))
    return worst


@weight_from_snr.states
def _(snr_prev, snr_t):
    return 0.5 * (snr_prev / snr_t - 1)


@weight_from_snr.wrong(
    "the weight of the x_0 loss: ½·(SNR(t − 1) − SNR(t))", seen="variational diffusion models, read for ε"
)
def _(snr_prev, snr_t):
    return 0.5 * (snr_prev - snr_t)


@weight_from_snr.wrong("the one half is lost", seen="a common slip")
def _(snr_prev, snr_t):
    return snr_prev / snr_t - 1


@weight_from_snr.wrong("the ratio upside down", seen="indices t and t − 1 swapped")
def _(snr_prev, snr_t):
    return 0.5 * (1 - snr_t / snr_prev)


def batch_of_images(seed):
    """(schedule, t, x_0, ε, x_t) with images (B, 1, 2, 3), float64, and x_t from walking the chain.

    x_0 also lies outside [−1, 1], as a network's estimate may: there clipping shows.
    """
    random = np.random.default_rng(seed)
    for schedule in (LONG, SHORT):
        t = torch.tensor([1, 2, 3, 4] if schedule is SHORT else [1, 2, 30, 500, 1000])
        scale, std = (v[t].reshape(-1, 1, 1, 1) for v in (walk(schedule)[0], walk(schedule)[1].sqrt()))
        x_0 = torch.from_numpy(random.uniform(-2, 2, (len(t), 1, 2, 3)))
        eps = torch.from_numpy(random.standard_normal(x_0.shape))
        yield schedule, t, x_0, eps, scale * x_0 + std * eps


def _column(values):
    return values.reshape(-1, 1, 1, 1)


def _ends(schedule, t):
    """√ᾱ_t and √(1 − ᾱ_t), for images."""
    return _column(schedule.alpha_bar[t].sqrt()), _column((1 - schedule.alpha_bar[t]).sqrt())


def _network(x_t, t):
    """A stand-in for a network, which depends on t in every value."""
    return 0.3 * x_t**2 - 0.5 * x_t.flip(-1) + _column((t + 2.0).log())


def _scaled(size):
    """The stand-in with its output multiplied by a weight, `size`."""
    return lambda x_t, t: size * _network(x_t, t)


@check(
    "6.3",
    "L_simple",
    "implementation",
    "the chain walked step by step, errors squared one by one; its slope by differences",
    to=1e-9,
)
def l_simple(f):
    """f(model, schedule, x_0, eps, t) returns one loss for each image, through which a gradient reaches the model."""
    worst = 0.0
    for schedule, t, x_0, eps, x_t in batch_of_images(0):
        losses = {}
        for size in (0.5, 1.0, 1.5):
            errors = (eps - _scaled(size)(x_t, t)).reshape(len(t), -1).tolist()
            losses[size] = torch.tensor([sum(e * e for e in row) / len(row) for row in errors], dtype=torch.float64)
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        got = f(_scaled(weight), schedule, x_0, eps, t)
        worst = largest(worst, apart(got, losses[1.0]))
        slope = (losses[1.5] - losses[0.5]).sum()  # exact, for the loss is quadratic in the weight
        found = torch.autograd.grad(got.sum(), weight)[0] if got.requires_grad else torch.zeros(())
        worst = largest(worst, apart(found, slope))
    return worst


def _noisy(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return scale * x_0 + std * eps


@l_simple.wrong("the network is given t − 1, the noisy image is of t", seen="UDL notebook 18.3")
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t - 1)).square().flatten(1).mean(1)


@l_simple.wrong("compared with the image, not with the noise", seen="a network for ε, trained on x_0")
def _(model, schedule, x_0, eps, t):
    return (x_0 - model(_noisy(schedule, x_0, eps, t), t)).square().flatten(1).mean(1)


@l_simple.wrong("other noise in the image than in the loss", seen="a second call of randn")
def _(model, schedule, x_0, eps, t):
    other = noise_like(eps, torch.Generator().manual_seed(1))
    return (eps - model(_noisy(schedule, x_0, other, t), t)).square().flatten(1).mean(1)


@l_simple.wrong("absolute values instead of squares", seen="loss_type='l1' in denoising-diffusion-pytorch")
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t)).abs().flatten(1).mean(1)


@l_simple.wrong("variances for roots in the noisy image", seen="variance and standard deviation mixed up")
def _(model, schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return (eps - model(scale**2 * x_0 + std**2 * eps, t)).square().flatten(1).mean(1)


@l_simple.wrong("no gradient reaches the network", seen="no_grad() or detach() left over from sampling")
def _(model, schedule, x_0, eps, t):
    return (eps - model(_noisy(schedule, x_0, eps, t), t).detach()).square().flatten(1).mean(1)


@check("6.4", "a random step", "implementation", "how often each t comes in 400,000 draws, how batches of 64 scatter")
def random_step(f):
    """f(schedule, batch, generator) draws t, shape (batch,), anew in each call."""
    scores, n = [], 400_000
    for schedule in (TINY, SHORT, LONG):
        T, generator = schedule.T, torch.Generator().manual_seed(7)
        t, p = f(schedule, n, generator), 1 / schedule.T
        counts = torch.bincount(t.long().clamp(0, T + 1), minlength=T + 2)[1:-1].numpy()
        scores += [np.abs(counts - n * p).max() / (n * p * (1 - p)) ** 0.5]
        # Independent draws: the mean of 64 scatters with a 64th of the variance of one (its mean square is then
        # known to within a factor √(2/2000)), and nothing that was drawn tells what comes next, or in the next batch.
        batches = torch.stack([f(schedule, 64, generator) for _ in range(2000)]).double().numpy()
        squares = (batches.mean(1) - (T + 1) / 2) ** 2 / ((T**2 - 1) / 12 / 64)
        scores += [abs(squares.mean() - 1) * (2000 / 2) ** 0.5]
        for lag in (1, 64):
            draws = batches.ravel()
            scores += [abs(np.corrcoef(draws[lag:], draws[:-lag])[0, 1]) * len(draws[lag:]) ** 0.5]
    return largest(*scores)


def _uniform(low, high, n, generator):
    return torch.randint(low, high, (n,), generator=generator)


@random_step.wrong("from 0 to T − 1, into tables that have an entry for the clean image", seen="0-based code, copied")
def _(schedule, batch, generator):
    return _uniform(0, schedule.T, batch, generator)


@random_step.wrong("T is never drawn", seen="randint(1, T): its upper end is exclusive")
def _(schedule, batch, generator):
    return _uniform(1, schedule.T, batch, generator)


@random_step.wrong("a uniform real number, rounded: both ends come half as often", seen="a common slip")
def _(schedule, batch, generator):
    return (1 + torch.rand(batch, generator=generator) * (schedule.T - 1)).round().long()


@random_step.wrong("in pairs t and T + 1 − t", seen="antithetic draws, said to be independent (DDIM's training code)")
def _(schedule, batch, generator):
    half = _uniform(1, schedule.T + 1, batch // 2 + 1, generator)
    return torch.cat([half, schedule.T + 1 - half])[:batch]


@random_step.wrong("the same t in every batch", seen="a seed that is set inside the loop")
def _(schedule, batch, generator):
    return _uniform(1, schedule.T + 1, batch, torch.Generator().manual_seed(0))


@check("6.5", "clean image from noise", "implementation", "the chain walked step by step", to=1e-9)
def clean_image(f):
    """f(schedule, x_t, eps, t) returns x_0."""
    return largest(*(apart(f(s, x_t, eps, t), x_0) for s, t, x_0, eps, x_t in batch_of_images(1)))


@clean_image.wrong("divided by ᾱ_t, not by its root", seen="a common slip")
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t)
    return (x_t - std * eps) / scale**2


@clean_image.wrong("the noise is not scaled: (x_t − ε)/√ᾱ_t", seen="a common slip")
def _(schedule, x_t, eps, t):
    return (x_t - eps) / _ends(schedule, t)[0]


@clean_image.wrong("one step instead of t: α_t and β_t", seen="a bar lost in copying")
def _(schedule, x_t, eps, t):
    return (x_t - _column(schedule.beta[t].sqrt()) * eps) / _column(schedule.alpha[t].sqrt())


@clean_image.wrong("tables read at t − 1", seen="a 1-based t with a 0-based table")
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t - 1)
    return (x_t - std * eps) / scale


@clean_image.wrong("clipped to [−1, 1]", seen="samplers' code, where it may be wanted, in the formula itself")
def _(schedule, x_t, eps, t):
    scale, std = _ends(schedule, t)
    return ((x_t - std * eps) / scale).clamp(-1, 1)


@check("6.6", "noise from clean image", "implementation", "the chain walked step by step", to=1e-9)
def noise(f):
    """f(schedule, x_t, x_0, t) returns ε."""
    return largest(*(apart(f(s, x_t, x_0, t), eps) for s, t, x_0, eps, x_t in batch_of_images(2)))


@noise.wrong("the image is not shrunk: (x_t − x_0)/√(1 − ᾱ_t)", seen="noise taken for what was added")
def _(schedule, x_t, x_0, t):
    return (x_t - x_0) / _ends(schedule, t)[1]


@noise.wrong("divided by 1 − ᾱ_t, not by its root", seen="a common slip")
def _(schedule, x_t, x_0, t):
    scale, std = _ends(schedule, t)
    return (x_t - scale * x_0) / std**2


@noise.wrong("the sign is turned", seen="score and noise mixed up")
def _(schedule, x_t, x_0, t):
    scale, std = _ends(schedule, t)
    return (scale * x_0 - x_t) / std


@check(
    "6.7", "velocity", "implementation", "the derivative of x_t along the circle from x_0 to ε, by autograd", to=1e-9
)
def velocity(f):
    """f(schedule, x_0, eps, t) returns v."""
    worst = 0.0
    for schedule, t, x_0, eps, _ in batch_of_images(3):
        scale, var = walk(schedule)
        angle = torch.atan2(var.sqrt()[t], scale[t])
        _, v = torch.autograd.functional.jvp(
            lambda a: _column(a.cos()) * x_0 + _column(a.sin()) * eps,  # noqa: B023
            angle,
            torch.ones_like(angle),
        )
        worst = largest(worst, apart(f(schedule, x_0, eps, t), v))
    return worst


@velocity.wrong("the sign is turned", seen="a common slip")
def _(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return std * x_0 - scale * eps


@velocity.wrong("the two factors are swapped", seen="a common slip")
def _(schedule, x_0, eps, t):
    scale, std = _ends(schedule, t)
    return std * eps - scale * x_0


@velocity.wrong("ε − x_0, the velocity of a straight line", seen="flow matching, where paths are not circles")
def _(schedule, x_0, eps, t):
    return eps - x_0


@check("6.8", "noise from velocity", "implementation", "two linear equations in x_0 and ε, solved", to=1e-9)
def noise_from_velocity(f):
    """f(schedule, x_t, v, t) returns ε."""
    worst = 0.0
    for schedule, t, x_t, v, _ in batch_of_images(4):  # any two images will do
        scale, var = walk(schedule)
        a, b = scale[t], var[t].sqrt()
        rows = torch.stack([torch.stack([a, b], -1), torch.stack([-b, a], -1)], -2)  # (B, 2, 2)
        both = torch.linalg.solve(rows, torch.stack([x_t.flatten(1), v.flatten(1)], 1))
        worst = largest(worst, apart(f(schedule, x_t, v, t), both[:, 1].reshape(x_t.shape)))
    return worst


@noise_from_velocity.wrong("the clean image's formula", seen="ε and x_0 mixed up")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale * x_t - std * v


@noise_from_velocity.wrong("the two factors are swapped", seen="a common slip")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return scale * x_t + std * v


@noise_from_velocity.wrong("the sign of v is turned", seen="a v of the other sign, as some texts define it")
def _(schedule, x_t, v, t):
    scale, std = _ends(schedule, t)
    return std * x_t - scale * v


@check("6.9", "score from noise", "implementation", "the gradient of log q(x_t|x_0), by autograd", to=1e-9)
def score(f):
    """f(schedule, eps, t) returns the score; compared in units of 1/√(1 − ᾱ_t), for at t = 1 it is large."""
    worst = 0.0
    for schedule, t, x_0, eps, x_t in batch_of_images(5):
        scale, var = (_column(v[t]) for v in walk(schedule))
        x_t = x_t.requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(x_t, scale * x_0, var).sum(), x_t)
        worst = largest(worst, apart(f(schedule, eps, t) * var.sqrt(), gradient * var.sqrt()))
    return worst


@score.wrong("the sign is lost", seen="the score said to be the noise")
def _(schedule, eps, t):
    return eps / _ends(schedule, t)[1]


@score.wrong("not divided by the noise's size", seen="the score said to be minus the noise")
def _(schedule, eps, t):
    return -eps


@score.wrong("divided by 1 − ᾱ_t, not by its root", seen="the formula in x_t − √ᾱ_t·x_0, with ε put in")
def _(schedule, eps, t):
    return -eps / _ends(schedule, t)[1] ** 2


@check(
    "6.10",
    "one error in four units",
    "identity",
    "two estimates of one image, converted by solving for the rest",
    to=1e-9,
)
def units(f):
    """f(snr) returns the squared errors in ε, v and the score that go with a squared error of 1 in x_0."""
    worst = 0.0
    for alpha_bar in (0.98, 0.7, 0.4, 0.05):
        a, b, x_t = alpha_bar**0.5, (1 - alpha_bar) ** 0.5, 0.6
        found = []
        for x_0 in (0.2, 1.2):  # a distance of 1
            eps = np.linalg.solve([[1.0, 0.0], [a, b]], [x_0, x_t])[1]
            found.append([eps, a * eps - b * x_0, -(x_t - a * x_0) / b**2])
        squares = (np.array(found[1]) - np.array(found[0])) ** 2
        got = np.array([float(v) for v in f(alpha_bar / (1 - alpha_bar))])
        worst = largest(worst, *np.abs(got / squares - 1))
    return worst


@units.states
def _(snr):
    return snr, snr + 1, snr * (snr + 1)


@units.wrong("v is weighted as ε is: min-SNR's min(SNR, γ)/SNR for v", seen="diffusers issue 5654, mended in PR 6307")
def _(snr):
    return snr, snr, snr * (snr + 1)


@units.wrong("deviations for variances: √SNR", seen="a common slip")
def _(snr):
    return snr**0.5, snr + 1, snr * (snr + 1)


@units.wrong("the score weighted as ε is", seen="the score said to be minus the noise")
def _(snr):
    return snr, snr + 1, snr


MIX = (np.array([0.35, 0.65]), np.array([-0.8, 0.5]), np.array([0.03, 0.08]))  # weights, means, variances
SHARES = (0.97, 0.6, 0.15)  # values of ᾱ_t


def noised_mixture(alpha_bar):
    """log q(x) of the noised mixture, as a function of a tensor x (n,)."""
    weight, mean, var = (torch.from_numpy(v) for v in MIX)
    return lambda x: (
        weight.log() + log_density(x[:, None], alpha_bar**0.5 * mean, alpha_bar * var + 1 - alpha_bar)
    ).logsumexp(1)


def score_of_mixture(x, alpha_bar):
    x = torch.as_tensor(x, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(noised_mixture(alpha_bar)(x).sum(), x)
    return gradient.numpy()


def pairs_of_mixture(alpha_bar, nodes=24):
    """Nodes (x_0, ε) and weights of a quadrature over the data and the noise, and x_t at each."""
    pairs, w = (v.numpy() for v in hermite(nodes, 2))
    weight, mean, var = (v[:, None] for v in MIX)
    x_0, eps = mean + var**0.5 * pairs[:, 0], np.broadcast_to(pairs[:, 1], (len(mean), len(pairs)))
    x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
    return x_0.ravel(), eps.ravel(), (weight * w).ravel(), x_t.ravel()


@check("6.11", "Tweedie's formula", "identity", "quadrature of E[x_0|x_t] over the data", to=1e-8)
def tweedie(f):
    """f(x_t, score, alpha_bar) returns E[x_0|x_t]."""
    worst, x_t, (weight, mean, var) = 0.0, np.linspace(-2, 2, 41), MIX
    x_0 = np.linspace(-3, 3, 6001)
    data = (weight * np.exp(log_normal(x_0[:, None], mean, var))).sum(1)
    for alpha_bar in SHARES:
        joint = np.exp(log_normal(x_t[:, None], alpha_bar**0.5 * x_0, 1 - alpha_bar)) * data
        exact = (joint * x_0).sum(1) / joint.sum(1)
        worst = largest(worst, apart(f(x_t, score_of_mixture(x_t, alpha_bar), alpha_bar), exact))
    return worst


@tweedie.states
def _(x_t, score, alpha_bar):
    return (x_t + (1 - alpha_bar) * score) / alpha_bar**0.5


@tweedie.wrong("against the slope: x_t − (1 − ᾱ)·score", seen="a sign lost between score and noise")
def _(x_t, score, alpha_bar):
    return (x_t - (1 - alpha_bar) * score) / alpha_bar**0.5


@tweedie.wrong("the root of 1 − ᾱ", seen="score and noise estimate mixed up")
def _(x_t, score, alpha_bar):
    return (x_t + (1 - alpha_bar) ** 0.5 * score) / alpha_bar**0.5


@tweedie.wrong("not divided by √ᾱ_t", seen="the formula for data that are not shrunk")
def _(x_t, score, alpha_bar):
    return x_t + (1 - alpha_bar) * score


def some_score(x):
    """Any function will do for a model of the score."""
    return 0.4 - 1.1 * x + 0.2 * x**2


@check("6.12", "denoising score matching", "identity", "quadrature over the noisy data", to=1e-8)
def score_matching(f):
    """f(denoising, conditional, marginal) returns E(s − ∇log q(x_t))².

    denoising: E(s − ∇log q(x_t|x_0))²; conditional: E(∇log q(x_t|x_0))²; marginal: E(∇log q(x_t))².
    """
    worst, x = 0.0, np.linspace(-9, 9, 20_001)
    for alpha_bar in SHARES:
        q = np.exp(noised_mixture(alpha_bar)(torch.from_numpy(x)).numpy())
        q, truth = q / q.sum(), score_of_mixture(x, alpha_bar)
        _, eps, weights, x_t = pairs_of_mixture(alpha_bar)
        given_x_0 = -eps / (1 - alpha_bar) ** 0.5
        denoising = (weights * (some_score(x_t) - given_x_0) ** 2).sum()
        got = f(denoising, (weights * given_x_0**2).sum(), (q * truth**2).sum())
        worst = largest(worst, abs(got - (q * (some_score(x) - truth) ** 2).sum()))
    return worst


@score_matching.states
def _(denoising, conditional, marginal):
    return denoising - conditional + marginal


@score_matching.wrong("the two losses said to be equal", seen="the constant, forgotten")
def _(denoising, conditional, marginal):
    return denoising


@score_matching.wrong("the marginal score's part forgotten", seen="the constant, half of it")
def _(denoising, conditional, marginal):
    return denoising - conditional


@score_matching.wrong("the constant's sign turned", seen="a common slip")
def _(denoising, conditional, marginal):
    return denoising + conditional - marginal


BLOBS = GaussianMixture(
    torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
    torch.tensor([[-0.7, 0.1], [0.6, 0.6], [0.3, -0.8]], dtype=torch.float64),
    torch.tensor([[0.3, 0.1], [0.2, 0.25], [0.15, 0.4]], dtype=torch.float64),
)


@check("6.13", "exact denoiser", "implementation", "quadrature over the noise, in two dimensions", to=1e-7)
def exact_denoiser(f):
    """f(mixture, schedule) returns a function of (x_t, t), which returns E[ε|x_t]."""
    t = torch.tensor([1, 3, 2, 4])
    x_t = torch.tensor([[0.2, -0.4], [-0.9, 0.3], [0.5, 0.7], [-0.3, -1.2]], dtype=torch.float64)
    scale, std = (v[t][:, None] for v in (walk(SHORT)[0], walk(SHORT)[1].sqrt()))
    line = torch.linspace(-9, 9, 301, dtype=torch.float64)
    eps = torch.cartesian_prod(line, line)
    exact = []
    for x, a, b in zip(x_t, scale, std, strict=True):
        x_0 = (x - b * eps) / a  # the image that goes with each noise
        density = BLOBS.weight * log_density(x_0[:, None], BLOBS.mean, BLOBS.var).sum(-1).exp()
        share = density.sum(1) * torch.exp(-0.5 * eps.square().sum(1))
        exact.append((share[:, None] * eps).sum(0) / share.sum())
    return apart(f(BLOBS, SHORT)(x_t, t), torch.stack(exact))


@exact_denoiser.wrong("components treated as points", seen="the formula for a finite data set, used for blobs")
def _(mixture, schedule):
    points = GaussianMixture(mixture.weight, mixture.mean, torch.full_like(mixture.var, 1e-9))
    return ExactDenoiser(points, schedule)


@exact_denoiser.wrong("all components count the same", seen="mixture weights left out of Bayes' rule")
def _(mixture, schedule):
    equal = torch.full_like(mixture.weight, 1 / len(mixture.weight))
    return ExactDenoiser(GaussianMixture(equal, mixture.mean, mixture.var), schedule)


@exact_denoiser.wrong("the estimate of x_0 in the place of ε", seen="x_0- and ε-prediction mixed up")
def _(mixture, schedule):
    return ExactDenoiser(mixture, schedule).x_0_hat


@exact_denoiser.wrong("minus the score, not scaled by √(1 − ᾱ_t)", seen="score and noise estimate mixed up")
def _(mixture, schedule):
    exact = ExactDenoiser(mixture, schedule)
    return lambda x_t, t: exact(x_t, t) / (1 - schedule.alpha_bar[t]).sqrt()[:, None]


@exact_denoiser.wrong("the likeliest component only", seen="a hard assignment in the place of the average")
def _(mixture, schedule):
    exact = ExactDenoiser(mixture, schedule)

    def hard(x_t, t):
        noisy = [mixture.diffused(schedule, int(step)) for step in t]
        k = [int(m.component_log_density(x[None]).argmax()) for m, x in zip(noisy, x_t, strict=True)]
        return exact(x_t, t, torch.tensor(k))

    return hard


@check("6.14", "loss above its floor", "identity", "quadrature over data and noise", to=1e-8)
def floor(f):
    """f(alpha_bar, fisher, distance) returns E(ε − ε_θ)² for one number of an image.

    fisher: E(∇log q(x_t))²; distance: E(ε* − ε_θ)², from the exact denoiser.
    """
    worst, x = 0.0, np.linspace(-9, 9, 20_001)
    for alpha_bar in SHARES:
        q = np.exp(noised_mixture(alpha_bar)(torch.from_numpy(x)).numpy())
        q, truth = q / q.sum(), score_of_mixture(x, alpha_bar)
        distance = (q * (-((1 - alpha_bar) ** 0.5) * truth - some_score(x)) ** 2).sum()
        _, eps, weights, x_t = pairs_of_mixture(alpha_bar)
        loss = (weights * (eps - some_score(x_t)) ** 2).sum()
        worst = largest(worst, abs(f(alpha_bar, (q * truth**2).sum(), distance) - loss))
    return worst


@floor.states
def _(alpha_bar, fisher, distance):
    return 1 - (1 - alpha_bar) * fisher + distance


@floor.wrong("no floor: a perfect network has loss 0", seen="a loss near 1 at small t taken for a failure")
def _(alpha_bar, fisher, distance):
    return distance


@floor.wrong("the floor is 1: noise cannot be predicted", seen="E ε² taken for Var(ε|x_t)")
def _(alpha_bar, fisher, distance):
    return 1 + distance


@floor.wrong("the score's mean square is not scaled", seen="score and noise estimate mixed up")
def _(alpha_bar, fisher, distance):
    return 1 - fisher + distance
