"""The material of problem set 3: what its functions are tried on, a student's numbers, and a derivation."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lib.checks.chapter_03 import walk
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.homework import numbers
from ddpm_lib.homework.case import Case


def ends(case: Case) -> tuple[Tensor, Tensor]:
    """The scale of x_0 and the deviation of the noise in each image, (B, 1, 1, 1), by walking the chain."""
    scale, var = walk(case.schedule)
    return scale[case.t].reshape(-1, 1, 1, 1), var[case.t].sqrt().reshape(-1, 1, 1, 1)


def kappas(case: Case) -> tuple[float, ...]:
    return float(case.uniform(0.3, 3.0, name="kappa")), 0.0, 1.0, 40.0


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """A stand-in for a network that says u."""
    return 0.3 * x_t**2 - 0.5 * x_t.flip(-1) + (t + 2.0).log().to(x_t).reshape(-1, 1, 1, 1)


def as_eps(case: Case, kappa: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The noise that network means, in every pixel by two equations in (x_0, ε), solved."""
    s, n = (v.flatten() for v in ends(case))
    one = torch.ones_like(s)
    rows = torch.stack([torch.stack([s, n], -1), torch.stack([-kappa * one, one], -1)], -2)  # (B, 2, 2)

    def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
        said = torch.stack([x_t.flatten(1), network(x_t, t).flatten(1)], 1)
        return torch.linalg.solve(rows, said)[:, 1].reshape(x_t.shape)

    return eps_model


def image_list(case: Case, *shape: int) -> tuple[Tensor, Tensor]:
    """A list of six images (6, *shape), near enough to be mixed up, each occurring as often as any other."""
    images = case.normal(6, *shape, name="images") * (2.0 / math.prod(shape)) ** 0.5
    return images, torch.full((6,), 0.5, dtype=torch.float64)


def noisy_list(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Such a list, and noisy versions of its images at case.t."""
    images, weight = image_list(case, *case.shape)
    s, n = ends(case)
    return images, weight, s * images[case.whole(0, 5, case.batch, name="which")] + n * case.normal(name="eps")


def by_tweedie(images: Tensor, weight: Tensor, x_t: Tensor, scale: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variances of x_0 given one x_t (D,), for a list of images (N, D), from the slopes of log q(x_t)."""

    def log_q(x: Tensor) -> Tensor:
        return torch.logsumexp(weight.log() - ((x - scale * images) ** 2).sum(1) / (2 * std**2), 0)

    slope, curvature = torch.func.grad(log_q)(x_t), torch.func.hessian(log_q)(x_t).diagonal()
    return (x_t + std**2 * slope) / scale, (std / scale) ** 2 * (1 + std**2 * curvature)


@dataclass(frozen=True)
class Mine:
    """One student's numbers. kappa: of the target; beta: of two steps; level, weight: of a pixel's three levels."""

    kappa: float
    beta: tuple[float, float]
    level: tuple[float, float, float]
    weight: tuple[float, float, float]


def mine(who: str | None = None) -> Mine:
    """The numbers of this student, or of who has signed."""
    real = functools.partial(numbers.real, who=who)
    first, last = real("first weight", 0.15, 0.35), real("last weight", 0.15, 0.35)
    return Mine(
        real("kappa", 0.5, 2.0),
        (real("beta 1", 0.05, 0.2, 3), real("beta 2", 0.2, 0.4, 3)),
        (real("low", -0.95, -0.6), real("middle", -0.25, 0.25), real("high", 0.6, 0.95)),
        (first, round(1 - first - last, 2), last),
    )


def floor_by_score(schedule: Schedule, level: Tensor, weight: Tensor, t: int, points: int = 6001) -> float:
    """The floor of one pixel's noise loss: 1 minus 1 − ᾱ_t times the mean square of the score, on a grid."""
    scale, var = (float(v[t]) for v in walk(schedule))
    low, high = scale * float(level.min()) - 10 * var**0.5, scale * float(level.max()) + 10 * var**0.5
    x = torch.linspace(low, high, points, dtype=torch.float64).requires_grad_()
    log_q = torch.logsumexp(weight.log() - (x[:, None] - scale * level) ** 2 / (2 * var), 1)
    (score,) = torch.autograd.grad(log_q.sum(), x)
    density = log_q.detach().exp()
    return 1 - var * float((density * score**2).sum() / density.sum())


def at_fault(who: str | None = None) -> int:
    return numbers.choice("derivation", [4, 5, 6, 7, 8, 9], who)


def derivation(who: str | None = None) -> str:
    """The derivation that this student is given, in Markdown: nine numbered lines."""
    k = at_fault(who)
    s, n, a, b = r"\sqrt{\bar\alpha_t}", r"\sqrt{1-\bar\alpha_t}", r"\bar\alpha_t", r"(1-\bar\alpha_t)"
    factor = s if k == 4 else a
    over = {4: rf"1-\bar\alpha_t+{s}", 5: r"1-2\bar\alpha_t"}.get(k, "")
    joined = rf"{n}\,x_t+{s}\,v"
    eps = rf"\frac{{{joined}}}{{{over}}}" if over else joined
    total = rf"\big({b}{'-' if k == 5 else '+'}{factor}\big)\,\varepsilon"
    sign, below = ("" if k == 6 else "-"), (r"1-\bar\alpha_t" if k == 7 else n)
    mean = r"\varepsilon" if k == 8 else r"\mathbb E[\varepsilon\mid x_t]"
    v = "v" if k == 8 else r"\mathbb E[v\mid x_t]"
    top, divisor = rf"{n}\,x_t+{s}\,{v}", rf"{below}\;({over})" if over else below
    image = {7: rf"\frac{{x_t}}{{{n}}}", 9: rf"{n}\,x_t"}.get(k, rf"\frac{{x_t}}{{{over}}}" if over else "x_t")
    last = rf"{sign}\frac{{{top}}}{{{divisor}}}={sign}{image}{sign or '+'}\frac{{{s}}}{{{divisor}}}\,{v}"
    lines = [
        rf"x_t={s}\,x_0+{n}\,\varepsilon",
        rf"v={s}\,\varepsilon-{n}\,x_0",
        rf"{n}\,x_t={s}{n}\,x_0+{b}\,\varepsilon",
        rf"{s}\,v={factor}\,\varepsilon-{s}{n}\,x_0",
        rf"{joined}={total},\quad\text{{so}}\quad \varepsilon={eps}",
        rf"\nabla\log q(x_t\mid x_0)={sign}\frac{{x_t-{s}\,x_0}}{{1-\bar\alpha_t}}",
        rf"\nabla\log q(x_t\mid x_0)={sign}\frac{{\varepsilon}}{{{below}}}",
        rf"\nabla\log q(x_t)={sign}\frac{{{mean}}}{{{below}}}",
        rf"\nabla\log q(x_t)={last}",
    ]
    why = [
        "the jump",
        "the definition of the velocity",
        rf"line 1, times ${n}$",
        rf"line 2, times ${s}$",
        "lines 3 and 4, added",
        "the gradient of a Gaussian's log-density",
        "line 1, put in",
        "the score of all noisy data",
        "line 5, put in, and both terms divided",
    ]
    return "\n".join(f"{i}. ${line}$ ({reason})" for i, (line, reason) in enumerate(zip(lines, why, strict=True), 1))
