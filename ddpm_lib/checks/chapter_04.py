"""The checks of chapter 4: the posterior. The independent route is Bayes' rule, multiplied out on a grid of x_{t−1}.

Here too: what all checks of functions of (schedule, images, t) share, schedules and batches in which slips show.
"""

import copy
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.checks import apart, check, largest
from ddpm_lib.checks.chapter_01 import log_normal, normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, walk
from ddpm_lib.checks.guard import Watched, gradient_note, until
from ddpm_lib.diffusion.schedule import Schedule

ONE, TWO = Schedule([0.3]), Schedule([0.2, 0.6])
# Where an ε or a clamp "for stability" would change the result: hardly any noise (powers of two: ᾱ is exact), and
# hardly anything but noise. (TWO and FAINT are as long: a table that is kept for a T is the wrong one.)
FAINT, STRONG = Schedule([2.0**-44, 2.0**-45]), Schedule([0.5, 1 - 2.0**-40, 0.3])
UNIT = 2.0**-22  # the size of FAINT's noise


def off(got, exact, unit=1.0) -> float:
    """`apart`, in units: one, or one for each entry."""
    got, exact, unit = (v.detach() if isinstance(v, Tensor) else torch.tensor(np.array(v)) for v in (got, exact, unit))
    return apart(got, exact, unit)


def disturbs(f, *given) -> float:
    """0, or infinity where f changes what it is given, or answers otherwise when it is asked again."""
    watched = Watched(f)
    watched(*given)
    return watched.fault


def takes(f, count: int) -> bool:
    """Whether f can be called with this many arguments. What is optional is tried only where it is offered."""
    try:
        inspect.signature(f).bind(*[None] * count)
    except TypeError:
        return False
    return True


def slope_off(f, *inputs, size=1.0) -> float:
    """What autograd says of a move of each input, against differences of values `size` apart (linear: any size)."""
    worst = 0.0
    for i, x in enumerate(inputs):
        move = torch.arange(1, x.numel() + 1, dtype=torch.float64).cos().reshape(x.shape)

        def along(step):
            return f(*inputs[:i], x + step * move, *inputs[i + 1 :]).sum()  # noqa: B023

        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        moved = along(step)
        slope = torch.autograd.grad(moved, step)[0] if moved.requires_grad else torch.zeros(())
        with torch.no_grad():
            near, far = ((along(h) - along(-h)) / (2 * h) for h in (size, 2 * size))
        difference = float((4 * near - far) / 3)  # the error is of the fourth order in size
        gap = off(slope, difference, 1 + abs(difference))
        gradient_note(gap, float(slope), difference)
        worst = largest(worst, gap)
    return worst


@dataclass
class Batch:
    """A batch of images (B, C, H, W), float64: x_t is made of x_0 and ε by walking the chain to t (B,)."""

    schedule: Schedule
    t: Tensor
    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    mean: Tensor  # of q(x_{t−1}|x_t, x_0), for each pixel
    var: Tensor

    def walked(self) -> tuple[Tensor, Tensor]:
        """The scale of x_0 and the deviation of the noise in each image of x_t, (B, 1, 1, 1) each."""
        scale, var = walk(self.schedule)
        return images(scale[self.t]), images(var[self.t].sqrt())


SHAPES = [  # schedule, t, shape, size of x_0, size of ε
    (SHORT, [4, 1, 3, 2], (4, 4, 4, 4), 2.0, 2.0),  # first: here factors along a wrong axis give numbers, not an error
    (LONG, [1, 2, 3, 50, 500, 999, 1000], (7, 1, 2, 3), 2.0, 2.0),
    (SHORT, [4, 1, 1, 3, 2], (5, 3, 2, 1), 500.0, 200.0),  # and no two sizes equal, t in no order, values beyond clips
    (TWO, [2, 1, 2], (3, 3, 1, 2), 2.0, 2.0),
    (ONE, [1, 1], (2, 2, 1, 3), 2.0, 2.0),
    (FAINT, [2, 1], (2, 2, 2, 1), 2 * UNIT, 2.0),
    (STRONG, [2, 3, 1], (3, 1, 1, 2), 2.0, 2.0),
]


