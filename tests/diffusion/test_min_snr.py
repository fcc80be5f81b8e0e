"""The min-SNR weight: what it does to a loss, its limits, dtype and device, and what it refuses."""

import pytest
import torch

from ddpm_lib.diffusion.forward import snr
from ddpm_lib.diffusion.loss import l_simple
from ddpm_lib.diffusion.min_snr import min_snr_weight
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.diffusion.targets import TARGETS
from ddpm_lib.diffusion.zero_snr import zero_snr_schedule

SCHEDULE, STEPS = linear_schedule(), torch.arange(1, 1001)


@pytest.mark.parametrize("target", ["eps", "x_0", "v"])
def test_weighted_losses_of_one_and_the_same_estimate_are_equal_whatever_it_is_given_as(target):
    generator = torch.Generator().manual_seed(0)
    x_0, eps, guess = torch.randn(3, 6, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 50, 200, 400, 700, 1000])
    a = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    eps_hat = (x_t - a.sqrt() * guess) / (1 - a).sqrt()  # the same guess of x_0, as each target has it
    given = {"eps": eps_hat, "x_0": guess, "v": a.sqrt() * eps_hat - (1 - a).sqrt() * guess}[target]
    loss = min_snr_weight(SCHEDULE, t, target) * l_simple(lambda x_t, t: given, SCHEDULE, x_0, eps, t, target)
    expected = (a / (1 - a)).clamp(max=5).flatten() * (x_0 - guess).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_a_large_gamma_leaves_the_noise_loss_alone_and_a_small_one_makes_it_that_of_x_0():
    assert (min_snr_weight(SCHEDULE, STEPS, gamma=1e9) == 1).all()
    small = min_snr_weight(SCHEDULE, STEPS, gamma=1e-9)
    torch.testing.assert_close(small, 1e-9 / snr(SCHEDULE, STEPS), rtol=1e-12, atol=0)


def test_where_no_signal_is_left_the_weights_are_1_and_0_and_0():
    schedule = zero_snr_schedule(SCHEDULE)
    assert [min_snr_weight(schedule, 1000, target).item() for target in ("eps", "x_0", "v")] == [1, 0, 0]
    for target in ("eps", "x_0", "v"):
        assert min_snr_weight(schedule, STEPS, target, like=torch.zeros(1000)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_with_like_it_comes_in_that_dtype_computed_in_double_precision_first(dtype):
    got = min_snr_weight(SCHEDULE, STEPS, "v", like=torch.zeros(1000, dtype=dtype))
    assert got.dtype == dtype and torch.equal(got, min_snr_weight(SCHEDULE, STEPS, "v").to(dtype))


def test_every_schedule_target_and_gamma_has_its_own_weight():
    x = torch.zeros(1)
    got = [
        float(min_snr_weight(schedule, 1, target, gamma, like=x))
        for schedule in (Schedule([0.1]), Schedule([0.5]))
        for target in ("eps", "v")
        for gamma in (0.5, 2.0)
    ]
    assert got == pytest.approx([0.5 / 9, 2 / 9, 0.05, 0.2, 0.5, 1.0, 0.25, 0.5])


@pytest.mark.parametrize("wrong", [{"target": "score"}, {"target": "noise"}, {"gamma": 0.0}, {"gamma": -1.0}])
def test_it_names_the_targets_it_has_and_asks_for_a_positive_gamma(wrong):
    with pytest.raises(ValueError, match=r"a target among eps, x_0, v and gamma > 0; got"):
        min_snr_weight(SCHEDULE, 1, **wrong)
    assert "score" in TARGETS  # whose loss is weighted already


@pytest.mark.parametrize("t", [0, 1001, torch.tensor([1, 1001])])
def test_t_is_checked_as_everywhere(t):
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        min_snr_weight(SCHEDULE, t)
