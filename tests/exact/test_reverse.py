"""The true reverse step of mixture data against autograd, Bayes' rule and torch's own mixtures; the law of samples."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ddpm_lib.diffusion.forward import forward_var
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact import reverse
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.exact.reverse import (
    law_of_samples,
    reverse_components,
    reverse_log_density,
    reverse_mean,
    reverse_var_exact,
    x_0_var,
)

SCHEDULE = Schedule([0.02, 0.1, 0.3, 0.5, 0.2])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


LINE = GaussianMixture(double([0.3, 0.7]), double([[-0.8], [0.5]]), double([[0.02], [0.05]]))
PLANE = GaussianMixture(
    double([0.2, 0.3, 0.5]),
    double([[-1.0, 0.2], [0.4, 0.4], [1.0, -1.0]]),
    double([[0.1, 0.5], [0.02, 0.3], [1, 0.05]]),
)
EVERY_T = torch.arange(1, 6)


def far_and_near(dimensions):
    return torch.linspace(-2, 2, 5 * dimensions, dtype=torch.float64).reshape(5, dimensions)


@pytest.mark.parametrize("mixture", [LINE, PLANE], ids=["line", "plane"])
def test_what_is_open_is_the_slope_of_the_best_estimate(mixture):
    """Independent route: Tweedie's formula of the second order, by autograd."""
    denoiser, x_t = ExactDenoiser(mixture, SCHEDULE), far_and_near(mixture.mean.shape[1])
    for i, t in enumerate(EVERY_T.tolist()):
        jacobian = torch.autograd.functional.jacobian(lambda x, t=t: denoiser.x_0_hat(x[None], t)[0], x_t[i])
        a = float(torch.prod(1 - SCHEDULE.beta[1 : t + 1]))
        assert (x_0_var(denoiser, x_t, EVERY_T)[i] - jacobian.diagonal() * (1 - a) / a**0.5).abs().max() < 1e-12


@pytest.mark.parametrize("mixture", [LINE, PLANE], ids=["line", "plane"])
def test_mean_variance_and_density_belong_to_one_mixture(mixture):
    denoiser, x_t = ExactDenoiser(mixture, SCHEDULE), far_and_near(mixture.mean.shape[1])
    weight, mean, var = reverse_components(denoiser, x_t, EVERY_T)
    own = MixtureSameFamily(Categorical(weight), Independent(Normal(mean, var.sqrt()), 1))
    assert (reverse_mean(denoiser, x_t, EVERY_T) - own.mean).abs().max() < 1e-12
    assert (reverse_var_exact(denoiser, x_t, EVERY_T) - own.variance).abs().max() < 1e-12
    x_prev = 0.9 * x_t + 0.1
    assert (reverse_log_density(denoiser, x_prev, x_t, EVERY_T) - own.log_prob(x_prev)).abs().max() < 1e-12


@pytest.mark.parametrize("t", [2, 3, 5])
def test_the_density_is_bayes_rule_on_the_marginals(t):
    """log q(x_{t−1}|x_t) = log q(x_t|x_{t−1}) + log q(x_{t−1}) − log q(x_t), at single points, in two dimensions."""
    denoiser, x_t = ExactDenoiser(PLANE, SCHEDULE), far_and_near(2)
    x_prev, beta = x_t.flip(0) * 0.7, SCHEDULE.beta[t]
    step = Normal((1 - beta).sqrt() * x_prev, beta.sqrt()).log_prob(x_t).sum(1)
    before, after = (PLANE.diffused(SCHEDULE, s).log_density(x) for s, x in ((t - 1, x_prev), (t, x_t)))
    assert (reverse_log_density(denoiser, x_prev, x_t, t) - (step + before - after)).abs().max() < 1e-10


def test_the_last_step_is_the_clean_image_given_the_first():
    denoiser, x_1 = ExactDenoiser(LINE, SCHEDULE), far_and_near(1)
    assert (reverse_mean(denoiser, x_1, 1) - denoiser.x_0_hat(x_1, 1)).abs().max() < 1e-13
    assert (reverse_var_exact(denoiser, x_1, 1) / x_0_var(denoiser, x_1, 1) - 1).abs().max() < 1e-13
    step = Normal(SCHEDULE.alpha[1].sqrt() * 0.3, SCHEDULE.beta[1].sqrt()).log_prob(x_1)[:, 0]
    data, marginal = LINE.log_density(double([[0.3]])), LINE.diffused(SCHEDULE, 1).log_density(x_1)
    x_0 = torch.full_like(x_1, 0.3)
    assert (reverse_log_density(denoiser, x_0, x_1, 1) - (step + data - marginal)).abs().max() < 1e-10


def test_one_t_for_all_is_that_t_for_each_and_the_dtype_is_kept():
    denoiser, x_t = ExactDenoiser(PLANE, SCHEDULE), far_and_near(2)
    for function in (reverse_mean, reverse_var_exact, x_0_var):
        for t in (1, 4):
            assert torch.equal(function(denoiser, x_t, t), function(denoiser, x_t, torch.full((5,), t)))
        assert function(denoiser, x_t.float(), 3).dtype == torch.float32


