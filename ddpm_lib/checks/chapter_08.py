"""The checks of chapter 8, fast sampling. The routes walk the chain, condition in covariances, and replay a sampler.

A sampler is examined by a network that keeps what it is asked. From what it was asked and what it answered follows
where the sampler must be next, whichever network it is; so every step is compared, and not only the result.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from scipy import linalg, stats
from torch import Tensor

from ddpm_lib.checks import check
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk
from ddpm_lib.checks.chapter_04 import FAINT, ONE, STRONG, TWO, batches, disturbs, images, off, slope_off
from ddpm_lib.checks.guard import accepted, fault, until
from ddpm_lib.checks.noise import NEVER, noise_score
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.schedule import Schedule

# Little noise, where an ε or a clamp shows, and where a difference of two ᾱ still has ten digits.
PALE = Schedule([2.0**-20, 2.0**-21, 2.0**-19, 2.0**-20])
PAIRS = [
    *((SHORT, t, s) for t in range(1, 5) for s in range(t)),
    *((LONG, t, s) for t, s in ((1, 0), (2, 1), (2, 0), (50, 49), (500, 100), (1000, 999), (1000, 500), (1000, 0))),
    (TWO, 2, 1),
    (TWO, 2, 0),
    (ONE, 1, 0),
    (STRONG, 3, 2),
    (STRONG, 3, 1),
    (STRONG, 2, 1),
    *((PALE, t, s) for t, s in ((1, 0), (2, 1), (4, 1), (4, 0), (3, 2))),
]


def between(schedule, s, t):
    """The scale of x_s in x_t, and the variance of the noise that comes to it, walked from s to t."""
    scale, var = 1.0, 0.0
    for beta in schedule.beta[s + 1 : t + 1].tolist():
        scale, var = (1 - beta) ** 0.5 * scale, (1 - beta) * var + beta
    return scale, var


def left_open(schedule, s, t):
    """The variance of x_s given x_t and x_0: Schur's complement in the covariance of the noise in x_s and in x_t."""
    own, (scale, added) = float(walk(schedule)[1][s]), between(schedule, s, t)
    cov = np.array([[own, scale * own], [scale * own, scale**2 * own + added]])
    return np.linalg.det(cov) / cov[1, 1] if own else 0.0


@check("8.1", "a step that keeps the marginal", "identity", "the chain walked step by step", to=1e-9)
@until(1e-8)
def keeps_the_marginal(f):
    """f(schedule, t, s, var) returns the weights of x_0 and x_t in x_s, with fresh noise of this variance beside them.

    x_s must have the mean and the variance of q(x_s|x_0), and must not turn x_t's noise round.
    """
    for schedule, t, s in PAIRS:
        scale, noise = (v.tolist() for v in walk(schedule))
        for share in (0.0, 0.3, 1.0):  # of the variance that x_s may have
            var = share * noise[s]
            yield disturbs(f, schedule, t, s, var)
            on_x_0, on_x_t = (float(v) for v in f(schedule, t, s, var))
            yield off(on_x_0 + on_x_t * scale[t], scale[s])
            yield off(on_x_t**2 * noise[t] + var, noise[s], noise[s] or 1e-300)
            yield fault(on_x_t < 0)


def _keep(schedule, t, s, var):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    on_x_t = (max(1 - then - var, 0) / (1 - now)) ** 0.5
    return then**0.5 - on_x_t * now**0.5, on_x_t


@keeps_the_marginal.states
def _(schedule, t, s, var):
    return _keep(schedule, t, s, var)


@keeps_the_marginal.wrong("1 − ᾱ_s − σ² without its root", seen="mathpluscode/ImgX-DiffSeg issue 4", idea="power")
def _(schedule, t, s, var):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    on_x_t = (1 - then - var) / (1 - now) ** 0.5
    return then**0.5 - on_x_t * now**0.5, on_x_t


@keeps_the_marginal.wrong(
    "σ in the place of √(1 − ᾱ_s − σ²)", seen="jsboige/CoursIA PR 16158, in a review", idea="exchange"
)
def _(schedule, t, s, var):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    on_x_t = (var / (1 - now)) ** 0.5
    return then**0.5 - on_x_t * now**0.5, on_x_t


@keeps_the_marginal.wrong("σ² is not taken off: too much noise", seen="no public source: a plausible slip", idea="term")
def _(schedule, t, s, var):
    return _keep(schedule, t, s, 0.0)


@keeps_the_marginal.wrong(
    "x_t's own x_0 is not taken off", seen="no public source: a plausible slip (x_t read as its noise)", idea="term"
)
def _(schedule, t, s, var):
    return float(schedule.alpha_bar[s]) ** 0.5, _keep(schedule, t, s, var)[1]


@check("8.2", "DDIM variance", "implementation", "conditioning in the joint covariance, times η²", to=1e-9)
@until(1e-8)
def ddim_var(f):
    """f(schedule, t, s, eta) returns the variance of the fresh noise; relative to it, and exactly 0 where it is."""
    for schedule, t, s in PAIRS:
        for eta in (1.0, 0.3, 1e-4, 0.0, 1):
            exact = eta**2 * left_open(schedule, s, t)
            yield disturbs(f, schedule, t, s, eta)
            yield off(float(f(schedule, t, s, eta)), exact, exact or 1e-300)
    for t, s in ((2, 2), (1, 3), (5, 0), (1, -1), (0, 0)):
        yield accepted(lambda: f(SHORT, t, s, 1.0))  # noqa: B023


def _var(schedule, t, s, eta=1.0):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    return eta**2 * (1 - then) / (1 - now) * (1 - now / then)


@ddim_var.wrong(
    "η is not squared", seen="no public source: a plausible slip (of σ, which is linear in η)", idea="power"
)
def _(schedule, t, s, eta):
    return _var(schedule, t, s) * eta


@ddim_var.wrong("a standard deviation", seen="of this kind: huggingface/diffusers issue 14569", idea="power")
def _(schedule, t, s, eta):
    return _var(schedule, t, s, eta) ** 0.5


@ddim_var.wrong(
    "β_t of one step for a stride", seen="huggingface/diffusers PR 3006, which mends it elsewhere", idea="exchange"
)
def _(schedule, t, s, eta):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    return eta**2 * (1 - then) / (1 - now) * float(schedule.beta[t])


@ddim_var.wrong("t − 1 in the place of s", seen="huggingface/diffusers PR 2076, which mends it for DDPM", idea="time")
def _(schedule, t, s, eta):
    return _var(schedule, t, t - 1, eta)


@ddim_var.wrong("the ratio upside down", seen="no public source: a plausible slip (s and t swapped)", idea="time")
def _(schedule, t, s, eta):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    return eta**2 * (1 - now) / (1 - then) * (1 - now / then) if s else 0.0


@ddim_var.wrong(
    "1 − ᾱ_t/ᾱ_s, what q(x_t|x_s) adds", seen="no public source: the upper choice, β_t, for a stride", idea="exchange"
)
def _(schedule, t, s, eta):
    now, then = (float(schedule.alpha_bar[k]) for k in (t, s))
    return eta**2 * (1 - now / then)


@ddim_var.wrong(
    "s = 0 read as ᾱ_1", seen="lllyasviel/ControlNet PR 587, Stability-AI/stablediffusion PR 345", idea="time"
)
def _(schedule, t, s, eta):
    return _var(schedule, t, max(s, 1), eta)


@ddim_var.wrong("at least 1e-20", seen="no public source: a clamp for a logarithm that nobody takes", idea="edge")
def _(schedule, t, s, eta):
    return max(_var(schedule, t, s, eta), 1e-20)


