"""The bound where all of it is known, by quadrature with plain densities; the decoder's edges; how the terms behave."""

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy import integrate, stats
from torch import nn

from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.diffusion import elbo
from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.elbo import (
    bits_per_dim,
    bound_term,
    bound_terms,
    denoising_term,
    discretised_log_likelihood,
    posterior_var_clipped,
    prior_term,
)
from ddpm_lib.diffusion.forward import forward_var
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import Schedule, coefficient, linear_schedule
from ddpm_lib.gaussian import log_density

SHORT = Schedule([0.2, 0.6, 0.35, 0.9])
SCHEDULES = {"linear": linear_schedule(), "short": SHORT, "cosine": cosine_schedule(50), "one": Schedule([0.7])}
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
PIXELS = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


# Where the bound is exact


def truth(schedule, m, v):
    """E[ε|x_t] and Var(x_{t−1}|x_t) for data N(m, v): the exact reverse process. And mean and variance of x_T."""
    scale, var = walk(schedule)
    marginal = scale**2 * v + var

    def eps_model(x_t, t):
        return var[t].sqrt()[:, None] * (x_t - scale[t][:, None] * m) / marginal[t][:, None]

    @coefficient
    def reverse_var(schedule, t):
        return schedule.beta[t] * marginal[t - 1] / marginal[t]

    return eps_model, reverse_var, {"mean": float(scale[-1]) * m, "var": float(marginal[-1])}


def averaged_bound(schedule, x_0, m, v, **prior):
    """L for each x_0, (B, 1). A term is quadratic in ε, so its mean is that of its values at ε = 1 and ε = −1."""
    eps_model, reverse_var, _ = truth(schedule, m, v)
    t = torch.arange(1, schedule.T + 1).repeat(2 * len(x_0))
    eps = double([1.0, -1.0]).repeat_interleave(schedule.T).repeat(len(x_0))[:, None]
    each = x_0.repeat_interleave(2 * schedule.T, 0)
    terms = bound_term(eps_model, schedule, each, eps, t, reverse_var=reverse_var, decoder=log_density)
    return terms.reshape(len(x_0), -1).sum(1) / 2 + prior_term(schedule, x_0, **prior)


def cost(x_0, m, v):
    return -double(stats.norm.logpdf(x_0[:, 0].numpy(), m, v**0.5))


@by_schedule
def test_the_bound_is_exact_for_standard_normal_data_whatever_the_steps(schedule):
    gap = averaged_bound(schedule, PIXELS, 0.0, 1.0) - cost(PIXELS, 0.0, 1.0)
    assert gap.abs().max() < 1e-11


@by_schedule
@pytest.mark.parametrize(("m", "v"), [(0.3, 0.4), (-0.5, 0.09), (2.0, 9.0)])
def test_the_bound_is_exact_for_any_gaussian_if_the_prior_is_the_end_of_its_chain(schedule, m, v):
    end = truth(schedule, m, v)[2]
    x_0 = m + v**0.5 * PIXELS
    gap = averaged_bound(schedule, x_0, m, v, **end) - cost(x_0, m, v)
    assert gap.abs().max() < 1e-11
    # with N(0, 1) there, the average over the data (quadratic: two points) misses by what the end misses
    two = m + v**0.5 * double([[-1.0], [1.0]])
    q, p = torch.distributions.Normal(end["mean"], end["var"] ** 0.5), torch.distributions.Normal(0.0, 1.0)
    gap = (averaged_bound(schedule, two, m, v) - cost(two, m, v)).mean()
    missed = 0.5 * (end["var"] + end["mean"] ** 2 - 1 - math.log(end["var"]))
    assert abs(gap - missed) < 1e-11
    assert missed == pytest.approx(float(torch.distributions.kl_divergence(q, p)), abs=1e-6)


