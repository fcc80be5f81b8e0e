"""Data sets by name, through torchvision: downloaded where there is a network, and no file is used unchecked."""

import hashlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import download_and_extract_archive, extract_archive
from torchvision.transforms.v2.functional import InterpolationMode, resize

from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.image_files import ImageFiles, image_folder

IDX = {  # file: its size and, unpacked (torchvision knows them packed alone), its MD5 in MNIST and in Fashion-MNIST
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624", "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea", "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637", "15d484375f8d13e6eb1aabb0c3f46965"),
}
CIFAR10_SIZES = {
    **{"data_batch_1": 31_035_704, "data_batch_2": 31_035_320, "data_batch_3": 31_035_999, "data_batch_4": 31_035_696},
    **{"data_batch_5": 31_035_623, "test_batch": 31_035_526, "batches.meta": 158},
}
STL10_SIZES = {
    **{"train_X.bin": 138_240_000, "train_y.bin": 5_000, "unlabeled_X.bin": 2_764_800_000},
    **{"test_X.bin": 221_184_000, "test_y.bin": 8_000},
}
CELEBA_IMAGES = 202_599
SHARE, HELD_OUT = 1 / 20, 1000  # of the images of a folder that are held out: about, and at most
SECONDS = 60  # without an answer, and a download counts as failed
Split = tuple[LabelledImages, LabelledImages]


@dataclass(frozen=True)
class File:
    """A file that a data set needs: where it lies, its MD5, and its size in bytes (None: nobody published it)."""

    path: Path
    md5: str
    size: int | None = None


def mnist(root: str | Path, size: int = 28) -> Split:
    """MNIST: 60,000 handwritten digits to train on and 10,000 held out, (N, 1, size, size), in ten classes.

    root: the folder that holds MNIST/raw. Source: Y. LeCun, C. Cortes and C. Burges, the MNIST database, 1998.
    """
    return _idx(datasets.MNIST, Path(root), size, tuple("0123456789"))


def fashion(root: str | Path, size: int = 28) -> Split:
    """Fashion-MNIST: 60,000 garments to train on and 10,000 held out, (N, 1, size, size), in ten classes.

    root: the folder that holds FashionMNIST/raw. Source: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.
    """
    return _idx(datasets.FashionMNIST, Path(root), size, tuple(datasets.FashionMNIST.classes))


def cifar10(root: str | Path, size: int = 32) -> Split:
    """CIFAR-10: 50,000 photographs to train on and 10,000 held out, (N, 3, size, size), in ten classes.

    root: the folder that holds cifar-10-batches-py. Source: A. Krizhevsky, Learning Multiple Layers of Features from
    Tiny Images, 2009.
    """
    source, root = datasets.CIFAR10, Path(root)
    folder = root / source.base_folder
    listed = [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]
    files = [File(folder / name, md5, CIFAR10_SIZES.get(name)) for name, md5 in listed]
    _ensure(root, "CIFAR-10", files, _archive(source, root), f"or {source.filename} as it came")
    parts = [source(root, train=train) for train in (True, False)]
    return tuple(
        LabelledImages(
            resized(torch.from_numpy(part.data).permute(0, 3, 1, 2), size),  # (N, H, W, C) -> (N, C, H, W)
            torch.tensor(part.targets),
            tuple(part.classes),
        )
        for part in parts
    )


def stl10(root: str | Path, size: int = 96) -> Split:
    """STL-10: 105,000 photographs to train on and 8,000 held out, (N, 3, size, size), without labels: most have none.

    root: the folder that holds stl10_binary. Source: Coates, Lee and Ng, AISTATS 2011.
    """
    source, root = datasets.STL10, Path(root)
    folder = root / source.base_folder
    files = [File(folder / name, md5, STL10_SIZES.get(name)) for name, md5 in source.train_list + source.test_list]
    _ensure(root, "STL-10", files, _archive(source, root), f"or {source.filename} as it came")
    train, unlabelled, test = (
        resized(torch.from_numpy(_CheckedSTL10(root, split=split).data), size)
        for split in ("train", "unlabeled", "test")
    )
    return LabelledImages(torch.cat([train, unlabelled])), LabelledImages(test.contiguous())


class _CheckedSTL10(datasets.STL10):
    """Reads one of its three parts without reading all three gigabytes again to check them."""

    def _check_integrity(self) -> bool:
        return True


