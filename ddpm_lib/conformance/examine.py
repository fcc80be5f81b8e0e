"""One function against its equation's check: whether it holds, by how much it does not, and which mistake it makes."""

import copy
import functools
import inspect
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.checks import find
from ddpm_lib.checks.compare import gap
from ddpm_lib.checks.equation import Check, Wrong
from ddpm_lib.checks.message import DoesNotHold, NothingToCheck, a_type, name_of
from ddpm_lib.checks.raised import said
from ddpm_lib.checks.record import Call, kept
from ddpm_lib.checks.report import failure
from ddpm_lib.diffusion.schedule import Schedule

CALLS = 300  # that are kept of one function: more than any check of a formula makes
SINGLE = 2.0**-23  # float32's distance from 1 to the next number
ROOM = 16.0  # times worse than the right formula in float32 may be what computes in float32: four of 24 bits


@dataclass(frozen=True)
class Verdict:
    """What was found of one function.

    status: "holds"; "float32", where it is as near as the right formula computed in float32, and no nearer; "off";
    "raised"; or "unknown", where there is no equation of this name. distance: in the check's units; line: what was
    found, in a few words; help: the check's message; known: the wrong version that does the same.
    """

    name: str
    function: str
    status: str
    line: str
    distance: float = math.nan
    help: str = ""
    known: Wrong | None = None

    def accepted(self, float32: bool = False) -> bool:
        """Whether it holds; with float32, also whether it holds as far as float32 reaches."""
        return self.status == "holds" or (float32 and self.status == "float32")


def examine(name: str, function: Any) -> Verdict:
    """Runs the check of this name on the function. Nothing comes of it but a verdict, unless someone presses Ctrl-C."""
    label = name_of(function) if callable(function) else a_type(function)
    try:
        found = find(name)
    except NothingToCheck as error:
        meant = str(error).partition("; ")[2]
        line = meant if meant.startswith("did you mean") else "no equation has this name; conformance --list shows all"
        return Verdict(name, label, "unknown", line)
    error, distance = None, math.inf
    try:
        distance = float(found.measure(function))
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        error = raised
    if distance <= found.passes:
        return Verdict(name, label, "holds", f"{found.precision}: {found.route}", distance)
    told = failure(found, function, distance)
    if error is not None or not callable(function):
        line = f"{type(error).__name__}: {said(error)}" if callable(function) else f"{label} is no function"
        return Verdict(name, label, "raised", line, distance, told)
    trace = Trace.of(found, function)
    known = known_mistake(found, trace, distance)
    reached, times = as_in_float32(found, trace) if known is None else (distance, math.inf)
    if times <= ROOM:
        if reached <= found.passes:
            line = f"{found.precision} where float32 can compute it, by {distance:.0e} beyond: {found.route}"
        else:
            line = f"to float32 ({reached:.0e}), not {found.precision}: {found.route}"
        return Verdict(name, label, "float32", line.replace("e-0", "e-"), distance, told)
    known = known or known_mistake(found, trace, distance, loose=True)
    size = f"by {distance:.2g}".replace("e-0", "e-") if distance < 1e9 else ""
    if known:
        line = f"{size}{': ' * bool(size)}{known.what}; from {found.route}"
    elif times < 1000:
        line = f"by {reached:.0e}, {times:.0f} times what float32 costs the right formula: {found.route}"
    elif size:
        line = f"{size} from {found.route}"
    else:  # nothing finite came, or a promise is broken that has no size: what the message says of it
        line = (told.replace("\n  ", " ").split("\n")[2:3] or ["beyond measure"])[0]
    if known and known.what not in " ".join(told.split()):
        told += "\n" + textwrap.fill(f"A known wrong version does the same: {known.what}.", 96, subsequent_indent="  ")
    return Verdict(name, label, "off", line, distance, told, known)


def conforms(name: str, function: Any, float32: bool = False) -> None:
    """Raises AssertionError with the check's message unless the function holds, or, with float32, does in float32.

    Raises ValueError for a name that no equation has.
    """
    __tracebackhide__ = True  # pytest shows the message, and where it was asked for
    found = examine(name, function)
    if found.status == "unknown":
        find(name)
    if not found.accepted(float32):
        raise DoesNotHold(found.help)


