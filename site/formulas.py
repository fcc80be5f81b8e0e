"""TeX's formulas as Typst's, by Pandoc, and what Pandoc says in them less well than Typst can."""

import re
from collections.abc import Iterable

import pypandoc

CODE = re.compile(r"(`{3,}).*?\1|(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL)
FORMULA = re.compile(r"(?<![\\$])(?:\$\$(.+?)\$\$([.,;:]?)|\$(?!\$)(.+?)(?<![\\$])\$)", re.DOTALL)
TAG = re.compile(r"\\tag\{([^{}]+)\}")
WORDS = re.compile(r'( *)(delim: |upright\()?("(?:[^"\\]|\\.)+")(\)?)( *)')
SIZED = re.compile(r"#scale\(x: (\d+)%, y: \d+%\)\[(\\.|[^\]\\]+)\]")
CLASSES = dict.fromkeys((r"\(", r"\[", "floor.l"), "opening") | dict.fromkeys((r"\)", r"\]", "floor.r"), "closing")
BARS = {r"\|": "bar.v", "parallel": "bar.v.double"}


def plain(tex: str) -> str:
    """A formula in one line, without its number and its negative spaces, which Typst's brackets do not need."""
    return re.sub(r"\s*\n[\s>]*", " ", TAG.sub("", tex)).replace(r"\!", " ").strip()


def typeset(formulas: Iterable[str]) -> dict[str, str]:
    """Typst's code for each formula, by its TeX in one line. Raises RuntimeError where Pandoc cannot read one."""
    formulas = list(dict.fromkeys(formulas))
    text = "\n\n".join(f"${formula}$" for formula in formulas)
    done = pypandoc.convert_text(text, "typst", "commonmark_x", extra_args=["--wrap=none", "--fail-if-warnings"])
    made = [one.strip() for one in done.split("\n\n")]
    for formula, one in zip(formulas, made, strict=True):
        if (one[0], one[-1]) != ("$", "$"):
            raise RuntimeError(f"not a formula to Pandoc: {formula}")
    return {formula: _better(formula, one[1:-1]) for formula, one in zip(formulas, made, strict=True)}


def _better(tex: str, code: str) -> str:
    """Spaces that Pandoc rounds to whole ems; delimiters of a given size, and bars, as such; words, and operators."""

    def sized(found: re.Match) -> str:
        sign = BARS.get(found[2], found[2])
        return f'#sized({int(found[1]) / 100:g}em, "{CLASSES.get(found[2], "normal")}", ${sign}$)'

    def words(found: re.Match) -> str:
        if found[2] == "delim: ":
            return found[0]
        if found[2]:  # TeX's text: the spaces beside it are none to TeX, but would be to Typst
            return found[3]
        limits = ", limits: #true" if r"\operatorname*" in tex else ""
        return f"{found[1]}op({found[3]}{limits}){found[4]}{found[5]}"

    code = code.replace("#h(0em)", "thick")
    code = SIZED.sub(sized, WORDS.sub(words, code)).replace(r"\|", "onebar")
    code = code.replace("dots.h.c", "thin dots.h.c thin").replace(r"dots.h \, ", r"dots.h \, thin ")
    code = re.sub(r"& ([+-]) ", r'& "" \1 ', code)  # a sign that begins a line stands between two terms
    code = _cases(code)
    return code if r"\parallel" in tex else re.sub(r"\bparallel\b", "twobars", code)


def _rows(code: str) -> tuple[list[str], str]:
    """The arguments of a call, from behind its bracket on, and what stands behind it."""
    depth, begin, rows = 1, 0, []
    for found in re.finditer(r"\\.|\"(?:[^\"\\]|\\.)*\"|[(),]", code):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0 or (depth == 1 and found[0] == ","):
            rows.append(code[begin : found.start()].strip())
            begin = found.end()
        if depth == 0:
            return rows, code[begin:]
    raise RuntimeError(f"no end: {code}")


def _cases(code: str) -> str:
    """Cases whose values and conditions begin below each other, with a space between."""
    before, begin, inside = code.partition("cases(")
    if not begin:
        return code
    (delimiter, *rows), after = _rows(inside)
    lines = [f"& {value} && quad {condition}" for value, _, condition in (row.partition(" &") for row in rows)]
    return f"{before}cases({delimiter}, gap: #0.7em, {', '.join(lines)}){_cases(after)}"
