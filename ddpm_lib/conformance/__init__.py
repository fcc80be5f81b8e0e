"""Check your own code by the book's checks: how a file says which of its functions is which equation.

    from ddpm_lib.conformance import implements

    @implements("posterior mean")
    def mean(schedule, x_0, x_t, t): ...

or a dictionary, which needs no import: `CONFORMANCE = {"posterior mean": mean}`. Then `python -m ddpm_lib conformance
mycode.py` runs the checks. Nothing is imported here but Python's own library: the decorator costs your code nothing.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

DICTIONARY = "CONFORMANCE"
MARK = "__implements__"
HOW = f'write @implements("posterior mean") above a function, or {DICTIONARY} = {{"posterior mean": f}} into the file'


@dataclass(frozen=True)
class Registered:
    """A function, and the name of the equation that it is said to implement."""

    name: str
    function: Callable


class NotLoaded(ValueError):
    """A file or module in which there is nothing to examine; the message says why, and what to do."""


def implements(*names: str) -> Callable[[Callable], Callable]:
    """Decorator: the function is the implementation of the equations of these names. It stays as it is.

    Raises TypeError for what keeps no attributes, a bound method say: that can stand in the dictionary.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError('expected the name of an equation, as in @implements("posterior mean")')

    def mark(function: Callable) -> Callable:
        try:
            setattr(function, MARK, (*_marks(function), *names))
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"{function!r} cannot be marked; put it into a dictionary: {DICTIONARY} = {{{names[0]!r}: …}}"
            ) from error
        return function

    return mark


def registered(source: Mapping[str, Any] | ModuleType) -> list[Registered]:
    """What a module registers, or a dictionary of equations' names and functions, in the order that it has there.

    Of a module: its dictionary CONFORMANCE, then what is marked, also where it was imported from elsewhere, and what is
    marked in its classes (a method that needs an object is not passed over: it cannot be called).
    Raises NotLoaded where CONFORMANCE is no dictionary.
    """
    if not isinstance(source, ModuleType):
        return [Registered(name, function) for name, function in source.items()]
    listed = getattr(source, DICTIONARY, {})
    if not isinstance(listed, Mapping):
        raise NotLoaded(f"{DICTIONARY} must be a dictionary, equation's name: function; got {type(listed).__name__}")
    found = [Registered(name, function) for name, function in listed.items()]
    there = list(vars(source).values())
    for value in list(there):
        if isinstance(value, type):
            parts = ((name, getattr(part, "__func__", part)) for name, part in vars(value).items())
            there += [getattr(value, name) for name, part in parts if _marks(part)]
    for value in there:
        for name in _marks(value):
            if not any(other.name == name and other.function is value for other in found):
                found.append(Registered(name, value))
    return found


def load(source: str | Path) -> ModuleType:
    """The module of a file, or one that Python can import by a dotted name. It runs, as at any import.

    Raises NotLoaded where there is none, or where it raises an exception: with the line, the exception as the cause.
    """
    path = Path(source)
    if path.suffix != ".py" and not path.exists():
        return _run(str(source), str(Path.cwd()), lambda: importlib.import_module(str(source)))
    if not path.is_file():
        raise NotLoaded(f"expected a Python file; there is no file {path}")
    name = f"conformance_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NotLoaded(f"{path} is no Python file (NAME.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, say, look for it

    def run() -> ModuleType:
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _run(str(path), str(path.resolve().parent), run)


def _run(said: str, folder: str, run: Callable[[], ModuleType]) -> ModuleType:
    """The module that run() returns. The folder comes first where Python looks for modules, as for `python FILE`."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return run()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # exit() among them
        if isinstance(error, ModuleNotFoundError) and f"{said}.".startswith(f"{error.name}."):
            raise NotLoaded(f"there is no file and no module {said!r}: name a Python file, as mycode.py") from error
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
        frames = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
        line = f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}: `{frames[-1].line}`" if frames else ""
        hint = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            hint = "; it is part of a package: name it as one, package.module, in the folder that holds the package"
        raise NotLoaded(f"{said} raised {type(error).__name__}: {error}{line}{hint}") from error


def _marks(value: Any) -> tuple[str, ...]:
    """The names under which a value is marked itself, not by what it inherits from."""
    marks = getattr(value, "__dict__", {}).get(MARK, ())
    return marks if isinstance(marks, tuple) else ()