def linear_in_images(f, given, exact, rounding=lambda batch: 1.0) -> Iterator[float]:
    """The distances of an f(schedule, *images, t) that is linear in the images, relative to the mean size.

    given(batch): the images; exact(batch): the result; rounding(batch): by how much the formula magnifies rounding.
    Tried too: an int for t, images in single precision, gradients, and that f leaves alone what it is given.
    """
    for batch in batches():
        expected, arguments = exact(batch), given(batch)
        unit = rounding(batch) * expected.abs().mean()
        yield disturbs(f, batch.schedule, *arguments, batch.t)
        yield off(f(batch.schedule, *arguments, batch.t), expected, unit)
        yield off(f(batch.schedule, *(x[-1:] for x in arguments), int(batch.t[-1])), expected[-1:], unit)
        yield slope_off(lambda *x: f(batch.schedule, *x, batch.t), *arguments)  # noqa: B023
        # The tables are in double precision whatever the images are in: 1 − ᾱ_1 would lose four of its seven digits.
        for i in range(len(arguments)):
            alone = [(x if i == j else 0 * x).float() for j, x in enumerate(arguments)]
            rounded = f(batch.schedule, *(x.double() for x in alone), batch.t)
            yield off(f(batch.schedule, *alone, batch.t), rounded, 1e3 * (rounded.abs() + 1e-30))


def images(values):
    """(B,) → (B, 1, 1, 1), to broadcast against images."""
    return values.reshape(-1, 1, 1, 1)


def peak(log_density, low, high):
    """Where a log-density with a single mode, of x (N, n), is largest between low and high (N,): (N,)."""
    for _ in range(7):
        x = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 101)
        mode = np.take_along_axis(x, log_density(x).argmax(1)[:, None], 1)[:, 0]
        low, high = mode - (high - low) / 100, mode + (high - low) / 100
    return mode


def bayes_on_a_grid(schedule, t, x_0, x_t):
    """Means and variances of q(x_{t−1}|x_t, x_0), prior times likelihood on a grid (at t = 1 it is x_0): (N,) each."""
    t, x_0, x_t = np.broadcast_arrays(*(np.atleast_1d(v) for v in (t, x_0, x_t)))
    t = t.astype(int)
    scale, var = (v.numpy()[np.maximum(t, 2) - 1] for v in walk(schedule))
    beta = schedule.beta.numpy()[t]

    def log_joint(x):
        prior = log_normal(x, (scale * x_0)[:, None], var[:, None])
        return prior + log_normal(x_t[:, None], (1 - beta[:, None]) ** 0.5 * x, beta[:, None])

    ends = np.sort([scale * x_0, x_t / (1 - beta) ** 0.5], 0)  # the mode lies between prior and likelihood
    narrow = np.minimum(var, beta / (1 - beta)) ** 0.5
    x = peak(log_joint, *ends)[:, None] + narrow[:, None] * np.linspace(-9, 9, 1201)
    p = np.exp(log_joint(x) - log_joint(x).max(1, keepdims=True))
    mean = (p * x).sum(1) / p.sum(1)
    spread = (p * (x - mean[:, None]) ** 2).sum(1) / p.sum(1)
    return np.where(t == 1, x_0, mean), np.where(t == 1, 0.0, spread)


@functools.cache
def _batches() -> list[Batch]:
    random, found = np.random.default_rng(0), []
    for schedule, t, shape, x_0_size, eps_size in SHAPES:
        t, (scale, var) = torch.tensor(t), walk(schedule)
        x_0 = torch.from_numpy(x_0_size * random.uniform(-1, 1, shape))
        eps = torch.from_numpy(eps_size * random.standard_normal(shape))
        x_t = images(scale[t]) * x_0 + images(var[t].sqrt()) * eps
        pixels = (v.flatten().numpy() for v in (images(t).expand(shape), x_0, x_t))
        posterior = (torch.from_numpy(v).reshape(shape) for v in bayes_on_a_grid(schedule, *pixels))
        found.append(Batch(schedule, t, x_0, eps, x_t, *posterior))
    return found


def batches() -> list[Batch]:
    """Batches in which slips show, and clamps; x_0 leaves [−1, 1], as a network's estimate may."""
    return copy.deepcopy(_batches())


PAIRS = [(SHORT, 2), (SHORT, 3), (SHORT, 4), (TWO, 2), (FAINT, 2), *((LONG, t) for t in (2, 3, 50, 500, 1000))]


@check(
    "4.1",
    "Bayes' rule for one step back",
    "identity",
    "conditioning in the joint Gaussian's covariance matrix",
    to=1e-9,
)
@until(1e-8)
def bayes_rule(f):
    """f(step, prior, marginal) combines q(x_t|x_{t−1}), q(x_{t−1}|x_0) and q(x_t|x_0), values on a grid of x_{t−1}."""
    for schedule, t in PAIRS:
        (m, m_t), (v, v_t) = ((float(w[t - 1]), float(w[t])) for w in walk(schedule))
        a, beta = (1 - float(schedule.beta[t])) ** 0.5, float(schedule.beta[t])
        # x_{t−1} and x_t as linear maps of two independent noises: [[√v, 0], [a·√v, √β]]
        to_noise = np.array([[v**0.5, 0.0], [a * v**0.5, beta**0.5]])
        cov = to_noise @ to_noise.T
        for x_0, deviations in ((0.4, 0.8), (-0.9, -2.5), (0.2, 9.0), (-0.5, 30.0)):  # and x_t that hardly ever come
            x_0 = x_0 * (UNIT if schedule is FAINT else 1.0)
            x_t = m_t * x_0 + deviations * v_t**0.5
            mean = m * x_0 + cov[0, 1] / cov[1, 1] * (x_t - m_t * x_0)
            var = cov[0, 0] - cov[0, 1] ** 2 / cov[1, 1]
            x = mean + var**0.5 * np.linspace(-4, 4, 101)
            given = normal(x_t, a * x, beta), normal(x, m * x_0, v), normal(x_t, m_t * x_0, v_t)
            exact = normal(x, mean, var)
            yield disturbs(f, *given)
            yield off(f(*given), exact, exact)


