"""The schedulers of `diffusers` as functions of the book's form: a dictionary for each, to be examined.

    CONFORMANCE = ddpm()                    # in a file of yours; with options: ddpm(clip_sample=True)

Their t is ours − 1. Their tables are float32. With exact=True they are filled again in float64, and what is examined
is their formulas; with exact=False it is all of it, as it comes. The package is imported where it is used.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ddpm_lib.conformance.adapt import alphas_cumprod, betas, for_any_t, from_zero, once_a_schedule
from ddpm_lib.diffusion.schedule import Schedule

Dictionary = dict[str, Callable]


def scheduler(kind: str, schedule: Schedule, *, exact: bool = True, **options: Any) -> Any:
    """diffusers' class `kind` with this schedule's β; clip_sample is False unless it is given.

    exact: its tables in float64. Raises ImportError where diffusers is not installed.
    """
    import diffusers

    if kind != "DPMSolverMultistepScheduler":
        options = {"clip_sample": False, **options}
    with warnings.catch_warnings(action="ignore"):  # of a kind of DPM-Solver that is to go
        theirs = getattr(diffusers, kind)(schedule.T, trained_betas=betas(schedule).tolist(), **options)
    if exact:
        theirs.betas, theirs.alphas_cumprod = betas(schedule), alphas_cumprod(schedule)
        theirs.alphas = 1 - theirs.betas
        if not options.get("set_alpha_to_one", True):
            theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    return theirs


def ddpm(exact: bool = True, **options: Any) -> Dictionary:
    """DDPMScheduler's formulas: `add_noise`, `get_velocity`, `step` and `_get_variance`."""

    def made(**more: Any) -> Callable[[Schedule], Any]:
        return once_a_schedule(lambda schedule: scheduler("DDPMScheduler", schedule, exact=exact, **options, **more))

    plain, of_x_0, of_v = made(), made(prediction_type="sample"), made(prediction_type="v_prediction")

    def step(theirs: Any, output: Tensor, index: Tensor, x_t: Tensor, z: Tensor) -> Tensor:
        def one(i: int, value: Tensor, x: Tensor, noise: Tensor) -> Tensor:
            with patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *shape, **options: noise):
                return theirs.step(value, i, x).prev_sample

        return _each(one, index, output, x_t, z)

    def mean(theirs: Any, output: Tensor, index: Tensor, x_t: Tensor) -> Tensor:
        return step(theirs, output, index, x_t, torch.zeros_like(x_t))

    def linear_schedule(T: int, beta_1: float, beta_T: float) -> Schedule:
        import diffusers

        return Schedule(diffusers.DDPMScheduler(T, beta_start=beta_1, beta_end=beta_T).betas)

    def cumulative_alpha(beta: Tensor) -> Tensor:
        return torch.cat([torch.ones(1), made()(Schedule(beta[1:])).alphas_cumprod])

    def posterior_variance(schedule: Schedule, index: Tensor) -> Tensor:
        theirs = plain(schedule)
        return torch.stack([torch.as_tensor(theirs._get_variance(i)) for i in index.tolist()])

    found = {
        **_shared(plain),
        "posterior variance": for_any_t(posterior_variance),
        "posterior mean": lambda s, x_0, x_t, t: mean(of_x_0(s), x_0, from_zero(t, x_t), x_t),
        "posterior mean from noise": lambda s, x_t, eps, t: mean(plain(s), eps, from_zero(t, x_t), x_t),
        "clean image from noise": lambda s, x_t, eps, t: _x_0(plain(s), eps, from_zero(t, x_t), x_t),
        "signal-to-noise ratio": for_any_t(lambda schedule, index: _snr(plain(schedule), index)),
        "time embedding": _embedding,
        "ancestral step": lambda s, x_t, x_0_hat, t, z: step(of_x_0(s), x_0_hat, from_zero(t, x_t), x_t, z),
        "clean image from velocity": lambda s, x_t, v, t: _x_0(of_v(s), v, from_zero(t, x_t), x_t),
    }
    return found if exact else {"linear schedule": linear_schedule, "cumulative alpha": cumulative_alpha, **found}


