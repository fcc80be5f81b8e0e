"""Wrong versions of the equations of chapter 14 that stand beside no check: each is rejected all the same."""

import math

import pytest
import torch
from held_out import registry, rejecting

from ddpm_lib.exact.classifier import ExactClassifier
from ddpm_lib.samplers.classifier_guidance import class_gradient, classifier_guided, guided_mean
from ddpm_lib.samplers.guidance import autoguided, drop_labels, guided
from ddpm_lib.samplers.guidance_rules import cfg_scale, interval_scale, rescaled

pytestmark = pytest.mark.soak  # with those of the other chapters: many versions, each a function of its own

WRONG, wrong = registry()


def per_image(values, like):
    return torch.as_tensor(values, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


# Classifiers


def exact_with(name, change):
    def make(mixture, schedule):
        right = ExactClassifier(mixture, schedule)
        return lambda x_t, t: change(right, x_t, t, schedule)

    wrong("exact classifier", name)(make)


exact_with("the t of the first point for all", lambda f, x, t, S: f(x, int(torch.as_tensor(t).flatten()[0])))
exact_with("one step early", lambda f, x, t, S: f(x, (torch.as_tensor(t) - 1).clamp(min=1)))
exact_with("a temperature of 1/2", lambda f, x, t, S: (2 * f(x, t)).log_softmax(1))
exact_with("rounded to single precision", lambda f, x, t, S: f(x.float(), t).to(x.dtype))
exact_with("always in double precision", lambda f, x, t, S: f(x.double(), t))
exact_with("points beyond 3 are taken for 3", lambda f, x, t, S: f(x.clamp(-3, 3), t))
exact_with("a part in a million for every class", lambda f, x, t, S: torch.log(0.999999 * f(x, t).exp() + 1e-6 / 3))
exact_with("classes in the reverse order", lambda f, x, t, S: f(x, t).flip(1))
exact_with("in bits", lambda f, x, t, S: f(x, t) / math.log(2))
exact_with("the clean point that x_t implies is asked", lambda f, x, t, S: f(x / float(S.alpha_bar[1]) ** 0.5, t))


def gradient_with(name):
    return wrong("gradient of a classifier", name)


gradient_with("of one image's loss, for all")(lambda c, x, t, y: class_gradient(c, x, t, y)[:1].expand_as(x))
gradient_with("summed over the batch")(lambda c, x, t, y: class_gradient(c, x, t, y).sum(0, keepdim=True).expand_as(x))
gradient_with("its sign alone")(lambda c, x, t, y: class_gradient(c, x, t, y).sign())
gradient_with("in single precision")(lambda c, x, t, y: class_gradient(c, x, t, y).float().double())
gradient_with("0 where the class is certain already")(
    lambda c, x, t, y: class_gradient(c, x, t, y) * per_image((c(x, t).softmax(1).amax(1) < 0.9).double().detach(), x)
)
gradient_with("at clipped points")(lambda c, x, t, y: class_gradient(c, x.clamp(-1, 1), t, y))
gradient_with("no longer than 1")(
    lambda c, x, t, y: (
        class_gradient(c, x, t, y) / per_image(class_gradient(c, x, t, y).flatten(1).norm(dim=1).clamp(min=1), x)
    )
)
gradient_with("of labels smoothed by a tenth")(
    lambda c, x, t, y: 0.9 * class_gradient(c, x, t, y) + 0.1 * class_gradient(c, x, t, (y + 1) % 3)
)
gradient_with("times x, as a saliency map")(lambda c, x, t, y: class_gradient(c, x, t, y) * x)
gradient_with("absolute values")(lambda c, x, t, y: class_gradient(c, x, t, y).abs())


@gradient_with("against the second most probable class")
def _(classifier, x_t, t, labels):
    other = classifier(x_t, t).detach().scatter(1, labels[:, None], -torch.inf).argmax(1)
    return class_gradient(classifier, x_t, t, labels) - class_gradient(classifier, x_t, t, other)


@gradient_with("the tensor that was given is made to need gradients")
def _(classifier, x_t, t, labels):
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        log_p = classifier(x, t).log_softmax(1).gather(1, labels[:, None])
        log_p.sum().backward(inputs=[x, *([x_t] if x_t.is_leaf and x_t.requires_grad else [])])
        x_t += 1e-3
    return x.grad


# Guidance by a classifier


def classifier_with(name, change):
    def f(eps_model, classifier, schedule, labels, scale):
        right = classifier_guided(eps_model, classifier, schedule, labels, scale)
        return lambda x_t, t: change(right(x_t, t), eps_model(x_t, t), t, schedule, scale, x_t)

    wrong("classifier guidance", name)(f)


classifier_with("only the difference is returned", lambda e, base, t, S, s, x: e - base)
classifier_with("not at t = 1", lambda e, base, t, S, s, x: torch.where(per_image(t, x) == 1, base, e))
classifier_with("not at T", lambda e, base, t, S, s, x: torch.where(per_image(t, x) == S.T, base, e))
classifier_with("no negative scales", lambda e, base, t, S, s, x: torch.where(per_image(s, x) < 0, base, e))
classifier_with(
    "the first image's scale for all",
    lambda e, b, t, S, s, x: (
        b
        + (e - b)
        * per_image(
            torch.as_tensor(s).flatten()[0] / torch.where(torch.as_tensor(s) == 0, torch.inf, torch.as_tensor(s)), x
        )
    ),
)
classifier_with("the mean over the channels", lambda e, b, t, S, s, x: b + (e - b).mean(1, keepdim=True))
classifier_with("a change of at most 2", lambda e, b, t, S, s, x: b + (e - b).clamp(-2, 2))
classifier_with(
    "stronger with the noise: once more √(1 − ᾱ_t)",
    lambda e, b, t, S, s, x: b + (e - b) * per_image((1 - S.alpha_bar[t]).sqrt(), x),
)
classifier_with(
    "√(1 − ᾱ_t)/√ᾱ_t, as in x_0", lambda e, b, t, S, s, x: b + (e - b) / per_image(S.alpha_bar[t].sqrt(), x)
)
classifier_with(
    "the root of the scale",
    lambda e, b, t, S, s, x: b + (e - b) / per_image(torch.as_tensor(s).abs().clamp(min=1e-3).sqrt(), x),
)


def mean_with(name):
    return wrong("guided mean", name)


mean_with("between the two: half a step")(lambda m, v, g, s: (m + guided_mean(m, v, g, s)) / 2)
mean_with("1 − σ² for σ²")(lambda m, v, g, s: guided_mean(m, 1 - v, g, s))
mean_with("a variance of at most 1")(lambda m, v, g, s: guided_mean(m, torch.as_tensor(v).clamp(max=1), g, s))
mean_with("the gradient's mean over an image")(
    lambda m, v, g, s: guided_mean(m, v, g.flatten(1).mean(1).reshape(-1, *[1] * (g.ndim - 1)).expand_as(g), s)
)
mean_with("a scale of at least 0")(lambda m, v, g, s: guided_mean(m, v, g, torch.as_tensor(s).clamp(min=0)))
mean_with("with the second order in g")(lambda m, v, g, s: guided_mean(m, v, g, s) + 1e-3 * g**2)
mean_with("e^{σ²} for σ²")(lambda m, v, g, s: guided_mean(m, torch.as_tensor(v).exp(), g, s))


@mean_with("in place")
def _(mean, var, gradient, scale):
    mean += guided_mean(0 * mean, var, gradient, scale)
    return mean


# Guidance without one


def free_with(name, change):
    def f(model, labels, scale, null):
        right = guided(model, labels, scale, null)

        def eps_model(x_t, t):
            if not isinstance(scale, torch.Tensor) and scale in (0, 1):
                return right(x_t, t)
            return change(right(x_t, t), model(x_t, t, labels), model(x_t, t, 0 * labels + null), scale, t, x_t)

        return eps_model

    wrong("classifier-free guidance", name)(f)


free_with("each image is asked about four times", lambda e, c, n, s, t, x: e)
free_with("half of it", lambda e, c, n, s, t, x: (e + c) / 2)
free_with("not at t = 1", lambda e, c, n, s, t, x: torch.where(per_image(t, x) == 1, c, e))
free_with("a scale of at least 0", lambda e, c, n, s, t, x: torch.where(per_image(s, x) < 0, n, e))
free_with("a scale of at most 5", lambda e, c, n, s, t, x: torch.where(per_image(s, x) > 5, n + 5 * (c - n), e))
free_with(
    "the first image's scale for all", lambda e, c, n, s, t, x: n + float(torch.as_tensor(s).flatten()[0]) * (c - n)
)
free_with("guided only where the two differ in sign", lambda e, c, n, s, t, x: torch.where(c * n < 0, e, c))
free_with(
    "the part along ε_y is left out",
    lambda e, c, n, s, t, x: (
        c + (e - c) - per_image(((e - c) * c).flatten(1).sum(1) / c.flatten(1).square().sum(1), x) * c
    ),
)
free_with("weaker at small t", lambda e, c, n, s, t, x: c + (e - c) * per_image((t / 4).clamp(max=1).double(), x))


@wrong("classifier-free guidance", "always in double precision")
def _(model, labels, scale, null):
    return lambda x_t, t: guided(model, labels, scale, null)(x_t, t).double()


@wrong("classifier-free guidance", "the labels are turned around in the doubled batch")
def _(model, labels, scale, null):
    return guided(model, labels.flip(0), scale, null)


@wrong("classifier-free guidance", "scales near 1 are 1")
def _(model, labels, scale, null):
    return guided(model, labels, 1.0 if not isinstance(scale, torch.Tensor) and abs(scale - 1) < 0.05 else scale, null)


@wrong("conversion of scales", "rounded to whole numbers")
def _(value, convention):
    return float(round(cfg_scale(value, convention)))


@wrong("conversion of scales", "of at least 1")
def _(value, convention):
    return max(1.0, cfg_scale(value, convention))


@wrong("conversion of scales", "of at most 20")
def _(value, convention):
    return min(20.0, cfg_scale(value, convention))


@wrong("conversion of scales", "0 means no guidance: scale 1")
def _(value, convention):
    return 1.0 if value == 0 else cfg_scale(value, convention)


@wrong("conversion of scales", "the conventions that begin with c are alike")
def _(value, convention):
    return cfg_scale(value, "classifier" if convention.startswith("c") else convention)


# Dropped labels


@wrong("label dropout", "whole runs of labels at once")
def _(labels, p, null, generator):
    coins = torch.rand(len(labels) // 10 + 1, generator=generator) < p
    dropped = coins.repeat_interleave(10)[: len(labels)].reshape(-1, *[1] * (labels.ndim - 1))
    return torch.where(dropped, null, labels)


@wrong("label dropout", "the first class is spared")
def _(labels, p, null, generator):
    return torch.where(labels == 0, labels, drop_labels(labels, p, null, generator))


@wrong("label dropout", "normal numbers for uniform ones")
def _(labels, p, null, generator):
    drop = torch.randn(labels.shape[:1], generator=generator) < p
    return torch.where(drop.reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


@wrong("label dropout", "null + 1")
def _(labels, p, null, generator):
    return drop_labels(labels, p, null + 1, generator)


@wrong("label dropout", "as floating-point numbers")
def _(labels, p, null, generator):
    return drop_labels(labels, p, null, generator).float()


@wrong("label dropout", "at most one label a batch of 20")
def _(labels, p, null, generator):
    dropped = drop_labels(labels, p, null, generator)
    if len(labels) <= 20:
        return torch.where((dropped == null).cumsum(0) > 1, labels, dropped)
    return dropped


@wrong("label dropout", "the images are shuffled, too")
def _(labels, p, null, generator):
    return drop_labels(labels, p, null, generator).flip(0)


@wrong("label dropout", "a rate that rises along the batch")
def _(labels, p, null, generator):
    rate = 2 * p * torch.linspace(0, 1, len(labels)) if len(labels) > 1 else torch.tensor([p])
    drop = torch.rand(len(labels), generator=generator) < rate
    return torch.where(drop.reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


@wrong("label dropout", "seeds torch itself on the way")
def _(labels, p, null, generator):
    torch.manual_seed(0)
    return drop_labels(labels, p, null, generator)


# What is sampled


def variance_with(name):
    return wrong("variance of guided samples", name)


variance_with("as if the noise grew with it: (2s − 1)")(lambda s, v, u: v ** (2 * s - 1) * u ** (2 - 2 * s))
variance_with("at least the class's own")(lambda s, v, u: max(v, v**s * u ** (1 - s)))
variance_with("the class's, and 1/s² of it beyond 1")(lambda s, v, u: v / max(s, 1) ** 2)
variance_with("no data variance but 1")(lambda s, v, u: v**s * u ** min(0, 1 - s))
variance_with("halfway to the tilted one")(lambda s, v, u: (v**s * u ** (1 - s) + 1 / (s / v + (1 - s) / u)) / 2)
variance_with("s of at least 0")(lambda s, v, u: v ** max(s, 0) * u ** (1 - max(s, 0)))


# Rules


def interval_with(name):
    return wrong("guidance interval", name)


interval_with("a smooth edge")(
    lambda s, t, i: 1 + (interval_scale(s, t, i) - 1) * (1 if i is None else (t != i[0]) * 0.5 + 0.5)
)
interval_with("None means nowhere")(lambda s, t, i: interval_scale(s, t, (10**6, 10**6) if i is None else i))
interval_with("in the order of t")(lambda s, t, i: interval_scale(s, t.sort().values, i))
interval_with("low = 0 stands for no interval")(lambda s, t, i: interval_scale(s, t, None if i and i[0] == 0 else i))
interval_with("one scale for all: their mean")(
    lambda s, t, i: interval_scale(torch.as_tensor(s, dtype=torch.float64).mean(), t, i)
)
interval_with("t = 1 always belongs to it")(
    lambda s, t, i: torch.where(t == 1, torch.as_tensor(s, dtype=torch.float64), interval_scale(s, t, i))
)
interval_with("a scale, not scales")(
    lambda s, t, i: torch.as_tensor(s, dtype=torch.float64) * torch.ones(len(t)).double()
)


def rescale_with(name):
    return wrong("guidance rescale", name)


rescale_with("of the first image, for all")(
    lambda g, c, phi: g * (1 + phi * (c[0].std(correction=0) / g[0].std(correction=0).clamp(min=1e-12) - 1))
)
rescale_with("each row by itself")(
    lambda g, c, phi: (
        g * (1 + phi * (c.std(-1, correction=0, keepdim=True) / g.std(-1, correction=0, keepdim=True) - 1))
    )
)
rescale_with("over batch and pixels, a channel at a time")(
    lambda g, c, phi: (
        g
        * (
            1
            + phi
            * (
                c.transpose(0, 1).flatten(1).std(1, correction=0) / g.transpose(0, 1).flatten(1).std(1, correction=0)
                - 1
            ).reshape(1, -1, *[1] * (g.ndim - 2))
        )
    )
)
rescale_with("towards the conditional one itself")(lambda g, c, phi: (1 - phi) * g + phi * c)
rescale_with("medians of absolute values")(
    lambda g, c, phi: (
        g * (1 + phi * (per_image(c.flatten(1).abs().median(1).values / g.flatten(1).abs().median(1).values, g) - 1))
    )
)
rescale_with("largest values")(
    lambda g, c, phi: g * (1 + phi * (per_image(c.flatten(1).abs().amax(1) / g.flatten(1).abs().amax(1), g) - 1))
)
rescale_with("the square of φ")(lambda g, c, phi: rescaled(g, c, phi**2))
rescale_with("the conditional one is rescaled")(lambda g, c, phi: rescaled(c, g, phi))
rescale_with("the mean stays: only what differs from it is scaled")(
    lambda g, c, phi: (
        rescaled(g, c, phi)
        + per_image(g.flatten(1).mean(1), g)
        * (1 - (rescaled(g, c, phi) / g).flatten(1).mean(1).reshape(-1, *[1] * (g.ndim - 1)))
    )
)
rescale_with("a deviation below 1e-6 is left")(
    lambda g, c, phi: torch.where(per_image(g.flatten(1).std(1, correction=0), g) < 1e-6, g, rescaled(g, c, phi))
)


# Others in the place of none


def negative_with(name):
    return wrong("negative condition", name)


negative_with("label and negative label exchanged")(
    lambda model, y, n, s, null: guided(model, n.clamp(max=null - 1), s, null, negative=y)
)
negative_with("none where the negative label is the last class")(
    lambda model, y, n, s, null: guided(model, y, s, null, negative=torch.where(n == null - 1, null, n))
)
negative_with("the first image's negative label for all")(
    lambda model, y, n, s, null: guided(model, y, s, null, negative=n[:1].expand_as(n) + 0 * n)
)
negative_with("w for s")(lambda model, y, n, s, null: guided(model, y, s + 1, null, negative=n))
negative_with("negated")(lambda model, y, n, s, null: lambda x, t: -guided(model, y, s, null, negative=n)(x, t))


def auto_with(name):
    return wrong("autoguidance", name)


auto_with("the worse model at t − 1")(
    lambda m, w, s, y: autoguided(m, lambda x, t, *k: w(x, (t - 1).clamp(min=1), *k), s, y)
)
auto_with("the worse model sees a clipped image")(
    lambda m, w, s, y: autoguided(m, lambda x, t, *k: w(x.clamp(-1, 1), t, *k), s, y)
)
auto_with("the labels reach neither")(lambda m, w, s, y: autoguided(m, w, s, None))
auto_with("a scale of at least 0")(
    lambda m, w, s, y: autoguided(m, w, s.clamp(min=0) if isinstance(s, torch.Tensor) else max(s, 0), y)
)
auto_with("a scale of at most 4")(
    lambda m, w, s, y: autoguided(m, w, s if isinstance(s, torch.Tensor) else min(s, 4), y)
)
auto_with("1 + s")(lambda m, w, s, y: autoguided(m, w, 1 + s, y))


# Where the first checks did not look


exact_with("the logarithm of a softmax, which underflows", lambda f, x, t, S: f(x, t).exp().log())
exact_with("no gradient reaches x_t", lambda f, x, t, S: f(x.detach(), t))

gradient_with("clipped to the length 10")(
    lambda c, x, t, y: (
        class_gradient(c, x, t, y) * per_image(10 / class_gradient(c, x, t, y).flatten(1).norm(dim=1).clamp(min=10), x)
    )
)


@gradient_with("the caller's tensor needs gradients from then on")
def _(classifier, x_t, t, labels):
    with torch.enable_grad():
        log_p = classifier(x_t.requires_grad_(), t).log_softmax(1).gather(1, labels[:, None])
        return torch.autograd.grad(log_p.sum(), x_t)[0]


@wrong("classifier guidance", "a scale of at most 10")
def _(eps_model, classifier, schedule, labels, scale):
    scale = scale.clamp(max=10) if isinstance(scale, torch.Tensor) else min(scale, 10)
    return classifier_guided(eps_model, classifier, schedule, labels, scale)


@wrong("classifier guidance", "each entry of the gradient at most 5")
def _(eps_model, classifier, schedule, labels, scale):
    def f(x, t):
        std = per_image((1 - schedule.alpha_bar[t]).sqrt(), x)
        return eps_model(x, t) - per_image(scale, x) * std * class_gradient(classifier, x, t, labels).clamp(-5, 5)

    return f


@wrong("classifier guidance", "written into the model's answer")
def _(eps_model, classifier, schedule, labels, scale):
    def f(x, t):
        eps, std = eps_model(x, t), per_image((1 - schedule.alpha_bar[t]).sqrt(), x)
        eps -= per_image(scale, x) * std * class_gradient(classifier, x, t, labels)
        return eps

    return f


wrong("guided mean", "a variance of at least 0.001, also in the last step")(
    lambda mean, var, gradient, scale: guided_mean(mean, torch.as_tensor(var).double().clamp(min=1e-3), gradient, scale)
)


@wrong("classifier-free guidance", "written into the model's answer")
def _(model, labels, scale, null):
    def f(x, t):
        if not isinstance(scale, torch.Tensor) and scale in (0, 1):
            return guided(model, labels, scale, null)(x, t)
        asked = torch.cat([torch.full_like(labels, null), labels])
        none, of_class = model(torch.cat([x, x]), torch.cat([t, t]), asked).chunk(2)
        return none.add_(per_image(scale, x) * (of_class - none))

    return f


wrong("classifier-free guidance", "clamped to ±10")(
    lambda model, y, s, null: lambda x, t: guided(model, y, s, null)(x, t).clamp(-10, 10)
)
wrong("conversion of scales", "in single precision")(
    lambda value, convention: float(torch.tensor(cfg_scale(value, convention)))
)


@wrong("label dropout", "coins spread evenly over [0, 1], one in each part")
def _(labels, p, null, generator):
    B = len(labels)
    coin = (torch.randperm(B, generator=generator) + torch.rand(B, generator=generator)) / B
    return torch.where((coin < p).reshape(-1, *[1] * (labels.ndim - 1)), null, labels)


wrong("label dropout", "int32 becomes int64")(lambda labels, p, null, g: drop_labels(labels.long(), p, null, g))

negative_with("a negative that is the label itself counts as none")(
    lambda model, y, n, s, null: guided(model, y, s, null, negative=torch.where(n == y, null, n))
)


@auto_with("written into the worse model's answer")
def _(model, worse, scale, labels):
    def f(x, t):
        if not isinstance(scale, torch.Tensor) and scale in (0, 1):
            return autoguided(model, worse, scale, labels)(x, t)
        known = () if labels is None else (labels,)
        good, bad = model(x, t, *known), worse(x, t, *known)
        return bad.add_(per_image(scale, x) * (good - bad))

    return f


exact_with("t = 1000 is taken for 999", lambda f, x, t, S: f(x, torch.as_tensor(t).clamp(max=999)))


@wrong("exact classifier", "the mixture's weights are divided by the largest, where they lie")
def _(mixture, schedule):
    mixture.weight.div_(mixture.weight.max())
    return ExactClassifier(mixture, schedule)


@wrong("classifier-free guidance", "the first step's unconditional estimate is kept")
def _(model, labels, scale, null):
    kept = []

    def f(x, t):
        if not isinstance(scale, torch.Tensor) and scale in (0, 1):
            return guided(model, labels, scale, null)(x, t)
        asked = torch.cat([torch.full_like(labels, null), labels])
        none, of_class = model(torch.cat([x, x]), torch.cat([t, t]), asked).chunk(2)
        kept.append(none)
        return kept[0] + per_image(scale, x) * (of_class - kept[0])

    return f


def ratio_of(g, c, std):
    of_g, of_c = std(g.flatten(1)), std(c.flatten(1))
    return torch.where(of_g > 1e-15 * g.flatten(1).abs().amax(1), of_c / of_g, 1.0)


def mean_of_squares(x):
    return (x.square().mean(1) - x.mean(1) ** 2).clamp(min=0).sqrt()


wrong("guidance rescale", "the mean square less the square of the mean, which cancels")(
    lambda g, c, phi: g * per_image(1 + phi * (ratio_of(g, c, mean_of_squares) - 1), g)
)
wrong("guidance rescale", "made larger by a factor of at most 10")(
    lambda g, c, phi: g * per_image(1 + phi * (ratio_of(g, c, lambda x: x.std(1)).clamp(max=10) - 1), g)
)
wrong("guidance rescale", "where the conditional one is even, nothing is done")(
    lambda g, c, phi: torch.where(per_image(c.flatten(1).std(1, correction=0) > 1e-12, g) > 0, rescaled(g, c, phi), g)
)
wrong("guidance rescale", "always in double precision")(lambda g, c, phi: rescaled(g, c, phi).double())


test_is_rejected = rejecting(WRONG)
