"""The index of equations: a page over all, with a line for each; and for each chapter a page with their entries."""

from equations import STATED, Equation, chapters, inside
from pages import escaped

WORDS = """(all-equations)=
# Index of equations

Each numbered equation of the book. Its number leads to the derivation, its name to its entry: the formula, and every
place that cites it. Where the library has no function for it, the word says what it is.
"""


def overview(equations: dict[str, Equation], titles: dict[str, str]) -> str:
    """The page over all."""
    lines = [WORDS]
    for number in chapters(equations):
        lines += ["", f"## [{escaped(titles[number])}](#equations-{number})", ""]
        lines += ["| Eq. | name | function | check | cited in |", "|---|---|---|---|---|"]
        for one in inside(equations, number):
            derived, entry = f"[{one.number}](#eq-{one.dashed})", f"[{escaped(one.check.name)}](#index-{one.dashed})"
            lines += [f"| {derived} | {entry} | {one.computed} | [{one.wrong}](#check-{one.dashed}) | {one.cited} |"]
    lines += ["", "```{toctree}", ":hidden:", ""]
    pages = [f"{titles[number]} <equations/chapter_{int(number):02}>" for number in chapters(equations)]
    return "\n".join([*lines, *pages, "```", ""])


def chapter(equations: list[Equation], title: str) -> str:
    """The page of a chapter's equations."""
    number = equations[0].chapter
    lines = [f"(equations-{number})=", f"# Equations: {escaped(title)}", ""]
    lines += [f"From [the chapter](#chapter-{number}); [all equations](#all-equations)."]
    for one in equations:
        check = one.check
        lines += ["", one.entries(), f"(index-{one.dashed})=", f"## Eq. {one.number}: {escaped(check.name)}", ""]
        lines += [
            one.formula,
            "",
            f"- Derivation: [{escaped(one.section[1])}](#{one.section[0]}), to [its end](#eq-{one.dashed})",
        ]
        lines += [f"- Function: {one.computed}" if one.function else f"- {STATED.format(check.kind.capitalize())}"]
        lines += [f"- [Check](#check-{one.dashed}) against {escaped(check.route)}, {escaped(check.precision)};"]
        lines += [f"  it rejects {one.wrong}"]
        lines += [f"- Cited in the text: {_places(one.text)}"] if one.text else []
        links = [f"[{called}](#{target})" for target, called in one.library.items()]
        lines += [f"- Cited in the library: {' · '.join(links)}"] if links else []
        tests = ", ".join(f"`{path}`" for path in one.tests)
        lines += [f"- Tests that name it{' or call its function' * bool(one.function)}: {tests}"] if tests else []
    return "\n".join([*lines, ""])


def _places(cited: list[tuple[str, str]]) -> str:
    """Links to places; several in one section stand together, and are named once."""
    by_words: dict[str, list[str]] = {}
    for target, words in cited:
        by_words.setdefault(words, []).append(target)
    return " · ".join(
        ", ".join([f"[{escaped(words)}](#{first})", *(f"[again](#{target})" for target in more)])
        for words, (first, *more) in by_words.items()
    )
