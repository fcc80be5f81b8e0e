"""The book as a website: python site/build.py [--chapters 4 5] [--out FOLDER]

Writes Sphinx's sources from the stored notebooks, the checks and the library into site/_source, and builds them,
warnings as errors. Nothing of the book is executed. --chapters builds a part, to look at while working on it.
"""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import checked  # noqa: E402
import cited  # noqa: E402
import equations  # noqa: E402
import front  # noqa: E402
import index  # noqa: E402
import reference  # noqa: E402
import symbols  # noqa: E402
from pages import Places, page, write  # noqa: E402

from tools.links import Book, chapter  # noqa: E402

SOURCE, MATHJAX = HERE / "_source", HERE / "_mathjax" / "mathjax"


def mathjax() -> None:
    """MathJax from its package, as far as the pages use it, so that no page asks another host for it."""
    if not (MATHJAX / "tex-chtml.js").exists():
        package = Path(importlib.util.find_spec("mathjax").submodule_search_locations[0])
        found = next(path for path in package.rglob("es5") if (path / "tex-chtml.js").exists())
        for part in ("input/tex/extensions", "output/chtml", "a11y", "sre", "ui"):
            shutil.copytree(found / part, MATHJAX / part, dirs_exist_ok=True)
        shutil.copyfile(found / "tex-chtml.js", MATHJAX / "tex-chtml.js")


def chosen_book(chosen: list[str] | None) -> Book:
    """The book, or of it the chapters with these numbers."""
    book = Book()
    if chosen:
        book.notebooks = {name: one for name, one in book.notebooks.items() if chapter(name) in chosen}
        book.chapters = {number: name for number, name in book.chapters.items() if number in chosen}
    return book


def gather(chosen: list[str] | None, with_sets: bool) -> None:
    """Writes the sources of all pages."""
    written = {}
    book = chosen_book(chosen)
    places = Places(book, with_sets)
    titles = {number: book.title(number) for number in book.chapters}
    facts = equations.facts(book)
    made = {name: page(places, name, notebook) for name, notebook in book.notebooks.items()}
    for name in made:
        cited.in_text(facts, name, made[name])
    cited.in_library(facts)
    cited.in_tests(facts)
    for name in made:
        equations.dressed(made[name], facts, equations.Equation.around)
        written[f"chapters/{name}"] = nbformat.writes(made[name])
        written[f"notebooks/{name}"] = (book.folder / name).read_text(encoding="utf-8")  # to download

    def linked(text: str) -> str:
        return cited.linked(text, facts)

    checks = {
        one.function[1]: f"[Its check](#check-{one.dashed}) · [Eq. {one.number}](#eq-{one.dashed}) · "
        f"[where it is cited](#index-{one.dashed})\n"
        for one in facts.values()
        if one.function
    }
    for module in reference.MODULES:
        written[f"reference/{module}.md"] = reference.page(module, linked, checks, titles)
    written["reference/index.md"] = reference.contents()
    for number in equations.chapters(facts):
        inside, name = equations.inside(facts, number), f"chapter_{int(number):02}.md"
        written[f"checked/{name}"] = checked.chapter(inside, titles[number])
        written[f"equations/{name}"] = index.chapter(inside, titles[number])
    written["checked/index.md"] = checked.summary(facts, titles)
    written["equations.md"] = index.overview(facts, titles)
    written["symbols.md"] = symbols.glossary(book, places)
    if with_sets:
        import problem_sets

        for name, one in problem_sets.sets(book, places).items():
            written[name] = one if isinstance(one, str) else nbformat.writes(one)
    written["index.md"] = front.page(book, titles, facts, with_sets)
    written["solutions.md"] = front.solutions(book)
    for name, text in written.items():
        write(SOURCE / name, text)
    for path in [path for path in SOURCE.rglob("*.*") if path.relative_to(SOURCE).as_posix() not in written]:
        path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chapters", nargs="+", metavar="N")
    parser.add_argument("--without-sets", action="store_true", help="leave out the problem sets")
    parser.add_argument("--out", type=Path, default=HERE / "_build")
    chosen = parser.parse_args()
    mathjax()
    gather(chosen.chapters, not chosen.without_sets and not chosen.chapters)
    from sphinx.cmd.build import main as sphinx

    # -a: all pages are written, or Sphinx's search would forget what leads to those that did not change
    options = ["-W", "-a", "-j", "auto", "-q", "-b", "html", "-c", str(HERE), "-d", str(chosen.out / "doctrees")]
    failed = sphinx([*options, str(SOURCE), str(chosen.out / "html")])
    if failed:
        shutil.rmtree(chosen.out / "doctrees", ignore_errors=True)  # what is off shall be named again, not forgotten
    else:
        print(f"The site: {chosen.out / 'html' / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
