"""Grades one submission: puts the notebook together, runs it in a kernel of its own, and reads what the tests say."""

import os
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output

from assignments.grading.collect import Submission
from assignments.grading.course import BOOK, SETS, Course, fingerprint
from assignments.grading.execute import SANDBOX, Limits, Runner
from assignments.grading.release import cut
from assignments.grading.restore import borrowed, is_test, restore, sources
from ddpm_lib.homework.problem import Result, find

CALL = re.compile(r'^check\("([\d.]+)", (.+)\)$', re.MULTILINE)
SETUP = """
import sys as _s
_path, _s.path[:] = _s.path[:], [_p for _p in _s.path if _p]  # no module that a student wrote is imported here
_names = {{"__name__": "grader"}}
exec(compile({text!r}, "grader", "exec"), _names)
_names["Sandbox"](**{options!r}).serve(get_ipython().kernel)
_s.path[:] = _path
del _names, _s, _path
"""


def key(course: Course, submission: Submission, limits: Limits) -> str:
    """What a grade depends on: one that was made with the same key is not made again."""
    extra = repr((course.salt, limits, submission.student, submission.flags, submission.data))
    return fingerprint(course.notebook(submission.number), BOOK / "ddpm_lib", Path(__file__).parent, extra=extra)


def grade(course: Course, submission: Submission, students: list[str], limits: Limits) -> dict:
    """The result: student, set, flags, and for each problem its identities; writes the notebook as it was run.

    students: of the class, so that an answer for another one's numbers is recognised.
    """
    made_with = key(course, submission, limits)
    place = course.autograded / submission.student / f"set_{submission.number}"
    place.mkdir(parents=True, exist_ok=True)
    source, given = sources(course, submission.number)
    notebook = restore(submission, source, given) if submission.notebook is not None else None
    flags, private = list(submission.flags), []
    if notebook is None:
        problems = {problem: lost(problem, "It was not handed in.") for problem in tests(source).values()}
        notebook = empty(source, given)
        write_marks(notebook, problems)
    else:
        problems = run(course, submission, notebook, students, limits, flags)
        private = borrowed(notebook, source)
        private += [
            f"{n}: the answer for the numbers of {r.whose}" for n, rows in problems.items() for r in rows if r.whose
        ]
    path = place / f"set_{submission.number}.ipynb"
    same = unchanged(path, notebook)
    nbformat.write(notebook, path)
    return {
        "student": submission.student,
        "set": submission.number,
        "key": made_with,
        "flags": flags,
        "private": private,  # for the teacher alone
        "unchanged": same,
        "problems": {number: [asdict(result) for result in results] for number, results in problems.items()},
    }


def unchanged(path: Path, notebook: NotebookNode) -> list[str]:
    """The cells that are as they were when the submission was graded before."""
    try:
        before = {cell.id: (cell.source, cell.get("attachments")) for cell in nbformat.read(path, 4).cells}
    except Exception:  # it was not, or the file is not whole
        return []
    return [cell.id for cell in notebook.cells if before.get(cell.id) == (cell.source, cell.get("attachments"))]


def tests(notebook: NotebookNode) -> dict[str, str]:
    """Id of a test cell → the problem that it tests."""
    return {cell.id: CALL.search(cell.source)[1] for cell in notebook.cells if is_test(cell)}


