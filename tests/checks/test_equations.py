"""Every numbered equation: its check passes; book, library and checks agree on number, name and kind."""

import ast
import copy
import importlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from torch import nn

from ddpm_lib import CHAPTER
from ddpm_lib.checks import KINDS, NO_SOURCE, load_all
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.timesteps import LossSecondMoment
from ddpm_lib.training.ema import EMA
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.scaler import LossScaler

ROOT = Path(__file__).parents[2]
CHECKS = load_all()
BOOK = {int(path.name[:2]): nbformat.read(path, 4) for path in sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))}
CHAPTERS = sorted({int(check.number.split(".")[0]) for check in CHECKS.values()})
HEADING_OR_TAG = re.compile(r"^#{5} \*\*Eq\. (\d+\.\d+) \((.+)\)\*\*$|\\tag\{(.+?)\}", re.MULTILINE)
CITATION = re.compile(r"\bEqs?\. ?(\d+\.\d+)")


def implementations():
    """(number, name, module, function) of every docstring in the library whose first line is `Eq. N.M (name).`"""
    for module in CHAPTER:
        if module.split(".")[0] in ("checks", "conformance"):
            continue
        place = ROOT / "ddpm_lib" / module.replace(".", "/")
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                if first.startswith("Eq"):
                    found = re.match(r"Eq\. (\d+\.\d+) \((.+?)\)\.", first)
                    assert found, f"{module}.{node.name}: expected `Eq. N.M (name).`, got {first!r}"
                    yield *found.groups(), module, node.name


IMPLEMENTATIONS = list(implementations())


def chapter_of(number):
    return int(number.split(".")[0])


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


# That each check rejects its wrong versions is asserted where the book shows it: in each chapter, and in appendix A.


@pytest.mark.parametrize(("name", "module", "function"), [row[1:] for row in IMPLEMENTATIONS], ids=lambda x: x)
def test_an_implementation_passes_its_check(name, module, function):
    found, own = CHECKS[name], getattr(importlib.import_module(f"ddpm_lib.{module}"), function)
    assert found.own is own
    assert found.measure(own) <= found.passes


@pytest.mark.parametrize("name", [c.name for c in CHECKS.values() if c.kind != "implementation"])
def test_a_statement_passes_its_check(name):
    assert CHECKS[name].statement, "decorate the book's own side with @….states"
    assert CHECKS[name].measure(CHECKS[name].statement) <= CHECKS[name].passes


@pytest.mark.parametrize("found", CHECKS.values(), ids=lambda c: c.title)
def test_a_check_has_wrong_versions_that_say_what_is_wrong_and_where_it_was_seen(found):
    assert found.kind in KINDS
    assert len(found.wrong_versions) >= (2 if found.kind == "implementation" else 1)
    what = [wrong.what for wrong in found.wrong_versions]
    assert len(set(what)) == len(what)
    assert all(wrong.what.strip() and wrong.seen.strip() for wrong in found.wrong_versions)
    functions = [wrong.function.__code__ for wrong in found.wrong_versions]
    assert len(set(functions)) == len(functions), "one function under two names"


# owner/repository, a year, or a library whose default it is
SOURCE = re.compile(r"[\w.-]+/[\w.-]+|\b(19|20)\d\d\b|\b(torch|numpy|scipy|randint)\b")


@pytest.mark.parametrize("found", CHECKS.values(), ids=lambda c: c.title)
def test_a_wrong_version_names_a_public_source_or_says_that_none_is_known(found):
    for wrong in found.wrong_versions:
        assert wrong.seen.startswith(NO_SOURCE) or SOURCE.search(wrong.seen), wrong.what


@pytest.mark.parametrize("found", CHECKS.values(), ids=lambda c: c.title)
def test_a_check_stands_in_the_module_of_its_chapter(found):
    assert found.measure.__module__ == f"ddpm_lib.checks.chapter_{chapter_of(found.number):02d}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_numbers_of_a_chapter_run_from_1_without_a_gap(chapter):
    numbers = [c.number for c in CHECKS.values() if chapter_of(c.number) == chapter]
    assert numbers == [f"{chapter}.{i}" for i in range(1, len(numbers) + 1)]


def test_docstrings_and_checks_agree_on_the_implementations():
    expected = Counter((c.number, c.name) for c in CHECKS.values() if c.kind == "implementation")
    assert Counter((number, name) for number, name, _, _ in IMPLEMENTATIONS) == expected


