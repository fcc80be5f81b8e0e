"""The digits, the one place where data is scaled, and the checks that every data set passes."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from ddpm_lib.data import LabelledImages, check_images, check_labels, digits, to_signed


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


@pytest.mark.parametrize(
    "images",
    [[-1.0, 0.3, 1.0], [0.0, 0.5, 1.0], [0.0, 256.0], [-3.0, 200.0], [0.0, float("nan")]],
    ids=["signed", "unit", "over", "under", "nan"],
)
def test_what_was_scaled_before_is_not_scaled_again(images):
    with pytest.raises(ValueError, match=r"expected grey levels in 0\.\.255, not scaled before; got"):
        to_signed(torch.tensor(images))


def test_a_black_image_is_no_scaled_image():
    assert (to_signed(torch.zeros(2, 2)) == -1).all()


def good():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return LabelledImages(images, torch.tensor([0, 1, 2, 0, 1, 2]))


def with_pixel(value):
    images = good().images.clone()
    images[4, 0, 2, 2] = images[5, 0, 0, 0] = value
    return images


def test_good_data_pass():
    check_images(good(), (1, 4, 4), 3)


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"images": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)}, TypeError, r"got torch\.uint8: scale them with to_si"),
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
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_with_the_reason(change, error, complaint):
    with pytest.raises(error, match=complaint):
        check_images(replace(good(), **change), (1, 4, 4), 3)


def test_labels_at_both_ends_of_the_classes_pass():
    check_labels(torch.tensor([0, 9]), 10)