@pytest.mark.parametrize("name", ["short", "cosine"])
def test_the_listed_terms_add_up_to_the_exact_bound(monkeypatch, name):
    schedule, total = SCHEDULES[name], 0.0
    eps_model, reverse_var, _ = truth(schedule, 0.0, 1.0)
    for sign in (1.0, -1.0):
        monkeypatch.setattr(elbo, "noise_like", lambda x, generator, sign=sign: torch.full_like(x, sign))
        total += bound_terms(eps_model, schedule, PIXELS, reverse_var=reverse_var, decoder=log_density) / 2
    assert (total.sum(1) - cost(PIXELS, 0.0, 1.0)).abs().max() < 1e-11


def test_a_model_that_is_not_the_true_one_costs_more():
    x_0 = 2**0.5 * double([[-1.0], [1.0]])  # two points that stand for N(0, 2)
    exact = cost(x_0, 0.0, 2.0).mean()
    for m, v in ((0.0, 1.9), (0.05, 2.0), (0.0, 2.1)):
        assert averaged_bound(SHORT, x_0, m, v, **truth(SHORT, 0.0, 2.0)[2]).mean() > exact + 1e-5


# By quadrature


def bent(x_t, t):
    """A noise estimate that is not linear in x_t."""
    return torch.tanh(0.8 * x_t) + 0.1 * t.reshape(-1, 1)


@pytest.mark.parametrize("variance", [posterior_var_clipped, forward_var], ids=lambda f: f.__name__)
@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_denoising_term_of_a_bent_model_is_a_double_integral_over_two_steps(t, variance):
    """E[log q(x_{t−1}, x_t|x_0) − log q(x_t|x_0)p(x_{t−1}|x_t)], where x_{t−1} and x_t are drawn going forward."""
    node, weight = hermegauss(100)
    weight = weight / weight.sum()
    scale, var = (v.tolist() for v in walk(SHORT))
    beta, x_0 = float(SHORT.beta[t]), -0.7
    # σ_t² is what is left of x_{t−1}'s variance when x_t is known as well, or β_t
    left = var[t - 1] - (1 - beta) * var[t - 1] ** 2 / var[t]
    model_std = {posterior_var_clipped: left, forward_var: beta}[variance] ** 0.5

    before = scale[t - 1] * x_0 + var[t - 1] ** 0.5 * node[:, None]
    x_t = (1 - beta) ** 0.5 * before + beta**0.5 * node
    eps_hat = bent(torch.from_numpy(x_t).reshape(-1, 1), torch.tensor(t)).reshape(x_t.shape).numpy()
    mean = (x_t - beta / var[t] ** 0.5 * eps_hat) / (1 - beta) ** 0.5
    log_q = stats.norm.logpdf(before, scale[t - 1] * x_0, var[t - 1] ** 0.5)
    log_q = log_q + stats.norm.logpdf(x_t, (1 - beta) ** 0.5 * before, beta**0.5)
    log_p = stats.norm.logpdf(x_t, scale[t] * x_0, var[t] ** 0.5) + stats.norm.logpdf(before, mean, model_std)
    expected = weight @ (log_q - log_p) @ weight

    eps = torch.from_numpy(node)[:, None]
    got = bound_term(bent, SHORT, torch.full_like(eps, x_0), eps, torch.full((100,), t), reverse_var=variance)
    assert float(torch.from_numpy(weight) @ got) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("x_0", [-1.0, 0.25, 1.0])
def test_the_first_term_is_the_mean_cost_of_a_bin_s_area(x_0):
    """E[−log P(x_0)] over x_1 for 9 grey levels, a bin's area as a difference of distribution functions."""
    beta, sigma = float(SHORT.beta[1]), float(posterior_var(SHORT, 2)) ** 0.5  # β̃_1 is 0: β̃_2 in its place

    def weighted_cost(eps):
        x_1 = (1 - beta) ** 0.5 * x_0 + beta**0.5 * eps
        mean = (x_1 - beta**0.5 * (math.tanh(0.8 * x_1) + 0.1)) / (1 - beta) ** 0.5
        low = 0.0 if x_0 == -1 else stats.norm.cdf(x_0 - 0.125, mean, sigma)
        high = 1.0 if x_0 == 1 else stats.norm.cdf(x_0 + 0.125, mean, sigma)
        return -math.log(high - low) * math.exp(-(eps**2) / 2) / (2 * math.pi) ** 0.5

    expected, error = integrate.quad(weighted_cost, -7, 7, epsabs=1e-9)
    assert error < 1e-8
    eps = torch.linspace(-7, 7, 2001, dtype=torch.float64)[:, None]
    weight = torch.exp(-(eps[:, 0] ** 2) / 2)
    got = bound_term(
        bent,
        SHORT,
        torch.full_like(eps, x_0),
        eps,
        torch.ones(2001, dtype=torch.int64),
        decoder=lambda x_0, mean, var: discretised_log_likelihood(x_0, mean, var, levels=9),
    )
    assert float(weight @ got / weight.sum()) == pytest.approx(expected, abs=1e-7)


