"""Checkpoints: one safetensors file whose header carries JSON. Written whole or not at all, and never unpickled."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

FORMAT = "ddpm_lib checkpoint 1"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace `path` by a file with this content in one step: a crash leaves the old file or the new, both whole."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able description to `path`, atomically.

    Raises FloatingPointError, and leaves a checkpoint that is already there as it was, if a tensor is not finite.
    """
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in host.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} holds NaN or infinity: not saved, {path} is left as it was")
    write_atomically(path, save(host, metadata={"format": FORMAT, "about": json.dumps(about)}))


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the description of a file that `save_checkpoint` wrote.

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
            return {name: file.get_tensor(name) for name in file.keys()}, about
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
