"""The glossary of symbols, from the tables at the head of the chapters: letter by letter, with all that each means."""

import html
import re

from pages import Places, label

from tools.links import Book

ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)
DECORATION = {"bar", "tilde", "hat", "dot", "ddot", "mathrm", "mathbf", "mathcal", "text", "operatorname"}
LATIN = "abcdefghijklmnopqrstuvwxyz"
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
NAMES = {**{letter: f"{letter.upper()}, {letter}" for letter in LATIN}, "varnothing": "∅"}
NAMES |= {name: f"{html.unescape(f'&{name};')}, {name}" for name in GREEK.split()}
WORDS = """(all-symbols)=
# Symbols

The symbols of all chapters, by letter: a row stands under each of its letters. A letter can mean something else in
another chapter; the last column says where the meaning holds.
"""


def letters(symbols: str) -> list[str]:
    r"""What a row stands under: `$\bar\alpha_t$, $T$` gives alpha and t."""
    found = []
    for symbol in re.findall(r"\$([^$]+)\$", symbols):
        names = (one.removeprefix("\\") for one in re.findall(r"\\[a-zA-Z]+|[a-zA-Z]", symbol))
        name = next(one for one in names if one not in DECORATION).replace("ell", "l").lower()
        found.append(name.removeprefix("var") if name.removeprefix("var") in NAMES else name)
    return list(dict.fromkeys(found))


def glossary(book: Book, places: Places) -> str:
    """The page: a table for each letter, with the rows of the chapters' tables and where they are from."""
    tables: dict[str, dict[tuple[str, str], list[str]]] = {name: {} for name in NAMES}
    for number, name in book.chapters.items():
        for cell in book.notebooks[name].cells:
            if cell.cell_type == "markdown" and cell.source.startswith("| symbol | in this "):
                link = f"[{number}](#{label(name, cell.id)})"
                for symbols, meaning in ROW.findall(cell.source)[1:]:
                    for letter in letters(symbols):
                        row = symbols, places.relinked(name, meaning)
                        tables[letter].setdefault(row, []).append(link)
    used = {letter: table for letter, table in tables.items() if table}
    lines = [WORDS, " · ".join(f"[{NAMES[letter].rpartition(', ')[0] or '∅'}](#letter-{letter})" for letter in used)]
    for letter, table in used.items():
        lines += ["", f"(letter-{letter})=", f"## {NAMES[letter]}", ""]
        lines += ["| symbol | meaning | chapter |", "|---|---|---|"]
        lines += [f"| {symbols} | {meaning} | {', '.join(links)} |" for (symbols, meaning), links in table.items()]
    return "\n".join([*lines, ""])
