"""The digits, the one place where data is scaled, and the checks that every data set passes."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib.images.data import LabelledImages, check_images, check_labels, digits, to_signed


def rows(images):
    return sorted(map(tuple, images.flatten(1).tolist()))


def test_the_digits_are_all_1797_of_scikit_learn_split_in_two():
    train, held_out = digits()
    assert (len(train), len(held_out)) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8) and held_out.images.shape == (360, 1, 8, 8)
    raw = load_digits()
    ours = torch.cat([train.images.flatten(1), held_out.images.flatten(1)])
    labelled = torch.cat([(ours + 1) * 8, torch.cat([train.labels, held_out.labels])[:, None]], dim=1)
    theirs = torch.cat([torch.from_numpy(raw.data), torch.from_numpy(raw.target)[:, None]], dim=1)
    assert rows(labelled.double()) == rows(theirs)  # each image once, with its label
    assert not set(rows(train.images)) & set(rows(held_out.images))


def test_the_split_is_always_the_same():
    first, second = digits(), digits()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_the_split_keeps_the_classes_in_proportion():
    train, held_out = (part.labels.bincount(minlength=10).double() for part in digits())
    assert ((held_out - (train + held_out) * 360 / 1797).abs() < 1).all()


def test_the_digits_pass_the_checks_and_fill_the_range():
    for part in digits():
        check_images(part, (1, 8, 8), 10)
        assert part.images.min() == -1 and part.images.max() == 1
        assert part.images.dtype == torch.float32 and part.labels.dtype == torch.int64


@pytest.mark.parametrize("white", [255, 16, 1])
def test_grey_levels_become_minus_one_to_one_and_back(white):
    levels = torch.linspace(0, white, 11)[None]
    signed = to_signed(levels, white)
    assert torch.allclose(signed, torch.linspace(-1, 1, 11)[None], atol=1e-6)
    assert signed.dtype == torch.float32


def test_bytes_are_scaled_without_overflow():
    assert to_signed(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1])


@pytest.mark.parametrize("white", [255, 16])
def test_every_byte_becomes_the_float_next_to_the_exact_fraction(white):
    levels = range(white + 1)
    exact = torch.tensor([float(Fraction(2 * level, white) - 1) for level in levels], dtype=torch.float64).float()
    assert torch.equal(to_signed(torch.tensor(levels, dtype=torch.uint8), white), exact)
    assert torch.equal(to_signed(torch.tensor(levels, dtype=torch.float64), white), exact)


class NoNumber(TorchDispatchMode):
    """Refuses to tell the host a number."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host asked for a number"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_unchecked_scaling_asks_for_no_number_and_is_the_same(dtype):
    levels = torch.tensor([[0, 1, 100], [200, 254, 255]], dtype=dtype)
    with NoNumber():
        unchecked = to_signed(levels, check=False)
        with pytest.raises(AssertionError, match="asked for a number"):
            to_signed(levels)
    assert torch.equal(unchecked, to_signed(levels))
    assert to_signed(torch.tensor([0, 1], dtype=dtype), check=False).tolist() == pytest.approx([-1, 2 / 255 - 1])


@pytest.mark.parametrize(
    "images",
    [[-1.0, 0.3, 1.0], [0.0, 0.5, 1.0], [0.0, 256.0], [-3.0, 200.0], [0.0, float("nan")]],
    ids=["signed", "unit", "over", "under", "nan"],
)
def test_what_was_scaled_before_is_not_scaled_again(images):
    with pytest.raises(ValueError, match=r"expected grey levels in 0\.\.255, not scaled before; got"):
        to_signed(torch.tensor(images))


def test_only_where_more_than_one_level_lies_above_black_does_a_maximum_of_1_look_scaled():
    levels = torch.tensor([0.0, 1.0])
    assert to_signed(levels, white=1).tolist() == [-1, 1]
    assert to_signed(2 * levels).tolist() == pytest.approx([-1, 4 / 255 - 1])
    with pytest.raises(ValueError, match=r"expected grey levels in 0\.\.2, not scaled before; got values from 0 to 1"):
        to_signed(levels, white=2)


def test_a_black_image_is_no_scaled_image():
    assert (to_signed(torch.zeros(2, 2)) == -1).all()


