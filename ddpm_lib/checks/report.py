"""What a failure says to a person: at most six lines, of which the last one helps; in a notebook they stand alone."""

import inspect
import linecache
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.checks.compare import a_type, difference, same, shape_of
from ddpm_lib.checks.record import Call, Record

WIDTH, LINES = 96, 6
LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
    "<frozen",
)


class _Alone:
    """An exception that IPython shows as its message alone, without the lines of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class DoesNotHold(_Alone, AssertionError):
    """An equation's check has failed; the message says how, where, and what to look at."""


class NothingToCheck(_Alone, ValueError):
    """The call of a check is at fault, not the function: an unknown name, or no function."""


def lines(title: str, *texts: str) -> str:
    """The title, one text after another, and last what helps: wrapped, and shortened to six lines, middle first."""
    blocks = [textwrap.wrap(title, WIDTH, subsequent_indent="  ", break_on_hyphens=False)]
    texts = [text for text in texts if text]
    for i, text in enumerate(texts, start=1):
        rows = 3 if i == len(texts) else 2
        blocks.append(
            textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, max_lines=rows, placeholder=" …")
        )
    for i in (1, 2, 0):
        if sum(map(len, blocks)) > LINES and len(blocks) > i + 1:
            text = " ".join(line.strip() for line in blocks[i])
            blocks[i] = textwrap.wrap(text, WIDTH, max_lines=1, placeholder=" …")
    return "\n".join(line for block in blocks for line in block)


def explain(found: Record, function: Callable, names: Sequence[str], reference: Callable | None) -> list[str]:
    """How the function was called, what came of it, and (if that is known) what to look at: texts for `lines`.

    names: of the arguments; reference: a right function, for what is expected.
    """
    calls = list(found.case.calls)
    if not calls:
        return ["The check ended before it called the function."]
    call = calls[-1]
    if found.raised:
        return [_called(function, call, names), *_raised(call, function, names)]
    if call.result is None:
        return [_called(function, call, names), "It returned None.", "Does the function end with a `return`?"]
    if told := _promise(found, names) or _generator_ignored(call, function):
        return [_called(function, call, names), *told]
    for other in calls:
        if seen := difference(other, reference, names):
            advice = seen.advice or _mixed_up(other, function, reference, names) or seen.fallback
            return [_called(function, other, names), seen.text, advice]
    returned = f"It returned {describe(call.result)}."
    if found.error is not None:
        line = student_line(found.error, function)
        returned += f" Then {type(found.error).__name__} came: {_said(found.error)}" + (f", in {line}" if line else "")
        return [_called(function, call, names), returned]
    notes = sorted(found.case.notes, key=lambda note: note.distance)
    return [_called(function, call, names), notes[-1].text if notes else returned]


def _generator_ignored(call: Call, function: Callable) -> list[str]:
    """Whether the same generator, asked again, gives another result: then something else decides it."""
    given = (*call.args, *call.options.values())
    if not any(isinstance(value, torch.Generator) for value in given) or same(call, function) is not False:
        return []
    advice = (
        "Give it to torch.randn as generator=…; randn_like takes none. Set no seed, and keep nothing between calls."
    )
    return ["The generator does not decide the result: with the same one, another result came.", advice]


def _promise(found: Record, names: Sequence[str]) -> list[str]:
    """What was found by other means than comparing values: the note of the failing case with the largest distance."""
    notes = [note for note in found.case.notes if note.advice]
    if not notes:
        return []
    worst = max(notes, key=lambda note: note.distance)
    name = names[worst.argument] if worst.argument is not None and worst.argument < len(names) else "an argument"
    return [worst.text.replace("{}", name), worst.advice]


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


def _called(function: Callable, call: Call, names: Sequence[str]) -> str:
    """The call, with argument names: shapes of tensors in brackets, numbers as they are."""
    given = [*zip([*names, *["…"] * len(call.args)], call.args, strict=False), *call.options.items()]
    shown = []
    for name, value in given:
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


def _said(error: BaseException) -> str:
    """The exception's message, in one line."""
    try:
        return textwrap.shorten(str(error), 150, placeholder=" …", break_on_hyphens=False) or "(without a message)"
    except Exception:
        return "(its message cannot be shown)"


