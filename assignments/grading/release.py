"""Problem sets as students get them: python -m assignments.grading.release [--sets 1 2] [--course FOLDER]

Each becomes a folder and a zip: the notebook without solutions and hidden tests, and the library as far as its chapters
go. Nothing else is needed but the book's environment.
"""

import argparse
import re
import shutil
import sys
import zipfile
from pathlib import Path

import nbformat

from assignments.grading.course import BOOK, SETS, Course
from ddpm_lib import CHAPTER
from ddpm_lib.homework.numbers import UNSIGNED

STOP = re.compile(r"\n?^raise NotImplementedError$", re.MULTILINE)
CHAPTER_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+chapters/[^)]*\)")
README = """Problem set {number}

With the book's environment (see its README), open set_{number}.ipynb in JupyterLab: `jupyter lab set_{number}.ipynb`.
Put your id into its first code cell. Hand in the notebook alone, or a zip of it, under the same id.
The folder ddpm_lib is the book's library as far as chapter {chapter}: leave it beside the notebook.
"""


def modules(chapter: int) -> list[Path]:
    """The files of the library up to a chapter, by the table CHAPTER, with the packages that hold them."""
    found = {BOOK / "ddpm_lib" / "__init__.py"}
    for name, first in CHAPTER.items():
        if first <= chapter:
            path = BOOK.joinpath("ddpm_lib", *name.split("."))
            found.add(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
            found.add(path.parent / "__init__.py")
    return sorted(found)


def cut(chapter: int, into: Path) -> None:
    """Copies the library up to a chapter into the folder `into`/ddpm_lib."""
    for path in modules(chapter):
        target = into / path.relative_to(BOOK)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def release(course: Course, number: int) -> Path:
    """Makes a problem set's folder and zip; returns the zip. Raises RuntimeError if nbgrader refuses the source."""
    from nbgrader.apps import NbGraderAPI

    name = f"set_{number}"
    course.root.mkdir(parents=True, exist_ok=True)
    made = NbGraderAPI(config=course.nbgrader()).generate_assignment(name, force=True)
    if not made["success"]:
        raise RuntimeError(f"{name} could not be made:\n{made['log']}")
    folder = course.release / name
    for_students(folder / f"{name}.ipynb")
    cut(SETS[number], folder)
    (folder / "README.txt").write_text(README.format(number=number, chapter=SETS[number]), encoding="utf-8")
    archive = course.release / f"{name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                out.write(path, path.relative_to(course.release))
    return archive


def for_students(path: Path) -> None:
    """Takes from a notebook the signature, links to chapters (they do not lie beside it), and what stops "run all".

    That is an answer that is no function: it stays empty, where a function says when it is called that it is unwritten.
    """
    from nbgrader.utils import compute_checksum

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.id == "signature":
            cell.source = cell.source.replace('i_am("reference")', f'i_am("{UNSIGNED}")')
        elif cell.cell_type == "markdown":
            cell.source = CHAPTER_LINK.sub(r"\1", cell.source)
        elif cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = STOP.sub("", cell.source)
        if "checksum" in cell.metadata.get("nbgrader", {}):  # by it nbgrader knows an answer that nobody has touched
            cell.metadata["nbgrader"]["checksum"] = compute_checksum(cell)
    nbformat.write(notebook, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, nargs="+", choices=SETS, default=list(SETS), metavar="N")
    parser.add_argument("--course", type=Path, default=Course.root, help="where to write (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    for number in chosen.sets:
        print(release(Course(chosen.course.resolve()), number))


if __name__ == "__main__":
    sys.exit(main())