def test_the_prior_term_is_an_integral_and_reads_a_prior_of_any_shape():
    scale, var = (float(v[-1]) for v in walk(SHORT))
    x_0 = double([[0.9, -0.4], [0.1, 1.0], [0.0, -1.0]])
    mean, prior_var = double([0.1, -0.3]), double([0.5, 1.4])

    def integrand(x, m, p_mean, p_std):
        log_q = stats.norm.logpdf(x, m, var**0.5)
        return math.exp(log_q) * (log_q - stats.norm.logpdf(x, p_mean, p_std))

    def integral(*parameters):
        return integrate.quad(integrand, -9, 9, args=parameters, epsabs=1e-12)[0]

    for options, p_mean, p_std in (
        ({}, [0.0, 0.0], [1.0, 1.0]),
        ({"mean": mean, "var": prior_var}, mean.tolist(), prior_var.sqrt().tolist()),
        ({"var": 0.8}, [0.0, 0.0], [0.8**0.5] * 2),
    ):
        expected = [
            sum(integral(scale * x, m, s) for x, m, s in zip(row, p_mean, p_std, strict=True)) for row in x_0.tolist()
        ]
        assert prior_term(SHORT, x_0, **options).tolist() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(prior_term(SHORT, x_0.float()), prior_term(SHORT, x_0.float().double()))


# The decoder


