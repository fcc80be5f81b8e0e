"""Whatever is handed in gets the marks that it should, or is flagged; and the others are graded all the same."""

import csv
import json
import re

import nbformat
import pytest

from assignments.grading import gradebook, one
from assignments.grading.collect import collect
from assignments.grading.execute import Limits, Runner
from assignments.grading.feedback import without_paths
from assignments.grading.grade import grade
from assignments.grading.restore import borrowed, restore, sources
from tests.homework import odd
from tests.homework.handed_in import cases, hand_in, reference

LIMITS = Limits(grace=1, memory=5_000_000_000)
QUICK = ("reference", "exits-in-answer", "swallows", "patches-checks", "reads-solution", "easy-problems", "strict")


@pytest.fixture(scope="module")
def all_cases(course):
    return {case.name: case for case in (*cases(course, 1), *odd.cases(course, 1))}


def examine(course, all_cases, names, results):
    """Each result is what its case says: marks by problem, and flags, no more and no fewer."""
    found = {result["student"]: result for result in results}
    for name in names:
        case, result = all_cases[name], found[name]
        lost = [i for i, rows in enumerate(result["problems"].values()) if any(row["message"] for row in rows)]
        assert lost == (list(range(len(result["problems"]))) if case.loses == "all" else list(case.loses)), name
        for words in case.flags:
            assert any(words in flag for flag in result["flags"]), (name, words, result["flags"])
        assert bool(result["flags"]) == bool(case.flags), (name, result["flags"])


@pytest.fixture(scope="module", autouse=True)
def impatient():
    """Cells that hang are given up at once; on a busy machine any other may take its time."""
    send = Runner.send

    def hurried(self, code, silent=False, limit=0):
        return send(self, code, silent, 2 if re.match(r"(import time\n)?while True", code) else limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "send", hurried)
        yield


@pytest.fixture(scope="module")
def graded(course, all_cases):
    for name in QUICK:
        hand_in(course, 1, all_cases[name])
    return grade(course, [1], 2, LIMITS)


def test_marks_and_flags_are_what_they_should_be(course, all_cases, graded):
    examine(course, all_cases, QUICK, graded)


def test_the_table_has_a_line_for_each(course, graded):
    rows = {row["student"]: row for row in csv.DictReader(course.grades.open(encoding="utf-8"))}
    assert rows.keys() == set(QUICK)
    full = rows["reference"]
    assert float(full["by the grader"]) == float(full["of"]) - float(full["to grade by hand"]) > 0
    assert float(rows["exits-in-answer"]["by the grader"]) < float(full["by the grader"])
    assert full["flags"] == "" and "tried to open" in rows["reads-solution"]["flags"]


def test_a_page_tells_a_student_what_was_lost_and_no_hidden_test(course, graded):
    for name in QUICK:
        page = (course.feedback / "set_1" / f"{name}.html").read_text(encoding="utf-8")
        assert "HIDDEN" not in page and "hidden import" not in page and "DDPM_SALT" not in page
        assert course.salt not in page
        assert str(course.root) not in page or name == "reads-solution"  # a path that the student wrote
        assert re.search(r"[\d.]+ of [\d.]+ marks", page)
    assert "ended the kernel" in (course.feedback / "set_1" / "exits-in-answer.html").read_text(encoding="utf-8")


def test_a_second_run_grades_only_what_changed(course, all_cases, graded, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(one, "grade", lambda c, submission, *rest: asked.append(submission.student) or graded[0])
    assert grade(course, [1], 1, LIMITS) == graded
    assert asked == []
    path = course.submissions / "set_1" / "reference.ipynb"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"reference", b"another", 1))
    try:
        grade(course, [1], 1, LIMITS)
    finally:
        path.write_bytes(before)
    assert asked == ["reference"]


def test_marks_given_by_hand_stay_and_come_into_the_table_and_on_the_page(course, graded):
    from nbgrader.api import Gradebook

    waiting = [mark for mark in gradebook.marks(course, 1, "reference") if mark.score is None]
    assert waiting
    with Gradebook(course.database, "ddpm") as book:
        mark = book.find_grade(waiting[0].cell, "set_1", "set_1", "reference")
        mark.manual_score, mark.needs_manual_grade = 1.0, False
        book.find_comment(waiting[0].cell, "set_1", "set_1", "reference").manual_comment = "Say why <b>it</b> holds."
        book.db.commit()
    grade(course, [1], 1, LIMITS)
    rows = {row["student"]: row for row in csv.DictReader(course.grades.open(encoding="utf-8"))}
    assert float(rows["reference"]["by hand"]) == 1.0
    page = (course.feedback / "set_1" / "reference.html").read_text(encoding="utf-8")
    assert "Say why &lt;b&gt;it&lt;/b&gt; holds." in page


