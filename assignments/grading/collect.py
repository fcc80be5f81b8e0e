"""What was handed in: notebooks, zips and folders, told apart, read with care, and never run here."""

import io
import json
import re
import unicodedata
import zipfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

import nbformat

from assignments.grading.course import SETS, Course

LARGEST = 100_000_000  # bytes of a submission's notebooks; what is larger is not read
MOST = 1000  # cells of a notebook, and of files that are looked at
NAME = re.compile(r"[^\w.@+-]+")


@dataclass
class Submission:
    """One student's answer to one problem set. notebook: None where none could be read; flags: what to look at."""

    number: int
    student: str
    data: bytes = b""
    flags: list[str] = field(default_factory=list)
    notebook: dict | None = None


def collect(course: Course, numbers: list[int] | None = None) -> list[Submission]:
    """All submissions, by problem set and student.

    They lie in submissions/set_1/, as ada.zip, ada.ipynb or ada/…, or where nbgrader's exchange collects them:
    submitted/ada/set_1/.
    """
    found = {}
    for number in numbers or SETS:
        places = [(path.parent.name, path) for path in course.submitted.glob(f"*/set_{number}") if path.is_dir()]
        for path in (course.submissions / f"set_{number}").glob("*"):
            if not path.name.startswith("."):
                places.append((path.name if path.is_dir() else path.stem, path))
        for name, path in sorted(places, key=lambda place: (place[1].lstat().st_mtime, place[0])):  # the newest last
            found.setdefault((number, identify(name)), []).append(path)
    submissions = []
    for (number, student), paths in sorted(found.items()):
        submissions.append(read(number, student, paths[-1]))
        if len(paths) > 1:
            *old, new = [printable(path.name) for path in paths]
            told = f"handed in more than once, or ids that are alike: {new} was graded, not {', '.join(old)}"
            submissions[-1].flags.append(told)
    return submissions


def identify(name: str) -> str:
    """A student's id: in small letters, and fit to be a file's name."""
    return NAME.sub("_", unicodedata.normalize("NFC", name)).strip("._@+-").lower() or "nobody"


def printable(text: str) -> str:
    """A text that can be written to any file."""
    return text.encode("utf-8", "replace").decode()


def read(number: int, student: str, path: Path) -> Submission:
    """The submission in a file or folder. Whatever is wrong with it becomes a flag."""
    submission = Submission(number, student)
    try:
        candidates = dict(notebooks(path))
    except Exception as error:  # whatever is wrong with a zip: it is one student's
        submission.flags.append(printable(f"could not be opened: {error}"))
        return submission
    if not candidates:
        submission.flags.append("holds no notebook")
        return submission
    wanted = f"set_{number}.ipynb"
    parsed = {name: parse(data) for name, data in candidates.items()}
    called = {name: PurePosixPath(name).name for name in parsed}
    order = sorted(
        parsed,
        key=lambda name: (
            called[name] != wanted, belongs(parsed[name]) != number, parsed[name] is None, name.count("/"), name
        ),
    )  # fmt: skip
    submission.data, submission.notebook = candidates[order[0]], parsed[order[0]]
    name = printable(called[order[0]])
    if submission.notebook is None:
        submission.flags.append(f"{name} is no notebook that can be read, or has more than {MOST} cells")
        return submission
    if name != wanted and path.suffix != ".ipynb":
        submission.flags.append(f"the file is called {name}, not {wanted}")
    if len(candidates) > 1:
        told = f"holds {len(candidates)} notebooks: {printable(order[0])} is the one that was graded"
        submission.flags.append(told)
    return submission


def notebooks(path: Path):
    """(name, bytes) of every notebook in a file, a folder or a zip (in memory: nothing is unpacked to the disk)."""
    room = LARGEST
    for name, stream in islice(opened(path), MOST):
        data = limited(stream, name, room)
        room -= len(data)
        yield name, data


def opened(path: Path):
    """(name, open file) of every notebook. What a student's folder only points to, elsewhere, is not opened."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                if file.suffix == ".ipynb" and wanted(name := file.relative_to(path).as_posix()):
                    yield name, file.open("rb")
                elif file.suffix == ".zip" and file.parent == path:
                    yield from opened(file)
    elif path.suffix.lower() == ".zip" and path.is_file():
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".ipynb") and wanted(name):
                    yield name.replace("\\", "/"), archive.open(name)
    elif path.suffix.lower() == ".ipynb" and path.is_file():
        yield path.name, path.open("rb")
    else:
        raise ValueError(f"{path.name} is neither a notebook, a zip nor a folder")


def wanted(name: str) -> bool:
    """Whether this is no copy that a system keeps for itself."""
    return not any(part in ("__MACOSX", ".ipynb_checkpoints") or part.startswith("._") for part in name.split("/"))


def limited(stream: io.BufferedIOBase, name: str, room: int = LARGEST) -> bytes:
    """The contents of a file. Raises ValueError where they are larger than `room` (a zip may say otherwise)."""
    with stream:
        data = stream.read(room + 1)
    if len(data) > room:
        raise ValueError(f"{name} is larger than {LARGEST / 1e6:.0f} MB")
    return data


def parse(data: bytes) -> dict | None:
    """A notebook of today's format, without outputs, with plain line ends; None where it cannot be read as one."""
    try:
        raw = json.loads(data.decode("utf-8-sig"))
        if rb"\ud" in data.lower():  # half a character, which no file can hold
            raw = json.loads(printable(json.dumps(raw, ensure_ascii=False)))
        for cell in [
            *raw.get("cells", ()),
            *(c for sheet in raw.get("worksheets", ()) for c in sheet.get("cells", ())),
        ]:
            for key in ("outputs", "execution_count", "prompt_number"):
                cell.pop(key, None)
            if cell.get("cell_type") == "code":
                cell |= {"outputs": [], "execution_count": None}
        if raw.get("nbformat", 4) < 4:
            raw = nbformat.convert(nbformat.from_dict(raw), 4)
        notebook = nbformat.from_dict({"metadata": {}, "nbformat": 4, "nbformat_minor": 5} | raw)
        for cell in notebook.cells:
            source = cell.get("source") or ""
            cell.source = "".join(source) if isinstance(source, list) else str(source)
            cell.source = cell.source.replace("\r\n", "\n").replace("\r", "\n")
            if not isinstance(cell.get("metadata"), dict):
                cell.metadata = nbformat.from_dict({})
            if not isinstance(cell.get("attachments"), dict):
                cell.pop("attachments", None)
            if cell.cell_type not in ("code", "markdown", "raw"):
                return None
    except Exception:  # it may hold anything
        return None
    return notebook if len(notebook.cells) <= MOST else None


def belongs(notebook: dict | None) -> int | None:
    """The problem set that a notebook says it is."""
    try:
        return int(notebook["metadata"]["ddpm"]["set"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
