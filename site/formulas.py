"""TeX's formulas as Typst's, by Pandoc, and what Pandoc says in them less well than Typst can."""

import re
from collections.abc import Iterable

import pypandoc

CODE = re.compile(r"(`{3,}).*?\1|(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL)
FORMULA = re.compile(r"(?<![\\$])(?:\$\$(.+?)\$\$([.,;:]?)|\$(?!\$)(.+?)(?<![\\$])\$)", re.DOTALL)
TAG = re.compile(r"\\tag\{([^{}]+)\}")
WORDS = re.compile(r'(delim: |upright\()?("(?:[^"\\]|\\.)+")(\)?)')
SIZED = re.compile(r"#scale\(x: (\d+)%, y: \d+%\)\[(\\.|[^\]\\]+)\]")
CLASSES = dict.fromkeys((r"\(", r"\[", "floor.l"), "opening") | dict.fromkeys((r"\)", r"\]", "floor.r"), "closing")
BARS = {r"\|": "bar.v", "parallel": "bar.v.double"}


def plain(tex: str) -> str:
    """A formula in one line, without its number."""
    return re.sub(r"\s*\n[\s>]*", " ", TAG.sub("", tex)).strip()


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
    """Spaces that Pandoc rounds to whole ems; delimiters of a given size, and bars, as such; words as operators."""

    def sized(found: re.Match) -> str:
        sign = BARS.get(found[2], found[2])
        return f'#sized({int(found[1]) / 100:g}em, "{CLASSES.get(found[2], "normal")}", ${sign}$)'

    def words(found: re.Match) -> str:
        if found[1] == "delim: ":
            return found[0]
        limits = ", limits: #true" if r"\operatorname*" in tex else ""
        return f"op({found[2]}{limits}){'' if found[1] else found[3]}"

    code = code.replace("#h(0em)", "thick").replace("#h(-1em)", "#h(-0.167em)")
    code = SIZED.sub(sized, WORDS.sub(words, code)).replace(r"\|", "onebar")
    return code if r"\parallel" in tex else re.sub(r"\bparallel\b", "twobars", code)
