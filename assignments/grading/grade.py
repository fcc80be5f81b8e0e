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
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from tqdm import tqdm

from assignments.grading import gradebook, one
from assignments.grading.collect import Submission, collect
from assignments.grading.course import SETS, Course, alone, fingerprint
from assignments.grading.execute import STOP, Limits
from assignments.grading.feedback import feedback
from assignments.grading.release import release


def grade(course: Course, numbers: list[int] | None = None, jobs: int = 0, limits: Limits | None = None) -> list[dict]:
    """Grades all that is new or changed; the results of all submissions. Ctrl-C keeps what is graded so far."""
    with alone(course):
        return work(course, numbers or list(SETS), jobs, limits or Limits())


def work(course: Course, numbers: list[int], jobs: int, limits: Limits) -> list[dict]:
    """`grade`, where nobody else is at work."""
    submissions = collect(course, numbers)
    for number in sorted({submission.number for submission in submissions}):
        prepare(course, number)
    students = sorted({submission.student for submission in submissions})
    results, todo = [], []
    for submission in submissions:
        before = stored(course, submission)
        if before and before.get("key") == one.key(course, submission, limits) and gradebook.has(course, before):
            results.append(before)
        else:
            todo.append(submission)
    if results:
        print(f"{len(results)} of {len(submissions)} submissions are as they were: they are not graded again")
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        running = [pool.submit(careful, course, submission, students, limits) for submission in todo]
        try:
            shown = {"total": len(todo), "unit": "submission", "desc": "grading", "disable": not todo}
            for done in tqdm(as_completed(running), **shown):
                results.append(save(course, done.result()))
        except KeyboardInterrupt:
            print("stopped: what is graded so far is kept, the kernels are ended", flush=True)
            STOP.set()
            pool.shutdown(cancel_futures=True)
            STOP.clear()
            report(course, results, numbers, complete=False)
            raise
    results.sort(key=order)
    report(course, results, numbers)
    return results


def order(result: dict) -> tuple[int, str]:
    return result["set"], result["student"]


def prepare(course: Course, number: int) -> None:
    """Makes the release anew if the source has changed: the grader compares with it, and so does nbgrader."""
    now, mark = fingerprint(course.notebook(number)), course.release / f"set_{number}.made"
    there = (course.release / f"set_{number}" / f"set_{number}.ipynb", course.root / "gradebook.db", mark)
    if not all(path.exists() for path in there) or mark.read_text(encoding="utf-8") != now:
        release(course, number)
        mark.write_text(now, encoding="utf-8")


def careful(course: Course, submission: Submission, students: list[str], limits: Limits) -> dict:
    """`one.grade`; whatever goes wrong with one submission is said of it, and the others are graded all the same."""
    try:
        return one.grade(course, submission, students, limits)
    except Exception as error:
        told = f"it could not be graded ({said(error)}): look at it by hand"
        names = {"student": submission.student, "set": submission.number, "key": "", "private": [], "problems": {}}
        return names | {"flags": [*submission.flags, told]}


def said(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()[:300]


def stored(course: Course, submission: Submission) -> dict | None:
    """The result of an earlier run, if there is one."""
    return read(course.autograded / submission.student / f"set_{submission.number}" / "result.json")


def read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def save(course: Course, result: dict) -> dict:
    """Writes a result to the gradebook, and then where the next run finds it. Returns it, with what went wrong."""
    name = f"set_{result['set']}"
    place = course.autograded / result["student"] / name
    try:
        if result["problems"]:
            gradebook.save(course, result, nbformat.read(place / f"{name}.ipynb", 4))
            (place / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    except Exception as error:
        told = f"its marks could not be kept ({said(error)}): grade it again"
        return result | {"flags": [*result["flags"], told], "problems": {}}
    return result


def others(course: Course, results: list[dict], numbers: list[int], complete: bool) -> list[dict]:
    """What earlier runs graded and this one did not look at: other problem sets, and what was taken away since."""
    seen, found = {order(result) for result in results}, []
    for path in sorted(course.autograded.glob("*/set_*/result.json")):
        result = read(path)
        if result and order(result) not in seen and gradebook.has(course, result):
            gone = complete and result["set"] in numbers
            told = ["no longer among the submissions: these are the marks of what was there before"] if gone else []
            found.append(result | {"flags": [*result["flags"], *told]})
    return found


def report(course: Course, results: list[dict], numbers: list[int], complete: bool = True) -> None:
    """Writes the pages of these results, and grades.csv with the others' rows, too. complete: all were graded."""
    rows, now = [], {order(result) for result in results}
    for result in sorted([*results, *others(course, results, numbers, complete)], key=order):
        given = gradebook.marks(course, result["set"], result["student"]) if result["problems"] else []
        rows.append(row(result, given))
        if given and order(result) in now:
            page = course.feedback / f"set_{result['set']}" / f"{result['student']}.html"
            try:
                page.parent.mkdir(parents=True, exist_ok=True)
                page.write_text(feedback(course, result, given), encoding="utf-8")
            except Exception as error:
                rows[-1]["flags"] = f"{rows[-1]['flags']}; no page could be made ({said(error)})".lstrip("; ")
    columns = list(dict.fromkeys(name for found in rows for name in found if name != "flags"))
    half = course.grades.with_suffix(".csv.new")
    with half.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "flags"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    half.replace(course.grades)  # where the disk is full, the old table stays
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
    again = [f"{mark.cell} was marked by hand and has changed since: look at it again" for mark in given if mark.again]
    flags = "; ".join([*result["flags"], *again, *result["private"]]).replace("\n", " ")
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
    try:
        grade(Course(chosen.course.resolve()), chosen.sets, chosen.jobs, limits)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    sys.exit(main())
