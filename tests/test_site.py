"""The built website: everything is near, and pages work without a network, without a server, for a screen reader."""

import functools
import importlib.util
import json
import os
import posixpath
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

from tools.links import Book

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
sys.path.append(str(SITE))

import equations  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
there = functools.cache(lambda name: importlib.util.find_spec(name) is not None)
builds = pytest.mark.skipif(not (there("sphinx") and there("myst_nb")), reason="make site installs what it needs")
browses = pytest.mark.skipif(
    not (CHROMIUM and there("playwright") and there("axe_playwright_python")),
    reason="needs a Chromium, such as Debian's package chromium (or CHROMIUM=/path/to/it), and what make soak installs",
)


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


@builds
def test_a_chapter_s_download_is_its_notebook(site):
    for path in (ROOT / "chapters").rglob("*.ipynb"):
        page = site / path.relative_to(ROOT).with_suffix(".html")
        (target,) = re.findall(r'<a class="reference download internal" download="" href="([^"]+)"', article(page))
        assert (page.parent / target).read_bytes() == path.read_bytes(), page


def article(page):
    """What the page itself says, without the bars beside it."""
    text = page.read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")] if "<article" in text else ""


def section(page, anchor):
    """What stands under a heading, up to the next one."""
    begin = article(page).split(f'id="{anchor}"', 1)
    assert len(begin) == 2, f"{page.name} has no {anchor}"
    return begin[1].partition("<section")[0]


@pytest.fixture(scope="module")
def ways(site):
    """For each page what a reader can click there: links of its text, and the bar's of the first level."""
    found = {}
    for page in site.rglob("*.html"):
        here = page.relative_to(site).as_posix()
        bar = re.findall(
            r'<li class="toctree-l1[^"]*"><a class="[^"]*" href="([^"]+)"', page.read_text(encoding="utf-8")
        )
        targets = [*bar, *re.findall(r'<a class="reference internal" href="([^"]+)"', article(page))]
        found[here] = {place(here, target) for target in targets}
    return found


def place(here, target):
    """A link as a page and a place in it."""
    path, _, anchor = target.partition("#")
    return (posixpath.normpath(posixpath.join(posixpath.dirname(here), path)) if path else here), anchor


@pytest.fixture(scope="module")
def parts(ways):
    """For each equation: where it is derived, indexed, checked, and computed (or None), as a page and a place."""
    book = Book()
    found = {}
    for number, one in equations.facts(book).items():
        name = f"chapter_{int(one.chapter):02}.html"
        derived = f"chapters/{book.places['eq', number][0].removesuffix('.ipynb')}.html", f"eq-{one.dashed}"
        computed = None
        if one.function:
            computed = next(to for to in ways[derived[0]] if to[1] == one.function[1])
        found[number] = (
            derived,
            (f"equations/{name}", f"index-{one.dashed}"),
            (f"checked/{name}", f"check-{one.dashed}"),
            computed,
        )
    return found


@builds
def test_derivation_source_and_wrong_versions_are_three_clicks_from_the_front_page(site, ways, parts):
    near, clicks = {("index.html", "")}, {}
    for count in range(1, 4):
        near = {to for page in {page for page, _ in near} for to in ways.get(page, ())}
        clicks |= {to: count for to in near - clicks.keys()}
    for number, (derived, entry, checked, computed) in parts.items():
        assert max(clicks[derived], clicks[entry], clicks[checked]) <= 3, number
        assert "wrong version" in section(site / checked[0], checked[1])
        if computed:  # its source opens at a click
            assert clicks[computed] <= 2, number
            assert '<details class="source">' in section(site / computed[0], computed[1]), number


@builds
def test_what_belongs_to_an_equation_leads_there_and_back(site, parts):
    for number, (derived, entry, checked, computed) in parts.items():
        dashed = number.replace(".", "-")
        own = [part for part in (derived, entry, checked, computed) if part]
        for page, anchor in own:
            found = {place(page, to) for to in re.findall(r'href="([^"]+)"', section(site / page, anchor))}
            assert set(own) - {(page, anchor)} <= found, (number, page, anchor)
        cited = re.findall(r'href="([^"]+)"', section(site / entry[0], entry[1]).partition("Cited in")[2])
        for page, anchor in (place(entry[0], to) for to in cited):
            text = article(site / page).partition(f'id="{anchor}"')[2]
            if "-cites-" in anchor:  # the very link, or the cell of code that names it
                text = text[:400] if f"#eq-{dashed}" in text[:400] else re.sub("<[^>]*>", "", text[:20_000])
            assert f"#eq-{dashed}" in text or re.search(rf"Eqs?\. .*{re.escape(number)}", text), (number, page, anchor)