def grid(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_the_probabilities_of_all_levels_sum_to_1(levels):
    for std in (1e-4, 0.003, 0.1, 1.0, 30.0):
        for mean in (-3.0, -1.0, -0.31, 0.0, 1 / 255, 0.999, 1.0, 40.0):
            logs = discretised_log_likelihood(grid(levels), double(mean), std**2, levels)
            assert abs(float(logs.logsumexp(0))) < 1e-11
            assert (logs <= 0).all()


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_an_image_and_its_negative_are_equally_likely_under_mirrored_models(levels):
    mean = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for std in (1e-3, 0.05, 2.0):
        image = discretised_log_likelihood(grid(levels), mean, std**2, levels)
        negative = discretised_log_likelihood(-grid(levels), -mean, std**2, levels)
        torch.testing.assert_close(image, negative, rtol=1e-12, atol=1e-12)


def test_a_level_is_less_likely_the_farther_the_mean_is_from_its_bin():
    x_0, mean = grid(17), torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    for std in (0.02, 0.3):
        logs = discretised_log_likelihood(x_0, mean, std**2, 17)
        assert (logs[:, 0].diff() <= 0).all() and (logs[:, -1].diff() >= 0).all()  # open to one side
        for level in range(1, 16):
            nearest = int((mean[:, 0] - x_0[level]).abs().argmin())
            rising, falling = logs[: nearest + 1, level].diff(), logs[nearest:, level].diff()
            assert (rising[:-1] > 0).all() and (falling[1:] < 0).all()


def far(mean, x_0):
    """From the mean to the nearer edge of the bin of one of 256 levels; negative where the mean lies in the bin."""
    outermost = abs(x_0) == 1 and (mean - x_0) * x_0 > 0  # this bin reaches to infinity
    return -1.0 if outermost else abs(mean - x_0) - 1 / 255


@pytest.mark.parametrize("std", [1e-8, 1e-5, 1e-3])
@pytest.mark.parametrize("x_0", [-1.0, 0.2, 1.0])
@pytest.mark.parametrize("mean", [-5.0, -0.5, 0.5, 5.0])
def test_a_model_that_is_sharp_and_wrong_pays_a_tail_s_area(mean, x_0, std):
    """Mills' ratio: z/(1 + z²) < Q(z)/φ(z) < 1/z. (The area beyond the bin's other edge is not worth a digit.)"""
    cost, z = -float(discretised_log_likelihood(double(x_0), double(mean), std**2)), far(mean, x_0) / std
    if z < 0:
        assert cost == 0
    else:
        least = z**2 / 2 + math.log(2 * math.pi) / 2 + math.log(z)
        assert least * (1 - 1e-14) < cost < (least + math.log1p(1 / z**2)) * (1 + 1e-14)


@pytest.mark.parametrize("std", [1e-8, 1e-5, 1e-3])
def test_a_model_that_is_sharp_and_wrong_is_told_the_way_back(std):
    """Beyond z standard deviations the logarithm of a tail's area falls by z(1 + O(1/z²)) for each one more."""
    for x_0 in (-1.0, 0.2, 1.0):
        for mean in (-5.0, -0.5, 0.5, 5.0):
            where, z = double(mean).requires_grad_(), far(mean, x_0) / std
            (slope,) = torch.autograd.grad(discretised_log_likelihood(double(x_0), where, std**2), where)
            expected = math.copysign(z / std, x_0 - mean) if z > 0 else 0.0
            assert float(slope) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_the_decoder_is_that_of_differences():
    x_0 = double([-1.0, -1.0, -0.875, 0.0, 0.25, 0.875, 1.0, 1.0])
    mean = double([-1.3, -0.2, -0.6, 0.01, -0.3, 0.9, 0.7, 1.4]).requires_grad_()
    var = double([0.04, 0.3, 0.01, 0.5, 0.02, 1.0, 0.09, 0.2]).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: discretised_log_likelihood(x_0, m, v, 17), (mean, var))


@pytest.mark.parametrize("std", [1e-8, 1e-5, 1e-3, 1.0, 1e3])
def test_the_decoder_s_gradients_are_finite_for_every_level_and_mean(std):
    mean = double([-1e3, -1.0, -0.3, 0.0, 1 / 255, 1.0, 1e3])[:, None].expand(-1, 256).clone().requires_grad_()
    var = torch.full_like(mean, std**2).requires_grad_()
    logs = discretised_log_likelihood(grid(256), mean, var)
    assert logs.isfinite().all()
    for gradient in torch.autograd.grad(logs.sum(), (mean, var)):
        assert gradient.isfinite().all()


def test_the_decoder_computes_in_float64_whatever_it_is_given():
    x_0 = torch.linspace(-1, 1, 256)
    mean = torch.full((256,), 0.1)
    got = discretised_log_likelihood(x_0, mean, torch.tensor(1e-4))
    assert got.dtype == torch.float64 and got.shape == (256,)
    var = float(torch.tensor(1e-4))  # its own rounding aside
    torch.testing.assert_close(got, discretised_log_likelihood(x_0.double(), mean.double(), var), rtol=1e-14, atol=0)
    exact = discretised_log_likelihood(grid(256), double(0.1), 1e-4)
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-6)  # a level's rounding moves edges, opens none


@pytest.mark.parametrize("var", [0.0, -0.01, double([0.1, 0.0]), double([0.2, -3.0]), double([0.1, math.nan])])
def test_a_variance_that_is_not_positive_is_refused(var):
    with pytest.raises(ValueError, match="expected a variance > 0"):
        discretised_log_likelihood(double([0.0, 1.0]), double([0.0, 0.0]), var)


