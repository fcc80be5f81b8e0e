"""Checkpoints: one safetensors file whose header carries JSON. Written whole or not at all, and never unpickled."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "ddpm_lib checkpoint 1"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace `path` by a file with this content in one step: a crash leaves the old file or the new, both whole.

    Raises OSError, see `named`, where the disk is full or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with named(path, len(content)):
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _flush_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def named(path: str | Path, size: int | None = None) -> Iterator[None]:
    """Within, an OSError of the system names the file that was to be written, its size in bytes, and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the system's: somebody wrote all of its message
            raise
        wanted = "" if size is None else f", which takes {amount(size)}"
        try:
            free = f"; {amount(shutil.disk_usage(Path(path).parent).free)} are free there"
        except OSError:  # the folder itself is gone
            free = ""
        raise OSError(error.errno, f"{error.strerror}: cannot write {path}{wanted}{free}") from error


def amount(size: float) -> str:
    """A number of bytes for a reader: "512 B", "3.42 MB", "1.07 GB" (10⁹ bytes)."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_:
            return f"{size / bytes_:.2f} {unit}"
    return f"{size:.0f} B"


def _flush_folder(folder: Path) -> None:
    """Make a renaming in `folder` last through a power cut, where the system can (not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able description to `path`, atomically.

    Raises FloatingPointError, and leaves a checkpoint that is already there as it was, if a tensor is not finite.
    """
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in host.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} holds NaN or infinity: not saved, {path} is left as it was")
    write_atomically(path, save(host, metadata={"format": FORMAT, "about": json.dumps(about)}))


def load_checkpoint(
    path: str | Path, prefixes: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the description of a file that `save_checkpoint` wrote.

    The tensors are copies: a mapped file keeps its space on the disk after it was removed, and Windows removes none.
    prefixes: read only the tensors whose name begins with one of them (None: all; (): the description alone).
    Raises FileNotFoundError if there is none, ValueError if the file is truncated or is not such a checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}; there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is a safetensors file but not a {FORMAT!r}; its format is {header.get('format')!r}"
                )
            about = json.loads(header.get("about", "null"))
            if not isinstance(about, dict):
                raise ValueError(f"{path} carries no description of what it holds: expected a JSON object")
            wanted = [name for name in file.keys() if prefixes is None or name.startswith(tuple(prefixes))]
            return {name: file.get_tensor(name).clone() for name in wanted}, about
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its description is not JSON ({error})") from error
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a ddpm_lib checkpoint, which is a safetensors file ({error}). "
            "Pickled weights (.pt, .pth, .pkl) are never loaded: they can run code."
        ) from error


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str, origin: str | Path) -> None:
    """Copy the tensors named `prefix` + parameter name into `model`.

    Raises ValueError, and leaves `model` as it was, where names or shapes differ (another architecture).
    """
    expected = model.state_dict()
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for name in sorted(expected.keys() | found.keys()):
        want, got = (str(tuple(d[name].shape)) if name in d else "nothing" for d in (expected, found))
        if want != got:
            raise ValueError(
                f"{origin} holds another architecture: for {name} the network expects {want}, the file has {got}"
            )
    model.load_state_dict(found)


def step_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies: every step has a file of its own, and none is ever overwritten."""
    return Path(folder) / f"step-{step:08d}.safetensors"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, by step; [] if there are none."""
    return sorted(Path(folder).glob("step-*.safetensors"))


def best_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint whose description has the lowest "metric" (the older of two equal ones); None where none has.

    A file that is damaged, and a metric that is not finite, are passed over.
    """
    rated = []
    for path in list_checkpoints(folder):
        try:
            metric = load_checkpoint(path, ())[1].get("metric")
        except ValueError:  # an old file that a disk spoiled must not stop the run that saves the next one
            continue
        if metric is not None and math.isfinite(metric):
            rated.append((metric, path))
    return min(rated, default=(None, None))[1]


def prune(folder: str | Path, keep: int) -> None:
    """Remove all checkpoints but the last `keep` and the best."""
    spared = {*list_checkpoints(folder)[-keep:], best_checkpoint(folder)}
    for path in set(list_checkpoints(folder)) - spared:
        path.unlink()


def sweep(folder: str | Path) -> None:
    """Remove what processes that were killed while writing left behind."""
    for path in Path(folder).glob(".*.partial"):
        path.unlink()
