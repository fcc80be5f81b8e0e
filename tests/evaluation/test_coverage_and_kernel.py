"""Distances and shares on features, at sizes and in parts that the checks do not try."""

import pytest
import torch

from ddpm_lib.evaluation.coverage import density_and_coverage, expected_coverage, precision_and_recall
from ddpm_lib.evaluation.frechet import Moments, frechet_bias, gaussian_distance
from ddpm_lib.evaluation.kernel import kernel_distance
from ddpm_lib.evaluation.metrics import frechet_distance, recall


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("sizes", [(50,), (1, 49), (20, 0, 1, 29), (1,) * 50], ids=str)
def test_moments_joined_batch_by_batch_are_those_of_all(sizes, offset):
    features = cloud(50, 3) + offset
    moments = Moments.of(iter(features.split(sizes)))
    torch.testing.assert_close(moments.mean, features.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moments.cov, torch.cov(features.T), rtol=1e-8, atol=1e-9)
    assert moments.count == 50


def test_the_distance_of_moments_is_that_of_the_sets():
    real, fake = cloud(60, 4), 2 * cloud(40, 4, 1) + 1
    assert Moments.of(real).distance(Moments.of(fake)) == pytest.approx(frechet_distance(real, fake), rel=1e-12)


def test_moments_need_two_features():
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        Moments.of([torch.zeros(1, 3), torch.zeros(0, 3)])


def test_gaussians_that_are_none_are_refused():
    mean, cov = torch.zeros(2), torch.eye(2)
    for bad in ((mean, cov, torch.zeros(3), cov), (mean, cov[:1], mean, cov), (mean[None], cov, mean, cov)):
        with pytest.raises(ValueError, match="expected means"):
            gaussian_distance(*bad)
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_distance(mean, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), mean, cov)


def test_exact_statistics_have_no_bias():
    assert frechet_bias(torch.eye(3), torch.eye(3), float("inf")) == 0


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_the_kernel_distance_does_not_depend_on_the_blocks(block):
    real, fake = cloud(17, 3), cloud(11, 3, 1) + 0.5
    assert kernel_distance(real, fake, block=block) == pytest.approx(kernel_distance(real, fake), rel=1e-12)


def test_the_kernel_distance_needs_two_of_each():
    with pytest.raises(ValueError, match="got 5 and 1"):
        kernel_distance(torch.zeros(5, 2), torch.zeros(1, 2))


def test_recall_is_that_of_chapter_8_and_precision_its_mirror_image():
    real, fake = cloud(60, 3), 0.5 * cloud(40, 3, 1) + 0.5
    assert precision_and_recall(real, fake) == (recall(fake, real), recall(real, fake))


def test_shares_need_more_points_than_neighbours():
    for metric in (precision_and_recall, density_and_coverage):
        with pytest.raises(ValueError, match="got k = 3"):
            metric(torch.zeros(3, 2), torch.zeros(9, 2), 3)
    assert density_and_coverage(cloud(9, 2), cloud(1, 2), 3)  # few fake points are no error here


def test_coverage_of_one_law_is_on_average_as_expected():
    n, m, k = 40, 25, 2
    found = torch.tensor(
        [density_and_coverage(cloud(n, 3, 2 * i), cloud(m, 3, 2 * i + 1), k) for i in range(60)], dtype=torch.float64
    )
    z = (found.mean(0) - torch.tensor([1.0, expected_coverage(n, m, k)])) / (found.std(0) / 60**0.5)
    assert z.abs().max() < 5
