"""The glossary of symbols, from the tables at the head of the chapters."""

import re

from pages import Places, label

from tools.links import Book

ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)


def _key(symbols: str) -> str:
    """What a row is sorted by: its first symbol, without decoration."""
    first = re.search(r"\$([^$]+)\$", symbols)
    bare = re.sub(
        r"\\(?:bar|tilde|hat|mathrm|mathbf|mathcal|text|varnothing)\b|[{}\s\\]", "", first[1] if first else symbols
    )
    return re.sub(r"^var(?=epsilon|phi|theta)", "", bare).lower() + symbols


def glossary(book: Book, places: Places) -> str:
    """The page: one row for each row of a chapter's table, by symbol, with the chapter it is from."""
    rows = []
    for number, name in book.chapters.items():
        for cell in book.notebooks[name].cells:
            if cell.cell_type == "markdown" and cell.source.startswith("| symbol | in this "):
                link = f"[{number}](#{label(name, cell.id)})"
                rows += [(a, places.relinked(name, b), link) for a, b in ROW.findall(cell.source) if a != "symbol"]
    lines = [
        "(all-symbols)=",
        "# Symbols",
        "",
        "The symbols of all chapters, by letter. A letter can mean something else in",
    ]
    lines += ["another chapter; the last column says where the meaning holds.", ""]
    lines += ["| symbol | meaning | chapter |", "|---|---|---|"]
    merged: dict[tuple[str, str], list[str]] = {}
    for symbols, meaning, link in sorted(rows, key=lambda row: _key(row[0])):
        merged.setdefault((symbols, meaning), []).append(link)
    lines += [f"| {symbols} | {meaning} | {', '.join(links)} |" for (symbols, meaning), links in merged.items()]
    return "\n".join([*lines, ""])
