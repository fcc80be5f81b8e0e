"""The problem sets as students get them, as pages: never a solution, never a hidden test."""

import re
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from pages import Places, downloadable

from assignments.grading.course import SETS, Course
from assignments.grading.release import release
from tools.links import Book

HEADING = re.compile(r"^## Problem (\d\.\d)\. .+$", re.MULTILINE)
ROW = re.compile(r"^\| \[?(\d\.\d)(?:\]\([^()]*\))? \|", re.MULTILINE)
INTRODUCTION = """(problem-sets)=
# Problem sets

Six problem sets, as students get them: with a check for every function, hints, and no solutions. Each page has
its notebook to download; in the book, `make release` writes them all, with what they need. Who works alone signs
with any name: the numbers follow from it, and the check beside each function tells whether it is right for them.

```{{toctree}}
:titlesonly:

{}
```
"""


def sets(book: Book, places: Places) -> dict[str, NotebookNode | str]:
    """The pages by name, and the notebooks as released, as text. Raises RuntimeError if nbgrader refuses a source."""
    pages: dict[str, NotebookNode | str] = {
        "problem_sets/index.md": INTRODUCTION.format("\n".join(f"set_{n}" for n in SETS))
    }
    with tempfile.TemporaryDirectory() as folder:
        for number in SETS:
            release(Course(Path(folder)), number)
            file = f"set_{number}.ipynb"
            text = (Path(folder) / "release" / f"set_{number}" / file).read_text(encoding="utf-8")
            here = f"problem_sets/set_{number}"
            notebook = nbformat.reads(text, 4)
            cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
            for cell in cells:
                cell.source = _own(places.relinked(here, book.linked(here, cell.source)))
            cells[0].source = f"(problem-set-{number})=\n{cells[0].source}"
            downloadable(file, cells[0])
            pages |= {f"problem_sets/{file}": notebook, f"notebooks/{file}": text}
    return pages


def _own(text: str) -> str:
    """A row of the table of marks leads to its problem, not to the book's equation of that number."""

    def label(number: str) -> str:
        return f"problem-{number.replace('.', '-')}"

    text = HEADING.sub(lambda found: f"({label(found[1])})=\n{found[0]}", text)
    return ROW.sub(lambda found: f"| [{found[1]}](#{label(found[1])}) |", text)
