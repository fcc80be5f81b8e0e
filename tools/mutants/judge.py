"""Who notices a mutant: what the checks and the tests reach, and which of them is the first to fail."""

import contextlib
import gc
import importlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ddpm_lib import ROOMS
from tools.mutants.children import ROOT, Broken, Mutated, Trace

NO_TESTS_OF = ("checks", "runs", "__main__")  # the first column's, and those of whole runs, in processes of their own


def test_files() -> list[Path]:
    """The tests of the library's rooms."""
    rooms = [room for room in ROOMS if room not in NO_TESTS_OF]
    files = [
        path for room in rooms for path in [ROOT / f"tests/test_{room}.py", *(ROOT / "tests" / room).glob("test_*.py")]
    ]
    return sorted(path for path in files if path.exists())


# Checks


def check_names(_: Any = None) -> list[tuple[str, str]]:
    """(name, module) of every check."""
    from ddpm_lib.checks import load_all

    return [(name, check.measure.__module__) for name, check in load_all().items()]


def cover_check(task: tuple[str, str, list[str]]) -> dict:
    """What a check reaches in these modules, when it is imported and when it runs, and how long it takes."""
    name, module, modules = task
    with Trace(modules) as trace:
        check = _check(name, module)
        own, start = check.own, time.process_time()
        distance = check.measure(own)
    if not distance <= check.passes:
        raise Broken(f"the check {name!r} fails without a mutant: {distance:g}")
    return {"seconds": time.process_time() - start, "reached": trace.reached()}


def first_check(task: tuple[str, str, list[tuple[str, str]]]) -> str:
    """The first of the checks (name, module) that notices this source of a module, or ""."""
    module, source, checks = task
    sys.meta_path.insert(0, Mutated(module, source))
    for name, where in checks:
        try:
            check = _check(name, where)
            if not float(check.measure(check.own)) <= check.passes:
                return name
        except BaseException:  # the chapter's cell would end in it
            return name
    return ""


def _check(name: str, module: str) -> Any:
    importlib.import_module(module)
    return importlib.import_module("ddpm_lib.checks").CHECKS[name]


# Tests


def _pytest(arguments: list[str], plugin: Any) -> int:
    import pytest

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # nbval takes seconds to import
    with tempfile.TemporaryDirectory() as folder:
        options = ["-q", "-o", "addopts=-m 'not soak'", "-p", "no:cacheprovider", f"--basetemp={folder}/tests"]
        with contextlib.redirect_stdout(io.StringIO()):
            return int(pytest.main([*options, *arguments], plugins=[plugin]))


class _Cover:
    """Runs every test in a process of its own, so that what one has cached hides nothing from the next."""

    def __init__(self, modules: list[str]):
        self.modules, self.found, self.failed, self.collecting = modules, {}, [], Trace(modules)

    def pytest_sessionstart(self) -> None:
        self.collecting.__enter__()

    def pytest_collection_finish(self) -> None:
        self.collecting.__exit__()

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> bool:
        from _pytest.runner import runtestprotocol

        read, write = os.pipe()
        gc.freeze()
        if not (child := os.fork()):
            start = time.process_time()
            with Trace(self.modules) as trace:
                trace.lines |= self.collecting.lines
                reports = runtestprotocol(item, nextitem=None, log=False)
            failed = [report.longreprtext for report in reports if report.failed]
            result = {"seconds": time.process_time() - start, "reached": trace.reached(), "failed": failed}
            with open(write, "w", encoding="utf-8") as file:
                json.dump(result, file)
            os._exit(0)
        os.close(write)
        with open(read, encoding="utf-8") as file:
            text = file.read()
        os.waitpid(child, 0)
        result = json.loads(text) if text else {"failed": ["it ended the process"]}
        if result.pop("failed"):
            self.failed.append(item.nodeid)
        elif result["reached"]:
            self.found[item.nodeid] = result
        return True


def cover_tests(task: tuple[str, list[str]]) -> dict:
    """{test: what it reaches in these modules, and how long it takes} of the tests in a file."""
    file, modules = task
    cover = _Cover(modules)
    _pytest([file], cover)
    if cover.failed:
        raise Broken(f"tests fail without a mutant: {', '.join(cover.failed)}")
    return cover.found


def collect(tests: list[str]) -> None:
    """Raises Broken unless these tests can be collected at once: else every mutant they reach would seem caught."""
    if code := _pytest(["--collect-only", *tests], _First()):
        raise Broken(f"the tests cannot be collected together (pytest ended with {code}): have two files one name?")


class _First:
    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def first_test(task: tuple[str, str, list[str]]) -> str:
    """The first of the tests that notices this source of a module, or ""."""
    module, source, tests = task
    sys.meta_path.insert(0, Mutated(module, source))
    first = _First()
    code = _pytest(["-x", *tests], first)
    if code not in (0, 1, 2, 4):  # 4: a file with some of the tests could not be imported
        raise Broken(f"pytest ended with {code} on a mutant of {module}")
    return first.failed or ("collecting the tests" if code else "")
