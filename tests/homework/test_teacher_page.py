"""The teacher's page says what is so: marks, sets, flags, take-aways for every chapter, sections that there are."""

import re
from pathlib import Path

import nbformat
import pytest

from assignments.grading.course import SETS, Course
from assignments.grading.execute import RESTARTS, Limits
from assignments.grading.restore import is_test
from tools.links import SECTION, Book

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "assignments" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", SETS)
def test_the_marks_of_a_set_are_those_of_its_notebook(number):
    path = Course().notebook(number)
    if not path.exists():
        pytest.skip("this set is not written yet")
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.metadata.get("nbgrader", {}).get("grade")]
    tests = sum(cell.metadata.nbgrader.points for cell in cells if is_test(cell))
    marks = sum(cell.metadata.nbgrader.points for cell in cells)
    found = re.search(rf"^\| {number} \| .+ \| (\d+)(?: .*)? \| (\d+) \| (\d+) \| (\d+) \| ", PAGE, re.MULTILINE)
    assert [int(n) for n in found.groups()] == [SETS[number], marks, tests, marks - tests]


def test_a_flag_is_called_as_the_grader_calls_it():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "assignments/grading").glob("*.py"))
    said = re.sub(r"\{[^{}]*\}", "", re.sub(r'"\s*f?"', "", code))
    table = PAGE.partition("| flag (words of it)")[2].partition("\n\n")[0]
    flags = [words for row in table.splitlines()[2:] for words in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(flags) > 15
    for words in flags:
        if not words.startswith("torch."):
            assert words in said or all(part in said for part in words.split(": ")), words


def test_limits_are_the_grader_s():
    limits = Limits()
    assert f"has {limits.cell:g} seconds (`--cell`)" in PAGE and f"within {limits.grace:g} seconds" in PAGE
    assert f"has {limits.total:g} seconds (`--total`)" in PAGE
    assert f"limited to {limits.memory / 1e9:g} GB" in PAGE
    assert RESTARTS == 10 and "ten more kernels" in PAGE


def test_every_chapter_has_four_take_aways():
    part = PAGE.partition("\n## Take-aways\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\*\*(\d+) .+\n(1\. .+\n2\. .+\n3\. .+\n4\. .+)$", part, re.MULTILINE)
    assert [int(number) for number, _ in found] == list(range(17))


def test_the_syllabus_names_sections_that_there_are():
    book = Book()
    sections = {n for notebook in book.notebooks.values() for c in notebook.cells for n in SECTION.findall(c.source)}
    part = PAGE.partition("\n## Syllabus\n")[2].partition("\n## ")[0]
    rows = [row for row in part.splitlines() if re.match(r"\| \d+ \|", row)]
    named = [number for row in rows for number in re.findall(r"\b\d+\.\d+\b", row.partition("problems")[0])]
    assert len(rows) == 6 + 10 + 14 and len(named) > 60
    assert not [number for number in named if number not in sections]
