"""The checks of chapter 7, sampling: single steps against Bayes' rule on a grid, whole chains against steps that are
conditioned in covariances, the true reverse step and the law of the samples against quadrature."""

import functools
import inspect
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddpm_lib.checks import check
from ddpm_lib.checks.chapter_01 import hermite, normal
from ddpm_lib.checks.chapter_03 import LONG, SHORT, some_images, walk
from ddpm_lib.checks.chapter_04 import (
    FAINT,
    FIRST,
    ONE,
    REVERSE,
    STRONG,
    TWO,
    UNIT,
    Data,
    disturbs,
    images,
    linear_in_images,
    off,
    reverse_step_on_a_grid,
    slope_off,
    takes,
    x_0_given_x_t,
)
from ddpm_lib.checks.guard import accepted, fault, until
from ddpm_lib.checks.noise import law_score, noise_score
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.forward import forward_var, noise_like
from ddpm_lib.diffusion.posterior import posterior_var
from ddpm_lib.diffusion.schedule import Schedule, coefficient
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture


@coefficient
def _some_var(schedule, t):
    return schedule.beta[t] * (0.3 + 0.5 / t)


@coefficient
def _no_var(schedule, t):
    return 0 * schedule.beta[t]


def fresh(like, seed=5):
    """Noise of the shape of `like`, float64, with rare values among it."""
    z = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z.view(-1)[:: max(2, z.numel() // 3)] *= 4
    return z


def variances(batch):
    """Variances of a step for each t of a batch, (B,), from the grid or straight from β; 0 at t = 1."""
    last, beta = batch.t == 1, batch.schedule.beta[batch.t]
    return {
        posterior_var: batch.var[:, 0, 0, 0],
        forward_var: torch.where(last, 0.0, beta),
        _some_var: torch.where(last, 0.0, beta * (0.3 + 0.5 / batch.t)),
    }


@check("7.1", "ancestral step", "implementation", "Bayes' rule on a grid, and the noise given", to=1e-9)
@until(1e-8)
def ancestral_step(f):
    """f(schedule, x_t, x_0_hat, t, z) returns x_{t−1}, in x_t's dtype, with the variance β̃_t; no noise at t = 1.

    Where f takes one thing more, a coefficient for the variance, β_t and another are tried too.
    """
    choices = [(), (posterior_var,), (forward_var,), (_some_var,)]
    for choice in choices if takes(f, 6) else choices[:1]:

        def step(schedule, x_t, x_0_hat, z, t):
            return f(schedule, x_t, x_0_hat, t, z, *choice)  # noqa: B023

        def exact(batch):
            var = variances(batch)[(*choice, posterior_var)[0]]  # noqa: B023
            return batch.mean + images(var.sqrt()) * fresh(batch.x_t)

        yield from linear_in_images(step, lambda batch: (batch.x_t, batch.x_0, fresh(batch.x_t)), exact)
        x_t = some_images(2, 1, 2, 3).float()
        narrow = f(SHORT, x_t, x_t, torch.tensor([3, 1]), x_t, *choice).dtype == x_t.dtype
        if not narrow:
            note(
                math.inf, "Of float32 images it makes float64.", "Cast coefficients to the images' dtype, last of all."
            )
        yield fault(not narrow)
    told, x_t = inspect.getdoc(f) or "", some_images(2, 1, 2, 3)
    for t in (0, SHORT.T + 1, torch.tensor([2, 0])) if "ValueError" in told else ():
        yield accepted(lambda: f(SHORT, x_t, x_t, t, x_t))  # noqa: B023
    yield off(f(SHORT, x_t, 2 * x_t, 1, None), 2 * x_t) if "None where t is the int 1" in told else 0.0


def _tables(schedule, t):
    """ᾱ_t, ᾱ_{t−1}, β_t, and β̃_t, for images."""
    a, a_prev, beta = (images(v) for v in (schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t]))
    return a, a_prev, beta, (1 - a_prev) / (1 - a) * beta


def _mean(schedule, x_t, x_0, t):
    a, a_prev, beta, _ = _tables(schedule, t)
    return (a_prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - a_prev) * x_t) / (1 - a)


def _std(schedule, t):
    return _tables(schedule, t)[3].sqrt()


AT_THE_LAST_STEP = "acids-ircam/diffusion_models, diffusion_02_model.ipynb; udlbook/udlbook, notebooks 18.2 to 18.4"


@ancestral_step.wrong("noise at t = 1 too, of variance β_1", seen=AT_THE_LAST_STEP, idea="edge")
def _(schedule, x_t, x_0_hat, t, z):
    std = torch.where(images(t) == 1, _tables(schedule, t)[2].sqrt(), _std(schedule, t))
    return _mean(schedule, x_t, x_0_hat, t) + std * z


@ancestral_step.wrong(
    "σ_t = 0, a “deterministic DDPM”",
    seen="huggingface/diffusers PR 13141 (variance 0 for “deterministic generations”)",
    idea="noise",
)
def _(schedule, x_t, x_0_hat, t, z):
    return _mean(schedule, x_t, x_0_hat, t) + 0 * z


@ancestral_step.wrong(
    "the variance in place of its root: e^{log σ²}·z, not e^{½·log σ²}·z",
    seen="of this kind: bjlkeng/sandbox issue 10 (in a variational autoencoder)",
    idea="power",
)
def _(schedule, x_t, x_0_hat, t, z):
    return _mean(schedule, x_t, x_0_hat, t) + _std(schedule, t) ** 2 * z


@ancestral_step.wrong(
    "the root of a log-variance",
    seen="huggingface/diffusers issue 14569 (fixed_large_log: NaN, for the logarithm is negative)",
    idea="power",
)
def _(schedule, x_t, x_0_hat, t, z):
    log_var = torch.log(_std(schedule, t) ** 2)
    return _mean(schedule, x_t, x_0_hat, t) + torch.where(images(t) == 1, 0.0, log_var.sqrt()) * z


@ancestral_step.wrong(
    "the variance of the step before, t + 1",
    seen="of this kind: huggingface/diffusers PR 3006 (the β of another step, where steps are skipped)",
    idea="time",
)
def _(schedule, x_t, x_0_hat, t, z):
    later = _std(schedule, (t + 1).clamp(max=schedule.T))
    return _mean(schedule, x_t, x_0_hat, t) + torch.where(images(t) == 1, 0.0, later) * z


@ancestral_step.wrong(
    "β_t, where β̃_t is asked for", seen="jhbastek/PhysicsInformedDiffusionModels issue 4", idea="exchange"
)
def _(schedule, x_t, x_0_hat, t, z):
    std = torch.where(images(t) == 1, 0.0, _tables(schedule, t)[2].sqrt())
    return _mean(schedule, x_t, x_0_hat, t) + std * z


@ancestral_step.wrong(
    "x_0_hat noised to t − 1 with the fresh noise, and x_t forgotten",
    seen="of this kind: Bansal et al. 2022 (Cold Diffusion), Algorithm 1, there called naive",
    idea="exchange",
)
def _(schedule, x_t, x_0_hat, t, z):
    a_prev = _tables(schedule, t)[1]
    return a_prev.sqrt() * x_0_hat + (1 - a_prev).sqrt() * z + 0 * x_t


@ancestral_step.wrong(
    "the noise inside the bracket, divided by √α_t too",
    seen="no public source: a plausible slip (a bracket misread)",
    idea="term",
)
def _(schedule, x_t, x_0_hat, t, z):
    return _mean(schedule, x_t, x_0_hat, t) + _std(schedule, t) * z / (1 - _tables(schedule, t)[2]).sqrt()


@ancestral_step.wrong(
    "no noise for the whole batch, where its first image is at t = 1",
    seen="no public source: a plausible slip (if t[0] > 1, as in a loop over one t)",
    idea="time",
)
def _(schedule, x_t, x_0_hat, t, z):
    return _mean(schedule, x_t, x_0_hat, t) + _std(schedule, t) * z * float(torch.as_tensor(t).flatten()[0] > 1)


