"""Every numbered equation has a check: an independent route to the same numbers, and wrong versions it must reject.

`holds("posterior mean", f)` runs the check of that name on f, runs it again on every registered wrong version, and
says what was shown. It raises AssertionError if f differs from the independent route, or if a wrong version is not
caught; then f runs once more, and the message says what it was given, what came, and what to look at.
"""

import difflib
import importlib
import math
import pkgutil
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.checks.equation import NO_SOURCE, Check
from ddpm_lib.checks.message import WIDTH, DoesNotHold, NothingToCheck, lines
from ddpm_lib.checks.record import current, note
from ddpm_lib.checks.report import failure

KINDS = ("definition", "identity", "implementation")
CHECKS: dict[str, Check] = {}


def check(number: str, name: str, kind: str, route: str, *, to: float | None = None) -> Callable[[Callable], Check]:
    """Decorator that registers measure(f) as the check of an equation.

    to: the tolerance of a deterministic route (rejection starts at ten times it); without it, measure returns |z|,
    which passes below 5 and rejects above 15.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")

    def register(measure: Callable[[Callable], float]) -> Check:
        if name in CHECKS or any(other.number == number for other in CHECKS.values()):
            raise ValueError(f"there is a check of Eq. {number} or of {name!r} already")
        passes, rejects, precision = (
            (5.0, 15.0, "|z| < 5") if to is None else (to, 10 * to, f"to {to:g}".replace("e-0", "e-"))
        )
        CHECKS[name] = Check(number, name, kind, route, measure, passes, rejects, precision)
        return CHECKS[name]

    return register


def find(name: str) -> Check:
    """The check of this name. Raises ValueError for any other, with the name that was meant, or all names."""
    __tracebackhide__ = True  # pytest shows where it was asked for
    load_all()
    if name in CHECKS:
        return CHECKS[name]
    known = {found.number: found.name for found in CHECKS.values()} | {other.lower(): other for other in CHECKS}
    word = str(name).lower().replace("_", " ").removeprefix("eq.").strip()
    likely = [word] if word in known else difflib.get_close_matches(word, known, 1)
    hint = f"did you mean {known[likely[0]]!r}?" if likely else f"the names are: {', '.join(CHECKS)}"
    raise NothingToCheck(f"there is no equation named {name!r}; {hint}")


def load_all() -> dict[str, Check]:
    """All checks by name, in the book's order."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("chapter_")):
        importlib.import_module(f"{__name__}.{module}")
    return CHECKS


BOOK = object()  # in place of a function: the book's own statement


def verify(name: str, function: Callable | Any = BOOK) -> Check:
    """Raises AssertionError unless `function` passes the check and all of its wrong versions are rejected.

    function: the implementation or statement to examine; without one, the book's own statement of an identity.
    Whatever the function does, nothing but AssertionError comes of it, unless someone presses Ctrl-C. ValueError is for
    the caller: an unknown name, or no function.
    """
    found = find(name)
    function = found.statement if function is BOOK else function
    if function is None:
        asked = f", for f({', '.join(found.arguments)})" if found.arguments else ""
        raise NothingToCheck(f"{found.title}: pass the function to check, as in holds({name!r}, f){asked}")
    examine(found, function)
    for wrong in found.wrong_versions:
        try:
            distance = found.measure(wrong.function)
        except Exception as error:
            raise DoesNotHold(
                lines(f"{found.title}: the wrong version {wrong.what!r} crashed instead of being rejected")
            ) from error
        if not distance >= found.rejects:
            raise DoesNotHold(
                lines(
                    f"{found.title}: the check does not reject the wrong version {wrong.what!r}: "
                    f"off by {distance:.3g}, and {found.rejects:g} is needed"
                )
            )
    return found


def holds(name: str, function: Callable | Any = BOOK) -> None:
    """`verify`, and a sentence that says what was shown."""
    found = verify(name, function)
    count = len(found.wrong_versions)
    rejected = f" {count} wrong version{'s' * (count != 1)} rejected." if count else ""
    _say(f"{found.title} holds: {found.route}, {found.precision}.{rejected}")


def in_circulation(name: str) -> None:
    """Print the wrong versions of an equation that stand in a public place, and where."""
    for wrong in find(name).wrong_versions:
        if not wrong.seen.startswith(NO_SOURCE):
            _say(f"in circulation: {wrong.what} ({wrong.seen})")


def _say(text: str) -> None:
    print(textwrap.fill(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def apart(got: Tensor, expected: Tensor, unit: Tensor | float | None = None) -> float:
    """The largest absolute difference of two tensors, NaN if anything is NaN. Raises ValueError if shapes differ.

    unit: what to measure in, one number or one for each entry.
    """
    got, expected = (torch.as_tensor(x, dtype=torch.float64).detach().cpu() for x in (got, expected))
    if got.shape != expected.shape:
        raise ValueError(f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    gap = (got - expected if unit is None else got / unit - expected / unit).abs()
    if current():
        index = np.unravel_index(int(gap.nan_to_num(math.inf).argmax()), gap.shape)
        came, asked = (float(x.expand(gap.shape)[index]) for x in (got, expected))
        at = f" at index {tuple(map(int, index))}" if index else ""
        note(float(gap.max()), f"The check came to {came:.4g}, where {asked:.4g} is expected{at}.")
    return float(gap.max())


def largest(*distances: float) -> float:
    """The largest of them; NaN if any is NaN (which Python's max would lose)."""
    return float(np.max(distances))


def examine(found: Check, function: Any) -> None:
    """Raises DoesNotHold unless the function passes: then the check runs again, and keeps what it sees."""
    distance, error = math.inf, None
    try:
        distance = float(found.measure(function))
        if distance <= found.passes:
            return
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # a student's exit() must not end who grades
        error = raised
    raise DoesNotHold(failure(found, function, distance)) from error