@bayes_rule.states
def _(step, prior, marginal):
    return step * prior / marginal


@bayes_rule.wrong(
    "not divided by q(x_t|x_0): the curve does not integrate to 1",
    seen="no public source: a plausible slip (proportional to, read as equal to)",
    idea="term",
)
def _(step, prior, marginal):
    return step * prior


@bayes_rule.wrong(
    "the prior q(x_{t−1}|x_0) is left out",
    seen="no public source: a plausible slip (the likelihood taken for the posterior)",
    idea="term",
)
def _(step, prior, marginal):
    return step / marginal


@bayes_rule.wrong(
    "prior and likelihood are divided, not multiplied", seen="no public source: a plausible slip", idea="sign"
)
def _(step, prior, marginal):
    return prior / step / marginal


@bayes_rule.wrong("1e-8 is added to the denominator", seen="no public source: an ε “for stability”", idea="edge")
def _(step, prior, marginal):
    return step * prior / (marginal + 1e-8)


@check("4.2", "completing the square", "identity", "moments of the product, on a grid", to=1e-9)
@until(1e-8)
def completing_the_square(f):
    """f(a, y, v_y, m, v_m) returns mean and variance of the density ∝ N(y; a·x, v_y)·N(x; m, v_m) in x."""
    x = np.linspace(-12, 12, 24_001)
    for a, y, v_y, m, v_m in (
        (0.9, 0.5, 0.3, -0.2, 0.8),
        (0.5, -1.0, 1.0, 0.4, 0.1),
        (1.0, 0.0, 0.5, 1.0, 0.5),
        (-0.7, 0.6, 0.4, 0.3, 0.5),
    ):
        p = np.exp(log_normal(y, a * x, v_y) + log_normal(x, m, v_m))
        mean = (p * x).sum() / p.sum()
        var = (p * (x - mean) ** 2).sum() / p.sum()
        # The same in other units, of x (then the result changes units too) and of y (it stays): far from where an ε
        # or a clamp would be harmless.
        for of_x, of_y in ((1.0, 1.0), (1.0, 1e-7), (1e-7, 1e-7), (1e4, 1e4), (1e4, 1e-3), (1.0, 1e6)):
            got = f(a * of_y / of_x, y * of_y, v_y * of_y**2, m * of_x, v_m * of_x**2)
            yield off(np.array([float(v) for v in got]), np.array([mean * of_x, var * of_x**2]), [of_x, of_x**2])


@completing_the_square.states
def _(a, y, v_y, m, v_m):
    var = 1 / (a**2 / v_y + 1 / v_m)
    return var * (a * y / v_y + m / v_m), var


@completing_the_square.wrong(
    "variances are added instead of precisions",
    seen="no public source: a plausible slip (the rule for sums, used for products)",
    idea="exchange",
)
def _(a, y, v_y, m, v_m):
    var = a**2 * v_y + v_m
    return var * (a * y / v_y + m / v_m), var


@completing_the_square.wrong(
    "the factor a is not squared in the precision", seen="no public source: a plausible slip", idea="power"
)
def _(a, y, v_y, m, v_m):
    var = 1 / (a / v_y + 1 / v_m)
    return var * (a * y / v_y + m / v_m), var


@completing_the_square.wrong(
    "each centre is weighted with its own variance",
    seen="no public source: a plausible slip (weights swapped: the vaguer one wins)",
    idea="exchange",
)
def _(a, y, v_y, m, v_m):
    return (v_y * y / a + v_m * m) / (v_y + v_m), 1 / (a**2 / v_y + 1 / v_m)


