"""A chapter that a teacher hands out shows no way to the solutions, and is otherwise the chapter."""

import re
from pathlib import Path

import nbformat
import pytest

from tools.handout import handout

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda path: path.name)
def test_it_is_the_chapter_without_a_way_to_its_solutions(path, tmp_path):
    handout(path, tmp_path / "out.ipynb")
    given, chapter = nbformat.read(tmp_path / "out.ipynb", 4), nbformat.read(path, 4)
    assert "solutions/" not in (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "assignments/" not in (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert [cell.id for cell in given.cells] == [cell.id for cell in chapter.cells]
    changed = [cell.source for cell, before in zip(given.cells, chapter.cells, strict=True) if cell != before]
    assert all(text.startswith(("## Exercises", "**")) for text in changed)
    exercises = any(cell.source.startswith("## Exercises") for cell in chapter.cells)
    assert len(changed) >= 2 if exercises else not changed
    for text in (text for text in changed if text.startswith("## ")):
        assert re.fullmatch(r"## Exercises\n\nProblem set \d goes deeper, with a check for every function\.", text)


def test_no_file_is_written_over(tmp_path):
    (tmp_path / "out.ipynb").write_text("mine")
    with pytest.raises(FileExistsError, match="name another file"):
        handout(ROOT / "chapters/04_posterior.ipynb", tmp_path / "out.ipynb")
    assert (tmp_path / "out.ipynb").read_text() == "mine"
