"""Run a reference solution, or one with a slip in it, without a kernel: what the tests and authors call.

python -m assignments.wrong.examine 3        # every slip of set 3: which identities does it lose?
"""

import contextlib
import functools
import importlib
import io
import re
import sys
from pathlib import Path

import nbformat

from assignments.wrong import Wrong
from ddpm_lib.homework.hidden import grade
from ddpm_lib.homework.problem import Points

SOURCE = Path(__file__).parents[1] / "source"
CALL = re.compile(r'^check\("([\d.]+)", (.+)\)$', re.MULTILINE)


@functools.cache
def cells(number: int) -> tuple[tuple[str, str, str], ...]:
    """Of a set's source: (kind, id, text) of every code cell; kind is "test", "solution" or "given"."""
    notebook = nbformat.read(SOURCE / f"set_{number}" / f"set_{number}.ipynb", 4)
    found = []
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and "slow" not in cell.metadata.get("tags", []):
            kind = "solution" if marks.get("solution") else "test" if marks.get("grade") else "given"
            found.append((kind, cell.id, cell.source))
    return tuple(found)


def answers(number: int) -> dict[str, str]:
    """Problem → the name of the answer that is handed to check."""
    return dict(found for kind, _, text in cells(number) if kind == "test" for found in CALL.findall(text))


def place(number: int, wrong: Wrong) -> str:
    """The id of the solution cell in which the slip is made. Raises ValueError where `old` does not stand once."""
    found = [name for kind, name, text in cells(number) if kind == "solution" and text.count(wrong.old) == 1]
    twice = [name for kind, name, text in cells(number) if kind == "solution" and text.count(wrong.old) > 1]
    if len(found) != 1 or twice:
        raise ValueError(f"{wrong.problem}, {wrong.what}: {wrong.old!r} stands once in {found}, more often in {twice}")
    return found[0]


def namespace(number: int, wrong: Wrong | None = None) -> dict:
    """What the names mean after the cells without a test have run, with the slip made if one is given."""
    names: dict = {"__name__": "__main__"}
    where = place(number, wrong) if wrong else ""
    with contextlib.redirect_stdout(io.StringIO()):
        for kind, name, text in cells(number):
            if kind != "test":
                text = text.replace(wrong.old, wrong.new) if name == where else text
                try:
                    exec(compile(text, f"set_{number}:{name}", "exec"), names)
                except Exception:
                    if wrong is None:
                        raise  # with a slip, a later cell may fail: the answers that stand are graded
    return names


def graded(number: int, wrong: Wrong | None = None, problems: list[str] | None = None) -> dict[str, Points]:
    """Problem → its marks."""
    names = namespace(number, wrong)
    return {
        problem: grade(problem, eval(answer, names) if answer in names or "." in answer or "(" in answer else None)
        for problem, answer in answers(number).items()
        if problems is None or problem in problems
    }


def lost(points: Points) -> list[str]:
    return [result.name for result in points.results if not result.holds]


def main(number: int) -> int:
    """Prints what every slip loses; the number of slips that keep the marks of their identity."""
    for problem, points in graded(number).items():
        print(f"{problem}: the reference has {points!r} marks", *lost(points))
    survivors = 0
    for wrong in importlib.import_module(f"assignments.wrong.set_{number}").WRONG:
        gone = lost(graded(number, wrong, [wrong.problem])[wrong.problem])
        survivors += wrong.identity not in gone
        print(f"{'ok      ' if wrong.identity in gone else 'SURVIVES'} {wrong.problem} {wrong.what}: loses {gone}")
    return survivors


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])) > 0)