@builds
def test_the_search_s_index_leads_from_number_and_name_to_the_derivation(site, parts):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    for number, one in equations.facts(Book()).items():
        for entry in entries(one):
            main = [(index["docnames"][page], place) for page, place, first in index["indexentries"][entry] if first]
            derived = parts[number][0]
            assert main == [(derived[0].removesuffix(".html"), derived[1])], entry


def entries(equation):
    """What a reader may search for."""
    also = [words.lower() for words in equations.ALSO.get(equation.number, ())]
    return [*(f"{word}{equation.number}" for word in ("", "eq. ", "equation ")), equation.check.name.lower(), *also]


@builds
@pytest.mark.soak
def test_a_second_build_s_search_finds_what_the_first_one_s_does(tmp_path):
    build = [sys.executable, str(SITE / "build.py"), "--chapters", "4", "--out", str(tmp_path)]
    found = []
    for _ in range(2):
        subprocess.run(build, check=True)
        found.append((tmp_path / "html" / "searchindex.js").read_text(encoding="utf-8"))
    assert found[0] == found[1]
    assert '"eq. 4.6"' in found[0]


@builds
@pytest.mark.parametrize("named", [True, False])
def test_chapters_open_in_binder_where_a_repository_is_named(tmp_path, named):
    cells = [nbformat.v4.new_markdown_cell("# A page")]
    for name in ("chapters/04_posterior", "chapters/solutions/04_posterior", "problem_sets/set_1"):
        path = tmp_path / "sources" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(
            nbformat.v4.new_notebook(
                cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python"}}
            ),
            path,
        )
    (tmp_path / "sources" / "index.md").write_text("# Front\n", encoding="utf-8")
    options = ["-D", "book_repository=https://github.com/owner/name"] if named else []
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-Q",
        "-c",
        str(SITE),
        *options,
        str(tmp_path / "sources"),
        str(tmp_path / "html"),
    ]
    subprocess.run(build, check=True)
    links = {
        page.relative_to(tmp_path / "html").as_posix(): re.findall(
            r"lab/tree/([^\"]+)", page.read_text(encoding="utf-8")
        )
        for page in (tmp_path / "html").rglob("*.html")
        if "lab/tree" in page.read_text(encoding="utf-8")
    }
    chapters = {f"chapters/{name}04_posterior.html" for name in ("", "solutions/")}
    assert links == ({page: [page.replace(".html", ".ipynb")] for page in chapters} if named else {})


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


@builds
@pytest.mark.soak
@browses
def test_the_search_finds_each_equation_first_and_works_from_a_folder_too(site, address, parts):
    from playwright.sync_api import sync_playwright

    asked = {entry: parts[number][0] for number, one in equations.facts(Book()).items() for entry in entries(one)}
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        faults = []
        page.on("console", lambda line: line.type == "error" and faults.append(line.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{(site / 'search.html').as_uri()}?q=4.6")
        page.wait_for_selector("#search-results li a:has-text('Eq. 4.6 (posterior mean from noise)')")
        first = page.evaluate(
            "words => words.map(one => Search._performSearch(...Search._parseQuery(one)).at(-1))", list(asked)
        )
        page.goto((site / "chapters" / "04_posterior.html").as_uri())
        page.wait_for_selector("mjx-container")
        page.goto(f"{address}/search.html?q=posterior+mean+from+noise")
        page.wait_for_selector("#search-results li:last-child p.context")
        shown = page.locator("#search-results p.context").all_inner_texts()
    assert any("…" in text for text in shown) and not any("\\" in text for text in shown), "no TeX in a summary"
    for (words, (derived, anchor)), found in zip(asked.items(), first, strict=True):
        assert (f"{found[0]}.html", found[2]) == (derived, f"#{anchor}"), words
    assert not faults