def test_a_coin_takes_one_bit_and_a_sure_thing_none():
    x_0 = double([[-1.0, 1.0, 1.0], [1.0, -1.0, -1.0]])
    coin = -discretised_log_likelihood(x_0, 0 * x_0, 0.3, levels=2).sum(1)
    assert bits_per_dim(coin, 3).tolist() == pytest.approx([1.0, 1.0])
    sure = -discretised_log_likelihood(x_0, x_0, 1e-4, levels=2).sum(1)
    assert bits_per_dim(sure, 3).tolist() == [0.0, 0.0]
    # one of three levels, where the middle one's edges are the terciles
    tercile = 0.5 / stats.norm.ppf(2 / 3)
    three = -discretised_log_likelihood(double([[-1.0, 0.0, 1.0]]), torch.zeros(1, 3), tercile**2, levels=3).sum(1)
    assert bits_per_dim(three, 3).item() == pytest.approx(math.log2(3))


# The list of terms


class Recorder:
    """A model that notes what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t):
        self.calls.append((x_t.clone(), t.clone()))
        return 0.3 * x_t


@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (5, 7), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_is_a_number_for_each_example_and_term(shape, dtype):
    model, x_0 = Recorder(), torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(dtype)
    terms = bound_terms(model, SHORT, x_0, torch.Generator().manual_seed(0))
    assert terms.shape == (5, 5) and terms.dtype == torch.float64 and terms.device.type == "cpu"
    assert terms.isfinite().all() and (terms > 0).all()
    assert [t.tolist() for _, t in model.calls] == [[step] * 5 for step in (1, 2, 3, 4)]
    assert all(x_t.shape == shape and x_t.dtype == dtype for x_t, _ in model.calls)
    assert torch.equal(terms[:, 4], prior_term(SHORT, x_0))


def test_the_same_seed_gives_the_same_terms_and_another_one_others():
    x_0 = torch.zeros(2, 1, 4, 4)
    one, same, other = (bound_terms(bent_image, SHORT, x_0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one[:, :4] != other[:, :4]).all() and torch.equal(one[:, 4], other[:, 4])


def bent_image(x_t, t):
    return torch.tanh(x_t) + 0.1 * t.reshape(-1, 1, 1, 1)


def test_the_terms_are_those_of_bound_term_and_every_step_has_noise_of_its_own():
    model, x_0 = Recorder(), torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    terms = bound_terms(model, SHORT, x_0, torch.Generator().manual_seed(3), reverse_var=forward_var)
    generator, scale, var = torch.Generator().manual_seed(3), *walk(SHORT)
    for step in (1, 2, 3, 4):
        eps = torch.randn(x_0.shape, generator=generator)
        term = bound_term(Recorder(), SHORT, x_0, eps, torch.tensor([step, step]), reverse_var=forward_var)
        assert torch.equal(terms[:, step - 1], term)
        x_t = scale[step] * x_0.double() + var[step].sqrt() * eps.double()
        torch.testing.assert_close(model.calls[step - 1][0].double(), x_t, rtol=1e-6, atol=1e-6)


def test_no_graph_is_kept_of_the_list_and_one_of_a_single_term():
    network, x_0 = nn.Conv2d(1, 1, 3, padding=1), torch.zeros(2, 1, 4, 4)
    assert not bound_terms(lambda x_t, t: network(x_t), SHORT, x_0).requires_grad
    assert bound_term(lambda x_t, t: network(x_t), SHORT, x_0, x_0, torch.tensor([1, 3])).requires_grad


def test_one_step_is_a_variational_autoencoder_with_a_fixed_encoder():
    schedule, x_0 = Schedule([0.7]), double([[0.4, -0.2]])
    terms = bound_terms(bent, schedule, x_0, torch.Generator().manual_seed(0), reverse_var=forward_var)
    assert terms.shape == (1, 2)
    x_1 = 0.3**0.5 * x_0 + 0.7**0.5 * torch.randn(1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = (x_1 - 0.7**0.5 * (torch.tanh(0.8 * x_1) + 0.1)) / 0.3**0.5
    decoder = torch.distributions.Normal(mean, 0.7**0.5)
    cost = -(decoder.cdf(x_0 + 1 / 255) - decoder.cdf(x_0 - 1 / 255)).log().sum()
    prior = 0.5 * (0.7 + 0.3 * x_0**2 - 1 - math.log(0.7)).sum()
    assert terms[0].tolist() == pytest.approx([float(cost), float(prior)], rel=1e-9)


def test_one_step_has_no_lower_choice_of_the_variance():
    with pytest.raises(ValueError, match=r"expected a variance > 0, got 0 \(the posterior's is 0 at t = 1\)"):
        bound_terms(bent, Schedule([0.7]), double([[0.4, -0.2]]))


def test_two_steps_have_three_terms():
    schedule = Schedule([0.3, 0.6])
    terms = bound_terms(bent, schedule, PIXELS, torch.Generator().manual_seed(0))
    assert terms.shape == (7, 3) and terms.isfinite().all()


def test_at_t_1_the_lower_variance_is_that_of_t_2():
    assert posterior_var(SHORT, 1) == 0
    t = torch.tensor([1, 2, 3, 4])
    expected = posterior_var(SHORT, torch.tensor([2, 2, 3, 4]))
    assert torch.equal(posterior_var_clipped(SHORT, t), expected)
    assert posterior_var_clipped(SHORT, 1) == expected[0]
    got = posterior_var_clipped(SHORT, t, like=torch.zeros(4, 2, 2))
    assert torch.equal(got.flatten(), expected.float()) and got.shape == (4, 1, 1)


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x.flatten(1), lambda x: torch.cat([x, x], 1)])
def test_a_model_that_returns_another_shape_is_refused(wrong):
    x_0 = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"model returned shape \(2, .*expected that of x_t, \(2, 3, 4, 4\)"):
        bound_terms(lambda x_t, t: wrong(x_t), SHORT, x_0)


# One term


MIXED = torch.tensor([3, 1, 4, 2, 1, 2])


def mixed(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    x_0 = torch.rand(6, 2, 3, 3, generator=generator, dtype=dtype) * 2 - 1
    return x_0, torch.randn(x_0.shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("variance", [posterior_var_clipped, forward_var], ids=lambda f: f.__name__)
def test_terms_of_several_t_in_one_batch_are_those_one_by_one(variance):
    x_0, eps = mixed()
    together = bound_term(bent_image, SHORT, x_0, eps, MIXED, reverse_var=variance)
    assert together.shape == (6,)
    for i in range(6):
        rows = slice(i, i + 1)
        alone = bound_term(bent_image, SHORT, x_0[rows], eps[rows], MIXED[rows], reverse_var=variance)
        assert float(together[i]) == pytest.approx(float(alone), rel=1e-13)


def test_only_what_is_asked_for_is_computed():
    def decoder(x_0, mean, var):
        raise AssertionError("there is no t = 1")

    x_0, eps = mixed()
    bound_term(bent_image, SHORT, x_0, eps, MIXED.clamp(min=2), decoder=decoder)
    got = bound_term(bent_image, Schedule([0.5]), x_0, eps, torch.ones_like(MIXED), reverse_var=forward_var)
    assert got.isfinite().all()  # there is no t = 2


def test_the_gradient_of_a_mixed_batch_is_finite_and_that_of_its_parts():
    torch.manual_seed(0)
    network = nn.Conv2d(2, 2, 3, padding=1)
    x_0, eps = mixed(torch.float32)

    def gradient(rows):
        terms = bound_term(lambda x_t, t: network(x_t), SHORT, x_0[rows], eps[rows], MIXED[rows])
        return torch.cat([g.flatten() for g in torch.autograd.grad(terms.sum(), network.parameters())])

    together, first, rest = (gradient(rows) for rows in (MIXED > 0, MIXED == 1, MIXED > 1))
    assert together.isfinite().all() and (first != 0).any() and (rest != 0).any()
    torch.testing.assert_close(together, first + rest, rtol=1e-4, atol=1e-4 * float(together.abs().max()))


def test_no_gradient_comes_from_the_branch_not_taken_however_wrong_the_decoder_would_be_there():
    schedule = linear_schedule()
    wrong = torch.full((4, 1, 2, 2), 100.0, requires_grad=True)
    x_0, t = torch.ones(4, 1, 2, 2), torch.tensor([1000, 1, 500, 2])
    terms = bound_term(lambda x_t, t: wrong, schedule, x_0, -x_0, t)
    terms.sum().backward()
    assert terms.isfinite().all() and wrong.grad.isfinite().all() and (wrong.grad != 0).all()
    alone = torch.full((3, 1, 2, 2), 100.0, requires_grad=True)
    bound_term(lambda x_t, t: alone, schedule, x_0[:3], -x_0[:3], t[[0, 2, 3]]).sum().backward()
    torch.testing.assert_close(wrong.grad[[0, 2, 3]], alone.grad)


def test_a_variance_that_is_learned_gets_the_gradient_of_its_parts():
    x_0, eps = mixed()
    log_var = torch.full((6, 1, 1, 1), -1.0, dtype=torch.float64, requires_grad=True)

    def gradient(rows):
        def reverse_var(schedule, t, like):
            return log_var[rows].exp()

        term = bound_term(bent_image, SHORT, x_0[rows], eps[rows], MIXED[rows], reverse_var=reverse_var)
        return torch.autograd.grad(term.sum(), log_var)[0]

    together = gradient(slice(0, 6))
    assert together.isfinite().all() and (together != 0).all()
    torch.testing.assert_close(together, sum(gradient(slice(i, i + 1)) for i in range(6)))


@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule()], ids=["linear", "cosine"])
def test_small_terms_do_not_drown_in_the_rounding_of_float32_images(schedule):
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([2, 10, 100, 500, 900, 999])
    x_0 = torch.rand(6, 3, 8, 8, generator=generator) * 2 - 1
    eps = torch.randn(x_0.shape, generator=generator)
    error = 1e-3 * torch.randn(x_0.shape, generator=generator)

    def terms(dtype):
        def model(x_t, t):
            assert x_t.dtype == dtype
            return eps.to(dtype) + error.to(dtype)

        return bound_term(model, schedule, x_0.to(dtype), eps.to(dtype), t)

    small, exact = terms(torch.float32), terms(torch.float64)
    assert small.dtype == torch.float64
    assert (exact > 0).all() and exact.min() < 1e-5
    # ε + error is rounded to 6e-8 where error is 1e-3, and the average of 192 such slips is left
    torch.testing.assert_close(small, exact, rtol=1e-4, atol=0)
    beta, alpha, left = schedule.beta[t], schedule.alpha[t], walk(schedule)[1][t]
    var = (walk(schedule)[1][t - 1]) / left * beta
    by_hand = beta**2 / (2 * var * alpha * left) * error.double().square().flatten(1).sum(1)
    torch.testing.assert_close(exact, by_hand, rtol=1e-5, atol=0)


def test_the_divergence_of_a_batch_reads_the_t_of_each_row_or_one_for_all():
    x_0, x_t = mixed()
    one = denoising_term(SHORT, x_0, x_t, 0.5 * x_t, 0.2, 3)
    each = denoising_term(SHORT, x_0, x_t, 0.5 * x_t, 0.2, torch.full((6,), 3))
    rows = torch.full((6, 1, 1, 1), 0.2, dtype=torch.float64)
    assert torch.equal(one, each)
    assert torch.equal(one, denoising_term(SHORT, x_0, x_t, 0.5 * x_t, rows, 3)) and one.shape == (6,)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_on_an_accelerator_the_host_never_asks_for_a_value(device):
    # A meta tensor has no values: whoever asks for one gets an exception, as a GPU's host would have to wait.
    x_0, t = torch.zeros(4, 1, 2, 2, device="meta"), torch.ones(4, dtype=torch.int64, device=device)
    for variance in (posterior_var_clipped, forward_var):
        got = bound_term(lambda x_t, t: 0.5 * x_t, SHORT, x_0, x_0, t, reverse_var=variance)
        assert (got.device.type, got.shape, got.dtype) == ("meta", (4,), torch.float64)
