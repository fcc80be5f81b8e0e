"""Images in files: found, decoded one at a time, and brought to one size."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from unicodedata import normalize

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset

WANTED = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SUFFIXES = tuple(suffix for suffix in WANTED if suffix in Image.registered_extensions())  # .avif since Pillow 11.3
MODES = {1: "L", 3: "RGB"}
ADVICE = ". Replace it with a whole copy, or take it out of the folder."
Turn = Image.Transpose
TURNS = {  # by EXIF orientation
    **{2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE},
    **{6: Turn.ROTATE_270, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_90},
}


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset):
    """Image files as bytes: `files[i]` is (C, S, S), uint8, for S = size and C = channels (1 is grey, 3 is RGB).

    paths: N files; labels: (N,), int64, in 0..classes−1, or None where the data have none; names: those of the classes,
    or (). root: the folder below which they lie, and where their decoded copy is kept; None: none is kept.
    Raises ValueError, naming the file, for one that cannot be decoded whole.
    """

    paths: Sequence[Path]
    size: int
    channels: int
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    root: Path | None = None

    def __post_init__(self):
        if self.channels not in MODES or self.size < 1:
            raise ValueError(f"expected 1 or 3 channels and size >= 1; got {self.channels} and {self.size}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        path = self.paths[i]
        try:
            pixels = np.array(square(read_image(path, self.size, self.channels), self.size))
        except Exception as error:  # a broken file makes a decoder raise nearly anything
            raise ValueError(f"expected an image in {path}, got {type(error).__name__}: {error}{ADVICE}") from error
        return torch.from_numpy(pixels.reshape(self.size, self.size, self.channels)).permute(2, 0, 1).contiguous()

    def subset(self, rows: Sequence[int] | Tensor) -> "ImageFiles":
        """The files of these rows, in this order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, paths=[self.paths[i] for i in rows.tolist()], labels=labels)

    def keys(self) -> list[str]:
        """The name of each file below root, as `key` spells it."""
        above = "" if self.root is None else f"{key(self.root)}/"
        return [key(path).removeprefix(above) for path in self.paths]


def key(path: PurePath) -> str:
    """A path as every system spells it: with /, and accented letters as one sign each (Unicode's NFC)."""
    return normalize("NFC", path.as_posix())


def file_size(path: str | os.PathLike) -> int:
    """In bytes; -1 where it is not there to be asked (a broken link, say), for reading it will say so."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def image_folder(root: str | Path, size: int, channels: int) -> ImageFiles:
    """All images below a folder, in the order of their names; hidden files and folders are left out, links followed.

    If all lie in subfolders of root, at whatever depth, the first-level subfolders are their classes; if all lie
    directly in root, they have no labels. A warning counts the files that are left out for what their names end in,
    and names the subfolders without an image. Raises FileNotFoundError where there is no image, ValueError for a
    mixture, OSError for a folder that cannot be listed.
    """
    root = Path(root)
    if not root.is_dir():
        there = "that is a file" if root.exists() else "there is no such folder"
        raise FileNotFoundError(f"expected a folder of images at {root}; {there}")
    found, others, subfolders = _walk(root)
    endings = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(others.items()))
    if not found:
        nothing = f"found no file whose name ends in {', '.join(SUFFIXES)}" if any(root.iterdir()) else "it is empty"
        more = f"; there are others: {endings}" if others else ""
        raise FileNotFoundError(f"expected images below {root}, {nothing}{more}")
    loose = [path for path in found if len(path.parts) == 1]
    names = sorted({_class(path) for path in found} - {_class(path) for path in loose})
    if loose and names:
        raise ValueError(
            f"expected all images directly in {root}, or all in its subfolders, which are then their classes; got "
            f"{len(loose)} directly in it, {loose[0].name} for one, and {len(found) - len(loose)} below {names[0]} and "
            "the like: move the former into a subfolder, or name a folder that holds only one kind"
        )
    if others:
        warnings.warn(
            f"{others.total()} of the {others.total() + len(found)} files below {root} are left out ({endings}): the "
            f"names of images end in {', '.join(SUFFIXES)}; save others in one of these forms",
            stacklevel=2,
        )
    if names and (empty := sorted(subfolders - set(names))):
        warnings.warn(f"no image in {', '.join(empty)} below {root}: not counted among the classes", stacklevel=2)
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[_class(path)] for path in found]) if names else None
    return ImageFiles([root / path for path in found], size, channels, labels, tuple(names), root)


def _walk(root: Path) -> tuple[list[Path], Counter[str], set[str]]:
    """The images below root, in order, as paths from it; other files, counted by suffix; first-level subfolders."""

    def refuse(error: OSError) -> None:  # os.walk leaves out what it cannot list, and says nothing
        raise error

    found, others, subfolders = [], Counter(), set()
    for folder, below, files in os.walk(root, onerror=refuse, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".") and not _leads_back(folder, name)]
        place = Path(folder).relative_to(root)
        if not place.parts:
            subfolders = {key(Path(name)) for name in below}
        for path in (place / name for name in files if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                found.append(path)
            else:
                others[path.suffix.lower()] += 1
    return sorted(found, key=lambda path: (key(path).split("/"), path.parts)), others, subfolders


def _leads_back(folder: str, name: str) -> bool:
    """Whether this is a link to a folder that it lies in, so that following it would never end."""
    path = Path(folder, name)
    target = path.resolve() if path.is_symlink() else None
    return target is not None and any(above.resolve().is_relative_to(target) for above in path.parents)


def _class(path: Path) -> str:
    return key(Path(path.parts[0]))


def read_image(path: str | Path, size: int, channels: int) -> Image.Image:
    """A file as it is meant to be seen, in grey (Rec. 601) or RGB: turned as its EXIF says, laid on white where clear.

    Of a moving picture the first frame. 16-bit grey keeps its 8 high bits. A JPEG that is far larger than `size` is
    decoded at 1/2, 1/4 or 1/8, never below 2·size, which is several times faster. Colour profiles are not applied.
    Where the EXIF block is malformed, which harms no pixel, the image is not turned, and a warning names the file.
    """
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))
        image.load()
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        turn = TURNS.get(_orientation(image, path))
        image = image.copy() if turn is None else image.transpose(turn)
    if deep:
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (mode {image.mode}), whose white nobody knows")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(MODES[channels])


def _orientation(image: Image.Image, path: str | Path) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # SyntaxError, struct.error, ValueError and whatever else a malformed block leads to
        warnings.warn(
            f"{path}: its EXIF block is malformed ({type(error).__name__}: {error}), so it is read without turning it",
            stacklevel=3,
        )
        return 1


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of an image, at size × size: bicubic, with a filter as wide as the scale."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
