"""nbgrader's gradebook: marks go in, so that its pages can be used for what people grade; and all marks come out."""

import warnings
from dataclasses import dataclass

from nbformat import NotebookNode

from assignments.grading.course import Course


@dataclass
class Mark:
    """One graded cell. score: None until somebody has graded it; again: graded by hand, and changed since."""

    cell: str
    score: float | None
    most: float
    by_hand: bool
    comment: str
    again: bool = False


def save(course: Course, result: dict, notebook: NotebookNode) -> None:
    """Writes the marks of a notebook that was run. What a person gave in the gradebook stays.

    nbgrader asks to look again at all that was graded by hand; here only where the answer is another one.
    """
    from nbgrader.api import Gradebook
    from nbgrader.preprocessors import SaveAutoGrades
    from sqlalchemy.exc import SAWarning

    name, student = f"set_{result['set']}", result["student"]
    where = {"notebook": name, "assignment": name, "student": student, "db_url": course.database}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # of how nbgrader uses its database
        with Gradebook(course.database, "ddpm") as book:
            book.update_or_create_student(student)
            book.update_or_create_submission(name, student)
            found = book.find_submission(name, student).notebooks
            same = [grade.name for n in found for grade in n.grades if grade.manual_score is not None
                    and not grade.needs_manual_grade and grade.name in result["unchanged"]]  # fmt: skip
        SaveAutoGrades().preprocess(notebook, {"nbgrader": where})
        with Gradebook(course.database, "ddpm") as book:
            for cell in same:
                book.find_grade(cell, name, name, student).needs_manual_grade = False
            book.db.commit()


def has(course: Course, result: dict) -> bool:
    """Whether the gradebook knows of a result."""
    from nbgrader.api import Gradebook, MissingEntry

    name = f"set_{result['set']}"
    try:
        with Gradebook(course.database, "ddpm") as book:
            return bool(book.find_submission_notebook(name, name, result["student"]).grades)
    except MissingEntry:
        return False


def marks(course: Course, number: int, student: str) -> list[Mark]:
    """Every graded cell of a submission, in the notebook's order as far as the gradebook knows it."""
    from nbgrader.api import Gradebook

    name = f"set_{number}"
    with Gradebook(course.database, "ddpm") as book:
        submission = book.find_submission_notebook(name, name, student)
        comments = {comment.name: comment.comment or "" for comment in submission.comments}
        found = []
        for grade in submission.grades:
            by_hand = grade.cell.cell_type == "markdown" or bool(comments.keys() & {grade.name})
            score = grade.manual_score if grade.manual_score is not None else grade.auto_score
            waits = grade.needs_manual_grade and grade.manual_score is None
            again = bool(grade.needs_manual_grade) and not waits
            said = comments.get(grade.name, "")
            found.append(Mark(grade.name, None if waits else score, grade.max_score, by_hand, said, again))
    return found
