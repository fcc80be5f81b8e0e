"""What a failure says: which equation, what the function was called with, what came, and what to look at."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.checks.compare import a_type, difference, same, shape_of
from ddpm_lib.checks.equation import NO_SOURCE, Check, Wrong
from ddpm_lib.checks.message import called, describe, lines
from ddpm_lib.checks.raised import batch_of, raised, reshape, said, student_line
from ddpm_lib.checks.record import Call, Record, record


def failure(found: Check, function: Any, distance: float) -> str:
    """The message: the check runs once more on the function, and keeps what it sees. distance: of the first run."""
    try:
        return lines(*_texts(found, function, distance))
    except KeyboardInterrupt:
        raise
    except BaseException:  # of a result, say, that raises when it is looked at
        return lines(f"{found.title} does not hold.", found.contract)


def _texts(found: Check, function: Any, distance: float) -> list[str]:
    """What a failure says, one text after another: the title first, last what helps."""
    title = f"{found.title} does not hold"
    if not callable(function):
        asked = f"f({', '.join(found.arguments)})"
        return [f"{title}: {a_type(function)} is no function.", f"Pass a function {asked}."]
    seen = record(found.measure, function)
    if seen.error is None and seen.distance <= found.passes:
        return [
            f"{title} in a first run; in a second it does.",
            "The result must depend on the arguments alone: look for random draws, and for what is kept between calls.",
        ]
    if math.isfinite(distance):
        title += f": off by {distance:.3g} from {found.route} (allowed: {found.passes:g})"
    elif seen.raised:
        title += f": the function raised {type(seen.error).__name__}"
    elif distance != distance:
        title += ": off by nan"
    texts = explain(seen, function, found.arguments, found.own)
    known = _known(found, seen, distance)
    return [f"{title}.", *(texts[:2] if known else texts), known or ("" if texts[2:] else found.contract)]


def _known(found: Check, seen: Record, distance: float) -> str:
    """The wrong version that does the same, if one does: by the result of the last call, and by the distance.

    Where results cannot be compared, by the distance alone, if no other wrong version is off by as much.
    """
    if seen.error is not None:
        return ""
    alike: dict[bool, list[Wrong]] = {True: [], False: []}  # whether their results are the same, too
    for wrong in found.wrong_versions:
        verdict = same(seen.case.calls[-1], wrong.function) if seen.case.calls else None
        if verdict is False:
            continue
        try:
            known = found.measure(wrong.function)
        except Exception:
            continue
        if math.isfinite(known) and math.isclose(known, distance, rel_tol=1e-6):
            alike[verdict is True].append(wrong)
    wrong = next(iter(alike[True]), None) or (alike[False][0] if len(alike[False]) == 1 else None)
    if wrong is None:
        return ""
    seen_at = "" if wrong.seen.startswith(NO_SOURCE) else f" ({wrong.seen})"
    return f"A known wrong version is off by exactly as much: {wrong.what}{seen_at}."


def explain(found: Record, function: Callable, names: Sequence[str], reference: Callable | None) -> list[str]:
    """How the function was called, what came of it, and (if that is known) what to look at: texts for `lines`.

    names: of the arguments; reference: a right function, for what is expected.
    """
    calls = list(found.case.calls)
    if not calls:
        return ["The check ended before it called the function."]
    call = calls[-1]
    if found.raised:
        return [called(function, call, names), *raised(call, function, names)]
    if call.result is None:
        return [called(function, call, names), "It returned None.", "Does the function end with a `return`?"]
    if told := _promise(found, names) or _undecided(call, function):
        return [called(function, call, names), *told]
    for other in calls:
        if seen := difference(other, reference, names):
            advice = seen.advice or _mixed_up(other, function, reference, names) or seen.fallback
            return [called(function, other, names), seen.text, advice]
    returned = f"It returned {describe(call.result)}."
    if found.error is not None:
        line = student_line(found.error, function)
        returned += f" Then {type(found.error).__name__} came: {said(found.error)}" + (f", in {line}" if line else "")
        return [called(function, call, names), returned]
    notes = sorted(found.case.notes, key=lambda note: note.distance)
    return [called(function, call, names), notes[-1].text if notes else returned]


def _undecided(call: Call, function: Callable) -> list[str]:
    """What to say where the same call, made once more, gives another result: something else decides it."""
    if same(call, function) is not False:
        return []
    if any(isinstance(value, torch.Generator) for value in (*call.args, *call.options.values())):
        return [
            "The generator does not decide the result: with the same one, another result came.",
            "Give it to torch.randn as generator=…; randn_like takes none. Set no seed, keep nothing between calls.",
        ]
    return [
        "Called once more with the same arguments, it gives another result.",
        "Look for random draws of its own, and for what it keeps from one call to the next.",
    ]


def _promise(found: Record, names: Sequence[str]) -> list[str]:
    """What was found by other means than comparing values: the note of the failing case with the largest distance."""
    notes = [note for note in found.case.notes if note.advice]
    if not notes:
        return []
    worst = max(notes, key=lambda note: note.distance)
    name = names[worst.argument] if worst.argument is not None and worst.argument < len(names) else "an argument"
    return [worst.text.replace("{}", name), worst.advice]


def _mixed_up(call: Call, function: Callable, reference: Callable | None, names: Sequence[str]) -> str:
    """The advice where each image alone comes out right, though the batch does not; else ""."""
    batch = batch_of(call, names)
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
    mixed = "Each image alone comes out right, the batch does not. "
    return mixed + (reshape(call, names) if _along_an_axis(call) else "Look at how images, or their t, get mixed up.")


def _along_an_axis(call: Call) -> bool:
    """Whether a batch's length is also that of another axis: then factors (B,) are multiplied along it, silently."""
    return any(isinstance(x, Tensor) and x.ndim > 1 and len(x) in x.shape[1:] for x in call.args)
