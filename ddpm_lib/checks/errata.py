"""Appendix A in numbers: every wrong version that stands beside a check, by idea, and by how much the check refutes it.

The index is appendix A's own: from a formula as it circulates to the one that holds.
"""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ddpm_lib.checks import load_all
from ddpm_lib.checks.equation import IDEAS, NO_SOURCE, Check, Wrong
from ddpm_lib.checks.message import WIDTH
from ddpm_lib.checks.noise import NEVER


@dataclass(frozen=True)
class Erratum:
    """A wrong version beside its equation's check, which has just been run on it.

    distance: what the check returned, in its own units; it allows `check.passes`, and rejects from `check.rejects` on.
    """

    check: Check
    wrong: Wrong
    distance: float

    @property
    def caught(self) -> bool:
        return self.distance >= self.check.rejects

    @property
    def margin(self) -> float:
        """The distance in units of what is needed to be rejected; infinite where a promise was broken."""
        return self.distance / self.check.rejects

    @property
    def public(self) -> bool:
        """Whether it stands in a public place."""
        return not self.wrong.seen.startswith(NO_SOURCE)

    def __str__(self) -> str:
        """Two lines: what is wrong with which equation, then by how much it is off, and where it was seen."""
        if not math.isfinite(self.distance):
            off = "a promise broken"
        elif self.distance > 1e9:
            off = "off beyond measure"  # in units of a right value that is 0
        else:
            off = f"off by {self.distance:.2g}"
            if self.check.precision.startswith("|z|"):
                off = f"|z| = {self.distance:.0f}" if self.distance < NEVER else f"|z| of {NEVER:.0f} or more"
        where = f"; {self.wrong.seen}" if self.public else ""
        allowed = self.check.precision.removeprefix("to ")
        return f"{self.check.title}: {self.wrong.what}\n{off}, {allowed} is allowed{where}"


def errata() -> list[Erratum]:
    """Runs every check on the wrong versions beside it: in the book's order.

    Some draw from torch's global generator, whatever they are given; here it starts from the same seed each time.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [Erratum(check, wrong, float(check.measure(wrong.function))) for check, wrong in registered()]


def registered() -> Iterator[tuple[Check, Wrong]]:
    """Every check with each of its wrong versions, in the book's order; nothing is run."""
    for check in load_all().values():
        for wrong in check.wrong_versions:
            yield check, wrong


def tell(found: list[Erratum], idea: str) -> None:
    """Print the errata of one idea that stand in a public place, each with its number, and how many others there are.

    Raises ValueError unless idea is one of IDEAS.
    """
    if idea not in IDEAS:
        raise ValueError(f"expected one of {', '.join(IDEAS)}; got {idea!r}")
    found = [erratum for erratum in found if erratum.wrong.idea == idea]
    for erratum in found:
        if erratum.public:
            for part, indent in zip(str(erratum).split("\n"), ("", "    "), strict=True):
                print(textwrap.fill(part, WIDTH, initial_indent=indent, subsequent_indent="    "))
    others = sum(not erratum.public for erratum in found)
    print(f"{len(found)} of this kind, {sum(e.caught for e in found)} caught; {others} of them are only plausible")
