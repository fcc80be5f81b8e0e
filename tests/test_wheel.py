"""What is installed is the whole library: a wheel, built and installed outside the checkout, has every module."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "ddpm_lib"
IMPORT = """
import pkgutil, sys
from pathlib import Path
import ddpm_lib

def fail(name):
    raise ImportError(name)

import ddpm_lib.__main__
print("at once:", *sorted({"diffusers", "scipy", "sklearn", "torchvision"} & sys.modules.keys()))
names = ["ddpm_lib", *(found.name for found in pkgutil.walk_packages(ddpm_lib.__path__, "ddpm_lib.", fail))]
for name in names:
    __import__(name)
    path = Path(sys.modules[name].__file__)
    print(name, path.relative_to(sys.argv[1]))  # ValueError for one that lies elsewhere
"""


def sources():
    """Every file of the library but what Python makes of it, relative to the checkout."""
    files = [path for path in LIBRARY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in files}


def run(*command, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, and a folder into which it was installed, without a network and outside the checkout."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed (make test installs it)")
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(LIBRARY, place / "source" / "ddpm_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source")
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    offline = ("--no-deps", "--no-index")
    run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", place / "dist", place / "source", cwd=place)
    (wheel,) = (place / "dist").glob("*.whl")
    run(*pip, "install", *offline, "--target", place / "site", wheel, cwd=place)
    return wheel, place / "site"


def test_no_file_is_left_out_of_the_wheel_and_none_is_added(installed):
    with zipfile.ZipFile(installed[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources()


def test_every_module_can_be_imported_where_only_the_wheel_is(installed, tmp_path):
    _, site = installed
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n{IMPORT}")
    at_once, *lines = run("-P", str(program), str(site), cwd=tmp_path).splitlines()
    assert at_once == "at once:", "the command line starts in half the time without these"
    found = {line.split()[1].replace(os.sep, "/") for line in lines}
    assert found == {name for name in sources() if name.endswith(".py")}


def test_every_folder_of_the_library_says_what_it_is():
    folders = {path.parent for path in LIBRARY.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_no_source_is_hidden_from_git():
    paths = [path.relative_to(ROOT).as_posix() for top in (LIBRARY, ROOT / "tests") for path in top.rglob("*.py")]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "--no-index", *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert not done.stdout, "the next checkout would lack these: see .gitignore"
