"""The website: links arrive, no solution is shown, and pages work without a network and for a screen reader."""

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest

from tools.links import Book, chapter

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
sys.path.append(str(SITE))

import equations as facts_of_equations  # noqa: E402
import pages  # noqa: E402
import reference  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
there = functools.cache(lambda name: importlib.util.find_spec(name) is not None)
builds = pytest.mark.skipif(not (there("sphinx") and there("myst_nb")), reason="make site installs what it needs")
browses = pytest.mark.skipif(
    not (CHROMIUM and there("playwright") and there("axe_playwright_python")),
    reason="needs a Chromium, such as Debian's package chromium (or CHROMIUM=/path/to/it), and what make soak installs",
)


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
        made = pages.page(places, name, notebook, lambda cell: ("", ""))
        given = [found for cell in made.cells for found in re.findall(r"^\(([^()\s]+)\)=$", cell.source, re.MULTILINE)]
        assert len(given) == len(set(given)), name
        assert made.cells[0].source.splitlines()[0] == f"({pages.label(name, 'page')})="
        assert "foot" not in [cell.id for cell in made.cells], "the theme draws it"
        assert [c.get("outputs") for c in made.cells if c.cell_type == "code"] == [
            c.get("outputs") for c in notebook.cells if c.cell_type == "code"
        ]


def test_every_equation_has_its_formula_its_check_and_a_way_there(book, places):
    facts = facts_of_equations.facts(book, places)
    assert list(facts) == sorted(facts, key=lambda number: [int(part) for part in number.split(".")])
    for number, equation in facts.items():
        assert rf"\tag{{{number}}}" in equation.formula
        assert ("eq", number) in book.places
        assert (equation.function is None) == (equation.check.statement is not None) or equation.function
        assert f"#check-{equation.dashed}" in equation.beneath()
    assert facts["4.6"].function == (
        "`posterior_mean_from_eps`",
        "function-diffusion-posterior-posterior-mean-from-eps",
    )
    assert "eq-7-1" in facts["4.6"].chapters, "chapter 7 cites it"


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
    assert text == "Returns x\\_t.\n\n```text\n    a = 1\n```\n\n\\- b"


@builds
def test_a_formula_keeps_the_bracket_before_it_and_the_comma_after_it():
    import figures
    from docutils import nodes
    from docutils.utils import new_document

    document = new_document("")
    document += nodes.paragraph("", "", nodes.Text("as ("), nodes.math("", "x"), nodes.Text("), and"))
    figures.joined(None, document)
    before, whole, after = document[0]
    assert (before, whole.astext(), whole["classes"], after) == ("as ", "(x),", ["joined"], " and")


@pytest.mark.skipif(not there("nbgrader"), reason="nbgrader is not installed (make test installs it)")
def test_the_problem_sets_hold_no_solution(book, places):
    import problem_sets

    made = problem_sets.sets(book, places)
    shown = [page if isinstance(page, str) else nbformat.writes(page) for page in made.values()]
    assert len(shown) == 1 + len(problem_sets.SETS)
    for text in shown:
        assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN)|Rubric|import grade|homework\.hidden", text)
        assert not [cell for cell in (json.loads(text)["cells"] if text[0] == "{" else []) if cell.get("outputs")]


# The site itself


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, warnings as errors; a folder."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, str(SITE / "build.py"), "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def local(page):
    """What a page's tags load or link to."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"", text)


@builds
def test_the_site_is_built_and_loads_nothing_from_elsewhere(site):
    found = {page.relative_to(site) for page in site.rglob("*.html")}
    names = {page.as_posix() for page in found if page.parts[0] != "_static"}
    for path in (ROOT / "chapters").rglob("*.ipynb"):
        assert f"chapters/{path.relative_to(ROOT / 'chapters').with_suffix('.html').as_posix()}" in names
    for name in names:
        for target in local(site / name):
            assert not re.match(r"(https?:)?//", target), f"{name} loads {target}"
            file = target.partition("?")[0].partition("#")[0]
            assert not file or target.startswith("data:") or ((site / name).parent / file).exists(), f"{name}: {target}"


AXE = (
    "index.html", "chapters/04_posterior.html", "chapters/12_training_fast.html", "equations.html",
    "checked/chapter_09.html",
)  # fmt: skip
LOOK = """async () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  if (window.MathJax && MathJax.startup) {
    await MathJax.startup.promise;
    await MathJax.startup.document.lazyTypesetAll();
  }
  await document.fonts.ready;
  await new Promise(seen => requestAnimationFrame(() => setTimeout(seen)));
  const article = document.querySelector("article, main");
  const scrolls = e => e !== article && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const out = e => e.getBoundingClientRect().right > innerWidth && !e.closest("mjx-assistive-mml") && !scrolls(e);
  return {
    wide: document.documentElement.scrollWidth - innerWidth,
    cut: [...article.querySelectorAll("*")].filter(out).map(e => e.outerHTML.slice(0, 200)),
    wrong: document.querySelectorAll("mjx-merror, .problematic").length,
    raw: [...document.querySelectorAll(".math")].filter(e => !e.querySelector("mjx-math")).length,
    silent: [...article.querySelectorAll("img")].filter(e => !e.alt).length,
  };
}"""


@pytest.fixture(scope="module")
def address(site):
    """The site on a local port."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@builds
@pytest.mark.soak
@browses
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1440, "dark")])
def test_every_page_works_without_a_network_and_cuts_nothing(site, address, width, scheme):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        faults = []
        # all but the site itself is cut off
        context.route(
            lambda url: not url.startswith(address), lambda route: (faults.append(route.request.url), route.abort())
        )
        page = context.new_page()
        page.on(  # a navigation ends what the page before it still asked for
            "requestfailed",
            lambda asked: "ERR_ABORTED" in (asked.failure or "") or faults.append(f"failed: {asked.url}"),
        )
        page.on(
            "response", lambda response: response.status >= 400 and faults.append(f"{response.status}: {response.url}")
        )
        page.on("console", lambda line: line.type == "error" and faults.append(line.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{address}/search.html?q=4.6")
        page.wait_for_selector("#search-results a[href*='04_posterior'][href*='eq-4-6'] ~ p")
        for name in sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html")):
            if not name.startswith("_static/"):
                page.goto(f"{address}/{name}")
                found = page.evaluate(LOOK)
                assert found == {"wide": 0, "cut": [], "wrong": 0, "raw": 0, "silent": 0}, (name, found)
        browser.close()
    assert not faults


@builds
@pytest.mark.soak
@browses
def test_a_screen_reader_finds_names_for_everything(address):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        for name in AXE:
            page.goto(f"{address}/{name}")
            page.evaluate(LOOK)
            said = Axe().run(page).response["violations"]
            assert not [one["help"] for one in said if one["impact"] in ("serious", "critical")], name


def test_the_chapters_of_the_front_page_are_the_book_s(book):
    import front

    text = front.page(book, {number: book.title(number) for number in book.chapters}, True)
    for name in book.chapters.values():
        assert f"chapters/{name.removesuffix('.ipynb')}\n" in text
        assert f"](#{pages.label(name, 'page')})" in text
        assert chapter(name)
