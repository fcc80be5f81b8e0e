"""The metrics beside plain loops, closed forms and scipy's matrix square root, on sets made for the purpose."""

import pytest
import torch
from scipy.linalg import sqrtm

from ddpm_lib.evaluation.metrics import PixelClassifier, frechet_distance, gaussian_per_class, recall, share_of_copies
from ddpm_lib.images.data import digits


def double(values):
    return torch.as_tensor(values, dtype=torch.float64)


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, cov, n=40, seed=0):
    """n points whose mean and covariance are exactly these (up to rounding): white ones, coloured."""
    points = cloud(n, len(mean), seed)
    points = points - points.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(points.T)), points.T, upper=False)
    return double(mean) + (torch.linalg.cholesky(double(cov)) @ white).T


def test_the_frechet_distance_of_independent_features_adds_up_differences_of_deviations():
    real = with_moments([0.0, 1.0, -2.0], [[4.0, 0, 0], [0, 1.0, 0], [0, 0, 0.25]])
    fake = with_moments([1.0, 1.0, 0.0], [[1.0, 0, 0], [0, 9.0, 0], [0, 0, 0.25]], n=60, seed=1)
    # |m − m'|² = 1 + 0 + 4, and (2 − 1)² + (1 − 3)² + (½ − ½)² = 5
    assert frechet_distance(real, fake) == pytest.approx(10, abs=1e-9)


NON_COMMUTING = (
    [[2.0, 0.9, 0.0], [0.9, 1.0, -0.2], [0.0, -0.2, 0.5]],
    [[1.0, -0.6, 0.3], [-0.6, 3.0, 0.0], [0.3, 0, 0.7]],
)


def test_the_frechet_distance_of_correlated_features_agrees_with_scipy_s_square_root():
    c, d = NON_COMMUTING
    real, fake = with_moments([0.0, 0.5, 1.0], c), with_moments([0.3, 0.5, -1.0], d, seed=1)
    product = double(c) @ double(d)
    assert not torch.allclose(product, product.T)
    expected = 0.09 + 4 + float(torch.trace(double(c) + double(d))) - 2 * float(sqrtm(product.numpy()).trace().real)
    assert frechet_distance(real, fake) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(fake, real) == pytest.approx(expected, abs=1e-9)
    # √C·√C' in place of √(C·C') is a known slip; only for commuting covariances are the two alike
    slip = float((sqrtm(double(c).numpy()) @ sqrtm(double(d).numpy())).trace().real)
    assert abs(2 * slip - 2 * float(sqrtm(product.numpy()).trace().real)) > 1e-2


@pytest.mark.parametrize("n", [50, 5], ids=["one pixel is constant", "fewer images than pixels"])
def test_the_frechet_distance_exists_where_covariances_are_singular(n):
    real = cloud(n, 20)
    real[:, 2] = 0.7  # as a pixel in the corner that is black in every digit
    # a variance of 0 comes out as ±1e-16, and its root as 1e-8
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(real, real.flip(0)) == pytest.approx(0, abs=1e-6)
    images = real.reshape(n, 1, 4, 5)
    assert frechet_distance(images, images + 0.5) == pytest.approx(20 * 0.25, abs=1e-6)


@pytest.mark.parametrize(("real", "fake"), [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5, 3), (1, 3))])
def test_sets_without_a_covariance_are_refused(real, fake):
    with pytest.raises(ValueError, match="at least 2 features of equal width; got") as raised:
        frechet_distance(torch.zeros(real), torch.zeros(fake))
    assert str(raised.value).endswith(f"got {real} and {fake}")


def test_two_points_have_a_frechet_distance():
    # variances 2 and 8 along the line on which they lie, means 1 and 2
    real, fake = double([[0.0, 0.0], [2.0, 0.0]]), double([[0.0, 0.0], [4.0, 0.0]])
    assert frechet_distance(real, fake) == pytest.approx(1 + 2, abs=1e-6)


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def recall_by_loops(real, fake, k):
    real, fake = real.tolist(), fake.tolist()
    radius = [sorted(distance(f, g) for j, g in enumerate(fake) if j != i)[k - 1] for i, f in enumerate(fake)]
    covered = [any(distance(r, f) <= reach for f, reach in zip(fake, radius, strict=True)) for r in real]
    return sum(covered) / len(real)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_recall_is_what_plain_loops_give(k):
    real, fake = cloud(60, 3), 0.5 * cloud(40, 3, seed=1) + 0.5
    for one, other in ((real, fake), (fake, real)):
        assert recall(one, other, k=k) == recall_by_loops(one, other, k)
    assert 0.1 < recall(real, fake, k=k) < 0.9 and recall(real, fake, k=k) != recall(fake, real, k=k)


def test_recall_looks_at_the_third_neighbour_unless_told_otherwise():
    real, fake = cloud(60, 3), 0.5 * cloud(40, 3, seed=1) + 0.5
    shares = [recall_by_loops(real, fake, k) for k in (2, 3, 4)]
    assert recall(real, fake) == shares[1] and len(set(shares)) == 3


