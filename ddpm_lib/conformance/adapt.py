"""From other conventions to the book's: t counted from 0, tables of length T, deviations, log-variances, tuples.

A check calls f(schedule, …, t) with t in 1..T. Most libraries build an object from β_1..β_T once, and count t from 0.
An adapter is a function of the book's form that calls theirs; what it needs over and over stands here.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.diffusion.schedule import Schedule


def betas(schedule: Schedule) -> Tensor:
    """β_1..β_T, (T,), float64: most libraries' table."""
    return schedule.beta[1:].clone()


def alphas_cumprod(schedule: Schedule) -> Tensor:
    """ᾱ_1..ᾱ_T, (T,), float64."""
    return schedule.alpha_bar[1:].clone()


def from_zero(t: int | Tensor, like: Tensor | None = None) -> Tensor:
    """t counted from 0, as a tensor of t's shape; of an int, and with like (B, ...), as one entry for each image."""
    index = torch.as_tensor(t) - 1
    return index.expand(len(like)) if like is not None and index.ndim == 0 else index


def once_a_schedule(build: Callable[[Schedule], Any]) -> Callable[[Schedule], Any]:
    """build(schedule), called once for each schedule: a library's object, which takes longer to make than to use."""
    made: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    @functools.wraps(build)
    def get(schedule: Schedule) -> Any:
        if schedule not in made:
            made[schedule] = build(schedule)
        return made[schedule]

    return get


def for_any_t(function: Callable[[Schedule, Tensor], Tensor]) -> Callable[[Schedule, int | Tensor], Tensor]:
    """From f(schedule, index), index (B,) counted from 0, to one of (schedule, t), with an int or t of any shape."""

    @functools.wraps(function)
    def adapted(schedule: Schedule, t: int | Tensor) -> Tensor:
        index = from_zero(t)
        return function(schedule, index.reshape(-1)).reshape(index.shape)

    return adapted


def part(function: Callable, index: int) -> Callable:
    """The function that returns one of a tuple of results: mean, variance, log-variance, say."""
    return _after(function, lambda results: results[index])


def from_betas(function: Callable) -> Callable:
    """The Schedule, where the function returns β_1..β_T, (T,)."""
    return _after(function, Schedule)


def from_std(function: Callable) -> Callable:
    """The variance, where the function returns a standard deviation."""
    return _after(function, lambda std: std**2)


def from_log_var(function: Callable) -> Callable:
    """The variance, where the function returns its logarithm."""
    return _after(function, lambda log_var: log_var.exp())


def _after(function: Callable, change: Callable[[Any], Any]) -> Callable:
    @functools.wraps(function)
    def adapted(*args: Any, **options: Any) -> Any:
        return change(function(*args, **options))

    return adapted
