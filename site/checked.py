"""What was checked: for each equation its route, its tolerance, and the wrong versions that the check rejects."""

import inspect
import re
import textwrap
from collections import Counter

from equations import STATED, Equation, chapters, inside, wrong_versions
from pages import escaped
from reference import folded

from ddpm_lib.checks.equation import IDEAS, NO_SOURCE, Check

PUBLIC = re.compile(
    r"([\w.-]+/[\w.-]+) (?:(issues?|PRs?|discussions?) )?(\d+\b(?!\.\d)(?:(?:, and|,| and) \d+\b(?!\.\d))*)"
)
HOW = """A check calls a function *f* and compares what it returns with the same numbers, found by an independent route.
It must find that the book's *f* is right; and of each wrong version, a function with one mistake in it, that it is
wrong, and clearly: off by several times what is allowed.
"""


def _cell(text: str) -> str:
    return escaped(" ".join(text.split()))


def _seen(text: str) -> str:
    """Where a wrong version was seen, with a link for each issue, pull request or discussion on GitHub."""

    def link(found: re.Match) -> str:
        kind = "discussions" if (found[2] or "").startswith("discussion") else "issues"  # or a pull request
        first, *more = re.split(r"((?:,| and|, and) )", found[3])
        place = f"https://github.com/{found[1]}/{kind}"
        words = escaped(" ".join(filter(None, (found[1], found[2], first))))
        others = [f"[{one}]({place}/{one})" if one.isdecimal() else one for one in more]
        return "".join([f"[{words}]({place}/{first})", *others])

    done, end = [], 0
    text = " ".join(text.split())
    for found in PUBLIC.finditer(text):
        done += [escaped(text[end : found.start()]), link(found)]
        end = found.end()
    return "".join([*done, escaped(text[end:])])


def _mistake(idea: str) -> str:
    return _cell(f"{idea}: {IDEAS[idea]}")


def _limits(check: Check) -> str:
    """How far from the route is right, and how far is wrong."""
    passes, rejects = (f"{number:g}".replace("e-0", "e-") for number in (check.passes, check.rejects))
    if check.precision.startswith("|z|"):
        return f"Tolerance: right if the statistic of a test, |z|, is below {passes}; wrong if it is {rejects} or more"
    return f"Tolerance: right if it differs by {passes} at most; wrong if by {rejects} or more"


def chapter(equations: list[Equation], title: str) -> str:
    """The page of a chapter's checks."""
    number = equations[0].chapter
    lines = [f"(checked-{number})=", f"# Checked: {escaped(title)}", "", HOW]
    for equation in equations:
        check = equation.check
        links = [f"[derivation](#{equation.section[0]})", f"[result](#eq-{equation.dashed})"]
        links += [equation.computed] if equation.function else []
        links += [f"[cited in {equation.cited}](#index-{equation.dashed})"]
        lines += ["", f"(check-{equation.dashed})=", f"## {escaped(check.title)}", ""]
        lines += [":::{container} equation-links", " · ".join(links), ":::", ""]
        lines += [] if equation.function else [f"{STATED.format(check.kind.capitalize())}.", ""]
        lines += [f"- Asked for: {escaped(check.contract.removeprefix('Asked for: '))}"]
        lines += [f"- Compared with: {escaped(check.route)}", f"- {escaped(_limits(check))}"]
        lines += ["", "| wrong version | the mistake | seen in |", "|---|---|---|"]
        for wrong in check.wrong_versions:
            seen = wrong.seen.replace(f"{NO_SOURCE}:", "no public place known:", 1)
            lines += [f"| {_cell(wrong.what)} | {_mistake(wrong.idea)} | {_seen(seen)} |"]
        own = [] if equation.function else [_source(check.statement)]
        sources = [_source(check.measure), *own, *(_source(wrong.function) for wrong in check.wrong_versions)]
        lines += folded("Source of the check and of its wrong versions", "\n\n".join(filter(None, sources)))
    return "\n".join(lines)


def _source(function) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return ""


def summary(equations: dict[str, Equation], titles: dict[str, str]) -> str:
    """The page over all checks: how many, of what kind, by which routes."""
    wrong = [one for equation in equations.values() for one in equation.check.wrong_versions]
    count, public = wrong_versions(equations)
    ideas = Counter(one.idea for one in wrong)
    lines = ["(checked)=", "# What was checked", ""]
    lines += [f"Each of the {len(equations)} numbered equations has a check. {HOW}"]
    lines += [f"There are {count} wrong versions, {public} of which, or their like, stand in public places.", ""]
    lines += ["| the mistake | wrong versions |", "|---|---|"]
    lines += [f"| {_mistake(idea)} | {ideas[idea]} |" for idea in IDEAS]
    for number in chapters(equations):
        lines += ["", f"## [{escaped(titles[number])}](#checked-{number})", ""]
        lines += ["| equation | compared with | tolerance | wrong versions |", "|---|---|---|---|"]
        for equation in inside(equations, number):
            check = equation.check
            link, count = f"[{escaped(check.title)}](#check-{equation.dashed})", len(check.wrong_versions)
            lines += [f"| {link} | {_cell(check.route)} | {_cell(check.precision)} | {count} |"]
    pages = [f"{titles[number]} <chapter_{int(number):02}>" for number in chapters(equations)]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *pages, "```", ""])
