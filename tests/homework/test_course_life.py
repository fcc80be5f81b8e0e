"""What a course goes through: sets graded one by one, answers handed in again, a stop in the middle, two graders."""

import csv
import os
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from assignments.grading import gradebook, one
from assignments.grading.collect import collect
from assignments.grading.course import Course, alone
from assignments.grading.feedback import allowed, clean, public
from assignments.grading.grade import grade, prepare
from tests.homework.conftest import beginning
from tests.homework.handed_in import Case, hand_in


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    pytest.importorskip("nbgrader", reason="comes with the extra `teaching`")
    root = tmp_path_factory.mktemp("life")
    made = Course(root, source=root / "source")
    for number in (1, 2):
        path = made.notebook(number)
        path.parent.mkdir(parents=True)
        nbformat.write(beginning(nbformat.read(Course().notebook(number), 4)), path)
        prepare(made, number)
    return made


@pytest.fixture
def quick(released, tmp_path, monkeypatch):
    """The course with nothing handed in. No kernel runs: every test is lost."""

    def lost(course, submission, notebook, *rest):
        problems = {problem: one.lost(problem, "lost") for problem in one.tests(notebook).values()}
        one.write_marks(notebook, problems)
        return problems

    monkeypatch.setattr(one, "run", lost)
    shutil.copytree(released.root, tmp_path / "course")
    return Course(tmp_path / "course", source=tmp_path / "course" / "source")


def rows(course):
    with course.grades.open(encoding="utf-8") as file:
        return {(row["set"], row["student"]): row for row in csv.DictReader(file)}


def test_the_table_keeps_the_other_sets_and_who_is_no_longer_there(quick):
    for number in (1, 2):
        hand_in(quick, number, Case("ada"))
        grade(quick, [number], 1)
    hand_in(quick, 1, Case("bob"))
    grade(quick, [1], 1)
    assert rows(quick).keys() == {("1", "ada"), ("2", "ada"), ("1", "bob")}
    (quick.submissions / "set_1" / "ada.ipynb").unlink()
    grade(quick, [1], 1)
    assert "no longer among the submissions" in rows(quick)["1", "ada"]["flags"]
    assert rows(quick)["2", "ada"]["flags"] == rows(quick)["1", "bob"]["flags"] == ""


def test_an_answer_that_changed_after_it_was_marked_by_hand_is_named(quick):
    from nbgrader.api import Gradebook

    path = hand_in(quick, 1, Case("ada"))
    grade(quick, [1], 1)
    paper = next(mark.cell for mark in gradebook.marks(quick, 1, "ada") if mark.score is None)
    with Gradebook(quick.database, "ddpm") as book:
        mark = book.find_grade(paper, "set_1", "set_1", "ada")
        mark.manual_score, mark.needs_manual_grade = 1.0, False
        book.db.commit()
    notebook = nbformat.read(path, 4)
    told = []
    for change in ("", "other words", ""):
        notebook.cells.append(nbformat.v4.new_code_cell("1"))
        next(cell for cell in notebook.cells if cell.id == paper).source += change
        nbformat.write(notebook, path)
        grade(quick, [1], 1)
        told.append("look at it again" in rows(quick)["1", "ada"]["flags"])
        assert float(rows(quick)["1", "ada"]["by hand"]) == 1.0
    assert told == [False, True, True]


def test_a_stop_in_the_middle_keeps_what_is_graded(quick, monkeypatch):
    right, asked = one.grade, []
    for name in ("ada", "bob", "eve"):
        hand_in(quick, 1, Case(name))

    def stopped(course, submission, *rest):
        asked.append(submission.student)
        if submission.student == "bob":
            raise KeyboardInterrupt
        return right(course, submission, *rest)

    monkeypatch.setattr(one, "grade", stopped)
    with pytest.raises(KeyboardInterrupt):
        grade(quick, [1], 1)
    assert ("1", "ada") in rows(quick) and ("1", "bob") not in rows(quick)
    monkeypatch.setattr(one, "grade", right)
    grade(quick, [1], 1)
    assert {student for _, student in rows(quick)} == {"ada", "bob", "eve"}


def test_without_its_gradebook_or_its_release_a_course_is_graded_anew(quick):
    hand_in(quick, 1, Case("ada"))
    grade(quick, [1], 1)
    (quick.root / "gradebook.db").unlink()
    shutil.rmtree(quick.release / "set_1")
    (result,) = grade(quick, [1], 1)
    assert result["flags"] == [] and float(rows(quick)["1", "ada"]["of"]) > 0


def test_two_graders_do_not_work_at_once(quick):
    pytest.importorskip("fcntl")
    with alone(quick), pytest.raises(RuntimeError, match="another grader is at work"):
        grade(quick, [1], 1)


def test_all_that_ask_first_for_the_salt_get_the_same(tmp_path, monkeypatch):
    turns = iter(range(4))

    def word(size):
        time.sleep(turn := 0.1 * next(turns))
        return f"after {turn}"

    monkeypatch.setattr("secrets.token_hex", word)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(getattr, Course(tmp_path), "salt") for _ in range(4)]
    assert {salt.result() for salt in asked} == {Course(tmp_path).salt}


def test_ids_that_are_alike_are_named_and_what_only_points_elsewhere_is_not_opened(quick):
    folder = quick.submissions / "set_1"
    path = hand_in(quick, 1, Case("ada"))
    for place, name in enumerate(("Jos\u00e9 M.ipynb", "jose\u0301_m.ipynb", "-rf.ipynb")):
        shutil.copy(path, folder / name)
        os.utime(folder / name, (place, place))
    with zipfile.ZipFile(folder / "ADA.zip", "w") as out:
        out.write(path, "set_1.ipynb")
    os.utime(folder / "ADA.zip", (1, 1))
    (folder / "eve").mkdir()
    (folder / "eve" / "set_1.ipynb").symlink_to(path)
    (folder / "eve" / "more.zip").symlink_to(folder / "ADA.zip")
    found = {submission.student: submission.flags for submission in collect(quick, [1])}
    assert found.keys() == {"ada", "jos\u00e9_m", "rf", "eve"}
    assert "ada.ipynb was graded, not ADA.zip" in found["ada"][0] and "alike" in found["jos\u00e9_m"][0]
    assert found["eve"] == ["holds no notebook"] and found["rf"] == []


def test_a_page_has_neither_what_runs_nor_where_it_ran():
    text = clean('<p onclick="x"><img src="data:image/png;base64,aa"><img src="http://x"><a href=" data:text/html,x">y')
    assert "onclick" not in text and "http://x" not in text and "text/html" not in text and "data:image/png" in text
    assert not allowed("a", "href", "JavaScript:x") and allowed("a", "href", "https://x")
    assert "/" not in public("tried to write /home/x/y").removeprefix("tried to write")