@dataclass
class Trace:
    """All cases of a check, beyond the first that fails: the distances, and the calls that were made on the way."""

    function: Callable
    distances: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    ended: bool = True

    @classmethod
    def of(cls, found: Check, function: Callable) -> "Trace":
        trace = cls(function)

        @functools.wraps(function, updated=())
        def heard(*args: Any, **options: Any) -> Any:
            call = Call(tuple(map(kept, args)), {name: kept(value) for name, value in options.items()})
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


def known_mistake(found: Check, trace: Trace, distance: float, loose: bool = False) -> Wrong | None:
    """The registered wrong version that gives what the function gave, in every call of the check that can be compared.

    loose: to float32's precision, or what is left of it. Where results are not numbers, or are right: the wrong version
    that is off by as much.
    """
    exact = [_result(call, found.own) for call in trace.calls]
    right = [_gap(call.result, result) for call, result in zip(trace.calls, exact, strict=True)]
    noise = [_gap(_result(call, found.own, rounded), result) for call, result in zip(trace.calls, exact, strict=True)]
    room = [max(ROOM * (n or 0.0), ROOM * SINGLE) if loose else 1e-9 for n in noise]
    usable = [i for i, size in enumerate(right) if size is not None and room[i] < 1e-2]
    telling = [i for i in usable if right[i] > 100 * room[i]]
    alike = []
    for wrong in found.wrong_versions if telling else ():
        sizes = {i: _gap(trace.calls[i].result, _result(trace.calls[i], wrong.function)) for i in usable}
        if all(size is None or size <= room[i] for i, size in sizes.items()):
            if any(sizes[i] is not None for i in telling):
                alike.append(wrong)
    if not alike and not loose and not telling:
        alike = [wrong for wrong in found.wrong_versions if _farther(found, wrong, distance) < 1e-6]
    return min(alike, key=lambda wrong: _farther(found, wrong, distance), default=None)


def _farther(found: Check, wrong: Wrong, distance: float) -> float:
    """By which factor a wrong version's distance differs from this one: the logarithm's size."""
    try:
        other = float(found.measure(wrong.function))
        return abs(math.log(other / distance))
    except Exception:  # of numbers that are 0 or infinite among them
        return math.inf


def as_in_float32(found: Check, trace: Trace) -> tuple[float, float]:
    """The largest distance, and how many times the distance it is, at most, of the right function computed in float32.

    Cases that the right one cannot do in float32 (with noise of variance 2⁻⁴⁵, say) decide nothing. Infinitely many
    times, where there is nothing to compare with.
    """
    own, reached, times = found.own, 0.0, 0.0
    if own is None or found.precision.startswith("|z|") or not trace.ended:
        return math.inf, math.inf

    @functools.wraps(trace.function, updated=())  # a check tries what is optional where it is offered
    def twin(*args: Any, **options: Any) -> Any:
        return own(*map(rounded, args), **{name: rounded(value) for name, value in options.items()})

    single = Trace.of(found, twin)
    if not single.ended or len(single.distances) != len(trace.distances):
        return math.inf, math.inf
    for distance, can in zip(trace.distances, single.distances, strict=True):
        if can < 0.1:
            distance = distance if distance == distance else math.inf
            reached = max(reached, distance)
            times = max(times, distance / max(can, found.passes / ROOM, SINGLE))
    return reached, times


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


def _result(call: Call, function: Callable | None, change: Callable[[Any], Any] = lambda value: value) -> Any:
    """What another function returns for the same arguments, or for changed ones; None where it raises an exception."""
    other = Call(tuple(map(change, call.args)), {name: change(value) for name, value in call.options.items()})
    try:
        return None if function is None else other.replay(function)
    except Exception:
        return None


def _gap(value: Any, other: Any) -> float | None:
    try:
        return None if value is None or other is None else gap(value, other)
    except Exception:  # of a result that raises when it is looked at
        return None
