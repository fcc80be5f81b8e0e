"""The notebook that is graded: the teacher's own, with the student's answers in their places.

Whatever the student changed besides is put back, and said. A test cell that was changed, moved, copied or deleted has
no effect on what is graded.
"""

import ast
import copy
import difflib
from collections import Counter

import nbformat
from nbformat import NotebookNode

from assignments.grading.collect import Submission, belongs
from assignments.grading.course import Course

FEWEST = 0.3  # a notebook with a smaller share of a set's cells is not that set


def grade_id(cell: NotebookNode) -> str:
    """nbgrader's id of a cell, or ""."""
    marks = cell.metadata.get("nbgrader", {})
    return str(marks.get("grade_id", "")) if isinstance(marks, dict) else ""


def is_answer(cell: NotebookNode) -> bool:
    """Whether a cell of the source is the student's to write."""
    return bool(cell.metadata.get("nbgrader", {}).get("solution")) or not cell.metadata.get("nbgrader")


def is_test(cell: NotebookNode) -> bool:
    marks = cell.metadata.get("nbgrader", {})
    return bool(cell.cell_type == "code" and marks.get("grade") and not marks.get("solution"))


def sources(course: Course, number: int) -> tuple[NotebookNode, dict[str, NotebookNode]]:
    """The source notebook, and the cells of the students' one, by id."""
    name = f"set_{number}"
    released = nbformat.read(course.release / name / f"{name}.ipynb", 4)
    return nbformat.read(course.notebook(number), 4), {cell.id: cell for cell in released.cells}


def match(source: NotebookNode, given: dict[str, NotebookNode], cells: list[NotebookNode]) -> list[str]:
    """For each submitted cell the id of the source's cell that it is, or "" (each id once, the first that claims it).

    By nbgrader's id, else by the cell's own; where a program dropped both, by the text, and answers by their place.
    """
    ids = {cell.id for cell in source.cells}
    texts = {cell.source.strip(): name for name, cell in given.items()}
    taken: list[str] = []
    for cell in cells:
        claims = (grade_id(cell), str(cell.get("id", "")), texts.get(cell.source.strip(), ""))
        taken.append(next((name for name in claims if name in ids), ""))
        ids.discard(taken[-1])
    order = [cell.id for cell in source.cells]
    for place, name in enumerate(order):
        if name not in taken and is_answer(source.cells[place]):
            low = taken.index(order[place - 1]) if place and order[place - 1] in taken else -1
            high = next((taken.index(later) for later in order[place + 1 :] if later in taken), len(taken))
            if (best := likest(given[name], cells, [i for i in range(low + 1, high) if not taken[i]])) is not None:
                taken[best] = name
    return taken


def likest(wanted: NotebookNode, cells: list[NotebookNode], places: list[int]) -> int | None:
    """Which of the cells at these places, of the same kind, is most like a cell as it was given out; None without one.

    A cell with nbgrader's marks is not asked: it is a copy of another one.
    """
    fitting = [i for i in places if cells[i].cell_type == wanted.cell_type and not grade_id(cells[i])]
    ratio = {i: difflib.SequenceMatcher(None, wanted.source, cells[i].source[:5000]).quick_ratio() for i in fitting}
    return max(fitting, key=ratio.get, default=None)


def restore(submission: Submission, source: NotebookNode, given: dict[str, NotebookNode]) -> NotebookNode | None:
    """The notebook to grade; None where the submission is not this problem set. Adds to the submission's flags.

    The student's own cells stay behind the cell that they followed.
    """
    cells = submission.notebook.cells
    names = match(source, given, cells)
    if sum(map(bool, names)) < FEWEST * len(source.cells):
        other = belongs(submission.notebook)
        told = f"it says that it is set {other}" if other not in (None, submission.number) else "hardly a cell is there"
        submission.flags.append(f"this is not problem set {submission.number}: {told}")
        return None
    found: dict[str, NotebookNode] = {}
    extra: dict[str, list[NotebookNode]] = {}
    last = ""
    for name, cell in zip(names, cells, strict=True):
        if name:
            found[name], last = cell, name
        elif cell.cell_type in ("code", "markdown") and cell.source.strip():
            if grade_id(cell) in found:
                what = "left out" if is_test(cell) else "a cell of their own"
                submission.flags.append(f"there is a copy of cell {grade_id(cell)}: it is {what}")
                if is_test(cell):
                    continue
            extra.setdefault(last, []).append(cell)
    graded = copy.deepcopy(source)
    graded.cells = [plain(cell, f"own-0-{i}") for i, cell in enumerate(extra.get("", []))]
    for place, kept in enumerate(source.cells, start=1):
        graded.cells.append(answered(submission, kept, found.get(kept.id), given[kept.id]))
        graded.cells += [plain(cell, f"own-{place}-{i}") for i, cell in enumerate(extra.get(kept.id, []))]
    order = [name for name in names if name]
    if order != sorted(order, key=[cell.id for cell in source.cells].index):
        submission.flags.append("cells stand in another order than in the problem set")
    for name, count in Counter(str(cell.get("id")) for cell in cells if cell.get("id")).items():
        if count > 1:
            submission.flags.append(f"{count} cells have the same id, {name}")
    return graded


def answered(submission: Submission, kept: NotebookNode, got: NotebookNode | None, given: NotebookNode):
    """The source's cell, with the student's text where it is the student's to write."""
    cell = copy.deepcopy(kept)
    cell.metadata = copy.deepcopy(given.metadata)  # with nbgrader's checksum: an answer that is as it was given is none
    cell.pop("attachments", None)
    if cell.cell_type == "code":
        cell |= {"outputs": [], "execution_count": None}
    kind = "test cell" if is_test(kept) else "answer" if is_answer(kept) else "given cell"
    if got is None:
        submission.flags.append(f"{kind} {kept.id} was deleted" + ("" if is_answer(kept) else ": it was put back"))
    if is_answer(kept):
        cell.source = given.source if got is None else got.source
        if got is not None and got.cell_type != kept.cell_type:
            submission.flags.append(f"{kind} {kept.id} was turned into {got.cell_type}: it was turned back")
        if got is not None and got.get("attachments") and cell.cell_type == "markdown":
            cell.attachments = got.attachments
    elif got is not None and tidy(got.source) != tidy(given.source):
        submission.flags.append(f"{kind} {kept.id} was changed: it was put back")
    return cell


def tidy(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().split("\n")]


def plain(cell: NotebookNode, name: str) -> NotebookNode:
    """A cell of the student's own, without marks."""
    make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    return make(cell.source, id=name)


def borrowed(notebook: NotebookNode, source: NotebookNode) -> list[str]:
    """Flags for what the student's cells import from the checks and no given cell does: routes to what is asked for."""
    given = {name for cell in source.cells if cell.cell_type == "code" for name in homework(cell.source)}
    ids = {cell.id for cell in source.cells if not is_answer(cell)}
    own = {name for c in notebook.cells if c.cell_type == "code" and c.id not in ids for name in homework(c.source)}
    return [f"imports {name}: look whether an answer comes from there" for name in sorted(own - given)]


def homework(text: str) -> set[str]:
    """What a cell imports from ddpm_lib.homework."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm_lib.homework"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("ddpm_lib.homework")}
    return found
