"""What a check sees of the function it examines: kept in a second run, which only a function that failed comes to.

The record goes case by case, as the check does: which calls were made, with what, and what came of them; and notes,
left by whatever measures a distance, of what is wrong and where. Nothing is kept in the first run.
"""

import copy
import functools
import math
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

KEPT = 20  # calls of a case: what needs more of them draws at random, and no single call is to blame


@dataclass
class Call:
    """One call of the examined function: copies of what it was given, and its result or the exception it raised.

    state: that of torch's global generator when it was called, if replays shall start from it.
    """

    args: tuple
    options: dict[str, Any]
    result: Any = None
    error: BaseException | None = None
    state: Tensor | None = None

    def replay(self, function: Callable) -> Any:
        """What another function returns for the same arguments; torch's global generator stands where it stood."""
        with torch.random.fork_rng(devices=[]):
            if self.state is not None:
                torch.set_rng_state(self.state)
            return function(*map(kept, self.args), **{name: kept(value) for name, value in self.options.items()})


@dataclass
class Note:
    """What is wrong, in a sentence, and what to do. argument: the place of the one it speaks of, as "{}" in text."""

    distance: float
    text: str
    advice: str = ""
    argument: int | None = None


@dataclass
class Case:
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=KEPT))
    notes: list[Note] = field(default_factory=list)
    distance: float = 0.0


class Record:
    """All that was kept: `case`, the one that failed, the distance, and the exception that ended the run, if any."""

    def __init__(self) -> None:
        self.open, self.worst, self._last = Case(), Case(), deque()
        self.error: BaseException | None = None

    @property
    def case(self) -> Case:
        if self.error is None:
            return self.worst
        return Case(self.open.calls or self._last, self.open.notes)

    @property
    def distance(self) -> float:
        return self.worst.distance

    @property
    def raised(self) -> bool:
        """Whether it was the function that raised the exception, not the check of its result."""
        return self.error is not None and bool(self.open.calls) and self.open.calls[-1].error is self.error

    def close(self, distance: float) -> None:
        """The case that is open ended with this distance."""
        self.open.distance = distance if distance == distance else math.inf
        self.open.calls = self._last = self.open.calls or self._last  # a result may be looked at in several cases
        if self.open.distance > self.worst.distance:
            self.worst = self.open
        self.open = Case()


_CURRENT: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record | None:
    """The record that is being kept; None in a check's first run, so that notes cost nothing."""
    return _CURRENT.get()


def note(distance: float, text: str, advice: str = "", argument: int | None = None) -> None:
    """Leave a note in the current record, if there is one and the distance is not 0."""
    if (record := current()) and distance != 0:
        record.open.notes.append(Note(distance if distance == distance else math.inf, text, advice, argument))


class Recorded:
    """The function, with its name, signature and attributes; each call is kept in the record."""

    def __init__(self, function: Callable, record: Record):
        functools.update_wrapper(self, function, updated=())
        self._record = record

    def __call__(self, *args: Any, **options: Any) -> Any:
        call = Call(tuple(map(kept, args)), {name: kept(value) for name, value in options.items()})
        self._record.open.calls.append(call)
        try:
            call.result = self.__wrapped__(*args, **options)
        except BaseException as error:
            call.error = error
            raise
        return call.result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


def record(measure: Callable[[Callable], float], function: Callable) -> Record:
    """Run the check once more and keep what it sees. Whatever the function raises, save Ctrl-C, ends in the record."""
    found = Record()
    token = _CURRENT.set(found)
    try:
        found.close(float(measure(Recorded(function, found))))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit among them
        found.error = error
    finally:
        _CURRENT.reset(token)
    return found


def copied(value: Any) -> Any:
    """A copy of a value; a function, or a network, is the same one."""
    if isinstance(value, Tensor):
        return value.clone()
    return value if callable(value) else copy.deepcopy(value)


def kept(value: Any) -> Any:
    """`copied`, of a generator too; what cannot be copied is the same one."""
    try:
        return value.clone_state() if isinstance(value, torch.Generator) else copied(value)
    except Exception:
        return value
