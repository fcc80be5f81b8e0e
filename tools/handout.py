"""A chapter without a way to solutions: python tools/handout.py chapters/04_posterior.ipynb hand-out.ipynb"""

import re
import sys
from pathlib import Path

import nbformat


def handout(chapter: Path, out: Path) -> None:
    """Copies a chapter without its links to solutions and to the teachers' page. FileExistsError where `out` exists."""
    if out.exists():
        raise FileExistsError(f"{out} exists: name another file, or remove it")
    notebook = nbformat.read(chapter, 4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(
                r" ?\[Solution\]\(\S+\)|\n*Try them first\. [^\n]*\(solutions/\S+\)\.", "", cell.source
            )
            cell.source = re.sub(r"\[(Problem set \d)\]\(\S+\)", r"\1", cell.source)
    nbformat.write(notebook, out)


if __name__ == "__main__":
    handout(*map(Path, sys.argv[1:]))
