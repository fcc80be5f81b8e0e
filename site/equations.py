"""What the site knows of each numbered equation: where it is derived, computed, checked and cited."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile

from nbformat import NotebookNode
from pages import label
from reference import anchor

from ddpm_lib.checks import load_all
from ddpm_lib.checks.equation import NO_SOURCE, Check
from tools.links import Book

DISPLAY = r"\$\$(?:(?!\$\$).)*?\\tag\{%s\}(?:(?!\$\$).)*?\$\$"
HEADING = re.compile(r"^\(eq-(\d+)-(\d+)\)=\n#+ .+\n", re.MULTILINE)
# what readers of other texts search for
ALSO = {
    "6.3": ["epsilon-prediction", "DDPM loss"],
    "6.7": ["v-prediction", "v-parameterization", "v-parameterisation"],
    "7.3": ["DDPM sampler"],
    "8.9": ["Heun sampler"],
    "8.10": ["DPM-Solver++"],
    "9.2": ["cosine"],
    "9.7": ["min SNR", "min-SNR-gamma"],
    "11.5": ["EMA"],
    "14.5": ["CFG", "classifier-free"],
    "15.1": ["FID"],
}
# what an equation is that has no function
STATED = "{}: the library has no function for it; the book's own version stands in the source of its check"


@dataclass
class Equation:
    """One numbered equation. A place is a pair: its label on the site, and what it is called."""

    check: Check
    formula: str  # the display as it stands in the chapter, or ""
    section: tuple[str, str]  # where its derivation begins
    function: tuple[str, str] | None  # the library's function, where there is one: `name`, label
    text: list[tuple[str, str]] = field(default_factory=list)  # each citation in the chapters and solutions
    library: dict[str, str] = field(default_factory=dict)  # functions and modules that cite it
    tests: list[str] = field(default_factory=list)  # files of the tests that name it, or call its function

    @property
    def number(self) -> str:
        return self.check.number

    @property
    def chapter(self) -> str:
        return self.number.partition(".")[0]

    @property
    def dashed(self) -> str:
        return self.number.replace(".", "-")

    @property
    def wrong(self) -> str:
        count = len(self.check.wrong_versions)
        return f"{count} wrong version{'s' * (count != 1)}"

    @property
    def cited(self) -> str:
        count = len(self.text) + len(self.library)
        return f"{count} place{'s' * (count != 1)}"

    @property
    def computed(self) -> str:
        """A link to its function, or what it is instead: "identity"."""
        return f"[{self.function[0]}](#{self.function[1]})" if self.function else self.check.kind

    def entries(self, main: str = "") -> str:
        """What the search finds the equation by: its number alone, too, of which a search for words knows nothing."""
        names = (self.number, f"Eq. {self.number}", f"equation {self.number}", self.check.name.replace(";", ","))
        names = (*names, *ALSO.get(self.number, ()))
        return "\n".join(f":::{{index}} {main}single: {name}\n:::" for name in names) + "\n"

    def around(self) -> tuple[str, str]:
        """What stands around an equation's heading in its chapter: what the search finds it by, and a line of links."""
        links = [self.computed, f"[check and {self.wrong}](#check-{self.dashed})"]
        links += [f"[cited in {self.cited}](#index-{self.dashed})"]
        return f"{self.entries('!')}\n", f"\n:::{{container}} equation-links\n{' · '.join(links)}\n:::\n"


def facts(book: Book) -> dict[str, Equation]:
    """All numbered equations by number, in the book's order; cited.py adds where they are cited."""
    found = {}
    written = (check for check in load_all().values() if check.number.partition(".")[0] in book.chapters)
    for check in sorted(written, key=lambda check: [int(part) for part in check.number.split(".")]):
        own = check.own
        module = own.__module__.removeprefix("ddpm_lib.")
        inside = not module.startswith("checks.chapter") and "<" not in own.__qualname__
        function = (f"`{own.__qualname__}`", anchor(module, own.__qualname__)) if inside else None
        found[check.number] = Equation(check, _formula(book, check.number), _section(book, check.number), function)
    return found


def inside(equations: dict[str, Equation], chapter: str) -> list[Equation]:
    """The equations of a chapter."""
    return [one for one in equations.values() if one.chapter == chapter]


def wrong_versions(equations: dict[str, Equation]) -> tuple[int, int]:
    """How many there are, and how many of them, or their like, stand in public places."""
    wrong = [one for equation in equations.values() for one in equation.check.wrong_versions]
    return len(wrong), sum(not one.seen.startswith(NO_SOURCE) for one in wrong)


def chapters(equations: dict[str, Equation]) -> list[str]:
    """The numbers of the chapters that have equations."""
    return list(dict.fromkeys(one.chapter for one in equations.values()))


def _formula(book: Book, number: str) -> str:
    name, cell, _ = book.places["eq", number]
    source = next(c.source for c in book.notebooks[name].cells if c.id == cell)
    display = re.search(DISPLAY % re.escape(number), source, re.DOTALL)
    return display[0] if display else ""


def _section(book: Book, number: str) -> tuple[str, str]:
    """The label and the heading of the section that an equation stands in, or of its chapter."""
    name, cell, _ = book.places["eq", number]
    before = takewhile(lambda one: one.id != cell, book.notebooks[name].cells)
    last = [one for one in before if one.id.startswith("sec-")][-1:]
    heading = last[0].source.partition("\n")[0].removeprefix("## ") if last else book.title(number.partition(".")[0])
    return label(name, last[0].id if last else "page"), heading


def dressed(page: NotebookNode, equations: dict[str, Equation], around: Callable[[Equation], tuple[str, str]]) -> None:
    """Puts around each equation's heading what shall stand above and below it."""

    def replace(heading: re.Match) -> str:
        above, below = around(equations[f"{heading[1]}.{heading[2]}"])
        return f"{above}{heading[0]}{below}"

    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = HEADING.sub(replace, cell.source)
