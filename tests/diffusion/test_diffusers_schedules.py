"""The schedules of `diffusers`, written by other people, are ours: their β_{t−1} is our β_t, to float32's precision."""

import pytest
import torch

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.scaled_linear import scaled_linear_schedule
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.diffusion.sigmoid import sigmoid_beta_schedule
from ddpm_lib.diffusion.zero_snr import x_0_from_v, zero_snr_schedule

diffusers = pytest.importorskip("diffusers")

STEPS = pytest.mark.parametrize("T", [2, 7, 50, 1000])
FLOAT32 = 2e-6


def theirs(T, kind, first=1e-4, last=0.02, **options):
    return diffusers.DDPMScheduler(T, beta_schedule=kind, beta_start=first, beta_end=last, **options)


@STEPS
@pytest.mark.parametrize(("first", "last"), [(0.00085, 0.012), (0.3, 0.001)])
def test_scaled_linear_is_theirs(T, first, last):
    ours = scaled_linear_schedule(T, first, last)
    torch.testing.assert_close(
        ours.beta[1:].float(), theirs(T, "scaled_linear", first, last).betas, rtol=FLOAT32, atol=0
    )


@STEPS
def test_the_sigmoid_in_beta_is_theirs_and_the_one_in_alpha_bar_is_another(T):
    ours, betas = sigmoid_beta_schedule(T), theirs(T, "sigmoid").betas
    torch.testing.assert_close(ours.beta[1:].float(), betas, rtol=FLOAT32, atol=0)


@STEPS
def test_the_cosine_schedule_is_their_squaredcos_cap_v2(T):
    betas = theirs(T, "squaredcos_cap_v2").betas
    torch.testing.assert_close(cosine_schedule(T).beta[1:].float(), betas, rtol=FLOAT32, atol=1e-9)


@pytest.mark.parametrize("T", [7, 50, 1000])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_zero_terminal_snr_is_their_rescale_betas_zero_snr(T, kind):
    """Their 1 − ᾱ_t/ᾱ_{t−1} is formed in float32, where it is off by 1e-7: so is β, beside 1."""
    make = {"linear": linear_schedule, "scaled_linear": scaled_linear_schedule}[kind]
    ours, scheduler = zero_snr_schedule(make(T, 1e-4, 0.02)), theirs(T, kind, rescale_betas_zero_snr=True)
    torch.testing.assert_close(ours.beta[1:].float(), scheduler.betas, rtol=0, atol=1e-5)
    root = scheduler.alphas_cumprod.sqrt()
    torch.testing.assert_close(ours.alpha_bar[1:].sqrt().float(), root, rtol=1e-4, atol=1e-6)
    assert ours.alpha_bar[-1] == 0 and scheduler.alphas_cumprod[-1] == 0


def test_the_clean_image_from_velocity_is_theirs_also_where_nothing_of_it_is_left():
    scheduler = theirs(
        20, "linear", 0.01, 0.4, rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False
    )
    ours = zero_snr_schedule(linear_schedule(20, 0.01, 0.4))
    x_t, v = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    for t in (1, 7, 20):
        got = scheduler.step(v, t - 1, x_t, generator=torch.Generator().manual_seed(0)).pred_original_sample
        torch.testing.assert_close(x_0_from_v(ours, x_t, v, t), got, rtol=1e-4, atol=1e-5)
