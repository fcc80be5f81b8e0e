"""What problem set 6 works on: an exact model with two labels, each student's worlds and derivation, cases to try."""

import math

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.checks.guard import STENCIL, fault
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.homework import numbers
from ddpm_lib.homework.case import Case

GRID = np.linspace(-9, 9, 36001)  # places of x_0, for quadrature


class TwoLabels:
    """The exact noise estimate of data with two labels, a and b, called as model(x_t, t, a, b).

    mixture: K² components; component a·K + b has the labels a and b. x_t: (B, ...), t: (B,), a and b: (B,), each in
    0..K−1, or K (`null`), which stands for no label. Returns (B, ...).
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule):
        self.mixture, self.schedule, self.null = mixture, schedule, math.isqrt(len(mixture.weight))

    def __call__(self, x_t: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        eps = torch.zeros_like(x_t)
        for pair in sorted(set(zip(a.tolist(), b.tolist(), strict=True))):
            rows = (a == pair[0]) & (b == pair[1])
            found = ExactDenoiser(self._part(*pair), self.schedule)(x_t[rows].flatten(1), t[rows])
            eps[rows] = found.reshape(x_t[rows].shape)
        return eps

    def _part(self, a: int, b: int) -> GaussianMixture:
        first, second = torch.meshgrid(torch.arange(self.null), torch.arange(self.null), indexing="ij")
        kept = (((first == a) | (a == self.null)) & ((second == b) | (b == self.null))).flatten()
        weight, mean, var = (x[kept] for x in (self.mixture.weight, self.mixture.mean, self.mixture.var))
        return GaussianMixture(weight / weight.sum(), mean, var)


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def real(name: str, low: float, high: float, who: str | None = None) -> float:
    """A number of the student's, with two decimal places."""
    return numbers.real(f"set 6, {name}", low, high, 2, who)


def pair(who: str | None = None) -> tuple[GaussianMixture, float, int, float]:
    """For 6.3.2: two classes on a line; the scale s; the time t, of the linear schedule with T = 1000; the point x."""
    share, far, var = (real(*of, who) for of in (("share", 0.3, 0.7), ("apart", 0.4, 0.7), ("var", 0.08, 0.2)))
    two = [double(x) for x in ([share, 1 - share], [[-far], [far]], [[var], [var / 2]])]
    s, t, x = real("s", 2, 4, who), numbers.whole("set 6, t", 200, 400, who), real("x", -0.4, 0.2, who)
    return GaussianMixture(*two), s, t, x


def variances(who: str | None = None) -> tuple[float, float, float]:
    """For 6.3.3: the variances of the class and of all data, and the scale s of the tilted density."""
    return real("class", 0.1, 0.4, who), real("data", 0.8, 1.3, who), real("tilt", 2, 5, who)


def world(who: str | None = None) -> tuple[GaussianMixture, int]:
    """For 6.6: three classes in the plane, which overlap, and the class to ask for."""
    angle = real("turn", 0, 6, who) + double([0.0, 2.0, 4.2])
    mean = real("near", 0.35, 0.5, who) * torch.stack([angle.cos(), angle.sin()], 1)
    var = double([[0.08, 0.03], [0.05, 0.05], [0.03, 0.09]]) + real("wide", 0.01, 0.04, who)
    return GaussianMixture(double([0.5, 0.3, 0.2]), mean, var), numbers.whole("set 6, y", 0, 2, who)


WORDS = (
    "Bayes' rule for the noised image, in logarithms",
    "Its gradient with respect to $x_t$",
    "Each score is $-1/\\sqrt{1-\\bar\\alpha_t}$ times a noise estimate",
    "A classifier's gradient, $s$ times, added to the unconditional score",
    "As a noise estimate, that is multiplied by $-\\sqrt{1-\\bar\\alpha_t}$",
    "Sorted by the two estimates",
    "In papers that write $w = s-1$",
)
SYMBOLS = {
    "E": r"\varepsilon_y",
    "N": r"\varepsilon_\varnothing",
    "R": r"\sqrt{1-\bar\alpha_t}",
    "Q": r"\nabla\log q(x_t)",
    "Y": r"\nabla\log q(x_t\mid y)",
    "C": r"\nabla\log p(y\mid x_t)",
    "H": r"\hat\varepsilon",
}
START = (r"\log q(x_t\mid y) = \log q(x_t) + \log p(y\mid x_t) - \log p(y)", "C = Y - Q")
ENDS = (  # each goes on from what stands above
    ("C = -(E-N)/R", r"Q + s\,C", "H = N + s(E-N)", "H = sE + (1-s)N", "H = (1+w)E + wN"),
    ("C = -(E-N)/R", r"Y + s\,C", "H = E + s(E-N)", "H = (1+s)E - sN", "H = (2+w)E - (1+w)N"),
    ("C = (E-N)/R", r"Q + s\,C", "H = N - s(E-N)", "H = (1+s)N - sE", "H = (2+w)N - (1+w)E"),
    ("C = -(E-N)/R", r"Q + s\,C", "H = N + s(E-N)", "H = sE + (1+s)N", "H = (1+w)E + (2+w)N"),
    ("C = -(E-N)/R", r"Q + s\,C", "H = N + s(E-N)/R", "H = sE/R + (1-s/R)N", "H = (1+w)E/R + (1-(1+w)/R)N"),
)


