"""The house is in order: modules stand in their chapters, notebooks are stored as run, pins and README are true."""

import ast
import functools
import importlib.util
import io
import itertools
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ddpm_lib import CHAPTER, ROOMS
from tools.links import chapter, place

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "ddpm_lib"
NOTEBOOKS = sorted((ROOT / "chapters").rglob("*.ipynb"))
by_name = {"ids": lambda path: "/".join(path.parts[-2:])}


def module_name(path):
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


def is_empty(path):
    """Whether a file says what a folder holds, and no more."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text(encoding="utf-8")).body)


MODULES = {module_name(path): path for path in LIBRARY.rglob("*.py") if not is_empty(path)}
del MODULES["__init__"]


def imported(tree):
    """The modules of ddpm_lib that a syntax tree imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a thing lives"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        # a name may be a module's (ddpm_lib.checks.chapter_03) or that of something in it (ddpm_lib.images.data.digits)
        yield from {name.removeprefix("ddpm_lib.") for name in names if name.startswith("ddpm_lib.")} & MODULES.keys()


@functools.cache
def needs(module):
    """The modules that a module imports."""
    return frozenset(imported(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


# Modules


def test_the_table_of_chapters_lists_the_modules_that_exist():
    assert CHAPTER.keys() == MODULES.keys()


def room(module):
    return module.split(".")[0]


def test_the_table_of_rooms_lists_the_rooms_that_exist():
    assert ROOMS.keys() == {room(module) for module in MODULES}


def test_no_arrow_between_rooms_points_upwards():
    assert all(ROOMS.keys() >= set(below) for below in ROOMS.values())
    for i, name in enumerate(ROOMS):  # the table is written from the ground up
        assert set(ROOMS[name]) <= set(list(ROOMS)[:i]), name


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_the_rooms_below_it(module):
    rooms = {room(name) for name in needs(module)} - {room(module)}
    assert rooms <= set(ROOMS[room(module)])


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), **by_name)
def test_the_tests_stand_in_the_same_rooms(path):
    folder = path.relative_to(ROOT / "tests").parts[0]
    assert folder == path.name or folder in ROOMS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_of_a_later_chapter(module):
    later = {name for name in needs(module) if CHAPTER[name] > CHAPTER[module]}
    assert not later, f"{module} is of chapter {CHAPTER[module]}"


def test_no_module_imports_itself_through_others():
    edges = {module: needs(module) for module in MODULES}
    while leaves := [module for module, below in edges.items() if not below & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"there is a circle among {sorted(edges)}"


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("checks.")])
def test_a_module_can_be_read_in_one_sitting(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 250


def test_t_is_drawn_in_one_place():
    places = {name for name, path in MODULES.items() if "randint(" in path.read_text(encoding="utf-8")}
    assert {name for name in places if not name.startswith("checks.")} == {"diffusion.loss"}


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), **by_name)
def test_a_progress_bar_refreshes_once_a_second(path):
    # Each refresh sends a notebook three messages. nbval reads none before the cell is done, the kernel drops what
    # no longer fits its queue (some thousands), the cell's end among it, and the test waits for that in vain.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("tqdm"):
            assert {key.arg: ast.unparse(key.value) for key in node.keywords}.get("mininterval") == "1"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".set_postfix", ".set_postfix_str")):
            assert {key.arg: ast.unparse(key.value) for key in node.keywords}.get("refresh") == "False"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), **by_name)
def test_the_library_never_unpickles(path):
    text = path.read_text(encoding="utf-8")
    words = {token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == 1}
    assert not words & {"pickle", "cPickle", "dill", "joblib", "allow_pickle", "cloudpickle"}
    attributes = {ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert not attributes & {"torch.load", "torch.save", "torch.hub"}
    assert not re.search(r"from torch import .*\b(load|save|hub)\b", text)


# Notebooks


@functools.cache
def notebook(path):
    return nbformat.read(path, 4)


def cells(path, kind="code"):
    return [cell for cell in notebook(path).cells if cell.cell_type == kind]


@functools.cache
def tree_of_source(source):
    return ast.parse(TransformerManager().transform_cell(source))


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_a_notebook_imports_nothing_of_a_later_chapter(path):
    names = {name for cell in cells(path) for name in imported(tree_of_source(cell.source))}
    assert not {name for name in names if CHAPTER[name] > place(chapter(path.name))}


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_a_notebook_is_valid_and_light(path):
    nbformat.validate(nbformat.read(path, nbformat.NO_CONVERT))
    assert path.stat().st_size < 500_000


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells(path) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.get("name") == "stderr"]
    for cell in cells(path):
        names = [output.get("name") for output in cell.outputs]
        assert not [a for a, b in itertools.pairwise(names) if a and a == b], "a stream in pieces: make stored joins it"
    assert "widgets" not in notebook(path).metadata, "a widget shows nothing in a notebook that is not trusted"


