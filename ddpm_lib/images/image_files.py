"""Images in files: found, decoded one at a time, and brought to one size."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset):
    """Image files as bytes: `files[i]` is (C, S, S), uint8, for S = size and C = channels (1 is grey, 3 is RGB).

    paths: N files; labels: (N,), int64, in 0..classes−1, or None where the data have none; names: those of the classes,
    or (). Raises ValueError, naming the file, for one that cannot be decoded whole.
    """

    paths: Sequence[Path]
    size: int
    channels: int
    labels: Tensor | None = None
    names: tuple[str, ...] = ()

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
            raise ValueError(
                f"expected an image in {path}, got {type(error).__name__}: {error}. "
                "Replace it with a whole copy, or take it out of the folder."
            ) from error
        return torch.from_numpy(pixels.reshape(self.size, self.size, self.channels)).permute(2, 0, 1).contiguous()


def image_folder(root: str | Path, size: int, channels: int) -> ImageFiles:
    """All images below a folder, in the order of their names; hidden files and folders are left out, links followed.

    If all lie in subfolders of root, at whatever depth, the first-level subfolders are their classes; if all lie
    directly in root, they have no labels. Raises FileNotFoundError where there is no image, ValueError for a mixture.
    """
    root = Path(root)
    found = []
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found += [Path(folder, name).relative_to(root) for name in names]
    found.sort(key=lambda path: path.parts)
    if not found:
        raise FileNotFoundError(f"expected images below {root}, found no file whose name ends in {', '.join(SUFFIXES)}")
    paths = [root / path for path in found]
    loose = [path for path in found if len(path.parts) == 1]
    if len(loose) == len(found):
        return ImageFiles(paths, size, channels)
    names = sorted({path.parts[0] for path in found} - {path.name for path in loose})
    if loose:
        raise ValueError(
            f"expected all images directly in {root}, or all in its subfolders, which are then their classes; got "
            f"{len(loose)} directly in it, {loose[0].name} for one, and {len(found) - len(loose)} below {names[0]} and "
            "the like: move the former into a subfolder, or name a folder that holds only one kind"
        )
    labels = torch.tensor([names.index(path.parts[0]) for path in found])
    return ImageFiles(paths, size, channels, labels, tuple(names))


def read_image(path: str | Path, size: int, channels: int) -> Image.Image:
    """A file as it is meant to be seen, in grey (Rec. 601) or RGB: turned as its EXIF says, laid on white where clear.

    Of a moving picture the first frame. 16-bit grey keeps its 8 high bits. A JPEG that is far larger than `size` is
    decoded at 1/2, 1/4 or 1/8, never below 2·size, which is several times faster. Colour profiles are not applied.
    """
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))
        image.load()
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        image = ImageOps.exif_transpose(image)
    if deep:
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (mode {image.mode}), whose white nobody knows")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(MODES[channels])


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of an image, at size × size: bicubic, with a filter as wide as the scale."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