def ending(who: str | None = None) -> tuple[str, ...]:
    """The last five lines of the student's derivation, with letters for the symbols."""
    return numbers.choice("set 6, end", list(ENDS), who)


def derivation(who: str | None = None) -> str:
    """For 6.4: a derivation with numbered lines, in Markdown; one line does not follow."""
    lines = [*START[:1], *("".join(SYMBOLS.get(c, c) for c in line) for line in (START[1], *ending(who)))]
    told = zip(WORDS, lines, strict=True)
    return "\n\n".join(f"**({i})** {words}: $\\quad {line}$" for i, (words, line) in enumerate(told, start=1))


def labelled(case: Case) -> tuple[TwoLabels, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A model of images with two labels, and x_t, t, a, b."""
    K, D = 2 + case.seed % 2, math.prod(case.shape)
    weight = case.uniform(0.5, 1.5, K * K, name="weight")
    mean = case.normal(K * K, D, name="mean") * 0.9 / D**0.5
    mixture = GaussianMixture(weight / weight.sum(), mean, case.uniform(0.25, 0.35, K * K, D, name="var"))
    a, b = (case.whole(0, K - 1, case.batch, name=name) for name in "ab")
    return TwoLabels(mixture, case.schedule), (case.normal(name="x"), case.t, a, b)


def by_densities(case: Case, s_a: float, s_b: float) -> Tensor:
    """ε of q(x)·p(a|x)^s_a·p(b|x, a)^s_b for what `labelled` gives, by autograd through its logarithm."""
    model, (x, t, a, b) = labelled(case)
    expected = []
    for i in range(len(x)):
        leaf = x[i : i + 1].flatten(1).clone().requires_grad_()
        joint = model.mixture.diffused(case.schedule, int(t[i])).component_log_density(leaf)
        joint = joint.reshape(model.null, model.null)
        every, first, both = joint.flatten().logsumexp(0), joint[a[i]].logsumexp(0), joint[a[i], b[i]]
        score = torch.autograd.grad(every + s_a * (first - every) + s_b * (both - first), leaf)[0]
        expected.append(-score.reshape(x[i].shape) * (1 - case.schedule.alpha_bar[t[i]]).sqrt())
    return torch.stack(expected)


def estimates(case: Case) -> tuple[Schedule, Tensor, Tensor, Tensor, Tensor]:
    """The schedule, x_t, t, and the noise estimates with a label and without."""
    return (case.schedule, case.normal(name="x"), case.t, case.normal(name="y"), case.normal(name="none"))


def line(case: Case) -> tuple[GaussianMixture, Tensor]:
    """Three classes on a line, and points."""
    weight = case.uniform(0.5, 1.5, 3, name="weight")
    mean, var = case.uniform(-1, 1, 3, 1, name="mean"), case.uniform(0.03, 0.3, 3, 1, name="var")
    return GaussianMixture(weight / weight.sum(), mean, var), case.uniform(-2, 2, case.batch + 2, name="x")


def sets(case: Case, n: int) -> tuple[Tensor, Tensor]:
    """Two sets of samples, (n, D) each, whose i-th belong together."""
    D = case.shape[-1]
    both = case.normal(n, D, name="both")
    return both + 0.5 * case.normal(n, D, name="first") + 3, 1.7 * both + case.normal(n, D, name="second")


def above(x: Tensor, y: Tensor) -> float:
    """By how much x's mean is the larger one; the same number for equal sets, to the last bit."""
    return float((len(y) * x.sum(0) - len(x) * y.sum(0)).sum())


def spread(x: Tensor, y: Tensor) -> float:
    """How far the means are apart."""
    return float((len(y) * x.sum(0) - len(x) * y.sum(0)).abs().sum())


def slope(mixture: GaussianMixture, y: int, s: float, schedule: Schedule, t: int, x: Tensor) -> Tensor:
    """Differences of log ∫ N(x; √ᾱ·x_0, 1 − ᾱ)·p(x_0)·p(y|x_0)^s dx_0, by quadrature."""
    joint = mixture.component_log_density(torch.from_numpy(GRID)[:, None]).numpy()
    every = np.logaddexp.reduce(joint, axis=1)
    height, a = every + s * (joint[:, y] - every), float(schedule.alpha_bar[t])
    step, total = 0.03 * (1 - a) ** 0.5, 0.0
    for k, factor in STENCIL:
        at = x.numpy()[:, None] + k * step
        log = height - (at - a**0.5 * GRID) ** 2 / (2 * (1 - a))
        total = total + factor * np.logaddexp.reduce(log, axis=1) / step
    return torch.from_numpy(total)


def broken(found: bool, text: str) -> float:
    """A promise without a size: infinite where it is broken, with a sentence that says which."""
    if found:
        note(math.inf, text)
    return fault(found)