@ancestral_step.wrong(
    "a variance of at least 1e-20", seen="no public source: a clamp for the logarithm, kept", idea="edge"
)
def _(schedule, x_t, x_0_hat, t, z):
    return _mean(schedule, x_t, x_0_hat, t) + _std(schedule, t).clamp(min=1e-10) * z


@ancestral_step.wrong(
    "x_0_hat is clipped once more", seen="no public source: right for images, wrong for other data", idea="edge"
)
def _(schedule, x_t, x_0_hat, t, z):
    return _mean(schedule, x_t, x_0_hat.clamp(-1, 1), t) + _std(schedule, t) * z


@check("7.2", "Algorithm 2, line 4", "identity", "Bayes' rule on a grid, from a known ε", to=1e-9)
@until(1e-8)
def algorithm_2(f):
    """f(schedule, x_t, eps_hat, t, z, var) returns x_{t−1}; var: σ_t², shaped like images; no noise at t = 1."""
    for reverse_var in (posterior_var, forward_var):

        def step(schedule, x_t, eps, z, t):
            return f(schedule, x_t, eps, t, z, images(reverse_var(schedule, torch.as_tensor(t))))  # noqa: B023

        def exact(batch):
            return batch.mean + images(variances(batch)[reverse_var].sqrt()) * fresh(batch.x_t)  # noqa: B023

        yield from linear_in_images(
            lambda *given: step(*given).to(torch.promote_types(given[1].dtype, given[2].dtype)),
            lambda batch: (batch.x_t, batch.eps, fresh(batch.x_t)),
            exact,
            lambda batch: images(1 - batch.schedule.beta[batch.t]) ** -0.5,  # where little is left, it is blown up
        )


def _line_4(schedule, x_t, eps_hat, t, noise):
    a, _, beta, _ = _tables(schedule, t)
    return (x_t - beta / (1 - a).sqrt() * eps_hat) / (1 - beta).sqrt() + noise


def _z(t, z):
    """No noise at t = 1."""
    return torch.where(images(t) == 1, 0.0, z) if isinstance(t, Tensor) else (z if t > 1 else 0 * z)


@algorithm_2.states
def _(schedule, x_t, eps_hat, t, z, var):
    return _line_4(schedule, x_t, eps_hat, t, var.sqrt() * _z(t, z))


@algorithm_2.wrong("noise at t = 1 too", seen=AT_THE_LAST_STEP, idea="edge")
def _(schedule, x_t, eps_hat, t, z, var):
    return _line_4(schedule, x_t, eps_hat, t, var.sqrt() * z)


@algorithm_2.wrong("no noise at all", seen="huggingface/diffusers PR 13141", idea="noise")
def _(schedule, x_t, eps_hat, t, z, var):
    return _line_4(schedule, x_t, eps_hat, t, 0 * z)


@algorithm_2.wrong(
    "σ² in place of σ", seen="no public source: a plausible slip (variance and deviation mixed up)", idea="power"
)
def _(schedule, x_t, eps_hat, t, z, var):
    return _line_4(schedule, x_t, eps_hat, t, var * _z(t, z))


@algorithm_2.wrong("√ᾱ_t in place of √α_t", seen="no public source: a plausible slip (a bar too many)", idea="exchange")
def _(schedule, x_t, eps_hat, t, z, var):
    a, _, beta, _ = _tables(schedule, t)
    return (x_t - beta / (1 - a).sqrt() * eps_hat) / a.sqrt() + var.sqrt() * _z(t, z)


@algorithm_2.wrong("the root of 1 − ᾱ_t is lost", seen="no public source: a plausible slip", idea="power")
def _(schedule, x_t, eps_hat, t, z, var):
    a, _, beta, _ = _tables(schedule, t)
    return (x_t - beta / (1 - a) * eps_hat) / (1 - beta).sqrt() + var.sqrt() * _z(t, z)


@algorithm_2.wrong(
    "the fresh noise is the estimated one", seen="no public source: one name for ε and for z", idea="noise"
)
def _(schedule, x_t, eps_hat, t, z, var):
    return _line_4(schedule, x_t, eps_hat, t, var.sqrt() * _z(t, eps_hat)) + 0 * z


def step_weights(schedule):
    """The weights of x_0 and of x_t in E[x_{t−1}|x_t, x_0], and the variance left: (T+1,) each, entry 0 is not used.

    By conditioning in the covariance of the noises in x_{t−1} and x_t, whose sizes come from walking the chain.
    """
    scale, var = (v.tolist() for v in walk(schedule))
    rows = [(math.nan,) * 3]
    for t, beta in enumerate(schedule.beta.tolist()[1:], start=1):
        cov = (1 - beta) ** 0.5 * var[t - 1]
        on_x_t = cov / var[t]
        rows.append((scale[t - 1] - on_x_t * scale[t], on_x_t, var[t - 1] * beta / var[t]))
    return torch.tensor(rows, dtype=torch.float64).T


def wavy(x_t, t):
    """A stand-in for a network: bounded, different in every value of x_t and for every t; t must come as integers."""
    values = 1.5 * torch.sin(2 * x_t + images(t.to(x_t.dtype)).sqrt().reshape(-1, *[1] * (x_t.ndim - 1)))
    return values if t.dtype == torch.int64 else values * torch.inf


class Chain:
    """One run of a sampler, seen from the network that it asks: states x_T, ..., x_0, estimates, and each t."""

    def __init__(self, f, schedule, x_T, *, slope=None, **options):
        self.schedule, self.t, self.states, self.eps_hat = schedule, [], [], []
        kept = x_T.clone()

        def network(x_t, t):
            self.t.append(t.clone())
            self.states.append(x_t.detach().clone())
            self.eps_hat.append(wavy(x_t.detach(), t))
            return self.eps_hat[-1] if slope is None else self.eps_hat[-1] * slope

        self.result = f(network, schedule, x_T, **options)
        self.states.append(self.result)
        self.unchanged = torch.equal(kept, x_T)

    def faults(self, x_T):
        """What has no size: the network is asked once for each t = T, ..., 1, x_T first, and nothing is written to."""
        asked = [torch.full((len(x_T),), t) for t in range(self.schedule.T, 0, -1)]
        right = len(self.t) == len(asked) and all(map(torch.equal, self.t, asked))
        if not right:
            note(
                math.inf,
                "The network is not asked once for each t = T, ..., 1, with t of shape (B,), int64.",
                "Count t down from T to 1, and give the network the t of its x_t.",
            )
            return fault(True)
        return fault(
            not (
                self.unchanged
                and torch.equal(self.states[0], x_T)
                and self.result.dtype == x_T.dtype
                and not self.result.requires_grad
            )
        )

    def rests(self, clip):
        """For t = T, ..., 1: x_{t−1} less the mean of the step, and the size of what was added up for it."""
        on_x_0, on_x_t, _ = step_weights(self.schedule)
        scale, var = walk(self.schedule)
        steps = zip(range(self.schedule.T, 0, -1), self.states, self.states[1:], self.eps_hat, strict=False)
        for t, x_t, x_prev, eps_hat in steps:
            x_0_hat = (x_t - var[t].sqrt() * eps_hat) / scale[t]
            x_0_hat = x_0_hat.clamp(-1, 1) if clip else x_0_hat
            parts = on_x_0[t] * x_0_hat, on_x_t[t] * x_t
            yield t, x_prev - sum(parts), max(float(part.abs().mean()) for part in parts)


SOME_STEPS = {2, 3, 10, 500, 999, 1000}  # of LONG, whose noise is looked at
LIMIT = 1e-9  # what is no matter of chance counts as |z| = 5 if it is off by this much
STARTS = [  # schedule, shape, size of x_T
    (SHORT, (4, 4, 4, 4), 1.0),
    (TWO, (3, 2, 1, 5), 1.0),
    (ONE, (2, 1, 3, 2), 1.0),
    (SHORT, (3, 1, 2, 4), 40.0),
    (STRONG, (3, 1, 2, 2), 1.0),
    (FAINT, (2, 3, 1, 2), UNIT),
]


