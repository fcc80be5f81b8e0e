"""Tries a released problem set in JupyterLab, as a student does: python -m tools.browser --set 1 [--out FOLDER]

Unpacks the zip into a temporary folder, signs, and runs every cell in Chromium; the first function is left unwritten,
then wrong, then right. What is seen is asserted and photographed, and so is the page that the grader writes.
"""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nbformat

from assignments.grading.course import SETS, Course
from assignments.grading.grade import grade, prepare
from assignments.wrong.examine import answers, code, place
from ddpm_lib.homework.numbers import UNSIGNED
from tools.desk import Desk, Unexpected, jupyter, must, root

STUDENT = "ada"
MARKER = re.compile(r"^ *### (BEGIN|END) SOLUTION\n?", re.MULTILINE)
UNWRITTEN = "It is not written yet."
LEAK = ("HIDDEN", "hidden import grade", "grade(", "SOLUTION")  # no student reads one of these


def solved(text: str) -> str:
    """A solution cell as a student would have written it: without the marks that the release looks for."""
    return MARKER.sub("", text).rstrip("\n")


@dataclass
class Task:
    """The first problem whose answer is a function: ids of its cell and its test, its solution, one with a slip."""

    cell: str
    test: str
    solution: str
    slip: str | None = None  # None: no slip is written yet


def first(number: int) -> Task:
    """A problem set's first function. Raises ValueError for a problem set without one."""
    solutions = {name: text for kind, name, text in code(number) if kind == "solution"}
    for problem, answer in answers(number).items():
        test = next(name for kind, name, text in code(number) if kind == "test" and f'"{problem}", {answer})' in text)
        for name, text in solutions.items():
            if re.search(rf"^def {re.escape(answer)}\(", text, re.MULTILINE):
                task = Task(name, test, solved(text))
                with contextlib.suppress(ModuleNotFoundError):
                    slips = importlib.import_module(f"assignments.wrong.set_{number}").WRONG
                    fitting = [s for s in slips if s.problem == problem and place(number, s) == name]
                    task.slip = solved(text.replace(fitting[0].old, fitting[0].new)) if fitting else None
                return task
    raise ValueError(f"problem set {number} asks for no function")


def helpful(text: str) -> bool:
    """Whether a check's words say what does not hold, and which call shows it."""
    lines = [line.strip() for line in text.splitlines()]
    return any(line.startswith("✗") for line in lines) and any(line.startswith("Called:") for line in lines)


def right(text: str) -> bool:
    """Whether a check's words say that all holds."""
    return "✓" in text and "✗" not in text and "Traceback" not in text


def work(desk: Desk, number: int, folder: Path) -> None:
    """A student's way through the problem set: `folder` is the one that was unpacked."""
    file = folder / f"set_{number}.ipynb"
    must(not any(word in file.read_text(encoding="utf-8") for word in LEAK), f"hidden text is in {file.name}")
    released = nbformat.read(file, 4).cells
    places = {cell.id: i for i, cell in enumerate(released)}
    codes = [i for i, cell in enumerate(released) if cell.cell_type == "code"]
    task = first(number)
    function, test, sign = places[task.cell], places[task.test], places["signature"]
    desk.photograph("opened")
    text, red = desk.run(sign)
    must("Put the id" in text and not red, f"unsigned, the first cell says: {text}")
    desk.write(released[sign].source.replace(UNSIGNED, STUDENT))
    text, red = desk.run(sign)
    must(f"Signed by '{STUDENT}'" in text and not red, f"signed, the first cell says: {text}")
    desk.photograph("signed")
    for i in [i for i in codes if sign < i <= function]:
        text, red = desk.run(i)
        must(not red, f"the given cell {released[i].id} says: {text}")
    steps = {"unwritten": (None, lambda text: UNWRITTEN in text)}
    if task.slip:
        steps["wrong"] = (task.slip, helpful)
    for name, (answer, expected) in (steps | {"right": (task.solution, right)}).items():
        if answer:
            desk.choose(function)
            desk.write(answer)
            text, red = desk.run(function)
            must(not red, f"the {name} function's cell says: {text}")
        text, red = desk.run(test)
        desk.photograph(name)
        must(expected(text) and not red, f"the check of the {name} function says:\n{text}")
    for i in [i for i in codes if i > function and i != test]:
        text, red = desk.run(i)
        if red and "NotImplementedError" in text:
            print(f"set {number}: 'run all' stops at {released[i].id} while a function is not written")
            continue
        must(not red, f"after the first function, the cell {released[i].id} says:\n{text}")
    desk.save()
    saved = nbformat.read(file, 4).cells
    must(saved[function].source == task.solution, "what was typed is not what was saved")
    for formula in sorted(desk.leaf(len(released) - 1)):
        print(f"set {number}: wider than its cell at 800 px: {formula}")


