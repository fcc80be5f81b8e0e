"""Submissions as students hand them in, good and bad: what the grader's tests grade."""

import copy
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from assignments.grading.course import Course
from assignments.grading.restore import is_test


def reference(course: Course, number: int, student: str) -> nbformat.NotebookNode:
    """A released problem set with the reference solutions in it, signed by a student."""
    source = {cell.id: cell for cell in nbformat.read(course.notebook(number), 4).cells}
    notebook = nbformat.read(course.release / f"set_{number}" / f"set_{number}.ipynb", 4)
    for cell in notebook.cells:
        if source[cell.id].metadata.get("nbgrader", {}).get("solution"):
            cell.source = source[cell.id].source
        elif cell.id == "signature":
            cell.source = cell.source.replace("your id", student)
    return notebook


def written(notebook: nbformat.NotebookNode) -> bytes:
    return json.dumps(notebook).encode()  # as it is, also where two cells have one id


@dataclass
class Case:
    """A submission. change(notebook): what the student did; file: how it is handed in; flags: words that must be said,
    and nothing else is; loses: places of the test cells that lose marks, or "all"; runs: whether a kernel must run it.
    """

    name: str
    change: Callable = lambda notebook: None
    flags: tuple[str, ...] = ()
    loses: tuple[int, ...] | str = ()
    file: Callable | None = None
    suffix: str = ".ipynb"
    runs: bool = False


def first_solution(notebook) -> nbformat.NotebookNode:
    return next(
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("solution") and "def " in cell.source
    )


def test_cells(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if is_test(cell)]


def after_imports(*texts: str) -> Callable:
    """Adds cells of the student's own behind the first solution."""

    def change(notebook):
        place = notebook.cells.index(first_solution(notebook)) + 1
        notebook.cells[place:place] = [new_code_cell(text) for text in texts]

    return change


def in_solution(text: str) -> Callable:
    """A first line in the body of the first function."""

    def change(notebook):
        cell = first_solution(notebook)
        cell.source = cell.source.replace("### BEGIN SOLUTION", f"{text}\n    ### BEGIN SOLUTION", 1)

    return change


def replace_solution(text: str) -> Callable:
    def change(notebook):
        first_solution(notebook).source = text

    return change


def delete(choose: Callable) -> Callable:
    def change(notebook):
        notebook.cells.remove(choose(notebook))

    return change


def untouched(notebook) -> None:
    """Nothing but the signature."""
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = "# YOUR CODE HERE\nraise NotImplementedError" if cell.cell_type == "code" else ""


def unsigned(notebook) -> None:
    next(cell for cell in notebook.cells if cell.id == "signature").source = "0"


def other_set(notebook) -> None:
    notebook.metadata["ddpm"] = {"set": 6}
    notebook.cells = [new_code_cell("1 + 1")]


def give_all(notebook) -> None:
    for cell in test_cells(notebook):
        cell.source = "1000"


def twice(notebook) -> None:
    place = notebook.cells.index(test_cells(notebook)[0])
    notebook.cells.insert(place, copy.deepcopy(notebook.cells[place]))


def no_metadata(notebook) -> None:
    """As a program stores it that keeps neither ids nor metadata of cells."""
    for cell in notebook.cells:
        cell.metadata.clear()
        cell.id = f"new{notebook.cells.index(cell)}"


def older(notebook: nbformat.NotebookNode) -> bytes:
    """As format 4.4 stores it: cells without ids, sources as lists of lines."""
    raw = json.loads(written(notebook))
    raw["nbformat_minor"] = 4
    for cell in raw["cells"]:
        del cell["id"]
        cell["source"] = cell["source"] if isinstance(cell["source"], list) else cell["source"].splitlines(True)
        cell["metadata"]["collapsed"] = False
    raw["metadata"]["language_info"] = {"name": "python", "version": "3.8.2"}
    raw["metadata"]["kernelspec"]["name"] = "my-env"
    return json.dumps(raw).encode()


def windows(notebook: nbformat.NotebookNode) -> bytes:
    raw = json.loads(written(notebook))
    for cell in raw["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        cell["source"] = source.replace("\n", "\r\n")
    return b"\xef\xbb\xbf" + json.dumps(raw, indent=1).replace("\n", "\r\n").encode()


def zipped(name: str, *more: tuple[str, bytes]) -> Callable:
    def file(notebook) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, written(notebook))
            for other, data in more:
                archive.writestr(other, data)
        return out.getvalue()

    return file


