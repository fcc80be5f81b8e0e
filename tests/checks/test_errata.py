"""Appendix A's numbers: every wrong version is run, has an idea, and is told with its distance and its place."""

import math
import re
from pathlib import Path

import nbformat
import pytest

from ddpm_lib.checks import NO_SOURCE, errata, load_all
from ddpm_lib.checks.equation import IDEAS, Check, Wrong
from ddpm_lib.checks.errata import Erratum, registered, tell

BOOK = nbformat.read(next((Path(__file__).parents[2] / "chapters").glob("A_*.ipynb")), 4)
INDEX = next(cell.source for cell in BOOK.cells if cell.source.startswith("## A.1 "))


def erratum(distance=0.5, seen="owner/name issue 1", precision="to 1e-9", idea="sign", rejects=1e-8):
    found = Check("9.9", "a sum", "identity", "counting", lambda f: distance, 1e-9, rejects, precision)
    return Erratum(found, Wrong("a minus", seen, idea, abs), distance)


def test_each_wrong_version_is_run_once_in_the_book_s_order(monkeypatch):
    found = erratum().check
    for what, off in (("nearly", 1e-8), ("far", 2.0), ("right", 0.0)):
        found.wrong_versions.append(Wrong(what, "here", "sign", lambda off=off: off))
    found.measure = lambda f: f()
    monkeypatch.setattr(errata, "load_all", lambda: {"a sum": found})
    assert [(e.wrong.what, e.distance, e.caught) for e in errata.errata()] == [
        ("nearly", 1e-8, True),
        ("far", 2.0, True),
        ("right", 0.0, False),
    ]


def test_all_that_is_registered_has_an_idea_and_no_idea_is_empty():
    assert {wrong.idea for _, wrong in registered()} == set(IDEAS)
    assert len(list(registered())) == sum(len(check.wrong_versions) for check in load_all().values())


@pytest.mark.parametrize(
    ("distance", "precision", "said"),
    [
        (0.5, "to 1e-9", "off by 0.5, 1e-9 is allowed"),
        (41.6, "|z| < 5", "|z| = 42, |z| < 5 is allowed"),
        (math.inf, "to 1e-9", "a promise broken, 1e-9 is allowed"),
        (math.nan, "to 1e-9", "a promise broken, 1e-9 is allowed"),
        (1e299, "to 1e-9", "off beyond measure, 1e-9 is allowed"),
    ],
)
def test_it_says_what_is_wrong_by_how_much_and_where_it_stands(distance, precision, said):
    lines = str(erratum(distance, precision=precision)).splitlines()
    assert lines == ["Eq. 9.9 (a sum): a minus", f"{said}; owner/name issue 1"]
    assert str(erratum(distance, NO_SOURCE, precision)).splitlines()[1] == said


def test_one_idea_is_told_with_what_is_public_and_a_count_of_the_rest(capsys):
    found = [erratum(), erratum(seen=NO_SOURCE), erratum(idea="power"), erratum(distance=0.0)]
    tell(found, "sign")
    out = capsys.readouterr().out.splitlines()
    assert out.count("Eq. 9.9 (a sum): a minus") == 2
    assert out[-1] == "3 of this kind, 2 caught; 1 of them are only plausible"
    with pytest.raises(ValueError, match="expected one of power, "):
        tell(found, "root")


def test_the_index_leads_to_every_equation_that_is_wrong_in_public():
    public = {check.number for check, wrong in registered() if not wrong.seen.startswith(NO_SOURCE)}
    assert public <= set(re.findall(r"\bEq\. (\d+\.\d+)", INDEX))


def test_each_idea_has_its_cell():
    source = "\n".join(cell.source for cell in BOOK.cells if cell.cell_type == "code")
    assert sorted(re.findall(r'tell\(everything, "(\w+)"\)', source)) == sorted(IDEAS)


def test_the_front_page_says_how_many_there_are():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    said = r"(\d+) numbered equations .* reject (\d+) wrong versions, (\d+) of which, or their like, stand in public"
    public = [check for check, wrong in registered() if not wrong.seen.startswith(NO_SOURCE)]
    counts = [len(load_all()), len(list(registered())), len(public)]
    assert list(map(int, re.search(said, readme).groups())) == counts
