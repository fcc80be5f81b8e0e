"""Every numbered equation has a check: an independent route to the same numbers, and wrong versions it must reject.

`holds("posterior mean", f)` runs the check of that name on f, runs it again on every registered wrong version, and
says what was shown. It raises AssertionError if f differs from the independent route, or if a wrong version is not
caught; then f runs once more, and the message says what it was given, what came, and what to look at.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lib import CHAPTER
from ddpm_lib.checks.compare import a_type, same
from ddpm_lib.checks.record import Record, current, note, record
from ddpm_lib.checks.report import WIDTH, DoesNotHold, NothingToCheck, explain, lines

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

    @property
    def own(self) -> Callable | None:
        """What the book itself computes: the statement, or the library's function that names this equation."""
        if self.statement is not None:
            return self.statement
        for module, chapter in CHAPTER.items():
            if chapter == int(self.number.partition(".")[0]) and not module.startswith("checks"):
                for value in vars(importlib.import_module(f"ddpm_lib.{module}")).values():
                    if (getattr(value, "__doc__", None) or "").startswith(f"{self.title}."):
                        return value
        return None

    @property
    def contract(self) -> str:
        """What is asked of the function: the check's docstring, in one line."""
        return "Asked for: " + " ".join((self.measure.__doc__ or f"what agrees with {self.route}").split())

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments by place, as the check's docstring gives them: "f(x, eps, beta) mixes"."""
        documented = re.search(r"\bf\(([^()]*)\)", self.measure.__doc__ or "")
        if documented:
            return [name for name in documented[1].split(", ") if not name.endswith("=")]
        return list(inspect.signature(self.statement).parameters) if self.statement else []


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
        asked = f"f({', '.join(found.arguments)})"
        raise NothingToCheck(f"{found.title}: pass the function to check, {asked}, as in holds({name!r}, f)")
    _examine(found, function)
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


def _examine(found: Check, function: Any) -> None:
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
    try:
        message = lines(*_texts(found, function, distance))
    except Exception:  # of a result, say, that raises when it is looked at
        message = lines(f"{found.title} does not hold.", found.contract)
    raise DoesNotHold(message) from error


def _texts(found: Check, function: Any, distance: float) -> list[str]:
    """What a failure says, one text after another: the title first, last what helps."""
    title = f"{found.title} does not hold"
    if not callable(function):
        asked = f"f({', '.join(found.arguments)})"
        return [f"{title}: {a_type(function)} is no function.", f"Pass a function {asked}."]
    seen = record(found.measure, function)
    if seen.error is None and seen.distance <= found.passes:
        return [
            f"{title} in a first run; in a second it does.",
            "The result must depend on the arguments alone: look for random draws, and for what is kept between calls.",
        ]
    if math.isfinite(distance):
        title += f": off by {distance:.3g} from {found.route} (allowed: {found.passes:g})"
    elif seen.raised:
        title += f": the function raised {type(seen.error).__name__}"
    elif distance != distance:
        title += ": off by nan"
    texts = explain(seen, function, found.arguments, found.own)
    known = _known(found, seen, distance)
    return [f"{title}.", *(texts[:2] if known else texts), known or ("" if texts[2:] else found.contract)]


def _known(found: Check, seen: Record, distance: float) -> str:
    """The wrong version that does the same, if one does: by the result of the last call, or by the distance."""
    if seen.error is not None:
        return ""
    for wrong in found.wrong_versions:
        verdict = same(seen.case.calls[-1], wrong.function) if seen.case.calls else None
        if verdict is False:
            continue
        try:
            known = found.measure(wrong.function)
        except Exception:
            continue
        if math.isfinite(known) and math.isclose(known, distance, rel_tol=1e-6):
            seen_at = "" if wrong.seen.startswith(NO_SOURCE) else f" ({wrong.seen})"
            return f"A known wrong version is off by exactly as much: {wrong.what}{seen_at}."
    return ""
