"""Writes and checks the book's links: python tools/links.py (with --check it writes nothing and names what is off).

Authors write "Eq. 4.6", "section 6.5", "chapter 5", "appendix B", "arXiv:2006.11239". This makes links of them, gives
the cells that they lead to an id, and renews what stands at the head and the foot of each notebook. Run again, it
changes nothing.

JupyterLab finds another notebook's place by a cell's id (`#cell-id=eq-4-6`), at the first click too, and so does the
HTML that nbconvert writes. Within a notebook both know headings alone: an equation's line is one.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

CHAPTERS = Path(__file__).parents[1] / "chapters"
APPENDIX = 90  # appendices come after all chapters, A first
# the problem set that a chapter's exercises lead to
SETS = {1: (0, 1, 3), 2: (2, 4, 5), 3: (6,), 4: (7, 8, 9), 5: (10, 11, 12, 13), 6: (14, 15, 16)}
DEEPER = "[Problem set {number}](../assignments/README.md) goes deeper, with a check for every function."
EQUATION = re.compile(r"^(?:#{5} )?\*\*(Eq\. (\d+\.\d+) \(.+\))\*\*$", re.MULTILINE)
SECTION = re.compile(r"^## ((?:\d+|[A-Z])\.\d+) .+$", re.MULTILINE)
TITLE = re.compile(r"^# (?:Solutions to (?:chapter|appendix) )?(\d+|[A-Z])[.,] (.+)$", re.MULTILINE)
EXERCISE = re.compile(r"^\*\*(\d+\.\d+) \((?:easy|medium|hard)\)")
SOLUTION = re.compile(r"^## Solution (\d+\.\d+)")

NUMBER = r"(?:\d+|[A-Z])\.\d+"
NUMBERS = rf"{NUMBER}(?:(?:,| and|, and| to| or) {NUMBER})*"
CITATION = re.compile(
    rf"\b(?P<kind>Eqs?\.|[Ss]ections?|[Ee]xercises?|our) (?P<numbers>{NUMBERS})"
    r"|\b(?P<chapter>[Cc]hapters?|[Aa]ppendix|[Aa]ppendices) "
    r"(?P<chapters>(?:\d+|[A-Z]\b(?!\.\d))(?:(?:,| and|, and| to| or) (?:\d+|[A-Z]\b(?!\.\d)))*)"
    r"|^\| (?P<row>\d+\.\d+) \|"
    r"|(?P<arxiv>arXiv:(?:\d{4}\.\d{4,5}|[a-z-]+/\d{7}))|(?P<doi>doi:10\.\d{4,9}/[^\s,;\]]*[^\s,;.:\])])",
    re.MULTILINE,
)
# what stands in no link: code, maths, headings, links and pictures of the authors' own
PROTECTED = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|^#.*?$|!?\[[^\]]*\]\([^()\s]*(?:\([^()]*\)[^()\s]*)*\)|<[^>\n]+>",
    re.DOTALL | re.MULTILINE,
)
OWN = re.compile(
    r"\[((?:Eqs?\. |[Ss]ections? |[Cc]hapters? |[Aa]ppendi(?:x|ces) |[Ee]xercises? |our )?(?:\d+|[A-Z])(?:\.\d+)?"
    r"|arXiv:[^\]]+|doi:[^\]]+)\]"
    r"\([^()\s]*(?:\([^()]*\)[^()\s]*)*\)"
)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)")


def chapter(name: str) -> str:
    """What a notebook is called by in the text, from its name: "4" for 04_posterior.ipynb, "B" for B_check.ipynb."""
    first = Path(name).name.partition("_")[0]
    return str(int(first)) if first.isdecimal() else first


def place(chapter: str) -> int:
    """Where it stands in the book's order: 4 for "4", 90 for "A", 91 for "B"."""
    return int(chapter) if chapter.isdecimal() else APPENDIX + ord(chapter) - ord("A")


def deeper(chapter: str) -> str:
    """The paragraph that leads from a chapter's exercises to its problem set; "" where there is none."""
    found = [number for number, chapters in SETS.items() if chapter.isdecimal() and int(chapter) in chapters]
    return "".join("\n\n" + DEEPER.format(number=number) for number in found)


