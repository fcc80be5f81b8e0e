"""A course in a temporary folder, with the beginning of a real problem set."""

import nbformat
import pytest

from assignments.grading.course import Course
from assignments.grading.grade import prepare
from assignments.grading.restore import is_test

KEPT = 2  # tests of the problem set


def beginning(source: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A problem set up to its second test cell, and its last answer on paper."""
    places = [i for i, cell in enumerate(source.cells) if is_test(cell)]
    paper = [c for c in source.cells if c.cell_type == "markdown" and c.metadata.get("nbgrader", {}).get("grade")]
    source.cells = source.cells[: places[KEPT - 1] + 1]
    source.cells += [cell for cell in paper[-1:] if cell not in source.cells]
    return source


@pytest.fixture(scope="session")
def course(tmp_path_factory) -> Course:
    pytest.importorskip("nbgrader", reason="comes with the extra `teaching`")
    root = tmp_path_factory.mktemp("course")
    short = Course(root, source=root / "source")
    path = short.notebook(1)
    path.parent.mkdir(parents=True)
    nbformat.write(beginning(nbformat.read(Course().notebook(1), 4)), path)
    prepare(short, 1)
    return short