def mark(page, course: Course, number: int, notebook: Path, out: Path) -> None:
    """Grades the notebook, and photographs the page that the student gets."""
    handed_in = course.submissions / f"set_{number}" / f"{STUDENT}.ipynb"
    handed_in.parent.mkdir(parents=True)
    shutil.copyfile(notebook, handed_in)
    grade(course, [number], 1)
    page.goto((course.feedback / f"set_{number}" / f"{STUDENT}.html").as_uri())
    must(not any(word in page.content() for word in LEAK), "hidden text is on the page with the marks")
    seen = page.locator("body").inner_text()
    must(
        not re.search(r"</?(p|h\d|table|div|li|details)\b", seen),
        "tags of HTML are to be read on the page with the marks",
    )
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=out / f"marks_{width}px.png", full_page=True)
        fits = "() => document.scrollingElement.scrollWidth <= innerWidth + 2"
        must(page.evaluate(fits), f"the page with the marks scrolls sideways at {width} px")


def attempt(number: int, out: Path, chromium: str) -> None:
    """All of it. Raises Unexpected."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="browser-") as folder, sync_playwright() as playwright:
        course, home = Course(Path(folder, "course")), Path(folder, "home")
        prepare(course, number)
        zipfile.ZipFile(course.release / f"set_{number}.zip").extractall(Path(folder, "student"))
        own = Path(folder, "student", f"set_{number}")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if root() else [])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        try:
            with jupyter(own, home) as address:
                desk = Desk(page, out)
                desk.open(f"{address[0]}/lab/tree/set_{number}.ipynb?token={address[1]}")
                work(desk, number, own)
                must(not said, "the console says: " + "\n".join(said))
                page.goto("about:blank")
            mark(page, course, number, own / f"set_{number}.ipynb", out)
        except Exception:
            with contextlib.suppress(Exception):
                page.screenshot(path=out / "failed.png")
            raise
        finally:
            browser.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=int, nargs="+", choices=SETS, metavar="N", help="default: all that are written")
    parser.add_argument("--out", type=Path, help="folder for the photographs (default: a temporary one)")
    chosen = parser.parse_args(arguments)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("browser: no chromium is on the path; name one: CHROMIUM=/path/to/it", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also then the server is stopped
    out = (chosen.out or Path(tempfile.mkdtemp(prefix="photographs-"))).resolve()
    print(f"photographs: {out}")
    failed = 0
    for number in chosen.set or [number for number in SETS if Course().notebook(number).exists()]:
        (out / f"set_{number}").mkdir(parents=True, exist_ok=True)
        for old in (out / f"set_{number}").glob("*.png"):
            old.unlink()
        try:
            attempt(number, out / f"set_{number}", chromium)
            print(f"set {number}: as it should be")
        except Exception as error:
            failed += 1
            print(
                f"set {number}: {'' if isinstance(error, Unexpected) else type(error).__name__} {error}",
                file=sys.stderr,
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())
