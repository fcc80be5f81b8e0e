"""What `python -m ddpm_lib conformance` prints: a line for each function, then the help for each that does not hold."""

import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpm_lib.checks import load_all
from ddpm_lib.checks.equation import Check
from ddpm_lib.checks.message import WIDTH
from ddpm_lib.conformance import HOW, NotLoaded, load, registered
from ddpm_lib.conformance.examine import Verdict, examine

WORDS = {
    "holds": "hold",
    "float32": "hold to float32's precision alone",
    "off": "are off",
    "raised": "raised an exception",
    "unknown": "have a name that no equation has",
}
CONVENTIONS = """\
t runs from 1 to T: an int, or int64 of shape (B,). A schedule has T and the tables beta, alpha
and alpha_bar: float64, shape (T+1,), where entry 0 is the clean image, so alpha_bar[0] is 1 and
alpha_bar[t] is what its name says; ddpm_lib.diffusion.schedule.Schedule(beta) makes one of
β_1..β_T. Images are (B, C, H, W), float64 and sometimes float32, and so is what is returned. A
name that ends in var is a variance, in std a deviation, in log_var a logarithm. Arguments come
by place, in this order; those with a = by name. Results depend on the arguments alone (and on a
generator's state); arguments stay as they are; gradients pass.
Where your code counts from 0, or has tables of length T: ddpm_lib/conformance/adapt.py."""


@dataclass(frozen=True)
class Report:
    """The verdicts on all functions of a file, in its order. float32: what holds to float32's precision is accepted."""

    verdicts: tuple[Verdict, ...]
    float32: bool = False

    @property
    def holds(self) -> bool:
        """Whether every function is accepted."""
        return all(verdict.accepted(self.float32) for verdict in self.verdicts)

    def __getitem__(self, name: str) -> Verdict:
        """The first verdict on the equation of this name. Raises KeyError if there is none."""
        for verdict in self.verdicts:
            if verdict.name == name:
                return verdict
        raise KeyError(name)


def conformance(
    source: str | Path | ModuleType | Mapping[str, Any],
    *,
    float32: bool = False,
    say: Callable[[str], None] = print,
    explain: bool = True,
) -> Report:
    """Examines all functions that `source` registers, a line each as soon as it is known.

    source: a Python file, a dotted name, a module, or a dictionary of equations' names and functions. float32: accept
    what holds to float32's precision. say: takes each line. explain: after the lines, the checks'
    messages on what is not accepted. Raises NotLoaded where nothing can be loaded, or nothing is registered.
    """
    found = registered(load(source) if isinstance(source, (str, Path)) else source)
    if not found:
        where = getattr(source, "__name__", source) if not isinstance(source, Mapping) else "the dictionary"
        raise NotLoaded(f"{where} registers no function: {HOW}")
    width = max(len(entry.name) for entry in found)
    verdicts = []
    for entry in found:
        verdicts.append(examine(entry.name, entry.function))
        say(in_a_line(verdicts[-1], width))
    report = Report(tuple(verdicts), float32)
    if explain:
        for verdict in report.verdicts:
            if verdict.help and not verdict.accepted(float32):
                say("")
                say(verdict.help)
        say("")
    say(in_total(report))
    if not float32 and any(verdict.status == "float32" for verdict in verdicts):
        say("For code that computes in float32 on purpose: --float32, in Python float32=True, accepts it.")
    return report


def in_a_line(verdict: Verdict, width: int = 0) -> str:
    """Status, name, and what was found, in at most 96 characters."""
    start = f"{verdict.status:8} {verdict.name:{width}}  "
    return start + textwrap.shorten(verdict.line, max(20, WIDTH - len(start)), placeholder=" …")


def table(reports: Mapping[str, Report]) -> str:
    """Several libraries side by side: equations as rows, a column for each, the statuses in between."""
    names = list(dict.fromkeys(verdict.name for report in reports.values() for verdict in report.verdicts))
    rows = [["", *reports]]
    for name in names:
        found = [[v.status for v in report.verdicts if v.name == name][:1] for report in reports.values()]
        rows.append([name, *(status[0] if status else "" for status in found)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(f"{x:{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def near(distance: float) -> str:
    """A distance between two samples in a word, or in two digits: "equal" up to 1e-8, "float32" up to 1e-5."""
    return "equal" if distance < 1e-8 else "float32" if distance < 1e-5 else f"{distance:.2g}"


def in_total(report: Report) -> str:
    """ "5 functions: 3 hold, 2 are off"."""
    count = Counter(verdict.status for verdict in report.verdicts)
    parts = [
        f"{count[status]} {_one(word) if count[status] == 1 else word}"
        for status, word in WORDS.items()
        if count[status]
    ]
    total = len(report.verdicts)
    return f"{total} function{'s' * (total != 1)}: {', '.join(parts)}"


def _one(words: str) -> str:
    first, _, rest = words.partition(" ")
    return " ".join(filter(None, [{"hold": "holds", "are": "is", "have": "has"}.get(first, first), rest]))


def in_words(checks: Iterable[Check] | None = None) -> str:
    """All equations: name, the arguments of its function, and what is asked of it; before them the conventions."""
    shown = list(load_all().values() if checks is None else checks)
    blocks = [CONVENTIONS]
    for found in shown:
        text = found.contract.removeprefix("Asked for: ")
        call = f"f({', '.join(found.arguments)})"
        text = text if text.startswith("f(") else f"{call}: {text}"
        about = textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        blocks.append(f"{found.name}  [Eq. {found.number}, {found.precision}]\n{about}")
    return "\n\n".join(blocks)


def command(sources: Iterable[str], *, float32: bool = False, quiet: bool = False, listing: bool = False) -> int:
    """The command line's: the exit status, 0 only if all functions of all sources are accepted."""
    if listing:
        print(in_words())
        return 0
    sources, holds = list(sources), True
    if not sources:
        raise NotLoaded("name a Python file that registers functions, or --list the equations")
    for i, source in enumerate(sources):
        if len(sources) > 1:
            print(("\n" if i else "") + source)
        report = conformance(source, float32=float32, explain=not quiet, say=_say)
        holds = holds and report.holds
    return 0 if holds else 1


def _say(line: str) -> None:
    print(line)
    sys.stdout.flush()
