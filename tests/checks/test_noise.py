"""The test of drawn noise: right noise passes it, and every way of being wrong that was thought of does not."""

import pytest
import torch

from ddpm_lib.checks.noise import noise_score

SHAPE = (2, 2, 3)


def normal(n, generator, shape=SHAPE):
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64)


def uniform(n, generator):
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)


def student(n, generator, freedom):
    """Student's t, by Bailey's polar method, scaled to variance 1."""
    first, second = uniform(n, generator), uniform(n, generator)
    t = (freedom * (first ** (-2 / freedom) - 1)).sqrt() * (2 * torch.pi * second).cos()
    return t * ((freedom - 2) / freedom) ** 0.5


def per_image(values):
    return values.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def parity(n, generator):
    """Every two entries are independent, and three of them are not."""
    z = normal(n, generator).flatten(1)
    z[:, -1] = z[:, -1].abs() * z[:, 0].sign() * z[:, 4].sign()
    return z.reshape(n, *SHAPE)


def halves(change):
    def draw(n, generator):
        half = normal(n - n // 2, generator)
        return torch.cat([half, change(half, generator)])[:n]

    return draw


def seeds_the_global_generator(n, generator):
    torch.manual_seed(int(torch.randint(0, 9999, (1,), generator=generator)))
    return normal(n, None)


WRONG = {
    "one magnitude an image, signs of their own": lambda n, g: normal(n, g).sign() * normal(n, g, (1, 1, 1)).abs(),
    "one magnitude for all channels of a pixel": lambda n, g: normal(n, g).sign() * normal(n, g, (1, 2, 3)).abs(),
    "uniform": lambda n, g: 12**0.5 * (uniform(n, g) - 0.5),
    "plus or minus one": lambda n, g: normal(n, g).sign(),
    "twelve uniform numbers added up": lambda n, g: sum(uniform(n, g) for _ in range(12)) - 6,
    "cut at 3": lambda n, g: normal(n, g).clamp(-3, 3),
    "drawn again beyond 2.5": lambda n, g: torch.nn.init.trunc_normal_(normal(n, g), a=-2.5, b=2.5, generator=g),
    "Student's t with 20 degrees of freedom": lambda n, g: student(n, g, 20),
    "a centred square": lambda n, g: (normal(n, g) ** 2 - 1) / 2**0.5,
    "larger by 1 %": lambda n, g: 1.01 * normal(n, g),
    "one for all pixels": lambda n, g: normal(n, g, (1, 1, 1)).expand(n, *SHAPE),
    "one for all channels": lambda n, g: normal(n, g, (1, 2, 3)).expand(n, *SHAPE),
    "one for the whole batch": lambda n, g: normal(1, g).expand(n, *SHAPE),
    "the right column is the left one's": lambda n, g: torch.cat([(z := normal(n, g))[..., :2], z[..., :1]], -1),
    "neighbours are alike": lambda n, g: ((z := normal(n, g)) + 0.3 * z.roll(1, -1)) / 1.09**0.5,
    "images in a row are alike": lambda n, g: ((z := normal(n, g)) + 0.1 * z.roll(1, 0)) / 1.01**0.5,
    "parity": parity,
    "every image has the same length": lambda n, g: (z := normal(n, g)) / per_image(z) * 12**0.5,
    "no image has a mean": lambda n, g: (z := normal(n, g)) - z.flatten(1).mean(1).reshape(-1, 1, 1, 1),
    "the batch has no mean": lambda n, g: (z := normal(n, g)) - z.mean(0),
    "the batch has variance 1": lambda n, g: (z := normal(n, g)) / z.square().mean().sqrt(),
    "half of the batch twice": halves(lambda half, g: half),
    "antithetic halves": halves(lambda half, g: -half),
    "antithetic halves, shuffled": halves(lambda half, g: -half[torch.randperm(len(half), generator=g)]),
    "sorted": lambda n, g: normal(n, g).sort(0)[0],
    "float32": lambda n, g: torch.randn(n, *SHAPE, generator=g).double(),
    "ignores the generator": lambda n, g: normal(n, None),
    "always the same": lambda n, g: normal(n, torch.Generator().manual_seed(0)),
    "a copy of the generator, which stays where it is": lambda n, g: normal(n, g.clone_state()),
    "starts the generator again": lambda n, g: normal(n, g.manual_seed(g.initial_seed())),
    "sets the global seed": seeds_the_global_generator,
    "draws from the global generator too": lambda n, g: normal(n, g) + 0 * torch.rand(()),
    "not a number": lambda n, g: normal(n, g) * torch.nan,
}


@pytest.mark.parametrize(("shape", "seed"), [(SHAPE, 0), (SHAPE, 1), ((1,), 2), ((2,), 3), ((1, 1, 4), 4)])
def test_normal_noise_passes(shape, seed):
    assert noise_score(lambda n, g: normal(n, g, shape), shape, seed) < 5


@pytest.mark.parametrize("name", WRONG)
def test_other_noise_does_not(name):
    assert noise_score(WRONG[name]) > 15


def test_another_shape_or_dtype_is_refused():
    for draw in (lambda n, g: normal(n, g, (2, 3, 2)), lambda n, g: normal(n, g).float()):
        with pytest.raises(ValueError, match=r"expected float64 of shape \(4000, 2, 2, 3\), got torch"):
            noise_score(draw)