@check(
    "7.3",
    "ancestral sampling",
    "implementation",
    "every step by conditioning, and the joint law of the noise of all steps",
)
@until(15)
def ancestral_sample(f):
    """f(eps_model, schedule, x_T, reverse_var=, clip=, generator=) walks the chain from x_T to x_0.

    What is no matter of chance counts as |z| = 5 if it is off by 1e-9. Unless told otherwise, the variance is β̃_t, and
    x_0_hat is clipped to [−1, 1].
    """
    for start in STARTS:
        yield from _means_of_steps(f, *start)
    yield from _promises(f)
    for schedule, shape, size in STARTS:
        for var, clip, source in (
            (posterior_var, True, "one"),
            (forward_var, False, "each"),
            (_some_var, True, "none"),
        ):
            wide = (*shape[:-1], -(-6000 // math.prod(shape[:-1])))
            yield from _noise_of_steps(f, schedule, wide, size, var, clip, source)
    yield from _means_of_steps(f, LONG, (3, 1, 2, 1), 1.0)
    yield from _noise_of_steps(f, LONG, (3, 1, 2, 400), 1.0, posterior_var, True)

    def draw(n, generator):
        x_T = some_images(n, 2, 1, 2)
        chain = Chain(f, SHORT, x_T, reverse_var=posterior_var, clip=True, generator=generator)
        return torch.stack([z for _, z in _standardised(chain, posterior_var, True)], 1)

    yield noise_score(draw, (3, 2, 1, 2))


def _means_of_steps(f, schedule, shape, size):
    """Where no step adds noise, each must come to its mean, and the last one to x_0_hat."""
    x_T = size * some_images(*shape)
    for clip in (True, False):
        chain = Chain(f, schedule, x_T, reverse_var=_no_var, clip=clip, generator=_seeded(1))
        yield chain.faults(x_T)
        for t, rest, unit in chain.rests(clip):
            yield 5 * _exactly(t, rest, unit, "no step shall add noise here") / LIMIT


def _exactly(t, rest, unit, when):
    """The distance of a step from its mean, where it must not add noise; and what is to be said of it."""
    gap = off(rest, torch.zeros_like(rest), unit)
    note(
        gap,
        f"The step from t = {t} does not come to its mean ({when}): x_{t - 1} is off by {float(rest.abs().max()):.3g}.",
        "Look at x_0_hat, where and whether it is clipped, at both weights of the mean, and for noise at t = 1.",
    )
    return gap


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def _step_var(schedule, var, t):
    beta = float(schedule.beta[t])
    return {posterior_var: float(step_weights(schedule)[2, t]), forward_var: beta, _some_var: beta * (0.3 + 0.5 / t)}[
        var
    ]


def _standardised(chain, var, clip):
    """For t = T, ..., 2: t and the noise of the step, which should be N(0, 1)."""
    for t, rest, _ in chain.rests(clip):
        if t > 1:
            yield t, rest / _step_var(chain.schedule, var, t) ** 0.5


def _noise_of_steps(f, schedule, shape, size, var, clip, source="one"):
    """|z| of tests that each step of one run adds fresh noise of this variance, and the last one none.

    source: of the noise, "one" generator for all images, one for "each" image, or "none", which is torch's own.
    """
    x_T = size * some_images(*shape)
    generator = {"one": _seeded(97), "each": [_seeded(97 + i) for i in range(len(x_T))], "none": None}[source]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(97)
        chain = Chain(f, schedule, x_T, reverse_var=var, clip=clip, generator=generator)
    yield chain.faults(x_T)
    *_, (_, rest, unit) = chain.rests(clip)
    yield 5 * _exactly(1, rest, unit, "the last step adds no noise") / LIMIT
    few = schedule.T < 10
    images_of = [z for t, z in _standardised(chain, var, clip) if few or t in SOME_STEPS]
    every = [z.flatten() for z in images_of]
    for z in images_of[:1]:
        yield from _neighbours(z)
    for z, x_t, eps_hat in zip(every, chain.states, chain.eps_hat, strict=False):
        yield law_score(z.numpy())
        for other in (x_t.flatten(), eps_hat.flatten()) if few else ():
            centred = other - other.mean()
            yield abs(float((z * centred).sum() / centred.square().sum() ** 0.5))
    if len(every) > 1:  # nor does the noise of one step know that of another
        rows = torch.stack([every[0], every[1]]).numpy()
        yield abs(np.corrcoef(rows)[0, 1]) * rows.shape[1] ** 0.5


def _neighbours(z):
    """|z| of correlations between entries that are next to each other: images, channels, rows and columns."""
    for dim, size in enumerate(z.shape):
        if size > 1:
            here, there = z.narrow(dim, 1, size - 1), z.narrow(dim, 0, size - 1)
            yield abs(float((here * there).mean())) * here.numel() ** 0.5


def _promises(f):
    """What has no size: defaults, one generator an image or none, no graph, and the dtype of the start."""
    x_T = some_images(3, 1, 2, 3)

    def run(x_T, **options):
        return Chain(f, SHORT, x_T, **options).result

    seeds = (7, 8, 9)
    each = run(x_T, generator=[_seeded(s) for s in seeds])
    for i, seed in enumerate(seeds):  # its own generator's noise, wherever in the batch it stands
        yield fault(not torch.equal(each[i : i + 1], run(x_T[i : i + 1], generator=[_seeded(seed)])))
    yield fault(torch.equal(each, run(x_T, generator=[_seeded(s) for s in (7, 8, 10)])))
    explicit = {"reverse_var": posterior_var, "clip": True}
    yield fault(not torch.equal(run(x_T, generator=_seeded(3)), run(x_T, generator=_seeded(3), **explicit)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        one, two = run(x_T), run(x_T)
        torch.manual_seed(5)
        yield fault(not torch.equal(run(x_T), one) or torch.equal(one, two))
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    yield Chain(f, SHORT, x_T, slope=slope, generator=_seeded(3)).faults(x_T)
    for schedule, size in ((SHORT, 1.0), (FAINT, UNIT)):
        start = size * some_images(3, 1, 2, 3).float()
        chain = Chain(f, schedule, start, reverse_var=_no_var, clip=False, generator=_seeded(3))
        yield chain.faults(start)
        yield from (5 * off(rest, torch.zeros_like(rest), unit) / 1e-5 for _, rest, unit in chain.rests(False))


def _chain(
    eps_model,
    schedule,
    x_T,
    reverse_var,
    clip,
    generator,
    *,
    times=None,
    asked=lambda t: t,
    last=False,
    root=True,
    noise=noise_like,
    tidy=lambda x: x,
):
    """A sampler with a place for each slip."""
    x_t = x_T
    for t in times or range(schedule.T, 0, -1):
        eps_hat = eps_model(x_t, torch.full((len(x_t),), asked(t))).detach()
        a = float(schedule.alpha_bar[t])
        x_0_hat = (x_t - (1 - a) ** 0.5 * eps_hat) / a**0.5
        x_0_hat = x_0_hat.clamp(-1, 1) if clip else x_0_hat
        x_t = _mean(schedule, x_t, x_0_hat, torch.tensor([t]).reshape([1] * x_t.ndim)[:1]).to(x_T.dtype)
        if t > 1 or last:
            var = reverse_var(schedule, t, like=x_t)
            x_t = x_t + (var.sqrt() if root else var) * noise(x_t, generator)
        x_t = tidy(x_t)
    return x_t


@ancestral_sample.wrong(
    "the network is given t − 1, where it was trained with t", seen="udlbook/udlbook, notebook 18.3", idea="time"
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, asked=lambda t: t - 1)


@ancestral_sample.wrong("noise in the last step too", seen=AT_THE_LAST_STEP, idea="edge")
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, last=True)


@ancestral_sample.wrong(
    "x_0_hat is never clipped", seen="Ho et al. 2020, Algorithm 2; hojonathanho/diffusion issue 5", idea="edge"
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, False, generator)


@ancestral_sample.wrong(
    "x_{t−1} is clipped, not x_0_hat",
    seen="no public source: a plausible slip (the noisy image kept in the data's range)",
    idea="edge",
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    bound = 1.0 if clip else math.inf
    return _chain(eps_model, schedule, x_T, reverse_var, False, generator, tidy=lambda x: x.clamp(-bound, bound))


@ancestral_sample.wrong(
    "one noise for all images of the batch",
    seen="huggingface/diffusers issue 6222, where it is proposed so that an image should not depend on its batch",
    idea="noise",
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    def noise(x, generator):
        one = generator[:1] if isinstance(generator, list) else generator
        return noise_like(x[:1], one).expand_as(x)

    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, noise=noise)


@ancestral_sample.wrong(
    "t counts up from 1 to T",
    seen="of this kind: nathan-barry/tiny-diffusion issue 2 (in a model of masked text)",
    idea="sign",
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, times=range(1, schedule.T + 1))


@ancestral_sample.wrong(
    "the loop ends at t = 2", seen="no public source: range(T, 1, −1), whose end is exclusive", idea="time"
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, times=list(range(schedule.T, 1, -1)) or [1])


@ancestral_sample.wrong("the variance in place of its root", seen="no public source: a plausible slip", idea="power")
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, root=False)


@ancestral_sample.wrong(
    "β̃_t, whatever variance is asked for", seen="no public source: an argument that is not read", idea="exchange"
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    var = _no_var if reverse_var is _no_var else posterior_var
    return _chain(eps_model, schedule, x_T, var, clip, generator)


@ancestral_sample.wrong(
    "the same noise in every step", seen="no public source: a seed that is set inside the loop", idea="noise"
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    state = None if generator is None or isinstance(generator, list) else generator.get_state()

    def noise(x, generator):
        return noise_like(x, generator if state is None else _seeded(0).set_state(state))

    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, noise=noise)


@ancestral_sample.wrong(
    "uniform noise of variance 1",
    seen="no public source: a plausible slip (survives every test of mean and variance)",
    idea="noise",
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    def noise(x, generator):
        if isinstance(generator, list):
            return torch.cat([noise(x[i : i + 1], g) for i, g in enumerate(generator)])
        return 12**0.5 * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)

    return _chain(eps_model, schedule, x_T, reverse_var, clip, generator, noise=noise)


@ancestral_sample.wrong(
    "the generator is not heeded", seen="no public source: the argument, left out of the call", idea="noise"
)
def _(eps_model, schedule, x_T, reverse_var=posterior_var, clip=True, generator=None):
    return _chain(eps_model, schedule, x_T, reverse_var, clip, None)


def mixture(data: Data) -> GaussianMixture:
    return GaussianMixture(*(torch.tensor(v) for v in (data.weight, data.mean[:, None], data.var[:, None])))


PLANE = GaussianMixture(
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    torch.tensor([[-0.7, 0.2], [0.4, 0.5], [0.6, -0.8]], dtype=torch.float64),
    torch.tensor([[0.1, 0.03], [0.05, 0.2], [0.02, 0.06]], dtype=torch.float64),
)
OFTEN = Schedule([0.1, 0.3, 0.02])
IN_THE_PLANE = [(OFTEN, 1, (0.3, -0.5)), (OFTEN, 2, (-0.4, 0.1)), (OFTEN, 3, (0.2, 0.3)), (TWO, 2, (0.5, -1.0))]


@functools.cache
def plane(schedule, t, x_t, points=241):
    """Grid (G, 2) of x_{t−1}, and q(x_{t−1}|x_t)·dx on it, for PLANE: Bayes' rule in two dimensions."""
    scale, var = (float(v[t - 1]) for v in walk(schedule))
    beta = float(schedule.beta[t])
    w, m, v = (p.numpy() for p in (PLANE.weight, PLANE.mean, PLANE.var))
    reach = 9 * (beta / (1 - beta)) ** 0.5
    axes = [
        np.linspace(
            max(x / (1 - beta) ** 0.5 - reach, (scale * m[:, i] - 9 * (scale**2 * v[:, i] + var) ** 0.5).min()),
            min(x / (1 - beta) ** 0.5 + reach, (scale * m[:, i] + 9 * (scale**2 * v[:, i] + var) ** 0.5).max()),
            points,
        )
        for i, x in enumerate(x_t)
    ]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    prior = (w * normal(x[:, None], scale * m, scale**2 * v + var).prod(-1)).sum(-1)
    joint = prior * normal(np.array(x_t), (1 - beta) ** 0.5 * x, beta).prod(-1)
    return x, joint / joint.sum()


def line_cases():
    """A denoiser, and what it is asked about in one call: t (n,), x_t (n, 1); and the data."""
    groups = {}
    for data, schedule, t, x_t in [*REVERSE, *FIRST]:
        groups.setdefault((data, schedule), []).append((t, x_t))
    for (data, schedule), asked in groups.items():
        t, x_t = zip(*asked, strict=True)
        yield (
            data,
            ExactDenoiser(mixture(data), schedule),
            torch.tensor(t),
            torch.tensor(x_t, dtype=torch.float64)[:, None],
        )


def moments_of_the_true_step(f, exact, unit, in_the_plane) -> Iterator[float]:
    """The distances of f(denoiser, x_t, t), (n, D), from quadrature on a line, and in the plane.

    exact(data, schedule, t, x_t): the value for one number; unit: the same, to divide by; in_the_plane(schedule, t,
    x_t): the values for two.
    """
    for data, denoiser, t, x_t in line_cases():
        where = [(data, denoiser.schedule, int(k), float(x)) for k, x in zip(t, x_t, strict=True)]
        expected, size = (
            torch.tensor([[float(g(*case))] for case in where], dtype=torch.float64) for g in (exact, unit)
        )
        yield disturbs(f, denoiser, x_t, t)
        yield off(f(denoiser, x_t, t), expected, size)
        for i in (0, -1):
            yield off(f(denoiser, x_t[i:][:1], int(t[i])), expected[i:][:1], size[i:][:1])
        rounded = f(denoiser, x_t.float().double(), t)
        single = f(denoiser, x_t.float(), t)
        yield fault(single.dtype != torch.float32)
        yield off(single, rounded, size * 1e5 * (1 + (x_t / size**0.5).abs() if unit is exact else 1))
    for schedule in (OFTEN, TWO):
        cases = [(t, x_t) for s, t, x_t in IN_THE_PLANE if s is schedule]
        t, x_t = torch.tensor([t for t, _ in cases]), torch.tensor([x for _, x in cases], dtype=torch.float64)
        expected = torch.tensor(np.array([in_the_plane(schedule, *case) for case in cases]))
        denoiser = ExactDenoiser(PLANE, schedule)
        yield off(f(denoiser, x_t, t), expected)
        yield slope_off(functools.partial(_at, f, denoiser, t), x_t, size=1e-3)


def _at(f, denoiser, t, x_t):
    return f(denoiser, x_t, t)


def _moment(case, power=1):
    x, density = reverse_step_on_a_grid(*case)
    mean = np.trapezoid(density * x, x)
    return mean if power == 1 else np.trapezoid(density * (x - mean) ** 2, x)


def _plane_moment(x, mass, power=1):
    mean = mass @ x
    return mean if power == 1 else mass @ (x - mean) ** 2


@check("7.4", "mean of the true step", "implementation", "Bayes' rule on the marginal q(x_{t−1}), on a grid", to=1e-9)
@until(1e-8)
def reverse_mean(f):
    """f(denoiser, x_t, t) returns E[x_{t−1}|x_t], (n, D), in units of the deviation of a step."""

    def unit(data, schedule, t, x_t):
        return _moment((data, schedule, t, x_t), 2) ** 0.5 / (1 - float(schedule.beta[t])) ** 0.5

    def exact(*case):
        return _moment(case)

    yield from moments_of_the_true_step(f, exact, unit, lambda *case: _plane_moment(*plane(*case)))


def _columns(denoiser, x_t, t):
    """x_t's shape aside: ᾱ_t, ᾱ_{t−1}, β_t as (n, 1) or (1, 1)."""
    t = torch.as_tensor(t).reshape(-1, 1)
    s = denoiser.schedule
    return s.alpha_bar[t].to(x_t), s.alpha_bar[t - 1].to(x_t), s.beta[t].to(x_t)


def _back(denoiser, x_t, x_0, t):
    """The posterior mean, for (n, D)."""
    a, a_prev, beta = _columns(denoiser, x_t, t)
    return (a_prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - a_prev) * x_t) / (1 - a)


def _parts(denoiser, x_t, t, prior=False):
    """q(x_0|x_t): weights (n, K, 1), means and variances (n, K, D)."""
    w, m, v = (p.to(x_t) for p in (denoiser.mixture.weight, denoiser.mixture.mean, denoiser.mixture.var))
    a = _columns(denoiser, x_t, t)[0][..., None]
    total = a * v + 1 - a
    miss = x_t[:, None] - a.sqrt() * m
    log_joint = w.log() - 0.5 * (miss**2 / total + total.log()).sum(-1)
    weight = w.expand_as(log_joint) if prior else log_joint.softmax(-1)
    return weight[..., None], m + a.sqrt() * v / total * miss, ((1 - a) * v / total).expand_as(miss)


def _open(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t)
    return (weight * (var + (mean - (weight * mean).sum(1, keepdim=True)) ** 2)).sum(1)


@reverse_mean.wrong("x_0_hat of t − 1", seen="udlbook/udlbook, notebook 18.3: the model is given t − 1", idea="time")
def _(denoiser, x_t, t):
    return _back(denoiser, x_t, denoiser.x_0_hat(x_t, (torch.as_tensor(t) - 1).clamp(min=1)), t)


@reverse_mean.wrong(
    "x_0_hat noised to t − 1: √ᾱ_{t−1}·x_0_hat",
    seen="of this kind: Bansal et al. 2022 (Cold Diffusion), Algorithm 1",
    idea="exchange",
)
def _(denoiser, x_t, t):
    return _columns(denoiser, x_t, t)[1].sqrt() * denoiser.x_0_hat(x_t, t)


@reverse_mean.wrong(
    "only the most probable component",
    seen="no public source: a plausible slip (the mode taken for the mean)",
    idea="exchange",
)
def _(denoiser, x_t, t):
    weight, mean, _ = _parts(denoiser, x_t, t)
    best = weight[..., 0].argmax(1)
    return _back(denoiser, x_t, mean[torch.arange(len(mean)), best], t)


@reverse_mean.wrong(
    "components weighted as in the data", seen="no public source: x_t says which one it was", idea="term"
)
def _(denoiser, x_t, t):
    weight, mean, _ = _parts(denoiser, x_t, t, prior=True)
    return _back(denoiser, x_t, (weight * mean).sum(1), t)


@reverse_mean.wrong(
    "x_0_hat clipped to [−1, 1]", seen="no public source: right for images, wrong for other data", idea="edge"
)
def _(denoiser, x_t, t):
    return _back(denoiser, x_t, denoiser.x_0_hat(x_t, t).clamp(-1, 1), t)


@reverse_mean.wrong(
    "√ᾱ_t in place of √α_t in x_t's weight", seen="the text of acids-ircam/diffusion_models", idea="exchange"
)
def _(denoiser, x_t, t):
    a, a_prev, beta = _columns(denoiser, x_t, t)
    return (a_prev.sqrt() * beta * denoiser.x_0_hat(x_t, t) + a.sqrt() * (1 - a_prev) * x_t) / (1 - a)


@check("7.5", "what x_t leaves open", "implementation", "Bayes' rule for x_0, on a grid", to=1e-9)
@until(1e-8)
def x_0_var(f):
    """f(denoiser, x_t, t) returns Var[x_0|x_t] of each entry, (n, D); relative to it."""

    def exact(*case):
        x_0, density = x_0_given_x_t(*case)
        mean = np.trapezoid(density * x_0, x_0)
        return np.trapezoid(density * (x_0 - mean) ** 2, x_0)

    def in_the_plane(schedule, t, x_t):
        axes = np.linspace(-2.5, 2.5, 501), np.linspace(-3, 4.5, 501)
        x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        scale, var = (float(v[t]) for v in walk(schedule))
        w, m, v = (p.numpy() for p in (PLANE.weight, PLANE.mean, PLANE.var))
        mass = (w * normal(x[:, None], m, v).prod(-1)).sum(-1) * normal(np.array(x_t), scale * x, var).prod(-1)
        return _plane_moment(x, mass / mass.sum(), 2)

    yield from moments_of_the_true_step(f, exact, exact, in_the_plane)


@x_0_var.wrong(
    "within the components only",
    seen="no public source: a plausible slip (the law of total variance, halved)",
    idea="term",
)
def _(denoiser, x_t, t):
    weight, _, var = _parts(denoiser, x_t, t)
    return (weight * var).sum(1)


@x_0_var.wrong("between the components only", seen="no public source: as if the data were K points", idea="term")
def _(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t)
    return (weight * (mean - (weight * mean).sum(1, keepdim=True)) ** 2).sum(1) + 0 * var[:, 0]


@x_0_var.wrong("components weighted as in the data", seen="no public source: x_t says which one it was", idea="term")
def _(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t, prior=True)
    return (weight * (var + (mean - (weight * mean).sum(1, keepdim=True)) ** 2)).sum(1)


@x_0_var.wrong("E[x_0²|x_t], the mean not taken away", seen="no public source: a plausible slip", idea="term")
def _(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t)
    return (weight * (var + mean**2)).sum(1)


@x_0_var.wrong(
    "one number for all entries", seen="no public source: right for one number, and for round components", idea="axis"
)
def _(denoiser, x_t, t):
    return _open(denoiser, x_t, t).mean(-1, keepdim=True).expand_as(x_t)


@x_0_var.wrong(
    "(1 − ᾱ_t)/ᾱ_t, the noise in x_t seen from x_0",
    seen="no public source: as if nothing were known of x_0",
    idea="exchange",
)
def _(denoiser, x_t, t):
    a = _columns(denoiser, x_t, t)[0]
    return ((1 - a) / a).expand_as(x_t)


@x_0_var.wrong("no smaller than 1e-8", seen="no public source: a clamp “for stability”", idea="edge")
def _(denoiser, x_t, t):
    return _open(denoiser, x_t, t).clamp(min=1e-8)


@check(
    "7.6", "variance of the true step", "implementation", "Bayes' rule on the marginal q(x_{t−1}), on a grid", to=1e-9
)
@until(1e-8)
def reverse_var_exact(f):
    """f(denoiser, x_t, t) returns Var[x_{t−1}|x_t] of each entry, (n, D); relative to it."""

    def exact(*case):
        return _moment(case, 2)

    yield from moments_of_the_true_step(f, exact, exact, lambda *case: _plane_moment(*plane(*case), 2))


def _widths(denoiser, x_t, t):
    """β̃_t, β_t and x_0's weight, (n, 1) or (1, 1)."""
    a, a_prev, beta = _columns(denoiser, x_t, t)
    return (1 - a_prev) / (1 - a) * beta, beta, a_prev.sqrt() * beta / (1 - a)


@reverse_var_exact.wrong(
    "β̃_t: x_0 is taken as known", seen="Ho et al. 2020, section 3.2, the second of two choices", idea="term"
)
def _(denoiser, x_t, t):
    return _widths(denoiser, x_t, t)[0].expand_as(x_t)


@reverse_var_exact.wrong(
    "β_t: the data are taken as N(0, I)", seen="Ho et al. 2020, section 3.2, the first of two choices", idea="exchange"
)
def _(denoiser, x_t, t):
    return _widths(denoiser, x_t, t)[1].expand_as(x_t)


@reverse_var_exact.wrong(
    "at most β_t", seen="no public source: true on average over x_t, not of every x_t", idea="edge"
)
def _(denoiser, x_t, t):
    lower, upper, on_x_0 = _widths(denoiser, x_t, t)
    return torch.minimum(lower + on_x_0**2 * _open(denoiser, x_t, t), upper)


@reverse_var_exact.wrong(
    "x_0's weight is not squared", seen="no public source: variance and deviation mixed up", idea="power"
)
def _(denoiser, x_t, t):
    lower, _, on_x_0 = _widths(denoiser, x_t, t)
    return lower + on_x_0 * _open(denoiser, x_t, t)


@reverse_var_exact.wrong(
    "β_t plus what is open, where β̃_t belongs", seen="no public source: a plausible slip", idea="exchange"
)
def _(denoiser, x_t, t):
    _, upper, on_x_0 = _widths(denoiser, x_t, t)
    return upper + on_x_0**2 * _open(denoiser, x_t, t)


@reverse_var_exact.wrong(
    "what is open at t − 1", seen="of this kind: udlbook/udlbook, notebook 18.3 (the model given t − 1)", idea="time"
)
def _(denoiser, x_t, t):
    lower, _, on_x_0 = _widths(denoiser, x_t, t)
    return lower + on_x_0**2 * _open(denoiser, x_t, (torch.as_tensor(t) - 1).clamp(min=1))


@check(
    "7.7", "the true step is a mixture", "implementation", "Bayes' rule on the marginal q(x_{t−1}), on a grid", to=1e-9
)
@until(1e-8)
def reverse_components(f):
    """f(denoiser, x_t, t) returns weights (n, K), means (n, K, D) and variances (n, K, D) of q(x_{t−1}|x_t)."""

    def density(parts, i, x):
        weight, mean, var = (part[i].numpy() for part in parts)
        return (weight * normal(x[:, None], mean, var).prod(-1)).sum(-1)

    for data, denoiser, t, x_t in line_cases():
        yield disturbs(f, denoiser, x_t, t)
        parts = f(denoiser, x_t, t)
        n, K = len(t), len(data.weight)
        yield fault([tuple(part.shape) for part in parts] != [(n, K), (n, K, 1), (n, K, 1)])
        for i in range(n):
            x, exact = reverse_step_on_a_grid(data, denoiser.schedule, int(t[i]), float(x_t[i]))
            floor = exact + 1e-6 * exact.max()  # relative, but for rounding in the far tails
            yield off(density(parts, i, x[:, None]), exact, floor)
            yield off(density(f(denoiser, x_t[i : i + 1], int(t[i])), 0, x[:, None]), exact, floor)
    for schedule, t, x_t in IN_THE_PLANE:
        x, mass = plane(schedule, t, x_t)
        parts = f(ExactDenoiser(PLANE, schedule), torch.tensor([x_t], dtype=torch.float64), torch.tensor([t]))
        got = density(parts, 0, x)
        yield off(got / got.sum(), mass, mass + 1e-6 * mass.max())
        yield off(parts[0].sum(), 1.0)
    t, x_t = torch.tensor([3, 2]), torch.tensor([[0.2, 0.3], [-0.4, 0.1]], dtype=torch.float64)

    def mixed(x_t):  # one number of each image, to which weights, means and variances contribute
        weight, mean, var = f(ExactDenoiser(PLANE, OFTEN), x_t, t)
        return (weight * (mean + var + mean**2).sum(-1)).sum(1)

    yield slope_off(mixed, x_t, size=1e-3)


def _steps(denoiser, x_t, t, mean, var):
    """Means and variances of x_{t−1} from those of x_0, (n, K, D)."""
    lower, _, on_x_0 = (v[..., None] for v in _widths(denoiser, x_t, t))
    flat = _back(denoiser, x_t, torch.zeros_like(x_t), t)[:, None]
    return flat + on_x_0 * mean, lower + on_x_0**2 * var


@reverse_components.wrong(
    "components weighted as in the data", seen="no public source: x_t says which one it was", idea="term"
)
def _(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t, prior=True)
    return weight[..., 0], *_steps(denoiser, x_t, t, mean, var)


@reverse_components.wrong(
    "one Gaussian with the right mean and variance",
    seen="Ho et al. 2020, Eq. 1: the model's step, taken for the truth",
    idea="noise",
)
def _(denoiser, x_t, t):
    weight, mean, _ = _parts(denoiser, x_t, t)
    center = (weight * mean).sum(1, keepdim=True).expand_as(mean)
    return weight[..., 0], *_steps(denoiser, x_t, t, center, _open(denoiser, x_t, t)[:, None].expand_as(mean))


@reverse_components.wrong(
    "every component as wide as the posterior, β̃_t", seen="no public source: as if data were K points", idea="term"
)
def _(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t)
    return weight[..., 0], *_steps(denoiser, x_t, t, mean, 1e-12 * var)


@reverse_components.wrong(
    "weights at t − 1", seen="no public source: a plausible slip (indices t and t − 1 mixed up)", idea="time"
)
def _(denoiser, x_t, t):
    before = _parts(denoiser, x_t, (torch.as_tensor(t) - 1).clamp(min=1))[0]
    _, mean, var = _parts(denoiser, x_t, t)
    return before[..., 0], *_steps(denoiser, x_t, t, mean, var)


@reverse_components.wrong(
    "deviations in place of variances", seen="no public source: two kinds of number under one name", idea="power"
)
def _(denoiser, x_t, t):
    weight, mean, var = _parts(denoiser, x_t, t)
    mean, var = _steps(denoiser, x_t, t, mean, var)
    return weight[..., 0], mean, var.sqrt()


SPREADS = (0.0, 1e-3, 0.3, 1.0, 2.5)  # variances of Gaussian data


@check("7.8", "true step for Gaussian data", "identity", "Bayes' rule on the marginal q(x_{t−1}), on a grid", to=1e-9)
@until(1e-8)
def gaussian_data(f):
    """f(schedule, t, data_var) returns Var[x_{t−1}|x_t] for data N(m, data_var); relative to it."""
    for schedule, times in (
        (SHORT, (1, 2, 3, 4)),
        (TWO, (1, 2)),
        (ONE, (1,)),
        (STRONG, (2,)),
        (LONG, (1, 2, 300, 1000)),
    ):
        for data_var in SPREADS:
            for t in times:
                yield disturbs(f, schedule, t, data_var)
                exact = _step_var_on_a_grid(schedule, t, data_var)
                yield off(float(f(schedule, t, data_var)), exact, exact or 1e-300)
    for data_var in (0.0, 0.4 * UNIT**2, 1.0):
        exact = _step_var_on_a_grid(FAINT, 2, data_var)
        yield disturbs(f, FAINT, 2, data_var)
        yield off(float(f(FAINT, 2, data_var)), exact, exact)


def _step_var_on_a_grid(schedule, t, data_var):
    """Var[x_{t−1}|x_t = 0] for data N(0, data_var): likelihood times marginal, on a grid where both are."""
    scale, noise_var = (float(v[t - 1]) for v in walk(schedule))
    beta, var = float(schedule.beta[t]), scale**2 * data_var + noise_var
    if var == 0:
        return 0.0
    x = min(var, beta / (1 - beta)) ** 0.5 * np.linspace(-9, 9, 1201)
    p = np.exp(-(x**2) / (2 * var) - (1 - beta) * x**2 / (2 * beta))
    return float((p * x**2).sum() / p.sum())


def _spread(schedule, t, data_var):
    return schedule.alpha_bar[t] * data_var + (1 - schedule.alpha_bar[t])


@gaussian_data.states
def _(schedule, t, data_var):
    return schedule.beta[t] * _spread(schedule, t - 1, data_var) / _spread(schedule, t, data_var)


@gaussian_data.wrong("β_t, whatever the data", seen="no public source: true for data_var = 1 only", idea="exchange")
def _(schedule, t, data_var):
    return schedule.beta[t]


@gaussian_data.wrong(
    "the ratio upside down", seen="no public source: a plausible slip (indices t and t − 1 swapped)", idea="time"
)
def _(schedule, t, data_var):
    return schedule.beta[t] * _spread(schedule, t, data_var) / _spread(schedule, t - 1, data_var).clamp(min=1e-12)


@gaussian_data.wrong(
    "data_var of the way from β̃_t to β_t",
    seen="no public source: a plausible slip (right at 0 and at 1, so taken for a straight line)",
    idea="exchange",
)
def _(schedule, t, data_var):
    lower = schedule.beta[t] * _spread(schedule, t - 1, 0.0) / _spread(schedule, t, 0.0)
    return lower + data_var * (schedule.beta[t] - lower)


@gaussian_data.wrong(
    "√ᾱ in place of ᾱ before the data's variance", seen="no public source: scale and its square mixed up", idea="power"
)
def _(schedule, t, data_var):
    before, after = (schedule.alpha_bar[s].sqrt() * data_var + 1 - schedule.alpha_bar[s] for s in (t - 1, t))
    return schedule.beta[t] * before / after


@check(
    "7.9",
    "variance of the samples",
    "identity",
    "the weights of all noises in x_0, followed one by one through the chain",
    to=1e-9,
)
@until(1e-8)
def variance_of_samples(f):
    """f(schedule, data_var, step_var) returns Var of x_0 for data N(0, data_var), the exact ε*, x_T from N(0, 1).

    step_var: σ_t² for t = 0..T, (T+1,); entry 0 is no step, and in the last step, t = 1, no noise is added.
    """
    for schedule in (SHORT, TWO, ONE, FAINT, STRONG, LONG):
        for data_var in (1.0, 0.09, 4.0) if schedule is not FAINT else (0.5 * UNIT**2,):
            for choice in (posterior_var, forward_var, _no_var, _some_var):
                step_var = torch.cat([torch.zeros(1), choice(schedule, torch.arange(1, schedule.T + 1))]).double()
                exact = _followed(schedule, data_var, step_var.tolist())
                yield disturbs(f, schedule, data_var, step_var)
                yield off(float(f(schedule, data_var, step_var)), exact, exact)


def _followed(schedule, data_var, step_var):
    """Var[x_0]: what is left of each noise of the chain, where every step's slope comes from regression."""
    on_x_0, on_x_t, _ = step_weights(schedule).tolist()
    scale, noise_var = (v.tolist() for v in walk(schedule))
    sizes = [1.0]  # of the independent noises in x_t, x_T's own first
    for t in range(schedule.T, 0, -1):
        total = scale[t] ** 2 * data_var + noise_var[t]
        slope = on_x_0[t] * scale[t] * data_var / total + on_x_t[t]
        sizes = [slope * size for size in sizes] + ([step_var[t] ** 0.5] if t > 1 else [])
    return math.fsum(size**2 for size in sizes)


def _recursion(schedule, data_var, step_var, slope, last=False, start=1.0):
    var = start
    for t in range(schedule.T, 0, -1):
        var = slope(t) ** 2 * var + (step_var[t] if t > 1 or last else 0.0)
    return var


def _true_slope(schedule, data_var):
    def slope(t):
        return schedule.alpha[t].sqrt() * _spread(schedule, t - 1, data_var) / _spread(schedule, t, data_var)

    return slope


@variance_of_samples.states
def _(schedule, data_var, step_var):
    return _recursion(schedule, data_var, step_var, _true_slope(schedule, data_var))


@variance_of_samples.wrong("noise in the last step too", seen=AT_THE_LAST_STEP, idea="edge")
def _(schedule, data_var, step_var):
    return _recursion(schedule, data_var, step_var, _true_slope(schedule, data_var), last=True)


@variance_of_samples.wrong(
    "the slope √α_t, whatever the data", seen="no public source: true for data_var = 1 only", idea="exchange"
)
def _(schedule, data_var, step_var):
    return _recursion(schedule, data_var, step_var, lambda t: schedule.alpha[t].sqrt())


@variance_of_samples.wrong(
    "the slope 1/√α_t: the mean without its noise term", seen="no public source: a plausible slip", idea="term"
)
def _(schedule, data_var, step_var):
    return _recursion(schedule, data_var, step_var, lambda t: 1 / schedule.alpha[t].sqrt())


@variance_of_samples.wrong(
    "deviations are added, not variances", seen="no public source: a plausible slip", idea="power"
)
def _(schedule, data_var, step_var):
    std, slope = torch.ones((), dtype=torch.float64), _true_slope(schedule, data_var)
    for t in range(schedule.T, 0, -1):
        std = slope(t) * std + (step_var[t].sqrt() if t > 1 else 0.0)
    return std**2


@variance_of_samples.wrong(
    "the variance of the data: a sampler taken for exact", seen="no public source: a hope", idea="claim"
)
def _(schedule, data_var, step_var):
    return data_var


def bent(a, b, c, v):
    """A step with mean a·x + b·sin(c·x), and a variance that changes with x where v has two numbers."""

    def step(x_t, t):
        var = v[0] if len(v) == 1 else v[0] + v[1] / (1 + x_t**2)
        return a * x_t + b * torch.sin(c * x_t), var

    return step


def by_t(*steps):
    """One step for each t = 1, 2, ..."""
    return lambda x_t, t: steps[t - 1](x_t, t)


CHAINS = [  # steps for t = 1, 2, ...
    [bent(0.7, 0.0, 1.0, (0.2,))],
    [bent(0.6, 0.25, 1.0, (0.0,))],
    [bent(0.9, 0.0, 1.0, (0.0,)), bent(0.5, 0.3, 1.3, (0.1,))],
    [bent(0.6, 0.3, 1.5, (0.0,)), bent(0.8, -0.2, 1.0, (0.3,))],
    [bent(0.8, 0.2, 1.0, (0.02,)), bent(0.7, 0.3, 1.0, (0.2, 0.3))],
    [bent(0.9, 0.2, 1.0, (0.0,)), bent(0.9, -0.1, 2.0, (0.15,)), bent(0.5, 0.3, 1.0, (0.05, 0.1))],
    [bent(0.9, 0.1, 1.0, (0.0,)), bent(0.7, 0.2, 1.0, (0.0,)), bent(0.8, 0.1, 1.0, (0.2,))],
]
FREQUENCIES = (0.3, 1.0, 2.5)


@check(
    "7.10", "law of the samples", "implementation", "its characteristic function, by Gauss–Hermite quadrature", to=1e-6
)
@until(1e-5)
def law_of_samples(f):
    """f(step, T) returns places (n,), ascending, and probabilities (n,) of x_0, for step(x_t, t) → mean, variance."""
    for steps in CHAINS:
        places, mass = f(by_t(*steps), len(steps))
        yield fault(places.shape != mass.shape or bool((places.diff() < 0).any()) or bool((mass < 0).any()))
        exact = by_hermite(tuple(steps))
        for u, (real, imaginary) in exact.items():
            yield off((mass * (u * places).cos()).sum(), real)
            yield off((mass * (u * places).sin()).sum(), imaginary)
        yield off(mass.sum(), 1.0)
    for T, a, b, v in ((60, 0.99, 0.02, 0.02), (400, 0.998, -0.001, 2e-4), (3, 0.1, 5.0, 1e-4)):  # all of it is normal
        mean, var = 0.0, 1.0
        for t in range(T, 0, -1):
            mean, var = a * mean + b, a**2 * var + (v if t > 1 else 0.0)

        def step(x_t, t, a=a, b=b, v=v):
            return a * x_t + b, v if t > 1 else 0.0

        places, mass = f(step, T)
        for u in FREQUENCIES:
            size = math.exp(-(u**2) * var / 2)
            yield off((mass * (u * places).cos()).sum(), size * math.cos(u * mean))
            yield off((mass * (u * places).sin()).sum(), size * math.sin(u * mean))
    half = by_t(lambda x_t, t: (x_t, torch.where(x_t > 0, 0.1, 0.0)))
    yield accepted(lambda: f(half, 1)) if "ValueError" in (inspect.getdoc(f) or "") else 0.0


@functools.cache
def by_hermite(steps, nodes=60):
    """E[cos(u·x_0)] and E[sin(u·x_0)] for each frequency u: every noise of the chain is integrated out in turn."""
    z, weight = hermite(nodes)
    z = z[:, 0]
    x, mass = z, weight
    for t in range(len(steps), 0, -1):
        mean, var = steps[t - 1](x[:, None], t)
        var = torch.as_tensor(var, dtype=torch.float64).expand(len(x), 1)
        if (var == 0).all():
            x = mean[:, 0]
        else:
            x, mass = (mean + var.sqrt() * z).flatten(), (mass[:, None] * weight).flatten()
    return {u: (float((mass * (u * x).cos()).sum()), float((mass * (u * x).sin()).sum())) for u in FREQUENCIES}


def _push(step, T, noise=True, start=1.0, root=True, times=None, spread=8.0, count=1501):
    """The law on one grid for all steps, with a place for slips."""
    x = spread * torch.linspace(-1, 1, count, dtype=torch.float64)
    mass = torch.exp(-(x**2) / (2 * start))
    mass = mass / mass.sum()
    for t in times or range(T, 0, -1):
        mean, var = step(x[:, None], t)
        var = torch.as_tensor(var, dtype=x.dtype).expand(len(x), 1)[:, 0]
        if not noise or (var == 0).all():
            x = mean[:, 0]
            continue
        var = var if root else var**2
        y = torch.linspace(float(mean.min()) - 2, float(mean.max()) + 2, count, dtype=torch.float64)
        mass = torch.exp(-((y[:, None] - mean[:, 0]) ** 2) / (2 * var)) / var.sqrt() @ mass
        x, mass = y, mass / mass.sum()
    x, order = x.sort()
    return x, mass[order]


@law_of_samples.wrong("no step adds noise", seen="huggingface/diffusers PR 13141: a “deterministic DDPM”", idea="noise")
def _(step, T):
    return _push(step, T, noise=False)


@law_of_samples.wrong("σ² taken for σ", seen="no public source: variance and deviation mixed up", idea="power")
def _(step, T):
    return _push(step, T, root=False)


@law_of_samples.wrong("steps in the order t = 1, ..., T", seen="no public source: a loop that counts up", idea="sign")
def _(step, T):
    return _push(step, T, times=range(1, T + 1), noise=T > 1, start=1.0 if T > 1 else 1.1)


@law_of_samples.wrong(
    "x_T from a normal law that is too narrow", seen="no public source: a start at √(1 − ᾱ_T) < 1", idea="noise"
)
def _(step, T):
    return _push(step, T, start=0.9)


@law_of_samples.wrong(
    "a normal law with the right mean and variance", seen="no public source: two moments taken for a law", idea="noise"
)
def _(step, T):
    x, mass = _push(step, T)
    mean = (mass * x).sum()
    var = (mass * (x - mean) ** 2).sum()
    x = mean + var.sqrt() * torch.linspace(-8, 8, 801, dtype=torch.float64)
    mass = torch.exp(-((x - mean) ** 2) / (2 * var))
    return x, mass / mass.sum()


@law_of_samples.wrong(
    "forty thousand random walkers", seen="no public source: right but for chance, which is too much", idea="noise"
)
def _(step, T):
    generator = _seeded(0)
    x = torch.randn(40_000, generator=generator, dtype=torch.float64)
    for t in range(T, 0, -1):
        mean, var = step(x[:, None], t)
        z = torch.randn(len(x), 1, generator=generator, dtype=torch.float64)
        x = (mean + torch.as_tensor(var).sqrt() * z)[:, 0]
    return x.sort()[0], torch.full_like(x, 1 / len(x))


@check("7.11", "an error along the chain", "identity", "two chains side by side, on the same noise", to=1e-9)
@until(1e-8)
def error_along_the_chain(f):
    """f(schedule, slope, delta) returns by how much x_0 moves, where ε_hat(x_t, t) = slope_t·x_t + offset_t + delta_t.

    slope, delta: tables for t = 0..T, (T+1,), entry 0 is not used. The chains start at the same x_T.
    """
    for schedule in (SHORT, TWO, ONE, STRONG, FAINT, LONG):
        scale, var = walk(schedule)
        for spread in (1.0, 0.05):
            for touched in ("all", "first", "last"):
                random = np.random.default_rng(3)
                slope = var.clamp(min=1e-300).sqrt() / (scale**2 * spread + var).clamp(min=1e-300)
                slope = slope * torch.from_numpy(random.uniform(0.7, 1.0, len(slope)))
                slope[0] = math.nan
                delta = torch.from_numpy(random.standard_normal(len(slope)))
                if touched != "all":
                    keep = schedule.T if touched == "first" else 1
                    delta = torch.where(torch.arange(len(delta)) == keep, delta, 0.0)
                delta[0] = math.nan
                moved, size = side_by_side(schedule, slope, delta)
                yield disturbs(f, schedule, slope, delta)
                yield off(float(f(schedule, slope, delta)), moved, size)


def side_by_side(schedule, slope, delta):
    """By how much the ends of two chains differ, and the size to measure it in; steps by conditioning."""
    on_x_0, on_x_t, _ = step_weights(schedule).tolist()
    scale, var = (v.tolist() for v in walk(schedule))
    apart, size = 0.0, 1e-300
    for t in range(schedule.T, 0, -1):
        of_eps = float(slope[t]) * apart + float(delta[t])  # the chains' estimates differ by this much
        of_x_0 = (apart - var[t] ** 0.5 * of_eps) / scale[t]
        size = max(size, abs(on_x_0[t] * var[t] ** 0.5 / scale[t] * float(delta[t])), 0.01 * size)
        apart = on_x_0[t] * of_x_0 + on_x_t[t] * apart
    return apart, max(abs(apart), 1e-6 * size)


def _carried(schedule, slope, delta, on_delta, factor):
    """The error at the end, from what a step's delta adds and by what a step multiplies what there is."""
    error = torch.zeros((), dtype=torch.float64)
    for t in range(schedule.T, 0, -1):
        error = factor(t) * error - on_delta(t) * delta[t]
    return error


def _shares(schedule):
    def on_delta(t):
        return schedule.beta[t] / (schedule.alpha[t].sqrt() * (1 - schedule.alpha_bar[t]).sqrt())

    return on_delta


@error_along_the_chain.states
def _(schedule, slope, delta):
    on_delta = _shares(schedule)
    return _carried(schedule, slope, delta, on_delta, lambda t: 1 / schedule.alpha[t].sqrt() - on_delta(t) * slope[t])


@error_along_the_chain.wrong(
    "errors add up as they are made", seen="no public source: a plausible slip (a step takes nothing away)", idea="term"
)
def _(schedule, slope, delta):
    return _carried(schedule, slope, delta, _shares(schedule), lambda t: 1.0)


@error_along_the_chain.wrong(
    "the estimate does not answer to a shifted x_t: a factor 1/√α_t in every step",
    seen="openai/improved-diffusion issue 105 (noise in place of a network's estimate)",
    idea="term",
)
def _(schedule, slope, delta):
    return _carried(schedule, slope, delta, _shares(schedule), lambda t: 1 / schedule.alpha[t].sqrt())


@error_along_the_chain.wrong(
    "the sign: noise that is overestimated is added", seen="no public source: a plausible slip", idea="sign"
)
def _(schedule, slope, delta):
    return _carried(
        schedule,
        slope,
        -delta,
        _shares(schedule),
        lambda t: 1 / schedule.alpha[t].sqrt() - _shares(schedule)(t) * slope[t],
    )


@error_along_the_chain.wrong("the root of 1 − ᾱ_t is lost", seen="no public source: a plausible slip", idea="power")
def _(schedule, slope, delta):
    def on_delta(t):
        return schedule.beta[t] / (schedule.alpha[t].sqrt() * (1 - schedule.alpha_bar[t]))

    return _carried(schedule, slope, delta, on_delta, lambda t: 1 / schedule.alpha[t].sqrt() - on_delta(t) * slope[t])


@error_along_the_chain.wrong(
    "the error of the first step only", seen="no public source: as if x_T alone mattered", idea="axis"
)
def _(schedule, slope, delta):
    on_delta, last = _shares(schedule), schedule.T
    only = torch.where(torch.arange(len(delta)) == last, delta, 0.0)
    return _carried(schedule, slope, only, on_delta, lambda t: 1 / schedule.alpha[t].sqrt() - on_delta(t) * slope[t])
