"""How a check goes through its cases, and what it asks besides values."""

import math

import numpy as np
import pytest
import torch

from ddpm_lib.checks.guard import Watched, apart_each, relative, slope_gap, until
from ddpm_lib.diffusion.schedule import Schedule

X = torch.linspace(-1.5, 2, 6, dtype=torch.float64).reshape(2, 3)


def test_the_measure_is_the_largest_distance():
    assert until(10)(lambda f: iter([1.0, f(2.0), 0.5]))(lambda x: x + 1) == 3.0


def test_the_measure_stops_at_the_first_distance_that_rejects():
    """So a version that is rejected already does not meet the cases at which it would raise."""

    @until(10)
    def measure(f):
        yield 2.0
        yield f(12.0)
        raise RuntimeError("not to be reached")

    assert measure(lambda x: x) == 12.0
    with pytest.raises(RuntimeError, match="not to be reached"):
        measure(lambda x: x - 5)


def test_nan_is_infinitely_far_and_is_not_lost_among_others():
    assert until(10)(lambda f: iter([1.0, math.nan, 2.0]))(None) == math.inf


def test_the_measure_keeps_name_and_docstring():
    @until(10)
    def measure(f):
        """f(x) doubles."""
        yield 0.0

    assert (measure.__name__, measure.__doc__) == ("measure", "f(x) doubles.")


def test_apart_each_asks_for_all_results():
    assert apart_each((X, X + 1), (X, X)) == 1.0
    for got in ((X,), (X, X, X)):
        with pytest.raises(ValueError, match="zip"):
            apart_each(got, (X, X))


def test_relative_divides_by_the_expected_size_or_by_the_floor():
    assert relative([1.5, -3.0], [1.0, -4.0]) == 0.5
    assert relative([1e-9 + 1e-12], [1e-9]) == pytest.approx(1e-3)
    assert relative([1e-9 + 1e-12], [1e-9], 1.0) == pytest.approx(1e-12, rel=1e-3)
    with pytest.raises(ValueError, match=r"expected shape \(1,\), got \(2,\)"):
        relative([1.0, 1.0], [1.0])


def square(x):
    return x**2, x.sum()


def overwrites(x):
    result = square(x.clone() if isinstance(x, torch.Tensor) else x.copy())
    x[...] = 0
    return result


class Counts:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x**2 + self.calls, x.sum()


class Buffer:
    """The result of one call is written over by the next."""

    def __init__(self):
        self.kept = torch.zeros(2, 3, dtype=torch.float64)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.kept.copy_(x + self.calls)


@pytest.mark.parametrize("x", [X, X.numpy()], ids=["tensor", "array"])
def test_a_function_without_memory_that_leaves_its_arguments_alone_has_no_fault(x):
    watched = Watched(square)
    assert np.array_equal(watched(x)[0], x**2)
    assert watched.fault == 0


@pytest.mark.parametrize("x", [X, X.numpy()], ids=["tensor", "array"])
@pytest.mark.parametrize("function", [overwrites, Counts(), Buffer(), lambda x: torch.randn(2)])
def test_writing_into_an_argument_remembering_and_drawing_are_faults(function, x):
    if isinstance(function, Buffer):
        x = torch.as_tensor(x)
    before = torch.as_tensor(x).clone()
    watched = Watched(function)
    watched(x)
    assert watched.fault == math.inf
    assert np.array_equal(x, before.numpy())  # and the next case gets the arguments as they were


def test_a_fault_stays():
    watched = Watched(overwrites)
    watched(X)
    watched.function = square
    watched(X)
    assert watched.fault == math.inf


def test_tables_inside_an_argument_are_watched_too():
    def shifts(schedule):
        schedule.alpha_bar[1:] = schedule.alpha_bar[:-1].clone()
        return 1.0

    for function, fault in ((shifts, math.inf), (lambda schedule: schedule.alpha_bar[1] * 2, 0)):
        watched, schedule = Watched(function), Schedule([0.1, 0.2])
        watched(schedule)
        assert watched.fault == fault
        assert torch.equal(schedule.alpha_bar, Schedule([0.1, 0.2]).alpha_bar)


def test_nan_twice_is_the_same_result():
    watched = Watched(lambda x: x * math.nan)
    watched(X)
    assert watched.fault == 0


def test_a_gradient_passes_through_a_watched_function():
    leaf = X.clone().requires_grad_()
    Watched(square)(leaf)[0].sum().backward()
    assert torch.equal(leaf.grad, 2 * X)


@pytest.mark.parametrize(
    ("function", "lets_through"),
    [
        (lambda x, y: (x.sin() * y, y.exp()), True),
        (lambda x, y: (x.sin() * y.detach(), y.exp()), False),
        (lambda x, y: (x.detach().sin() * y, y.exp()), False),
        (torch.no_grad()(lambda x, y: (x.sin() * y, y.exp())), False),
        (lambda x, y: x.sin() * y, True),
    ],
    ids=["right", "y is detached", "x is detached", "no gradient at all", "one result"],
)
def test_slope_gap_sees_whether_gradients_pass(function, lets_through):
    gap = slope_gap(function, X, X.flip(0) + 3)
    assert gap < 1e-9 if lets_through else gap > 1e-3
