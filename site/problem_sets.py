"""The problem sets as students get them, as pages: never a solution, never a hidden test."""

import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from pages import Places

from assignments.grading.course import SETS, Course
from assignments.grading.release import release
from tools.links import Book

INTRODUCTION = """(problem-sets)=
# Problem sets

Six problem sets, as students get them: with a check for every function, hints, and no solutions. To work on one,
download the book: `make release` writes each as a notebook that runs.

```{{toctree}}
:titlesonly:

{}
```
"""


def sets(book: Book, places: Places) -> dict[str, NotebookNode | str]:
    """The pages by name. Raises RuntimeError if nbgrader refuses a source."""
    pages: dict[str, NotebookNode | str] = {"index.md": INTRODUCTION.format("\n".join(f"set_{n}" for n in SETS))}
    with tempfile.TemporaryDirectory() as folder:
        for number in SETS:
            release(Course(Path(folder)), number)
            name = f"set_{number}"
            notebook = nbformat.read(Path(folder) / "release" / name / f"{name}.ipynb", 4)
            first = True
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = places.relinked(
                        f"problem_sets/{name}", book.linked(f"problem_sets/{name}", cell.source)
                    )
                    if first:
                        cell.source, first = f"(problem-set-{number})=\n{cell.source}", False
            pages[f"{name}.ipynb"] = notebook
    return pages
