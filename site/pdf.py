"""The book as one PDF: python site/pdf.py [--chapters 4 5] [--out FOLDER]

The pages are the website's, from the stored notebooks. Pandoc turns their Markdown and TeX into Typst's, and Typst sets
them by book.typ, warnings as errors. Nothing of the book is executed.
"""

import argparse
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import cited  # noqa: E402
import equations  # noqa: E402
import printed  # noqa: E402
import pypandoc  # noqa: E402
import symbols  # noqa: E402
import typst  # noqa: E402
from build import chosen_book  # noqa: E402
from equations import Equation  # noqa: E402
from nbformat import NotebookNode  # noqa: E402
from pages import Places, escaped, page  # noqa: E402

from ddpm_lib import __version__  # noqa: E402
from tools.links import Book  # noqa: E402

SOLUTIONS = "Solutions to the exercises"
UNLISTED = "#show heading.where(level: 3): set heading(outlined: false, bookmarked: true)"  # from the solutions on
OPTIONS = [
    "--columns=10000",  # no column of a table is given a share of the page
    "--wrap=preserve",
    "--shift-heading-level-by=1",  # the parts come first
    "--syntax-highlighting=idiomatic",
    "--fail-if-warnings",
]
Page = NotebookNode | str
MARKDOWN = "commonmark+attributes+pipe_tables+raw_attribute+smart"
WORDS = {  # below the name of a part
    "Problem sets": "To work on one, take its notebook: some numbers, and the derivations with a mistake, are each "
    "student's own. No solutions are printed.",
}


def beneath(equation: Equation) -> tuple[str, str]:
    """The line below an equation's heading in print: by which route it was checked."""
    words = [f"computed by {equation.function[0]}"] if equation.function else []
    words += [f"checked against: {escaped(equation.check.route)}", f"{equation.wrong} rejected"]
    return "", f"\n{printed.typst('#beneath[')}{' · '.join(words)}{printed.typst(']')}\n"


def index(found: dict[str, Equation], titles: dict[str, str]) -> str:
    """The equations with their functions and their pages, and those that cite them, chapter by chapter."""
    blocks = ["# Index of equations", "The page at the right has the derivation; those below cite the equation."]
    for chapter in equations.chapters(found):
        blocks.append(f"**{escaped(titles[chapter])}**")
        for one in equations.inside(found, chapter):
            places = "".join(f"<{own}>, " for own, _ in one.text)
            begin, between, end = (printed.typst(c) for c in (f"#entry(<eq-{one.dashed}>, ({places}))[", "][", "]"))
            function = one.function[0] if one.function else ""
            blocks.append(f"{begin}{one.number} {escaped(one.check.name)}{between} {function} {end}")
    return "\n\n".join(blocks)


def parts(book: Book, places: Places, with_sets: bool) -> dict[str, dict[str, Page]]:
    """The book's parts, each with its pages in order: notebooks, or Markdown."""
    found = equations.facts(book)
    titles = {number: book.title(number) for number in book.chapters}
    made = {name: page(places, name, one) for name, one in book.notebooks.items()}
    for name in made:
        cited.in_text(found, name, made[name])
        equations.dressed(made[name], found, beneath)
    numbered = {name: made[name] for number, name in book.chapters.items() if number.isdecimal()}
    lettered = {name: made[name] for number, name in book.chapters.items() if not number.isdecimal()}
    sets = {}
    if with_sets:
        import problem_sets

        sets = {name: one for name, one in problem_sets.sets(book, places).items() if not isinstance(one, str)}
    return {
        "Chapters": numbered,
        "Appendices": lettered,
        "Problem sets": sets,
        SOLUTIONS: {name: one for name, one in made.items() if "/" in name},
        "To look up": {"index": index(found, titles), "symbols": symbols.glossary(book, places)},
    }


def body(given: dict[str, dict[str, Page]], pictures: Path) -> str:
    """Typst's code for all parts; the pictures are written to the folder."""
    pages = [one for part in given.values() for one in part.values()]
    known = {label for one in pages for label in printed.labels(one)}
    blocks = []
    for part, inside in given.items():
        about = printed.quoted(WORDS.get(part, ""))
        blocks += [printed.typst(f"#part({printed.quoted(part)}, {about})")] if inside else []
        blocks += [printed.typst(UNLISTED)] if part == SOLUTIONS else []
        for name, one in inside.items():
            text = printed.markdown(one, known) if isinstance(one, str) else None
            blocks.append(text or printed.notebook(one, name, pictures, known))
    text = printed.with_formulas("\n\n".join(blocks))
    text = pypandoc.convert_text(text, "typst", MARKDOWN, extra_args=OPTIONS)
    return re.sub(r"(?<=\)\[)(\d+)\. ", r"\1\. ", text)  # in a link's words "4. " would begin a list


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chapters", nargs="+", metavar="N")
    parser.add_argument("--out", type=Path, default=HERE / "_build" / "pdf")
    chosen = parser.parse_args()
    pictures = chosen.out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    book = chosen_book(chosen.chapters)
    with_sets = not chosen.chapters
    text = body(parts(book, Places(book, with_sets), with_sets), pictures)
    look = (HERE / "book.typ").read_text(encoding="utf-8")
    (chosen.out / "book.typ").write_text(f"{look}\n{text}", encoding="utf-8")
    try:
        result, warnings = typst.compile_with_warnings(
            chosen.out / "book.typ",
            ignore_system_fonts=True,
            sys_inputs={"version": __version__},
            pdf_standards=["ua-1"],
        )
    except typst.TypstError as error:
        print(error.diagnostic, file=sys.stderr)
        return 1
    for warning in warnings:
        print(warning.diagnostic, file=sys.stderr)
    (chosen.out / "book.pdf").write_bytes(result)
    print(f"The book: {chosen.out / 'book.pdf'}")
    return bool(warnings)


if __name__ == "__main__":
    sys.exit(main())