def celeba(root: str | Path, size: int = 64) -> tuple[ImageFiles, ImageFiles]:
    """CelebA, aligned: 162,770 faces to train on and 39,829 held out, the middle 178×178 of each, without labels.

    root: the folder that holds celeba. Source: Liu, Luo, Wang and Tang, ICCV 2015.
    """
    root = Path(root)
    folder = root / datasets.CelebA.base_folder
    known = {name: File(folder / name, md5) for _, md5, name in datasets.CelebA.file_list}
    split, packed = known["list_eval_partition.txt"], known["img_align_celeba.zip"]
    images = folder / "img_align_celeba"
    if not images.is_dir() and packed.path.exists():
        _check(packed)
        extract_archive(packed.path, folder)
    also = f"for the images {packed.path.relative_to(root)} will do"
    _ensure(root, "CelebA", [split], partial(datasets.CelebA, root, download=True), also, images)
    rows = [line.split() for line in split.path.read_text(encoding="ascii").splitlines()]
    there = {path.name for path in images.iterdir()}
    missing = [name for name, _ in rows if name not in there]
    if missing or len(rows) != CELEBA_IMAGES:
        raise FileNotFoundError(
            f"expected {CELEBA_IMAGES} images in {images}, the ones that {split.path.name} lists; "
            f"{len(missing)} of {len(rows)} are missing, {', '.join(missing[:3])} for instance: "
            "remove the folder and unpack img_align_celeba.zip again"
        )
    train, held_out = ([images / name for name, part in rows if (part == "0") == first] for first in (True, False))
    return ImageFiles(train, size, 3, root=folder), ImageFiles(held_out, size, 3, root=folder)


def folder(root: str | Path, size: int, channels: int = 3) -> tuple[ImageFiles, ImageFiles]:
    """Images of your own, as `image_folder` finds them. About one in twenty, at most 1,000, is held out.

    A hash of its path below root, in [0, 1), decides: those below 1/20 are held out; of more than 1,000 such the 1,000
    smallest, and where there is none the smallest of all. So as long as 1 to 1,000 hashes lie below 1/20 (as good as
    certain for 150 to 18,000 images) an image stays on its side, whatever other files come or go. Beyond, files that
    come move none from training to held out; files that go move one for each held-out file among them.
    A renamed image is another one. Raises ValueError for fewer than two.
    """
    found = image_folder(root, size, channels)
    if len(found) < 2:
        raise ValueError(f"expected at least two images below {root}, one of which is held out; found {len(found)}")
    hashes = np.array([_unit_hash(name) for name in found.keys()])
    order = hashes.argsort(kind="stable")
    held = min(max(1, int((hashes < SHARE).sum())), HELD_OUT, len(found) - 1)
    return found.subset(np.sort(order[held:])), found.subset(np.sort(order[:held]))


def _unit_hash(name: str) -> float:
    """A name as a number in [0, 1), uniform over names, and the same on every system."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:6]) / 2**48


def resized(images: Tensor, size: int, part: int = 4096) -> Tensor:
    """Bytes (N, C, H, W) at (N, C, size, size): bicubic, with a filter as wide as the scale asks (antialiased)."""
    if images.shape[-2:] == (size, size):
        return images
    options = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    return torch.cat([resize(some.contiguous(), [size, size], **options) for some in images.split(part)])


def _idx(source: type[datasets.MNIST], root: Path, size: int, names: tuple[str, ...]) -> Split:
    raw = root / source.__name__ / "raw"
    column = 1 if source is datasets.MNIST else 2
    files = [File(raw / name, row[column], row[0]) for name, row in IDX.items()]
    for file, (name, md5) in zip(files, source.resources, strict=True):
        if not file.path.exists() and (raw / name).exists():
            _check(File(raw / name, md5))
            extract_archive(raw / name, raw)
    _ensure(root, source.__name__, files, partial(source, root, download=True), "a file packed as .gz will do")
    parts = [(read_image_file(files[i].path), read_label_file(files[i + 1].path)) for i in (0, 2)]
    return tuple(LabelledImages(resized(images[:, None], size), labels, names) for images, labels in parts)


def _archive(source: Any, root: Path) -> Callable[[], Any]:
    """Downloads the archive of a data set, unless it lies in root, and unpacks it there."""
    return partial(download_and_extract_archive, source.url, root, filename=source.filename, md5=source.tgz_md5)


def _ensure(root: Path, title: str, files: Sequence[File], download: Callable[[], Any], also: str, *folders: Path):
    """Check the files that are there; download what is missing, and check that. also: another way to do it by hand."""
    missing = [file.path for file in files if not file.path.exists()]
    for file in files:
        if file.path not in missing:
            _check(file)
    absent = [*missing, *(path for path in folders if not path.is_dir())]
    if not absent:
        return
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        download()
    except (OSError, RuntimeError, HTTPException) as error:
        names = ", ".join(path.relative_to(root).as_posix() for path in absent)
        raise FileNotFoundError(
            f"{title} is not whole: missing under {root}: {names}. The download failed "
            f"({type(error).__name__}: {str(error).strip()}). Put what is missing there by hand ({also}), "
            "or name another root that holds it."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    for file in files:
        if file.path in missing:
            _check(file)


def _check(file: File) -> None:
    size = file.path.stat().st_size
    if file.size not in (None, size):
        what = f"has {size:,} of {file.size:,} bytes" if size < file.size else f"has {size:,} bytes, not {file.size:,}"
    else:
        with open(file.path, "rb") as content:
            found = hashlib.file_digest(content, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if found == file.md5:
            return
        what = f"is damaged (expected MD5 {file.md5}, got {found})"
    raise ValueError(f"{file.path} {what}: remove it and run again where there is a network, or copy it again")
