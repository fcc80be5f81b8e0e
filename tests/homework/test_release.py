"""What students get: no solution and no hidden test, and a library that ends where their chapters end."""

import re
import subprocess
import sys
import zipfile

import nbformat
import pytest

from assignments.grading.course import BOOK, SETS, Course
from assignments.grading.release import modules, release
from assignments.grading.restore import is_answer, is_test
from ddpm_lib import CHAPTER
from ddpm_lib.homework.problem import find

TEST = re.compile(
    r'check\("([\d.]+)", ([\w.]+)\)\n### BEGIN HIDDEN TESTS\n'
    r'from ddpm_lib.homework.hidden import grade\n\ngrade\("\1", \2\)\n### END HIDDEN TESTS'
)
WRITTEN = [number for number in SETS if Course().notebook(number).exists()]


def source(number):
    return nbformat.read(Course().notebook(number), 4)


def inside(text, begin, end):
    """The lines between the marks."""
    return [line.strip() for part in re.findall(f"{begin}\n(.*?){end}", text, re.S) for line in part.splitlines()]


@pytest.mark.parametrize("number", WRITTEN)
def test_a_heading_says_which_set_and_problem_it_is(number):
    """Section 4.6, Eq. 4.6 and exercise 4.6 of the book are other things than problem 4.6."""
    text = "\n".join(cell.source for cell in source(number).cells if cell.cell_type == "markdown")
    titles = re.findall(r"^##? .*$", text, re.M)
    problems = [f"## Problem {number}.{k}. " for k in range(1, len(titles))]
    for title, begin in zip(titles, [f"# Problem set {number}. ", *problems], strict=True):
        assert title.startswith(begin) and title[len(begin)].isupper(), title


@pytest.fixture(scope="module", params=WRITTEN)
def released(request, tmp_path_factory):
    """A problem set's number, and what its zip holds: name → bytes."""
    pytest.importorskip("nbgrader", reason="comes with the extra `teaching`")
    folder = tmp_path_factory.mktemp("release")
    with zipfile.ZipFile(release(Course(folder), request.param)) as archive:
        archive.extractall(folder / "unpacked")
        files = {name: archive.read(name) for name in archive.namelist()}
    return request.param, files, folder / "unpacked" / f"set_{request.param}"


def test_no_solution_and_no_hidden_test_is_in_it(released):
    number, files, _ = released
    text = "\n".join(data.decode() for name, data in files.items())
    notebook = nbformat.reads(files[f"set_{number}/set_{number}.ipynb"].decode(), 4)
    cells = "\n".join(cell.source for cell in notebook.cells)
    for words in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN", "homework.hidden", "Rubric", "assignments.wrong"):
        assert words not in cells, words
    assert "def grade(" not in text and "DDPM_SALT" not in text
    kept = {cell.source for cell in source(number).cells if not is_answer(cell)}
    hidden = [line for c in source(number).cells for line in inside(c.source, "### BEGIN SOLUTION", "### END SOLUTION")]
    assert hidden
    leaked = [line for line in hidden if len(line) > 24 and line in cells and not any(line in text for text in kept)]
    assert not leaked
    assert "](../" not in cells, "a link that leads nowhere"
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert not [name for name in files if any(w in name for w in ("hidden", "answers", "wrong", "source"))]


def test_run_all_does_not_stop_at_an_answer_that_is_no_function(released):
    number, files, _ = released
    utils = pytest.importorskip("nbgrader.utils")
    for cell in nbformat.reads(files[f"set_{number}/set_{number}.ipynb"].decode(), 4).cells:
        assert not re.search("^raise NotImplementedError", cell.source, re.MULTILINE), cell.id
        if cell.metadata.get("nbgrader", {}).get("solution"):  # it is still known as one that nobody has answered
            assert cell.metadata["nbgrader"]["checksum"] == utils.compute_checksum(cell), cell.id


def test_it_has_the_library_up_to_its_chapters_and_no_further(released):
    number, files, folder = released
    inside = {name.removeprefix(f"set_{number}/") for name in files if name.endswith(".py")}
    assert inside == {str(path.relative_to(BOOK).as_posix()) for path in modules(SETS[number])}
    later = {name for name, chapter in CHAPTER.items() if chapter > SETS[number]}
    assert not inside & {f"ddpm_lib/{name.replace('.', '/')}.py" for name in later}
    program = "import sys\nsys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]  # the book's own\n"
    program += f"import ddpm_lib, ddpm_lib.homework.set_{number}, importlib.util as u\nprint(ddpm_lib.__file__)\n"
    program += f"assert not [m for m in {sorted(later)!r} if '.' not in m and u.find_spec('ddpm_lib.' + m)]"
    program += "\nfrom ddpm_lib.homework.problem import PROBLEMS\nsecret = [i for p in PROBLEMS.values() "
    program += "for i in p.identities if i.secret]\nassert secret and not any(i.measure for i in secret)"
    told = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(str(folder))


@pytest.mark.parametrize("number", WRITTEN)
def test_a_problem_set_is_built_as_the_grader_expects(number):
    notebook = source(number)
    assert notebook.metadata["ddpm"] == {"set": number}
    assert [cell.id for cell in notebook.cells if 'i_am("reference")' in cell.source] == ["signature"]
    tests = [cell for cell in notebook.cells if is_test(cell)]
    paper, points = 0, 0
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        if marks:
            assert marks["grade_id"] == cell.id
        paper += marks.get("points", 0) if marks.get("grade") and marks.get("solution") else 0
        if marks.get("solution"):
            assert "BEGIN SOLUTION" in cell.source, cell.id
    for cell in tests:
        problem = find(TEST.fullmatch(cell.source)[1])
        assert cell.metadata["nbgrader"]["points"] == problem.marks, problem.number
        assert problem.number.startswith(f"{number}.")
        points += problem.marks
        (earned,) = [o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result"]
        assert float(earned) == problem.marks, "the reference solution has full marks, stored as it ran"
    assert len({cell.source for cell in tests}) == len(tests)
    assert points >= 15 and paper >= 8
    text = "\n".join(cell.source for cell in notebook.cells)
    assert text.count("<summary>Hint") >= 3 and "plot.show(" in text
