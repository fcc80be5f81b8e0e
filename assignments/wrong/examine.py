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
from ddpm_lib.homework import numbers
from ddpm_lib.homework.case import given
from ddpm_lib.homework.hidden import cases, grade
from ddpm_lib.homework.problem import Points, failure, find

SOURCE = Path(__file__).parents[1] / "source"
CALL = re.compile(r'^check\("([\d.]+)", (.+)\)$', re.MULTILINE)


@functools.cache
def code(number: int) -> tuple[tuple[str, str, str], ...]:
    """Of a set's source: (kind, id, text) of every code cell; kind is "test", "solution", "figure" or "given"."""
    notebook = nbformat.read(SOURCE / f"set_{number}" / f"set_{number}.ipynb", 4)
    found = []
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and "slow" not in cell.metadata.get("tags", []):
            if marks.get("solution"):
                kind = "figure" if marks.get("grade") else "solution"
            else:
                kind = "test" if marks.get("grade") else "given"
            found.append((kind, cell.id, cell.source))
    return tuple(found)


def answers(number: int) -> dict[str, str]:
    """Problem → the name of the answer that is handed to check."""
    return dict(found for kind, _, text in code(number) if kind == "test" for found in CALL.findall(text))


def place(number: int, wrong: Wrong) -> str:
    """The id of the solution cell in which the slip is made. Raises ValueError where `old` does not stand once."""
    found = [name for kind, name, text in code(number) if kind == "solution" and text.count(wrong.old) == 1]
    twice = [name for kind, name, text in code(number) if kind == "solution" and text.count(wrong.old) > 1]
    if len(found) != 1 or twice:
        raise ValueError(f"{wrong.problem}, {wrong.what}: {wrong.old!r} stands once in {found}, more often in {twice}")
    return found[0]


def namespace(number: int, wrong: Wrong | None = None) -> dict:
    """What the names mean after the cells have run; with a slip made in them, as far as the test of its problem."""
    names: dict = {"__name__": "__main__"}
    where = place(number, wrong) if wrong else ""
    with contextlib.redirect_stdout(io.StringIO()):
        for kind, name, text in code(number):
            if kind == "test":
                if wrong and CALL.search(text)[1] == wrong.problem:
                    break
            elif not (wrong and kind == "figure"):
                text = text.replace(wrong.old, wrong.new) if name == where else text
                try:
                    exec(compile(text, f"set_{number}:{name}", "exec"), names)
                except Exception:
                    if wrong is None:
                        raise  # with a slip, a cell may fail: what is defined is examined
    return names


def graded(number: int) -> dict[str, Points]:
    """Problem → the marks of the reference solution."""
    names = namespace(number)
    return {problem: grade(problem, names.get(answer)) for problem, answer in answers(number).items()}


def loses(number: int, wrong: Wrong) -> bool:
    """Whether a slip loses the marks of its identity."""
    problem, who = find(wrong.problem), numbers.student()
    (identity,) = [identity for identity in problem.identities if identity.name == wrong.identity]
    answer = namespace(number, wrong).get(answers(number)[wrong.problem])
    return bool(failure(problem, identity, answer, given(who), cases(who))[0])


def main(number: int) -> int:
    """Prints what every slip loses; the number of slips that keep the marks of their identity."""
    for problem, points in graded(number).items():
        print(f"{problem}: the reference has {points!r} of {find(problem).marks:g} marks")
    survivors = 0
    for wrong in importlib.import_module(f"assignments.wrong.set_{number}").WRONG:
        told = "ok      " if (gone := loses(number, wrong)) else "SURVIVES"
        survivors += not gone
        print(f"{told} {wrong.problem} {wrong.identity}: {wrong.what}")
    return survivors


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])) > 0)
