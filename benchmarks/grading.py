"""How long a class takes to grade: python -m benchmarks.grading --set 5 --students 60

Most of the class hands in the reference solution, some a slip in it, a crash, an endless loop. Writes a record.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib import import_module
from pathlib import Path

import nbformat

from assignments.grading.course import BOOK, Course
from assignments.grading.execute import Limits
from assignments.grading.grade import grade, prepare
from assignments.grading.restore import is_answer, sources
from assignments.wrong.examine import place


def hand_in(course: Course, number: int, count: int) -> None:
    """Writes the submissions: of ten, six are right, two have a slip, one ends its kernel, one never ends a cell."""
    slips = import_module(f"assignments.wrong.set_{number}").WRONG
    _, released = sources(course, number)
    source = nbformat.read(course.notebook(number), 4)
    for cell in source.cells:
        if not is_answer(cell):
            cell.source = released[cell.id].source
    folder = course.submissions / f"set_{number}"
    folder.mkdir(parents=True)
    for i in range(count):
        notebook = nbformat.from_dict(json.loads(json.dumps(source)))
        cells = {cell.id: cell for cell in notebook.cells}
        cells["signature"].source = cells["signature"].source.replace("reference", f"student{i:02}")
        if i % 10 in (6, 7):
            wrong = slips[i % len(slips)]
            cell = cells[place(number, wrong)]
            cell.source = cell.source.replace(wrong.old, wrong.new)
        elif i % 10 in (8, 9):
            own = "import os\nos._exit(1)" if i % 10 == 8 else "while True:\n    pass"
            notebook.cells.insert(5, nbformat.v4.new_code_cell(own))
        nbformat.write(notebook, folder / f"student{i:02}.ipynb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=int, default=5)
    parser.add_argument("--students", type=int, default=60)
    parser.add_argument("--out", type=Path, default=BOOK / "data" / "records" / "grading.json")
    chosen = parser.parse_args()
    limits = Limits(cell=60)
    with tempfile.TemporaryDirectory() as folder:
        course = Course(Path(folder))
        prepare(course, chosen.set)
        hand_in(course, chosen.set, chosen.students)
        seconds = []
        for _ in range(2):
            started = time.monotonic()
            results = grade(course, [chosen.set], limits=limits)
            seconds.append(round(time.monotonic() - started, 1))
    record = {
        "command": f"python -m benchmarks.grading --set {chosen.set} --students {chosen.students}",
        "set": chosen.set,
        "students": len(results),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "cell_limit_s": limits.cell,
        "seconds": seconds[0],
        "seconds_when_nothing_changed": seconds[1],
    }
    chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
