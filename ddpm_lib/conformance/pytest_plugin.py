"""For pytest. `pytest_plugins = ["ddpm_lib.conformance.pytest_plugin"]` in conftest.py adds two fixtures, and no more.

def test_mean(conforms):  # one function
    conforms("posterior mean", mycode.mean)

def test_mycode(implementation):  # once for each function that the test's module registers, or has imported marked
    implementation.check()
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ddpm_lib.conformance import registered


@dataclass(frozen=True)
class Implementation:
    """A registered function: `check()` raises AssertionError, with the check's message, unless it holds."""

    name: str
    function: Callable

    def check(self, float32: bool = False) -> None:
        __tracebackhide__ = True
        _conforms(self.name, self.function, float32)


@pytest.fixture(scope="session")
def conforms() -> Callable[..., None]:
    """conforms(name, function, float32=False) raises AssertionError, with the check's message, unless it holds."""
    return _conforms


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        found = registered(metafunc.module)
        if not found:
            pytest.fail(
                f"{metafunc.module.__name__} registers no function, nor has it imported one that is marked", False
            )
        metafunc.parametrize(
            "implementation", [Implementation(r.name, r.function) for r in found], ids=[r.name for r in found]
        )


def _conforms(name: str, function: Any, float32: bool = False) -> None:
    __tracebackhide__ = True
    from ddpm_lib.conformance.examine import conforms as examine  # imports torch, where a test asks for it

    examine(name, function, float32)
