"""Children that see a mutant: each is forked, and imports the library anew, one module of it with another source.

The parent imports what takes long, and of the library nothing but its tables. So a child sees the mutant wherever the
library is imported from, as if the file had been edited, and starts in half a second.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import tqdm

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "ddpm_lib"
HEAVY = ("scipy.stats", "sklearn.svm", "sklearn.datasets", "torchvision", "diffusers", "matplotlib.pyplot", "pytest")
MEMORY = 8 << 30  # bytes that a child may ask for: a slip in a shape must not take the machine's memory
Reached = dict[str, list[int]]  # module → lines that ran


class Broken(Exception):
    """Something is wrong without a mutant."""


def path_of(module: str) -> Path:
    place = LIBRARY / module.replace(".", "/")
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def preload() -> None:
    """Import once what every child needs. What is not installed, the tests skip."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # or the collector of every child would copy what they share


class Mutated(SourceFileLoader):
    """Finds one module of the library, with another source than its file has."""

    def __init__(self, module: str, source: str):
        super().__init__(f"ddpm_lib.{module}", str(path_of(module)))
        self.source = source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, name: str) -> Any:
        return compile(self.source, self.path, "exec")


def each(
    tasks: list, run: Callable[[Any], Any], seconds: Callable[[Any], float], jobs: int
) -> Iterator[tuple[Any, Any]]:
    """(task, what run(task) returned in a child of its own), as they end; None of a child that died.

    seconds(task): of CPU time, after which a child is killed (and, if it only sleeps, after five times as long).
    `tasks` may grow meanwhile.
    """
    context, running = multiprocessing.get_context("fork"), {}
    try:
        while tasks or running:
            while tasks and len(running) < jobs:
                task = tasks.pop(0)
                get, put = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(run, task, seconds(task), put))
                child.start()
                put.close()
                running[get] = task, child, time.monotonic() + 5 * seconds(task) + 60
            for get in multiprocessing.connection.wait(list(running), timeout=1):
                task, child, _ = running.pop(get)
                try:
                    result = json.loads(get.recv_bytes())
                except EOFError:
                    result = None
                _end(child)
                if isinstance(result, dict) and "fault" in result:
                    raise Broken(result["fault"])
                yield task, result
            for get, (task, child, until) in list(running.items()):
                if time.monotonic() > until:
                    del running[get]
                    _end(child)
                    yield task, None
    finally:
        for _, child, _ in running.values():
            _end(child)


def _end(child: multiprocessing.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # and whatever it started
    child.kill()
    child.join()


def _child(run: Callable[[Any], Any], task: Any, seconds: float, put: Any) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    tqdm.tqdm.set_lock(threading.RLock())  # tqdm's own is shared by all processes, and this one may be killed with it
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        result = run(task)
    except Broken as broken:
        result = {"fault": str(broken)}
    except Exception:
        result = {"fault": traceback.format_exc()}
    put.send_bytes(json.dumps(result).encode())
    put.close()
    os._exit(0)


class Trace:
    """Which lines of which modules run while it is on."""

    def __init__(self, modules: list[str]):
        self.of = {str(path_of(module)): module for module in modules}
        self.lines: set[tuple[str, int]] = set()

    def __enter__(self) -> "Trace":
        threading.settrace(self._call)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(None)
        threading.settrace(None)

    def _call(self, frame: Any, event: str, _: Any) -> Callable | None:
        return self._line if frame.f_code.co_filename in self.of else None

    def _line(self, frame: Any, event: str, _: Any) -> Callable:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def reached(self) -> Reached:
        found: Reached = {}
        for path, line in sorted(self.lines):
            found.setdefault(self.of[path], []).append(line)
        return found