@pytest.mark.parametrize(("number", "module"), [(row[0], row[2]) for row in IMPLEMENTATIONS], ids=lambda x: x)
def test_an_implementation_stands_in_a_module_of_its_equations_chapter(number, module):
    assert CHAPTER[module] == chapter_of(number)


@pytest.mark.parametrize("chapter", sorted({*CHAPTERS, *BOOK}))
def test_the_book_states_each_equation_once_with_its_number_name_and_tag(chapter):
    assert chapter in BOOK, f"the checks of chapter {chapter} have no notebook chapters/{chapter:02d}_….ipynb"
    stated = []
    for text in sources(BOOK[chapter], "markdown"):
        marks = [match.groups() for match in HEADING_OR_TAG.finditer(text)]
        turns = [bool(heading) for heading, _, _ in marks]
        assert turns == [True, False] * (len(marks) // 2), f"each heading must be followed by its \\tag: {marks}"
        for heading, tag in zip(marks[::2], marks[1::2], strict=True):
            assert heading[0] == tag[2], f"Eq. {heading[0]} is tagged {tag[2]}"
            stated.append(heading[:2])
    assert stated == [(c.number, c.name) for c in CHECKS.values() if chapter_of(c.number) == chapter]


@pytest.mark.parametrize("found", CHECKS.values(), ids=lambda c: c.title)
def test_the_book_runs_each_check_and_shows_that_it_holds(found):
    chapter = chapter_of(found.number)
    assert chapter in BOOK, f"the checks of chapter {chapter} have no notebook chapters/{chapter:02d}_….ipynb"
    cells = [cell for cell in BOOK[chapter].cells if cell.cell_type == "code"]
    calls = [cell for cell in cells if re.search(rf"""\bholds\(\s*["']{re.escape(found.name)}["']""", cell.source)]
    assert calls, f'no cell of chapter {chapter} calls holds("{found.name}", …)'
    printed = "".join(out.get("text", "") for cell in calls for out in cell.outputs)
    assert f"{found.title} holds: {found.route}, {found.precision}." in " ".join(printed.split())  # lines are wrapped


@pytest.mark.parametrize("chapter", BOOK)
def test_what_a_chapter_cites_exists(chapter):
    cited = {
        n for kind in ("markdown", "code") for text in sources(BOOK[chapter], kind) for n in CITATION.findall(text)
    }
    assert cited <= {c.number for c in CHECKS.values()}


def test_what_the_library_cites_exists():
    numbers = {c.number for c in CHECKS.values()}
    for path in [ROOT / "README.md", *(ROOT / "ddpm_lib").rglob("*.py")]:
        assert set(CITATION.findall(path.read_text(encoding="utf-8"))) <= numbers, path.name


def without_numbers(value):
    """The same value with NaN in the place of every number; of a function or network, one that returns such values."""
    if isinstance(value, (tuple, list)):
        return type(value)(without_numbers(part) for part in value)
    if isinstance(value, Schedule):
        broken = copy.copy(value)
        broken.beta = value.beta * math.nan
        return broken
    if isinstance(value, nn.Module):
        value.register_forward_hook(lambda module, inputs, output: output * math.nan)
        return value
    if isinstance(value, EMA):
        for parameter in value.model.parameters():
            parameter.fill_(math.nan)
        return value
    if isinstance(value, LossScaler):
        value.scale = value.scale * math.nan
        return value
    if isinstance(value, Fast):
        backward = value.backward
        value.backward = lambda *a: backward(*a) * math.nan
        return value
    if isinstance(value, LossSecondMoment):
        draw = value.draw
        value.draw = lambda *a: tuple(math.nan * (1 if part is None else part) for part in draw(*a))
        return value
    if isinstance(value, Iterator):
        return map(without_numbers, value)
    if callable(value):
        return lambda *a: without_numbers(value(*a))
    return value * math.nan


@pytest.mark.parametrize("name", CHECKS)
def test_a_function_that_returns_nan_passes_no_check(name):
    """Python's max(0.0, nan) is 0.0: a check that collects its worst case in this way would accept NaN."""
    found = CHECKS[name]
    module, function = next((row[2:] for row in IMPLEMENTATIONS if row[1] == name), (None, None))
    right = found.statement or getattr(importlib.import_module(f"ddpm_lib.{module}"), function)
    assert not found.measure(lambda *a, **options: without_numbers(right(*a, **options))) <= found.passes
