"""The checks of chapter 14, guidance: against slopes of log-densities by differences, quadrature, counts, and hands."""

import functools
import itertools
import math
import statistics

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from ddpm_lib.checks import apart, check
from ddpm_lib.checks.chapter_01 import hermite
from ddpm_lib.checks.chapter_03 import LONG, ONE, SHORT, TWO
from ddpm_lib.checks.guard import STENCIL, Watched, fault, slope_gap, until
from ddpm_lib.checks.noise import NEVER
from ddpm_lib.checks.record import note
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.exact.oracle import ExactDenoiser, GaussianMixture
from ddpm_lib.samplers.guidance import guided as _guided
from ddpm_lib.samplers.guidance_rules import CONVENTIONS

SCALES = (3.0, 0.5, 0.0, 1.0, -1.0, 25.0, 0.99)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _kept(schedule: Schedule, t: Tensor) -> Tensor:
    """ᾱ_t, from the chain walked to each t: (n,), float64."""
    walked = [1.0, *itertools.accumulate((1 - float(b) for b in schedule.beta[1:]), lambda a, b: a * b)]
    return torch.tensor(walked, dtype=torch.float64)[t]


class World:
    """Noised data of three classes in a batch of images, of which all is known: a mixture, seen as images."""

    def __init__(self, schedule: Schedule, shape: tuple[int, ...], t: list[int], seed: int = 0, wider: float = 0.0):
        draws, D = _seeded(seed), math.prod(shape)

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=draws, dtype=torch.float64)

        weight = 0.2 + uniform(3)
        mean, var = 2 * uniform(3, D) - 1, 0.1 + uniform(3, D)
        self.mixture = GaussianMixture(weight / weight.sum(), mean, var + wider)
        self.schedule, self.t, self.null = schedule, torch.tensor(t), 3
        self.x_t = 3 * uniform(len(t), *shape) - 1.5
        self.labels = torch.arange(len(t)) % 3
        self.negative = (self.labels + 1) % 4  # the last one may be none
        self.std = (1 - _kept(schedule, self.t)).sqrt()
        self.denoiser, self.asked, self.said = ExactDenoiser(self.mixture, schedule), [], []

    def model(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The exact denoiser, class by class; it counts the images that it is asked about."""
        self.asked.append(len(x_t))
        eps = self.denoiser(x_t.flatten(1), t, labels).reshape(x_t.shape)
        eps = eps if t.dtype == torch.int64 else eps * math.inf
        self.said.append((eps, eps.detach().clone()))
        return eps

    def joint(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(k)·q(x_t|k), rows (n, D) and t (n,) → (n, 3), from the chain walked to each t."""
        kept = _kept(self.schedule, t)[:, None, None]
        var = kept * self.mixture.var + 1 - kept
        away = x[:, None] - kept.sqrt() * self.mixture.mean
        return self.mixture.weight.log() - 0.5 * (away**2 / var + torch.log(2 * math.pi * var)).sum(-1)

    def logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What a classifier would say: log p(k|x_t), up to a number for each image."""
        self.asked.append(len(x_t))
        logits = self.joint(x_t.flatten(1), t)
        return logits if t.dtype == torch.int64 else logits * math.inf

    def slope(self, of) -> Tensor:
        """The gradient of of(rows, t, which) with respect to the image of each row, by differences: like x_t."""
        x, D, h = self.x_t.flatten(1), self.x_t[0].numel(), 2e-3
        which = torch.arange(len(x))
        total = torch.zeros_like(x)
        for k, factor in STENCIL:
            moved = (x[:, None] + k * h * torch.eye(D, dtype=x.dtype)).reshape(-1, D)  # each entry by itself
            values = of(moved, self.t.repeat_interleave(D), which.repeat_interleave(D))
            total += factor / h * values.reshape(-1, D)
        return total.reshape(self.x_t.shape)

    @functools.cached_property
    def parts(self) -> dict[str, Tensor]:
        """Noise estimates from log-densities: of none, of each image's label, of its negative, and of p(y|x_t)."""

        def noise(of) -> Tensor:
            return -_each(self.std, self.x_t) * self.slope(of)

        def of_label(labels):
            def log_density(x, t, which):
                joint = self.joint(x, t)
                own = joint.gather(1, labels[which].clamp(max=2)[:, None])[:, 0]
                return torch.where(labels[which] == 3, joint.logsumexp(1), own)

            return log_density

        none = noise(lambda x, t, which: self.joint(x, t).logsumexp(1))
        return {
            "none": none,
            "label": noise(of_label(self.labels)),
            "negative": noise(of_label(self.negative)),
            "class": noise(lambda x, t, which: self.joint(x, t).log_softmax(1)[range(len(x)), self.labels[which]]),
        }


def _each(values, like: Tensor) -> Tensor:
    """One number an image, (B,), to stand beside images."""
    return torch.as_tensor(values, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


@functools.cache
def worlds(wider: float = 0.0) -> list[World]:
    """Batches whose sides are all 2 come first: there what belongs to an image can be taken for a column's."""
    return [
        World(SHORT, (2, 2, 2), [3, 2], 0, wider),
        World(SHORT, (4, 1, 2), [4, 1, 2], 1, wider),
        World(SHORT, (2,), [1, 2, 3, 4, 3], 2, wider),
        World(TWO, (1, 1, 3), [2, 1], 3, wider),
        World(ONE, (1,), [1], 4, wider),
        World(LONG, (3, 2, 1), [500, 1000, 30], 5, wider),
    ]


def _scales(world: World) -> list:
    """Numbers, and one for each image."""
    draws = np.random.default_rng(0).uniform(-1, 4, len(world.t))
    return [SCALES[0], torch.tensor(draws), *SCALES[1:]]


def _twice(eps_model, world: World, *others: World) -> tuple[Tensor, float]:
    """What it says of the world's images; a fault unless it says so again and changes neither them nor an answer."""
    x_t, t = world.x_t.clone(), world.t.clone()
    for each in (world, *others):
        each.said.clear()
    with torch.no_grad():  # as samplers do
        eps_model(world.x_t / 2, world.t)  # of which nothing is to be kept
        first = eps_model(x_t, t)
        again = eps_model(world.x_t.clone(), world.t.clone())
    unlike = not (torch.equal(x_t, world.x_t) and torch.equal(t, world.t) and torch.equal(first, again))
    unlike |= x_t.requires_grad or not all(torch.equal(*pair) for each in (world, *others) for pair in each.said)
    if unlike:
        note(math.inf, "It changes what it is given, or says something else when it is asked again.")
    return first, fault(unlike and not bool(first.isnan().any()))


def _cost(eps_model, world: World, images: int) -> float:
    """A fault if the model is asked about more or fewer images than are needed."""
    world.asked.clear()
    with torch.no_grad():
        eps_model(world.x_t, world.t)
    wrong = sum(world.asked) != images
    if wrong:
        note(math.inf, f"The model is asked about {sum(world.asked)} images, where {images} are enough.")
    return fault(wrong)


# The exact classifier


@check("14.1", "exact classifier", "implementation", "Bayes' rule with q(x_t|y) by quadrature over x_0", to=1e-9)
@until(1e-8)
def exact_classifier(f):
    """f(mixture, schedule) returns a function of x_t (n, D) and t, an int or (n,): log p(k|x_t), (n, K).

    Gradients reach x_t.
    """
    for seed, (schedule, times) in enumerate(
        [(SHORT, [3, 1, 4, 2]), (TWO, [1, 2]), (ONE, [1]), (LONG, [200, 600, 1000])]
    ):
        draws = np.random.default_rng(seed)
        for K, D in ((3, 2), (2, 1), (4, 1)):
            weight, mean, var = draws.dirichlet(np.ones(K) * 3), draws.normal(size=(K, D)), 0.3 + draws.random((K, D))
            parts = [torch.tensor(part) for part in (weight, mean, var)]
            classifier = f(GaussianMixture(*parts), schedule)
            x_t = torch.tensor(1.5 * draws.normal(size=(len(times), D)))
            expected = torch.stack([_bayes(*parts, schedule, x, t) for x, t in zip(x_t, times, strict=True)])
            t = torch.tensor(times)
            got = classifier(x_t, t)
            yield apart(got, expected)
            yield fault(not all(map(np.array_equal, parts, (weight, mean, var))))  # the mixture stays as it was
            yield apart(classifier(x_t, t), got)
            for i, each in enumerate(times):
                yield apart(classifier(x_t, each)[i], expected[i])
            yield 1e-2 * slope_gap(lambda x: classifier(x, t), x_t)  # noqa: B023
            yield fault(classifier(x_t.float(), t).dtype != torch.float32)
            yield 1e-4 * apart(classifier(x_t.float(), t), expected)
    far = f(
        GaussianMixture(
            torch.tensor([0.5, 0.5]).double(), torch.tensor([[-1.0], [1.0]]).double(), 0 * parts[2][:2] + 1
        ),
        ONE,
    )
    a = float(ONE.alpha_bar[1])
    for x in (400.0, 4000.0):  # in nats, however unlikely
        yield apart(far(torch.tensor([[x]]).double(), 1)[0, 0] / x, -2 * a**0.5)


def _bayes(weight, mean, var, schedule, x, t):
    """log p(k|x_t) for one x_t (D,): q(x_t|k) is an integral over the clean points of component k."""
    kept = float(_kept(schedule, torch.tensor(t)))
    u = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    likelihood = []
    for k in range(len(weight)):
        clean = mean[k] + var[k].sqrt() * u  # (N, D), each dimension by itself
        noise = torch.exp(-((x - kept**0.5 * clean) ** 2) / (2 * (1 - kept)) - u**2 / 2)
        likelihood.append(weight[k] * noise.sum(0).prod())
    return torch.log(torch.stack(likelihood) / sum(likelihood))


def _classifier(log_prior=None, scale=None, spread=None, normalise=None):
    """A classifier with one part changed. Each is called with (weight, mean, var, ᾱ_t as (n, 1, 1))."""

    def make(mixture, schedule):
        def classifier(x_t, t):
            weight, mean, var = (p.to(x_t) for p in (mixture.weight, mixture.mean, mixture.var))
            a = schedule.alpha_bar[torch.as_tensor(t)].to(x_t).reshape(-1, 1, 1)
            m = (a.sqrt() if scale is None else scale(a)) * mean
            v = a * var + 1 - a if spread is None else spread(a, var)
            joint = -0.5 * ((x_t[:, None] - m) ** 2 / v + torch.log(v)).sum(-1)
            joint = joint + (weight.log() if log_prior is None else log_prior(weight))
            return joint.log_softmax(1) if normalise is None else normalise(joint)

        return classifier

    return make


NOBODY = "no public source: a plausible slip"

for _what, _seen, _idea, _wrong in (
    (
        "the classifier of clean images, asked about noisy ones",
        NOBODY + " (the one at hand was trained on clean images)",
        "time",
        lambda *of: _classifier(scale=lambda a: a * 0 + 1, spread=lambda a, var: var + 0 * a)(*of),
    ),
    ("the classes' shares are forgotten", NOBODY, "term", lambda *of: _classifier(log_prior=lambda w: 0 * w)(*of)),
    ("the noise's variance is not added", NOBODY, "term", lambda *of: _classifier(spread=lambda a, var: a * var)(*of)),
    (
        "all classes equally wide: only the noise counts",
        NOBODY,
        "term",
        lambda *of: _classifier(spread=lambda a, var: 1 - a + 0 * var)(*of),
    ),
    ("the mean shrinks by ᾱ_t, not by its root", NOBODY, "power", lambda *of: _classifier(scale=lambda a: a)(*of)),
    ("x_t is compared with the clean means", NOBODY, "term", lambda *of: _classifier(scale=lambda a: a * 0 + 1)(*of)),
    (
        "not divided by the sum over the classes",
        NOBODY,
        "term",
        lambda *of: _classifier(normalise=lambda joint: joint)(*of),
    ),
    (
        "probabilities in place of their logarithms",
        NOBODY,
        "power",
        lambda *of: _classifier(normalise=lambda joint: joint.softmax(1))(*of),
    ),
    (
        "normalised over the batch",
        NOBODY,
        "axis",
        lambda *of: _classifier(normalise=lambda joint: joint.log_softmax(0))(*of),
    ),
    (
        "a probability of at least 1e-6",
        NOBODY,
        "edge",
        lambda *of: _classifier(normalise=lambda joint: joint.softmax(1).clamp(min=1e-6).log())(*of),
    ),
    (
        "the deviation of the data in place of its variance",
        NOBODY,
        "power",
        lambda *of: _classifier(spread=lambda a, var: a * var.sqrt() + 1 - a)(*of),
    ),
):
    exact_classifier.wrong(_what, seen=_seen, idea=_idea)(_wrong)


# The gradient of a classifier


def _network(shape: tuple[int, ...], seed: int):
    """A small classifier with weights, of images of this shape: nothing of it is normal or normalised."""
    draws, D = _seeded(seed), math.prod(shape)
    first, second = (torch.randn(*size, generator=draws, dtype=torch.float64) for size in ((D, 7), (7, 4)))
    first.requires_grad_()

    def classifier(x_t, t):
        hidden = torch.tanh(x_t.flatten(1) @ first / D**0.5 + torch.log(t.to(x_t.dtype))[:, None] / 3)
        return hidden @ second + x_t.flatten(1).square().sum(1, keepdim=True)  # a number for each image besides

    return classifier, first


def _steep(world: World):
    """Logits 0 and z = 100·(sum of an image), and the gradient of class 0, whose log-probability is −log(1 + e^z)."""

    def logits(x_t, t):
        return 100 * x_t.flatten(1).sum(1)[:, None] * torch.tensor([0, 1])

    return logits, -100 * torch.sigmoid(_each(logits(world.x_t, world.t)[:, 1], world.x_t)).expand(world.x_t.shape)


@check("14.2", "gradient of a classifier", "implementation", "differences of log p(y|x_t), image by image", to=1e-9)
@until(1e-8)
def class_gradient(f):
    """f(classifier, x_t, t, labels) returns ∇ log p(y|x_t), like x_t; classifier(x_t, t): logits (B, classes)."""
    for seed, world in enumerate(worlds()):
        network, weights = _network(world.x_t.shape[1:], seed)
        for logits in (network, world.logits):

            def chosen(x, t, which, logits=logits, world=world):
                with torch.no_grad():
                    found = logits(x.reshape(-1, *world.x_t.shape[1:]), t)
                return (found - found.logsumexp(1, keepdim=True))[range(len(x)), world.labels[which]]

            got, unlike = _twice(lambda x_t, t: f(logits, x_t, t, world.labels), world)  # noqa: B023
            yield apart(got, world.slope(chosen))
            yield unlike
        yield fault(weights.grad is not None or got.requires_grad)
        leaf = world.x_t.clone().requires_grad_()
        yield apart(f(network, leaf, world.t, world.labels).detach(), f(network, world.x_t, world.t, world.labels))
        yield fault(leaf.grad is not None)
        steep, gradient = _steep(world)
        yield 1e-3 * apart(f(steep, world.x_t, world.t, 0 * world.labels), gradient)
        alone = f(network, world.x_t[:1], world.t[:1], world.labels[:1])
        yield apart(alone, f(network, world.x_t, world.t, world.labels)[:1])


def _gradient(of, batch=torch.sum):
    """A gradient of batch(of(logits, labels)), one number an image."""

    def gradient(classifier, x_t, t, labels):
        with torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            return torch.autograd.grad(batch(of(classifier(x, t), labels)), x)[0]

    return gradient


def _own(logits, labels):
    return logits.gather(1, labels[:, None])[:, 0]


def _right(logits, labels):
    return _own(logits.log_softmax(1), labels)


for _what, _seen, _idea, _wrong in (
    (
        "of the mean over the batch: divided by B",
        "torch's cross_entropy, whose default is a mean",
        "axis",
        lambda *of: _gradient(_right, torch.mean)(*of),
    ),
    ("of the logit: log-softmax forgotten", NOBODY, "term", lambda *of: _gradient(_own)(*of)),
    (
        "of the probability, not of its logarithm",
        NOBODY,
        "power",
        lambda *of: _gradient(lambda z, y: _own(z.softmax(1), y))(*of),
    ),
    (
        "of the loss: the sign",
        "torch's cross_entropy, which is −log p",
        "sign",
        lambda *of: _gradient(lambda z, y: -_right(z, y))(*of),
    ),
    (
        "of all classes' log-probabilities together",
        NOBODY,
        "axis",
        lambda *of: _gradient(lambda z, y: z.log_softmax(1).sum(1))(*of),
    ),
    ("of the most probable class", NOBODY, "exchange", lambda *of: _gradient(lambda z, y: _right(z, z.argmax(1)))(*of)),
    (
        "softmax over the batch",
        "of this kind: torch's softmax with dim=None",
        "axis",
        lambda *of: _gradient(lambda z, y: _own(z.log_softmax(0), y))(*of),
    ),
    (
        "each label's own odds: a sigmoid in place of the softmax",
        NOBODY,
        "exchange",
        lambda *of: _gradient(lambda z, y: torch.nn.functional.logsigmoid(_own(z, y)))(*of),
    ),
    ("softmax taken twice", NOBODY, "term", lambda *of: _gradient(lambda z, y: _right(z.softmax(1), y))(*of)),
    (
        "the class after the one that is asked for",
        NOBODY,
        "time",
        lambda *of: _gradient(lambda z, y: _right(z, (y + 1) % z.shape[1]))(*of),
    ),
    (
        "the label of the first image for all",
        NOBODY,
        "axis",
        lambda *of: _gradient(lambda z, y: _right(z, y[:1].expand_as(y)))(*of),
    ),
    ("log(p + 1e-3)", NOBODY, "edge", lambda *of: _gradient(lambda z, y: torch.log(_own(z.softmax(1), y) + 1e-3))(*of)),
    ("in bits", NOBODY, "power", lambda *of: _gradient(lambda z, y: _right(z, y) / math.log(2))(*of)),
):
    class_gradient.wrong(_what, seen=_seen, idea=_idea)(_wrong)


@class_gradient.wrong("at t − 1", seen="of this kind: openai/guided-diffusion 51", idea="time")
def _(classifier, x_t, t, labels):
    return _gradient(_right)(classifier, x_t, (t - 1).clamp(min=1), labels) + 1e-3 * (t == 1).all()


@class_gradient.wrong(
    "of length 1, whatever its size", seen="no public source: as in “normalised” guidance", idea="term"
)
def _(classifier, x_t, t, labels):
    gradient = _gradient(_right)(classifier, x_t, t, labels)
    return gradient / _each(gradient.flatten(1).norm(dim=1), gradient)


@class_gradient.wrong(
    "added to the gradients of the weights as well", seen=NOBODY + " (backward for grad)", idea="state"
)
def _(classifier, x_t, t, labels):
    with torch.enable_grad():
        x = x_t.detach().clone().requires_grad_()
        _right(classifier(x, t), labels).sum().backward()
    return x.grad


# Classifier guidance


@check("14.3", "classifier guidance", "implementation", "differences of log p(x_t) + s·log p(y|x_t)", to=1e-9)
@until(1e-8)
def classifier_guided(f):
    """f(eps_model, classifier, schedule, labels, scale) returns the guided noise as a function of (x_t, t).

    eps_model(x_t, t): an unconditional or a conditional one; classifier(x_t, t): logits; scale: a number or (B,).
    """
    for world in worlds():
        parts = world.parts
        for scale in _scales(world):
            for base, labels in (("none", torch.full_like(world.labels, 3)), ("label", world.labels)):

                def eps_model(x_t, t, labels=labels, world=world):
                    return world.model(x_t, t, labels)

                got, unlike = _twice(f(eps_model, world.logits, world.schedule, world.labels, scale), world)
                yield apart(got, parts[base] + _each(scale, world.x_t) * parts["class"])
                yield unlike
        steep, gradient = _steep(world)
        got = f(world.model, steep, world.schedule, 0 * world.labels, 1.0)(world.x_t, world.t)
        yield 1e-3 * apart(got, parts["none"] - _each(world.std, gradient) * gradient)


def _with(change):
    """ε changed by change(schedule, eps, gradient, t, s), with everything shaped like images."""

    def f(eps_model, classifier, schedule, labels, scale):
        def guided_eps(x_t, t):
            gradient = _gradient(_right)(classifier, x_t, t, labels)
            return change(schedule, eps_model(x_t, t), gradient, t, _each(scale, x_t))

        return guided_eps

    return f


def _table(values, t, like):
    return _each(values[t], like)


for _what, _seen, _idea, _wrong in (
    (
        "without √(1 − ᾱ_t)",
        "of this kind: arpitbansal297/Universal-Guided-Diffusion 5 (asked there)",
        "term",
        lambda *of: _with(lambda S, e, g, t, s: e - s * g)(*of),
    ),
    (
        "1 − ᾱ_t without its root",
        "of this kind: zhanyisun/lpb 2 (asked there)",
        "power",
        lambda *of: _with(lambda S, e, g, t, s: e - s * _table(1 - S.alpha_bar, t, e) * g)(*of),
    ),
    (
        "the sign: away from the class",
        NOBODY,
        "sign",
        lambda *of: _with(lambda S, e, g, t, s: e + s * _table((1 - S.alpha_bar).sqrt(), t, e) * g)(*of),
    ),
    (
        "√ᾱ_t for √(1 − ᾱ_t)",
        NOBODY,
        "exchange",
        lambda *of: _with(lambda S, e, g, t, s: e - s * _table(S.alpha_bar.sqrt(), t, e) * g)(*of),
    ),
    (
        "divided by √(1 − ᾱ_t)",
        NOBODY,
        "power",
        lambda *of: _with(lambda S, e, g, t, s: e - s * g / _table((1 - S.alpha_bar).sqrt(), t, e))(*of),
    ),
    (
        "√β_t for √(1 − ᾱ_t)",
        NOBODY,
        "exchange",
        lambda *of: _with(lambda S, e, g, t, s: e - s * _table(S.beta.sqrt(), t, e) * g)(*of),
    ),
    (
        "√(1 − ᾱ) of the step before",
        NOBODY,
        "time",
        lambda *of: _with(lambda S, e, g, t, s: e - s * _table((1 - S.alpha_bar).sqrt(), t - 1, e) * g)(*of),
    ),
    (
        "the variance β̃_t: the rule for the mean",
        "no public source: Algorithm 1 in the place of Algorithm 2",
        "exchange",
        lambda *of: _with(
            lambda S, e, g, t, s: (
                e - s * _table((1 - S.alpha_bar.roll(1)) / (1 - S.alpha_bar).clamp(min=1e-9) * S.beta, t, e) * g
            )
        )(*of),
    ),
    (
        "the scale is not heeded",
        NOBODY,
        "term",
        lambda *of: _with(lambda S, e, g, t, s: e - _table((1 - S.alpha_bar).sqrt(), t, e) * g)(*of),
    ),
    (
        "the scale taken for w: s + 1",
        NOBODY,
        "exchange",
        lambda *of: _with(lambda S, e, g, t, s: e - (s + 1) * _table((1 - S.alpha_bar).sqrt(), t, e) * g)(*of),
    ),
    (
        "no guidance for s < 1",
        "of this kind: huggingface/diffusers 12905",
        "edge",
        lambda *of: _with(lambda S, e, g, t, s: e - s * (s >= 1) * _table((1 - S.alpha_bar).sqrt(), t, e) * g)(*of),
    ),
    (
        "divided by the batch size",
        "of this kind: torch's cross_entropy, whose default is a mean",
        "axis",
        lambda *of: _with(lambda S, e, g, t, s: e - s * _table((1 - S.alpha_bar).sqrt(), t, e) * g / len(e))(*of),
    ),
    (
        "on the first three channels alone",
        "of this kind: facebookresearch/DiT 41",
        "axis",
        lambda *of: _with(
            lambda S, e, g, t, s: torch.cat([(e - s * _table((1 - S.alpha_bar).sqrt(), t, e) * g)[:, :3], e[:, 3:]], 1)
        )(*of),
    ),
    (
        "gradients of at most 1",
        "no public source: clipped as in training",
        "edge",
        lambda *of: _with(lambda S, e, g, t, s: e - s * _table((1 - S.alpha_bar).sqrt(), t, e) * g.clamp(-1, 1))(*of),
    ),
    (
        "the guided ε as long as the unguided one",
        NOBODY,
        "edge",
        lambda *of: _with(
            lambda S, e, g, t, s: (
                (e - s * _table((1 - S.alpha_bar).sqrt(), t, e) * g)
                * _each(
                    e.flatten(1).norm(dim=1)
                    / (e - s * _table((1 - S.alpha_bar).sqrt(), t, e) * g).flatten(1).norm(dim=1),
                    e,
                )
            )
        )(*of),
    ),
):
    classifier_guided.wrong(_what, seen=_seen, idea=_idea)(_wrong)


# The mean of a step


def _means():
    draws = np.random.default_rng(3)
    for shape in ((2, 2, 2, 2), (3, 1, 2, 4), (5, 2), (1, 1)):
        mean, gradient = draws.normal(size=(2, *shape))
        ones = (shape[0], *[1] * (len(shape) - 1))
        for var in (0.3, draws.uniform(0.05, 0.6, ones), draws.uniform(0.05, 0.6, shape), 2.5):
            for scale in (1.0, 3.0, draws.uniform(-1, 3, shape[0]), 0.0, -0.5):
                yield mean, var, gradient, scale
        yield mean, 0.0, gradient, 3.0  # the last step


@check("14.4", "guided mean", "implementation", "quadrature of a normal density times exp(s·gᵀx)", to=1e-9)
@until(1e-8)
def guided_mean(f):
    """f(mean, var, gradient, scale) returns the mean; var: a number, or like the mean; scale: a number or (B,)."""
    f = Watched(f)
    node, weight = (part.numpy() for part in hermite(60))
    for mean, var, gradient, scale in _means():
        s = scale if isinstance(scale, float) else scale.reshape(-1, *[1] * (mean.ndim - 1))
        std = np.broadcast_to(np.sqrt(var), mean.shape)
        z = node.reshape(-1, *[1] * mean.ndim)
        tilt = weight.reshape(z.shape) * np.exp(np.clip(s * gradient * std * z, -500, 500))
        expected = mean + (tilt * std * z).sum(0) / tilt.sum(0)
        given = [torch.as_tensor(v) if isinstance(v, np.ndarray) else v for v in (mean, var, gradient, scale)]
        got = f(*given)
        yield apart(got, expected)
        yield f.fault


def _mean(change):
    return lambda mean, var, gradient, scale: change(mean, torch.as_tensor(var), gradient, _each(scale, mean))


for _what, _seen, _idea, _wrong in (
    ("σ for σ²", NOBODY, "power", lambda *of: _mean(lambda m, v, g, s: m + s * v.sqrt() * g)(*of)),
    (
        "no variance: the gradient itself is added",
        "Feynben/GenerativeDiffusionPrior 27 (“we do not use Sigma”)",
        "term",
        lambda *of: _mean(lambda m, v, g, s: m + s * g)(*of),
    ),
    ("the sign", NOBODY, "sign", lambda *of: _mean(lambda m, v, g, s: m - s * v * g)(*of)),
    ("divided by the variance", NOBODY, "power", lambda *of: _mean(lambda m, v, g, s: m + s * g / v)(*of)),
    ("half of it, as in the exponent", NOBODY, "term", lambda *of: _mean(lambda m, v, g, s: m + s * v * g / 2)(*of)),
    ("the scale squared", NOBODY, "power", lambda *of: _mean(lambda m, v, g, s: m + s**2 * v * g)(*of)),
    ("the scale is not heeded", NOBODY, "term", lambda *of: _mean(lambda m, v, g, s: m + v * g)(*of)),
    (
        "the log-variance",
        "of this kind: huggingface/diffusers 14569 (one name for both)",
        "power",
        lambda *of: _mean(lambda m, v, g, s: m + s * v.log() * g)(*of),
    ),
    ("the mean is scaled: s·μ", NOBODY, "term", lambda *of: _mean(lambda m, v, g, s: s * m + v * g)(*of)),
    (
        "the mean's variance over the batch",
        NOBODY,
        "axis",
        lambda *of: _mean(lambda m, v, g, s: m + s * v * g.mean(0))(*of),
    ),
    (
        "the result is clipped to [−1, 1]",
        NOBODY,
        "edge",
        lambda *of: _mean(lambda m, v, g, s: (m + s * v * g).clamp(-1, 1))(*of),
    ),
):
    guided_mean.wrong(_what, seen=_seen, idea=_idea)(_wrong)


# Classifier-free guidance


@check("14.5", "classifier-free guidance", "implementation", "differences of log p(x_t) + s·log p(y|x_t)", to=1e-9)
@until(1e-8)
def guided(f):
    """f(model, labels, scale, null) returns the guided noise as a function of (x_t, t).

    model(x_t, t, labels): label `null` means none; scale: s, a number or (B,). For the numbers s = 0 and s = 1 the
    model is asked about B images, else about 2·B.
    """
    for world in worlds():
        parts = world.parts
        for scale in _scales(world):
            eps_model = f(world.model, world.labels, scale, 3)
            got, unlike = _twice(eps_model, world)
            yield apart(got, parts["none"] + _each(scale, world.x_t) * (parts["label"] - parts["none"]))
            yield unlike
            yield _cost(
                eps_model, world, len(world.t) * (1 if not isinstance(scale, Tensor) and scale in (0, 1) else 2)
            )
        first = f(world.model, world.labels, 2.0, 3)(world.x_t[:1], world.t[:1]) if len(world.t) == 1 else None
        yield 0.0 if first is None else apart(first, parts["none"] + 2 * (parts["label"] - parts["none"]))
        narrow = f(world.model, world.labels, 2.0, 3)(world.x_t.float(), world.t)
        yield fault(narrow.dtype != torch.float32)


def _free(combine, away=None, t_of=None, shortcut=True):
    """Guidance that combines (ε_∅, ε_y, s) so; away(labels, null): the labels of the branch without."""

    def f(model, labels, scale, null):
        def eps_model(x_t, t):
            if shortcut and not isinstance(scale, Tensor) and scale in (0, 1):
                return model(x_t, t, labels if scale else torch.full_like(labels, null))
            none = torch.full_like(labels, null) if away is None else away(labels, null)
            e, c = model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([none, labels])).chunk(2)
            return combine(e, c, _each(scale, x_t))

        return eps_model

    return f


for _what, _seen, _idea, _wrong in (
    (
        "the unconditional branch is given the label",
        "QiaoyuHu89/DiffGui 5",
        "exchange",
        lambda *of: _free(lambda e, c, s: e + s * (c - e), away=lambda y, null: y)(*of),
    ),
    (
        "ε_c + s·(ε_c − ε_∅), called scale s (it is s + 1)",
        "threestudio-project/threestudio 127 and 289",
        "exchange",
        lambda *of: _free(lambda e, c, s: c + s * (c - e))(*of),
    ),
    (
        "ε_c + w·ε_∅",
        "TeaPearce/Conditional_Diffusion_MNIST, an early README",
        "sign",
        lambda *of: _free(lambda e, c, s: c + (s - 1) * e)(*of),
    ),
    (
        "the sign: away from the class",
        "of this kind: an early README of TeaPearce/Conditional_Diffusion_MNIST",
        "sign",
        lambda *of: _free(lambda e, c, s: e - s * (c - e))(*of),
    ),
    (
        "on three of four channels",
        "facebookresearch/DiT 41 (copied into SiT, MDT and PixArt)",
        "axis",
        lambda *of: _free(lambda e, c, s: torch.cat([(e + s * (c - e))[:, :3], c[:, 3:]], 1))(*of),
    ),
    (
        "the two halves of the batch exchanged",
        NOBODY,
        "exchange",
        lambda *of: _free(lambda e, c, s: c + s * (e - c))(*of),
    ),
    (
        "no guidance for s < 1: the conditional model",
        "huggingface/diffusers 12905; open-mmlab/PowerPaint 65",
        "edge",
        lambda *of: _free(lambda e, c, s: torch.where(s < 1, c, e + s * (c - e)))(*of),
    ),
    ("s·ε_c − (1 − s)·ε_∅", NOBODY, "sign", lambda *of: _free(lambda e, c, s: s * c - (1 - s) * e)(*of)),
    ("(1 + s)·ε_c + s·ε_∅", NOBODY, "sign", lambda *of: _free(lambda e, c, s: (1 + s) * c + s * e)(*of)),
    ("w for s: s − 1", NOBODY, "exchange", lambda *of: _free(lambda e, c, s: e + (s - 1) * (c - e))(*of)),
    (
        "the label 0 means none",
        NOBODY,
        "exchange",
        lambda *of: _free(lambda e, c, s: e + s * (c - e), away=lambda y, null: 0 * y)(*of),
    ),
    (
        "the last class means none",
        NOBODY,
        "time",
        lambda *of: _free(lambda e, c, s: e + s * (c - e), away=lambda y, null: 0 * y + null - 1)(*of),
    ),
    ("one image's ε_∅ for all", NOBODY, "axis", lambda *of: _free(lambda e, c, s: e[:1] + s * (c - e[:1]))(*of)),
    (
        "both branches are asked, though s is 0 or 1",
        NOBODY,
        "term",
        lambda *of: _free(lambda e, c, s: e + s * (c - e), shortcut=False)(*of),
    ),
    (
        "a scale of each image stands beside the last axis",
        NOBODY,
        "axis",
        lambda model, labels, scale, null: _free(
            lambda e, c, s: e + (s.flatten() if e.shape[-1] == s.numel() else s) * (c - e)
        )(model, labels, scale, null),
    ),
    ("clipped to [−3, 3]", NOBODY, "edge", lambda *of: _free(lambda e, c, s: (e + s * (c - e)).clamp(-3, 3))(*of)),
    (
        "as long as the conditional one",
        "of this kind: Lin et al. 2024, section 3.4, always on",
        "edge",
        lambda *of: _free(
            lambda e, c, s: (
                (e + s * (c - e)) * _each(c.flatten(1).norm(dim=1) / (e + s * (c - e)).flatten(1).norm(dim=1), e)
            )
        )(*of),
    ),
):
    guided.wrong(_what, seen=_seen, idea=_idea)(_wrong)


# Conventions


def _published(value: float, convention: str, none: Tensor, label: Tensor, of_class: Tensor) -> Tensor:
    """The guided noise as each convention writes it."""
    return {
        "s": value * label + (1 - value) * none,
        "w": (1 + value) * label - value * none,
        "classifier": none + value * of_class,
        "classifier on conditional": label + value * of_class,
    }[convention]


@check("14.6", "conversion of scales", "implementation", "each convention's own formula on an exact model", to=1e-10)
@until(1e-9)
def conversion(f):
    """f(value, convention) returns s; convention: one of CONVENTIONS."""
    world = worlds()[0]
    none, label, of_class = (world.parts[name] for name in ("none", "label", "class"))
    for value, convention in itertools.product((2.0, 0.0, 1.0, 0.3, -1.5, 7.5, 100.0), CONVENTIONS):
        size = 1 + abs(value)
        s = float(f(value, convention))
        yield apart(none + s * (label - none), _published(value, convention, none, label, of_class), size)


def _plus(added, value, convention):
    """The value, with a number added that is another for each convention."""
    return value + dict(zip(CONVENTIONS, added, strict=True))[convention]


for _what, _seen, _idea, _wrong in (
    ("s = w: no conversion", "threestudio-project/threestudio 127", "exchange", lambda *of: _plus((0, 0, 0, 0), *of)),
    ("s = w − 1", NOBODY, "sign", lambda *of: _plus((0, -1, 0, -1), *of)),
    ("a classifier's scale on the conditional model is s", NOBODY, "exchange", lambda *of: _plus((0, 1, 0, 0), *of)),
    ("a classifier's scale on the unconditional model is w", NOBODY, "exchange", lambda *of: _plus((0, 1, 1, 1), *of)),
    ("every scale is raised by 1", NOBODY, "term", lambda *of: _plus((1, 1, 1, 1), *of)),
    ("w is s, and s is w", NOBODY, "exchange", lambda *of: _plus((1, 0, 0, 1), *of)),
):
    conversion.wrong(_what, seen=_seen, idea=_idea)(_wrong)


@conversion.wrong("a scale below 0 is 0", seen=NOBODY, idea="edge")
def _(value, convention):
    return max(value, 0.0) + CONVENTIONS[convention]


@conversion.wrong("twice w", seen=NOBODY, idea="term")
def _(value, convention):
    return value * (1 + CONVENTIONS[convention])


# Label dropout


@check("14.7", "label dropout", "implementation", "counts of coins: their rate, and how they hang together")
@until(15.0)
def dropout(f):
    """f(labels, probability, null, generator) returns labels (B,) or (B, J), each image's dropped by one coin."""
    for p, null in ((0.1, 10), (0.5, 3), (0.93, 10), (0.02, 2)):
        n = 40_000
        labels = torch.arange(n) * 7919 % null
        kept, seeded = labels.clone(), _seeded(1)
        global_state = torch.get_rng_state()
        got = f(labels, p, null, seeded)
        second = f(labels, p, null, seeded)
        yield fault(not (torch.equal(labels, kept) and got.dtype == labels.dtype and got.shape == labels.shape))
        yield fault(
            not (torch.equal(global_state, torch.get_rng_state()) and torch.equal(f(labels, p, null, _seeded(1)), got))
        )
        dropped = got == null
        yield fault(not torch.equal(got[~dropped], labels[~dropped]))
        z, other = ((coins.double() - p) / (p * (1 - p)) ** 0.5 for coins in (dropped, second == null))
        yield abs(float(z.sum())) / n**0.5
        yield max(abs(float(z[labels == k].sum())) / int((labels == k).sum()) ** 0.5 for k in range(null))
        yield abs(float((z * other).sum())) / n**0.5
        yield max(abs(float((z[lag:] * z[:-lag]).sum())) / (n - lag) ** 0.5 for lag in (1, 2, 3, 5, 10, 64, n // 2))
        batches = torch.stack([f(labels[:20], p, null, seeded) == null for _ in range(600)]).double().sum(1)
        mean, var = 20 * p, 20 * p * (1 - p)
        fourth = var**2 * 3 + var * (1 - 6 * p * (1 - p))
        yield abs(float(((batches - mean) ** 2).mean() - var)) * (600 / (fourth - var**2)) ** 0.5
        together = (f(labels[: n // 2].reshape(-1, 4), p, null, seeded) == null).sum(1)
        yield NEVER * float(((together != 0) & (together != 4)).any())
        yield abs(float((together == 4).double().mean()) - p) * (n / 8 / (p * (1 - p))) ** 0.5
        alone = torch.stack([f(labels[:1], p, null, seeded) for _ in range(2000)]) == null
        yield abs(float(alone.double().mean()) - p) * (2000 / (p * (1 - p))) ** 0.5
    ten = torch.arange(10).repeat(50)
    yield fault(f(ten.int(), 0.5, 10, _seeded(2)).dtype != torch.int32)
    yield fault(not torch.equal(f(ten, 0.0, 10, _seeded(2)), ten))
    yield fault(not bool((f(ten, 1.0, 10, _seeded(2)) == 10).all()))


def _coins(labels, p, generator):
    return (torch.rand(labels.shape[:1], generator=generator) < p).reshape(-1, *[1] * (labels.ndim - 1))


@dropout.wrong("kept with this probability, not dropped", seen=NOBODY, idea="sign")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, generator), labels, null)


@dropout.wrong(
    "a coin for each of an image's labels: all are dropped in p³ of the cases",
    seen="YuchuanTian/U-DiT 12",
    idea="noise",
)
def _(labels, p, null, generator):
    return torch.where(torch.rand(labels.shape, generator=generator) < p, null, labels)


@dropout.wrong("one coin for the whole batch", seen=NOBODY, idea="axis")
def _(labels, p, null, generator):
    return torch.where(torch.rand(1, generator=generator) < p, null, labels)


@dropout.wrong("the generator is not heeded", seen=NOBODY, idea="noise")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, None), null, labels)


@dropout.wrong("a seed of its own", seen=NOBODY, idea="noise")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, _seeded(0)), null, labels)


