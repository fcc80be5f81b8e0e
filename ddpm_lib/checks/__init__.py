"""Every numbered equation has a check: an independent route to the same numbers, and wrong versions it must reject.

`holds("posterior mean", f)` runs the check of that name on f, runs it again on every registered wrong version, and
prints one line. It raises AssertionError if f differs from the independent route, or if a wrong version is not caught.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

KINDS = ("definition", "identity", "implementation")
CHECKS: dict[str, "Check"] = {}
NO_SOURCE = "no public source"


@dataclass(frozen=True)
class Wrong:
    """A wrong version: what is wrong with it, where it is in circulation, and the function itself.

    seen: a public place (owner/repository with the number of a thread, a paper, a library's default), or a text that
    begins with NO_SOURCE, where none is known and the slip is only plausible.
    """

    what: str
    seen: str
    function: Callable


@dataclass
class Check:
    """The check of one numbered equation.

    measure(f) returns how far f is from an independent route: the largest absolute difference, or |z| of a
    statistical test. f passes up to `passes`; a wrong version counts as rejected from `rejects` on.
    `statement` is the book's own side of an identity; an implementation has none, it is a function of the library.
    """

    number: str
    name: str
    kind: str
    route: str
    measure: Callable[[Callable], float]
    passes: float
    rejects: float
    precision: str
    statement: Callable | None = None
    wrong_versions: list[Wrong] = field(default_factory=list)

    def states(self, function: Callable) -> Callable:
        """Decorator: this function is what the book states (identities and definitions)."""
        self.statement = function
        return function

    def wrong(self, what: str, seen: str) -> Callable[[Callable], Callable]:
        """Decorator: this function is a wrong version, seen there."""

        def register(function: Callable) -> Callable:
            self.wrong_versions.append(Wrong(what, seen, function))
            return function

        return register

    @property
    def title(self) -> str:
        return f"Eq. {self.number} ({self.name})"


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
    """The check of this name. Raises ValueError, listing the names there are, for any other."""
    load_all()
    if name not in CHECKS:
        raise ValueError(f"there is no equation named {name!r}; the names are: {', '.join(CHECKS)}")
    return CHECKS[name]


def load_all() -> dict[str, Check]:
    """All checks by name, in the book's order."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("chapter_")):
        importlib.import_module(f"{__name__}.{module}")
    return CHECKS


def verify(name: str, function: Callable | None = None) -> Check:
    """Raises AssertionError unless `function` passes the check and all of its wrong versions are rejected.

    function: the implementation or statement to examine; None takes the book's own statement of an identity.
    """
    found = find(name)
    function = function or found.statement
    if function is None:
        raise ValueError(f"{found.title} is an implementation: pass the function to check, as in holds({name!r}, f)")
    distance = found.measure(function)
    if not distance <= found.passes:
        raise AssertionError(
            f"{found.title} does not hold: off by {distance:.3g} from {found.route} "
            f"(allowed: {found.passes:g}).{_hint(found, distance)}"
        )
    for wrong in found.wrong_versions:
        try:
            distance = found.measure(wrong.function)
        except Exception as error:
            raise AssertionError(
                f"{found.title}: the wrong version {wrong.what!r} crashed instead of being rejected"
            ) from error
        if not distance >= found.rejects:
            raise AssertionError(
                f"{found.title}: the check does not reject the wrong version {wrong.what!r}: off by {distance:.3g}, "
                f"and {found.rejects:g} is needed"
            )
    return found


def holds(name: str, function: Callable | None = None) -> None:
    """`verify`, and one line that says what was shown."""
    found = verify(name, function)
    count = len(found.wrong_versions)
    rejected = f" {count} wrong version{'s' * (count != 1)} rejected." if count else ""
    print(f"{found.title} holds: {found.route}, {found.precision}.{rejected}")


def in_circulation(name: str) -> None:
    """Print the wrong versions of an equation that stand in a public place, and where: one line each."""
    for wrong in find(name).wrong_versions:
        if not wrong.seen.startswith(NO_SOURCE):
            print(f"in circulation: {wrong.what} ({wrong.seen})")


def apart(got: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of two tensors, NaN if anything is NaN. Raises ValueError if shapes differ."""
    got, expected = (torch.as_tensor(x, dtype=torch.float64).detach().cpu() for x in (got, expected))
    if got.shape != expected.shape:
        raise ValueError(f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    return float((got - expected).abs().max())


def largest(*distances: float) -> float:
    """The largest of them; NaN if any is NaN (which Python's max would lose)."""
    return float(np.max(distances))


def _hint(found: Check, distance: float) -> str:
    for wrong in found.wrong_versions:
        try:
            known = found.measure(wrong.function)
        except Exception:
            continue
        if math.isfinite(known) and math.isclose(known, distance, rel_tol=1e-6):
            return f" A known wrong version is off by exactly as much: {wrong.what} ({wrong.seen})."
    return ""
