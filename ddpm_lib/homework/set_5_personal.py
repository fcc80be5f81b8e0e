"""Problem set 5, third part: what is another one for each student, numbers and a derivation with a mistake."""

from ddpm_lib.homework import numbers
from ddpm_lib.homework.problem import Problem

FIELD = Problem("5.2.1", "How far your blocks see", "the receptive field, in pixels")


def tower(who: str | None = None) -> tuple[int, int]:
    """The student's levels, and gated blocks on each of them."""
    return numbers.whole("levels", 3, 5, who), numbers.whole("blocks", 1, 4, who)


FIELD.secret("the field of one pixel", 1)


MEMORY = Problem("5.4.1", "Which γ?", "the exponent γ")


def recent(who: str | None = None) -> int:
    """The per cent of the run, at its end, that shall have half of the average's memory."""
    return numbers.whole("recent", 3, 15, who)


MEMORY.secret("half of the memory", 1)


MISTAKE = Problem("5.6", "Find the mistake", "the number of the line")
LINES = r"""
1. A query $q$ and a key $k$ have $d=%(d)d$ entries each. All are independent, with mean 0 and variance $%(v)d$.
2. So each product has the mean $\mathbb E[q_ck_c]=\mathbb E[q_c]\,\mathbb E[k_c]=0$.
3. The variance of a product is $%(product)s=%(one)d$.
4. The products are independent, so $\operatorname{Var}(q\cdot k)=%(sum)s=%(whole)d$.
5. The score $s=q\cdot k/\sqrt d$, with $\sqrt d=%(root)d$, has the variance $%(divided)s=%(scaled)d$.
6. Pixel $i$ asks, and the answer is $y_i=\sum_ja_{ij}v_j$ with the weights $a_{ij}=e^{s_{ij}}\big/\sum_m%(norm)s$.
7. By the quotient rule $\partial a_{ij}/\partial s_{ij}=%(slope)s$: with $%(N)d$ equal scores, $%(value)s$.
"""
PARTS = {  # what may stand in a line, by its number: one of the two is right
    3: {"product": (r"\mathbb E[q_c^2]\,\mathbb E[k_c^2]", r"\operatorname{Var}(q_c)+\operatorname{Var}(k_c)")},
    4: {"sum": (r"\sum_c\operatorname{Var}(q_ck_c)", r"\big(\sum_c\sqrt{\operatorname{Var}(q_ck_c)}\,\big)^2")},
    5: {"divided": (r"\operatorname{Var}(q\cdot k)/d", r"\operatorname{Var}(q\cdot k)/\sqrt d")},
    6: {"norm": (r"e^{s_{im}}", r"e^{s_{mj}}")},
    7: {"slope": (r"a_{ij}\,(1-a_{ij})", r"a_{ij}\,(1+a_{ij})")},
}


def line_of_mistake(who: str | None) -> int:
    """The number of the line in a student's derivation that does not hold."""
    return numbers.choice("line", sorted(PARTS), who)


MISTAKE.secret("the line", 1)


def derivation(who: str | None = None) -> str:
    """Seven numbered lines on the scale of attention's scores, in Markdown, with the student's numbers."""
    d, v, N = (numbers.choice(*of, who) for of in (("d", [16, 25, 36]), ("v", [3, 4, 5]), ("N", [49, 64, 81])))
    line, root = line_of_mistake(who), int(d**0.5)
    one = 2 * v if line == 3 else v * v
    whole = d * d * one if line == 4 else d * one
    scaled = whole // root if line == 5 else whole // d
    value = rf"\frac1{{{N}}}\,(1{'+' if line == 7 else '-'}\frac1{{{N}}})"
    parts = {name: pair[number == line] for number, part in PARTS.items() for name, pair in part.items()}
    known = {"d": d, "v": v, "N": N, "root": root, "one": one, "whole": whole, "scaled": scaled, "value": value}
    return LINES.strip() % {**known, **parts}
