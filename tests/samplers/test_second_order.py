"""The solvers of chapter 8 on an exact denoiser: order, ends, grids, and the way back to the noise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ddpm_lib.checks import find
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.ddim import ddim_sample, strided_t
from ddpm_lib.samplers.grids import grid_of_t
from ddpm_lib.samplers.inversion import ddim_invert, slerp
from ddpm_lib.samplers.second_order import dpm_solver_sample, heun_sample, noise_ratio

SOLVERS = {"ddim": ddim_sample, "heun": heun_sample, "dpm_solver": dpm_solver_sample}
EVERY = {**SOLVERS, "invert": ddim_invert}
solvers = pytest.mark.parametrize("sample", SOLVERS.values(), ids=SOLVERS)
every = pytest.mark.parametrize("sample", EVERY.values(), ids=EVERY)
SCHEDULE, SHORT = linear_schedule(), linear_schedule(20, 0.02, 0.4)
UNIFORM = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
START = torch.from_numpy(norm.ppf(UNIFORM))[:, None]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


MIXTURE = GaussianMixture(double([0.3, 0.5, 0.2]), double([[-1.0], [0.2], [0.9]]), double([[0.03], [0.02], [0.01]]))
EXACT = ExactDenoiser(MIXTURE, SCHEDULE)


def half(x_t, t):
    return 0.5 * x_t


def wild(x_t, t):
    return 50 * torch.sin(1000 * x_t)


def quantiles():
    """The data's quantiles at UNIFORM: where the exact ODE takes START, up to what is left of the data at T."""
    x = np.linspace(-3, 3, 60_001)
    parts = zip(MIXTURE.weight.tolist(), MIXTURE.mean[:, 0].tolist(), MIXTURE.var[:, 0].tolist(), strict=True)
    total = sum(w * norm.cdf(x, m, v**0.5) for w, m, v in parts)
    return torch.from_numpy(np.interp(UNIFORM, total, x))[:, None]


