"""The forward process beyond its equations: one step and one jump agree, number for number."""

import torch

from ddpm_lib.diffusion.forward import forward_step, noise_like, q_sample
from ddpm_lib.diffusion.schedule import Schedule


def test_the_first_step_is_the_jump_to_t_1_with_the_same_noise():
    schedule, x_0 = Schedule([0.19, 0.5]), torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(2, 3, 2, 2)
    eps = noise_like(x_0, torch.Generator().manual_seed(0))
    stepped = forward_step(schedule, x_0, 1, torch.Generator().manual_seed(0))
    assert torch.allclose(stepped, q_sample(schedule, x_0, eps, 1), rtol=0, atol=1e-12)
    assert (eps * 0.19**0.5).abs().max() > 0.1  # the noise with its sign turned would be seen
