"""The website's sources: every link leads somewhere, what is shown stands as it was written, no solution is shown."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from tools.links import Book, chapter

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "site"))

import checked  # noqa: E402
import cited  # noqa: E402
import equations  # noqa: E402
import front  # noqa: E402
import pages  # noqa: E402
import reference  # noqa: E402
import symbols  # noqa: E402


@pytest.fixture(scope="module")
def book():
    return Book()


@pytest.fixture(scope="module")
def places(book):
    return pages.Places(book)


def links(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown" and cell.id not in ("head", "foot")]
    return [(found[1], found[2]) for cell in cells for found in pages.LINK.finditer(pages.CODE.sub("", cell.source))]


def test_every_link_of_the_book_leads_somewhere_on_the_site(book, places):
    for name, notebook in book.notebooks.items():
        for words, link in links(notebook):
            assert places.target(name, link, words), f"{name}: [{words}]({link})"


def test_a_link_that_leads_nowhere_becomes_words(places):
    text = "[Eq. 9.99](09_schedules_and_variances.ipynb#cell-id=eq-9-99), [two](nowhere.ipynb), `[code](x.ipynb)`"
    assert places.relinked("04_posterior.ipynb", text) == "Eq. 9.99, two, `[code](x.ipynb)`"
    there = places.relinked("04_posterior.ipynb", "[Eq. 3.1](03_forward_process.ipynb#cell-id=eq-3-1)")
    assert there == "[Eq. 3.1](#eq-3-1)"


def test_a_label_is_given_once(book, places):
    for name, notebook in book.notebooks.items():
        made = pages.page(places, name, notebook)
        given = [found for cell in made.cells for found in re.findall(r"^\(([^()\s]+)\)=$", cell.source, re.MULTILINE)]
        assert len(given) == len(set(given)), name
        assert made.cells[0].source.splitlines()[0] == f"({pages.label(name, 'page')})="
        assert "foot" not in [cell.id for cell in made.cells], "the theme draws it"
        assert [c.get("outputs") for c in made.cells if c.cell_type == "code"] == [
            c.get("outputs") for c in notebook.cells if c.cell_type == "code"
        ]


@pytest.fixture(scope="module")
def facts(book, places):
    found = equations.facts(book)
    for name, notebook in book.notebooks.items():
        cited.in_text(found, name, pages.page(places, name, notebook))
    cited.in_library(found)
    cited.in_tests(found)
    return found


def test_every_equation_has_its_formula_its_check_and_a_way_there(book, facts):
    assert list(facts) == sorted(facts, key=lambda number: [int(part) for part in number.split(".")])
    for number, equation in facts.items():
        assert rf"\tag{{{number}}}" in equation.formula
        assert ("eq", number) in book.places
        assert (equation.function is None) == (equation.check.statement is not None)
        assert f"#check-{equation.dashed}" in equation.around()[1]
    assert facts["4.6"].section == ("sec-4-6", "4.6 The mean, written with the noise"), "there its derivation begins"
    assert facts["0.1"].section == ("chapter-0", book.title("0"))
    assert equations.ALSO.keys() <= facts.keys()
    assert facts["4.6"].function == (
        "`posterior_mean_from_eps`",
        "function-diffusion-posterior-posterior-mean-from-eps",
    )


def test_every_link_to_an_equation_is_a_place_to_arrive_at(book, places, facts):
    for name, notebook in book.notebooks.items():
        page = pages.page(places, name, notebook)
        count = str(page).count("](#eq-")
        cited.in_text(equations.facts(book), name, page)
        assert len(re.findall(r"\]\(#eq-\S+?\)\]\{#\S+?-cites-\S+?\}", str(page))) == count, name
    assert "Eq. 7.1 (ancestral step)" in dict(facts["4.6"].text).values()
    assert {"tests/checks/test_held_out_mid.py", "tests/samplers/test_diffusers.py"} <= set(facts["4.6"].tests)


def test_a_citation_has_an_id_and_its_section_s_words(facts):
    found = {"4.4": equations.Equation(facts["4.4"].check, "", ("sec-4-4", ""), None)}
    sources = [
        "(eq-4-4)=\n### Eq. 4.4 (a)\n[own](#eq-4-4)",
        "(sec-4-4)=\n## 4.4 On\n[Eq. 4.4](#eq-4-4)",
        "(exercise-4-1)=\n",
    ]
    cells = [nbformat.v4.new_markdown_cell(source) for source in sources]
    cells[2].source += "[4.4](#eq-4-4)"
    page = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("x = 1  # Eqs. 4.3 and 4.4")])
    cited.in_text(found, "04_posterior.ipynb", page)
    own = "chapter-4-cites-4-4"
    words = ["4.4 On", "Exercise 4.1", "Exercise 4.1, in code"]
    assert found["4.4"].text == [(f"{own}-{i}", called) for i, called in enumerate(words, 2)]
    assert page.cells[1].source.endswith(f"[[Eq. 4.4](#eq-4-4)]{{#{own}-2}}")
    assert page.cells[3].source == f"({own}-4)="


def test_a_row_of_symbols_stands_under_each_of_its_letters(book, places):
    assert symbols.letters(r"$\bar\alpha_t$, $T$; $\varepsilon'$ and $p(y\mid x)$") == ["alpha", "t", "epsilon", "p"]
    glossary = symbols.glossary(book, places)
    assert glossary.count("| $\\beta_t$, $\\alpha_t$, $\\bar\\alpha_t$ | the variance that step $t$ adds") == 2


def test_every_module_of_the_reference_stands_in_its_folder_s_contents():
    listed = "\n".join(reference.page(room, pages.escaped, {}, {}) for room in reference.SHOWN)
    for module in reference.MODULES:
        where = listed if "." in module else reference.contents()
        assert re.search(rf"^{re.escape(module)}$", where, re.MULTILINE), module
        assert f"(#{reference.anchor(module)})" in reference.contents()


def test_a_public_place_is_linked_and_a_version_is_none():
    text = "owner/a_b issues 25 and 12588; owner/c PR 3, x/y 0.11, owner/d discussion 7 (1/SNR 2.5; owner/e 206)"
    assert checked._seen(text) == (
        r"[owner/a\_b issues 25](https://github.com/owner/a_b/issues/25) and "
        "[12588](https://github.com/owner/a_b/issues/12588); [owner/c PR 3](https://github.com/owner/c/issues/3), "
        "x/y 0.11, [owner/d discussion 7](https://github.com/owner/d/discussions/7) (1/SNR 2.5; "
        "[owner/e 206](https://github.com/owner/e/issues/206))"
    )


def test_plain_text_stays_plain():
    assert pages.escaped("x_t*2 `a_b` <b> $5") == r"x\_t\*2 `a_b` \<b\> \$5"


def test_a_long_signature_has_a_line_for_each_argument():
    source = (
        "def f(a: int, /, b: tuple = (1, 2), *rest, c_which_is_long: dict = {1: 2, 3: 4}, **more_of_it) -> list[int]: 0"
    )
    lines = reference.signature(ast.parse(source).body[0]).splitlines()
    assert lines == [
        "def f(", "    a: int,", "    /,", "    b: tuple = (1, 2),", "    *rest,",
        "    c_which_is_long: dict = {1: 2, 3: 4},", "    **more_of_it,", ") -> list[int]",
    ]  # fmt: skip


def test_a_docstring_is_shown_as_it_stands():
    assert reference.prose("a: 1,\ntwo\nb, c: 3", pages.escaped) == "a: 1,\ntwo\\\nb, c: 3"
    text = reference.prose("Returns x_t.\n\n    a = 1\n\n- b", pages.escaped)
    assert text == "Returns x\\_t.\n\n```text\na = 1\n```\n\n\\- b"


def test_a_formula_keeps_the_bracket_before_it_and_the_comma_after_it():
    nodes = pytest.importorskip("docutils.nodes", reason="comes with the extra `site`")
    figures = pytest.importorskip("figures")
    from docutils.utils import new_document

    document = new_document("")
    document += nodes.paragraph("", "", nodes.Text("as ("), nodes.math("", "x"), nodes.Text("), and"))
    figures.joined(None, document)
    before, whole, after = document[0]
    assert (before, whole.astext(), whole["classes"], after) == ("as ", "(x),", ["joined"], " and")


@pytest.mark.skipif(
    importlib.util.find_spec("nbgrader") is None, reason="nbgrader is not installed (make test installs it)"
)
def test_the_problem_sets_hold_no_solution(book, places):
    import problem_sets

    made = problem_sets.sets(book, places)
    shown = [page if isinstance(page, str) else nbformat.writes(page) for page in made.values()]
    assert len(shown) == 1 + 2 * len(problem_sets.SETS)  # pages, and notebooks to download
    for text in shown:
        assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN)|Rubric|import grade|homework\.hidden", text)
        assert not [cell for cell in (json.loads(text)["cells"] if text[0] == "{" else []) if cell.get("outputs")]
    for number in problem_sets.SETS:  # the table of marks leads to the problems, not to the book's equations
        text = "\n".join(cell.source for cell in made[f"problem_sets/set_{number}.ipynb"].cells)
        problems = re.findall(r"^\((problem-\d-\d)\)=\n## Problem", text, re.MULTILINE)
        assert re.findall(r"^\| \[\d\.\d\]\(#([\w-]+)\) \|", text, re.MULTILINE) == problems != []


def test_the_chapters_of_the_front_page_are_the_book_s(book, facts):
    text = front.page(book, {number: book.title(number) for number in book.chapters}, facts, True)
    wrong = sum(len(one.check.wrong_versions) for one in facts.values())
    assert f"{len(facts)} numbered\nequations" in text and f"There are {wrong} of these" in text
    for name in book.chapters.values():
        assert f"chapters/{name.removesuffix('.ipynb')}\n" in text
        assert f"](#{pages.label(name, 'page')})" in text
        assert chapter(name)
