"""How a file says which of its functions is which equation, and what is said of a file that cannot be examined."""

import functools
import sys
from unittest.mock import Mock

import pytest

from ddpm_lib.conformance import NotLoaded, implements, load, registered


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A function that writes mycode.py, and gives its path; what it changes for imports is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(text, name="mycode.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


MARKED = """
from ddpm_lib.conformance import implements

@implements("posterior mean")
def mean(schedule, x_0, x_t, t): ...

also_mean = mean

@implements("velocity", "another")
def v(schedule, x_0, eps, t): ...
"""


def names(source):
    return [(entry.name, getattr(entry.function, "__name__", entry.function)) for entry in registered(source)]


def test_marked_functions_are_found_once_each_and_stay_as_they_are(file):
    assert names(load(file(MARKED))) == [("posterior mean", "mean"), ("velocity", "v"), ("another", "v")]

    def f():
        return 3

    assert implements("a")(f) is f and f() == 3


def test_a_dictionary_needs_no_import_and_comes_first(file):
    module = load(file("def f(): ...\nCONFORMANCE = {'b': f, 'a': f}\n" + MARKED))
    assert names(module)[:3] == [("b", "f"), ("a", "f"), ("posterior mean", "mean")]
    assert names({"x": 3}) == [("x", 3)]
    with pytest.raises(NotLoaded, match=r"CONFORMANCE must be a dictionary.* got list"):
        registered(load(file("CONFORMANCE = [1]")))


def test_what_is_imported_marked_is_found_and_what_inherits_or_wraps_is_not_marked_twice(file):
    file(MARKED, "theirs.py")
    module = load(file("from theirs import v\nimport theirs\nCONFORMANCE = {'velocity': v}"))
    assert names(module) == [("velocity", "v"), ("another", "v")]

    @implements("a")
    class Base: ...

    class Derived(Base): ...

    @implements("b")
    def inner(): ...

    @functools.wraps(inner)
    def outer(): ...

    module.__dict__.update(derived=Derived, mock=Mock(), outer=outer)
    assert ("a", "Derived") not in names(module) and ("b", "inner") in names(module)


def test_what_is_marked_in_a_class_is_not_passed_over(file):
    text = """
from ddpm_lib.conformance import implements

class Process:
    @staticmethod
    @implements("velocity")
    def v(schedule, x_0, eps, t): ...

    @implements("posterior mean")
    def mean(self, schedule, x_0, x_t, t): ...
"""
    assert names(load(file(text))) == [("velocity", "v"), ("posterior mean", "mean")]


def test_a_bound_method_goes_into_the_dictionary():
    class A:
        def f(self): ...

    with pytest.raises(TypeError, match=r"put it into a dictionary: CONFORMANCE = \{'a': …\}"):
        implements("a")(A().f)
    with pytest.raises(TypeError, match="expected the name of an equation"):
        implements(A)


def test_a_file_finds_its_neighbours_and_dataclasses_their_module(file):
    file("value = 3", "neighbour.py")
    text = "from neighbour import value\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = value"
    assert load(file(text)).A().x == 3


def test_a_name_of_the_standard_library_is_no_trouble(file):
    assert load(file("value = 4", "random.py")).value == 4
    import random

    assert hasattr(random, "randint")


def test_a_module_can_be_named_as_python_imports_it(file, monkeypatch, tmp_path):
    file("", "package/__init__.py")
    file("one = 1", "package/a.py")
    relative = file("from .a import one\nCONFORMANCE = {'x': one}", "package/b.py")
    monkeypatch.chdir(tmp_path)
    assert names(load("package.b")) == [("x", 1)]
    with pytest.raises(NotLoaded, match="part of a package: name it as one"):
        load(relative)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a = 1\nb = a / 0",
            r"mycode\.py raised ZeroDivisionError: division by zero, line 2 of mycode\.py: `b = a / 0`",
        ),
        ("import no_such_thing", "raised ModuleNotFoundError: No module named 'no_such_thing', line 1 of"),
        ("def f(:", "raised SyntaxError: "),
        ("import sys\nsys.exit(3)", "raised SystemExit: 3, line 2"),
    ],
)
def test_what_a_file_raises_is_said_with_its_line(file, text, said):
    with pytest.raises(NotLoaded, match=said) as error:
        load(file(text))
    assert error.value.__cause__ is not None


def test_what_is_not_there_is_said_to_be_missing(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotLoaded, match=r"there is no file nothing\.py"):
        load("nothing.py")
    with pytest.raises(NotLoaded, match="there is no file and no module 'nothing'"):
        load("nothing")
    with pytest.raises(NotLoaded, match=r"there is no file and no module 'json\.nothing'"):
        load("json.nothing")
    with pytest.raises(NotLoaded, match="is no Python file"):
        load(file("x = 1", "mycode.txt"))
    with pytest.raises(NotLoaded, match="expected a Python file"):
        load(tmp_path)


def test_ctrl_c_while_a_file_runs_is_passed_on(file):
    with pytest.raises(KeyboardInterrupt):
        load(file("raise KeyboardInterrupt"))
