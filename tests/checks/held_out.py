"""Wrong versions that stand beside no check: how a file of them is written, and the test that each is rejected."""

from collections.abc import Callable

import pytest

from ddpm_lib.checks import find

Wrong = dict[tuple[str, str], Callable]  # by the equation's name, and what is wrong


def registry() -> tuple[Wrong, Callable]:
    """A file's wrong versions, and the decorator wrong(name, what) that adds one."""
    versions: Wrong = {}

    def wrong(name, what):
        def register(function):
            assert (name, what) not in versions, f"{name}: {what} is there twice"
            versions[name, what] = function
            return function

        return register

    return versions, wrong


def rejecting(versions: Wrong) -> Callable:
    """The test of a file: every version's distance is one that the check rejects."""

    @pytest.mark.parametrize(("name", "what"), versions, ids=lambda x: x)
    def test_is_rejected(name, what):
        found = find(name)
        assert found.measure(versions[name, what]) >= found.rejects

    return test_is_rejected
