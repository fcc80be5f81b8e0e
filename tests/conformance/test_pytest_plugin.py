"""The fixtures for pytest, in a pytest of its own: what passes, what fails, and with which words."""

import subprocess
import sys

import pytest

CONFTEST = 'pytest_plugins = ["ddpm_lib.conformance.pytest_plugin"]\n'
CODE = """
from ddpm_lib.conformance import implements
from ddpm_lib.diffusion.posterior import posterior_mean

mean = implements("posterior mean")(posterior_mean)

@implements("posterior variance")
def variance(schedule, t):
    return schedule.beta[t]
"""


@pytest.fixture
def run(tmp_path):
    def call(test, code=CODE, conftest=CONFTEST):
        for name, text in {"conftest.py": conftest, "mycode.py": code, "test_mycode.py": test}.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA", "."]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return call


def test_each_function_that_is_registered_is_a_test(run):
    done = run("import mycode\nfrom mycode import *\n\ndef test_it(implementation):\n    implementation.check()\n")
    assert done.returncode == 1
    assert "PASSED test_mycode.py::test_it[posterior mean]" in done.stdout
    assert "FAILED test_mycode.py::test_it[posterior variance]" in done.stdout
    assert "A known wrong version is off by exactly as much: β_t, the variance of the forward step" in done.stdout
    assert "examine.py" not in done.stdout, "the lines of the library are hidden"


def test_one_function_by_its_name(run):
    test = """
import mycode, pytest, torch
def test_mean(conforms):
    conforms("posterior mean", mycode.mean)
def test_single(conforms):
    conforms("cumulative alpha", lambda beta: torch.cumprod(1 - beta.float(), 0), float32=True)
def test_unknown(conforms):
    with pytest.raises(ValueError, match="did you mean"):
        conforms("posterior men", mycode.mean)
"""
    done = run(test)
    assert done.returncode == 0 and "3 passed" in done.stdout


def test_a_module_that_registers_nothing_fails(run):
    done = run("def test_it(implementation):\n    implementation.check()\n")
    assert done.returncode != 0 and "test_mycode registers no function" in done.stdout


def test_without_a_word_of_it_pytest_is_as_it_was(run):
    done = run("def test_it(conforms): ...\n", conftest="")
    assert done.returncode == 1 and "fixture 'conforms' not found" in done.stdout