def test_far_from_all_data_everything_is_finite():
    denoiser, x_t = ExactDenoiser(PLANE, SCHEDULE), torch.full((2, 2), 1e4, dtype=torch.float64)
    for function in (reverse_mean, reverse_var_exact, x_0_var):
        assert function(denoiser, x_t, 1).isfinite().all()
    assert all(part.isfinite().all() for part in reverse_components(denoiser, x_t, 2))


@pytest.mark.parametrize("function", [reverse_mean, reverse_var_exact, x_0_var, reverse_components])
@pytest.mark.parametrize("t", [0, 6])
def test_a_t_outside_the_chain_is_refused(function, t):
    with pytest.raises(ValueError, match=rf"1\.\.5.*got {t}"):
        function(ExactDenoiser(LINE, SCHEDULE), far_and_near(1), t)


def true_step(denoiser, last=1):
    def step(x_t, t):
        var = reverse_var_exact(denoiser, x_t, t) if t >= last else 0.0
        return reverse_mean(denoiser, x_t, t), var

    return step


@pytest.mark.parametrize("var", [0.3, 1.0])
def test_the_true_steps_of_gaussian_data_lead_to_the_data(var):
    """Independent route: for x_T from q(x_T) theory says so; the start from N(0, 1) is the only difference."""
    schedule = Schedule(torch.linspace(0.02, 0.5, 30))
    data = GaussianMixture(double([1.0]), double([[0.0]]), double([[var]]))
    places, mass = law_of_samples(true_step(ExactDenoiser(data, schedule)), 30)
    left = float(schedule.alpha_bar[-1])
    start = left * var + 1 - left  # the variance of q(x_T), where the sampler has 1
    slope = left**0.5 * var / start  # of all steps together
    expected = var + slope**2 * (1 - start)
    assert abs(float((mass * places**2).sum()) - expected) < 1e-7
    cdf = mass.cumsum(0) - mass / 2
    assert (cdf - torch.special.ndtr(places / expected**0.5)).abs().max() < 1e-4


@pytest.mark.parametrize("choice", [posterior_var, forward_var])
def test_the_law_is_that_of_many_samples(choice):
    """Independent route: random walkers with the exact mean, and the mean of smooth functions of where they arrive."""
    n, denoiser, generator = 200_000, ExactDenoiser(LINE, SCHEDULE), torch.Generator().manual_seed(0)

    def step(x_t, t):
        return reverse_mean(denoiser, x_t, t), choice(SCHEDULE, t) if t > 1 else 0.0

    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    for t in range(5, 0, -1):
        mean, var = step(x, t)
        x = mean + float(var) ** 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    places, mass = law_of_samples(step, 5)
    for function in (torch.sin, torch.square, lambda v: torch.tanh(3 * v), lambda v: torch.cos(4 * v)):
        values = function(x[:, 0])
        z = float(values.mean() - (mass * function(places)).sum()) / float(values.std() / n**0.5)
        assert abs(z) < 5


def test_more_places_change_nothing():
    denoiser = ExactDenoiser(LINE, SCHEDULE)
    laws = [law_of_samples(true_step(denoiser, 2), 5, points=points) for points in (3, 9)]
    for u in (0.5, 2.0, 5.0):
        one, other = (float((mass * torch.cos(u * places)).sum()) for places, mass in laws)
        assert abs(one - other) < 1e-6


def test_places_are_in_order_and_probabilities_sum_to_1_with_or_without_noise():
    for step in (true_step(ExactDenoiser(LINE, SCHEDULE)), lambda x_t, t: (-x_t, 0.0)):
        places, mass = law_of_samples(step, 5)
        assert (places.diff() >= 0).all() and (mass >= 0).all() and abs(float(mass.sum()) - 1) < 1e-12
    assert abs(float((mass * places**2).sum()) - 1) < 1e-9  # what only turns stays N(0, 1)


def test_steps_are_asked_for_every_t_in_turn_and_once_or_twice():
    asked = []

    def step(x_t, t):
        asked.append(t)
        assert x_t.dtype == torch.float64 and x_t.shape[1:] == (1,)
        return 0.5 * x_t, 0.1

    law_of_samples(step, 4)
    assert sorted(asked, reverse=True) == asked and set(asked) == {4, 3, 2, 1}
    assert max(asked.count(t) for t in asked) <= 2


@pytest.mark.parametrize("var", [lambda x: (x > 0).double(), lambda x: -1.0])
def test_variances_that_are_0_here_and_there_or_negative_are_refused(var):
    with pytest.raises(ValueError, match="all positive or all 0 at t = 1"):
        law_of_samples(lambda x_t, t: (x_t, var(x_t)), 1)


def test_the_grid_is_wide_enough_for_a_step_that_jumps():
    """A sign: all mass at two places, and noise about them."""
    places, mass = law_of_samples(lambda x_t, t: (3 * torch.sign(x_t) if t == 2 else x_t, 0.04 if t == 2 else 0.0), 2)
    assert math.isclose(float((mass * places**2).sum()), 9.04, rel_tol=1e-6)
    assert float(mass[(places.abs() - 3).abs() > 1.5].sum()) < 1e-9


def test_the_modules_numbers_leave_out_less_than_can_be_seen():
    normal = Normal(double(0.0), double(1.0))
    assert 2 * float(normal.cdf(double(-reverse.START_REACH))) < 1e-13
    assert 2 * float(normal.cdf(double(-reverse.NOISE_REACH))) < 1e-11