def student_line(error: BaseException, function: Callable) -> str:
    """ "line 3: `return a * x`", the last line on the exception's way that is not a library's; "" if there is none."""
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(error.__traceback__, limit=-200)
    mine = [frame for frame in frames if frame.filename == own or not frame.filename.startswith(LIBRARIES)]
    if not mine:
        return ""
    source = (mine[-1].line or linecache.getline(mine[-1].filename, mine[-1].lineno or 0)).strip()
    shown = f": `{textwrap.shorten(source, 80, placeholder=' …')}`" if source else ""
    return f"line {mine[-1].lineno}{shown}"


def _raised(call: Call, function: Callable, names: Sequence[str]) -> list[str]:
    """What an exception inside the function says, where it arose, and what is likely to mend it."""
    error = call.error
    line = student_line(error, function)
    if isinstance(error, TypeError) and (taken := _other_arguments(function, call)):
        asked = ", ".join([*names[: len(call.args)], *(f"{name}=" for name in call.options)])
        return [f"It cannot be called so: it takes {taken}.", f"Let it take these arguments, in this order: {asked}."]
    told = f"It raised {type(error).__name__}: {_said(error)}"
    return [told, f"In {line}" if line else "", _remedy(call, names, error)]


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
    message = _said(error)
    given = dict(zip(names, call.args, strict=False))
    t = given.get("t")
    if isinstance(error, NotImplementedError):
        return "The function is not written yet: put the equation in the place of this line."
    if isinstance(error, SystemExit):
        return "Take out exit(): a function returns its result, or raises an error."
    if isinstance(error, RecursionError):
        return "The function calls itself without end: look for its own name in its body."
    if any(words in message for words in ("must match", "broadcast")) and (hint := _reshape(call, names)):
        return hint
    if isinstance(t, int) and isinstance(error, (AttributeError, TypeError)):
        return f"Here t is the int {t}, not a tensor: the function must take both, as `alpha_bar[t]` does."
    if isinstance(error, IndexError) and "out of" in message and "schedule" in given:
        return "The tables have T + 1 entries, for t = 0..T: read them at t itself, and at t − 1 for the step before."
    if isinstance(error, NameError):
        return "This name is not defined where the function runs: give it as an argument, or import it."
    return "Call the function with arguments of these shapes in a cell of its own, and see what happens there."


def _reshape(call: Call, names: Sequence[str]) -> str:
    """How coefficients, one for each t of a batch, come to stand beside images; "" if this is no such call."""
    batch = _batch(call, names)
    shape = next((shape_of(x) for x in call.args if isinstance(x, Tensor) and x.ndim > 1 and len(x) == batch), None)
    if not batch or shape is None:
        return ""
    ones = ", ".join("1" * (len(shape) - 1))
    return (
        f"Coefficients of shape ({batch},) must be reshaped to ({batch}, {ones}) to multiply images {shape}: "
        f"`alpha_bar[t].reshape(-1, {ones})`, or a `coefficient` of the library, read with like=x."
    )


def _batch(call: Call, names: Sequence[str]) -> int:
    """The length of the argument t, if it is a tensor (B,); else 0."""
    t = dict(zip(names, call.args, strict=False)).get("t")
    return len(t) if isinstance(t, Tensor) and t.ndim == 1 else 0


def _mixed_up(call: Call, function: Callable, reference: Callable | None, names: Sequence[str]) -> str:
    """The advice where each image alone comes out right, though the batch does not; else ""."""
    batch = _batch(call, names)
    if batch < 2 or reference is None or not isinstance(call.result, Tensor):
        return ""
    place = list(names).index("t")

    def alone(i: int, t: Tensor) -> Call:
        args = [x[i : i + 1] if shape_of(x)[:1] == (batch,) else x for x in call.args]
        args[place] = t
        one = Call(tuple(args), call.options)
        one.result = one.replay(function)
        return one

    t = call.args[place]
    try:
        if any(difference(alone(i, t[i : i + 1]), reference, names) for i in range(batch)):
            return ""
        first = torch.cat([alone(i, t[:1]).result for i in range(batch)])
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""
    if torch.allclose(first, call.result, 1e-9, 0):
        return "The t of the first image is used for the whole batch: t has one entry for each image."
    said = "Each image alone comes out right, the batch does not. "
    return said + (_reshape(call, names) if _along_an_axis(call) else "Look at how images, or their t, get mixed up.")


def _along_an_axis(call: Call) -> bool:
    """Whether a batch's length is also that of another axis: then factors (B,) are multiplied along it, silently."""
    return any(isinstance(x, Tensor) and x.ndim > 1 and len(x) in x.shape[1:] for x in call.args)
