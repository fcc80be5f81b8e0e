"""One function against its equation's check: whether it holds, by how much it does not, and which mistake it makes."""

import itertools
import math
import textwrap
from dataclasses import dataclass
from typing import Any

from ddpm_lib.checks import find
from ddpm_lib.checks.compare import a_type
from ddpm_lib.checks.equation import Check, Wrong
from ddpm_lib.checks.message import DoesNotHold, NothingToCheck, name_of
from ddpm_lib.checks.raised import said
from ddpm_lib.checks.report import failure
from ddpm_lib.conformance.trace import Trace, between, in_single, result_of

SINGLE = 2.0**-23  # float32's distance from 1 to the next number
ROUNDED = "in single precision"  # a wrong version of this name is the right formula in float32
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

    @property
    def advice(self) -> str:
        """The help's last sentence: what to look at."""
        return self.help.replace("\n  ", " ").split("\n")[-1]

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
    sentences = told.replace("\n  ", " ").split("\n")
    if not callable(function):
        return Verdict(name, label, "raised", f"{label} is no function", distance, told)
    if error is not None and "the function raised" in sentences[0]:
        return Verdict(name, label, "raised", f"{type(error).__name__}: {said(error)}", distance, told)
    trace = Trace.of(found, function)
    known = known_mistake(found, trace, distance)
    known = None if known is not None and known.what == ROUNDED else known
    reached, times = as_in_float32(found, trace) if known is None else (distance, math.inf)
    if times <= ROOM and reached > found.passes:
        line = f"to float32 ({reached:.0e}), not {found.precision}: {found.route}"
        return Verdict(name, label, "float32", line.replace("e-0", "e-"), distance, told)
    known = known or known_mistake(found, trace, distance, loose=True)
    size = f"by {distance:.2g}".replace("e-0", "e-") if distance < 1e9 else ""
    if known:
        line = f"{size}{': ' * bool(size)}{known.what}; from {found.route}"
    elif times <= ROOM:  # in float64: then float32 is no excuse for what goes wrong where it gives out
        line = f"{size} from {found.route}, in extreme cases alone".strip()
    elif times < 1000:
        line = f"by {reached:.0e}, {times:.0f} times what float32 costs the right formula: {found.route}"
    elif size:
        line = f"{size} from {found.route}"
    else:  # nothing finite came, or a promise is broken that has no size: what the message says of it
        line = (sentences[2:3] or ["beyond measure"])[0]
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


def known_mistake(found: Check, trace: Trace, distance: float, loose: bool = False) -> Wrong | None:
    """The registered wrong version that gives what the function gave, in every call of the check that can be compared.

    loose: to float32's precision, or what is left of it. Where results are not numbers, or are right: the wrong version
    that is off by as much.
    """
    right, noise = trace.against(found.own)
    least = max(ROOM * SINGLE, 0.0 if found.precision.startswith("|z|") else found.passes)
    room = [max(ROOM * (n or 0.0), least) if loose else 1e-9 for n in noise]
    usable = [i for i, size in enumerate(right) if size is not None and room[i] < 1e-2]
    telling = [i for i in usable if right[i] > 100 * room[i]]
    alike = []
    for wrong in found.wrong_versions if telling else ():
        sizes = ((i, between(trace.calls[i].result, result_of(trace.calls[i], wrong.function))) for i in usable)
        told = list(itertools.takewhile(lambda pair: pair[1] is None or pair[1] <= room[pair[0]], sizes))
        if len(told) == len(usable) and any(size is not None and i in telling for i, size in told):
            alike.append(wrong)
    if not alike and not loose and not telling:
        as_far = [wrong for wrong in found.wrong_versions if _farther(found, wrong, distance) < 1e-6]
        alike = as_far if len(as_far) == 1 else []  # some mistakes go beyond a scale's end: all of them are as far
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

    That is the book's own with its arguments rounded, or the wrong version that is wrong in its precision alone: the
    farther of the two. Of a schedule, made of a few numbers, only the second computes in float32. Cases that they
    cannot do in float32 (with noise of variance 2⁻⁴⁵, say) decide nothing. Infinitely many times, where there is
    nothing to compare with.
    """
    own, reached, times = found.own, 0.0, 0.0
    if own is None or found.precision.startswith("|z|") or not trace.ended:
        return math.inf, math.inf

    versions = [own, *(wrong.function for wrong in found.wrong_versions if wrong.what == ROUNDED)]
    singles = [Trace.of(found, in_single(version, trace.function)) for version in versions]
    singles = [single for single in singles if single.ended and len(single.distances) == len(trace.distances)]
    if not singles:
        return math.inf, math.inf
    for distance, *each in zip(trace.distances, *(single.distances for single in singles), strict=True):
        if (can := max(each)) < 0.1:
            distance = distance if distance == distance else math.inf
            reached = max(reached, distance)
            times = max(times, distance / max(can, found.passes / ROOM, SINGLE))
    return reached, times
