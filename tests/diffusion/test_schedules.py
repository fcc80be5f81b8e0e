"""The schedules of chapter 9: their ends, what they refuse, and a last step that leaves nothing of the image."""

import copy

import pytest
import torch

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.elbo import prior_term
from ddpm_lib.diffusion.forward import forward_var, noise_std, q_sample, signal_scale, snr, step_scale
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var
from ddpm_lib.diffusion.scaled_linear import scaled_linear_schedule
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.diffusion.sigmoid import sigmoid_beta_schedule, sigmoid_schedule
from ddpm_lib.diffusion.targets import as_eps_model, eps_from_v, v_from_eps, x_0_from_eps
from ddpm_lib.diffusion.zero_snr import x_0_from_v, zero_snr_schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.ancestral import ancestral_sample

MAKERS = [linear_schedule, scaled_linear_schedule, cosine_schedule, sigmoid_beta_schedule, sigmoid_schedule]
NOTHING_LEFT = zero_snr_schedule(linear_schedule(20, 0.01, 0.4))


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_every_schedule_has_1000_steps_unless_told_otherwise_and_only_adds_noise(make):
    schedule = make()
    assert schedule.T == 1000 and make(37).T == 37
    assert (schedule.alpha_bar.diff() < 0).all() and schedule.alpha_bar[0] == 1 and schedule.alpha_bar[-1] > 0


def test_the_sigmoid_in_alpha_bar_is_half_way_in_the_middle_and_the_same_seen_from_the_other_end():
    a = sigmoid_schedule(400, -2.0, 2.0, 0.7).alpha_bar
    assert a[200].item() == pytest.approx(0.5, abs=1e-12)
    torch.testing.assert_close((a + a.flip(0))[1:-1], torch.ones(399, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (scaled_linear_schedule, {"T": 1}, r"T must be at least 2; got T = 1"),
        (scaled_linear_schedule, {"beta_1": -0.1}, r"strictly between 0 and 1; got -0\.1 and 0\.012"),
        (scaled_linear_schedule, {"beta_T": 1.0}, r"strictly between 0 and 1; got 0\.00085 and 1"),
        (sigmoid_beta_schedule, {"T": 1}, r"expected T >= 2 and reach > 0; got T = 1, reach = 6"),
        (sigmoid_beta_schedule, {"reach": 0.0}, r"reach = 0"),
        (sigmoid_beta_schedule, {"beta_T": 1.5}, r"strictly between 0 and 1; beta\["),
        (sigmoid_schedule, {"T": 0}, r"expected T >= 1.*got T = 0"),
        (sigmoid_schedule, {"start": 3.0}, r"start < end.*start = 3, end = 3"),
        (sigmoid_schedule, {"tau": 0.0}, r"tau = 0"),
        (sigmoid_schedule, {"beta_max": 1.0}, r"beta_max = 1"),
    ],
)
def test_a_schedule_refuses_what_it_cannot_be_made_of(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_a_last_beta_of_1_is_taken_only_where_it_is_asked_for():
    with pytest.raises(ValueError, match=r"beta\[2\] of T = 2 is 1"):
        Schedule([0.3, 1.0])
    schedule = Schedule([0.3, 1.0], zero_terminal=True)
    assert schedule.beta.tolist() == [0.0, 0.3, 1.0] and schedule.alpha_bar[-1] == 0
    assert Schedule([0.3, 0.4], zero_terminal=True).alpha_bar[-1] == pytest.approx(0.42)
    assert Schedule([1.0], zero_terminal=True).alpha_bar.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [[1.0, 0.3], [0.3, 1.1], [0.3, 0.0], [0.3, float("nan")], [1.0, 1.0]])
def test_no_other_beta_may_be_1_and_none_beyond(bad):
    with pytest.raises(ValueError, match=r"strictly between 0 and 1; beta\[[12]\] of T = 2"):
        Schedule(bad, zero_terminal=True)


def test_a_copy_of_a_schedule_that_ends_in_noise_is_one():
    assert torch.equal(copy.deepcopy(NOTHING_LEFT).alpha_bar, NOTHING_LEFT.alpha_bar)


