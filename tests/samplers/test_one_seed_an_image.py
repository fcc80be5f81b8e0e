"""One seed an image: image i is the same alone, in any batch and at any place, and all images are independent."""

import pytest
import torch

from ddpm_lib.checks.noise import noise_score
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.samplers.ancestral import ancestral_sample, generators, image_seeds
from ddpm_lib.samplers.ddim import ddim_sample

SCHEDULE = linear_schedule(20, 0.02, 0.4)
SAMPLERS = {
    "ancestral": (ancestral_sample, {}),
    "ddim": (ddim_sample, {"steps": 7}),
    "ddim, eta 0.5": (ddim_sample, {"steps": 7, "eta": 0.5}),
    "ddim, eta 1": (ddim_sample, {"steps": 7, "eta": 1.0}),
}


def half(x_t, t):
    return 0.5 * x_t


def drawn(sample, seeds, options):
    """Images of 2x3 by these seeds, one an image: start and fresh noise."""
    each = generators(seeds)
    return sample(
        half,
        SCHEDULE,
        noise_like(torch.empty(len(each), 1, 2, 3, dtype=torch.float64), each),
        **options,
        generator=each,
    )


@pytest.mark.parametrize(("sample", "options"), SAMPLERS.values(), ids=SAMPLERS)
def test_an_image_is_the_same_in_every_batch_and_at_every_place(sample, options):
    seeds = image_seeds(3, 7)
    together = drawn(sample, seeds, options)
    assert torch.equal(together, drawn(sample, seeds, options))
    assert len(together.flatten(1).unique(dim=0)) == 7
    assert torch.equal(drawn(sample, seeds[::-1], options), together.flip(0))
    for batch in (1, 2, 5):
        parts = [drawn(sample, seeds[i : i + batch], options) for i in range(0, 7, batch)]
        assert torch.equal(torch.cat(parts), together)
    before = torch.get_rng_state()
    drawn(sample, seeds, options)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_draws_from_its_own_generator_and_goes_on_from_there():
    each, x = generators([5, 5, 6]), torch.empty(3, 4)
    first, second = noise_like(x, each), noise_like(x, each)
    for noise in (first, second):
        assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    alone = torch.Generator().manual_seed(6)
    for noise in (first, second):
        assert torch.equal(noise[2], torch.randn(4, generator=alone))
    assert noise_like(x.bfloat16(), each).dtype == torch.bfloat16


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_generators_than_images_is_refused(count):
    with pytest.raises(ValueError, match=f"expected one generator for each of 3 images, got {count}"):
        noise_like(torch.empty(3, 4), generators(range(count)))


def test_the_noise_of_all_images_together_is_independent_and_normal(monkeypatch):
    monkeypatch.setattr("ddpm_lib.checks.noise.ENTRIES", 400_000)  # the law of one entry is torch's own affair
    shape = (2, 3, 4)

    def draw(n, generator):
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
        return noise_like(torch.empty(n, *shape, dtype=torch.float64), generators(image_seeds(seed, n)))

    assert noise_score(draw, shape) < 5


def test_no_image_s_seed_comes_twice_whatever_the_run_s():
    for seed in (0, 1, 7, 2**31, 2**32 - 1, 2**40 + 3, -1):
        seeds = image_seeds(seed, 50_000)
        assert seeds[0] == seed % 2**32 and 0 <= min(seeds) and max(seeds) < 2**32
        assert image_seeds(seeds[17], 9) == seeds[17:26] == image_seeds(seed, 26)[17:]
        in_order = torch.tensor(sorted(seeds))
        gaps = torch.cat([in_order.diff(), in_order[:1] + 2**32 - in_order[-1:]])
        assert gaps.min() >= 50_000  # so no seed of a run, moved by less than this, is another seed of it
    runs = [set(image_seeds(seed, 50_000)) for seed in (0, 1, 2, 49_999)]
    assert len(set.union(*runs)) == 200_000


def test_a_generator_heeds_32_bits_of_its_seed():
    one, other = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32))
    assert torch.equal(one, other)
