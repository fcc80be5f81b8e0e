"""What was handed in: notebooks, zips and folders, told apart, read with care, and never run here."""

import io
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import nbformat

from assignments.grading.course import SETS, Course

LARGEST = 100_000_000  # bytes of a notebook; what is larger is not read
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
        places = {path.parent.name: path for path in course.submitted.glob(f"*/set_{number}") if path.is_dir()}
        for path in sorted((course.submissions / f"set_{number}").glob("*")):
            if not path.name.startswith("."):
                places[path.name if path.is_dir() else path.stem] = path
        for name, path in places.items():
            student = NAME.sub("_", name).strip("._").lower() or "nobody"
            same = found.get((number, student))
            found[number, student] = submission = read(number, student, path)
            if same:
                submission.flags.append(f"handed in more than once: {path.name} is the one that was graded")
    return [found[key] for key in sorted(found)]


def read(number: int, student: str, path: Path) -> Submission:
    """The submission in a file or folder. Whatever is wrong with it becomes a flag."""
    submission = Submission(number, student)
    try:
        candidates = dict(notebooks(path))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        submission.flags.append(f"could not be opened: {error}")
        return submission
    if not candidates:
        submission.flags.append("holds no notebook")
        return submission
    wanted = f"set_{number}.ipynb"
    parsed = {name: parse(data) for name, data in candidates.items()}
    order = sorted(
        parsed, key=lambda name: (name != wanted, belongs(parsed[name]) != number, parsed[name] is None, name)
    )
    name = order[0]
    submission.data, submission.notebook = candidates[name], parsed[name]
    if submission.notebook is None:
        submission.flags.append(f"{name} is no notebook that can be read")
        return submission
    if name != wanted and path.suffix != ".ipynb":
        submission.flags.append(f"the file is called {name}, not {wanted}")
    if len(candidates) > 1:
        submission.flags.append(f"holds {len(candidates)} notebooks: {name} is the one that was graded")
    return submission


def notebooks(path: Path):
    """(name, bytes) of every notebook in a file, a folder or a zip (in memory: nothing is unpacked to the disk)."""
    if path.is_dir():
        for file in sorted(path.rglob("*.ipynb")):
            if wanted(file.relative_to(path).as_posix()) and file.is_file() and not file.is_symlink():
                yield file.name, limited(file.open("rb"), file.name)
        for file in sorted(path.glob("*.zip")):
            yield from notebooks(file)
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".ipynb") and wanted(name):
                    yield PurePosixPath(name.replace("\\", "/")).name, limited(archive.open(name), name)
    elif path.suffix.lower() == ".ipynb":
        yield path.name, limited(path.open("rb"), path.name)
    else:
        raise ValueError(f"{path.name} is neither a notebook, a zip nor a folder")


def wanted(name: str) -> bool:
    """Whether this is no copy that a system keeps for itself."""
    return not any(part in ("__MACOSX", ".ipynb_checkpoints") or part.startswith("._") for part in name.split("/"))


def limited(stream: io.BufferedIOBase, name: str) -> bytes:
    """The contents of a file. Raises ValueError where they are larger than LARGEST (a zip may say otherwise)."""
    with stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{name} is larger than {LARGEST / 1e6:.0f} MB")
    return data


def parse(data: bytes) -> dict | None:
    """A notebook of today's format, without outputs, with plain line ends; None where it cannot be read as one."""
    try:
        raw = json.loads(data.decode("utf-8-sig"))
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
            source = cell.get("source", "")
            cell.source = "".join(source) if isinstance(source, list) else str(source)
            cell.source = cell.source.replace("\r\n", "\n").replace("\r", "\n")
            cell.setdefault("metadata", nbformat.from_dict({}))
    except (UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return notebook


def belongs(notebook: dict | None) -> int | None:
    """The problem set that a notebook says it is."""
    try:
        return int(notebook["metadata"]["ddpm"]["set"])
    except (KeyError, TypeError, ValueError):
        return None
