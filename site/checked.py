"""What was checked: for each equation its route, its tolerance, and the wrong versions that the check rejects."""

import inspect
import textwrap
from collections import Counter

from equations import Equation
from pages import escaped
from reference import folded

from ddpm_lib.checks.equation import IDEAS, NO_SOURCE

KINDS = {"definition": "a definition", "identity": "an identity", "implementation": "a function of the library"}


def _cell(text: str) -> str:
    return escaped(" ".join(text.split()))


def chapter(equations: list[Equation], title: str) -> str:
    """The page of a chapter's checks."""
    number = equations[0].number.partition(".")[0]
    lines = [f"(checked-{number})=", f"# Checked: {escaped(title)}", ""]
    for equation in equations:
        check = equation.check
        links = [f"[derivation](#eq-{equation.dashed})"]
        links += [f"[{equation.function[0]}](#{equation.function[1]})"] if equation.function else []
        links += [f"[where it is cited](#index-{equation.dashed})"]
        lines += ["", f"(check-{equation.dashed})=", f"## {escaped(check.title)}", ""]
        lines += [":::{container} equation-links", " · ".join(links), ":::", ""]
        lines += [f"It is {KINDS[check.kind]}. {escaped(check.contract)}", ""]
        lines += [f"- Route: {escaped(check.route)}", f"- Tolerance: {escaped(check.precision)}"]
        lines += [f"- A wrong version counts as rejected from {f'{check.rejects:g}'.replace('e-0', 'e-')} on"]
        lines += ["", "| wrong version | what was mistaken | where it was seen |", "|---|---|---|"]
        for wrong in check.wrong_versions:
            seen = wrong.seen.replace(NO_SOURCE, "no public place", 1)
            lines += [f"| {_cell(wrong.what)} | {_cell(IDEAS[wrong.idea])} | {_cell(seen)} |"]
        sources = [_source(check.measure), *(_source(wrong.function) for wrong in check.wrong_versions)]
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
    seen = sum(not one.seen.startswith(NO_SOURCE) for one in wrong)
    ideas = Counter(one.idea for one in wrong)
    lines = ["(checked)=", "# What was checked", ""]
    lines += [f"{len(equations)} numbered equations have a check each. A check compares with an independent route, and"]
    lines += [
        f"must reject wrong versions: {len(wrong)} in all, {seen} of which, or their like, stand in public places.",
        "",
    ]
    lines += ["| what was mistaken | wrong versions |", "|---|---|"]
    lines += [f"| {_cell(words)} | {ideas[idea]} |" for idea, words in IDEAS.items()]
    numbers = list(dict.fromkeys(number.partition(".")[0] for number in equations))
    for number in numbers:
        lines += ["", f"## [{escaped(titles[number])}](#checked-{number})", ""]
        lines += ["| equation | route | tolerance | wrong versions |", "|---|---|---|---|"]
        for equation in (one for one in equations.values() if one.number.partition(".")[0] == number):
            check = equation.check
            link, count = f"[{escaped(check.title)}](#check-{equation.dashed})", len(check.wrong_versions)
            lines += [f"| {link} | {_cell(check.route)} | {_cell(check.precision)} | {count} |"]
    lines += ["", "```{toctree}", ":hidden:", "", *(f"chapter_{int(number):02}" for number in numbers), "```", ""]
    return "\n".join(lines)