def good():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return LabelledImages(images, torch.tensor([0, 1, 2, 0, 1, 2]))


def with_pixel(value):
    images = good().images.clone()
    images[4, 0, 2, 2] = images[5, 0, 0, 0] = value
    return images


def of_bytes(*levels):
    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8)
    images.view(-1)[: len(levels)] = torch.tensor(levels, dtype=torch.uint8)
    return images


def test_good_data_pass():
    check_images(good(), (1, 4, 4), 3)


@pytest.mark.parametrize("levels", [(0, 255), (1,) * 96, (0,), (2, 0, 1), (1,) * 95 + (255,)])
def test_bytes_pass(levels):
    check_images(replace(good(), images=of_bytes(*levels)), (1, 4, 4), 3)


@pytest.mark.parametrize("classes", [None, 0])
def test_a_network_without_classes_takes_any_labels_or_none(classes):
    check_images(LabelledImages(good().images), (1, 4, 4), classes)
    check_images(replace(good(), labels=torch.tensor([0, 99, -5, 0, 1, 2])), (1, 4, 4), classes)


def test_images_without_labels_have_a_length_and_no_names():
    data = LabelledImages(good().images)
    assert len(data) == 6 and data.labels is None and data.names == ()


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"images": torch.zeros(6, 1, 4, 4, dtype=torch.int16)}, TypeError, r"got torch\.int16: scale them with to_si"),
        (
            {"images": good().images.double()},
            TypeError,
            r"float32 images in \[-1, 1\] or bytes \(uint8\), got torch\.f",
        ),
        ({"images": of_bytes(0, 1)}, ValueError, r"bytes in 0\.\.255, got only 0 and 1, .* cast to bytes: multiply"),
        ({"images": of_bytes(0, 255)[:, :, :3]}, ValueError, r"shape \(N, 1, 4, 4\), got \(6, 1, 3, 4\)"),
        ({"images": torch.zeros(6, 4, 4)}, ValueError, r"shape \(N, 1, 4, 4\), got \(6, 4, 4\)"),
        ({"images": torch.zeros(6, 3, 4, 4)}, ValueError, r"shape \(N, 1, 4, 4\), got \(6, 3, 4, 4\)"),
        ({"images": torch.zeros(6, 1, 4, 8)}, ValueError, r"shape \(N, 1, 4, 4\), got \(6, 1, 4, 8\)"),
        ({"images": with_pixel(torch.nan)}, ValueError, "2 of 6 images hold NaN or infinity, the first is image 4"),
        ({"images": with_pixel(-torch.inf)}, ValueError, "2 of 6 images hold NaN or infinity, the first is image 4"),
        (
            {"images": with_pixel(1.5)},
            ValueError,
            r"in \[-1, 1\], got values from -0\.9.* to 1\.5: scale the images once",
        ),
        ({"images": with_pixel(-3.0)}, ValueError, r"in \[-1, 1\], got values from -3 to"),
        ({"images": (good().images + 1) / 2}, ValueError, r"look like \[0, 1\]"),
        ({"labels": torch.zeros(6)}, TypeError, r"int64 labels, got torch\.float32"),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, TypeError, r"int64 labels, got torch\.int32"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, ValueError, r"labels in 0\.\.2, got 3"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0, 0])}, ValueError, r"labels in 0\.\.2, got -1"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"6 images and labels of shape \(5,\)"),
        ({"labels": torch.zeros(6, 1, dtype=torch.int64)}, ValueError, r"6 images and labels of shape \(6, 1\)"),
        ({"images": torch.zeros(0, 1, 4, 4), "labels": torch.zeros(0, dtype=torch.int64)}, ValueError, "got 0 images"),
        ({"images": torch.zeros(0, 1, 4, 4), "labels": None}, ValueError, "got 0 images"),
        (
            {"labels": None},
            ValueError,
            r"labels in 0\.\.2, for the network has 3 classes, got images without labels: la",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_with_the_reason(change, error, complaint):
    with pytest.raises(error, match=complaint):
        check_images(replace(good(), **change), (1, 4, 4), 3)


def test_labels_at_both_ends_of_the_classes_pass():
    check_labels(torch.tensor([0, 9]), 10)
