"""Image files decoded once: all of them before training starts, all broken ones named, the bytes kept for next time."""

import hashlib
import inspect
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ddpm_lib.images import image_files
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.image_files import ADVICE, ImageFiles, file_size
from ddpm_lib.images.workers import loaded

FOLDER = ".decoded"  # below the images' root: it goes where they go, and is deleted with them
NAMED = 20  # files that a message names
PART = 1_000_000  # bytes that a worker hands over at once, about, and at most 64 images: a container's shared memory is
FORGOTTEN = 3600  # seconds without a write after which a half-written file is nobody's


def decode(data: ImageFiles, workers: int) -> Iterator[Tensor]:
    """All images in order, some at a time: (n, C, S, S), uint8. `workers` processes read them.

    After the last one raises ValueError if there are broken files, naming all of them (of very many the first 20), and
    gathers what decoders had to remark about others in one warning.
    """
    broken, remarks = [], []
    rows = torch.arange(len(data)).split(min(64, max(1, PART // image_bytes(data))))
    with (
        loaded(_Attempts(data), rows, workers, _gather) as attempts,
        tqdm(total=len(data), desc="decoding", unit=" images", mininterval=1, delay=5) as bar,
    ):
        for images, wrong, remarked in attempts:
            broken += wrong
            remarks += remarked
            bar.update(len(images))
            yield images
    if remarks:
        warnings.warn(f"{len(remarks)} remarks on {len(data)} image files:{_listed(remarks)}", stacklevel=2)
    if len(broken) == 1:
        raise ValueError(broken[0])
    if broken:
        causes = [complaint.removesuffix(ADVICE) for complaint in broken]
        raise ValueError(
            f"{len(broken)} of {len(data)} image files are broken:{_listed(causes)}\n{ADVICE.removeprefix('. ')}"
        )


def some_of(data: LabelledImages | ImageFiles, most: int, workers: int) -> LabelledImages:
    """At most so many of the data, spread evenly over them, in memory; files are decoded by `workers` processes."""
    rows = torch.arange(min(most, len(data))) * len(data) // min(most, len(data))
    images = data.images[rows] if isinstance(data, LabelledImages) else torch.cat([*decode(data.subset(rows), workers)])
    return LabelledImages(images, None if data.labels is None else data.labels[rows], data.names)


def kept(data: ImageFiles, workers: int) -> Path | None:
    """The file below data.root that holds all images as bytes, (N, C, S, S): written now, unless it is there.

    Its name depends on every file's name, size and time of change, and on the code that decodes them: what is stale is
    not found, and is removed when the new file is there. It is written whole or not at all. None, with a warning, where
    it cannot be written or would take more than half of the space that is free. Raises ValueError for broken files.
    """
    if data.root is None:
        return None
    folder = data.root / FOLDER
    kind = f"{data.channels}x{data.size}x{data.size}"
    path = folder / f"{kind}-{_key(data)}.bytes"
    size = len(data) * image_bytes(data)
    if file_size(path) == size:
        return path
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        free = shutil.disk_usage(folder).free
        if size > free // 2:
            raise OSError(f"it takes {size / 1e9:.2f} GB, and of {free / 1e9:.2f} GB that are free only half are used")
        with open(partial, "wb") as file:
            for images in decode(data, workers):
                file.write(images.numpy())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sweep(folder, kind, path)
    except OSError as error:
        warnings.warn(
            f"the decoded images cannot be kept in {folder} ({error}): they are decoded again at each start",
            stacklevel=2,
        )
        return None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


@dataclass(frozen=True, eq=False)
class DecodedImages(Dataset):
    """The images of `files`, read from the file that `kept` wrote; decoded again should somebody remove that."""

    files: ImageFiles
    path: Path

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        shape = (self.files.channels, self.files.size, self.files.size)
        count = image_bytes(self.files)
        try:
            return torch.from_numpy(np.fromfile(self.path, np.uint8, count, offset=i * count)).view(shape)
        except OSError:  # it was removed, or its disk is gone
            return self.files[i]


def image_bytes(data: ImageFiles) -> int:
    """What one image takes, decoded."""
    return data.channels * data.size**2


@dataclass(frozen=True, eq=False)
class _Attempts(Dataset):
    """For each file its image (black if it is broken), what is wrong with it, and what the decoder remarked."""

    files: ImageFiles

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, list[str], list[str]]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                image, wrong = self.files[i], []
            except ValueError as error:
                image = torch.zeros(self.files.channels, self.files.size, self.files.size, dtype=torch.uint8)
                wrong = [str(error)]
        path = str(self.files.paths[i])
        remarks = [str(warning.message) for warning in said]
        return image, wrong, [text if path in text else f"{path}: {text}" for text in dict.fromkeys(remarks)]


def _gather(attempts: list[tuple[Tensor, list[str], list[str]]]) -> tuple[Tensor, list[str], list[str]]:
    images, wrong, remarks = zip(*attempts, strict=True)
    return torch.stack(images), [text for some in wrong for text in some], [text for some in remarks for text in some]


def _listed(lines: list[str]) -> str:
    more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return "".join(f"\n  {line}" for line in [*lines[:NAMED], *more])


def _key(data: ImageFiles) -> str:
    found = hashlib.sha256(f"{PIL.__version__}\0{inspect.getsource(image_files)}\0".encode())
    for name, path in zip(data.keys(), data.paths, strict=True):
        try:
            at = os.stat(path)
            found.update(f"{name}\0{at.st_size} {at.st_mtime_ns}\0".encode(errors="surrogatepass"))
        except OSError:  # decoding it will say so
            found.update(f"{name}\0".encode(errors="surrogatepass"))
    return found.hexdigest()[:16]


def _sweep(folder: Path, kind: str, current: Path) -> None:
    """Remove what was decoded of other files at this size, and what processes that were killed left half written."""
    old = [path for path in folder.glob(f"{kind}-*.bytes") if path != current]
    now = time.time()
    old += [path for path in folder.glob(".*.partial") if now - path.stat().st_mtime > FORGOTTEN]
    for path in old:
        with suppress(OSError):  # in use, on Windows; a run that reads it elsewhere decodes its files again
            path.unlink()
