"""Grades what lies in the submissions folder: python -m assignments.grading.grade [--sets 1 2] [--jobs 2]

Makes grades.csv, and a page for each student in feedback/. Several submissions at once; what was graded before and has
not changed is not graded again, and marks given by hand are kept. Call it again after grading by hand.
"""

import argparse
import csv
import json
import os
import sys
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from tqdm import tqdm

from assignments.grading import gradebook, one
from assignments.grading.collect import Submission, collect
from assignments.grading.course import SETS, Course, fingerprint
from assignments.grading.execute import Limits
from assignments.grading.feedback import feedback
from assignments.grading.release import release


def grade(course: Course, numbers: list[int] | None = None, jobs: int = 0, limits: Limits | None = None) -> list[dict]:
    """Grades all that is new or changed; the results of all submissions."""
    limits = limits or Limits()
    submissions = collect(course, numbers)
    for number in sorted({submission.number for submission in submissions}):
        prepare(course, number)
    students = sorted({submission.student for submission in submissions})
    results, todo = [], []
    for submission in submissions:
        before = stored(course, submission)
        if before and before["key"] == one.key(course, submission, limits):
            results.append(before)
        else:
            todo.append(submission)
    if results:
        print(f"{len(results)} of {len(submissions)} submissions are as they were: they are not graded again")
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        running = {pool.submit(careful, course, submission, students, limits): submission for submission in todo}
        for done in tqdm(as_completed(running), total=len(todo), unit="submission", desc="grading", disable=not todo):
            results.append(done.result())
            save(course, results[-1])
    results.sort(key=lambda result: (result["set"], result["student"]))
    report(course, results)
    return results


def prepare(course: Course, number: int) -> None:
    """Makes the release anew if the source has changed: the grader compares with it, and so does nbgrader."""
    now, mark = fingerprint(course.notebook(number)), course.release / f"set_{number}.made"
    if not mark.exists() or mark.read_text(encoding="utf-8") != now or not (course.root / "gradebook.db").exists():
        release(course, number)
        mark.write_text(now, encoding="utf-8")


def careful(course: Course, submission: Submission, students: list[str], limits: Limits) -> dict:
    """`one.grade`; whatever goes wrong with one submission is said of it, and the others are graded all the same."""
    try:
        return one.grade(course, submission, students, limits)
    except Exception as error:
        told = "".join(traceback.format_exception_only(error)).strip()
        flags = [*submission.flags, f"it could not be graded ({told}): look at it by hand"]
        return {
            "student": submission.student,
            "set": submission.number,
            "key": "",
            "flags": flags,
            "private": [],
            "problems": {},
        }


def stored(course: Course, submission: Submission) -> dict | None:
    """The result of an earlier run, if there is one."""
    path = course.autograded / submission.student / f"set_{submission.number}" / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def save(course: Course, result: dict) -> None:
    """Writes a result to the gradebook."""
    name = f"set_{result['set']}"
    if result["problems"]:
        notebook = nbformat.read(course.autograded / result["student"] / name / f"{name}.ipynb", 4)
        gradebook.save(course, result["set"], result["student"], notebook)


def report(course: Course, results: Iterable[dict]) -> None:
    """Writes grades.csv and the pages."""
    rows = []
    for result in results:
        given = gradebook.marks(course, result["set"], result["student"]) if result["problems"] else []
        rows.append(row(result, given))
        if given:
            page = course.feedback / f"set_{result['set']}" / f"{result['student']}.html"
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(feedback(course, result, given), encoding="utf-8")
    columns = list(dict.fromkeys(name for found in rows for name in found if name != "flags"))
    with course.grades.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "flags"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    if rows:
        print(
            f"{course.grades}: {len(rows)} submissions, {sum(bool(found['flags']) for found in rows)} of them flagged"
        )
    else:
        print(f"nothing was handed in: put set_1/ada.zip, and the like, into {course.submissions}")


def row(result: dict, given: list[gradebook.Mark]) -> dict:
    """A line of grades.csv."""
    by_hand = [mark for mark in given if mark.by_hand]
    found = {
        "student": result["student"],
        "set": result["set"],
        "marks": sum(mark.score or 0 for mark in given),
        "of": sum(mark.most for mark in given),
        "by the grader": sum(mark.score or 0 for mark in given if not mark.by_hand),
        "by hand": sum(mark.score or 0 for mark in by_hand),
        "to grade by hand": sum(mark.most for mark in by_hand if mark.score is None),
    }
    for number, results in result["problems"].items():
        place = number.partition(".")[2]
        found[f"problem {place}"] = sum(identity["marks"] for identity in results if not identity["message"])
    flags = "; ".join([*result["flags"], *result["private"]]).replace("\n", " ")
    return found | {"flags": f"'{flags}" if flags[:1] in "=+-@" and flags else flags}  # no formula in a spreadsheet


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, nargs="+", choices=SETS, metavar="N", help="only these problem sets")
    parser.add_argument("--jobs", type=int, default=0, help="submissions at once (default: one for each core)")
    parser.add_argument("--course", type=Path, default=Course.root, help="the course's folder (default: %(default)s)")
    parser.add_argument("--cell", type=float, default=Limits.cell, metavar="S", help="seconds for a cell")
    parser.add_argument("--total", type=float, default=Limits.total, metavar="S", help="seconds for a submission")
    chosen = parser.parse_args(arguments)
    limits = Limits(cell=chosen.cell, total=chosen.total)
    grade(Course(chosen.course.resolve()), chosen.sets, chosen.jobs, limits)


if __name__ == "__main__":
    sys.exit(main())