def calls(cell, name):
    nodes = ast.walk(tree_of_source(cell.source))
    return [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == name]


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_a_code_cell_holds_one_idea_in_twelve_lines_besides_a_figure_s_words(path):
    for cell in cells(path):
        words = sum(call.end_lineno - call.lineno + 1 for call in calls(cell, "plot.show"))
        assert len(cell.source.splitlines()) - words <= 12, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_every_picture_is_a_figure_with_number_caption_and_alternative_text(path):
    number = ("S" if path.parent.name == "solutions" else "") + chapter(path.name)
    shown = 0
    for cell in cells(path):
        assert not calls(cell, "plt.show"), "show figures by plot.show(number, caption, alt)"
        pictures = [
            output for output in cell.outputs if any(kind.startswith("image/") for kind in output.get("data", ()))
        ]
        assert len(pictures) == len(calls(cell, "plot.show")), cell.source
        for picture, call in zip(pictures, calls(cell, "plot.show"), strict=True):
            shown += 1
            given, caption, alt = (ast.literal_eval(argument) for argument in call.args)
            assert given == f"{number}.{shown}"
            assert picture.metadata["image/png"]["alt"] == alt
            assert picture.data["text/plain"] == f"[Figure {given}: {alt}]"
            assert picture.metadata["image/png"]["width"] <= 820, "wider than the page"
            assert any(
                f"**Figure {given}.** {caption}" in o.get("data", {}).get("text/markdown", "") for o in cell.outputs
            )
            assert 10 <= len(caption) <= 250 and caption.endswith(".")
            assert 60 <= len(alt) <= 400 and not set(alt) & set("$\\`*"), "plain words, what is to be seen"


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_no_printed_line_is_wider_than_the_page(path):
    for output in (output for cell in cells(path) for output in cell.outputs):
        text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
        if "image/png" not in output.get("data", {}) and "text/markdown" not in output.get("data", {}):
            assert not [line for line in text.splitlines() if len(line) > 96]


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_no_assert_fails_without_a_sentence(path):
    for cell in cells(path):
        for node in ast.walk(tree_of_source(cell.source)):
            assert not isinstance(node, ast.Assert) or node.msg, ast.unparse(node)


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.parent.name == "chapters"], **by_name)
def test_the_solutions_stand_in_a_notebook_of_their_own(path):
    if any(cell.source.startswith("## Exercises") for cell in cells(path, "markdown")):  # an appendix may have none
        assert (path.parent / "solutions" / path.name).exists()
    else:
        assert not chapter(path.name).isdecimal()
    for cell in notebook(path).cells:
        assert not cell.source.startswith("## Solution")
        assert not cell.metadata.get("jupyter", {}).get("source_hidden")


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_a_notebook_shows_nothing_of_the_machine_that_ran_it(path):
    shown = [cell.source for kind in ("code", "markdown") for cell in cells(path, kind)]
    for output in (output for cell in cells(path) for output in cell.outputs):
        data = output.get("data", {})
        shown += [output.get("text", ""), *(str(text) for kind, text in data.items() if not kind.startswith("image/"))]
    assert not [found for text in shown for found in re.findall(r"(?<![\w.])/(?:home|root|work|tmp)\b\S*", text)]


ROUNDING = re.compile(r"(?<![\w.])\d+(?:\.\d+)?e-1[3-9]\b")
MEANT = ("1e-16 is added inside the logarithm",)  # words of a wrong version


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_no_number_is_shown_that_only_rounding_made(path):
    # Such a number is another one on the next machine: say "rounding", or "exactly".
    for output in (output for cell in cells(path) for output in cell.outputs):
        text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for words in MEANT:
            text = text.replace(words, "")
        assert not ROUNDING.findall(text)


@pytest.mark.parametrize("path", NOTEBOOKS, **by_name)
def test_no_cell_is_skipped_by_the_tests(path):
    for cell in cells(path):
        assert not re.search(r"NBVAL_(SKIP|CHECK_OUTPUT)", cell.source)
        assert not {"nbval-skip", "nbval-check-output"} & set(cell.metadata.get("tags", []))


@pytest.mark.parametrize("name", ["pyproject.toml", "Makefile", "conftest.py", ".ci/run"])
def test_outputs_are_compared_strictly(name):
    assert "nbval-lax" not in (ROOT / name).read_text(encoding="utf-8")


# Style, pins, front page


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed (make test installs it)")
@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins():
    """(name, version, extra or None) of every pin in environment.yml, whether it is commented out or not."""
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"\s+(?:# )?- ([\w.-]+)==(\S+)(?:  # extra: (\w+))?", line) for line in lines]
    return [match.groups() for match in found if match]


def requirements():
    """{name: (range, extra or None)} of everything that pyproject.toml asks for."""
    project = pyproject()["project"]
    listed = {None: project["dependencies"], **project["optional-dependencies"]}
    asked = [(Requirement(line), extra) for extra, lines in listed.items() for line in lines]
    return {canonicalize_name(r.name): (r.specifier, extra) for r, extra in asked}


def test_every_requirement_has_one_pin_and_every_pin_a_requirement():
    assert sorted(canonicalize_name(name) for name, _, _ in pins()) == sorted(requirements())


def test_every_pin_lies_in_its_range_and_names_its_extra():
    asked = requirements()
    for name, pinned, extra in pins():
        allowed, of_extra = asked[canonicalize_name(name)]
        assert pinned in allowed, f"{name}=={pinned} is not {allowed}"
        # what the book itself needs is pinned without a remark
        assert extra == (None if of_extra == "book" else of_extra), name


def test_what_is_installed_is_what_is_pinned():
    for name, pinned, extra in pins():
        try:
            assert Version(version(name)).public == pinned, name
        except PackageNotFoundError:
            assert extra, f"{name} is not installed"


def test_the_front_page_s_program_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    (program,) = [block for block in blocks if "train(" in block]
    assert len(program.splitlines()) <= 17
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    exec(compile(program, "README.md", "exec"), names)
    images = torch.as_tensor(names["images"])
    assert images.isfinite().all() and images.min() >= -1 and images.max() <= 1
    assert images.std() > 0.1, "grey, or of one colour"