@check("8.3", "DDIM step", "implementation", "the jump of the same image and noise, and the law of what is drawn")
@until(15)
def ddim_step(f):
    """f(schedule, x_0_hat, x_t, t, s, eta, generator) returns x_s.

    What is no matter of chance counts as |z| = 5 if it is off by 1e-9, relative to the mean size.
    """
    for batch in batches():
        schedule, (scale, var) = batch.schedule, walk(batch.schedule)
        for i, t in enumerate(batch.t.tolist()):
            x_0, eps, x_t = (v[i : i + 1] for v in (batch.x_0, batch.eps, batch.x_t))
            for s in sorted({0, t - 1, t // 2}):
                exact = scale[s] * x_0 + var[s].sqrt() * eps
                yield 5e9 * off(f(schedule, x_0, x_t, t, s, 0.0, None), exact, exact.abs().mean())
    batch = batches()[0]
    x_0, x_t = batch.x_0, batch.x_t
    for eta, generator in ((0.0, None), (0, torch.Generator())):
        yield NEVER * disturbs(lambda a, b: f(SHORT, a, b, 4, 2, eta, generator), x_0, x_t)  # noqa: B023
    yield 5e9 * slope_off(lambda a, b: f(SHORT, a, b, 3, 1, 0.0, None), x_0, x_t)
    for t, s, eta in ((4, 2, 1.0), (3, 2, 0.4)):
        yield 5e9 * slope_off(lambda a, b: f(SHORT, a, b, t, s, eta, torch.Generator().manual_seed(1)), x_0, x_t)  # noqa: B023
    yield NEVER * fault(f(SHORT, x_0.float(), x_t.float(), 3, 1, 0.5, torch.Generator()).dtype != torch.float32)

    for eta, t, s in ((0.0, 4, 1), (1.0, 2, 0)):  # σ = 0: nothing is drawn
        generator = torch.Generator().manual_seed(5)
        before = generator.get_state()
        f(SHORT, x_0, x_t, t, s, eta, generator)
        yield NEVER * fault(not torch.equal(generator.get_state(), before))
    with torch.random.fork_rng(devices=[]):  # without a generator it is torch's own that draws, where anything is drawn
        torch.manual_seed(7)
        before = torch.get_rng_state()
        f(SHORT, x_0, x_t, 4, 1, 0.0, None)
        yield NEVER * fault(not torch.equal(torch.get_rng_state(), before))
        first, second = (f(SHORT, x_0, x_t, 4, 2, 0.8, None) for _ in range(2))
        torch.manual_seed(7)
        yield NEVER * fault(torch.equal(first, second))
        yield NEVER * fault(not torch.equal(f(SHORT, x_0, x_t, 4, 2, 0.8, None), first))
    for t, s in ((2, 2), (1, 3), (5, 0), (1, -1), (0, 0)):
        yield NEVER * bool(accepted(lambda: f(SHORT, x_0, x_t, t, s, 0.0, None)))  # noqa: B023
    several = [torch.Generator().manual_seed(i) for i in range(len(x_0))]
    together = f(SHORT, x_0, x_t, 4, 2, 0.8, several)
    alone = f(SHORT, x_0[2:3], x_t[2:3], 4, 2, 0.8, [torch.Generator().manual_seed(2)])
    yield 5e9 * off(together[2:3], alone)

    for schedule, t, s, eta in ((SHORT, 4, 2, 1.0), (PALE, 4, 1, 0.7)):

        def standardised(n, generator):
            x_0, eps = (torch.randn(n, 2, 2, 3, generator=_seed(k), dtype=torch.float64) for k in (1, 2))
            scale, var = walk(schedule)  # noqa: B023
            x_t = scale[t] * x_0 + var[t].sqrt() * eps  # noqa: B023
            fresh = eta**2 * left_open(schedule, s, t)  # noqa: B023
            mean = scale[s] * x_0 + (var[s] - fresh).sqrt() * eps  # noqa: B023
            return (f(schedule, x_0, x_t, t, s, eta, generator) - mean) / fresh**0.5  # noqa: B023

        yield noise_score(standardised)


def _seed(k):
    return torch.Generator().manual_seed(k)


def _like(x, generator):
    if isinstance(generator, list):
        return torch.stack([_like(part, g) for part, g in zip(x, generator, strict=True)])
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _noise_in(schedule, x_0_hat, x_t, t):
    a = float(schedule.alpha_bar[t])
    return (x_t - a**0.5 * x_0_hat) / (1 - a) ** 0.5


def _step(schedule, x_0_hat, x_t, t, s, eta=0.0, generator=None, var=None, at=None):
    eps, a = _noise_in(schedule, x_0_hat, x_t, t), float(schedule.alpha_bar[s if at is None else at])
    var = _var(schedule, t, s, eta) if var is None else var
    x = a**0.5 * x_0_hat + max(1 - a - var, 0) ** 0.5 * eps
    return x + var**0.5 * _like(x, generator) if var > 0 else x


@ddim_step.wrong("1 − ᾱ_s − σ² without its root", seen="mathpluscode/ImgX-DiffSeg issue 4", idea="power")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    eps, a, var = _noise_in(schedule, x_0_hat, x_t, t), float(schedule.alpha_bar[s]), _var(schedule, t, s, eta)
    x = a**0.5 * x_0_hat + (1 - a - var) * eps
    return x + var**0.5 * _like(x, generator) if var > 0 else x


@ddim_step.wrong("σ in the place of √(1 − ᾱ_s − σ²)", seen="jsboige/CoursIA PR 16158, in a review", idea="exchange")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    eps, a, var = _noise_in(schedule, x_0_hat, x_t, t), float(schedule.alpha_bar[s]), _var(schedule, t, s, eta)
    x = a**0.5 * x_0_hat + var**0.5 * eps
    return x + var**0.5 * _like(x, generator) if var > 0 else x


@ddim_step.wrong(
    "s = 0 read as ᾱ_1", seen="lllyasviel/ControlNet PR 587, Stability-AI/stablediffusion PR 345", idea="time"
)
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    return _step(schedule, x_0_hat, x_t, t, s, eta, generator, at=max(s, 1))


@ddim_step.wrong("σ² is not taken off: too much noise", seen="no public source: a plausible slip", idea="term")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    x, var = _step(schedule, x_0_hat, x_t, t, s), _var(schedule, t, s, eta)
    return x + var**0.5 * _like(x, generator) if var > 0 else x


@ddim_step.wrong("z is multiplied with σ²", seen="no public source: variance and deviation mixed up", idea="power")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    eps, a, var = _noise_in(schedule, x_0_hat, x_t, t), float(schedule.alpha_bar[s]), _var(schedule, t, s, eta)
    x = a**0.5 * x_0_hat + max(1 - a - var, 0) ** 0.5 * eps
    return x + var * _like(x, generator) if var > 0 else x


@ddim_step.wrong("x_0_hat is clipped on the way", seen="no public source: clipping belongs to the sampler", idea="edge")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    return _step(schedule, x_0_hat.clamp(-1, 1), x_t, t, s, eta, generator)


@ddim_step.wrong(
    "one draw for all pixels of a channel", seen="greatlog/UnpairedSR issue 15: noise of (B, 1, 1, 1)", idea="noise"
)
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    var = _var(schedule, t, s, eta)
    x = _step(schedule, x_0_hat, x_t, t, s, var=0.0) if var == 0 else None
    if x is not None:
        return x
    a, eps = float(schedule.alpha_bar[s]), _noise_in(schedule, x_0_hat, x_t, t)
    return a**0.5 * x_0_hat + (1 - a - var) ** 0.5 * eps + var**0.5 * _like(x_t[:, :1, :1, :1], generator)


@ddim_step.wrong(
    "the generator is not heeded", seen="no public source: the argument, left out of the call", idea="noise"
)
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    return _step(schedule, x_0_hat, x_t, t, s, eta)


@ddim_step.wrong("1e-8 is added under the root of 1 − ᾱ_t", seen="no public source: an ε “for stability”", idea="edge")
def _(schedule, x_0_hat, x_t, t, s, eta, generator):
    a, b, var = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[s]), _var(schedule, t, s, eta)
    x = b**0.5 * x_0_hat + max(1 - b - var, 0) ** 0.5 * (x_t - a**0.5 * x_0_hat) / (1 - a + 1e-8) ** 0.5
    return x + var**0.5 * _like(x, generator) if var > 0 else x


SIZES = [*((T, n) for T in range(1, 25) for n in range(1, T + 1)), *((1000, n) for n in (1, 3, 7, 16, 61, 400, 999))]


@functools.cache
def nearest(T, n):
    """The whole numbers nearest to n + 1 even times from T to 0, the larger of two that are as near: by trying all."""
    found = []
    for i in range(n, -1, -1):
        even = Fraction(T * i, n)
        about = range(max(0, int(even) - 2), min(T, int(even) + 2) + 1)
        found.append(min(about, key=lambda t: (abs(t - even), -t)))
    return found


@check("8.4", "even grid", "implementation", "the nearest whole numbers, by exact fractions", to=1e-9)
@until(1e-8)
def even_grid(f):
    """f(T, steps) returns a list of the times, from T down to 0, as whole numbers."""
    for T, n in SIZES:
        got = f(T, n)
        if len(got) != n + 1:
            note(math.inf, f"For T = {T} and {n} steps it returned {len(got)} times, where {n + 1} are expected.")
            yield math.inf
            return
        yield off([float(t) for t in got], [float(t) for t in nearest(T, n)])
        yield fault(not all(type(t) is int for t in got))
    for T, n in ((10, 0), (10, 11), (1, 2), (10, -3)):
        yield accepted(lambda: f(T, n))  # noqa: B023


def _refused(T, steps):
    if not 1 <= steps <= T:
        raise ValueError("steps")


@even_grid.wrong(
    "“leading”: 1, 1 + k, 1 + 2k, ... with k = ⌊T/n⌋",
    seen="huggingface/diffusers issues 2585 and 12588; CompVis/latent-diffusion issue 136",
    idea="time",
)
def _(T, steps):
    _refused(T, steps)
    return [1 + i * (T // steps) for i in range(steps - 1, -1, -1)] + [0]


@even_grid.wrong(
    "“linspace”: from T to 1, then a step to 0", seen="timestep_spacing of huggingface/diffusers", idea="time"
)
def _(T, steps):
    _refused(T, steps)
    return [int(t) for t in np.linspace(T, 1, steps).round()] + [0]


@even_grid.wrong(
    "strides of ⌊T/n⌋ from T", seen="of this kind: huggingface/diffusers issues 11347 and 9261", idea="edge"
)
def _(T, steps):
    _refused(T, steps)
    return [T - i * (T // steps) for i in range(steps)] + [0]


@even_grid.wrong("rounded down", seen="no public source: int() of a real number", idea="edge")
def _(T, steps):
    _refused(T, steps)
    return [T * i // steps for i in range(steps, -1, -1)]


@even_grid.wrong("the end 0 is missing", seen="no public source: range() without its end", idea="time")
def _(T, steps):
    _refused(T, steps)
    return nearest(T, steps)[:-1]


@even_grid.wrong(
    "a time too many, where n·(T/n) is rounded",
    seen="huggingface/diffusers 0.42.1, “trailing” for T = 100, n = 29",
    idea="time",
)
def _(T, steps):
    _refused(T, steps)
    return [int(t) for t in np.floor(np.arange(T, 0, -T / steps) + 0.5)] + [0]


@even_grid.wrong("real numbers", seen="no public source: torch.linspace, not rounded", idea="edge")
def _(T, steps):
    _refused(T, steps)
    return [T * i / steps for i in range(steps, -1, -1)]


@dataclass
class Asked:
    """A network that keeps what it is asked, and answers with waves that are no function of one step alone."""

    size: float = 1.5
    x: list[Tensor] = field(default_factory=list)
    t: list[int] = field(default_factory=list)
    eps: list[Tensor] = field(default_factory=list)
    wrong: bool = False  # whether it was ever asked with a t that is not one whole number an image

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        right = isinstance(t, Tensor) and t.shape == (len(x),) and not t.is_floating_point()
        self.wrong = self.wrong or not right or len(set(t.tolist())) != 1
        t = torch.as_tensor(t).reshape(-1).expand(len(x))
        eps = self.size * torch.sin(2 * x + 0.7 * t.reshape(-1, *[1] * (x.ndim - 1)).to(x)) + 0.3 * x.flip(-1)
        self.x.append(x.detach().clone())
        self.t.append(int(t[0]))
        self.eps.append(eps.clone())
        return eps


CASES = [  # schedule, steps, shape of x
    (SHORT, 4, (4, 4, 4, 4)),  # first: where no size tells the axes apart
    (SHORT, 3, (3, 2, 1, 5)),
    (SHORT, 1, (2, 1, 2, 3)),
    (LONG, 7, (2, 3, 2, 1)),
    (LONG, 16, (1, 1, 2, 2)),
    (ONE, 1, (3, 1, 1, 2)),
    (TWO, 2, (2, 2, 1, 3)),
    (TWO, 1, (2, 1, 1, 2)),
    (STRONG, 3, (2, 1, 2, 1)),
    (PALE, 4, (2, 1, 3, 2)),
    (PALE, 3, (2, 2, 2, 2)),
    (FAINT, 2, (1, 2, 2, 2)),
    (SHORT, 2, (3, 5)),  # no images: vectors
]

GIVEN = [  # the same with times that are given; tried where a sampler takes them
    (SHORT, 2, (2, 1, 2, 3), [3, 2, 0]),
    (LONG, 4, (3, 1, 1, 2), [900, 899, 250, 7, 0]),
    (TWO, 1, (1, 2, 1, 2), [1, 0]),
]


@dataclass
class Replay:
    """A run of a sampler, and the chain that it walked on: what must follow from each answer."""

    schedule: Schedule
    clip: bool
    asked: Asked
    start: Tensor
    end: Tensor
    steps: list[tuple[int, Tensor, Tensor]]  # what on_step was given, if it was taken
    times: list[int] | None = None  # the grid that was given, if it was not left to the sampler

    def __post_init__(self):
        self.scale, self.std = walk(self.schedule)
        self.std = self.std.sqrt()

    def grid(self, steps: int) -> list[int]:
        """The times from the first to 0: those that were given, or this many even steps."""
        return self.times or (nearest(self.schedule.T, steps) if steps <= self.schedule.T else [-1, -1])

    def clean(self, k: int) -> Tensor:
        """The estimate of x_0 in the k-th call."""
        t = self.asked.t[k]
        x_0 = (self.asked.x[k] - self.std[t] * self.asked.eps[k]) / self.scale[t]
        return x_0.clamp(-1, 1) if self.clip else x_0

    def noise(self, k: int, x_0: Tensor | None = None) -> Tensor:
        """The noise in the k-th call's image, if this is the clean one."""
        t = self.asked.t[k]
        return (self.asked.x[k] - self.scale[t] * (self.clean(k) if x_0 is None else x_0)) / self.std[t]

    def jump(self, k: int, s: int, x_0: Tensor | None = None) -> Tensor:
        """The same image and noise as in the k-th call, at s."""
        return self.scale[s] * (self.clean(k) if x_0 is None else x_0) + self.std[s] * self.noise(k, x_0)

    def ratio(self, t: int) -> float:
        return float(self.std[t] / self.scale[t])

    def states(self, calls: list[int]) -> list[Tensor]:
        """Where each step ended: what the network was asked at its successor, and the result."""
        return [*(self.asked.x[k] for k in calls[1:]), self.end]


def replays(f: Callable, clips=(False, True), **options) -> Iterator[Replay | float]:
    """Runs of the sampler in all cases; and distances, of what is right or wrong without a formula."""
    offered = inspect.signature(f).parameters
    cases = [(*case, None) for case in CASES] + [(*case, times) for *case, times in GIVEN if "times" in offered]
    for schedule, steps, shape, times in cases:
        chosen = {"steps": steps} | ({} if times is None else {"times": times})
        for clip in clips:
            asked, seen = Asked(), []
            x = 2 * torch.randn(shape, generator=_seed(steps), dtype=torch.float64)  # beyond any clip
            given, beta = x.clone(), schedule.beta.clone()
            told = {"on_step": lambda *new: seen.append(new)} if "on_step" in offered else {}  # noqa: B023
            end = f(asked, schedule, given, clip=clip, **chosen, **options, **told)
            yield fault(not (torch.equal(given, x) and torch.equal(schedule.beta, beta)))
            yield fault(asked.wrong or not asked.t)
            yield Replay(schedule, clip, asked, x, end, seen, times)
            again = f(Asked(), schedule, given, clip=clip, **chosen, **options)
            yield fault(not torch.equal(torch.nan_to_num(again), torch.nan_to_num(end)))
    if True in clips:
        x = torch.randn(4, 1, 2, 3, generator=_seed(1))
        yield fault(f(Asked(), LONG, x, steps=5, clip=True, **options).dtype != torch.float32)
    for steps in (0, 5):
        yield accepted(lambda: f(Asked(), SHORT, x.double(), steps=steps, clip=True, **options))  # noqa: B023


def follows(run: Replay, times: list[int], calls: list[int], expected: list[Tensor]) -> Iterator[float]:
    """Distances of the times at which the network was asked, and of the states, from what is expected."""
    if run.asked.t != times:
        note(math.inf, f"The network was asked at t = {run.asked.t}, where {times} is expected.")
        yield math.inf
        return
    yield off(run.asked.x[0], run.start)
    for got, exact in zip(run.states(calls), expected, strict=True):
        yield off(got, exact, exact.abs().mean())


def told(run: Replay, times: list[int], calls: list[int]) -> Iterator[float]:
    """Distances of what on_step was given, where it was taken: the new time, the state and the estimate."""
    if run.steps:
        yield fault([s for s, _, _ in run.steps] != times)
        if len(run.steps) != len(times):
            return
        for (_, x, x_0), state, k in zip(run.steps, run.states(calls), calls, strict=True):
            yield off(x, state)
            yield off(x_0, run.clean(k), run.clean(k).abs().mean())


@check("8.5", "DDIM sampling", "implementation", "each step from what the network was asked, and the law of the noise")
@until(15)
def ddim_sampling(f):
    """f(eps_model, schedule, x_T, steps=, eta=, clip=, generator=) returns x_0.

    What is no matter of chance counts as |z| = 5 if it is off by 1e-9, relative to the mean size.
    """
    for run in replays(f, eta=0.0, generator=None):
        if not isinstance(run, Replay):
            yield NEVER if run else 0.0
            continue
        grid = run.grid(len(run.asked.t))
        calls = range(len(run.asked.t))
        expected = [run.jump(k, s) for k, s in zip(calls, grid[1:], strict=False)]
        for distance in (*follows(run, grid[:-1], calls, expected), *told(run, grid[1:], calls)):
            yield min(5e9 * distance, NEVER)
    for eta in (-0.1, 1.1, math.nan):
        yield NEVER * bool(accepted(lambda: f(Asked(), SHORT, batches()[0].x_t, steps=2, eta=eta, clip=True)))  # noqa: B023
    yield from _steps_are_counted(f)
    for clip, eta in ((False, 1.0), (True, 0.6)):

        def standardised(n, generator):
            """The noise of the first three of four steps, as three images."""
            asked = Asked()
            x = torch.randn(-(-n // 3), 2, 2, 3, generator=_seed(7), dtype=torch.float64)
            end = f(asked, SHORT, x, steps=4, eta=eta, clip=clip, generator=generator)  # noqa: B023
            run, drawn = Replay(SHORT, clip, asked, x, end, []), []  # noqa: B023
            for k, (t, s) in enumerate(((4, 3), (3, 2), (2, 1))):
                fresh = eta**2 * left_open(SHORT, s, t)  # noqa: B023
                mean = run.scale[s] * run.clean(k) + (run.std[s] ** 2 - fresh).sqrt() * run.noise(k)
                drawn.append((asked.x[k + 1] - mean) / fresh**0.5)
            return torch.cat(drawn)[:n]

        yield noise_score(standardised)
    several = [_seed(i) for i in range(4)]
    x = batches()[0].x_t
    with torch.random.fork_rng(devices=[]):  # without a generator torch's own draws, anew in each run
        torch.manual_seed(7)
        first, second = (f(Asked(), SHORT, x, steps=3, eta=1.0, clip=False, generator=None) for _ in range(2))
        torch.manual_seed(7)
        again = f(Asked(), SHORT, x, steps=3, eta=1.0, clip=False, generator=None)
    yield NEVER * fault(torch.equal(first, second) or not torch.equal(first, again))
    together = f(Asked(), SHORT, x, steps=3, eta=1.0, clip=True, generator=several)
    alone = f(Asked(), SHORT, x[2:3], steps=3, eta=1.0, clip=True, generator=[_seed(2)])
    yield 5e9 * off(together[2:3], alone)
    asked = Asked()
    end = f(asked, SHORT, x, steps=3, eta=1.0, clip=True, generator=_seed(0))
    yield min(5e9 * off(end, Replay(SHORT, True, asked, x, end, []).clean(-1)), NEVER)  # no noise in the last step


def _steps_are_counted(f):
    for schedule, steps, _ in CASES:
        asked = Asked()
        f(
            asked,
            schedule,
            torch.zeros(1, 1, 1, 2, dtype=torch.float64),
            steps=steps,
            eta=0.0,
            clip=True,
            generator=None,
        )
        yield NEVER * (len(asked.t) != steps)


def _estimate(eps_model, schedule, x, t, clip):
    a = float(schedule.alpha_bar[t])
    x_0 = (x - (1 - a) ** 0.5 * eps_model(x, torch.full((len(x),), t))) / a**0.5
    return x_0.clamp(-1, 1) if clip else x_0


def _walk(eps_model, schedule, x, times, clip, move, on_step=None, ask=lambda t, s: t):
    for t, s in pairwise(times):
        x_0_hat = _estimate(eps_model, schedule, x, ask(t, s), clip)
        x = move(x_0_hat, x, t, s)
        if on_step:
            on_step(s, x, x_0_hat)
    return x


def _ddim(eps_model, schedule, x, steps, eta, clip, generator, times=None, on_step=None, **options):
    _refused(schedule.T, steps)
    if not 0 <= eta <= 1:
        raise ValueError("eta")
    times = times or nearest(schedule.T, steps)

    def move(x_0_hat, x, t, s):
        return _step(schedule, x_0_hat, x, t, s, eta, generator)

    return _walk(eps_model, schedule, x, times, clip, options.pop("move", move), on_step, **options)


@ddim_sampling.wrong(
    "the “leading” grid: the network is never asked at T",
    seen="huggingface/diffusers issues 2585 and 12588; CompVis/latent-diffusion issue 136",
    idea="time",
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    _refused(schedule.T, steps)
    times = [1 + i * (schedule.T // steps) for i in range(steps - 1, -1, -1)] + [0]
    return _ddim(eps_model, schedule, x_T, steps, eta, clip, generator, times)


@ddim_sampling.wrong(
    "a step goes to t − ⌊T/n⌋, and the next call is made elsewhere",
    seen="huggingface/diffusers issues 11347 and 9261",
    idea="time",
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    stride = schedule.T // max(steps, 1)

    def move(x_0_hat, x, t, s):
        return _step(schedule, x_0_hat, x, t, max(t - stride, 0) if s else 0, eta, generator)

    return _ddim(eps_model, schedule, x_T, steps, eta, clip, generator, move=move)


@ddim_sampling.wrong(
    "the last step goes to ᾱ_1, not to 1",
    seen="lllyasviel/ControlNet PR 587, Stability-AI/stablediffusion PR 345",
    idea="time",
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    def move(x_0_hat, x, t, s):
        return _step(schedule, x_0_hat, x, t, s, eta, generator, at=max(s, 1))

    return _ddim(eps_model, schedule, x_T, steps, eta, clip, generator, move=move)


@ddim_sampling.wrong(
    "ε is not recomputed from the clipped x_0_hat",
    seen="the default of huggingface/diffusers, use_clipped_model_output=False: a convention, not ours",
    idea="exchange",
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    def move(x_0_hat, x, t, s):
        var, a = _var(schedule, t, s, eta), float(schedule.alpha_bar[s])
        x_s = a**0.5 * (x_0_hat.clamp(-1, 1) if clip else x_0_hat)
        x_s = x_s + max(1 - a - var, 0) ** 0.5 * _noise_in(schedule, x_0_hat, x, t)
        return x_s + var**0.5 * _like(x, generator) if var > 0 else x_s

    return _ddim(eps_model, schedule, x_T, steps, eta, False, generator, move=move)


@ddim_sampling.wrong(
    "the network is asked at s, where the step goes", seen="no public source: a plausible slip", idea="time"
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    return _ddim(eps_model, schedule, x_T, steps, eta, clip, generator, ask=lambda t, s: max(s, 1))


@ddim_sampling.wrong("the network is told t − 1", seen="of this kind: udlbook/udlbook, notebook 18.3", idea="time")
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    return _ddim(lambda x, t: eps_model(x, (t - 1).clamp(min=1)), schedule, x_T, steps, eta, clip, generator)


@ddim_sampling.wrong(
    "x_0_hat is never clipped", seen="no public source: the argument, left out of the call", idea="edge"
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    return _ddim(eps_model, schedule, x_T, steps, eta, False, generator)


@ddim_sampling.wrong("x_s is clipped, too", seen="no public source: noisy images are no images in [−1, 1]", idea="edge")
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    def move(x_0_hat, x, t, s):
        x = _step(schedule, x_0_hat, x, t, s, eta, generator)
        return x.clamp(-1, 1) if clip else x

    return _ddim(eps_model, schedule, x_T, steps, eta, clip, generator, move=move)


@ddim_sampling.wrong("η is forgotten", seen="no public source: a sampler that is always deterministic", idea="term")
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    return _ddim(eps_model, schedule, x_T, steps, min(eta, 0.0), clip, generator)


@ddim_sampling.wrong(
    "the same noise in every step", seen="no public source: a generator that is made in the loop", idea="noise"
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    state = generator.get_state() if isinstance(generator, torch.Generator) else None

    def move(x_0_hat, x, t, s):
        if state is not None:
            generator.set_state(state)
        return _step(schedule, x_0_hat, x, t, s, eta, generator)

    return _ddim(eps_model, schedule, x_T, steps, eta, clip, generator, move=move)


@ddim_sampling.wrong(
    "a call too many, below t = 1",
    seen="huggingface/diffusers 0.42.1, “trailing” for T = 100 and 29 steps",
    idea="time",
)
def _(eps_model, schedule, x_T, *, steps, eta, clip, generator=None):
    x_0 = _ddim(eps_model, schedule, x_T, steps, eta, clip, generator)
    eps_model(x_0, torch.zeros(len(x_0), dtype=torch.long))
    return x_0


DATA = [(np.array([0.35, 0.65]), np.array([-0.8, 0.5]), np.array([0.02, 0.05]))]
DATA += [(np.array([0.2, 0.5, 0.3]), np.array([-3.0, 0.0, 2.0]), np.array([0.5, 0.1, 0.9]))]


@check(
    "8.6", "probability-flow ODE", "identity", "quantiles that stay quantiles, and a turned Gaussian's root", to=1e-7
)
@until(1e-6)
def probability_flow(f):
    """f(schedule, score, t) returns dy/dσ̂ of y = x_t/√ᾱ_t, from the score of q(x_t)."""
    for schedule, times in ((SHORT, (1, 2, 3, 4)), (LONG, (1, 10, 300, 1000)), (ONE, (1,)), (STRONG, (1, 3))):
        scale, var = walk(schedule)
        for t in times:
            ratio = float(var[t].sqrt() / scale[t])
            for weight, mean, data_var in DATA:
                y = np.linspace(-1.5, 1.5, 7) * (1 + ratio)

                def total(y, width, of):
                    return (weight * of(y[:, None], mean, (data_var + width**2) ** 0.5)).sum(1)  # noqa: B023

                step = 1e-3 * (0.1 + ratio)  # where F(y; σ̂) stays what it is, y moves by −(∂F/∂σ̂)/(∂F/∂y)
                in_width = sum(
                    c * total(y, ratio + k * step, stats.norm.cdf)
                    for k, c in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
                )
                density = total(y, ratio, stats.norm.pdf)
                exact = -in_width / step / density
                spread = data_var + ratio**2
                part = weight * stats.norm.pdf(y[:, None], mean, spread**0.5)
                score = -(part * (y[:, None] - mean) / spread).sum(1) / part.sum(1) / float(scale[t])
                yield disturbs(f, schedule, torch.from_numpy(score), t)
                yield off(f(schedule, torch.from_numpy(score), t), exact, 1 + np.abs(exact))
    turn = linalg.expm(np.array([[0.0, -0.7], [0.7, 0.0]]))
    data = turn @ np.diag([0.5, 0.02]) @ turn.T  # y(σ̂) = (C + σ̂²)^½·y*: differentiate the root
    fixed = np.array([0.4, -1.1])
    for t in (1, 3, 4):
        scale, var = (float(v[t]) for v in walk(SHORT))
        ratio = (var**0.5) / scale
        root = [linalg.sqrtm(data + (ratio + k * 1e-3) ** 2 * np.eye(2)) for k in (-2, -1, 0, 1, 2)]
        exact = (root[0] / 12 - root[1] * 2 / 3 + root[3] * 2 / 3 - root[4] / 12) @ fixed / 1e-3
        score = -np.linalg.solve(data + ratio**2 * np.eye(2), root[2] @ fixed) / scale
        yield off(f(SHORT, torch.from_numpy(score), t), exact)


@probability_flow.states
def _(schedule, score, t):
    return -((1 - schedule.alpha_bar[t]) ** 0.5) * score


@probability_flow.wrong(
    "twice as fast: the drift of the reverse diffusion, without its noise",
    seen="no public source: the step of Song et al. 2021 (SDE paper), Eq. 6, with its noise left out",
    idea="term",
)
def _(schedule, score, t):
    return -2 * ((1 - schedule.alpha_bar[t]) ** 0.5) * score


@probability_flow.wrong(
    "σ̂ in the place of √(1 − ᾱ)", seen="no public source: the score of x_t taken for that of y", idea="exchange"
)
def _(schedule, score, t):
    a = schedule.alpha_bar[t]
    return -(((1 - a) / a) ** 0.5) * score


@probability_flow.wrong("the wrong sign: upwards in time", seen="no public source: a plausible slip", idea="sign")
def _(schedule, score, t):
    return ((1 - schedule.alpha_bar[t]) ** 0.5) * score


@probability_flow.wrong("1 − ᾱ without its root", seen="no public source: dy/d(σ̂²) and dy/dσ̂ mixed up", idea="power")
def _(schedule, score, t):
    return -(1 - schedule.alpha_bar[t]) * score


@check("8.7", "DDIM is Euler's method", "identity", "the jump of the same image and noise", to=1e-9)
@until(1e-8)
def euler(f):
    """f(schedule, x_t, eps, t, s) returns x_s, for s >= 1."""
    for batch in batches():
        scale, var = walk(batch.schedule)
        for i, t in enumerate(batch.t.tolist()):
            for s in sorted({max(1, t - 1), max(1, t // 2), 1} - {t}):
                x_0, eps, x_t = (v[i : i + 1] for v in (batch.x_0, batch.eps, batch.x_t))
                exact = scale[s] * x_0 + var[s].sqrt() * eps
                yield disturbs(f, batch.schedule, x_t, eps, t, s)
                blown_up = float(scale[s] / scale[t])  # by so much rounding in x_t
                yield off(f(batch.schedule, x_t, eps, t, s), exact, blown_up * exact.abs().mean())


def _sigma(schedule, t):
    a = float(schedule.alpha_bar[t])
    return ((1 - a) / a) ** 0.5


def _root(schedule, t):
    return float(schedule.alpha_bar[t]) ** 0.5


@euler.states
def _(schedule, x_t, eps, t, s):
    y = x_t / _root(schedule, t) + (_sigma(schedule, s) - _sigma(schedule, t)) * eps
    return _root(schedule, s) * y


@euler.wrong(
    "√(1 − ᾱ) in the place of σ̂", seen="no public source: the noise in x taken for the noise in y", idea="exchange"
)
def _(schedule, x_t, eps, t, s):
    move = (1 - float(schedule.alpha_bar[s])) ** 0.5 - (1 - float(schedule.alpha_bar[t])) ** 0.5
    return _root(schedule, s) * (x_t / _root(schedule, t) + move * eps)


@euler.wrong(
    "x is not divided by √ᾱ", seen="no public source: a plausible slip (variance-exploding code, copied)", idea="term"
)
def _(schedule, x_t, eps, t, s):
    return x_t + (_sigma(schedule, s) - _sigma(schedule, t)) * eps


@euler.wrong("σ̂² in the place of σ̂", seen="no public source: SNR read as a ratio of deviations", idea="power")
def _(schedule, x_t, eps, t, s):
    move = _sigma(schedule, s) ** 2 - _sigma(schedule, t) ** 2
    return _root(schedule, s) * (x_t / _root(schedule, t) + move * eps)


@euler.wrong("the step runs upwards", seen="no public source: s and t swapped in the difference", idea="sign")
def _(schedule, x_t, eps, t, s):
    y = x_t / _root(schedule, t) + (_sigma(schedule, t) - _sigma(schedule, s)) * eps
    return _root(schedule, s) * y


@euler.wrong("√ᾱ_t at the end, not √ᾱ_s", seen="no public source: an index that was not moved", idea="time")
def _(schedule, x_t, eps, t, s):
    y = x_t / _root(schedule, t) + (_sigma(schedule, s) - _sigma(schedule, t)) * eps
    return _root(schedule, t) * y


@check("8.8", "order of a solver", "identity", "solutions with a known error C·hᵖ", to=1e-9)
@until(1e-8)
def order(f):
    """f(coarse, middle, fine) returns the order p, from solutions with steps h, h/2 and h/4."""
    random = np.random.default_rng(0)
    for p in (1.0, 2.0, 3.0, 1.5):
        for shape, size in (((5, 2), 1.0), ((7,), 1e-4), ((1,), -300.0), ((3, 1, 2), 40.0)):
            x, error = (torch.from_numpy(random.standard_normal(shape)) for _ in range(2))
            error = error - error.mean() if len(shape) == 3 else error  # errors that cancel in a mean
            given = [abs(size) * x + size * error * h**p for h in (1.0, 0.5, 0.25)]
            yield disturbs(f, *given)
            yield off(float(f(*given)), p)


@order.states
def _(coarse, middle, fine):
    return math.log2(float((coarse - middle).norm() / (middle - fine).norm()))


@order.wrong(
    "the finest solution taken for the exact one",
    seen="no public source: it makes every order look higher",
    idea="exchange",
)
def _(coarse, middle, fine):
    return math.log2(float((coarse - fine).norm() / (middle - fine).norm()))


@order.wrong("a natural logarithm", seen="no public source: a plausible slip", idea="exchange")
def _(coarse, middle, fine):
    return math.log(float((coarse - middle).norm() / (middle - fine).norm()))


@order.wrong(
    "squares without a root", seen="no public source: mean squared differences: every order is doubled", idea="power"
)
def _(coarse, middle, fine):
    return math.log2(float((coarse - middle).square().mean() / (middle - fine).square().mean()))


@order.wrong("means of signed differences", seen="no public source: errors of both signs cancel", idea="exchange")
def _(coarse, middle, fine):
    first, second = ((a - b).mean().abs() + 1e-12 for a, b in ((coarse, middle), (middle, fine)))
    return math.log2(float(first / second))


@check("8.9", "Heun sampling", "implementation", "the trapezoid rule for the slopes that the network gave", to=1e-9)
@until(1e-8)
def heun(f):
    """f(eps_model, schedule, x_T, steps=, clip=) returns x_0; two calls a step, and one in the last."""
    for run in replays(f):
        if not isinstance(run, Replay):
            yield run
            continue
        n = (len(run.asked.t) + 1) // 2
        grid = run.grid(n)
        times = [grid[0], *(t for s in grid[1:-1] for t in (s, s))]
        calls = list(range(0, len(times), 2))
        if run.asked.t == times:
            expected = []
            for k, s in zip(calls[:-1], grid[1:], strict=False):
                yield off(run.asked.x[k + 1], run.jump(k, s), run.jump(k, s).abs().mean())
                slopes = torch.stack([run.noise(k), run.noise(k + 1)], -1)
                moved = torch.trapezoid(slopes, slopes.new_tensor([run.ratio(run.asked.t[k]), run.ratio(s)]))
                expected.append(run.scale[s] * (run.asked.x[k] / run.scale[run.asked.t[k]] + moved))
            expected.append(run.clean(-1))
        yield from follows(run, times, calls, expected if run.asked.t == times else [])
        yield from told(run, grid[1:], calls)
    yield from _calls(f, lambda steps: 2 * steps - 1)


def _calls(f, count):
    for schedule, steps, _ in CASES:
        asked = Asked()
        f(asked, schedule, torch.zeros(1, 1, 1, 2, dtype=torch.float64), steps=steps, clip=True)
        yield fault(len(asked.t) != count(steps))


def _solver(eps_model, schedule, x, steps, clip, correct, last=lambda x_0_hat, x, t: x_0_hat):
    """Euler's steps, and what `correct` makes of each."""
    _refused(schedule.T, steps)
    times = nearest(schedule.T, steps)
    for t, s in pairwise(times):
        x_0_hat = _estimate(eps_model, schedule, x, t, clip)
        if s == 0:
            return last(x_0_hat, x, t)
        end = _step(schedule, x_0_hat, x, t, s)
        x = correct(x, end, _noise_in(schedule, x_0_hat, x, t), t, s)
    return x


def _second(eps_model, schedule, end, s, clip):
    return _noise_in(schedule, _estimate(eps_model, schedule, end, s, clip), end, s)


def _move(schedule, x, slope, t, s):
    return _root(schedule, s) * (x / _root(schedule, t) + (_sigma(schedule, s) - _sigma(schedule, t)) * slope)


@heun.wrong(
    "the slope at the start alone", seen="no public source: Euler's method, with a call that is not used", idea="term"
)
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        _second(eps_model, schedule, end, s, clip)
        return end

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@heun.wrong("the slope at the end alone", seen="no public source: the average forgotten", idea="term")
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        return _move(schedule, x, _second(eps_model, schedule, end, s, clip), t, s)

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@heun.wrong("the second call at t, not at s", seen="no public source: an index that was not moved", idea="time")
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        return _move(schedule, x, (slope + _second(eps_model, schedule, end, t, clip)) / 2, t, s)

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@heun.wrong(
    "the second call at x_t, not where Euler's step ends", seen="no public source: a plausible slip", idea="exchange"
)
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        return _move(schedule, x, (slope + _second(eps_model, schedule, x, s, clip)) / 2, t, s)

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@heun.wrong("the average in x, not in x/√ᾱ", seen="no public source: √ᾱ_s forgotten in the correction", idea="term")
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        change = _second(eps_model, schedule, end, s, clip) - slope
        return end + (_sigma(schedule, s) - _sigma(schedule, t)) * change / 2

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@heun.wrong("the sum of the slopes, not halved", seen="no public source: a plausible slip", idea="term")
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        return _move(schedule, x, slope + _second(eps_model, schedule, end, s, clip), t, s)

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@heun.wrong(
    "second order in the last step, too, from a call at t = 1",
    seen="of this kind: huggingface/diffusers issue 9007, where the last step has σ = 0",
    idea="edge",
)
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        return _move(schedule, x, (slope + _second(eps_model, schedule, end, s, clip)) / 2, t, s)

    def last(x_0_hat, x, t):
        slope = (_noise_in(schedule, x_0_hat, x, t) + _second(eps_model, schedule, x_0_hat, 1, clip)) / 2
        return x / _root(schedule, t) - _sigma(schedule, t) * slope

    return _solver(eps_model, schedule, x_T, steps, clip, correct, last)


@heun.wrong(
    "the second estimate is not clipped",
    seen="no public source: the argument, left out of one of two calls",
    idea="edge",
)
def _(eps_model, schedule, x_T, *, steps, clip):
    def correct(x, end, slope, t, s):
        return _move(schedule, x, (slope + _second(eps_model, schedule, end, s, False)) / 2, t, s)

    return _solver(eps_model, schedule, x_T, steps, clip, correct)


@check(
    "8.10",
    "DPM-Solver++ sampling",
    "implementation",
    "a line fitted through two estimates, and the jump from its middle",
    to=1e-9,
)
@until(1e-8)
def dpm_solver(f):
    """f(eps_model, schedule, x_T, steps=, clip=) returns x_0; one call a step."""
    for run in replays(f):
        if not isinstance(run, Replay):
            yield run
            continue
        n = len(run.asked.t)
        grid = run.grid(n)
        expected = []
        if run.asked.t == grid[:-1]:
            height = [-math.log(run.ratio(t)) for t in grid[:-1]]
            for k, s in enumerate(grid[1:]):
                middle = run.clean(k)
                if k > 0 and s > 0:
                    line = np.polyfit(height[k - 1 : k + 1], [run.clean(j).flatten().numpy() for j in (k - 1, k)], 1)
                    middle = torch.from_numpy(line[0] * (height[k] + height[k + 1]) / 2 + line[1]).reshape(middle.shape)
                expected.append(run.jump(k, s, middle))
        yield from follows(run, grid[:-1], range(n), expected)
        yield from told(run, grid[1:], range(n))
    yield from _calls(f, lambda steps: steps)


def _multistep(eps_model, schedule, x, steps, clip, factor=None, last=False, middle=None, height=None):
    _refused(schedule.T, steps)
    height = height or (lambda t: -math.log(_sigma(schedule, max(t, 1))))
    factor = factor or (lambda h, before: h / (2 * before))
    times, before = nearest(schedule.T, steps), None
    for t, s in pairwise(times):
        x_0_hat = point = _estimate(eps_model, schedule, x, t, clip)
        if before is not None and (s > 0 or last):
            change = factor(height(s) - height(t), height(t) - height(before[0])) * (x_0_hat - before[1])
            point = x_0_hat + change if middle is None else middle(x_0_hat, change)
        x = _step(schedule, point, x, t, s)
        before = t, x_0_hat
    return x


@dpm_solver.wrong("first order throughout: DDIM", seen="no public source: a history that is never filled", idea="state")
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, factor=lambda h, before: 0.0)


@dpm_solver.wrong("h'/h in the place of h/h'", seen="no public source: r and 1/r mixed up", idea="sign")
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, factor=lambda h, before: before / (2 * h))


@dpm_solver.wrong(
    "the line at the end of the step, not in its middle", seen="no public source: the ½ is missing", idea="term"
)
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, factor=lambda h, before: h / before)


@dpm_solver.wrong(
    "always ½: as if all steps were equal", seen="no public source: Adams and Bashforth's 3/2 and −1/2", idea="exchange"
)
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, factor=lambda h, before: 0.5)


@dpm_solver.wrong("widths in t, not in λ", seen="no public source: a plausible slip", idea="exchange")
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, height=float)


@dpm_solver.wrong(
    "λ = log(ᾱ/(1 − ᾱ)) of one, ½ of it of the other", seen="no public source: SNR for its root, once", idea="power"
)
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, factor=lambda h, before: h / before / 4)


@dpm_solver.wrong(
    "second order in the last step, with σ_1 for 0",
    seen="huggingface/diffusers issue 9007 and PR 9104; crowsonkb/k-diffusion issue 43",
    idea="edge",
)
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, last=True, factor=lambda h, b: max(h, 0.1) / (2 * b))


@dpm_solver.wrong("the line is clipped, too", seen="no public source: a plausible slip", idea="edge")
def _(eps_model, schedule, x_T, *, steps, clip):
    def middle(x_0_hat, change):
        return (x_0_hat + change).clamp(-1, 1) if clip else x_0_hat + change

    return _multistep(eps_model, schedule, x_T, steps, clip, middle=middle)


@dpm_solver.wrong("the change with the wrong sign", seen="no public source: a plausible slip", idea="sign")
def _(eps_model, schedule, x_T, *, steps, clip):
    return _multistep(eps_model, schedule, x_T, steps, clip, middle=lambda x_0_hat, change: x_0_hat - change)


@check("8.11", "DDIM inversion", "implementation", "each step from what the network was asked, upwards", to=1e-9)
@until(1e-8)
def inversion(f):
    """f(eps_model, schedule, x_0, steps=, clip=) returns x_T; the network is asked at the s that a step comes from."""
    for run in replays(f):
        if not isinstance(run, Replay):
            yield run
            continue
        n = len(run.asked.t)
        grid = run.grid(n)[::-1]
        expected = []
        if run.asked.t == [1, *grid[1:-1]]:
            first = grid[1]  # a clean image is its own estimate, and its noise is what the network says
            expected = [run.scale[first] * run.asked.x[0] + run.std[first] * run.asked.eps[0]]
            expected += [run.jump(k, t) for k, t in enumerate(grid[2:], start=1)]
        yield from follows(run, [1, *grid[1:-1]], range(n), expected)
        if run.steps:
            yield fault([t for t, _, _ in run.steps] != grid[1:])
            for k, ((_, x, x_0), state) in enumerate(zip(run.steps, run.states(range(n)), strict=True)):
                yield off(x, state)
                exact = run.clean(k) if k else run.start
                yield off(x_0, exact, exact.abs().mean())
    yield from _calls(f, lambda steps: steps)


def _upwards(eps_model, schedule, x, steps, clip, ask=lambda s, t: max(s, 1), at=lambda s: s, times=None):
    _refused(schedule.T, steps)
    times = times or nearest(schedule.T, steps)[::-1]
    for s, t in pairwise(times):
        eps, k = eps_model(x, torch.full((len(x),), ask(s, t))), at(s)
        x_0_hat = x
        if k:
            x_0_hat = (x - (1 - float(schedule.alpha_bar[k])) ** 0.5 * eps) / _root(schedule, k)
            if clip:
                x_0_hat = x_0_hat.clamp(-1, 1)
                eps = _noise_in(schedule, x_0_hat, x, k)
        x = _root(schedule, t) * x_0_hat + (1 - float(schedule.alpha_bar[t])) ** 0.5 * eps
    return x


@inversion.wrong(
    "the network is asked at t, where the step goes",
    seen="google/prompt-to-prompt issue 79; huggingface/diffusers issue 10695",
    idea="time",
)
def _(eps_model, schedule, x_0, *, steps, clip):
    return _upwards(eps_model, schedule, x_0, steps, clip, ask=lambda s, t: t)


@inversion.wrong("told the number of the step, not its time", seen="Stability-AI/stablediffusion PR 226", idea="time")
def _(eps_model, schedule, x_0, *, steps, clip):
    grid = nearest(schedule.T, max(1, min(steps, schedule.T)))[::-1]
    return _upwards(eps_model, schedule, x_0, steps, clip, ask=lambda s, t: max(grid.index(s), 1))


@inversion.wrong("x_0 is taken for x_1", seen="no public source: a table whose first entry is t = 1", idea="time")
def _(eps_model, schedule, x_0, *, steps, clip):
    return _upwards(eps_model, schedule, x_0, steps, clip, at=lambda s: max(s, 1))


@inversion.wrong(
    "the estimate is taken at t, not at s", seen="huggingface/diffusers PR 5832: t and t − Δ mixed up", idea="time"
)
def _(eps_model, schedule, x_0, *, steps, clip):
    _refused(schedule.T, steps)
    grid = nearest(schedule.T, steps)[::-1]
    return _upwards(eps_model, schedule, x_0, steps, clip, at=lambda s: grid[grid.index(s) + 1] if s else 0)


@inversion.wrong(
    "the grid from T down", seen="openai/improved-diffusion issue 80: the order was not turned round", idea="sign"
)
def _(eps_model, schedule, x_0, *, steps, clip):
    return _upwards(eps_model, schedule, x_0, steps, clip, times=[*nearest(schedule.T, steps)[:-1], schedule.T])


@inversion.wrong("never clipped", seen="no public source: the argument, left out of the call", idea="edge")
def _(eps_model, schedule, x_0, *, steps, clip):
    return _upwards(eps_model, schedule, x_0, steps, False)


@check("8.12", "spherical interpolation", "implementation", "a rotation from one end towards the other", to=1e-9)
@until(1e-8)
def spherical(f):
    """f(x, y, weight) returns the mixture of each image of x with that of y; weight is a number or (B,)."""
    random = np.random.default_rng(0)
    for shape, size, apart in (
        ((3, 3, 3, 3), 1.0, 1.0),
        ((4, 1, 2, 5), 3.0, 1.0),
        ((2, 7), 1e-3, 1.0),
        ((3, 2, 2), 1.0, 0.02),  # nearly parallel: where a cosine has lost its digits
        ((2, 1, 3, 2), 1.0, 3e-3),
        ((2, 1, 3, 2), 1.0, 1e-4),
        ((1, 2), 1.0, 2.6),
        ((2, 5), 1.0, 3.138),  # nearly opposite
    ):
        x = size * random.standard_normal(shape)
        y = size * random.standard_normal(shape) * np.linspace(0.5, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        if apart != 1.0:
            y = _turned(x, random.standard_normal(shape), apart) * 1.5
        for weight in (0.5, 0.0, 1.0, 0.2, np.linspace(0.1, 0.8, shape[0]), -0.2, 1.3):
            weights = np.broadcast_to(weight, shape[:1])
            exact = np.stack([_rotated(*end, w) for *end, w in zip(x, y, weights, strict=True)])
            given = torch.from_numpy(x), torch.from_numpy(y)
            weight = torch.from_numpy(weight) if isinstance(weight, np.ndarray) else weight
            yield disturbs(f, *given, weight)
            yield off(f(*given, weight), exact, np.abs(exact).mean())
    x = torch.from_numpy(random.standard_normal((3, 1, 2, 2)))
    for factor in (1.0, 2.0):  # parallel
        yield off(f(x, factor * x, 0.3), (0.7 + 0.3 * factor) * x)
    y = torch.from_numpy(random.standard_normal((3, 1, 2, 2)))
    mixed = torch.cat([x[:1], y[1:]])  # one parallel pair among others
    yield off(f(x, mixed, 0.3), torch.cat([x[:1], f(x[1:], y[1:], 0.3)]))
    yield slope_off(lambda a, b: f(a, b, 0.3), x, y, size=1e-3)
    yield fault(f(x.float(), x.flip(0).float(), 0.3).dtype != torch.float32)
    yield accepted(lambda: f(x, -2 * x, 0.5))
    yield accepted(lambda: f(x, x[:2], 0.5))


def _plane(x, y):
    """Two unit vectors at right angles that span x and y, with y on the second one's side; and the angle."""
    a = x.ravel() / np.linalg.norm(x)
    b = y.ravel()
    for _ in range(2):  # once more: where x and y are nearly parallel, rounding leaves a share of a
        b = b - (a @ b) * a
        b = b / np.linalg.norm(b)
    return a, b, math.atan2(b @ y.ravel(), a @ y.ravel())


def _turned(x, towards, angle):
    return np.stack(
        [(_turn(*_plane(v, w)[:2], angle) @ v.ravel()).reshape(v.shape) for v, w in zip(x, towards, strict=True)]
    )


def _turn(a, b, angle):
    return linalg.expm(angle * (np.outer(b, a) - np.outer(a, b)))


def _rotated(x, y, weight):
    """The turned direction, as a mixture of the two ends' directions, each of which brings its end's length."""
    a, b, angle = _plane(x, y)
    ends = np.stack([x.ravel() / np.linalg.norm(x), y.ravel() / np.linalg.norm(y)], 1)
    shares = np.linalg.lstsq(np.stack([a, b]) @ ends, np.stack([a, b]) @ _turn(a, b, weight * angle) @ a, rcond=None)[0]
    return shares[0] * x + shares[1] * y


def _arc(x, y, weight, angle):
    w = images(torch.as_tensor(weight, dtype=x.dtype).expand(len(x))).reshape(-1, *[1] * (x.ndim - 1))
    angle = angle.reshape(-1, *[1] * (x.ndim - 1))
    return (torch.sin((1 - w) * angle) * x + torch.sin(w * angle) * y) / torch.sin(angle)


def _cosine(x, y):
    return torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1))


@spherical.wrong(
    "on a straight line", seen="no public source: the middle of two noises has half the variance", idea="exchange"
)
def _(x, y, weight):
    w = torch.as_tensor(weight, dtype=x.dtype).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
    return (1 - w) * x + w * y


@spherical.wrong(
    "one angle for the whole batch", seen="AUTOMATIC1111/stable-diffusion-webui issue 3068: dot.mean()", idea="axis"
)
def _(x, y, weight):
    return _arc(x, y, weight, torch.acos(_cosine(x, y)).mean().expand(len(x)))


@spherical.wrong(
    "the ends swapped where they are nearly parallel",
    seen="AUTOMATIC1111/stable-diffusion-webui issue 3068",
    idea="exchange",
)
def _(x, y, weight):
    cosine = _cosine(x, y)
    w = torch.as_tensor(weight, dtype=x.dtype).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
    near = (cosine > 0.9995).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(near, w * x + (1 - w) * y, _arc(x, y, weight, torch.acos(cosine.clamp(-1, 0.9999))))


@spherical.wrong(
    "the cosine of vectors that were not normalised", seen="no public source: a plausible slip", idea="term"
)
def _(x, y, weight):
    return _arc(x, y, weight, torch.acos((x * y).flatten(1).sum(1).clamp(-0.999, 0.999)))


@spherical.wrong(
    "the result has length 1", seen="NVlabs/stylegan2-ada-pytorch issue 284 asks why it is normalised", idea="term"
)
def _(x, y, weight):
    mixed = _arc(x, y, weight, torch.acos(_cosine(x, y)))
    return mixed / mixed.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


@spherical.wrong("weight and 1 − weight swapped", seen="no public source: a plausible slip", idea="exchange")
def _(x, y, weight):
    return _arc(y, x, weight, torch.acos(_cosine(x, y)))
