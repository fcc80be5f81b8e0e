"""Wrong versions of the equations of chapter 13 that stand beside no check: each is rejected all the same."""

import numpy as np
import pytest
import torch
from held_out import registry, rejecting

from ddpm_lib.training.memory import step_memory

pytestmark = pytest.mark.soak  # with those of the other chapters: many versions, each a function of its own

WRONG, wrong = registry()


# One batch, several processes


def joint(means, sizes):
    return (sizes[:, None] * means).sum(0) / sizes.sum()


@wrong("gradient of a shared batch", "the largest share's gradient")
def _(means, sizes):
    return means[sizes.argmax()]


@wrong("gradient of a shared batch", "the weights are the sizes' squares")
def _(means, sizes):
    return joint(means, sizes**2)


@wrong("gradient of a shared batch", "the weights are the sizes' roots")
def _(means, sizes):
    return joint(means, sizes.double().sqrt())


@wrong("gradient of a shared batch", "the median of the processes")
def _(means, sizes):
    return means.median(0).values


@wrong("gradient of a shared batch", "every share has the size of the first")
def _(means, sizes):
    return joint(means, sizes[:1].expand_as(sizes))


@wrong("gradient of a shared batch", "the last process's share is left out")
def _(means, sizes):
    return joint(means[:-1], sizes[:-1]) if len(sizes) > 1 else joint(means, sizes)


@wrong("gradient of a shared batch", "shares smaller than a tenth of the largest are left out")
def _(means, sizes):
    used = 10 * sizes >= sizes.max()
    return joint(means[used], sizes[used])


@wrong("gradient of a shared batch", "summed in float32")
def _(means, sizes):
    return joint(means.float(), sizes).double()


@wrong("gradient of a shared batch", "in place, in the buffer that was given")
def _(means, sizes):
    return means.mul_(sizes[:, None]).sum(0) / sizes.sum()


@wrong("gradient of a shared batch", "each share's gradient has length 1 first")
def _(means, sizes):
    return joint(means / means.norm(dim=1, keepdim=True), sizes)


# What travels


@wrong("bytes of a ring all-reduce", "a round too few")
def _(n, size):
    return max(0, 2 * (n - 1) - 1) / n * size


@wrong("bytes of a ring all-reduce", "n rounds each way")
def _(n, size):
    return 2 * size if n > 1 else 0


@wrong("bytes of a ring all-reduce", "pieces of whole elements: the integer division of n - 1 by n")
def _(n, size):
    return 2 * ((n - 1) // n) * size


@wrong("bytes of a ring all-reduce", "a tree: the array in each of log2(n) rounds, there and back")
def _(n, size):
    return 2 * np.ceil(np.log2(n)) * size / max(n, 1)


@wrong("bytes of a ring all-reduce", "sent and received")
def _(n, size):
    return 4 * (n - 1) / n * size


@wrong("bytes of a ring all-reduce", "cut into n - 1 pieces")
def _(n, size):
    return 2 * (n - 1) / max(n - 1, 1) * size


@wrong("bytes of a ring all-reduce", "to the first, and back from it")
def _(n, size):
    return 2 * size * (n > 1)


@wrong("bytes of a ring all-reduce", "one process sends its gradient to itself")
def _(n, size):
    return 2 * (n - 1) / n * size if n > 1 else size


# The memory of a step


@wrong("memory of a step", "two bytes a number")
def _(parameters, images, per_image, averages):
    return step_memory(parameters, images, per_image, averages) / 2


@wrong("memory of a step", "averages in float64")
def _(parameters, images, per_image, averages):
    return 4 * parameters * (4 + 2 * averages) + images * per_image


@wrong("memory of a step", "one average, however many there are")
def _(parameters, images, per_image, averages):
    return step_memory(parameters, images, per_image, 1)


@wrong("memory of a step", "an average at least")
def _(parameters, images, per_image, averages):
    return step_memory(parameters, images, per_image, max(averages, 1))


@wrong("memory of a step", "each average with its moments")
def _(parameters, images, per_image, averages):
    return 4 * parameters * (4 + 3 * averages) + images * per_image


@wrong("memory of a step", "a gradient for every image")
def _(parameters, images, per_image, averages):
    return 4 * parameters * (3 + images + averages) + images * per_image


@wrong("memory of a step", "an image more, while the next batch is fetched")
def _(parameters, images, per_image, averages):
    return step_memory(parameters, images + 1, per_image, averages)


@wrong("memory of a step", "what is kept of an image counts forward and backward")
def _(parameters, images, per_image, averages):
    return step_memory(parameters, images, 2 * per_image, averages)


@wrong("memory of a step", "what is kept of an image is in numbers, not bytes")
def _(parameters, images, per_image, averages):
    return step_memory(parameters, images, 4 * per_image, averages)


@wrong("memory of a step", "the larger of the two, not their sum")
def _(parameters, images, per_image, averages):
    return max(4 * parameters * (4 + averages), images * per_image)


# How large a batch is worth it


def step(G, H, Sigma, B, curvature=None, noise=None):
    curvature = G @ H @ G if curvature is None else curvature
    rate = (G @ G) / (curvature + (np.trace(H @ Sigma) if noise is None else noise) / B)
    return rate, rate * (G @ G) / 2


@wrong("best step along a noisy gradient", "the noise of a batch is that of one image")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, 1)