def inside(sample, steps):
    """The state at t = 200 of a run that starts at t = 840, in this many steps."""
    seen = {}
    times = [*range(840, 199, -640 // steps), 0]
    sample(EXACT, SCHEDULE, START, times=times, clip=False, on_step=lambda t, x, x_0: seen.setdefault(t, x))
    return seen[200]


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpm_solver", 2)])
def test_inside_the_chain_ddim_is_of_first_order_and_the_others_of_second(name, order):
    runs = [inside(SOLVERS[name], steps) for steps in (32, 64, 128)]
    assert float(find("order of a solver").statement(*runs)) == pytest.approx(order, abs=0.25)
    exact = inside(heun_sample, 640)
    assert (runs[-1] - exact).abs().max() < 0.05


@solvers
def test_many_steps_end_at_the_quantiles_of_the_data(sample):
    x = sample(EXACT, SCHEDULE, START, times=grid_of_t(1000, 500, "quadratic"), clip=False)
    assert (x - quantiles()).abs().mean() < 5e-3


def test_second_order_with_15_calls_is_closer_than_ddim_with_30():
    exact = quantiles()
    for spacing in ("even", "quadratic"):
        few, many = (grid_of_t(1000, steps, spacing) for steps in (15, 30))
        second = dpm_solver_sample(EXACT, SCHEDULE, START, times=few, clip=False)
        first = ddim_sample(EXACT, SCHEDULE, START, times=many, clip=False)
        if spacing == "quadratic":
            assert (second - exact).abs().mean() < 0.75 * (first - exact).abs().mean()
        else:  # there the last step, which is of first order, is the longest
            assert (second - exact).abs().mean() > (first - exact).abs().mean()


@every
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_the_network_is_asked_as_often_as_the_docstring_says(sample, steps):
    asked = []

    def model(x_t, t):
        asked.append(t.tolist())
        return half(x_t, t)

    sample(model, SHORT, torch.ones(3, 1), steps=steps)
    assert len(asked) == (2 * steps - 1 if sample is heun_sample else steps)
    assert all(len(set(t)) == 1 and len(t) == 3 and 1 <= t[0] <= 20 for t in asked)


@solvers
def test_the_even_grid_is_the_default_and_any_other_may_be_given(sample):
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    assert torch.equal(sample(half, SHORT, x, steps=6), sample(half, SHORT, x, times=strided_t(20, 6)))
    assert not torch.equal(sample(half, SHORT, x, steps=6), sample(half, SHORT, x, times=[20, 13, 9, 5, 3, 1, 0]))


def test_on_the_way_up_the_same_grid_is_walked_from_its_end():
    seen = []
    ddim_invert(half, SHORT, torch.ones(2, 3), times=[19, 7, 2, 0], on_step=lambda t, x, x_0: seen.append(t))
    assert seen == [2, 7, 19]


@every
@pytest.mark.parametrize(
    "times", [[20, 10, 10, 0], [5, 10, 0], [21, 0], [20, 10], [0], [], [20, 2.5, 0], [20, -1, 0], [20, 10, 0, -1]]
)
def test_times_that_do_not_fall_to_0_are_refused(sample, times):
    with pytest.raises(ValueError, match="expected times that fall from at most T = 20 to 0, whole numbers; got"):
        sample(half, SHORT, torch.ones(1, 2), times=times)


@every
@pytest.mark.parametrize("steps", [0, 21])
def test_a_number_of_steps_that_the_schedule_has_not_is_refused(sample, steps):
    with pytest.raises(ValueError, match=rf"1\.\.20, the schedule's T; got {steps}"):
        sample(half, SHORT, torch.ones(1, 2), steps=steps)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_is_kept_no_graph_is_built_and_the_start_is_left_alone(sample, dtype):
    weight = torch.full((), 0.5, dtype=dtype, requires_grad=True)
    x = torch.linspace(-2, 2, 6, dtype=dtype).reshape(2, 3)
    given = x.clone()
    got = sample(lambda x_t, t: weight * x_t, SHORT, x, steps=4)
    assert got.dtype == dtype and not got.requires_grad and torch.equal(x, given)


@solvers
def test_a_clipped_run_ends_in_the_range_of_images_whatever_the_network_says(sample):
    estimates = []
    x = torch.linspace(-3, 3, 100)[:, None]
    got = sample(wild, SHORT, x, steps=7, on_step=lambda t, x, x_0: estimates.append(x_0))
    assert got.abs().max() <= 1 and all(x_0.abs().max() == 1 for x_0 in estimates)
    assert sample(wild, SHORT, x, steps=7, clip=False).abs().max() > 2


@every
def test_the_last_state_that_is_reported_is_the_result(sample):
    states = []
    got = sample(half, SHORT, torch.ones(2, 3), steps=5, on_step=lambda t, x, x_0: states.append(x))
    assert torch.equal(states[-1], got) and len(states) == 5


@every
def test_a_schedule_of_one_step_is_a_schedule(sample):
    got = sample(half, Schedule([0.3]), torch.ones(2, 3), steps=1, clip=False)
    assert got.isfinite().all()


def test_the_noise_ratio_is_that_of_a_chain_walked_step_by_step():
    scale, var = 1.0, 0.0
    for t, beta in enumerate(SHORT.beta[1:].tolist(), start=1):
        scale, var = scale * (1 - beta) ** 0.5, (1 - beta) * var + beta
        assert noise_ratio(SHORT, t) == pytest.approx(var**0.5 / scale, rel=1e-12)


# Grids


@pytest.mark.parametrize("T", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("spacing", ["even", "quadratic", "trailing", "leading", "linspace"])
def test_every_grid_falls_to_0_in_as_many_steps_as_were_asked_for(T, spacing):
    for steps in range(1, T + 1, max(1, T // 50)):
        grid = grid_of_t(T, steps, spacing)
        assert len(grid) == steps + 1 and grid[-1] == 0 and grid[0] <= T
        assert all(later < earlier for earlier, later in pairwise(grid)) and all(type(t) is int for t in grid)


def test_what_the_docstring_says_of_the_grids_is_so():
    for T, steps in ((100, 10), (1000, 25), (12, 4)):
        assert grid_of_t(T, steps, "trailing") == grid_of_t(T, steps, "even") == strided_t(T, steps)
        assert grid_of_t(T, steps, "leading")[0] == T - T // steps + 1
        assert grid_of_t(T, steps, "linspace")[:2] == [T, round(T - (T - 1) / (steps - 1))]
        assert grid_of_t(T, steps, "linspace")[-2] == grid_of_t(T, steps, "leading")[-2] == 1
        assert grid_of_t(T, steps, "quadratic")[0] == T
        assert grid_of_t(T, steps, "quadratic")[-2] == max(1, round(T / steps**2))
    assert grid_of_t(10, 4, "trailing") == [10, 8, 5, 2, 0] and strided_t(10, 4) == [10, 8, 5, 3, 0]
    assert grid_of_t(100, 1, "linspace") == [1, 0]


def test_an_unknown_spacing_is_refused_and_the_others_are_named():
    with pytest.raises(ValueError, match="among even, quadratic, trailing, leading, linspace; got 'karras'"):
        grid_of_t(100, 10, "karras")


# Inversion and interpolation


def test_the_way_up_and_down_comes_back_with_an_error_that_halves_with_the_step():
    x_0 = quantiles()[10:-10]
    errors = []
    for steps in (50, 100, 200, 400):
        times = grid_of_t(1000, steps, "quadratic")
        up = ddim_invert(EXACT, SCHEDULE, x_0, times=times, clip=False)
        down = ddim_sample(EXACT, SCHEDULE, up, times=times, clip=False)
        errors.append(float((down - x_0).square().mean().sqrt()))
    assert all(later < 0.65 * earlier for earlier, later in pairwise(errors)) and errors[-1] < 0.02


def test_the_noise_that_inversion_finds_is_that_of_the_quantile():
    up = ddim_invert(EXACT, SCHEDULE, quantiles(), times=grid_of_t(1000, 500, "quadratic"), clip=False)
    assert (up - START).abs().mean() < 0.02


def test_between_two_noises_the_arc_keeps_the_length_and_the_line_does_not():
    x, y = torch.randn(2, 50, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = y * (x.flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
    lengths = slerp(x, y, 0.5).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert (lengths - 1).abs().max() < 1e-12
    assert (((x + y) / 2).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1) - 0.5**0.5).abs().max() < 0.1


def test_ends_of_the_arc_are_its_ends_and_impossible_ones_are_refused():
    x, y = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(slerp(x, y, 0.0), x) and torch.equal(slerp(x, y, 1.0), y)
    with pytest.raises(ValueError, match="no arc is the shortest"):
        slerp(x, -x, 0.5)
    with pytest.raises(ValueError, match=r"of one shape, got \(4, 5\) and \(2, 5\)"):
        slerp(x, y[:2], 0.5)
