"""Whether data are those that a run has trained on: a fingerprint that a checkpoint can carry, and their comparison."""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.image_files import ImageFiles, file_size

VERSION = 1  # of what is hashed, and how
EXAMPLES = 5  # classes that a message names


def fingerprint(data: LabelledImages | ImageFiles) -> dict[str, Any]:
    """What tells these data from others, ready for JSON: their number, shape, classes, images per class, and a hash.

    Of images in memory the hash covers every byte and label; of files, names below the root, sizes and labels, in
    order. So a folder may move, and be copied to another system. A file that was replaced by one of exactly its size
    is not noticed.
    """
    found = hashlib.sha256()
    if isinstance(data, ImageFiles):
        shape = (data.channels, data.size, data.size)
        for name, path in zip(data.keys(), data.paths, strict=True):
            found.update(f"{name}\0{file_size(path)}\0".encode(errors="surrogatepass"))
    else:
        shape = tuple(data.images.shape[1:])
        found.update(str(data.images.dtype).encode())
        found.update(data.images.cpu().reshape(-1).numpy())
    counts = {}
    if data.labels is not None:
        found.update(data.labels.cpu().contiguous().numpy())
        which, count = (part.tolist() for part in torch.unique(data.labels, return_counts=True))
        named = range(len(data.names))
        counts = {data.names[i] if i in named else str(i): n for i, n in zip(which, count, strict=True)}
    about = {"version": VERSION, "images": len(data), "shape": list(shape), "names": list(data.names)}
    return about | {"counts": counts, "hash": found.hexdigest()}


def check_same(
    then: Mapping[str, Any] | None, now: Mapping[str, Any], origin: object, *, other_data: bool = False
) -> None:
    """Raises ValueError, naming what has changed, unless the fingerprint `now` is the one that `origin` carries.

    other_data: a warning will do, and training goes on with other images. A checkpoint without a fingerprint (then is
    None, or was made in another way) gets a warning too.
    """
    if then is None or then.get("version") != VERSION:
        warnings.warn(
            f"{origin} does not say which images it was trained on, for another version of ddpm_lib wrote it: whether "
            "they are the same is not known. Versions before fingerprints split a folder of images in another way, so "
            "some that are held out now may have been trained on",
            stacklevel=3,
        )
        return
    if then == now:
        return
    message = f"the images are not those that {origin} was trained on: {'; '.join(_changes(then, now))}"
    if not other_data:
        raise ValueError(
            f"{message}. Put back what was there (a folder that was moved is named with root=PATH), or start a new "
            "run, or resume with --other-data (in Python other_data=True) to go on with the images that are here"
        )
    warnings.warn(f"{message}. Training goes on with those that are here", stacklevel=3)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    said = [f"{what}: {now[what]}, then {then[what]}" for what in ("images", "shape") if now[what] != then[what]]
    before, after = ({name: of["counts"].get(name, 0) for name in then["counts"] | now["counts"]} for of in (then, now))
    moved = [name for name in before if before[name] != after[name]]
    said += [f"of class {name}: {after[name]}, then {before[name]}" for name in moved[:EXAMPLES]]
    if len(moved) > EXAMPLES:
        said.append(f"and {len(moved) - EXAMPLES} more classes")
    return said or ["as many as then, but some are others, or have another name or label"]
