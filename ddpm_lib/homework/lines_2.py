"""The derivation of problem 2.5: eight lines, one of which does not follow. Which one depends on the student."""

from ddpm_lib.homework import numbers

STEPS = r"\mathbb E\,\mathrm{KL}\big(q(x_2|x_3,x_0)\,\|\,p(x_2|x_3)\big)"
STEPS += r" + \mathbb E\,\mathrm{KL}\big(q(x_1|x_2,x_0)\,\|\,p(x_1|x_2)\big)"
TURNED = r"\mathbb E\,\mathrm{KL}\big(p(x_2|x_3)\,\|\,q(x_2|x_3,x_0)\big)"
TURNED += r" + \mathbb E\,\mathrm{KL}\big(p(x_1|x_2)\,\|\,q(x_1|x_2,x_0)\big)"
START = r"\mathrm{KL}\big(q(x_3|x_0)\,\|\,p(x_3)\big)"
END = r"\mathbb E\log p(x_0|x_1)"
WHY = [
    "the logarithms of all factors",
    "Bayes' rule, for $t = 2, 3$",
    "line 2 in line 1",
    "the first step starts at $x_0$",
    "what cancels is left out",
    "sorted by what belongs together",
    "the mean over $q$",
    "Jensen's inequality",
]
FORMS = {  # of each line; later forms carry on a line before them
    "1": r"\ell = F_1 + F_2 + F_3 - P_1 - P_2 - P_3 - R",
    "1a": r"\ell = F_1 + F_2 + F_3 - P_1 - P_2 - P_3 - 2R",
    "1b": r"\ell = F_1 + F_2 + F_3 + P_1 - P_2 - P_3 - R",
    "2": r"F_t = B_t + J_t - J_{t-1}",
    "2a": r"F_t = B_t + J_{t-1} - J_t",
    "3": r"\ell = F_1 + (B_2 + J_2 - J_1) + (B_3 + J_3 - J_2) - P_1 - P_2 - P_3 - R",
    "3a": r"\ell = F_1 + (B_2 + J_2 - J_1) + (B_3 + J_3 - J_2) - P_1 - P_2 - P_3 - 2R",
    "3b": r"\ell = F_1 + (B_2 + J_2 - J_1) + (B_3 + J_3 - J_2) + P_1 - P_2 - P_3 - R",
    "3c": r"\ell = F_1 + (B_2 + J_1 - J_2) + (B_3 + J_2 - J_3) - P_1 - P_2 - P_3 - R",
    "4": r"F_1 = J_1",
    "4a": r"F_1 = 0",
    "5": r"\ell = B_2 + B_3 + J_3 - P_1 - P_2 - P_3 - R",
    "5a": r"\ell = B_2 + B_3 + J_3 - P_1 - P_2 - P_3 - 2R",
    "5b": r"\ell = B_2 + B_3 + J_3 + P_1 - P_2 - P_3 - R",
    "5c": r"\ell = B_2 + B_3 + 2J_1 - J_3 - P_1 - P_2 - P_3 - R",
    "5d": r"\ell = B_2 + B_3 + J_3 - J_1 - P_1 - P_2 - P_3 - R",
    "5e": r"\ell = B_2 + B_3 - P_1 - P_2 - P_3 - R",
    "5f": r"\ell = B_2 + B_3 + J_1 + J_3 - P_1 - P_2 - P_3 - R",
    "6": r"\ell = (J_3 - R) + (B_3 - P_3) + (B_2 - P_2) - P_1",
    "6a": r"\ell = (J_3 - R) - R + (B_3 - P_3) + (B_2 - P_2) - P_1",
    "6b": r"\ell = (J_3 - R) + (B_3 - P_3) + (B_2 - P_2) + P_1",
    "6c": r"\ell = (2J_1 - J_3 - R) + (B_3 - P_3) + (B_2 - P_2) - P_1",
    "6d": r"\ell = (J_3 - R) - J_1 + (B_3 - P_3) + (B_2 - P_2) - P_1",
    "6e": r"\ell = -R + (B_3 - P_3) + (B_2 - P_2) - P_1",
    "6f": r"\ell = (J_3 - R) + J_1 + (B_3 - P_3) + (B_2 - P_2) - P_1",
    "6g": r"\ell = (J_3 - R) + (B_3 - P_3) + (B_2 - P_2)",
    "7": f"L = {START} + {STEPS} - {END}",
    "7a": rf"L = {START} - \mathbb E\log p(x_3) + {STEPS} - {END}",
    "7b": f"L = {START} + {STEPS} + {END}",
    "7c": rf"L = \mathbb E\big[2\log q(x_1|x_0) - \log q(x_3|x_0) - \log p(x_3)\big] + {STEPS} - {END}",
    "7d": rf"L = {START} - \mathbb E\log q(x_1|x_0) + {STEPS} - {END}",
    "7e": rf"L = -\mathbb E\log p(x_3) + {STEPS} - {END}",
    "7f": rf"L = {START} + \mathbb E\log q(x_1|x_0) + {STEPS} - {END}",
    "7g": f"L = {START} + {STEPS}",
    "7h": f"L = {START} + {TURNED} - {END}",
    "8": r"L \ge -\log p(x_0)",
    "8a": r"L = -\log p(x_0)",
    "8b": r"L \le -\log p(x_0)",
}
CHAINS = [  # what is put in the place of a line and of those that follow from it
    *("1a 3a 5a 6a 7a", "1b 3b 5b 6b 7b", "2a 3c 5c 6c 7c", "4a 5d 6d 7d", "5e 6e 7e", "5f 6f 7f"),
    *("6b 7b", "6g 7g", "7h", "8a", "8b"),
]


def chain(who: str | None) -> list[str]:
    """The forms in the student's derivation that differ from the right ones, the first of a line first."""
    places = sorted({chain[0] for chain in CHAINS})
    place = numbers.choice("2.5 place", places, who)
    return numbers.choice("2.5 form", [chain for chain in CHAINS if chain[0] == place], who).split()


def derivation(who: str | None = None) -> str:
    """The student's eight lines, in Markdown."""
    forms = {str(i): str(i) for i in range(1, 9)} | {form[0]: form for form in chain(who)}
    return "\n\n".join(
        f"**({line})** $\\;{FORMS[form]}$ &emsp; ({why})" for (line, form), why in zip(forms.items(), WHY, strict=True)
    )