class Book:
    """All notebooks by path, and where each equation, section, chapter, exercise and solution stands."""

    def __init__(self, folder: Path = CHAPTERS):
        paths = [path for path in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
        self.folder = folder
        self.notebooks = {path.relative_to(folder).as_posix(): nbformat.read(path, 4) for path in paths}
        self.chapters = {chapter(name): name for name in self.notebooks if "/" not in name}
        self.places: dict[tuple[str, str], tuple[str, str, str]] = {}  # (kind, number): notebook, cell, heading or ""
        for name, notebook in self.notebooks.items():
            notebook.cells = [part for cell in notebook.cells for part in _parts(cell)]
            for cell in notebook.cells:
                self._place(name, cell)

    def _place(self, name: str, cell: NotebookNode) -> None:
        if cell.cell_type != "markdown":
            return
        for kind, pattern in (("eq", EQUATION), ("sec", SECTION), ("exercise", EXERCISE), ("solution", SOLUTION)):
            if found := pattern.match(cell.source):
                number = found[2] if kind == "eq" else found[1]
                cell.id = f"{kind}-{number.replace('.', '-')}"
                heading = found[1] if kind == "eq" else found[0].removeprefix("## ")
                self.places[kind, number] = name, cell.id, "Exercises" if kind == "exercise" else heading
        if cell.source.startswith(("## Exercises", "## Contents")):
            cell.id = cell.source.split("\n")[0].removeprefix("## ").lower()

    def title(self, chapter: str) -> str:
        """`4. The posterior`."""
        cells = self.notebooks[self.chapters[chapter]].cells
        number, title = next(found.groups() for cell in cells if (found := TITLE.match(cell.source)))
        return f"{number}. {title}"

    def target(self, here: str, kind: str, number: str) -> str | None:
        """Where a link in the notebook `here` leads; None for what is not written yet."""
        up = "../" if "/" in here else ""
        if kind == "chapter":
            name = self.chapters.get(number)
            return up + name if name and name != here else None
        if (kind, number) not in self.places:
            return None
        name, cell, heading = self.places[kind, number]
        return f"#{heading.replace(' ', '-')}" if name == here else f"{up}{name}#cell-id={cell}"

    def linked(self, here: str, text: str) -> str:
        """A markdown cell's text with every reference as a link."""
        text, done, end = OWN.sub(r"\1", text), [], 0
        for shield in PROTECTED.finditer(text):
            done += [self._cited(here, text[end : shield.start()]), shield[0]]
            end = shield.end()
        return "".join([*done, self._cited(here, text[end:])])

    def _cited(self, here: str, text: str) -> str:
        def link(words: str, kind: str, number: str) -> str:
            target = self.target(here, kind, number)
            return f"[{words}]({target})" if target else words

        def replace(found: re.Match) -> str:
            if found["arxiv"]:
                return f"[{found[0]}](https://arxiv.org/abs/{found[0].removeprefix('arXiv:')})"
            if found["doi"]:
                return f"[{found[0]}](https://doi.org/{found[0].removeprefix('doi:')})"
            if found["row"]:
                return f"| {link(found['row'], 'eq', found['row'])} |"
            word, numbers = found["kind"] or found["chapter"], found["numbers"] or found["chapters"]
            kind = {"e": "eq", "o": "eq", "s": "sec", "c": "chapter", "a": "chapter"}[word[0].lower()]
            kind = "exercise" if word.lower().startswith("exercise") else kind
            first, *rest = re.split(r"((?:,| and|, and| to| or) )", numbers)
            others = [link(part, kind, part) if i % 2 else part for i, part in enumerate(rest)]
            return link(f"{word} {first}", kind, first) + "".join(others)

        return CITATION.sub(replace, text)

    def renew(self) -> None:
        """All links, ids, heads and feet, as they should be."""
        for name, notebook in self.notebooks.items():
            for cell in notebook.cells:
                if cell.cell_type == "markdown" and cell.id not in ("head", "foot", "contents"):
                    cell.source = self.linked(name, cell.source)
                    if found := EXERCISE.match(cell.source):
                        cell.source = re.sub(r"\s+\[Solution\]\(\S+\)$", "", cell.source)
                        if target := self.target(name, "solution", found[1]):
                            between = "\n\n" if cell.source.splitlines()[-1][:4].isspace() else " "  # it is no code
                            cell.source += f"{between}[Solution]({target})"
                if cell.id == "exercises":
                    cell.source = re.sub(r"\n+\[Problem set \d.*$", "", cell.source) + deeper(chapter(name))
                if cell.id == "contents":
                    rows = [f"- [{self.title(number)}]({path})" for number, path in self.chapters.items()]
                    cell.source = "\n".join(["## Contents", "", *rows])
            inner = [cell for cell in notebook.cells if cell.id not in ("head", "foot")]
            line = self._line(name)
            head, foot = (NotebookNode(cell_type="markdown", id=i, metadata={}, source=line) for i in ("head", "foot"))
            notebook.cells = [head, *inner, foot]

    def _line(self, name: str) -> str:
        """Before, contents, after: what stands at the head and the foot."""
        number, contents = chapter(name), f"{self.chapters['0']}#cell-id=contents"
        if "/" in name:
            word, back = (
                "Chapter" if number.isdecimal() else "Appendix",
                f"../{self.chapters[number]}#cell-id=exercises",
            )
            return f"[← {word} {self.title(number)}]({back}) · [Contents](../{contents})"
        here = place(number)
        before = max((n for n in self.chapters if place(n) < here), key=place, default=None)
        after = min((n for n in self.chapters if place(n) > here), key=place, default=None)
        parts = [] if before is None else [f"[← {self.title(before)}]({self.chapters[before]})"]
        parts += [f"[Contents]({'#Contents' if number == '0' else contents})"]
        parts += [] if after is None else [f"[{self.title(after)} →]({self.chapters[after]})"]
        return " · ".join(parts)

    def write(self) -> list[str]:
        """Writes the notebooks that changed, and returns their names."""
        changed = []
        for name, notebook in self.notebooks.items():
            path, text = self.folder / name, nbformat.writes(notebook) + "\n"
            if path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")
                changed.append(name)
        return changed

    def dead(self) -> list[str]:
        """Links that lead nowhere, found without a network: what is not on the web must be here."""
        ends = {name: {f"cell-id={cell.id}" for cell in book.cells} for name, book in self.notebooks.items()}
        for name, notebook in self.notebooks.items():
            sources = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
            headings = [line for text in sources for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
            ends[name] |= {re.sub(r"[`*]", "", heading).replace(" ", "-") for heading in headings if heading.isascii()}
        lost = []
        for name, notebook in self.notebooks.items():
            for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):
                for target in LINK.findall(cell.source):
                    if not re.match(r"https?://\S+\.\S+", target) and not self._arrives(name, target, ends):
                        lost.append(f"{name}, cell {cell.id}: {target}")
        return lost

    def _arrives(self, here: str, target: str, ends: dict[str, set[str]]) -> bool:
        path, _, place = target.partition("#")
        file = ((self.folder / here).parent / path).resolve() if path else (self.folder / here).resolve()
        if file.suffix != ".ipynb":
            return file.exists()
        name = file.relative_to(self.folder.resolve()).as_posix()
        # within a notebook by heading, to another one by cell
        return name in ends and (not place or (place in ends[name] and place.startswith("cell-id=") == (name != here)))


def _parts(cell: NotebookNode) -> list[NotebookNode]:
    """A markdown cell, cut where an equation or a section begins: a link leads to a cell, or within it to a heading."""
    if cell.cell_type != "markdown":
        return [cell]
    text = EQUATION.sub(r"##### **\1**", cell.source)
    starts = sorted(found.start() for pattern in (EQUATION, SECTION) for found in pattern.finditer(text))
    texts = [text[a:b].strip("\n") for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    rest = [NotebookNode(cell_type="markdown", id="", metadata={}, source=part) for part in texts[1:]]
    return [part for part in [NotebookNode({**cell, "source": texts[0]}), *rest] if part.source]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name what is off")
    check = parser.parse_args().check
    book = Book()
    book.renew()
    off = [] if check else book.write()
    print("\n".join([*(f"wrote {name}" for name in off), *(f"leads nowhere: {link}" for link in book.dead())]))
    return bool(book.dead())


if __name__ == "__main__":
    sys.exit(main())
