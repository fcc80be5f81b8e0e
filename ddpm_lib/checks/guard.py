"""How a check goes through its cases, and what it asks besides values: the same result again, and gradients."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.checks import apart, largest
from ddpm_lib.checks.record import copied, current, note

STENCIL = ((-3, -1 / 60), (-2, 3 / 20), (-1, -3 / 4), (1, 3 / 4), (2, -3 / 20), (3, 1 / 60))  # of sixth order


def until(rejects: float) -> Callable[[Callable[[Callable], Iterator[float]]], Callable[[Callable], float]]:
    """Decorator: cases(f) yields one distance after another; the measure is the largest, up to the first >= `rejects`.

    So common slips are told apart by ordinary cases, and what comes later meets only what has passed these: extreme
    values, at which a wrong version may well divide by 0. NaN is infinitely far from the number that was expected.
    """

    def decorate(cases: Callable[[Callable], Iterator[float]]) -> Callable[[Callable], float]:
        @functools.wraps(cases)
        def measure(function: Callable) -> float:
            worst = 0.0
            for distance in cases(function):
                worst = max(worst, distance if distance == distance else math.inf)
                if record := current():
                    record.close(distance)
                if worst >= rejects:
                    break
            return worst

        return measure

    return decorate


def apart_each(got: Iterable, expected: Iterable) -> float:
    """The largest of `apart` over several results. Raises ValueError if their number is not the expected one."""
    return largest(*(apart(*pair) for pair in zip(got, expected, strict=True)))


def relative(got: Any, expected: Any, floor: float = 0.0) -> float:
    """The largest difference relative to |expected|, or to `floor` where that is larger. Both must not be 0."""
    got, expected = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (got, expected))
    if got.shape != expected.shape:
        raise ValueError(f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    size = expected.abs().clamp(min=floor)
    return apart(got, expected, size)


class Watched:
    """A function, called twice for each call. `fault` is infinite once a call has changed its arguments or its result.

    What a function keeps between calls, draws at random or writes into its arguments makes later results wrong, though
    the first one was right.
    """

    def __init__(self, function: Callable):
        self.function, self._faults = function, []

    @property
    def fault(self) -> float:
        for said in self._faults[:1]:
            note(math.inf, *said)
        return math.inf if self._faults else 0.0

    def __call__(self, *args: Any) -> Any:
        given = tuple(copied(arg) for arg in args)  # so that what is written into them reaches no other case
        result = self.function(*given)
        first = _numbers(result)
        again = _numbers(self.function(*(copied(arg) for arg in args)))
        if not _same(_numbers(given), _numbers(args)):
            place = next(
                (i for i, pair in enumerate(zip(given, args, strict=True)) if not _same(*map(_numbers, pair))), None
            )
            self._faults.append(
                (
                    "It changes its argument {} in place.",
                    "Work on a copy: no += or out= on it, no names that end in _.",
                    place,
                )
            )
        if not (_same(_numbers(result), first) and _same(again, first)):
            self._faults.append(
                (
                    "Called twice with the same arguments, it gives two results.",
                    "Look for random draws of its own, and for what it keeps from one call to the next.",
                )
            )
        return result


def _numbers(value: Any) -> list[np.ndarray]:
    """Copies of all numbers in a value: in tuples and lists, arrays, tensors, and objects that hold some of these."""
    if isinstance(value, (tuple, list)):
        return [array for part in value for array in _numbers(part)]
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().clone()
        return [(numbers.double() if numbers.is_floating_point() else numbers).numpy()]
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        return [np.array(value)]
    parts = getattr(value, "__dict__", {}).values()
    return _numbers([part for part in parts if isinstance(part, (Tensor, np.ndarray, list, float))])


def _same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(lambda a, b: np.array_equal(a, b, equal_nan=True), first, second))


def slope_gap(function: Callable, *args: Tensor, step: float = 1e-3) -> float:
    """How far autograd is from differences of the function's own values, along one random direction of all arguments.

    0 for a function that is right and lets gradients through; one that detaches an argument is off by its whole slope.
    """
    random = torch.Generator().manual_seed(0)
    direction = [torch.randn(a.shape, generator=random, dtype=torch.float64) for a in args]

    def total(*values: Tensor) -> Tensor:
        result = function(*values)
        parts = result if isinstance(result, tuple) else (result,)
        weights = torch.Generator().manual_seed(1)
        return sum((p * torch.randn(p.shape, generator=weights, dtype=p.dtype)).sum() for p in parts)

    leaves = [a.detach().clone().requires_grad_() for a in args]
    value = total(*leaves)
    slope = 0.0
    if value.requires_grad:
        grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        slope = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
    differences = sum(
        factor * float(total(*(a + k * step * d for a, d in zip(args, direction, strict=True)))) / step
        for k, factor in STENCIL
    )
    gap = apart(slope, differences)
    if current():
        gradient_note(gap, slope, differences)
    return gap


def gradient_note(gap: float, slope: float, differences: float) -> None:
    """Leave a note on a slope by autograd that is not the slope of the function's values."""
    note(
        gap,
        f"Its gradient is wrong: autograd says {slope:.4g}, its own values give {differences:.4g}.",
        "Let gradients pass: no detach, no_grad, .data, .item() or NumPy on the way, and nothing cut off or rounded.",
    )


def fault(found: bool) -> float:
    """Infinite where a promise that has no size is broken, else 0: no two of them are off by "exactly as much"."""
    return math.inf if found else 0.0


def accepted(call: Callable[[], Any]) -> float:
    """A fault if call() goes through, though the function's docstring says that it raises ValueError."""
    try:
        call()
    except ValueError:
        return 0.0
    note(
        math.inf,
        "It accepts these arguments, which it should refuse.",
        "Raise ValueError where arguments make no sense.",
    )
    return fault(True)
