"""Other conventions and other libraries, as functions of the book's form."""

import math
from importlib.util import find_spec

import pytest
import torch

from ddpm_lib.conformance import adapt
from ddpm_lib.conformance import diffusers as peer
from ddpm_lib.conformance.examine import examine
from ddpm_lib.conformance.gaussian_diffusion import MODULE, gaussian_diffusion
from ddpm_lib.diffusion.forward import forward_var
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.ancestral import ancestral_sample
from ddpm_lib.samplers.ddim import ddim_sample

SHORT = Schedule([0.1, 0.5, 0.2])
NEEDS_DIFFUSERS = pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
NEEDS_GAUSSIAN_DIFFUSION = pytest.mark.skipif(
    find_spec(MODULE.partition(".")[0]) is None, reason="denoising-diffusion-pytorch is not installed"
)


def statuses(dictionary):
    return {name: examine(name, function).status for name, function in dictionary.items()}


# Conventions


def test_tables_of_length_T_are_the_book_s_without_the_clean_image():
    assert adapt.betas(SHORT).tolist() == [0.1, 0.5, 0.2]
    torch.testing.assert_close(adapt.alphas_cumprod(SHORT), torch.tensor([0.9, 0.45, 0.36]).double())
    adapt.betas(SHORT).zero_()
    assert SHORT.beta[1] == 0.1, "a copy"


def test_t_from_zero_is_a_tensor_one_less():
    assert adapt.from_zero(3) == 2 and adapt.from_zero(torch.tensor([3, 1])).tolist() == [2, 0]
    like = torch.zeros(2, 1, 4, 4)
    assert adapt.from_zero(3, like).tolist() == [2, 2] and adapt.from_zero(torch.tensor([3, 1]), like).tolist() == [
        2,
        0,
    ]


def test_an_object_is_built_once_for_each_schedule():
    built = []
    get = adapt.once_a_schedule(lambda schedule: built.append(schedule.T) or len(built))
    other = linear_schedule(5)
    assert [get(SHORT), get(other), get(SHORT)] == [1, 2, 1] and built == [3, 5]


def test_a_function_of_a_batch_takes_any_t():
    seen = []

    def of_batch(schedule, index):
        seen.append(tuple(index.shape))
        return schedule.beta[1:][index]

    f = adapt.for_any_t(of_batch)
    assert f(SHORT, 2) == 0.5 and f(SHORT, torch.tensor([[1], [3]])).tolist() == [[0.1], [0.2]]
    assert seen == [(1,), (2,)]


def test_a_wanted_result_is_taken_out_of_a_tuple_and_made_a_variance():
    def results(x):
        return x, x + 1

    assert adapt.part(results, 1)(3) == 4
    assert adapt.from_std(lambda: torch.tensor(3.0))() == 9
    assert adapt.from_log_var(lambda: torch.tensor(2.0))() == pytest.approx(math.exp(2))
    made = adapt.from_betas(lambda T: torch.full((T,), 0.5))(3)
    assert isinstance(made, Schedule) and made.alpha_bar.tolist() == [1, 0.5, 0.25, 0.125]
    std = adapt.from_std(adapt.for_any_t(lambda schedule, index: posterior_var(schedule, index + 1).sqrt()))
    assert examine("posterior variance", std).status == "holds"


# diffusers


@NEEDS_DIFFUSERS
def test_the_formulas_of_ddpm_scheduler_in_float64():
    found = statuses(peer.ddpm())
    assert {name for name, status in found.items() if status != "holds"} == {
        "velocity",  # for float32 images the tables are cast first
        "signal-to-noise ratio",  # cast to float32
        "posterior variance",  # at t = 1 clamped, for a logarithm
    }
    assert (
        examine("posterior variance", peer.ddpm()["posterior variance"]).known.what == "at least 1e-20, also at t = 1"
    )


@NEEDS_DIFFUSERS
def test_the_formulas_of_the_other_schedulers_in_float64():
    assert set(statuses(peer.ddim()).values()) == {"holds", "float32"}
    assert set(statuses(peer.dpm_solver()).values()) == {"holds"}


