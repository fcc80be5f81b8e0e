"""What the site knows of each numbered equation: where it is derived, computed, checked and cited; and their index."""

import ast
import re
from dataclasses import dataclass, field

from pages import Places, escaped, headings, label
from reference import BOOK, MODULES, anchor, documented

from ddpm_lib.checks import load_all
from ddpm_lib.checks.equation import Check
from tools.links import Book, chapter

NAMED = re.compile(r"\bEqs?\. ((?:\d+\.\d+)(?:(?:,| and|, and| to| or) \d+\.\d+)*)")
DISPLAY = r"\$\$(?:(?!\$\$).)*?\\tag\{%s\}(?:(?!\$\$).)*?\$\$"


@dataclass
class Equation:
    """One numbered equation. Every place is a pair: what it is called, and its label on the site."""

    check: Check
    formula: str  # the display as it stands in the chapter, or ""
    function: tuple[str, str] | None  # the library's function, where there is one
    chapters: dict[str, str] = field(default_factory=dict)  # label of a place that cites it: words
    library: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> str:
        return self.check.number

    @property
    def dashed(self) -> str:
        return self.number.replace(".", "-")

    def entries(self, main: str = "") -> str:
        """What the search finds the equation by: its number alone, too, of which a search for words knows nothing."""
        names = (self.number, f"Eq. {self.number}", f"equation {self.number}", self.check.name.replace(";", ","))
        return "\n".join(f":::{{index}} {main}single: {name}\n:::" for name in names) + "\n"

    def beneath(self) -> str:
        """The line below an equation's heading in its chapter."""
        count, cited = len(self.check.wrong_versions), len(self.chapters) + len(self.library)
        links = [f"[{self.function[0]}](#{self.function[1]})"] if self.function else []
        links += [f"[check and {count} wrong versions](#check-{self.dashed})"]
        links += [f"[cited in {cited} place{'s' * (cited != 1)}](#index-{self.dashed})"]
        return f"\n:::{{container}} equation-links\n{' · '.join(links)}\n:::\n"


def facts(book: Book, places: Places) -> dict[str, Equation]:
    """All numbered equations by number, in the book's order."""
    found = {}
    written = (check for check in load_all().values() if check.number.partition(".")[0] in book.chapters)
    for check in sorted(written, key=lambda check: [int(part) for part in check.number.split(".")]):
        own = check.own
        module = own.__module__.removeprefix("ddpm_lib.")
        inside = not module.startswith("checks.chapter") and "<" not in own.__qualname__
        function = (f"`{own.__qualname__}`", anchor(module, own.__qualname__)) if inside else None
        found[check.number] = Equation(check, _formula(book, check.number), function)
    for name, notebook in book.notebooks.items():
        _cited_in_notebook(found, places, name, notebook)
    for module in MODULES:
        tree = ast.parse((BOOK / MODULES[module]).read_text(encoding="utf-8"))
        for qualified, node in documented(tree):
            _cited_in_docstring(found, module, qualified, ast.get_docstring(node) or "")
    return found


def _formula(book: Book, number: str) -> str:
    name, cell, _ = book.places["eq", number]
    source = next(c.source for c in book.notebooks[name].cells if c.id == cell)
    display = re.search(DISPLAY % re.escape(number), source, re.DOTALL)
    return display[0] if display else ""


def _cited_in_notebook(found: dict[str, Equation], places: Places, name: str, notebook) -> None:
    section, words = label(name, "page"), ""
    whole = ("Solutions, " if "/" in name else "") + ("chapter " if chapter(name).isdecimal() else "appendix ")
    whole += chapter(name)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown" and cell.id not in ("head", "foot")):
        for i, heading in enumerate(headings(cell.source)):
            section = label(name, cell.id) + (f"-{i}" if heading.start() else "")
            words = re.sub(r"[*`]", "", heading[2])
            words = words if re.search(r"\d\.\d", words) else whole if heading[1] == "#" else f"{words} ({whole})"
        here, called = section, words
        if cell.id.startswith("exercise-"):
            here, called = label(name, cell.id), "Exercise " + cell.id[9:].replace("-", ".")
        for number in set(re.findall(r"\]\(\S*?#(?:cell-id=eq-|Eq\.-)(\d+[-.]\d+)", cell.source)):
            number = number.replace("-", ".")
            if number in found and here != f"eq-{number.replace('.', '-')}":
                found[number].chapters[here] = called


def _cited_in_docstring(found: dict[str, Equation], module: str, qualified: str, text: str) -> None:
    for listed in NAMED.findall(text):
        for number in re.findall(r"\d+\.\d+", listed):
            target = anchor(module, qualified)
            if number in found and (found[number].function or ("", ""))[1] != target:
                found[number].library[target] = f"`{qualified or module}`"


def linked(text: str, equations: dict[str, Equation]) -> str:
    """Escaped text in which each number of an equation of the book is a link to its derivation."""

    def replace(match: re.Match) -> str:
        def one(number: re.Match) -> str:
            return f"[{number[0]}](#eq-{number[0].replace('.', '-')})" if number[0] in equations else number[0]

        return re.sub(r"\d+\.\d+", one, match[0])

    return NAMED.sub(replace, escaped(text))


def index(equations: dict[str, Equation], titles: dict[str, str]) -> str:
    """The page with every equation: its formula, and all that belongs to it."""
    lines = ["(all-equations)=", "# Index of equations", ""]
    lines += ["Each numbered equation of the book, with the function that computes it, the check that it passes and"]
    lines += ["every place that cites it. The number leads to the derivation.", ""]
    last = ""
    for number, equation in equations.items():
        if number.partition(".")[0] != last:
            last = number.partition(".")[0]
            lines += ["", f"## {escaped(titles[last])}", ""]
        name, count = equation.check.name, len(equation.check.wrong_versions)
        lines += [equation.entries(), f"(index-{equation.dashed})=", f"### Eq. {number}: {escaped(name)}", ""]
        lines += ["", equation.formula, "", f"- [Derivation in the text](#eq-{equation.dashed})"]
        lines += [f"- Function: [{equation.function[0]}](#{equation.function[1]})"] if equation.function else []
        lines += [f"- [Check](#check-{equation.dashed}): {escaped(equation.check.route)},"]
        lines += [f"  {escaped(equation.check.precision)}; {count} wrong versions"]
        for word, places in (("the text", equation.chapters), ("the library", equation.library)):
            if places:
                links = [f"[{escaped(called)}](#{target})" for target, called in places.items()]
                lines += [f"- Cited in {word}: {' · '.join(links)}"]
        lines += [""]
    return "\n".join(lines)
