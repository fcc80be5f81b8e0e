"""A message to a person: at most six lines, of which the last one helps; in a notebook they stand alone."""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.checks.compare import a_type
from ddpm_lib.checks.record import Call

WIDTH, LINES = 96, 6


class _Alone:
    """An exception that IPython shows as its message alone, without the lines of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class DoesNotHold(_Alone, AssertionError):
    """An equation's check has failed; the message says how, where, and what to look at."""


class NothingToCheck(_Alone, ValueError):
    """The call of a check is at fault, not the function: an unknown name, or no function."""


def lines(*texts: str) -> str:
    """Texts, the equation's first and last what helps, in at most six lines: what stands between is shortened first."""
    texts = [text for text in texts if text]
    rows = [2] * (len(texts) - 1) + [3]
    blocks = [_wrapped(text, most) for text, most in zip(texts, rows, strict=True)]
    for i in [*range(1, len(texts) - 1), len(texts) - 1]:
        if (excess := sum(map(len, blocks)) - LINES) > 0:
            blocks[i] = _wrapped(texts[i], max(1, len(blocks[i]) - excess))
    return "\n".join(line for block in blocks for line in block)


def _wrapped(text: str, rows: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, max_lines=rows, placeholder=" …")


def describe(value: Any) -> str:
    """A value in a few words: its shape, or the value itself where it is small."""
    if isinstance(value, (Tensor, np.ndarray)):
        usual = value.dtype in (torch.float64, torch.int64, np.float64, np.int64)
        return ("" if usual else f"{str(value.dtype).removeprefix('torch.')} ") + str(tuple(value.shape))
    if isinstance(value, nn.Module) or inspect.isroutine(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, (bool, int, float, complex, str)):
        return f"{value:.6g}" if isinstance(value, float) else textwrap.shorten(repr(value), 40, placeholder=" …")
    if isinstance(value, (tuple, list)):
        inside = ", ".join(describe(part) for part in value[:4]) + (", …" if len(value) > 4 else "")
        return (
            f"a {type(value).__name__} of {len(value)}: {inside}" if len(value) else f"an empty {type(value).__name__}"
        )
    if hasattr(value, "beta") and isinstance(getattr(value, "T", None), int):
        return f"T={value.T}"
    return a_type(value)


def called(function: Callable, call: Call, names: Sequence[str]) -> str:
    """The call, with argument names: shapes of tensors in brackets, numbers as they are."""
    given = [*zip([*names, *["…"] * len(call.args)], call.args, strict=False), *call.options.items()]
    shown = []
    for name, value in given:
        value = value.item() if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0 else value
        if isinstance(value, (int, float)):
            shown.append(f"{name}={describe(value)}")
        elif isinstance(value, (Tensor, np.ndarray)):
            shown.append(f"{name} {describe(value)}")
        elif isinstance(value, (tuple, list)):
            short = repr(value)
            shown.append(f"{name}={short}" if len(short) < 24 else f"{name} ({type(value).__name__} of {len(value)})")
        elif hasattr(value, "beta") and hasattr(value, "T"):
            shown.append(f"{name} (T={value.T})")
        else:
            shown.append(name)
    return f"Called: {name_of(function)}({', '.join(shown)})"


def name_of(function: Callable) -> str:
    name = getattr(function, "__name__", "f")
    return name if isinstance(name, str) and name.isidentifier() and name != "_" else "f"