@NEEDS_DIFFUSERS
@pytest.mark.soak  # appendix B shows the same table, and pytest compares it
def test_as_they_come_they_hold_to_float32():
    assert set(statuses(peer.ddim(exact=False)).values()) == {"float32"}
    assert set(statuses(peer.dpm_solver(exact=False)).values()) == {"float32"}
    found = statuses(peer.ddpm(exact=False))
    assert {name for name, status in found.items() if status == "off"} == {
        "posterior variance",
        "posterior mean from noise",  # by way of x_0, with β_t from a ratio
    }


@NEEDS_DIFFUSERS
def test_a_clipped_estimate_is_off():
    f = peer.ddpm(clip_sample=True)["posterior mean from noise"]
    found = examine("posterior mean from noise", f)
    assert found.status == "off" and found.distance > 0.1


@pytest.fixture(scope="module")
def start():
    """A schedule of 100 steps, an exact denoiser, and noise to begin with."""
    schedule = linear_schedule(100, 1e-3, 0.1)
    weight, mean, var = (torch.tensor(v).double() for v in ([0.5, 0.5], [[-0.5], [0.7]], [[0.04], [0.04]]))
    mixture = GaussianMixture(weight, mean, var)
    x_T = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return schedule, ExactDenoiser(mixture, schedule), x_T


def generator():
    return torch.Generator().manual_seed(1)


@NEEDS_DIFFUSERS
@pytest.mark.parametrize(
    ("spacing", "steps", "least", "most"),
    [
        ("trailing", 10, 0, 1e-9),
        ("trailing", 7, 1e-3, 1),
        ("linspace", 10, 1e-2, 2),
        ("leading", 10, 1e-2, 5),
    ],
)
def test_ddim_is_ours_where_the_spacing_is_trailing_and_the_steps_divide_T(start, spacing, steps, least, most):
    schedule, model, x_T = start
    theirs = peer.with_timesteps(peer.scheduler("DDIMScheduler", schedule, timestep_spacing=spacing), steps)
    gap = (peer.sampled(theirs, model, x_T) - ddim_sample(model, schedule, x_T, steps=steps, clip=False)).abs().max()
    assert least <= gap <= most


@NEEDS_DIFFUSERS
@pytest.mark.parametrize("steps", [10, 7])
def test_dpm_solver_of_first_order_is_ddim_to_float32(start, steps):
    schedule, model, x_T = start
    theirs = peer.scheduler("DPMSolverMultistepScheduler", schedule, solver_order=1, timestep_spacing="trailing")
    got = peer.sampled(peer.with_timesteps(theirs, steps), model, x_T)
    assert (got - ddim_sample(model, schedule, x_T, steps=steps, clip=False)).abs().max() < 1e-4


@NEEDS_DIFFUSERS
@pytest.mark.parametrize(("kind", "reverse_var"), [("fixed_small", posterior_var), ("fixed_large", forward_var)])
def test_ddpm_is_ancestral_sampling(start, kind, reverse_var):
    schedule, model, x_T = start
    theirs = peer.scheduler("DDPMScheduler", schedule, variance_type=kind)
    ours = ancestral_sample(model, schedule, x_T, reverse_var=reverse_var, clip=False, generator=generator())
    torch.testing.assert_close(peer.sampled(theirs, model, x_T, generator=generator()), ours, rtol=0, atol=1e-9)


@NEEDS_DIFFUSERS
def test_the_last_alpha_is_theirs_where_it_is_asked_for(start):
    theirs = peer.scheduler("DDIMScheduler", start[0], set_alpha_to_one=False)
    assert theirs.final_alpha_cumprod == start[0].alpha_bar[1]


# denoising-diffusion-pytorch


@NEEDS_GAUSSIAN_DIFFUSION
@pytest.mark.parametrize(("exact", "status"), [(True, "holds"), (False, "float32")])
def test_the_formulas_of_gaussian_diffusion(exact, status):
    assert set(statuses(gaussian_diffusion(exact)).values()) == {status}


@pytest.mark.skipif(find_spec(MODULE.partition(".")[0]) is not None, reason="the package is installed")
def test_without_the_package_each_function_says_what_is_missing():
    found = examine("velocity", gaussian_diffusion()["velocity"])
    assert found.status == "raised" and found.line.startswith("ModuleNotFoundError: No module named 'denoising_diff")