@completing_the_square.wrong("no variance below 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(a, y, v_y, m, v_m):
    v_y, v_m = max(v_y, 1e-8), max(v_m, 1e-8)
    var = 1 / (a**2 / v_y + 1 / v_m)
    return var * (a * y / v_y + m / v_m), var


@check("4.3", "posterior variance", "implementation", "Bayes' rule on a grid", to=1e-9)
@until(1e-8)
def posterior_var(f):
    """f(schedule, t) returns the variance for each t of a batch; relative to it."""
    for batch in batches():
        schedule, t, exact = batch.schedule, batch.t, batch.var[:, 0, 0, 0]
        # t = 1: exactly 0, for no tolerance excuses noise in the last step
        unit = torch.where(exact > 0, exact, 1e-300)
        yield disturbs(f, schedule, t)
        yield off(f(schedule, t), exact, unit)
        yield off(f(schedule, t[:, None]), exact[:, None], unit[:, None])
        yield off(f(schedule, int(t[-1])), exact[-1], unit[-1])


@posterior_var.wrong(
    "β_t, the variance of the forward step",
    seen="the first of the two choices of Ho et al. 2020, section 3.2, taken for the posterior's",
    idea="exchange",
)
def _(schedule, t):
    return schedule.beta[t]


@posterior_var.wrong(
    "the ratio upside down", seen="no public source: a plausible slip (indices t and t − 1 swapped)", idea="time"
)
def _(schedule, t):
    before = 1 - schedule.alpha_bar[(t - 1).clamp(min=1)]
    return (1 - schedule.alpha_bar[t]) / before * schedule.beta[t]


@posterior_var.wrong(
    "a standard deviation under a variance's name",
    seen="of this kind: huggingface/diffusers issue 14569 (the root is taken of a log-variance)",
    idea="power",
)
def _(schedule, t):
    return ((1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]).sqrt()


@posterior_var.wrong(
    "β̃_1 replaced by β̃_2, as under a logarithm",
    seen="posterior_log_variance_clipped of hojonathanho/diffusion and openai/improved-diffusion, exponentiated",
    idea="edge",
)
def _(schedule, t):
    t = t.clamp(min=2)
    return (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]


@posterior_var.wrong(
    "not divided by 1 − ᾱ_t", seen="varun-ml/diffusion-models-tutorial PR 1, which mends it", idea="term"
)
def _(schedule, t):
    return (1 - schedule.alpha_bar[t - 1]) * schedule.beta[t]


@posterior_var.wrong(
    "at least 1e-20, also at t = 1",
    seen="the clamp of ermongroup/ddim, runners/diffusion.py, there for the logarithm alone",
    idea="edge",
)
def _(schedule, t):
    return ((1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t]) * schedule.beta[t]).clamp(min=1e-20)


@posterior_var.wrong("1 − ᾱ in single precision", seen="no public source: tables kept in float32", idea="edge")
def _(schedule, t):
    noise_var = 1 - schedule.alpha_bar.float()
    return (noise_var[t - 1] / noise_var[t]).double() * schedule.beta[t]


@check("4.4", "posterior mean", "implementation", "Bayes' rule on a grid", to=1e-9)
@until(1e-8)
def posterior_mean(f):
    """f(schedule, x_0, x_t, t) returns the mean."""
    yield from linear_in_images(f, lambda batch: (batch.x_0, batch.x_t), lambda batch: batch.mean)


def _at(schedule, t):
    return (images(v) for v in (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t], schedule.alpha[t]))