@dropout.wrong("the last class stands for none", seen=NOBODY + " (null − 1)", idea="time")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, generator), null - 1, labels)


@dropout.wrong("the label 0 stands for none", seen=NOBODY, idea="exchange")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, generator), 0, labels)


@dropout.wrong(
    "the last class is never trained",
    seen="of this kind: znxlwm/tensorflow-MNIST-cGAN-cDCGAN 1 (randint(0, 9))",
    idea="time",
)
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, generator) | (labels == null - 1), null, labels)


@dropout.wrong("another class in the place of none", seen=NOBODY, idea="exchange")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, generator), (labels + 1) % null, labels)


@dropout.wrong("exactly a share p of every batch", seen=NOBODY, idea="noise")
def _(labels, p, null, generator):
    order = torch.randperm(len(labels), generator=generator)
    chosen = (order < round(p * len(labels))).reshape(-1, *[1] * (labels.ndim - 1))
    return torch.where(chosen, null, labels)


@dropout.wrong("every tenth image, say", seen=NOBODY, idea="noise")
def _(labels, p, null, generator):
    turn = torch.arange(len(labels)).reshape(-1, *[1] * (labels.ndim - 1))
    return torch.where((turn * p) % 1 < p, null, labels)


@dropout.wrong("in place: the data set forgets its labels", seen=NOBODY, idea="state")
def _(labels, p, null, generator):
    return labels.masked_fill_(_coins(labels, p, generator), null)


