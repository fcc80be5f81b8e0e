"""Where a result differs from the one expected, and what kind of difference that is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.checks.record import Call

ROUNDING = 1e-12  # what two right ways to compute a number may differ by, relative to the largest number beside it


@dataclass
class Difference:
    """What came and what was expected, in a sentence; advice, where the kind of difference is known; else fallback."""

    text: str
    advice: str
    fallback: str


def shape_of(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, (Tensor, np.ndarray)) else ()


def items(value: Any) -> dict[str, Tensor] | None:
    """The numbers in a result, by what to call them: "" if there is one tensor only; None if it is something else."""
    if isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
        return {"": torch.as_tensor(value).detach().cpu()}
    if isinstance(value, (tuple, list)):
        found = {}
        for i, part in enumerate(value, start=1):
            inside = items(part)
            if inside is None:
                return None
            found |= {f"result {i}{'.' * bool(name)}{name}": x for name, x in inside.items()}
        return found
    if callable(value) or isinstance(value, nn.Module):
        return None
    tables = {name: x for name, x in getattr(value, "__dict__", {}).items() if isinstance(x, Tensor)}
    return {name: x.detach().cpu() for name, x in tables.items()} or None


def difference(call: Call, reference: Callable | None, names: Sequence[str]) -> Difference | None:
    """The largest difference from what a right function returns for this call; None if there is none, or none known."""
    if reference is None or call.error is not None:
        return None
    try:
        expected = call.replay(reference)
    except Exception:
        return None
    right, got = items(expected), items(call.result)
    if right is None:
        return None
    if got is None or got.keys() != right.keys():
        came, asked = _kind(call.result, got), _kind(expected, right)
        made = ": ddpm_lib.diffusion.schedule.Schedule(beta) makes one of β_1..β_T" if asked == "a Schedule" else ""
        return Difference(f"It returned {came}, where {asked} is expected.", "", f"Return {asked}{made}.")
    for name, x in got.items():
        if x.shape != right[name].shape:
            return _of_shape(name, tuple(x.shape), tuple(right[name].shape), call, names)
    if isinstance(call.result, Tensor) and isinstance(expected, Tensor) and not expected.is_floating_point():
        if call.result.dtype != expected.dtype:
            came, asked = (str(x.dtype).removeprefix("torch.") for x in (call.result, expected))
            return Difference(f"It returned {came}, where {asked} is expected.", "", f"Return whole numbers, {asked}.")
    if any(isinstance(value, torch.Generator) for value in (*call.args, *call.options.values())):
        return None  # drawn in another order, it may be right all the same
    first = next((name for name in got if _size(got[name], right[name])), None)  # of tables, others follow from it
    return None if first is None else _of_values(first, got[first], right[first], call, names)


def same(call: Call, function: Callable) -> bool | None:
    """Whether a function returns for this call what the examined one did; None where that cannot be told."""
    try:
        other = call.replay(function)
    except Exception:
        return None
    size, got, there = gap(call.result, other), items(call.result), items(other)
    if size is None or got is None or there is None:
        return None
    return size <= 1e-9 and all(x.dtype == there[name].dtype for name, x in got.items())


def gap(value: Any, other: Any) -> float | None:
    """By how much two results differ, relative to the largest number of the other; None where they hold no numbers.

    Infinite where they do not hold the same things, or not in the same shapes. Dtypes may differ.
    """
    got, there = items(value), items(other)
    if got is None or there is None:
        return None
    if got.keys() != there.keys():
        return math.inf
    if any(x.shape != there[name].shape for name, x in got.items()):
        return math.inf
    return max((_size(x, there[name]) for name, x in got.items()), default=0.0)


def _kind(value: Any, parts: dict[str, Tensor] | None) -> str:
    if isinstance(value, (tuple, list)) and parts is not None:
        return f"{len(value)} results"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"an array {value.shape}"
    return a_type(value)


def a_type(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _size(got: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest number expected; 0 where it is rounding."""
    if right.numel() == 0:
        return 0.0
    got, right = got.double(), right.double()
    agree = (got == right) | (got.isnan() & right.isnan())
    if agree.all():
        return 0.0
    gap = torch.where(agree, 0.0, (got - right).abs())
    gap = torch.where(gap.isnan(), math.inf, gap)
    size = float((gap / right.abs().where(right.isfinite(), 0.0).max().clamp(min=1e-300)).max())
    if size > ROUNDING:
        return size
    alone = float((gap / right.abs().clamp(min=1e-300)).max())  # a number that is small beside the others
    return size if alone > 1e-9 else 0.0


def _place(got: Tensor, right: Tensor) -> tuple[int, ...]:
    got, right = got.double(), right.double()
    gap = torch.where((got == right) | (got.isnan() & right.isnan()), 0.0, (got - right).abs())
    gap = torch.where(gap.isnan(), math.inf, gap)
    if float(gap.max()) <= ROUNDING * float(right.abs().max()):
        gap = gap / right.abs().clamp(min=1e-300)
    return tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))


def _of_shape(name: str, came: tuple, asked: tuple, call: Call, names: Sequence[str]) -> Difference:
    what = f"{name.capitalize()} has shape" if name else "It returned shape"
    like = next((arg for arg, x in zip(names, call.args, strict=False) if shape_of(x) == asked and asked), None)
    fallback = (
        f"The result must have {f'the shape of {like}, {asked}' if like else f'the shape {asked}'}: look at what "
    )
    fallback += "sums, means or broadcasting do to it."
    return Difference(f"{what} {came}, where {asked} is expected.", "", fallback)


