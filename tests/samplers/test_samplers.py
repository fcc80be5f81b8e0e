"""Ancestral sampling and DDIM with an exact denoiser, for which theory says what must come out.

For Gaussian data every variable of the chain is a linear combination of independent noises. Conditioning in the
covariance matrix of these gives each step's weights without any formula of the library.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm_lib.diffusion.forward import forward_var
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.ancestral import ancestral_sample, ancestral_step
from ddpm_lib.samplers.ddim import ddim_sample, strided_t

MEAN, VAR = 0.4, 0.09  # of the data
SCHEDULE = Schedule(np.linspace(0.02, 0.4, 20))
SHORT = Schedule([0.1, 0.3, 0.02, 0.5, 0.2])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


GAUSSIAN = ExactDenoiser(GaussianMixture(double([1.0]), double([[MEAN]]), double([[VAR]])), SCHEDULE)


def noise(n=50_000, seed=0, dtype=torch.float64):
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def covariance(schedule, data_var=VAR):
    """The covariance matrix of x_0, ..., x_T, from each as a combination of T + 1 independent noises."""
    rows = np.zeros((schedule.T + 1, schedule.T + 1))
    rows[0, 0] = data_var**0.5
    for t, beta in enumerate(schedule.beta.tolist()[1:], start=1):
        rows[t] = (1 - beta) ** 0.5 * rows[t - 1]
        rows[t, t] = beta**0.5
    return rows @ rows.T


def regress(cov, s, given):
    """The weights of the given variables in E[x_s|given], and the variance of x_s that is left."""
    if s in given:
        return np.array([float(t == s) for t in given]), 0.0
    weights = np.linalg.solve(cov[np.ix_(given, given)], cov[given, s])
    return weights, cov[s, s] - weights @ cov[given, s]


def ddim_weights(cov, t, s, eta):
    """x_0's and x_t's weight in x_s, and the fresh variance, such that x_s given x_0 keeps its mean and variance."""
    ((scale_t,), var_t), ((scale_s,), var_s) = regress(cov, t, [0]), regress(cov, s, [0])
    fresh = eta**2 * regress(cov, s, [0, t])[1]
    on_x_t = ((var_s - fresh) / var_t) ** 0.5
    return scale_s - on_x_t * scale_t, on_x_t, fresh


def ancestral_weights(cov, t, s, variance):
    (on_x_0, on_x_t), left = regress(cov, s, [0, t])
    fresh = {posterior_var: left, forward_var: float(SCHEDULE.beta[t])}[variance]
    return on_x_0, on_x_t, fresh if s else 0.0


def affine_steps(weights, times, choice):
    """For each step: slope and intercept of x_s in x_t when x_0 is replaced by E[x_0|x_t], and the fresh variance."""
    cov = covariance(SCHEDULE)
    for t, s in pairwise(times):
        on_x_0, on_x_t, fresh = weights(cov, t, s, choice)
        (slope,), (scale,) = regress(cov, 0, [t])[0], regress(cov, t, [0])[0]
        yield on_x_0 * slope + on_x_t, on_x_0 * (1 - slope * scale) * MEAN, fresh


def deviations(states, steps):
    """The largest |z| over all steps: of the noise that a step added, and of the moments that theory propagates."""
    mean, var, n, z = 0.0, 1.0, len(states[0]), []
    for (x_t, x_s), (slope, intercept, fresh) in zip(pairwise(states), steps, strict=True):
        added = x_s - (slope * x_t + intercept)
        if fresh == 0:
            z.append(0.0 if added.abs().max() < 1e-10 else np.inf)
        else:
            z.append(float(added.mean()) / (fresh / n) ** 0.5)
            z.append((float(added.var()) / fresh - 1) / (2 / n) ** 0.5)
            z.append(float(torch.corrcoef(torch.cat([added, x_t], dim=1).T)[0, 1]) * n**0.5)
        mean, var = slope * mean + intercept, slope**2 * var + fresh
        z.append((float(x_s.mean()) - mean) / (var / n) ** 0.5)
        z.append((float(x_s.var()) / var - 1) / (2 / n) ** 0.5)
    return max(map(abs, z))


def recorded(sample, *args, **options):
    """The final samples, the times that the callback was given, the states and the estimates of x_0."""
    log = []
    result = sample(*args, **options, on_step=lambda *step: log.append(step))
    times, states, estimates = zip(*log, strict=True)
    assert torch.equal(result, states[-1])
    return result, list(times), list(states), list(estimates)


@pytest.mark.parametrize("variance", [posterior_var, forward_var], ids=lambda f: f.__name__)
def test_ancestral_samples_have_the_moments_of_theory(variance):
    options = dict(reverse_var=variance, clip=False, generator=torch.Generator())
    x_T = noise()
    _, times, states, _ = recorded(ancestral_sample, GAUSSIAN, SCHEDULE, x_T, **options)
    assert times == list(range(19, -1, -1))
    for theory in (posterior_var, forward_var):
        worst = deviations([x_T, *states], affine_steps(ancestral_weights, [20, *times], theory))
        assert worst < 5 if theory is variance else worst > 15


@pytest.mark.parametrize("steps", [20, 7, 3, 1])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_samples_have_the_moments_of_theory(eta, steps):
    x_T = noise()
    options = dict(steps=steps, eta=eta, clip=False, generator=torch.Generator())
    _, times, states, _ = recorded(ddim_sample, GAUSSIAN, SCHEDULE, x_T, **options)
    assert times == strided_t(20, steps)[1:]
    for theory in (0.0, 0.5, 1.0):
        worst = deviations([x_T, *states], affine_steps(ddim_weights, [20, *times], theory))
        assert worst < 5 if theory == eta or steps == 1 else worst > 15  # one step goes to t = 0: no noise at all


def mixture(schedule):
    data = GaussianMixture(double([0.35, 0.65]), double([[-0.8], [0.5]]), double([[0.02], [0.05]]))
    return ExactDenoiser(data, schedule)


@pytest.mark.parametrize("clip", [False, True])
def test_ddim_with_all_steps_and_eta_1_is_ancestral_sampling(clip):
    model, x_T = mixture(SCHEDULE), noise(200)
    options = dict(clip=clip, generator=torch.Generator())
    _, _, ancestral, _ = recorded(ancestral_sample, model, SCHEDULE, x_T, **options)
    options["generator"] = torch.Generator()
    _, _, ddim, _ = recorded(ddim_sample, model, SCHEDULE, x_T, steps=20, eta=1.0, **options)
    for one, other in zip(ancestral, ddim, strict=True):
        assert (one - other).abs().max() < 1e-8


def test_no_noise_is_added_in_the_last_step():
    cov = covariance(SCHEDULE)
    calls = [(ancestral_sample, dict(reverse_var=variance)) for variance in (posterior_var, forward_var)]
    calls += [(ddim_sample, dict(steps=steps, eta=1.0)) for steps in (20, 7)]
    for sample, options in calls:
        x_0, times, states, _ = recorded(
            sample, GAUSSIAN, SCHEDULE, noise(100), clip=False, generator=torch.Generator(), **options
        )
        ((slope,), _), ((scale,), _) = regress(cov, 0, [times[-2]]), regress(cov, times[-2], [0])
        assert (x_0 - (MEAN + slope * (states[-2] - scale * MEAN))).abs().max() < 1e-12


def mean_of_the_true_reverse_step(t, x_t):
    """E[x_{t−1}|x_t] for the mixture's data, by quadrature over x_0 and x_{t−1} with Bayes' rule."""
    scale, var = 1.0, 1e-300
    for beta in SHORT.beta[1:t].tolist():
        scale, var = (1 - beta) ** 0.5 * scale, (1 - beta) * var + beta
    x_0, beta = np.linspace(-2.5, 2.5, 2001), float(SHORT.beta[t])
    parts = ((0.35, -0.8, 0.02), (0.65, 0.5, 0.05))
    data = sum(w / v**0.5 * np.exp(-((x_0 - m) ** 2) / (2 * v)) for w, m, v in parts)
    if t == 1:
        x, marginal = x_0, data
    else:
        x = np.linspace(-7, 7, 2801)
        marginal = np.exp(-((x[:, None] - scale * x_0) ** 2) / (2 * var)) @ data
    joint = marginal * np.exp(-((x_t - (1 - beta) ** 0.5 * x) ** 2) / (2 * beta))
    return (joint * x).sum() / joint.sum()


def no_noise(schedule, t, like):
    return torch.zeros((), dtype=like.dtype)


@pytest.mark.parametrize("t", [1, 2, 3, 4, 5])
def test_a_step_s_mean_is_that_of_the_true_reverse_step_and_an_index_off_by_one_is_not(t):
    schedule = Schedule(SHORT.beta[1 : t + 1])  # the first step that is taken from its T is the step from t
    model, x_t = mixture(schedule), double([[-1.2], [-0.3], [0.1], [0.7]])
    expected = double([[mean_of_the_true_reverse_step(t, float(x))] for x in x_t])

    def first_step(eps_model):
        return recorded(ancestral_sample, eps_model, schedule, x_t, reverse_var=no_noise, clip=False)[2][0]

    assert (first_step(model) - expected).abs().max() < 1e-9
    if t > 1:
        assert (first_step(lambda x, t: model(x, (t - 1).clamp(min=1))) - expected).abs().max() > 1e-8


def wild(x_t, t):
    return 50 * torch.sin(1000 * x_t)


def test_a_step_uses_the_clipped_estimate_and_the_noise_that_goes_with_it():
    cov, x_T = covariance(SCHEDULE), noise(100)
    _, times, states, estimates = recorded(ddim_sample, wild, SCHEDULE, x_T, steps=7)
    for (t, s), (x_t, x_s), x_0_hat in zip(pairwise([20, *times]), pairwise([x_T, *states]), estimates, strict=True):
        on_x_0, on_x_t, _ = ddim_weights(cov, t, s, 0.0)
        assert (x_s - (on_x_0 * x_0_hat + on_x_t * x_t)).abs().max() < 1e-10
    _, times, states, estimates = recorded(ancestral_sample, wild, SCHEDULE, x_T, reverse_var=no_noise)
    for s, (x_t, x_s), x_0_hat in zip(times, pairwise([x_T, *states]), estimates, strict=True):
        on_x_0, on_x_t = regress(cov, s, [0, s + 1])[0]
        assert (x_s - (on_x_0 * x_0_hat + on_x_t * x_t)).abs().max() < 1e-10


def coefficient(value):
    return lambda schedule, t, like: torch.full((), value, dtype=like.dtype)


def test_a_step_is_a_link_of_the_chain_whatever_it_is_given():
    """Independent route: the weights by conditioning in the covariance of x_0, ..., x_T."""
    cov, (x_t, x_0_hat, z) = covariance(SCHEDULE), (noise(6, seed) for seed in (1, 2, 3))
    for t in (1, 2, 11, 20):
        (on_x_0, on_x_t), left = regress(cov, t - 1, [0, t])
        for variance, fresh in ((posterior_var, left), (forward_var, float(SCHEDULE.beta[t])), (coefficient(4.0), 4.0)):
            expected = on_x_0 * x_0_hat + on_x_t * x_t + (fresh**0.5 * z if t > 1 else 0.0)
            got = ancestral_step(SCHEDULE, x_t, x_0_hat, t, z, variance)
            assert (got - expected).abs().max() < 1e-12


def test_a_step_takes_one_t_an_image_and_adds_no_noise_where_it_is_1():
    x_t, x_0_hat, z = (noise(5, seed).reshape(5, 1, 1, 1) for seed in (1, 2, 3))
    t = torch.tensor([1, 20, 1, 2, 7])
    got = ancestral_step(SCHEDULE, x_t, x_0_hat, t, z, forward_var)
    alone = [
        ancestral_step(SCHEDULE, x_t[i : i + 1], x_0_hat[i : i + 1], int(step), z[i : i + 1], forward_var)
        for i, step in enumerate(t)
    ]
    assert (got - torch.cat(alone)).abs().max() < 1e-15
    assert (got - x_0_hat)[[0, 2]].abs().max() < 1e-13


def test_the_last_step_needs_no_noise_and_heeds_no_variance():
    x_t, x_0_hat = noise(5, 1), noise(5, 2)
    assert (ancestral_step(SCHEDULE, x_t, x_0_hat, 1, None) - x_0_hat).abs().max() < 1e-13
    for variance in (coefficient(float("nan")), coefficient(9.0)):
        got = ancestral_step(SCHEDULE, x_t, x_0_hat, torch.ones(5, dtype=torch.int64), noise(5, 3), variance)
        assert (got - x_0_hat).abs().max() < 1e-13


@pytest.mark.parametrize("t", [0, 21])
def test_a_step_from_outside_the_chain_is_refused(t):
    with pytest.raises(ValueError, match=rf"1\.\.20.*got {t}"):
        ancestral_step(SCHEDULE, noise(2), noise(2), t, noise(2))


def test_sampling_is_one_step_after_another_on_the_noise_of_the_generator():
    model, x = mixture(SCHEDULE), noise(50)
    got = ancestral_sample(model, SCHEDULE, x, reverse_var=forward_var, generator=torch.Generator().manual_seed(4))
    generator, a = torch.Generator().manual_seed(4), SCHEDULE.alpha_bar
    for t in range(20, 0, -1):
        x_0_hat = ((x - (1 - a[t]).sqrt() * model(x, t)) / a[t].sqrt()).clamp(-1, 1)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if t > 1 else None
        x = ancestral_step(SCHEDULE, x, x_0_hat, t, z, forward_var)
    assert (got - x).abs().max() < 1e-12
