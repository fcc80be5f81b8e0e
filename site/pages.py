"""A notebook as a page of the site: labels where links arrive, links that the site follows, figures with their words.

The book's own links lead to cells (`04_posterior.ipynb#cell-id=eq-4-6`) and, within a notebook, to headings. Here each
such place gets a label, and each link leads to a label. What the theme draws itself, before and after, is left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from nbformat import NotebookNode

from tools.links import Book, chapter

HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
EVERYWHERE = ("eq-", "sec-", "exercise-", "solution-")  # ids that are one cell's in the whole book


def label(name: str, cell: str) -> str:
    """The label of a notebook's cell: eq-4-6, or 04_posterior-exercises for an id that other notebooks have too.

    The cell "page" stands for the notebook as a whole: chapter-4, solutions-4.
    """
    if cell.startswith(EVERYWHERE):
        return cell.lower()
    if cell == "page":
        return f"{'solutions' if '/' in name else 'chapter'}-{chapter(name)}".lower()
    return f"{PurePosixPath(name).with_suffix('')}-{cell}".replace("/", "-").lower()


def slug(heading: str) -> str:
    """A heading as JupyterLab's links name it: `1.2-Affine-maps`."""
    return re.sub(r"[`*]", "", heading).replace(" ", "-")


def headings(source: str) -> Iterator[re.Match]:
    """The headings of a markdown cell that stand outside its code."""
    code = [range(*found.span()) for found in FENCE.finditer(source)]
    return (found for found in HEADING.finditer(source) if not any(found.start() in span for span in code))


class Places:
    """The labels of the book: by cell, and by heading."""

    def __init__(self, book: Book, with_sets: bool = True):
        self.with_sets = with_sets
        self.cells: set[str] = set()
        self.headings: dict[tuple[str, str], str] = {}
        for name, notebook in book.notebooks.items():
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    self.cells.add(label(name, cell.id))
                    for i, found in enumerate(headings(cell.source)):
                        own = label(name, cell.id) + (f"-{i}" if found.start() else "")
                        self.headings[name, slug(found[2])] = own
        self.names = set(book.notebooks)

    def target(self, here: str, link: str, words: str) -> str | None:
        """Where a link leads on the site; None where there is no such page."""
        if re.match(r"https?://", link):
            return link
        path, _, end = link.partition("#")
        if path.endswith("assignments/README.md"):
            return f"#problem-set-{words[-1]}" if self.with_sets else None
        name = _joined(here, path) if path else here
        if name not in self.names:
            return None
        if not end:
            return f"#{label(name, 'page')}"
        found = self.headings.get((name, end)) if not path else label(name, end.removeprefix("cell-id="))
        return f"#{found}" if found in self.cells or found in self.headings.values() else None

    def relinked(self, here: str, text: str) -> str:
        """Markdown with its links as the site's."""

        def replace(found: re.Match) -> str:
            target = self.target(here, found[2], found[1])
            return f"[{found[1]}]({target})" if target else found[1]

        done, end = [], 0
        for code in CODE.finditer(text):
            done += [LINK.sub(replace, text[end : code.start()]), code[0]]
            end = code.end()
        return "".join([*done, LINK.sub(replace, text[end:])])


def _joined(here: str, path: str) -> str:
    parts: list[str] = []
    for part in [*PurePosixPath(here).parent.parts, *path.split("/")]:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def downloadable(name: str, first: NotebookNode) -> None:
    """A line below a page's title: the notebook itself, which lies in the folder notebooks as it is in the book."""
    title, _, rest = first.source.partition("\n\n")
    line = f"[Download the notebook](path:/notebooks/{name}): it runs beside the book's library"
    first.source = f"{title}\n\n:::{{container}} equation-links\n{line}\n:::\n\n{rest}"


def page(places: Places, name: str, notebook: NotebookNode) -> NotebookNode:
    """The notebook as the site shows it."""
    made = NotebookNode(notebook)
    made.cells = []
    for cell in notebook.cells:
        if cell.id == "foot" or (cell.id == "head" and "/" not in name):
            continue
        cell = NotebookNode({**cell, "metadata": NotebookNode(cell.metadata)})
        if cell.cell_type == "markdown":
            cell.source = _markdown(places, name, cell)
        made.cells.append(cell)
    title = next(i for i, cell in enumerate(made.cells) if cell.source.lstrip().startswith(("# ", "(")))
    if title:  # the page's title comes first
        made.cells.insert(0, made.cells.pop(title))
    made.cells[0].source = f"({label(name, 'page')})=\n" + made.cells[0].source
    downloadable(name, made.cells[0])
    return made


def _markdown(places: Places, name: str, cell: NotebookNode) -> str:
    source, found = cell.source, list(headings(cell.source))
    text = places.relinked(name, source)
    if not found:
        return f"({label(name, cell.id)})=\n{text}" if cell.id != "head" else text
    pieces, end = [], 0
    text = source
    for i, heading in enumerate(found):
        own = label(name, cell.id) + (f"-{i}" if heading.start() else "")
        level, words = len(heading[1]), heading[2]
        line = f"{'#' * min(level, 3)} {words.strip('*') if level == 5 else words}"
        pieces += [places.relinked(name, text[end : heading.start()]), f"({own})=\n{line}\n"]
        end = heading.end()
    return "".join([*pieces, places.relinked(name, text[end:])])


def write(path: Path, text: str) -> None:
    """Writes a page's source, unless it stands there already: what did not change is not built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def escaped(text: str) -> str:
    """Plain text as Markdown: every sign stands for itself, but `code` stays code."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(
        part if i % 2 else re.sub(r"([\\*_\[\]<>#$|{}~^`!&])", r"\\\1", part) for i, part in enumerate(parts)
    )