def _of_values(name: str, got: Tensor, right: Tensor, call: Call, names: Sequence[str]) -> Difference:
    place = _place(got, right)
    came, asked = float(got[place]), float(right[place])
    digits = next((d for d in (4, 7, 10, 13) if f"{came:.{d}g}" != f"{asked:.{d}g}"), 17)
    at = _t_at(name, place, got, call, names)
    where = [f"t = {at}"] if at is not None else []
    if place:
        where.append(f"index {place if len(place) > 1 else place[0]}")
    what = f"{name} is" if name and name[0] != "r" else (f"{name.capitalize()} is" if name else "It returned")
    there = f" at {', '.join(where)}," if where else ","
    text = f"{what} {came:.{digits}g}{there} where {asked:.{digits}g} is expected."
    advice = _pattern(got, right, at, call) or _only_some_t(got, right, call, names)
    beside = "" if at is None else f" at t = {at}"
    fallback = f"Compute this one number{beside} by hand from the equation, and compare factor by factor."
    return Difference(text, advice, fallback)


def _t_at(name: str, place: tuple[int, ...], got: Tensor, call: Call, names: Sequence[str]) -> int | None:
    """The t to which an entry of the result belongs: by the argument t, or by the place in a schedule's table."""
    t = dict(zip(names, call.args, strict=False)).get("t")
    if isinstance(t, int):
        return t
    if isinstance(t, Tensor) and not t.is_floating_point() and got.shape[: t.ndim] == t.shape:
        return int(t[place[: t.ndim]])
    return place[0] if name in ("beta", "alpha", "alpha_bar") and len(place) == 1 else None


def _only_some_t(got: Tensor, right: Tensor, call: Call, names: Sequence[str]) -> str:
    """Which t are wrong, where others are right."""
    t = dict(zip(names, call.args, strict=False)).get("t")
    if not isinstance(t, Tensor) or t.ndim != 1 or len(t) != len(got) or got.ndim == 0:
        return ""
    told = [i for i in range(len(t)) if (right[i] != 0).any() or _size(got[i], right[i])]  # 0 is soon right
    wrong = {i for i in told if _size(got[i], right[i])}
    of_wrong, of_right = ({int(t[i]) for i in part} for part in (wrong, set(told) - wrong))
    if len(of_right) < len(of_wrong) or of_wrong & of_right:
        return ""
    said = f"Right at t = {_list(of_right)}, wrong at t = {_list(of_wrong)}"
    if of_wrong == {1}:
        return f"{said}: look at the first step, where ᾱ_(t−1) is ᾱ_0 = 1."
    return f"{said}: look at what is special there (an index, a clamp, an ε beside a small number)."


def _list(numbers: set[int]) -> str:
    listed = sorted(numbers)
    return ", ".join(map(str, listed[:6])) + (", …" if len(listed) > 6 else "")


def _pattern(got: Tensor, right: Tensor, t: int | None, call: Call) -> str:
    """The kind of difference, where all numbers show the same one."""
    if not got.double().isfinite().all() and right.double().isfinite().all():
        return "NaN or infinity: look for a division by 0, or a root or logarithm of what is not positive."
    given = {x.dtype for x in call.args if isinstance(x, Tensor) and x.is_floating_point()}
    narrow = got.is_floating_point() and got.dtype != torch.float64 and right.dtype == torch.float64
    got_64, right_64 = got.double().flatten(), right.double().flatten()
    if not got.is_floating_point() and right.is_floating_point():
        return f"The result's dtype is {str(got.dtype).removeprefix('torch.')}: do not round, and do not use integers."
    rounded = bool((got_64 == got_64.float().double()).all()) and not bool(
        (right_64 == right_64.float().double()).all()
    )
    size = _size(got, right)
    if size < 1e-4 and (narrow or rounded):
        return "float32 arithmetic: compute in float64 here, with all tables and tensors made on the way."
    if given == {torch.float32} and size < 0.01:
        return "The arguments are float32 here, the tables must not be: compute coefficients in float64, and cast last."
    if narrow and torch.float64 in given:
        return f"The result is {str(got.dtype).removeprefix('torch.')}: compute in float64 here, like the arguments."
    if size < 3e-6:
        return "Of float32's size: compute in float64 here, and without an ε or a clamp, which the equation has not."
    if got_64.numel() > 1 and torch.allclose(got_64.sort()[0], right_64.sort()[0], 1e-9, 0):
        return "The numbers are right, and in the wrong order: look at how axes are transposed, flipped or indexed."
    if not (right_64 != 0).all():
        return ""
    ratio = got_64 / right_64
    if got_64.numel() > 1 and float(ratio.abs().max()) == 0:
        return "Everything is 0: look for a factor that is 0, or a result that was never filled in."
    simple = got_64.numel() > 1 or min(abs(float(ratio[0]) - x) for x in (-2, -1, -0.5, 0.5, 2)) < 1e-9
    if simple and torch.allclose(ratio, ratio[0], 1e-9, 0):
        if math.isclose(float(ratio[0]), -1, rel_tol=1e-9):
            return "Everything has the wrong sign."
        return f"Everything is {float(ratio[0]):.5g} times what is expected: look for a constant factor."
    for power, what in ((0.5, "the root"), (2.0, "the square"), (-1.0, "the inverse"), (-0.5, "one over the root")):
        if (right_64 > 0).all() and torch.allclose(got_64, right_64**power, 1e-9, 0):
            return f"The result is {what} of what is expected: variance or deviation, a ratio or its inverse?"
    return ""
