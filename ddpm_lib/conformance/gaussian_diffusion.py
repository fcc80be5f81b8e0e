"""The `GaussianDiffusion` of denoising-diffusion-pytorch as functions of the book's form: a dictionary, to be examined.

    CONFORMANCE = gaussian_diffusion()

Its t is ours − 1; its tables are computed in float64 and kept in float32. With exact=True they are kept in float64, and
what is examined is its formulas. The package is imported where it is used; it is not installed with this library.
"""

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ddpm_lib.conformance.adapt import betas, for_any_t, from_zero, once_a_schedule
from ddpm_lib.diffusion.schedule import Schedule

MODULE = "denoising_diffusion_pytorch.denoising_diffusion_pytorch"


class _Network(nn.Module):
    """A model of the book's form, asked at t = 1..T, as a network of theirs, which is asked at t − 1."""

    channels = out_dim = 1
    self_condition = False

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor] | None = None):
        super().__init__()
        self.asked = model

    def forward(self, x_t: Tensor, index: Tensor, *rest: Any) -> Tensor:
        return self.asked(x_t, index + 1)


def diffusion(schedule: Schedule, *, exact: bool = True, **options: Any) -> Any:
    """Their object with this schedule's β. Raises ImportError where the package is not installed."""
    module = importlib.import_module(MODULE)
    options = {"image_size": 8, "timesteps": schedule.T, "beta_schedule": "linear", **options}
    kept = torch.float64 if exact else torch.float32
    # the β come from a function of theirs, by its name; tables are cast to what they call torch.float32
    names = SimpleNamespace(**{**vars(torch), "float32": kept})
    with (
        patch.object(module, "linear_beta_schedule", lambda T, **_: betas(schedule)),
        patch.object(module, "torch", names),
    ):
        return module.GaussianDiffusion(_Network(), **options)


def gaussian_diffusion(exact: bool = True, **options: Any) -> dict[str, Callable]:
    """Its formulas: `q_sample`, `q_posterior`, `predict_…`. options: of its constructor."""
    made = once_a_schedule(lambda schedule: diffusion(schedule, exact=exact, **options))

    def part(index: int) -> Callable:
        return lambda s, x_0, x_t, t: made(s).q_posterior(x_0, x_t, from_zero(t, x_t))[index]

    def posterior_variance(schedule: Schedule, index: Tensor) -> Tensor:
        x = torch.zeros(len(index), 1, dtype=torch.float64)
        return made(schedule).q_posterior(x, x, index)[1].flatten()

    def mean_from_noise(s: Schedule, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        theirs, index = made(s), from_zero(t, x_t)
        return theirs.q_posterior(theirs.predict_start_from_noise(x_t, index, eps), x_t, index)[0]

    def noise_from_velocity(s: Schedule, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        theirs, index = made(s), from_zero(t, x_t)
        return theirs.predict_noise_from_start(x_t, index, theirs.predict_start_from_v(x_t, index, v))

    def loss(model: Callable, s: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        theirs = diffusion(s, exact=exact, **{"objective": "pred_noise", **options})
        theirs.model = _Network(model)
        return theirs.p_losses(x_0, from_zero(t, x_0), noise=eps, loss_reduction="none")

    return {
        "forward jump": lambda s, x_0, eps, t: made(s).q_sample(x_0, from_zero(t, x_0), eps),
        "posterior variance": for_any_t(posterior_variance),
        "posterior mean": part(0),
        "posterior mean from noise": mean_from_noise,
        "clean image from noise": lambda s, x_t, eps, t: made(s).predict_start_from_noise(x_t, from_zero(t, x_t), eps),
        "noise from clean image": lambda s, x_t, x_0, t: made(s).predict_noise_from_start(x_t, from_zero(t, x_t), x_0),
        "velocity": lambda s, x_0, eps, t: made(s).predict_v(x_0, from_zero(t, x_0), eps),
        "noise from velocity": noise_from_velocity,
        "L_simple": loss,
    }
