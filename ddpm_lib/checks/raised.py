"""What an exception in the examined function says: in which line it arose, and what is likely to mend it."""

import inspect
import linecache
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ddpm_lib.checks.compare import shape_of
from ddpm_lib.checks.record import Call

LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
    "<frozen",
)


def raised(call: Call, function: Callable, names: Sequence[str]) -> list[str]:
    """What an exception inside the function says, where it arose, and what is likely to mend it."""
    error = call.error
    line = student_line(error, function)
    if isinstance(error, TypeError) and (taken := _other_arguments(function, call)):
        asked = ", ".join([*names[: len(call.args)], *(f"{name}=" for name in call.options)])
        return [f"It cannot be called so: it takes {taken}.", f"Let it take these arguments, in this order: {asked}."]
    told = f"It raised {type(error).__name__}: {said(error)}"
    return [told, f"In {line}" if line else "", _remedy(call, names, error)]


def student_line(error: BaseException, function: Callable) -> str:
    """ "line 3: `return a * x`", the last line on the exception's way that is not a library's; "" if there is none.

    With its file's name, where that is another file than the function's.
    """
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(error.__traceback__, limit=-200)
    mine = [frame for frame in frames if frame.filename == own or not frame.filename.startswith(LIBRARIES)]
    if not mine:
        return ""
    source = (mine[-1].line or linecache.getline(mine[-1].filename, mine[-1].lineno or 0)).strip()
    shown = f": `{textwrap.shorten(source, 80, placeholder=' …')}`" if source else ""
    file = Path(mine[-1].filename)
    return f"line {mine[-1].lineno}{f' of {file.name}' * (str(file) != own and file.is_file())}{shown}"


def said(error: BaseException) -> str:
    """The exception's message, in one line."""
    try:
        return textwrap.shorten(str(error), 150, placeholder=" …", break_on_hyphens=False) or "(without a message)"
    except Exception:
        return "(its message cannot be shown)"


def _other_arguments(function: Callable, call: Call) -> str:
    """The function's own arguments, if the call does not fit them; else ""."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*call.args, **call.options)
    except TypeError:
        return ", ".join(map(str, signature.parameters.values())) or "no arguments"
    return ""


def _remedy(call: Call, names: Sequence[str], error: BaseException) -> str:
    message = said(error)
    given = dict(zip(names, call.args, strict=False))
    t = given.get("t")
    if isinstance(error, NotImplementedError):
        return "The function is not written yet: put the equation in the place of this line."
    if isinstance(error, SystemExit):
        return "Take out exit(): a function returns its result, or raises an error."
    if isinstance(error, RecursionError):
        return "The function calls itself without end: look for its own name in its body."
    if any(words in message for words in ("must match", "broadcast")) and (hint := reshape(call, names)):
        return hint
    if isinstance(t, int) and isinstance(error, (AttributeError, TypeError)):
        return f"Here t is the int {t}, not a tensor: the function must take both, as `alpha_bar[t]` does."
    if isinstance(error, (IndexError, RuntimeError)) and "out of" in message and "schedule" in given:
        return (
            "The tables have T + 1 entries, for t = 0..T: read them at t itself, and at t − 1 for the step before. "
            "A table of your own with the T entries of 1..T is read at t − 1."
        )
    if isinstance(error, NameError):
        return "This name is not defined where the function runs: give it as an argument, or import it."
    return "Call the function with arguments of these shapes in a cell of its own, and see what happens there."


def reshape(call: Call, names: Sequence[str]) -> str:
    """How coefficients, one for each t of a batch, come to stand beside images; "" if this is no such call."""
    batch = batch_of(call, names)
    shape = next((shape_of(x) for x in call.args if isinstance(x, Tensor) and x.ndim > 1 and len(x) == batch), None)
    if not batch or shape is None:
        return ""
    ones = ", ".join("1" * (len(shape) - 1))
    return (
        f"Coefficients of shape ({batch},) must be reshaped to ({batch}, {ones}) to multiply images {shape}: "
        f"`alpha_bar[t].reshape(-1, {ones})`, or a `coefficient` of the library, read with like=x."
    )


def batch_of(call: Call, names: Sequence[str]) -> int:
    """The length of the argument t, if it is a tensor (B,); else 0."""
    t = dict(zip(names, call.args, strict=False)).get("t")
    return len(t) if isinstance(t, Tensor) and t.ndim == 1 else 0
