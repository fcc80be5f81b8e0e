"""Where each numbered equation is cited: in the chapters and solutions, in the library's docstrings, in the tests.

A citation in the text is a link already. Here it gets an id, so that the index leads to it and not to its section.
"""

import ast
import re
from collections import Counter

from equations import Equation
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from pages import escaped, label
from reference import BOOK, MODULES, anchor, documented

from tools.links import chapter

NAMED = re.compile(r"\bEqs?\. ((?:\d+\.\d+)(?:(?:,| and|, and| to| or) \d+\.\d+)*)")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
NUMBER = re.compile(r"\d+\.\d+")
# a label, with the heading that it may stand before; or a link to an equation
MARK = re.compile(
    r"^\((?P<label>[^()\s]+)\)=$(?:\n(?P<level>#+) (?P<words>.+)$)?|\[[^\[\]]*\]\(#eq-(?P<eq>\d+-\d+)\)", re.MULTILINE
)


def in_text(found: dict[str, Equation], name: str, page: NotebookNode) -> None:
    """Gives each citation of a page an id, and notes it with the words for its section or exercise."""
    number = chapter(name)
    whole = ("Solutions, " if "/" in name else "") + ("chapter " if number.isdecimal() else "appendix ") + number
    section, words, called = "", whole, whole
    seen: Counter = Counter()

    def note(equation: str, words: str) -> str:
        seen[equation] += 1
        own = f"{label(name, 'page')}-cites-{equation.replace('.', '-')}-{seen[equation]}"
        if section != f"eq-{found[equation].dashed}":
            found[equation].text.append((own, words))
        return own

    def replace(mark: re.Match) -> str:
        nonlocal section, words, called
        if mark["level"]:
            section, words = mark["label"], re.sub(r"[*`]", "", mark["words"])
            words = "Introduction" if mark["level"] == "#" else words
            called = words = words if NUMBER.search(words) else f"{words} ({whole})"
        elif mark["label"]:
            exercise = mark["label"].startswith("exercise-")
            called = "Exercise " + mark["label"][9:].replace("-", ".") if exercise else words
        elif (equation := mark["eq"].replace("-", ".")) in found:
            return f"[{mark[0]}]{{#{note(equation, called)}}}"
        return mark[0]

    cells = []
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = MARK.sub(replace, cell.source)
        elif numbers := [one for one in dict.fromkeys(_named(cell.source)) if one in found]:  # no link stands in code
            ids = [note(one, f"{called}, in code") for one in numbers]
            cells.append(new_markdown_cell("\n".join(f"({own})=" for own in ids), id=f"before-{cell.id}"))
        cells.append(cell)
    page.cells = cells


def _named(text: str) -> list[str]:
    return [number for listed in NAMED.findall(text) for number in NUMBER.findall(listed)]


def in_library(found: dict[str, Equation]) -> None:
    """Notes the docstrings that cite an equation, but for that of its own function."""
    for module in MODULES:
        tree = ast.parse((BOOK / MODULES[module]).read_text(encoding="utf-8"))
        for qualified, node in documented(tree):
            target = anchor(module, qualified)
            for number in _named(ast.get_docstring(node) or ""):
                if number in found and (found[number].function or ("", ""))[1] != target:
                    found[number].library[target] = f"`{qualified or module}`"


def in_tests(found: dict[str, Equation]) -> None:
    """Notes the files of the tests that name an equation, in a docstring or by its check, or call its function."""
    names = {one.check.name: number for number, one in found.items()}
    functions = {
        (one.check.own.__module__, *one.check.own.__qualname__.split(".")): number
        for number, one in found.items()
        if one.function
    }
    for path in sorted((BOOK / "tests").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        numbers = {names.get(node.value) for node in nodes if isinstance(node, ast.Constant)}
        numbers |= {
            one for node in nodes if isinstance(node, DOCUMENTED) for one in _named(ast.get_docstring(node) or "")
        }
        imported = {
            (node.module, name.name) for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names
        }
        asked = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        for (module, name, *method), number in functions.items():
            if (module, name) in imported and asked.issuperset(method):
                numbers.add(number)
        for number in numbers & found.keys():
            found[number].tests.append(path.relative_to(BOOK).as_posix())


def linked(text: str, equations: dict[str, Equation]) -> str:
    """Escaped text in which each number of an equation of the book is a link to its derivation."""

    def replace(match: re.Match) -> str:
        def one(number: re.Match) -> str:
            return f"[{number[0]}](#eq-{number[0].replace('.', '-')})" if number[0] in equations else number[0]

        return NUMBER.sub(one, match[0])

    return NAMED.sub(replace, escaped(text))