def test_zero_terminal_snr_keeps_the_first_step_and_changes_nothing_where_it_is_zero_already():
    linear = linear_schedule(20, 0.01, 0.4)
    assert NOTHING_LEFT.beta[1] == linear.beta[1] and NOTHING_LEFT.beta[-1] == 1 and NOTHING_LEFT.alpha_bar[-1] == 0
    torch.testing.assert_close(zero_snr_schedule(NOTHING_LEFT).beta, NOTHING_LEFT.beta, rtol=1e-12, atol=0)
    assert linear.alpha_bar[-1] > 0  # the given one is left as it was


@pytest.mark.parametrize("alpha_bar_T", [2.0**-40, 2.0**-24, 1e-3, 0.5])
def test_another_last_value_may_be_asked_for(alpha_bar_T):
    got = zero_snr_schedule(linear_schedule(), alpha_bar_T)
    assert got.alpha_bar[-1].item() == pytest.approx(alpha_bar_T, rel=1e-4)
    assert got.alpha_bar[1] == linear_schedule().alpha_bar[1]


@pytest.mark.parametrize(
    ("schedule", "last"),
    [(Schedule([0.3]), 0.0), (linear_schedule(), -0.1), (linear_schedule(), 0.9999), (linear_schedule(), 1e-13)],
)
def test_zero_terminal_snr_refuses_one_step_and_ends_that_are_none(schedule, last):
    with pytest.raises(ValueError, match=r"expected at least two steps, and alpha_bar_T = 0 or .* got T ="):
        zero_snr_schedule(schedule, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_quotient_of_alpha_is_finite_where_nothing_is_left(dtype):
    t = torch.arange(1, 21)
    for function in (forward_var, noise_std, posterior_var, signal_scale, snr, step_scale):
        assert function(NOTHING_LEFT, t, like=torch.zeros(20, dtype=dtype)).isfinite().all()
    x_0, eps = torch.rand(2, 4, 1, 2, 2, dtype=dtype)
    assert torch.equal(q_sample(NOTHING_LEFT, x_0, eps, 20), eps)  # x_T is the noise
    assert posterior_mean(NOTHING_LEFT, x_0, eps, 20).isfinite().all()
    assert prior_term(NOTHING_LEFT, x_0).abs().max() < 1e-12


def test_at_the_end_the_noise_does_not_tell_the_image_and_the_velocity_does():
    x_0, eps = torch.rand(2, 3, 1, 2, 2)
    t = torch.full((3,), 20)
    x_t, v = q_sample(NOTHING_LEFT, x_0, eps, t), v_from_eps(NOTHING_LEFT, x_0, eps, t)
    assert x_0_from_eps(NOTHING_LEFT, x_t, eps, t).isnan().all()  # 0/0
    assert x_0_from_eps(NOTHING_LEFT, x_t, eps + 1e-6, t).isinf().all()
    assert torch.equal(eps_from_v(NOTHING_LEFT, x_t, v, t), x_t)  # v is forgotten on the way by ε
    torch.testing.assert_close(x_0_from_v(NOTHING_LEFT, x_t, v, t), x_0)


def test_the_samplers_work_by_way_of_noise_where_2_to_the_minus_24_is_left():
    """Two points of data, −1 and 1: the exact velocity leads every chain to one of them, in single precision too."""
    schedule = zero_snr_schedule(linear_schedule(20, 0.01, 0.4), 2.0**-24)
    points = GaussianMixture(torch.ones(2) / 2, torch.tensor([[-0.9], [0.9]]), torch.full((2, 1), 1e-4))
    exact = ExactDenoiser(points, schedule)

    def velocity(x_t, t):
        scale, std = (f(schedule, t, like=x_t) for f in (signal_scale, noise_std))
        return (scale * x_t - exact.x_0_hat(x_t, t)) / std

    model, generator = as_eps_model(velocity, schedule, "v"), torch.Generator().manual_seed(0)
    first = torch.randn(2000, 1, generator=generator)
    estimate = x_0_from_eps(schedule, first, model(first, torch.full((2000,), 20)), 20)
    assert (estimate - exact.x_0_hat(first, 20)).abs().max() < 5e-3  # 4·2^-24/2^-12, and the like
    samples = ancestral_sample(model, schedule, first, generator=generator)
    assert ((samples.abs() - 0.9).abs() < 0.06).all()
    assert 0.45 < (samples > 0).double().mean() < 0.55