@pytest.mark.parametrize("k", [0, 2, 3])
def test_recall_needs_more_fake_points_than_neighbours(k):
    with pytest.raises(ValueError, match=f"expected 1 <= k < the number of fake points, 2; got k = {k}"):
        recall(cloud(5, 1), double([[0.0], [1.0]]), k)


def test_a_point_on_the_border_of_a_ball_is_covered_and_one_as_far_as_a_neighbour_is_no_copy():
    assert recall(double([[2.0]]), double([[0.0], [1.0]]), k=1) == 1
    assert share_of_copies(double([[-1.0]]), double([[0.0], [1.0]])) == 0


def test_recall_sees_a_mode_that_is_missing_and_precision_does_not():
    left, right = 0.1 * cloud(50, 2), 0.1 * cloud(50, 2, seed=1) + 10
    real, fake = torch.cat([left, right]), 0.1 * cloud(50, 2, seed=2)
    assert 0.4 < recall(real, fake) <= 0.5
    assert recall(fake, real) > 0.9
    assert recall(fake, real + 1000) == 0


def share_by_loops(fake, train):
    fake, train = fake.tolist(), train.tolist()
    close = 0
    for f in fake:
        nearest = min(range(len(train)), key=lambda i: distance(f, train[i]))
        own = min(distance(train[nearest], other) for i, other in enumerate(train) if i != nearest)
        close += distance(f, train[nearest]) < own
    return close / len(fake)


def test_the_share_of_copies_is_what_plain_loops_give():
    train, fake = cloud(60, 3), cloud(40, 3, seed=1)
    share = share_of_copies(fake, train)
    assert share == share_by_loops(fake, train)
    assert 0.2 < share < 0.9


def test_copies_are_found_and_strangers_are_not():
    train = cloud(60, 3)
    assert share_of_copies(train, train) == 1
    assert share_of_copies(train[:7] + 1e-6, train) == 1
    assert share_of_copies(train + 100, train) == 0
    assert share_of_copies(torch.cat([train[:10], train[:30] + 100]), train) == 0.25


def test_the_classifier_recognises_held_out_digits_and_no_wrong_labels():
    train, held_out = digits()
    examiner = PixelClassifier(train.images, train.labels)
    assert examiner.accuracy(held_out.images, held_out.labels) >= 0.97
    assert examiner.accuracy(held_out.images, (held_out.labels + 1) % 10) < 0.03
    half = torch.cat([held_out.labels[:180], (held_out.labels[180:] + 1) % 10])
    assert 0.45 < examiner.accuracy(held_out.images, half) < 0.55


def test_the_gaussian_baseline_has_each_class_s_mean_and_covariance():
    n, wanted = 20_000, torch.tensor([1, 0]).repeat(20_000)
    parts = [with_moments([-0.5, 0.2, 0.0], 0.01 * double(c), n=40, seed=i) for i, c in enumerate(NON_COMMUTING)]
    images = torch.cat(parts).reshape(80, 1, 1, 3)
    images[40:] += 0.3
    labels = torch.arange(2).repeat_interleave(40)
    drawn = gaussian_per_class(images, labels, wanted, torch.Generator().manual_seed(0))
    assert drawn.shape == (2 * n, 1, 1, 3) and drawn.dtype == torch.float32
    for label, c in enumerate(NON_COMMUTING):
        mine, cov = drawn[wanted == label].flatten(1).double(), 0.01 * double(c)
        mean = double([-0.5, 0.2, 0.0]) + 0.3 * label
        assert ((mine.mean(0) - mean).abs() < 5 * (cov.diag() / n).sqrt()).all()
        # the standard error of a Gaussian's covariance C_ij is √((C_ii·C_jj + C_ij²)/n)
        error = ((cov.diag()[:, None] * cov.diag() + cov**2) / n).sqrt()
        assert ((torch.cov(mine.T) - cov).abs() < 5 * error).all()


def test_the_gaussian_baseline_stays_in_the_range_of_images():
    train, _ = digits()
    drawn = gaussian_per_class(train.images, train.labels, torch.arange(10).repeat(5), torch.Generator().manual_seed(0))
    assert drawn.shape == (50, 1, 8, 8)
    assert drawn.min() == -1 and drawn.max() == 1


def test_the_gaussian_baseline_needs_two_images_of_a_class_and_no_more():
    images, labels = torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1])
    assert (gaussian_per_class(images, labels, torch.tensor([0, 0, 0])) == 0).all()
    with pytest.raises(ValueError, match="at least 2 images of class 1, got 1"):
        gaussian_per_class(images, labels, torch.tensor([0, 1]))


def test_gaussians_of_fewer_images_than_pixels_have_their_mean_and_covariance():
    """Independent route: both moments of many draws, from images that span less than the space."""
    images = torch.rand(4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    drawn = gaussian_per_class(
        images, torch.zeros(4), torch.zeros(40_000), torch.Generator().manual_seed(1), clamp=False
    )
    assert (drawn.mean(0) - images.mean(0)).abs().max() < 0.01
    assert (torch.cov(drawn.flatten(1).T) - torch.cov(images.flatten(1).T)).abs().max() < 0.01
    assert int(torch.linalg.matrix_rank(drawn.double().flatten(1) - drawn.double().flatten(1).mean(0), rtol=1e-4)) == 3
