"""The fixtures for pytest, in a pytest of its own: what passes, what fails, and with which words."""

import os
import subprocess
import sys

import pytest

FILES = {
    "conftest.py": 'pytest_plugins = ["ddpm_lib.conformance.pytest_plugin"]\n',
    "mycode.py": """
from ddpm_lib.conformance import implements
from ddpm_lib.diffusion.posterior import posterior_mean

mean = implements("posterior mean")(posterior_mean)

@implements("posterior variance")
def variance(schedule, t):
    return schedule.beta[t]
""",
    "test_each.py": """
import mycode
from mycode import *

def test_it(implementation):
    implementation.check()
""",
    "test_one.py": """
import mycode, pytest, torch
def test_mean(conforms):
    conforms("posterior mean", mycode.mean)
def test_single(conforms):
    conforms("cumulative alpha", lambda beta: torch.cumprod(1 - beta.float(), 0), float32=True)
def test_unknown(conforms):
    with pytest.raises(ValueError, match="did you mean"):
        conforms("posterior men", mycode.mean)
""",
    "test_none.py": "def test_it(implementation):\n    implementation.check()\n",
}


def run(folder, files):
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "--continue-on-collection-errors"]
    # nbval takes as long to import as torch
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*command, "."], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """All files in one run: starting takes longer than the tests."""
    return run(tmp_path_factory.mktemp("mycode"), FILES)


def test_each_function_that_is_registered_is_a_test(said):
    assert "PASSED test_each.py::test_it[posterior mean]" in said
    assert "FAILED test_each.py::test_it[posterior variance]" in said
    assert "A known wrong version is off by exactly as much: β_t, the variance of the forward step" in said
    assert "examine.py" not in said, "the lines of the library are hidden"


def test_one_function_by_its_name(said):
    assert said.count("PASSED test_one.py::") == 3 and "FAILED test_one.py" not in said


def test_a_module_that_registers_nothing_fails(said):
    assert "ERROR test_none.py" in said and "test_none registers no function" in said


def test_no_other_test_was_run(said):
    assert "1 failed, 4 passed, 1 error" in said


def test_without_a_word_of_it_pytest_is_as_it_was(tmp_path):
    assert "fixture 'conforms' not found" in run(tmp_path, {"test_it.py": "def test_it(conforms): ...\n"})