def test_what_cannot_be_graded_is_said_and_the_others_are_graded(course, graded, monkeypatch):
    right = one.grade

    def breaks(c, submission, *rest):
        if submission.student == "swallows":
            raise OSError("no space left")
        return right(c, submission, *rest)

    monkeypatch.setattr(one, "grade", breaks)
    before = {result["student"]: result | {"key": "x"} for result in graded if result["student"] != "swallows"}
    monkeypatch.setattr(one, "key", lambda *given: "x")
    monkeypatch.setattr("assignments.grading.grade.stored", lambda c, submission: before.get(submission.student))
    results = {result["student"]: result for result in grade(course, [1], 1, LIMITS)}
    assert results.keys() == set(QUICK)
    assert any("no space left" in flag for flag in results["swallows"]["flags"])


# Without a kernel


def put_together(course, case):
    """The notebook that would be run, and the flags."""
    path = hand_in(course, 1, case)
    try:
        (submission,) = [found for found in collect(course, [1]) if found.student == case.name]
    finally:
        path.unlink()
    source, given = sources(course, 1)
    return submission, restore(submission, source, given) if submission.notebook is not None else None


def test_whatever_was_done_to_the_file_the_same_cells_are_run(course, all_cases):
    source = nbformat.read(course.notebook(1), 4)
    for case in all_cases.values():
        if case.runs or case.name == "reference":
            continue
        submission, notebook = put_together(course, case)
        if case.loses == "all":
            assert notebook is None
        else:
            for cell, kept in zip(notebook.cells, source.cells, strict=True):
                answer = case.name.startswith("deleted-a") and "def " in kept.source
                if kept.id != "signature" and not answer:
                    assert cell.source == kept.source, case.name
        for words in case.flags:
            assert any(words in flag for flag in submission.flags), (case.name, submission.flags)
        assert bool(submission.flags) == bool(case.flags), (case.name, submission.flags)


def test_a_student_s_own_cells_stay_where_they_were(course):
    notebook = reference(course, 1, "ada")
    notebook.cells.insert(3, nbformat.v4.new_code_cell("helper = 1"))
    source, given = sources(course, 1)
    from assignments.grading.collect import Submission

    graded = restore(Submission(1, "ada", notebook=notebook), source, given)
    texts = [cell.source for cell in graded.cells]
    assert texts.index("helper = 1") == 3 and len(texts) == len(source.cells) + 1


def test_what_is_imported_from_the_checks_is_told_to_the_teacher(course):
    source = nbformat.read(course.notebook(1), 4)
    notebook = reference(course, 1, "ada")
    assert borrowed(notebook, source) == []
    for text in (
        "from ddpm_lib.homework.set_1 import derivation_of",
        "import ddpm_lib.homework.readings_1 as r",
        "def f(:",
    ):
        notebook.cells.append(nbformat.v4.new_code_cell(text))
    told = "; ".join(borrowed(notebook, source))
    assert "set_1.derivation_of" in told and "homework.readings_1:" in told and told.count("imports") == 2


def test_a_photograph_of_a_derivation_is_kept(course):
    notebook = reference(course, 1, "ada")
    paper = next(c for c in notebook.cells if c.cell_type == "markdown" and c.metadata["nbgrader"].get("grade"))
    paper.attachments = {"page.png": {"image/png": "aGVsbG8="}}
    source, given = sources(course, 1)
    from assignments.grading.collect import Submission

    graded = restore(Submission(1, "ada", notebook=notebook), source, given)
    assert [cell.attachments for cell in graded.cells if cell.get("attachments")] == [paper.attachments]


@pytest.mark.soak
def test_every_case(course, all_cases):
    for case in all_cases.values():
        hand_in(course, 1, case)
    examine(course, all_cases, all_cases, grade(course, [1], 2, LIMITS))
    assert json.loads((course.autograded / "reference" / "set_1" / "result.json").read_text())["flags"] == []


def test_a_kernel_that_does_not_come_up_is_started_again(tmp_path, monkeypatch):
    asked, ended = [], []

    class Client:
        def wait_for_ready(self, timeout):
            asked.append(timeout)
            if len(asked) < 2:
                raise RuntimeError("no answer")

    def launch(runner):
        runner.client = Client()

    monkeypatch.setattr(Runner, "launch", launch)
    monkeypatch.setattr(Runner, "stop", lambda runner: ended.append(runner))
    monkeypatch.setattr(Runner, "send", lambda *given, **limits: [])
    Runner(tmp_path, {}, "", lambda: None, "mark").start()
    assert len(asked) == 2 and len(ended) == 2


def test_a_page_with_a_long_picture_is_made_at_once_without_the_grader_s_paths():
    text = "src=" + "iVBORw0KGgo/AAAA+" * 200_000 + " /tmp/grade-abcd1234/library/x.py"
    assert without_paths(text).endswith("…/library/x.py")
