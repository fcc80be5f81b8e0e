"""The framework of the checks: what passes, what counts as rejected, and what its messages say."""

import math
import re

import pytest
import torch

from ddpm_lib import checks
from ddpm_lib.checks import apart, check, find, holds, load_all, verify


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A copy of the registry that the test may fill: what it registers is gone afterwards."""
    monkeypatch.setattr(checks, "CHECKS", dict(load_all()))


def double(x):
    return 2 * x


def doubling(kind="implementation", to=0.001, number="99.1", name="doubling"):
    """A check of f(3) = 6 with one wrong version."""

    @check(number, name, kind, "adding a number to itself", to=to)
    def measure(f):
        return abs(f(3.0) - (3.0 + 3.0))

    measure.wrong("squares", seen="a common slip", idea="power")(lambda x: x * x)
    return measure


def off_by(distance):
    return lambda x: 2 * x + distance


def test_a_right_function_passes():
    found = doubling()
    assert verify("doubling", double) is found


def test_a_wrong_function_fails_and_the_message_names_equation_route_and_distance():
    doubling()
    with pytest.raises(AssertionError) as error:
        verify("doubling", off_by(0.25))
    expected = "Eq. 99.1 (doubling) does not hold: off by 0.25 from adding a number to itself (allowed: 0.001)."
    assert str(error.value).splitlines()[0] == expected


def test_the_hint_recognises_a_known_wrong_version():
    doubling()
    with pytest.raises(AssertionError, match=r"off by exactly as much: squares \(a common slip\)\.$"):
        verify("doubling", lambda x: x**2)


def test_a_wrong_version_that_crashes_does_not_hide_the_hint():
    @check("99.1", "doubling", "implementation", "adding a number to itself", to=0.001)
    def measure(f):
        return abs(f(3.0) - 6.0)

    measure.wrong("crashes", seen="here", idea="power")(lambda x: x / 0)
    measure.wrong("squares", seen="a common slip", idea="power")(lambda x: x * x)
    with pytest.raises(AssertionError, match="squares"):
        verify("doubling", lambda x: x**2)


# The tolerance is a power of two, so that distances of exactly one and ten tolerances exist.
@pytest.mark.parametrize(("to", "allowed", "too_far"), [(0.125, 0.125, 0.25), (None, 4.5, 5.5)])
def test_a_function_passes_up_to_the_tolerance_and_no_further(to, allowed, too_far):
    found = doubling(to=to)
    found.wrong_versions.clear()
    verify("doubling", off_by(allowed))
    verify("doubling", off_by(-allowed))
    with pytest.raises(AssertionError, match="does not hold"):
        verify("doubling", off_by(too_far))


@pytest.mark.parametrize(("to", "caught", "survives"), [(0.125, 1.25, 1.125), (None, 15.0, 14.0)])
def test_a_wrong_version_counts_as_rejected_from_ten_tolerances_or_15_deviations_on(to, caught, survives):
    found = doubling(to=to)
    found.wrong_versions.clear()
    found.wrong("far off", seen="here", idea="power")(off_by(caught))
    verify("doubling", double)
    found.wrong("nearly right", seen="here", idea="power")(off_by(survives))
    with pytest.raises(AssertionError, match=r"Eq\. 99\.1 \(doubling\): the check does not reject .*'nearly right'"):
        verify("doubling", double)


def test_a_check_that_accepts_a_wrong_version_fails():
    found = doubling()
    found.wrong("right in disguise", seen="nowhere", idea="power")(lambda x: x + x)
    with pytest.raises(AssertionError, match="does not reject the wrong version 'right in disguise': off by 0"):
        verify("doubling", double)


def test_a_wrong_version_that_raises_is_broken_not_rejected():
    found = doubling()
    found.wrong("divides by zero", seen="here", idea="power")(lambda x: x / 0)
    with pytest.raises(AssertionError, match="'divides by zero' crashed instead of being rejected") as error:
        verify("doubling", double)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_nan_neither_passes_nor_counts_as_a_rejection():
    found = doubling()
    with pytest.raises(AssertionError, match="off by nan"):
        verify("doubling", lambda x: math.nan)
    found.wrong("not a number", seen="here", idea="power")(lambda x: math.nan)
    with pytest.raises(AssertionError, match="does not reject the wrong version 'not a number'"):
        verify("doubling", double)


def test_an_identity_is_checked_on_its_own_statement_unless_another_is_given():
    found = doubling(kind="identity")
    found.states(double)
    assert verify("doubling") is found
    with pytest.raises(AssertionError, match="does not hold"):
        verify("doubling", off_by(1))
    found.states(off_by(1))
    with pytest.raises(AssertionError, match="does not hold"):
        verify("doubling")
    verify("doubling", double)


def test_an_implementation_is_checked_on_the_function_that_is_passed():
    doubling()
    with pytest.raises(ValueError, match=re.escape("pass the function to check, as in holds('doubling', f)")):
        verify("doubling")


def test_holds_prints_one_line_that_counts_the_rejections(capsys):
    found = doubling()
    said = "Eq. 99.1 (doubling) holds: adding a number to itself, to 0.001."
    holds("doubling", double)
    assert capsys.readouterr().out == f"{said} 1 wrong version rejected.\n"
    found.wrong("cubes", seen="here", idea="power")(lambda x: x**3)
    holds("doubling", double)
    assert capsys.readouterr().out == f"{said} 2 wrong versions rejected.\n"
    found.wrong_versions.clear()
    holds("doubling", double)
    assert capsys.readouterr().out == f"{said}\n"


def test_holds_prints_nothing_where_nothing_was_shown(capsys):
    doubling(to=None)
    with pytest.raises(AssertionError):
        holds("doubling", off_by(6))
    assert capsys.readouterr().out == ""
    found = find("doubling")
    found.wrong_versions.clear()
    holds("doubling", double)
    assert capsys.readouterr().out.endswith("itself, |z| < 5.\n")


@pytest.mark.parametrize("second", [{"number": "99.2"}, {"name": "twice"}], ids=["same name", "same number"])
def test_a_name_or_number_that_is_taken_is_refused(second):
    doubling()
    with pytest.raises(ValueError, match="already"):
        doubling(**second)
    assert [c.title for c in checks.CHECKS.values() if c.number.startswith("99")] == ["Eq. 99.1 (doubling)"]


def test_an_unknown_kind_is_refused_and_the_kinds_are_listed():
    with pytest.raises(ValueError, match="definition, identity, implementation; got 'theorem'"):
        doubling(kind="theorem")


def test_an_unknown_name_is_refused_and_the_names_are_listed():
    doubling()
    with pytest.raises(ValueError, match=r"no equation named 'tripling'.*mixing with noise.*doubling"):
        find("tripling")


def test_apart_is_the_largest_difference_whatever_its_sign():
    assert apart(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])) == 1.0  # the signed sum would be 0
    assert apart(torch.tensor([1.0, -4.0, 2.0]), torch.tensor([1.0, 1.0, 2.5])) == 5.0
    assert apart(3, 3.0) == 0.0


def test_apart_is_nan_where_anything_is():
    assert math.isnan(apart(torch.tensor([0.0, math.nan]), torch.zeros(2)))
    assert math.isnan(apart(torch.zeros(2), torch.tensor([math.nan, 7.0])))


def test_apart_does_not_broadcast():
    with pytest.raises(ValueError, match=r"expected shape \(3,\), got \(3, 1\)"):
        apart(torch.zeros(3, 1), torch.zeros(3))
