"""All that a check asks of a function, and what comes of it: also beyond the first case that fails, and in float32."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.checks.compare import gap
from ddpm_lib.checks.equation import Check
from ddpm_lib.checks.record import Call, kept
from ddpm_lib.diffusion.schedule import Schedule

CALLS = 300  # that are kept of one function: more than any check of a formula makes


@dataclass
class Trace:
    """All cases of a check, beyond the first that fails: the distances, and the calls that were made on the way."""

    function: Callable
    distances: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    ended: bool = True
    _against: tuple | None = None

    @classmethod
    def of(cls, found: Check, function: Callable) -> "Trace":
        trace = cls(function)

        @functools.wraps(function, updated=())
        def heard(*args: Any, **options: Any) -> Any:
            call = Call(tuple(map(kept, args)), {name: kept(value) for name, value in options.items()})
            call.state = torch.get_rng_state()
            result = call.result = function(*args, **options)
            call.result = kept(result)
            if len(trace.calls) < CALLS:
                trace.calls.append(call)
            return result

        cases = getattr(found.measure, "__wrapped__", lambda f: [found.measure(f)])
        try:
            for distance in cases(heard):
                trace.distances.append(float(distance))
        except KeyboardInterrupt:
            raise
        except BaseException:
            trace.ended = False
        return trace

    def against(self, own: Callable | None) -> tuple[list[float | None], list[float | None]]:
        """How far each call's result is from the right one, and the right one computed in float32; computed once."""
        if self._against is None:
            exact = [result_of(call, own) for call in self.calls]
            right = [between(call.result, result) for call, result in zip(self.calls, exact, strict=True)]
            single = [result_of(call, own, rounded) for call in self.calls]
            self._against = right, [between(*pair) for pair in zip(single, exact, strict=True)]
        return self._against


def in_single(own: Callable, like: Callable) -> Callable:
    """The function with its arguments rounded to float32. like: whose signature it shows."""

    @functools.wraps(like, updated=())  # a check tries what is optional where it is offered
    def single(*args: Any, **options: Any) -> Any:
        return own(*map(rounded, args), **{name: rounded(value) for name, value in options.items()})

    return single


def rounded(value: Any) -> Any:
    """The same value with all its numbers in float32; a schedule with tables that were computed in float32.

    NaN for a schedule with less noise than float32 can tell from none, or less signal. A function, or a network, keeps
    its own precision, and its results are rounded.
    """
    if isinstance(value, nn.Module) or inspect.isroutine(value):
        return lambda *args: rounded(
            value(*(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args))
        )
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype == np.float64 else value
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, (tuple, list)):
        return type(value)(map(rounded, value))
    if isinstance(value, Schedule):
        single = copy.copy(value)
        beta = value.beta.float()
        single.beta, single.alpha = beta.double(), (1 - beta).double()
        single.alpha_bar = torch.cumprod(1 - beta, 0).double()
        if not ((single.alpha_bar[1:] > 0) & (single.alpha_bar[1:] < 1)).all():  # no schedule any more
            single.beta, single.alpha, single.alpha_bar = (x * math.nan for x in (beta, beta, beta.double()))
        return single
    return value


def result_of(call: Call, function: Callable | None, change: Callable[[Any], Any] = lambda value: value) -> Any:
    """What another function returns for the same arguments, or for changed ones; None where it raises an exception."""
    changed = {name: change(value) for name, value in call.options.items()}
    other = Call(tuple(map(change, call.args)), changed, state=call.state)
    try:
        return None if function is None else other.replay(function)
    except Exception:
        return None


def between(value: Any, other: Any) -> float | None:
    """By how much two results differ, relative to the other; None where that cannot be told."""
    try:
        return None if value is None or other is None else gap(value, other)
    except Exception:  # of a result that raises when it is looked at
        return None
