"""More submissions: those that try to be marked without an answer, those that leave things behind, and odd files."""

import io
import json
import zipfile
from collections.abc import Callable

from nbformat.v4 import new_code_cell

from assignments.grading.course import Course
from tests.homework.handed_in import Case, after_imports, replace_solution, written, wrong_and

SIZES = "import ddpm_lib.homework.hidden as h\nh.SIZES.clear()"
PROBLEMS = """import copy, dataclasses, ddpm_lib.homework.problem as p
for number, problem in list(p.PROBLEMS.items()):
    easy = copy.copy(problem)
    easy.identities = [dataclasses.replace(i, measure=lambda f, case: 0.0, to=1.0) for i in problem.identities]
    p.PROBLEMS[number] = easy"""
MODULE = """import sys, types, ddpm_lib.homework.problem as p
fake = types.ModuleType("ddpm_lib.homework.hidden")
fake.grade = lambda n, a: p.Points(n, [p.Result(i.name, i.marks) for i in p.find(n).identities])
sys.modules["ddpm_lib.homework.hidden"] = fake"""
MODE = """import torch
from torch.overrides import TorchFunctionMode
class Zero(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 0 if func.__name__ in ("sub", "__sub__", "abs") else out
Zero().__enter__()"""
LIBRARY = """import ddpm_lib.homework.problem as p
text = open(p.__file__).read().replace("def _message(", "def _message(*a): return ''\\ndef _old(")
open(p.__file__, "w").write(text)"""
NEVER_AGAIN = "import torch\ntorch.as_tensor = lambda *a, **k: torch.zeros(())\nopen('../flags.txt', 'w')"
STARTUP = "import os\nos.makedirs(os.path.expanduser('~/.ipython/profile_default/startup_of_a_test'))"
SHADOW = "open('torch.py', 'w').write('raise SystemExit')\nimport os\nos._exit(0)"
STRICT = """import warnings, numpy, torch
warnings.simplefilter("error")
numpy.seterr(all="raise")
torch.use_deterministic_algorithms(True)
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
get_ipython().ast_node_interactivity = "none\""""
LEFT = "import subprocess\nsubprocess.Popen(['sleep', '987'], start_new_session=True)"
STOPPED = "while True:\n    __import__('os').kill(__import__('os').getpid(), 19)"
NO_FOLDER = "import os, shutil\nshutil.rmtree(os.getcwd())"
NAMES = "check = grade = Schedule = torch = print = None\ndef __import__(*a):\n    raise SystemExit"


def raw(change: Callable[[dict], None]) -> Callable:
    """A file in which the JSON was changed."""

    def file(notebook) -> bytes:
        data = json.loads(written(notebook))
        change(data)
        return json.dumps(data).encode()

    return file


def broken(notebook) -> bytes:
    data = bytearray(archive(("set_1.ipynb", written(notebook))))
    data[60:200] = b"\xff" * 140
    return bytes(data)


def archive(*files: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as into:
        for name, data in files:
            into.writestr(name, data)
    return out.getvalue()


def odd_metadata(data: dict) -> None:
    data["metadata"] = {"ddpm": {"set": float("inf")}}
    data["cells"][0]["metadata"] = "x"
    data["cells"][1] |= {"metadata": {"nbgrader": "x"}, "attachments": "x"}
    data["cells"].insert(1, {"cell_type": "raw", "source": None, "id": "null"})


def half_a_character(data: dict) -> None:
    data["cells"][0]["id"] = data["cells"][1]["id"] = "\ud800"


def many(data: dict) -> None:
    data["cells"] += [new_code_cell("1") for _ in range(10_000)]


def cases(course: Course, number: int) -> list[Case]:
    link = f"import os\nos.symlink({str(course.notebook(number))!r}, 'x')\nopen('x').read()"
    name = f"set_{number}.ipynb"
    return [
        Case("no-hidden-sizes", wrong_and(SIZES), ("SIZES was changed",), (0,), runs=True),
        Case("easy-problems", wrong_and(PROBLEMS), ("PROBLEMS was changed",), (0,), runs=True),
        Case("false-module", wrong_and(MODULE), ("hidden was changed",), (0,), runs=True),
        Case("torch-mode", wrong_and(MODE), ("a mode was left on",), (0,), runs=True),
        Case("writes-library", wrong_and(LIBRARY), ("tried to write",), (0,), runs=True),
        Case("erases-flags", wrong_and(NEVER_AGAIN), ("tried to write", "as_tensor was"), (0,), runs=True),
        Case("links", wrong_and(link), ("tried to",), (0,), runs=True),
        Case("startup", after_imports(STARTUP), ("tried to write",), runs=True),
        Case("shadows", after_imports(SHADOW), ("ended the kernel",), runs=True),
        Case("no-folder", after_imports(NO_FOLDER, "import os\nos._exit(0)"), ("ended the kernel",), runs=True),
        Case("signed-twice", after_imports("my = i_am('bob')"), ("it is signed 'bob'",), (1,), runs=True),
        Case("leaves", after_imports("exit", "quit()", "input()", "raise KeyboardInterrupt"), runs=True),
        Case("strict", after_imports(STRICT), runs=True),
        Case("names", after_imports(NAMES), runs=True),
        Case("left-behind", after_imports(LEFT), ("started a program",), runs=True),
        Case("stopped", after_imports(STOPPED), ("did not heed",), runs=True),
        Case("empties", replace_solution("%reset -f"), loses=(0, 1), runs=True),
        Case("odd-metadata", file=raw(odd_metadata)),
        Case("half-a-character", file=raw(half_a_character), flags=("same id, ?",)),
        Case("many-cells", file=raw(many), flags=("more than 1000 cells",), loses="all"),
        Case("deep", file=lambda n: b'{"cells":' + b"[" * 10**5 + b"]" * 10**5 + b"}", flags=("can be",), loses="all"),
        Case("digits", file=lambda n: b'{"nbformat":' + b"9" * 10**4 + b"}", flags=("can be read",), loses="all"),
        Case("broken-zip", file=broken, suffix=".zip", flags=("could not be opened",), loses="all"),
        Case(
            "bomb",
            file=lambda n: archive((name, b" " * 150_000_000)),
            suffix=".zip",
            flags=("larger than 100 MB",),
            loses="all",
        ),
        Case(
            "two-in-zip",
            file=lambda n: archive((f"old/{name}", b"{}"), (name, written(n))),
            suffix=".zip",
            flags=("holds 2 notebooks",),
        ),
    ]