@wrong("best step along a noisy gradient", "B - 1 for B")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, max(B - 1, 1))


@wrong("best step along a noisy gradient", "the trace of the elementwise product's diagonal")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, B, noise=np.diag(H) @ np.diag(Sigma))


@wrong("best step along a noisy gradient", "the mean curvature: tr(H)·|G|²/P")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, B, curvature=np.trace(H) / len(G) * (G @ G))


@wrong("best step along a noisy gradient", "a Hessian that is a multiple of the identity, in the noise's term")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, B, noise=np.trace(H) / len(G) * np.trace(Sigma))


@wrong("best step along a noisy gradient", "the largest curvature: a rate that is safe, not best")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, B, curvature=np.linalg.eigvalsh(H)[-1] * (G @ G))


@wrong("best step along a noisy gradient", "Newton's step: the rate is 1 without noise")
def _(G, H, Sigma, B):
    return step(G, H, Sigma, B, curvature=G @ G)


@wrong("best step along a noisy gradient", "the length of the batch's gradient, noise included, over the curvature")
def _(G, H, Sigma, B):
    rate = (G @ G + np.trace(Sigma) / B) / (G @ H @ G + np.trace(H @ Sigma) / B)
    return rate, rate * (G @ G) / 2


@wrong("best step along a noisy gradient", "the largest rate at which the loss does not rise")
def _(G, H, Sigma, B):
    rate, fall = step(G, H, Sigma, B)
    return 2 * rate, fall


@wrong("best step along a noisy gradient", "the fall without noise, at the best rate with it")
def _(G, H, Sigma, B):
    rate, _ = step(G, H, Sigma, B)
    return rate, rate * (G @ G) - rate**2 * (G @ H @ G) / 2


@wrong("best step along a noisy gradient", "the linear rule up to the noise scale, and then no larger")
def _(G, H, Sigma, B):
    rate = (G @ G) / (G @ H @ G) * min(1, B * (G @ H @ G) / max(np.trace(H @ Sigma), 1e-300))
    return rate, rate * (G @ G) / 2


@wrong("best step along a noisy gradient", "the root of Sigma for Sigma")
def _(G, H, Sigma, B):
    values, vectors = np.linalg.eigh(Sigma)
    return step(G, H, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T, B)


@wrong("best step along a noisy gradient", "no rate above 1")
def _(G, H, Sigma, B):
    rate = min(step(G, H, Sigma, B)[0], 1.0)
    return rate, rate * (G @ G) / 2


@wrong("best step along a noisy gradient", "negative curvature taken for none")
def _(G, H, Sigma, B):
    values, vectors = np.linalg.eigh(H)
    return step(G, (vectors * np.maximum(values, 0)) @ vectors.T, Sigma, B)


@wrong("best step along a noisy gradient", "every curvature taken for positive")
def _(G, H, Sigma, B):
    values, vectors = np.linalg.eigh(H)
    return step(G, (vectors * np.abs(values)) @ vectors.T, Sigma, B)


