"""Images for training: real handwritten digits that come with scikit-learn, and the checks every data set passes."""

from dataclasses import dataclass

import torch
from torch import Tensor

HELD_OUT = 360


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """images: (N, C, H, W), float32 in [−1, 1], or bytes (uint8) 0..255; labels: (N,), int64, in 0..classes−1.

    labels is None where the data have none. names: those of the classes, or () where nobody gave any.
    """

    images: Tensor
    labels: Tensor | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def digits() -> tuple[LabelledImages, LabelledImages]:
    """The 1,797 digits of scikit-learn (8×8, 17 grey levels): 1,437 to train on and 360 held out, always the same ones.

    The split keeps the ten classes in proportion. Images: (N, 1, 8, 8). Source: E. Alpaydin and C. Kaynak, Optical
    Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (the test set's 1,797).
    """
    from sklearn.datasets import load_digits  # takes nearly as long to import as torch, and other data do without
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = to_signed(torch.from_numpy(raw.images)[:, None], white=16)
    labels = torch.from_numpy(raw.target).long()
    train, held_out = train_test_split(range(len(labels)), test_size=HELD_OUT, random_state=0, stratify=raw.target)
    return tuple(LabelledImages(images[part], labels[part]) for part in (train, held_out))


def to_signed(images: Tensor, white: float = 255, check: bool = True) -> Tensor:
    """Eq. 2.1 (signed pixels). Grey levels 0..`white` → 2·level/white − 1, float32: the one place to scale data.

    images: any shape and real dtype, bytes included; white: the level of full white (255 for bytes, 16 for the digits).
    check=False asks the device for no number, so nobody waits: for parts of images that were checked as a whole.
    Raises ValueError for values outside 0..white, and (if white ≥ 2) for different values that all lie in 0..1: such
    images were scaled before, and are not scaled again.
    Source: Ho et al. 2020, section 3.3.
    """
    if check:
        low, high = float(images.min()), float(images.max())
        if not (0 <= low and high <= white) or (white >= 2 and high <= 1 and low < high):
            raise ValueError(
                f"expected grey levels in 0..{white:g}, not scaled before; got values from {low:g} to {high:g}"
            )
    if images.dtype == torch.uint8:
        return (2 * images.float() - white) / white  # all but the quotient is exact, so float64 would add nothing
    return (images.double() / white * 2 - 1).float()


def check_images(data: LabelledImages, shape: tuple[int, int, int], classes: int | None = None) -> None:
    """Raises TypeError or ValueError, naming what was expected and what came, unless `data` can be trained on.

    shape: the (C, H, W) that the network expects. classes: those of the network, whose labels must lie in
    0..classes−1; 0 or None is a network without labels: then the data need none, and any will do.
    """
    images, labels = data.images, data.labels
    if images.dtype not in (torch.float32, torch.uint8):
        raise TypeError(
            f"expected float32 images in [-1, 1] or bytes (uint8), got {images.dtype}: scale them with to_signed"
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(f"expected images of shape (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    if len(images) == 0 or (labels is not None and labels.shape != (len(images),)):
        raise ValueError(
            "expected one label for each of at least one image; "
            f"got {len(images)} images and labels of shape {None if labels is None else tuple(labels.shape)}"
        )
    if images.dtype == torch.uint8:
        _check_bytes(images)
    else:
        _check_pixels(images)
    if labels is not None and labels.dtype != torch.int64:
        raise TypeError(f"expected int64 labels, got {labels.dtype}")
    if classes and labels is None:
        raise ValueError(
            f"expected labels in 0..{classes - 1}, for the network has {classes} classes, got images without labels: "
            "label them, or train a network without classes"
        )
    if classes:
        check_labels(labels, classes)


def _check_bytes(images: Tensor) -> None:
    low, high = (int(end) for end in images.aminmax())
    if (low, high) == (0, 1):
        raise ValueError(
            "expected bytes in 0..255, got only 0 and 1, which look like images in [0, 1] that were cast to bytes: "
            "multiply by 255 before the cast"
        )


def _check_pixels(images: Tensor) -> None:
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"expected finite pixels; {int(bad.sum())} of {len(images)} images hold NaN or infinity, "
            f"the first is image {int(bad.nonzero()[0])}"
        )
    low, high = float(images.min()), float(images.max())
    if low < -1 or high > 1:
        raise ValueError(
            f"expected pixels in [-1, 1], got values from {low:g} to {high:g}: scale the images once, with to_signed"
        )
    if low >= 0 and high > low:
        raise ValueError(
            f"expected pixels in [-1, 1], got values from {low:g} to {high:g}, "
            "which look like [0, 1]: scale with 2*x - 1"
        )


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises ValueError for a label outside 0..classes−1. Reads the labels: keep them on the CPU until it has run."""
    if labels.numel() == 0:
        raise ValueError("expected at least one label, got none")
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(f"expected labels in 0..{classes - 1}, got {wrong}")