@dropout.wrong("drawn twice: dropped with 1 − (1 − p)²", seen=NOBODY, idea="term")
def _(labels, p, null, generator):
    return torch.where(_coins(labels, p, generator) | _coins(labels, p, generator), null, labels)


@dropout.wrong("neighbours share a coin", seen=NOBODY, idea="axis")
def _(labels, p, null, generator):
    coins = torch.rand((len(labels) + 1) // 2, generator=generator) < p
    return torch.where(coins.repeat_interleave(2)[: len(labels)].reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


# What guidance samples


@functools.cache
def _flow(scale: float, var_class: float, var_data: float) -> float:
    """The variance at ᾱ = 1 of what the probability flow carries from N(0, 1) at ᾱ = 0, guided, for zero means."""

    def stretch(a):  # d log x/dᾱ = (1 + slope of the guided score)/(2·ᾱ), with 1 − 1/V = ᾱ·(v − 1)/V
        spread = [v * a + 1 - a for v in (var_class, var_data)]
        return (
            sum(f * (v - 1) / V for f, v, V in zip((scale, 1 - scale), (var_class, var_data), spread, strict=True)) / 2
        )

    return math.exp(2 * integrate.quad(stretch, 0, 1, epsabs=1e-13, epsrel=1e-13, limit=400)[0])


@check("14.8", "variance of guided samples", "identity", "the probability flow, integrated from noise to data", to=1e-9)
@until(1e-8)
def sampled_variance(f):
    """f(scale, var_class, var_data) returns the variance of guided samples without fresh noise, in many small steps.

    Data and class are normal, with mean 0 and these variances.
    """
    for scale, v, u in itertools.product((3.0, 0.0, 1.0, 0.5, 2.0, -1.0, 7.5), (0.25, 1.0, 0.04), (1.0, 0.5, 2.0)):
        yield apart(float(f(scale, v, u)) / _flow(scale, v, u), 1.0)


@sampled_variance.states
def _(scale, var_class, var_data):
    return var_class**scale * var_data ** (1 - scale)


for _what, _seen, _idea, _wrong in (
    (
        "that of the tilted density p(x)·p(y|x)^s",
        "refuted in Bradley and Nakkiran 2024, section 3",
        "claim",
        lambda s, v, u: 1 / (s / v + (1 - s) / u),
    ),
    ("the scale does not change it", NOBODY, "claim", lambda s, v, u: v),
    (
        "divided by the scale",
        "no public source: s for an inverse temperature of the class",
        "claim",
        lambda s, v, u: v / s if s else u,
    ),
    ("variances are mixed, not multiplied", NOBODY, "exchange", lambda s, v, u: s * v + (1 - s) * u),
    ("deviations are mixed", NOBODY, "exchange", lambda s, v, u: (s * v**0.5 + (1 - s) * u**0.5) ** 2),
    ("the deviation", NOBODY, "power", lambda s, v, u: (v**s * u ** (1 - s)) ** 0.5),
    ("the data's factor is forgotten", NOBODY, "term", lambda s, v, u: v**s),
    ("w for s", NOBODY, "exchange", lambda s, v, u: v ** (1 + s) * u**-s),
    ("class and data exchanged", NOBODY, "exchange", lambda s, v, u: u**s * v ** (1 - s)),
):
    sampled_variance.wrong(_what, seen=_seen, idea=_idea)(_wrong)


# When to guide


@check("14.9", "guidance interval", "implementation", "by hand, image by image", to=1e-12)
@until(1e-11)
def interval_scale(f):
    """f(scale, t, interval) returns a scale for each image, (B,); interval: (low, high), or None for every t."""
    f, draws = Watched(f), np.random.default_rng(0)
    for t in ([5, 2, 3, 4, 1], [1], [3, 3], [1000, 600, 1, 601, 599, 200, 2], [7]):
        for interval in ((2, 4), (3, 3), (1, 1000), (600, 1000), (0, 1), (200, 600), None, (8, 9)):
            for scale in (3.0, 0.0, -2.0, 1, draws.uniform(-1, 5, len(t))):
                each = [scale] * len(t) if isinstance(scale, (int, float)) else scale.tolist()
                low, high = interval or (-math.inf, math.inf)
                expected = [s if low <= when <= high else 1.0 for s, when in zip(each, t, strict=True)]
                given = scale if isinstance(scale, (int, float)) else torch.as_tensor(scale)
                yield apart(f(given, torch.tensor(t), interval), torch.tensor(expected, dtype=torch.float64))
        yield f.fault


def _at(inside, outside=1.0):
    def f(scale, t, interval):
        scale = torch.as_tensor(scale, dtype=torch.float64).expand(t.shape)
        if interval is None:
            return scale.clone()
        return torch.where(
            inside(t, *interval), scale, outside(scale) if callable(outside) else torch.tensor(outside).double()
        )

    return f


for _what, _idea, _wrong in (
    ("outside the interval, not inside", "sign", lambda *of: _at(lambda t, low, high: (t < low) | (t > high))(*of)),
    (
        "outside of it 0, the unconditional model",
        "exchange",
        lambda *of: _at(lambda t, low, high: (t >= low) & (t <= high), 0.0)(*of),
    ),
    ("the lower end does not belong to it", "edge", lambda *of: _at(lambda t, low, high: (t > low) & (t <= high))(*of)),
    ("the upper end does not belong to it", "edge", lambda *of: _at(lambda t, low, high: (t >= low) & (t < high))(*of)),
    ("only the lower end counts", "term", lambda *of: _at(lambda t, low, high: t >= low)(*of)),
    ("only the upper end counts", "term", lambda *of: _at(lambda t, low, high: t <= high)(*of)),
    (
        "the first image decides for all",
        "axis",
        lambda *of: _at(lambda t, low, high: ((t >= low) & (t <= high))[:1].expand(t.shape))(*of),
    ),
    (
        "none, unless all are inside",
        "axis",
        lambda *of: _at(lambda t, low, high: ((t >= low) & (t <= high)).all().expand(t.shape))(*of),
    ),
    ("t counted from 0", "time", lambda *of: _at(lambda t, low, high: (t - 1 >= low) & (t - 1 <= high))(*of)),
    (
        "outside of it half of the way",
        "term",
        lambda *of: _at(lambda t, low, high: (t >= low) & (t <= high), lambda s: (1 + s) / 2)(*of),
    ),
    (
        "counted from the start of sampling, 1001 − t",
        "time",
        lambda *of: _at(lambda t, low, high: (1001 - t >= low) & (1001 - t <= high))(*of),
    ),
):
    interval_scale.wrong(_what, seen=NOBODY, idea=_idea)(_wrong)


@interval_scale.wrong("a scale below 1 is raised to 1", seen=NOBODY, idea="edge")
def _(scale, t, interval):
    return _at(lambda t, low, high: (t >= low) & (t <= high))(scale, t, interval).clamp(min=1)


# As strong as before


@check(
    "14.10", "guidance rescale", "implementation", "standard deviations of lists of numbers, image by image", to=1e-9
)
@until(1e-8)
def rescale(f):
    """f(guided, conditional, rescale) returns the estimate, (B, ...); the deviation is one over all of an image.

    Where all of an image's guided numbers are equal, they stay as they are.
    """
    f, draws = Watched(f), np.random.default_rng(1)
    for shape in ((3, 2, 3, 4), (2, 2, 2, 2), (2, 4, 1, 2), (1, 1, 5, 3), (4, 6)):
        ones = (shape[0], *[1] * (len(shape) - 1))
        conditional = draws.normal(size=shape) * draws.uniform(0.3, 2, ones) + draws.normal(size=ones)
        guided_ = 3 * draws.normal(size=shape) * draws.uniform(0.5, 2, ones) + draws.normal(size=ones)
        for phi in (1.0, 0.7, 0.0, 0.25):
            rows = []
            for g, c in zip(guided_, conditional, strict=True):
                size = [statistics.pstdev(x.ravel().tolist()) for x in (c, g)]
                rows.append(phi * (g * size[0] / size[1]) + (1 - phi) * g)
            yield apart(f(torch.tensor(guided_), torch.tensor(conditional), phi), np.stack(rows))
        yield f.fault
    tiny = torch.tensor(1e-9 * draws.normal(size=(2, 1, 2, 3)))
    yield apart(1e9 * f(tiny, 2 * tiny, 1.0), 2e9 * tiny)
    yield apart(f(1e9 * tiny / 200, 1e9 * tiny, 1.0), 1e9 * tiny)
    yield fault(f(tiny.float(), 2 * tiny.float(), 0.5).dtype != torch.float32)
    far = 1e9 * tiny + 1e5  # all one side of 0
    yield 1e-5 * apart(f(far, 3e9 * tiny, 1.0), 3 * far)
    even = torch.full((2, 1, 2, 2), 0.3, dtype=torch.float64)
    yield apart(f(1e9 * tiny[..., :2], even, 0.6), 0.4e9 * tiny[..., :2])
    yield apart(f(even, torch.tensor(draws.normal(size=(2, 1, 2, 2))), 0.6), even)
    one = torch.tensor([[0.7], [-2.0]], dtype=torch.float64)  # a single number
    yield apart(f(one, 2 * one, 0.6), one)


def _rescale(ratio, mix=lambda g, r, phi: phi * (g * r) + (1 - phi) * g):
    """ratio(c, g): of an image's deviations, to stand beside images. An image without one stays."""

    def f(guided_, conditional, phi):
        found = ratio(conditional, guided_)
        return mix(guided_, torch.where(found.isfinite(), found, 1.0), phi)

    return f


def _image(measure):
    def ratio(c, g):
        of_g, of_c = (_each(measure(x.flatten(1)), x) for x in (g, c))
        return torch.where(of_g.abs() > 1e-14, of_c / of_g, 1.0)

    return ratio


_std = _image(lambda x: x.std(1, correction=0))

for _what, _seen, _idea, _wrong in (
    (
        "over the whole batch",
        NOBODY,
        "axis",
        lambda *of: _rescale(
            lambda c, g: (c.std(correction=0) / g.std(correction=0)).expand(len(g)).reshape(-1, *[1] * (g.ndim - 1))
        )(*of),
    ),
    (
        "each channel by itself",
        NOBODY,
        "axis",
        lambda *of: _rescale(
            lambda c, g: (
                c.flatten(2).std(2, correction=0)[(...,) + (None,) * (g.ndim - 2)]
                / g.flatten(2).std(2, correction=0)[(...,) + (None,) * (g.ndim - 2)]
                if g.ndim > 2
                else _std(c, g)
            )
        )(*of),
    ),
    (
        "variances in place of deviations",
        NOBODY,
        "power",
        lambda *of: _rescale(_image(lambda x: x.var(1, correction=0)))(*of),
    ),
    (
        "the root of the mean square: the mean is not taken off",
        NOBODY,
        "term",
        lambda *of: _rescale(_image(lambda x: x.square().mean(1).sqrt()))(*of),
    ),
    ("the inverse ratio", NOBODY, "power", lambda *of: _rescale(lambda c, g: 1 / _std(c, g))(*of)),
    (
        "φ and 1 − φ exchanged",
        NOBODY,
        "exchange",
        lambda *of: _rescale(_std, lambda g, r, phi: (1 - phi) * (g * r) + phi * g)(*of),
    ),
    ("φ is not heeded: always the whole way", NOBODY, "term", lambda *of: _rescale(_std, lambda g, r, phi: g * r)(*of)),
    ("the power φ of the ratio", NOBODY, "exchange", lambda *of: _rescale(_std, lambda g, r, phi: g * r**phi)(*of)),
    (
        "only made smaller, never larger",
        NOBODY,
        "edge",
        lambda *of: _rescale(_std, lambda g, r, phi: g * (1 + phi * (r.clamp(max=1) - 1)))(*of),
    ),
    (
        "ranges, from the smallest to the largest number",
        NOBODY,
        "exchange",
        lambda *of: _rescale(_image(lambda x: x.amax(1) - x.amin(1)))(*of),
    ),
    (
        "mean absolute deviations",
        NOBODY,
        "exchange",
        lambda *of: _rescale(_image(lambda x: (x - x.mean(1, keepdim=True)).abs().mean(1)))(*of),
    ),
    (
        "an ε of 1e-8 beside the deviation",
        NOBODY,
        "edge",
        lambda *of: _rescale(_image(lambda x: x.std(1, correction=0) + 1e-8))(*of),
    ),
    (
        "the mean is moved, too",
        NOBODY,
        "exchange",
        lambda g, c, phi: _rescale(_std)(g, c, phi) + phi * _each(c.flatten(1).mean(1) - g.flatten(1).mean(1), g),
    ),
):
    rescale.wrong(_what, seen=_seen, idea=_idea)(_wrong)


# Away from something


@check("14.11", "negative condition", "identity", "differences of log p(x_t|y') + s·log(p(x_t|y)/p(x_t|y'))", to=1e-9)
@until(1e-8)
def negative(f):
    """f(model, labels, negative, scale, null) returns the guided noise as a function of (x_t, t).

    negative: the label to lead away from, (B,), in 0..null.
    """
    for world in worlds():
        parts = world.parts
        for scale in _scales(world):
            got, unlike = _twice(f(world.model, world.labels, world.negative, scale, 3), world)
            yield apart(got, parts["negative"] + _each(scale, world.x_t) * (parts["label"] - parts["negative"]))
            yield unlike
        itself = f(world.model, world.labels, world.labels, 3.0, 3)(world.x_t, world.t)
        yield apart(itself, parts["label"])


@negative.states
def _(model, labels, negative, scale, null):
    return _guided(model, labels, scale, null, negative=negative)


def _three(combine):
    """combine(ε_∅, ε_y, ε_{y'}, s)."""

    def f(model, labels, negative, scale, null):
        def eps_model(x_t, t):
            none = model(x_t, t, torch.full_like(labels, null))
            return combine(none, model(x_t, t, labels), model(x_t, t, negative), _each(scale, x_t))

        return eps_model

    return f


for _what, _idea, _wrong in (
    ("the negative label is not heeded", "term", lambda *of: _three(lambda e, c, n, s: e + s * (c - e))(*of)),
    ("towards it, not away from it", "sign", lambda *of: _three(lambda e, c, n, s: c + s * (n - c))(*of)),
    ("ε_y − s·ε_{y'}", "term", lambda *of: _three(lambda e, c, n, s: c - s * n)(*of)),
    (
        "from none, with two differences",
        "term",
        lambda *of: _three(lambda e, c, n, s: e + s * (c - e) - s * (n - e))(*of),
    ),
    ("ε_∅ + s·(ε_y − ε_{y'})", "exchange", lambda *of: _three(lambda e, c, n, s: e + s * (c - n))(*of)),
    ("ε_y + s·(ε_y − ε_{y'})", "exchange", lambda *of: _three(lambda e, c, n, s: c + s * (c - n))(*of)),
    (
        "half none, half the negative label",
        "exchange",
        lambda *of: _three(lambda e, c, n, s: (e + n) / 2 + s * (c - (e + n) / 2))(*of),
    ),
):
    negative.wrong(_what, seen=NOBODY, idea=_idea)(_wrong)


# A worse model as a guide


@check("14.12", "autoguidance", "implementation", "differences of s·log p(x_t) + (1 − s)·log p'(x_t)", to=1e-9)
@until(1e-8)
def autoguidance(f):
    """f(model, worse, scale, labels) returns the guided noise as a function of (x_t, t); labels: (B,), or None.

    Both models are called as model(x_t, t), or model(x_t, t, labels). For the numbers s = 1 and s = 0 only one is.
    """
    for world, other in zip(worlds(), worlds(0.4), strict=True):
        for labels, part in ((world.labels, "label"), (None, "none")):
            for scale in _scales(world):
                eps_model = f(world.model, other.model, scale, labels)
                got, unlike = _twice(eps_model, world, other)
                good, bad = (w.parts[part] for w in (world, other))
                yield apart(got, _each(scale, world.x_t) * good + (1 - _each(scale, world.x_t)) * bad)
                yield unlike
                simple = not isinstance(scale, Tensor) and scale in (0, 1)
                yield _cost(eps_model, world, len(world.t) * (not simple or scale == 1))
                yield _cost(eps_model, other, len(world.t) * (not simple or scale == 0)) if simple else 0.0


def _auto(combine, of_worse=lambda labels: labels, shortcut=True):
    def f(model, worse, scale, labels):
        def eps_model(x_t, t):
            known, told = ((), ()) if labels is None else ((labels,), (of_worse(labels),))
            if shortcut and not isinstance(scale, Tensor) and scale in (0, 1):
                return model(x_t, t, *known) if scale else worse(x_t, t, *told)
            return combine(model(x_t, t, *known), worse(x_t, t, *told), _each(scale, x_t))

        return eps_model

    return f


for _what, _idea, _wrong in (
    ("towards the worse model", "exchange", lambda *of: _auto(lambda g, b, s: g + s * (b - g))(*of)),
    ("ε + s·(ε − ε'), which is scale s + 1", "exchange", lambda *of: _auto(lambda g, b, s: g + s * (g - b))(*of)),
    ("s·ε − (1 − s)·ε'", "sign", lambda *of: _auto(lambda g, b, s: s * g - (1 - s) * b)(*of)),
    (
        "the worse model is asked without the labels",
        "exchange",
        lambda *of: _auto(lambda g, b, s: b + s * (g - b), of_worse=lambda y: 0 * y + 3)(*of),
    ),
    ("the average of both", "exchange", lambda *of: _auto(lambda g, b, s: (g + b) / 2)(*of)),
    ("the good model alone", "term", lambda *of: _auto(lambda g, b, s: g + 0 * b)(*of)),
    ("one scale for all: the mean of them", "axis", lambda *of: _auto(lambda g, b, s: b + s.mean() * (g - b))(*of)),
    (
        "both are asked, though one does not count",
        "term",
        lambda *of: _auto(lambda g, b, s: b + s * (g - b), shortcut=False)(*of),
    ),
    (
        "on the first three channels alone",
        "axis",
        lambda *of: _auto(lambda g, b, s: torch.cat([(b + s * (g - b))[:, :3], g[:, 3:]], 1))(*of),
    ),
    ("no guidance for s < 1", "edge", lambda *of: _auto(lambda g, b, s: b + s.clamp(min=1) * (g - b))(*of)),
):
    autoguidance.wrong(_what, seen=NOBODY, idea=_idea)(_wrong)