# Two batch sizes


def signal_of(small_square, big_square, small, big):
    return (big * big_square - small * small_square) / (big - small)


def spread_of(small_square, big_square, small, big):
    return (small_square - big_square) / (1 / small - 1 / big)


def estimates(name, signal=signal_of, spread=spread_of):
    wrong("gradient noise from two batch sizes", name)(lambda *args: (signal(*args), spread(*args)))


estimates("the big one's size for the difference of sizes", lambda a, b, s, B: (B * b - s * a) / B)
estimates("the noise of the big batch, not of one image", spread=lambda *args: spread_of(*args) / args[3])
estimates("the noise of the small batch, not of one image", spread=lambda *args: spread_of(*args) / args[2])
estimates("the standard deviation for the variance", spread=lambda *args: np.sqrt(np.abs(spread_of(*args))))
estimates("|G| for its square", signal=lambda *args: np.sqrt(np.abs(signal_of(*args))))
estimates("the sign of a negative estimate is left out", signal=lambda *args: np.abs(signal_of(*args)))
estimates("the small batch's length for the true one's", signal=lambda a, b, s, B: a)
estimates("the small batch's noise is taken for none", signal=lambda a, b, s, B: 2 * b - a)
estimates("as if the big one had twice the small one's images", spread=lambda a, b, s, B: 2 * s * (a - b))
estimates("B/(B-1), as for a variance from a sample", spread=lambda *args: spread_of(*args) * args[3] / (args[3] - 1))
estimates("a median over the batches", signal=lambda *args: np.median(signal_of(*args)))


@wrong("gradient noise from two batch sizes", "the noise scale in place of the noise")
def _(*args):
    return signal_of(*args), spread_of(*args) / signal_of(*args)


@wrong("gradient noise from two batch sizes", "noise and signal in the other order")
def _(*args):
    return spread_of(*args), signal_of(*args)


@wrong("gradient noise from two batch sizes", "one pair's noise, from |g| and not from its square")
def _(a, b, small, big):
    return signal_of(a, b, small, big), spread_of(np.sqrt(a), np.sqrt(b), small, big) ** 2


# Which t


def sampled(p, m, square):
    return (m / (len(p) ** 2 * p)).sum() - square


def noise_with(name):
    return wrong("gradient noise by timestep sampler", name)


noise_with("the sampler is left out: uniform")(lambda p, m, square: m.mean() - square)
noise_with("|G| for |G|²")(lambda p, m, square: sampled(p, m, square**0.5))
noise_with("the weights' squares without the chance of being drawn")(
    lambda p, m, square: (m / (len(p) * p) ** 2).mean() - square
)
noise_with("the weights as in a sum over t, not a mean")(lambda p, m, square: (m / p).sum() - square)
noise_with("the root of m_t for m_t")(lambda p, m, square: sampled(p, m.sqrt(), square))
noise_with("the least that any sampler has")(lambda p, m, square: m.sqrt().mean() ** 2 - square)
noise_with("|G|² added")(lambda p, m, square: sampled(p, m, -square))
noise_with("|G|² over the number of steps")(lambda p, m, square: sampled(p, m, square / len(p)))
noise_with("weights of mean 1, not their own")(
    lambda p, m, square: sampled(p, m, square) / ((1 / (len(p) * p)).mean()) ** 2
)
noise_with("chances of at least half the uniform one")(
    lambda p, m, square: sampled(p.clamp(min=0.5 / len(p)), m, square)
)
noise_with("chances of at least a hundredth of the uniform one")(
    lambda p, m, square: sampled(p.clamp(min=0.01 / len(p)), m, square)
)
noise_with("factors of at most ten")(
    lambda p, m, square: (p * m * (1 / (len(p) * p)).clamp(max=10) ** 2).sum() - square
)
noise_with("p as chances, though they add to 1 already: softmax")(
    lambda p, m, square: sampled(torch.softmax(p, 0), m, square)
)
noise_with("one weight for all: the mean of 1/p")(
    lambda p, m, square: ((1 / p).mean() * m / len(p) ** 2).sum() - square
)


test_is_rejected = rejecting(WRONG)
