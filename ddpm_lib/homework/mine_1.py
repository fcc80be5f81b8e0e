"""Problem set 1: the numbers of a student, the problems that ask for a number, and a derivation with a mistake."""

from dataclasses import dataclass

from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.homework import numbers
from ddpm_lib.homework.problem import Problem


@dataclass(frozen=True)
class Mine:
    """A student's numbers.

    schedule: a linear one; s < t: two of its times; pixels, square: the size of an image, and its mean square.
    steps, snr_1, snr_T: number of steps, first and last SNR of a schedule with a straight log-SNR; var_0: of the data.
    """

    schedule: Schedule
    s: int
    t: int
    pixels: int
    square: float
    steps: int
    snr_1: float
    snr_T: float
    var_0: float


def mine(who: str | None = None) -> Mine:
    """The numbers of the student who signed."""
    T = numbers.whole("T", 150, 400, who)
    return Mine(
        linear_schedule(T, numbers.real("beta_1", 2e-4, 9e-4, 5, who), numbers.real("beta_T", 0.02, 0.04, 4, who)),
        numbers.whole("s", 20, 60, who),
        numbers.whole("t", 80, 140, who),
        numbers.whole("side", 16, 48, who) ** 2,
        numbers.real("square", 0.2, 0.9, 2, who),
        numbers.whole("steps", 50, 900, who),
        float(numbers.whole("snr_1", 300, 5000, who)),
        numbers.real("snr_T", 0.001, 0.02, 4, who),
        numbers.real("var_0", 0.15, 0.6, 2, who),
    )


SCALE, KEPT, NEW = r"\sqrt{\alpha_t r_{t-1}}", r"\sqrt{\alpha_t(1-r_{t-1})}", r"\sqrt{1-\alpha_t}"
PROOF = (
    r"For $t = s+1$ we have $r_{s+1} = \bar\alpha_{s+1}/\bar\alpha_s = \alpha_{s+1}$: the law of one forward step.",
    r"Suppose that $x_{t-1} = \sqrt{r_{t-1}}\,x_s + OLD\,\varepsilon'$ with $\varepsilon'\sim\mathcal N(0, I)$.",
    r"One more step is $x_t = \sqrt{\alpha_t}\,x_{t-1} + NEW\,\varepsilon_t$, with fresh noise $\varepsilon_t$.",
    r"Put line 2 into line 3: $x_t = SCALE\,x_s + KEPT\,\varepsilon' + NEW\,\varepsilon_t$.",
    r"Since $\alpha_t r_{t-1} = r_t$, the mean of $x_t$, given $x_s$, is $MEAN\,x_s$.",
    r"$\varepsilon'$ and $\varepsilon_t$ are independent; so, given $x_s$, the variance of $x_t$ is $SUM$.",
    r"Multiplied out, this variance is $END$.",
)
PARTS = {
    "OLD": r"\sqrt{1-r_{t-1}}",
    "NEW": NEW,
    "SCALE": SCALE,
    "KEPT": KEPT,
    "MEAN": r"\sqrt{r_t}",
    "SUM": r"\alpha_t(1-r_{t-1}) + (1-\alpha_t)",
    "END": r"1 - \alpha_t r_{t-1} = 1 - r_t",
}
CHANGES = [  # each changes some parts, so that every line follows from those before it, save one
    {
        "NEW": r"(1-\alpha_t)",
        "SUM": r"\alpha_t(1-r_{t-1}) + (1-\alpha_t)^2",
        "END": r"1 - r_t - \alpha_t(1-\alpha_t)",
    },
    {
        "KEPT": r"\sqrt{1-r_{t-1}}",
        "SUM": r"(1-r_{t-1}) + (1-\alpha_t)",
        "END": r"2 - r_{t-1} - \alpha_t",
    },
    {
        "SUM": rf"\big({KEPT} + {NEW}\big)^2",
        "END": r"1 - r_t + 2\sqrt{\alpha_t(1-\alpha_t)(1-r_{t-1})}",
    },
    {
        "SCALE": r"\sqrt{\alpha_t}\,r_{t-1}",
        "MEAN": r"\sqrt{r_t\,r_{t-1}}",
    },
    {
        "OLD": r"(1-r_{t-1})",
        "KEPT": r"\sqrt{\alpha_t}\,(1-r_{t-1})",
        "SUM": r"\alpha_t(1-r_{t-1})^2 + (1-\alpha_t)",
        "END": r"1 - r_t - r_t\,(1-r_{t-1})",
    },
]


def proof(parts: dict[str, str]) -> list[str]:
    """The lines of the derivation, with these parts in place of the usual ones."""
    made = []
    for line in PROOF:
        for name, part in (PARTS | parts).items():
            line = line.replace(name, part)
        made.append(line)
    return made


def derivation(who: str | None = None) -> str:
    """The student's derivation, in Markdown: numbered lines, in one of which something is wrong."""
    lines = proof(numbers.choice("derivation", CHANGES, who))
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


COPIES = Problem("1.1.1", "Copies that tell as much", "f(): how many copies at time t tell as much as one at time s")


COPIES.secret("number of copies", 1)


TOGETHER = Problem("1.3.1", "How much two times have in common", "f(): the correlation of x_s and x_t, given x_0")


TOGETHER.secret("correlation", 1)


CROSSING = Problem("1.4.1", "When the noise takes over", "f(): the first t at which var_0·SNR(t) is below 1")


CROSSING.secret("time", 1)


FAR = Problem("1.4.2", "Bits left at the end", "f(): the divergence of q(x_T|x_0) from N(0, I), in bits")


FAR.secret("bits", 1)


MISTAKE = Problem("1.5", "The line with the mistake", "f(): the number of the first line that does not follow")


MISTAKE.secret("line", 2)
