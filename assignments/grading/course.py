"""Where things lie in a course, and how nbgrader is told. The course is the folder `assignments/`, or a copy of it."""

import hashlib
import os
import runpy
import secrets
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir
from traitlets.config import Config

BOOK = Path(__file__).parents[2]
# nbgrader calls `alembic`, which lies beside Python, also where that folder is on no path
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
SETS = {1: 3, 2: 5, 3: 6, 4: 9, 5: 11, 6: 15}  # problem set → the last chapter that it needs
SALTED = threading.Lock()  # two submissions that are graded at once may both ask first for the course's salt


@dataclass(frozen=True)
class Course:
    """A course's folders. `source` comes with the book; what is handed in, and all that is made, may lie elsewhere."""

    root: Path = BOOK / "assignments"
    source: Path = BOOK / "assignments" / "source"

    release = property(lambda self: self.root / "release")
    submissions = property(lambda self: self.root / "submissions")  # set_1/ada.zip: what teachers put there
    submitted = property(lambda self: self.root / "submitted")  # ada/set_1/: nbgrader's own place (the exchange's)
    autograded = property(lambda self: self.root / "autograded")
    feedback = property(lambda self: self.root / "feedback")
    grades = property(lambda self: self.root / "grades.csv")

    def notebook(self, number: int) -> Path:
        """The source of a problem set, with its solutions."""
        return self.source / f"set_{number}" / f"set_{number}.ipynb"

    @property
    def salt(self) -> str:
        """A word that only this teacher has: the hidden cases follow from it. Made when it is first asked for."""
        path = self.root / "salt.txt"
        with SALTED:
            if not path.exists():
                self.root.mkdir(parents=True, exist_ok=True)
                path.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
            return path.read_text(encoding="utf-8").strip()

    def private(self) -> list[Path]:
        """What a student's code must not read while it is graded: this course, the book's, and other kernels' keys."""
        own = ("release", "submissions", "submitted", "autograded", "feedback", "gradebook", "grades", "salt")
        other = (self.source, BOOK / "assignments", BOOK / ".git", Path(jupyter_runtime_dir()))
        return [*(self.root / name for name in own), *other, Path(tempfile.gettempdir(), "grade-")]

    @property
    def database(self) -> str:
        return f"sqlite:///{self.root / 'gradebook.db'}"

    def nbgrader(self) -> Config:
        """nbgrader's configuration for this course: that of nbgrader_config.py, and where the folders lie."""
        config = Config()
        runpy.run_path(str(BOOK / "assignments" / "nbgrader_config.py"), {"get_config": lambda: config})
        config.CourseDirectory.root = str(self.root)
        config.CourseDirectory.source_directory = str(self.source)
        config.CourseDirectory.db_url = self.database
        return config


@contextmanager
def alone(course: Course) -> Iterator[None]:
    """Raises RuntimeError where another grader is at work in the course (Windows cannot tell)."""
    course.root.mkdir(parents=True, exist_ok=True)
    with (course.root / "gradebook.db.lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            raise RuntimeError(f"another grader is at work in {course.root}: wait for its end") from error
        yield


def fingerprint(*paths: Path, extra: str = "") -> str:
    """A word that changes with the contents of these files, of the Python files in these folders, and with `extra`."""
    total = hashlib.sha256(extra.encode("utf-8", "replace"))
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            total.update(str(file.relative_to(path.parent)).encode() + file.read_bytes())
    return total.hexdigest()