def ddim(exact: bool = True, **options: Any) -> Dictionary:
    """DDIMScheduler's formulas, with as many steps as the schedule has: `step` at η = 1 is then an ancestral one."""

    def made(**more: Any) -> Callable[[Schedule], Any]:
        def build(schedule: Schedule) -> Any:
            theirs = scheduler("DDIMScheduler", schedule, exact=exact, **options, **more)
            theirs.set_timesteps(schedule.T)
            return theirs

        return once_a_schedule(build)

    plain, of_x_0, of_v = made(), made(prediction_type="sample"), made(prediction_type="v_prediction")

    def mean(theirs: Any, output: Tensor, index: Tensor, x_t: Tensor) -> Tensor:
        def step(i: int, value: Tensor, x: Tensor) -> Tensor:
            return theirs.step(value, i, x, eta=1.0, variance_noise=torch.zeros_like(x)).prev_sample

        return _each(step, index, output, x_t)

    def posterior_variance(schedule: Schedule, index: Tensor) -> Tensor:
        theirs = plain(schedule)
        return torch.stack([torch.as_tensor(theirs._get_variance(i, i - 1)) for i in index.tolist()])

    def ddim_variance(schedule: Schedule, t: int, s: int, eta: float) -> Tensor:
        if not 0 <= s < t <= schedule.T:
            raise ValueError("theirs counts from the end, or has no such entry")  # the book's function refuses it
        return eta**2 * torch.as_tensor(plain(schedule)._get_variance(t - 1, s - 1))

    return {
        **_shared(plain),
        "posterior variance": for_any_t(posterior_variance),
        "posterior mean": lambda s, x_0, x_t, t: mean(of_x_0(s), x_0, from_zero(t, x_t), x_t),
        "posterior mean from noise": lambda s, x_t, eps, t: mean(plain(s), eps, from_zero(t, x_t), x_t),
        "clean image from noise": lambda s, x_t, eps, t: _x_0(plain(s), eps, from_zero(t, x_t), x_t),
        "clean image from velocity": lambda s, x_t, v, t: _x_0(of_v(s), v, from_zero(t, x_t), x_t),
        "DDIM variance": ddim_variance,
    }


def dpm_solver(exact: bool = True, **options: Any) -> Dictionary:
    """DPMSolverMultistepScheduler's `add_noise` and `convert_model_output`, which turns one prediction into another."""

    def made(**more: Any) -> Callable[[Schedule], Any]:
        def build(schedule: Schedule) -> Any:
            theirs = scheduler("DPMSolverMultistepScheduler", schedule, exact=exact, **options, **more)
            return with_timesteps(theirs, range(schedule.T - 1, -1, -1), exact=exact)

        return once_a_schedule(build)

    plain = made()
    from_x_0, from_v = (
        made(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", prediction_type=kind)
        for kind in ("sample", "v_prediction")
    )

    def converted(theirs: Any, output: Tensor, index: Tensor, x_t: Tensor) -> Tensor:
        def convert(i: int, value: Tensor, x: Tensor) -> Tensor:
            theirs._step_index = len(theirs.timesteps) - 1 - i
            return theirs.convert_model_output(value, sample=x)

        return _each(convert, index, output, x_t)

    def forward_jump(schedule: Schedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        theirs = plain(schedule)
        theirs._step_index = None
        return theirs.add_noise(x_0, eps, from_zero(t, x_0))

    return {
        "forward jump": forward_jump,
        "clean image from noise": lambda s, x_t, eps, t: converted(plain(s), eps, from_zero(t, x_t), x_t),
        "noise from clean image": lambda s, x_t, x_0, t: converted(from_x_0(s), x_0, from_zero(t, x_t), x_t),
        "noise from velocity": lambda s, x_t, v, t: converted(from_v(s), v, from_zero(t, x_t), x_t),
    }


def with_timesteps(theirs: Any, times: int | Iterable[int], *, exact: bool = True) -> Any:
    """The scheduler, told its times: how many, or which, counted from 0. exact: in float64, what it makes of them."""
    with warnings.catch_warnings(action="ignore"):  # of log 0, where float32 has no noise left
        theirs.set_timesteps(times) if isinstance(times, int) else theirs.set_timesteps(timesteps=list(times))
    if exact and hasattr(theirs, "sigmas"):
        a, last = theirs.alphas_cumprod[theirs.timesteps], theirs.sigmas[-1:].double()
        theirs.sigmas = torch.cat([((1 - a) / a).sqrt(), last])
    return theirs


@torch.no_grad()
def sampled(theirs: Any, eps_model: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, **options: Any) -> Tensor:
    """Their loop over their times, with a model that is asked at the book's t: their sample, from x_T (B, ...).

    options: of their step, as eta=1.0 or generator=….
    """
    x = x_T
    for index in theirs.timesteps.tolist():
        eps_hat = eps_model(x, torch.full((len(x),), index + 1))
        x = theirs.step(eps_hat, index, x, **options).prev_sample
    return x


def _shared(made: Callable[[Schedule], Any]) -> Dictionary:
    return {
        "forward jump": lambda s, x_0, eps, t: made(s).add_noise(x_0, eps, from_zero(t, x_0)),
        "velocity": lambda s, x_0, eps, t: made(s).get_velocity(x_0, eps, from_zero(t, x_0)),
    }


def _each(step: Callable, index: Tensor, *images: Tensor) -> Tensor:
    """step(i, …) for each image of a batch: theirs takes one time for all."""
    return torch.cat([step(int(i), *(x[n : n + 1] for x in images)) for n, i in enumerate(index)])


def _x_0(theirs: Any, eps: Tensor, index: Tensor, x_t: Tensor) -> Tensor:
    return _each(lambda i, e, x: theirs.step(e, i, x).pred_original_sample, index, eps, x_t)


def _snr(theirs: Any, index: Tensor) -> Tensor:
    from diffusers.training_utils import compute_snr

    return compute_snr(theirs, index)


def _embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    if width < 4 or width % 2:
        raise ValueError("theirs fills an odd width up with zeros")  # a convention: the book's function refuses it
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(t - 1, width, max_period=max_period)
