"""The reference solutions have full marks; each slip made in them loses the marks of its identity."""

import importlib
import pkgutil

import pytest

import assignments.wrong
from assignments.wrong.examine import answers, graded, loses
from ddpm_lib.checks.equation import IDEAS
from ddpm_lib.homework.problem import find

MODULES = {module.name for module in pkgutil.iter_modules(assignments.wrong.__path__)}
SETS = [number for number in range(1, 7) if f"set_{number}" in MODULES]
SLIPS = [(n, wrong) for n in SETS for wrong in importlib.import_module(f"assignments.wrong.set_{n}").WRONG]


@pytest.mark.soak
@pytest.mark.parametrize("number", SETS)
def test_the_reference_solution_has_full_marks(number):
    """Each time `make test` runs, the stored notebooks tell the same (test_release.py)."""
    for problem, points in graded(number).items():
        assert points.earned == find(problem).marks, (problem, [r.message for r in points.results])


@pytest.mark.parametrize("number, wrong", SLIPS, ids=[f"{w.problem}: {w.what}" for _, w in SLIPS])
def test_a_slip_loses_the_marks_of_its_identity(number, wrong):
    assert wrong.idea in IDEAS
    assert loses(number, wrong)


@pytest.mark.parametrize("number", SETS)
def test_every_identity_has_a_slip_that_loses_it(number):
    for problem in answers(number):
        names = {identity.name for identity in find(problem).identities if not identity.secret}
        assert names <= {wrong.identity for n, wrong in SLIPS if n == number and wrong.problem == problem}