def run(
    course, submission: Submission, notebook, students, limits: Limits, flags: list[str]
) -> dict[str, list[Result]]:
    """Runs all cells, stores their outputs in the notebook, and returns the results of the tests. Adds to the flags."""
    problems: dict[str, list[Result]] = {}
    tested = tests(notebook)
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder:
        work, library, said = Path(folder, "work"), Path(folder, "library"), Path(folder, "flags.txt")

        def fresh() -> None:
            """What decides a grade, as it is without the student's hand."""
            for place in (library, Path(folder, "ipython")):
                shutil.rmtree(place, ignore_errors=True)
            cut(SETS[submission.number], library)
            for name in ("hidden", f"answers_{submission.number}"):
                file = Path("ddpm_lib", "homework", f"{name}.py")
                if (BOOK / file).exists():
                    (library / file).write_bytes((BOOK / file).read_bytes())

        environment = {
            "PYTHONPATH": str(library),
            "PYTHONDONTWRITEBYTECODE": "1",
            "IPYTHONDIR": str(Path(folder, "ipython")),
            "TMPDIR": str(work),
            "DDPM_STUDENT": submission.student,
            "DDPM_CLASS": ",".join(students),
            "DDPM_SALT": fingerprint(extra=f"{course.salt}|{submission.number}|{submission.student}"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        options = {
            "number": submission.number,
            "student": submission.student,
            "own": os.path.join(os.path.realpath(folder), ""),
            "forbidden": [os.path.realpath(path) for path in course.private()],
            "kept": [os.path.realpath(path) for path in (library, said)],
            "flags": str(said),
            "memory": limits.memory,
        }
        setup = SETUP.format(text=SANDBOX.read_text(encoding="utf-8"), options=options)
        runner = Runner(work, environment, setup, fresh, folder, limits)
        try:
            for cell in notebook.cells:
                if cell.cell_type != "code":
                    continue
                if cell.id not in tested:
                    cell.outputs = runner.run(cell.source, cell.id)
                    continue
                problem, answer = CALL.search(cell.source).groups()
                problems[problem] = read(problem, runner.grade(problem, answer, cell.id))
        finally:
            runner.stop()
        if said.exists():
            flags += said.read_text(encoding="utf-8", errors="replace").splitlines()
        flags += runner.flags
    signature = next((cell for cell in notebook.cells if cell.id == "signature"), None)
    flags += [flag for flag in signed(submission, signature) if flag not in flags]
    write_marks(notebook, problems)
    return problems


def read(problem: str, told: dict) -> list[Result]:
    """The results that a test gave. Names and marks are the registry's, not what came from the kernel."""
    if "results" not in told:
        return lost(problem, str(told.get("error", "The test ended early."))[:2000])
    rows = {str(row.get("name")): row for row in told["results"]}
    results = []
    for identity in find(problem).identities:
        row = rows.get(identity.name, {"message": "The test ended early."})
        message = str(row.get("message", ""))[:2000]
        if message and identity.secret:
            kind = message.startswith("Expected a number")
            message = "Expected a number." if kind else "This is not the number that follows from your id."
        results.append(
            Result(identity.name, identity.marks, message, bool(row.get("shown", True)), str(row.get("whose", ""))[:80])
        )
    return results


def lost(problem: str, message: str) -> list[Result]:
    """All marks of a problem lost, for this reason."""
    return [Result(identity.name, identity.marks, message) for identity in find(problem).identities]


def write_marks(notebook: NotebookNode, problems: dict[str, list[Result]]) -> None:
    """Gives each test cell its marks as output, as nbgrader reads them (a test without output would have all)."""
    for cell in notebook.cells:
        if is_test(cell):
            results = problems[CALL.search(cell.source)[1]]
            marks = sum(result.marks for result in results if result.holds)
            text = "\n".join(f"{'✓' if result.holds else '✗'} {result.name} {result.message}" for result in results)
            cell.outputs = [
                new_output("stream", name="stdout", text=text + "\n"),
                new_output("execute_result", data={"text/plain": f"{marks:g}"}, execution_count=1),
            ]


def empty(source: NotebookNode, given: dict[str, NotebookNode]) -> NotebookNode:
    """The notebook as it was given out, for a submission that holds none."""
    nobody = Submission(0, "", notebook=nbformat.v4.new_notebook(cells=list(given.values())))
    return restore(nobody, source, given)


def signed(submission: Submission, cell: NotebookNode | None) -> list[str]:
    """A flag where the work is not signed with the id under which it was handed in."""
    found = re.search(r"i_am\(\s*[\"'](.*?)[\"']", cell.source) if cell is not None else None
    name = found[1].strip().lower() if found else ""
    if name in ("", "your id"):
        return ["it is not signed: the numbers are those of the id under which it was handed in"]
    return [] if name == submission.student else [f"it is signed {name!r}, and handed in as {submission.student!r}"]