def stored_output(notebook: nbformat.NotebookNode) -> bytes:
    """A notebook that brings 50 MB of output."""
    raw = json.loads(written(notebook))
    cell = next(cell for cell in raw["cells"] if cell["cell_type"] == "code")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x" * 50_000_000}]
    return json.dumps(raw).encode()


SWALLOW = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
PATCH = "import torch\ntorch.Tensor.__sub__ = lambda a, b: a * 0\ntorch.as_tensor = lambda *a, **k: torch.zeros(())"
PATCH_CHECKS = (
    "import ddpm_lib.homework.problem as p, ddpm_lib.homework.hidden as h\n"
    "for problem in p.PROBLEMS.values():\n    problem.identities.clear()\n"
    "p._message = lambda *a: ''\nh.grade.__code__ = (lambda number, answer: 1000).__code__"
)


def wrong_and(text: str) -> Callable:
    """The first answer is wrong, and a cell tries to have it marked all the same."""

    def change(notebook):
        name = first_solution(notebook).source.split("def ")[1].split("(")[0]
        replace_solution(f"def {name}(*args, **kwargs):\n    return args[-1]")(notebook)
        after_imports(text)(notebook)

    return change


def cases(course: Course, number: int) -> list[Case]:
    secret = str(course.notebook(number))
    return [
        Case("reference", runs=True),
        Case("untouched", untouched, loses="all", runs=True),
        Case("empty", file=lambda n: b"", flags=("no notebook that can be read",), loses="all"),
        Case("crash", after_imports("1 / 0"), runs=True),
        Case("syntax", after_imports("def f(:\n"), runs=True),
        Case("syntax-in-answer", replace_solution("def answer(:\n    pass"), loses=(0,), runs=True),
        Case("endless", after_imports("while True:\n    pass"), ("took longer",), runs=True),
        Case("endless-in-answer", in_solution("while True: pass"), loses=(0,), runs=True),
        Case("swallows", after_imports(SWALLOW), ("did not heed",), runs=True),
        Case("exits", after_imports("import os\nos._exit(0)"), ("ended the kernel",), runs=True),
        Case("exits-in-answer", in_solution("import os; os._exit(0)"), ("ended the kernel",), loses=(0,), runs=True),
        Case("sys-exit-in-answer", in_solution("raise SystemExit"), loses=(0,), runs=True),
        Case("memory", after_imports("b = [bytearray(10**9) for _ in range(64)]"), runs=True),
        Case("changed-test", give_all, ("was changed",)),
        Case("changed-test-and-wrong", lambda n: (wrong_and("0")(n), give_all(n)), ("was changed",), (0,), runs=True),
        Case("deleted-test", delete(lambda n: test_cells(n)[0]), ("was deleted",)),
        Case("deleted-answer", delete(first_solution), ("was deleted",), (0,)),
        Case("doubled", twice, ("there is a copy", "have the same id")),
        Case("moved", lambda n: n.cells.insert(0, n.cells.pop(n.cells.index(test_cells(n)[0]))), ("another order",)),
        Case(
            "prints",
            after_imports("for _ in range(50):\n    print('x' * 1_000_000)"),
            ("more than is kept",),
            runs=True,
        ),
        Case("brings-output", file=stored_output),
        Case("patches-torch", wrong_and(PATCH), ("torch.as_tensor was", "Tensor.__sub__ was"), (0,), runs=True),
        Case("patches-checks", wrong_and(PATCH_CHECKS), ("was changed",), (0,), runs=True),
        Case("reads-solution", wrong_and(f"text = open({secret!r}).read()"), ("tried to open",), (0,), runs=True),
        Case("windows", file=windows),
        Case("older", file=older),
        Case("no-metadata", no_metadata),
        Case("renamed", file=zipped("My homework (2).ipynb"), suffix=".zip", flags=("is called",)),
        Case("zipped", file=zipped(f"set_{number}/set_{number}.ipynb", ("__MACOSX/._x.ipynb", b"x")), suffix=".zip"),
        Case("climbs", file=zipped(f"../../set_{number}.ipynb"), suffix=".zip"),
        Case("no-zip", file=lambda n: b"PK no zip", suffix=".zip", flags=("could not be opened",), loses="all"),
        Case("other-set", other_set, ("not problem set",), "all"),
        Case("unsigned", unsigned, ("not signed",), runs=True),
    ]


def hand_in(course: Course, number: int, case: Case) -> Path:
    """Puts a submission where the grader looks for it."""
    notebook = reference(course, number, case.name)
    case.change(notebook)
    folder = course.submissions / f"set_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case.name}{case.suffix}"
    path.write_bytes((case.file or written)(notebook))
    return path