def _mean(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = _at(schedule, t)
    return (a_prev.sqrt() * beta * x_0 + alpha.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong(
    "√ᾱ_t in place of √α_t in x_t's weight",
    seen="the text, not the code, of acids-ircam/diffusion_models, diffusion_02_model.ipynb",
    idea="exchange",
)
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, _ = _at(schedule, t)
    return (a_prev.sqrt() * beta * x_0 + a.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong(
    "√ᾱ_t in place of √ᾱ_{t−1} in x_0's weight",
    seen="no public source: a plausible slip (indices t and t − 1 swapped)",
    idea="time",
)
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = _at(schedule, t)
    return (a.sqrt() * beta * x_0 + alpha.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong(
    "the two weights swapped",
    seen="no public source: a plausible slip (arguments x_0 and x_t in the wrong order)",
    idea="exchange",
)
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = _at(schedule, t)
    return (a_prev.sqrt() * beta * x_t + alpha.sqrt() * (1 - a_prev) * x_0) / (1 - a)


@posterior_mean.wrong(
    "x_0 noised to t − 1, and x_t forgotten",
    seen="no public source: a plausible slip (predict x_0, then noise it again)",
    idea="exchange",
)
def _(schedule, x_0, x_t, t):
    return images(schedule.alpha_bar[t - 1]).sqrt() * x_0


@posterior_mean.wrong(
    "x_0 clipped to [−1, 1] on the way",
    seen="no public source: a plausible slip (samplers, where clipping belongs to the estimate of x_0)",
    idea="edge",
)
def _(schedule, x_0, x_t, t):
    return _mean(schedule, x_0.clamp(-1, 1), x_t, t)


@posterior_mean.wrong(
    "the first t is used for the whole batch",
    seen="no public source: a plausible slip (code that was only ever run with one t)",
    idea="time",
)
def _(schedule, x_0, x_t, t):
    return _mean(schedule, x_0, x_t, t[:1].expand(len(t)))


@posterior_mean.wrong("no gradient passes", seen="no public source: no_grad() left over from sampling", idea="gradient")
def _(schedule, x_0, x_t, t):
    return _mean(schedule, x_0, x_t, t).detach()


@posterior_mean.wrong(
    "factors along the channels", seen="no public source: t of shape (B, 1, 1), where B = C", idea="axis"
)
def _(schedule, x_0, x_t, t):
    if t.ndim == 0 or x_0.shape[1] != len(t):
        return _mean(schedule, x_0, x_t, t)
    return _mean(schedule, x_0.transpose(0, 1), x_t.transpose(0, 1), t).transpose(0, 1)


@posterior_mean.wrong(
    "tables in the images' precision, from ᾱ on",
    seen="no public source: 1 − ᾱ_1 = 1e-4 with four digits less",
    idea="edge",
)
def _(schedule, x_0, x_t, t):
    a, a_prev, beta, alpha = (v.to(x_t.dtype) for v in _at(schedule, t))
    return (a_prev.sqrt() * beta * x_0 + alpha.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@posterior_mean.wrong(
    "the tables of the first schedule with this T", seen="no public source: a cache keyed by T", idea="state"
)
def _(schedule, x_0, x_t, t):
    return _mean(_FIRST_OF_T.setdefault(schedule.T, copy.deepcopy(schedule)), x_0, x_t, t)


_FIRST_OF_T = {}


@check("4.5", "one step back keeps the marginal", "identity", "the chain walked step by step", to=1e-9)
@until(1e-8)
def keeps_the_marginal(f):
    """f(schedule, t) returns x_0's weight, x_t's weight and the variance of a step back, to q(x_{t−1}|x_0)."""
    for schedule in (SHORT, TWO, ONE, FAINT, STRONG, LONG):
        scale, var = (v.tolist() for v in walk(schedule))
        for t in range(1, 5) if schedule is SHORT else {1, 2, 3, 50, 500, 999, 1000} & set(range(schedule.T + 1)):
            yield disturbs(f, schedule, t)
            on_x_0, on_x_t, step_var = (float(v) for v in f(schedule, t))
            yield off(on_x_0 + on_x_t * scale[t], scale[t - 1])
            yield off(on_x_t**2 * var[t] + step_var, var[t - 1], var[t - 1] or 1e-300)  # t = 1: exactly no noise


def _weights(schedule, t):
    a, a_prev = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    on_x_0 = a_prev.sqrt() * schedule.beta[t] / (1 - a)
    on_x_t = schedule.alpha[t].sqrt() * (1 - a_prev) / (1 - a)
    return on_x_0, on_x_t, (1 - a_prev) / (1 - a) * schedule.beta[t]


@keeps_the_marginal.states
def _(schedule, t):
    return _weights(schedule, t)


@keeps_the_marginal.wrong(
    "√ᾱ_t in place of √α_t in x_t's weight",
    seen="the text, not the code, of acids-ircam/diffusion_models, diffusion_02_model.ipynb",
    idea="exchange",
)
def _(schedule, t):
    on_x_0, on_x_t, var = _weights(schedule, t)
    return on_x_0, on_x_t * schedule.alpha_bar[t - 1].sqrt(), var


@keeps_the_marginal.wrong(
    "no noise: a “deterministic DDPM”",
    seen="huggingface/diffusers PR 13141 (variance 0 for “deterministic generations”)",
    idea="noise",
)
def _(schedule, t):
    return *_weights(schedule, t)[:2], 0.0


@keeps_the_marginal.wrong(
    "noise at t = 1 too",
    seen="acids-ircam/diffusion_models, diffusion_02_model.ipynb; udlbook/udlbook, notebooks 18.2 to 18.4",
    idea="edge",
)
def _(schedule, t):
    on_x_0, on_x_t, var = _weights(schedule, t)
    return on_x_0, on_x_t, schedule.beta[1] if t == 1 else var


@keeps_the_marginal.wrong(
    "a variance of at least 1e-20", seen="no public source: a clamp for the logarithm, kept", idea="edge"
)
def _(schedule, t):
    on_x_0, on_x_t, var = _weights(schedule, t)
    return on_x_0, on_x_t, var.clamp(min=1e-20)


@check("4.6", "posterior mean from noise", "implementation", "Bayes' rule on a grid", to=1e-9)
@until(1e-8)
def mean_from_eps(f):
    """f(schedule, x_t, eps, t) returns the mean."""
    yield from linear_in_images(
        f,
        lambda batch: (batch.x_t, batch.eps),
        lambda batch: batch.mean,
        lambda batch: images(1 - batch.schedule.beta[batch.t]) ** -0.5,  # where little is left, an image is blown up
    )


@mean_from_eps.wrong(
    "divided by √ᾱ_t in place of √α_t",
    seen="no public source: a plausible slip (the formula for x_0 and the one for the mean mixed up)",
    idea="exchange",
)
def _(schedule, x_t, eps, t):
    a, _, beta, _ = _at(schedule, t)
    return (x_t - beta / (1 - a).sqrt() * eps) / a.sqrt()


@mean_from_eps.wrong(
    "β_t/(1 − ᾱ_t): the root is missing",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(schedule, x_t, eps, t):
    a, _, beta, alpha = _at(schedule, t)
    return (x_t - beta / (1 - a) * eps) / alpha.sqrt()


@mean_from_eps.wrong(
    "√β_t·ε removed: the noise of one step, not its expected share",
    seen="no public source: a plausible slip (the forward step run backwards)",
    idea="exchange",
)
def _(schedule, x_t, eps, t):
    _, _, beta, alpha = _at(schedule, t)
    return (x_t - beta.sqrt() * eps) / alpha.sqrt()


@mean_from_eps.wrong(
    "the implied x_0 is clipped to [−1, 1]", seen="no public source: a sampler's line, in the formula", idea="edge"
)
def _(schedule, x_t, eps, t):
    a = images(schedule.alpha_bar[t])
    return _mean(schedule, ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1), x_t, t)


@mean_from_eps.wrong("1e-8 is added under the root", seen="no public source: an ε “for stability”", idea="edge")
def _(schedule, x_t, eps, t):
    a, _, beta, alpha = _at(schedule, t)
    return (x_t - beta / (1 - a + 1e-8).sqrt() * eps) / alpha.sqrt()


@check("4.7", "noise from posterior mean", "implementation", "Bayes' rule on a grid, from a known ε", to=1e-9)
@until(1e-8)
def eps_from_mean(f):
    """f(schedule, x_t, mean, t) returns the ε that x_t was made with."""
    yield from linear_in_images(
        f,
        lambda batch: (batch.x_t, batch.mean),
        lambda batch: batch.eps,
    )


@eps_from_mean.wrong(
    "(x_t − √(1 − ᾱ_t)·μ)/√(1 − ᾱ_t)",
    seen="no public source: a plausible slip (Eq. 6.5's shape, used for the mean)",
    idea="exchange",
)
def _(schedule, x_t, mean, t):
    std = (1 - images(schedule.alpha_bar[t])).sqrt()
    return (x_t - std * mean) / std


@eps_from_mean.wrong(
    "the mean is taken for x_0",
    seen="no public source: a plausible slip (a network that predicts the mean, read as one that predicts x_0)",
    idea="exchange",
)
def _(schedule, x_t, mean, t):
    a = images(schedule.alpha_bar[t])
    return (x_t - a.sqrt() * mean) / (1 - a).sqrt()


@eps_from_mean.wrong("√α_t is missing before the mean", seen="no public source: a plausible slip", idea="term")
def _(schedule, x_t, mean, t):
    a, _, beta, _ = _at(schedule, t)
    return (1 - a).sqrt() / beta * (x_t - mean)


@eps_from_mean.wrong("the factor is at most 1,000", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, x_t, mean, t):
    a, _, beta, alpha = _at(schedule, t)
    return ((1 - a).sqrt() / beta).clamp(max=1e3) * (x_t - alpha.sqrt() * mean)


@eps_from_mean.wrong("the estimate is clipped to ±5", seen="no public source: noise is hardly ever larger", idea="edge")
def _(schedule, x_t, mean, t):
    a, _, beta, alpha = _at(schedule, t)
    return ((1 - a).sqrt() / beta * (x_t - alpha.sqrt() * mean)).clamp(-5, 5)


@dataclass(frozen=True, eq=False)
class Data:
    """A mixture of Gaussians, and a grid of x_0 for it."""

    weight: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    x_0: np.ndarray

    def density(self, x):
        return (self.weight * normal(x[:, None], self.mean, self.var)).sum(1)


NEAR = Data(np.array([0.35, 0.65]), np.array([-0.8, 0.5]), np.array([0.02, 0.05]), np.linspace(-2.5, 2.5, 801))
WIDE = Data(np.array([0.4, 0.6]), np.array([-28.0, 18.0]), np.array([48.0, 20.0]), np.linspace(-90, 70, 1601))
FINE = Data(NEAR.weight, NEAR.mean * UNIT, NEAR.var * UNIT**2, NEAR.x_0 * UNIT)
REVERSE = [  # data, schedule, t, x_t
    (NEAR, SHORT, 2, 0.4),
    (NEAR, SHORT, 4, -0.3),
    (NEAR, SHORT, 3, 2.5),
    (NEAR, TWO, 2, 0.1),
    (NEAR, STRONG, 2, 0.7),
    (WIDE, STRONG, 2, 0.7),
    (WIDE, SHORT, 3, -30.0),
    (WIDE, SHORT, 4, 2.0),
    (FINE, FAINT, 2, 0.3 * UNIT),
    (NEAR, LONG, 2, 0.2),
    (NEAR, LONG, 300, 0.2),
    (NEAR, LONG, 700, -1.0),
]
FIRST = [(NEAR, SHORT, 1, 0.2), (NEAR, ONE, 1, -0.4), (NEAR, LONG, 1, 0.3), (WIDE, ONE, 1, 1.0), (FINE, FAINT, 1, 0.0)]


@functools.cache
def reverse_step_on_a_grid(data, schedule, t, x_t, points=801):
    """Grid of x_{t−1}, and q(x_{t−1}|x_t) on it, for mixture data: Bayes' rule on the marginal, by quadrature."""
    if t == 1:
        return x_0_given_x_t(data, schedule, 1, x_t)
    scale, var = (float(v[t - 1]) for v in walk(schedule))
    beta = float(schedule.beta[t])
    center, reach = x_t / (1 - beta) ** 0.5, 12 * (beta / (1 - beta)) ** 0.5
    low, high = scale * data.x_0[0] - 9 * var**0.5, scale * data.x_0[-1] + 9 * var**0.5
    x = np.linspace(max(center - reach, low), min(center + reach, high), points)  # where likelihood and marginal are
    marginal = np.trapezoid(normal(x[:, None], scale * data.x_0, var) * data.density(data.x_0), data.x_0)
    joint = normal(x_t, (1 - beta) ** 0.5 * x, beta) * marginal
    return x, joint / np.trapezoid(joint, x)


def x_0_given_x_t(data, schedule, t, x_t):
    """Grid of x_0, and q(x_0|x_t) on it, for mixture data."""
    scale, var = (float(v[t]) for v in walk(schedule))
    joint = data.density(data.x_0) * normal(x_t, scale * data.x_0, var)
    return data.x_0, joint / np.trapezoid(joint, data.x_0)


@check("4.8", "true reverse step", "identity", "Bayes' rule on the marginal q(x_{t−1})", to=1e-9)
@until(1e-8)
def true_reverse_step(f):
    """f(posterior, weight) averages q(x_{t−1}|x_t, x_0), (N, len(x_0)), with q(x_0|x_t)·dx_0, (len(x_0),)."""
    for case, (data, schedule, t, x_t) in enumerate(REVERSE):
        points = len(data.x_0) if case == 0 else 601  # square first: there a wrong axis gives numbers, not an error
        x, exact = reverse_step_on_a_grid(data, schedule, t, x_t, points)
        x_0, density = x_0_given_x_t(data, schedule, t, x_t)
        mean, var = bayes_on_a_grid(schedule, t, x_0[[0, -1]], x_t)
        mean = np.interp(x_0, x_0[[0, -1]], mean)  # the mean is affine in x_0
        given = normal(x[:, None], mean, var[0]), density * (x_0[1] - x_0[0])
        yield disturbs(f, *given)
        yield off(f(*given), exact, exact + 1e-6 * exact.max())  # relative, but for rounding in the far tails


@true_reverse_step.states
def _(posterior, weight):
    return posterior @ weight


@true_reverse_step.wrong(
    "the posterior at the mean of x_0, not the mean of the posteriors",
    seen="no public source: a plausible slip (the Gaussian that is sampled, taken for the truth)",
    idea="exchange",
)
def _(posterior, weight):
    center = round(float((weight * np.arange(len(weight))).sum() / weight.sum()))
    return posterior[:, center]


@true_reverse_step.wrong(
    "all x_0 weighted alike", seen="no public source: a plausible slip (q(x_0|x_t) forgotten)", idea="term"
)
def _(posterior, weight):
    return posterior.mean(1)


@true_reverse_step.wrong(
    "densities of at most 10", seen="no public source: a density taken for a probability", idea="edge"
)
def _(posterior, weight):
    return np.minimum(posterior, 10) @ weight


@true_reverse_step.wrong(
    "densities of at least 1e-8", seen="no public source: a floor for a later logarithm", idea="edge"
)
def _(posterior, weight):
    return np.maximum(posterior, 1e-8) @ weight


@check("4.9", "reverse variance", "identity", "moments of the true reverse step on a grid", to=1e-9)
@until(1e-8)
def reverse_variance(f):
    """f(schedule, t, x_0_var), with x_0_var = Var(x_0|x_t), returns Var(x_{t−1}|x_t); relative to it."""
    for data, schedule, t, x_t in [*REVERSE, *FIRST]:
        x, density = reverse_step_on_a_grid(data, schedule, t, x_t)
        mean = np.trapezoid(density * x, x)
        x_0, weight = x_0_given_x_t(data, schedule, t, x_t)
        x_0_mean = np.trapezoid(weight * x_0, x_0)
        x_0_var = float(np.trapezoid(weight * (x_0 - x_0_mean) ** 2, x_0))
        exact = np.trapezoid(density * (x - mean) ** 2, x)
        yield disturbs(f, schedule, t, x_0_var)
        yield off(float(f(schedule, t, x_0_var)), exact, exact)
        if t > 1:  # data that are a point: there x_0 is known
            exact = bayes_on_a_grid(schedule, t, 0.0, x_t)[1][0]
            yield off(float(f(schedule, t, 0.0)), exact, exact)


@reverse_variance.states
def _(schedule, t, x_0_var):
    on_x_0, _, var = _weights(schedule, t)
    return var + on_x_0**2 * x_0_var


@reverse_variance.wrong(
    "β̃_t only: x_0 is taken as known",
    seen="no public source: a plausible slip (the posterior taken for the reverse step)",
    idea="term",
)
def _(schedule, t, x_0_var):
    return _weights(schedule, t)[2]


@reverse_variance.wrong(
    "β_t, whatever the data",
    seen="no public source: a plausible slip (the choice for N(0, 1) data taken for a law)",
    idea="exchange",
)
def _(schedule, t, x_0_var):
    return schedule.beta[t]


@reverse_variance.wrong(
    "x_0's weight is not squared",
    seen="no public source: a plausible slip (variance and standard deviation mixed up)",
    idea="power",
)
def _(schedule, t, x_0_var):
    on_x_0, _, var = _weights(schedule, t)
    return var + on_x_0 * x_0_var


@reverse_variance.wrong(
    "at most β_t", seen="no public source: true of N(0, 1) data, whose variance is 1 at most", idea="edge"
)
def _(schedule, t, x_0_var):
    on_x_0, _, var = _weights(schedule, t)
    return min(var + on_x_0**2 * x_0_var, schedule.beta[t])


@reverse_variance.wrong("at least 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, t, x_0_var):
    on_x_0, _, var = _weights(schedule, t)
    return max(var + on_x_0**2 * x_0_var, 1e-8)


@check("4.10", "reverse mean from the score", "identity", "the mean of the true reverse step on a grid", to=1e-9)
@until(1e-8)
def reverse_mean(f):
    """f(schedule, x_t, score, t), with score = d log q(x_t)/dx_t, returns E[x_{t−1}|x_t]."""
    for data, schedule, t, x_t in [*REVERSE, *FIRST]:
        x, density = reverse_step_on_a_grid(data, schedule, t, x_t)
        scale, var = (float(v[t]) for v in walk(schedule))
        point = torch.tensor(x_t, dtype=torch.float64, requires_grad=True)
        w, m, v = (torch.tensor(p) for p in (data.weight, data.mean, data.var))
        total = scale**2 * v + var
        log_q = (w.log() - (point - scale * m) ** 2 / (2 * total) - 0.5 * total.log()).logsumexp(0)
        (score,) = torch.autograd.grad(log_q, point)
        mean = np.trapezoid(density * x, x)
        unit = np.trapezoid(density * (x - mean) ** 2, x) ** 0.5 / (1 - float(schedule.beta[t])) ** 0.5
        yield disturbs(f, schedule, x_t, float(score), t)
        yield off(f(schedule, x_t, float(score), t), mean, unit)


@reverse_mean.states
def _(schedule, x_t, score, t):
    return (x_t + schedule.beta[t] * score) / schedule.alpha[t].sqrt()


@reverse_mean.wrong(
    "the sign of the score",
    seen="the text of acids-ircam/diffusion_models, diffusion_02_model.ipynb: ∇ log q = (x̃ − x)/σ²",
    idea="sign",
)
def _(schedule, x_t, score, t):
    return (x_t - schedule.beta[t] * score) / schedule.alpha[t].sqrt()


@reverse_mean.wrong(
    "β_t/2, the step of Langevin dynamics",
    seen="no public source: a plausible slip (the drift of the probability-flow ODE taken for the reverse mean)",
    idea="term",
)
def _(schedule, x_t, score, t):
    return (x_t + 0.5 * schedule.beta[t] * score) / schedule.alpha[t].sqrt()


@reverse_mean.wrong(
    "not divided by √α_t",
    seen="no public source: a plausible slip (the variance-exploding formula in a variance-preserving chain)",
    idea="term",
)
def _(schedule, x_t, score, t):
    return x_t + schedule.beta[t] * score


@reverse_mean.wrong("the score is clipped to ±100", seen="no public source: a clamp “for stability”", idea="edge")
def _(schedule, x_t, score, t):
    return (x_t + schedule.beta[t] * min(max(score, -100), 100)) / schedule.alpha[t].sqrt()
