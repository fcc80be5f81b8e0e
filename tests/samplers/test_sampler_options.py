"""What the samplers are asked for: times, clipping, callbacks, seeds and dtypes; and what they refuse."""

import inspect
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.samplers.ancestral import ancestral_sample, image_seeds
from ddpm_lib.samplers.ddim import ddim_sample, strided_t
from ddpm_lib.samplers.inversion import ddim_invert
from ddpm_lib.samplers.second_order import dpm_solver_sample, heun_sample

SCHEDULE = linear_schedule(20, 0.02, 0.4)
ALL_T = list(range(20, -1, -1))
GRID = strided_t(20, 7)
SAMPLERS = {
    "ancestral": (ancestral_sample, {}, ALL_T),
    "ddim": (ddim_sample, {"steps": 7}, GRID),
    "ddim, eta 1": (ddim_sample, {"steps": 7, "eta": 1.0}, GRID),
}
every_sampler = pytest.mark.parametrize(("sample", "options", "times"), SAMPLERS.values(), ids=SAMPLERS)


def noise(n=100, dtype=torch.float64):
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=dtype)


def half(x_t, t):
    return 0.5 * x_t


def wild(x_t, t):
    return 50 * torch.sin(1000 * x_t)


@pytest.mark.parametrize("T", [1, 2, 7, 20, 1000])
def test_the_grid_of_times_is_even_and_has_both_ends(T):
    for steps in range(1, T + 1, max(1, T // 40)):
        grid = strided_t(T, steps)
        assert (len(grid), grid[0], grid[-1]) == (steps + 1, T, 0)
        assert all(later < earlier for earlier, later in pairwise(grid))
        even = [Fraction(T * i, steps) for i in range(steps, -1, -1)]
        assert all(abs(t - exact) <= Fraction(1, 2) for t, exact in zip(grid, even, strict=True))


@every_sampler
def test_the_model_is_asked_once_a_step_with_the_t_of_its_input(sample, options, times):
    asked = []

    def model(x_t, t):
        asked.append(t.tolist())
        return half(x_t, t)

    sample(model, SCHEDULE, noise(3), **options)
    assert asked == [[t] * 3 for t in times[:-1]]


@every_sampler
def test_the_callback_sees_every_new_time_down_to_0(sample, options, times):
    seen = []
    x_0 = sample(half, SCHEDULE, noise(3), on_step=lambda t, x_t, x_0_hat: seen.append((t, x_t)), **options)
    assert [t for t, _ in seen] == times[1:]
    assert torch.equal(seen[-1][1], x_0) and not torch.equal(seen[-2][1], x_0)


@every_sampler
def test_clipping_keeps_the_estimates_and_the_result_in_the_range_of_images(sample, options, times):
    estimates = []
    options = options | {"on_step": lambda t, x_t, x_0_hat: estimates.append(x_0_hat)}
    x_0 = sample(wild, SCHEDULE, noise(), **options)
    assert all(e.min() == -1 and e.max() == 1 for e in estimates)
    assert x_0.abs().max() <= 1
    estimates.clear()
    x_0 = sample(wild, SCHEDULE, noise(), clip=False, **options)
    assert all(e.abs().max() > 2 for e in estimates) and x_0.abs().max() > 2


@every_sampler
def test_a_seed_decides_the_samples_and_the_global_generator_is_left_alone(sample, options, times):
    before, x_T = torch.get_rng_state(), noise()
    one, same, other = (
        sample(half, SCHEDULE, x_T, generator=torch.Generator().manual_seed(seed), **options) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (options == {"steps": 7})  # with eta 0 nothing is random
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x_T, noise()), "the start was written to"


def test_without_eta_nothing_is_drawn():
    generator = torch.Generator()
    before = generator.get_state()
    ddim_sample(half, SCHEDULE, noise(), steps=7, generator=generator)
    assert torch.equal(generator.get_state(), before)


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_start_is_kept_and_no_graph_is_built(sample, options, times, dtype):
    weight = torch.full((), 0.5, dtype=dtype, requires_grad=True)
    states = []
    x_0 = sample(
        lambda x_t, t: weight * x_t, SCHEDULE, noise(dtype=dtype), on_step=lambda *step: states.append(step), **options
    )
    assert all(x_t.dtype == x_0_hat.dtype == dtype for _, x_t, x_0_hat in states)
    assert not x_0.requires_grad


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\].*got"):
        ddim_sample(half, SCHEDULE, noise(), steps=5, eta=eta)


@pytest.mark.parametrize("steps", [0, -1, 21])
def test_a_number_of_steps_that_the_schedule_has_not_is_refused(steps):
    with pytest.raises(ValueError, match=rf"1\.\.20, the schedule's T; got {steps}"):
        ddim_sample(half, SCHEDULE, noise(), steps=steps)


def test_what_a_sampler_does_unless_told_otherwise():
    asked = {"progress", "on_step", "clip", "steps", "times", "eta", "generator"}
    common = {"clip": True, "progress": False, "on_step": None}
    for sample, own in {
        ancestral_sample: {"generator": None},
        ddim_sample: {"steps": 50, "times": None, "eta": 0.0, "generator": None},
        heun_sample: {"steps": 25, "times": None},
        dpm_solver_sample: {"steps": 25, "times": None},
        ddim_invert: {"steps": 50, "times": None},
    }.items():
        parameters = inspect.signature(sample).parameters
        assert {name: p.default for name, p in parameters.items() if name in asked} == common | own


def test_the_last_step_of_ancestral_sampling_draws_nothing():
    schedule, x_T = Schedule([0.1, 0.2, 0.3]), torch.zeros(2, 3)
    used, expected = (torch.Generator().manual_seed(0) for _ in range(2))
    ancestral_sample(lambda x_t, t: x_t, schedule, x_T, generator=used)
    for _ in range(2):
        torch.randn(x_T.shape, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


def test_the_seeds_of_images_go_up_by_the_golden_step():
    assert image_seeds(7, 3) == [7, 7 + 0x9E3779B9, (7 + 2 * 0x9E3779B9) % 2**32]
