"""Problems of the problem sets: what an answer must satisfy, identity by identity, each with its marks.

`check("1.2", f)` is what a student runs: every identity on the student's own numbers, and what is wrong where one does
not hold. An identity compares with an independent route, as the book's checks do, so that none holds the solution.
"""

import importlib
import inspect
import math
import os
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ddpm_lib.checks import examine as run
from ddpm_lib.checks import find as equation
from ddpm_lib.checks.equation import Check
from ddpm_lib.checks.guard import until
from ddpm_lib.checks.message import WIDTH, lines
from ddpm_lib.homework import alarm, numbers
from ddpm_lib.homework.answer import examined
from ddpm_lib.homework.case import Case, given

PROBLEMS: dict[str, "Problem"] = {}
INVENTED = 40  # ids that nobody has: an answer that is right for one of them tells nothing of whose it is


class _Trial(Check):
    """An identity in one case, as a check whose messages speak of the problem."""

    title = property(lambda self: f"{self.number} ({self.name})")
    own = None


@dataclass(frozen=True)
class Identity:
    """One thing that must be so. measure(f, case): the distance from it, or several distances, one after another.

    least: the smallest T it makes sense for; trials: the largest number of hidden cases; personal: an answer for the
    numbers of one student; secret: a check that only the grader has (measure is None without it).
    """

    name: str
    marks: float
    to: float
    measure: Callable | None
    route: str = "an independent route"
    least: int = 1
    trials: int = 99
    personal: bool = False
    secret: bool = False
    equation: str = ""


@dataclass
class Problem:
    """A numbered problem with a function, a class or a number as its answer. asks: "f(x, t): what it returns"."""

    number: str
    name: str
    asks: str
    identities: list[Identity] = field(default_factory=list)

    def __post_init__(self):
        PROBLEMS[self.number] = self

    @property
    def marks(self) -> float:
        return sum(identity.marks for identity in self.identities)

    def identity(self, name: str, marks: float, to: float = 1e-9, **options) -> Callable[[Callable], Callable]:
        """Decorator: measure(f, case) is an identity of this problem; it holds where the distance is at most `to`."""

        def register(measure: Callable) -> Callable:
            self.identities.append(Identity(name, marks, to, measure, **options))
            return measure

        return register

    def secret(self, name: str, marks: float) -> None:
        """An identity of a number that follows from the student's id. Only the grader has its check (hidden.answer)."""
        self.identities.append(Identity(name, marks, math.nan, None, personal=True, secret=True))

    def book(self, name: str, marks: float, adapt: Callable[[Callable], Callable], **options) -> None:
        """The book's own check of an equation, on adapt(f): the student's function in the equation's arguments."""
        self.identities.append(
            Identity(name, marks, math.nan, lambda f, case: adapt(f), trials=0, equation=name, **options)
        )

    def trial(self, identity: Identity, case: Case) -> Check:
        """The identity in this case, as a check."""
        to = identity.to

        def measure(f: Callable) -> float:
            return identity.measure(examined(f), case)

        if inspect.isgeneratorfunction(identity.measure):
            measure = until(10 * to)(measure)
        measure.__doc__ = self.asks
        return _Trial(self.number, identity.name, "identity", identity.route, measure, to, 10 * to, f"to {to:g}")


@dataclass
class Result:
    """What came of one identity. message: why it does not hold; shown: whether it is the student's own case."""

    name: str
    marks: float
    message: str = ""
    shown: bool = True
    whose: str = ""  # the student for whose numbers the answer is right

    @property
    def holds(self) -> bool:
        return not self.message


@dataclass
class Points:
    """The marks of an answer. Shown as a plain number, which is what nbgrader reads."""

    number: str
    results: list[Result]

    @property
    def earned(self) -> float:
        return sum(result.marks for result in self.results if result.holds)

    def __repr__(self) -> str:
        return f"{self.earned:g}"


def find(number: str) -> Problem:
    """The problem of this number. Raises ValueError for any other."""
    part = str(number).partition(".")[0]
    if part.isdecimal():
        try:
            importlib.import_module(f"ddpm_lib.homework.set_{part}")
        except ModuleNotFoundError as error:
            if error.name != f"ddpm_lib.homework.set_{part}":
                raise
    if number not in PROBLEMS:
        raise ValueError(f"there is no problem {number!r}; there are: {', '.join(PROBLEMS)}")
    return PROBLEMS[number]


def check(number: str, answer: Callable | object) -> None:
    """Say of each identity whether it holds for the student's numbers, and what is wrong where it does not."""
    problem = find(number)
    points = examine(number, answer)
    print(f"{problem.number} {problem.name}")
    secret = {identity.name for identity in problem.identities if identity.secret}
    for result in points.results:
        marks = f"{result.marks:g} mark{'s' * (result.marks != 1)}"
        sign = "✗" if not result.holds else "?" if result.name in secret else "✓"
        print(f"  {sign} {result.name} ({marks}{', looked at when it is graded' if sign == '?' else ''})")
        for line in unwrapped(result.message).splitlines():
            print(textwrap.fill(line, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8, break_on_hyphens=False))
    if not secret:
        print(f"{points.earned:g} of {problem.marks:g} marks with your numbers; the grader tries others, too.")


def unwrapped(message: str) -> str:
    """A message with each of its lines whole, for a place of another width."""
    return message.replace("\n  ", " ")


def examine(number: str, answer: Callable | object, hidden: Iterable[Case] | None = None) -> Points:
    """The result of every identity: in the student's own case; with `hidden`, in these cases as well."""
    problem, own = find(number), given(numbers.student())
    results = []
    for identity in problem.identities:
        if identity.secret and (hidden is None or not _is_number(answer)):
            message, shown = "" if _is_number(answer) else lines(f"Expected a number, got {answer!r}."), True
        else:
            message, shown = failure(problem, identity, answer, own, hidden or ())
        whose = _whose(problem, identity, answer) if message and hidden is not None and identity.personal else ""
        results.append(Result(identity.name, identity.marks, message, shown, whose))
    return Points(number, results)


def failure(
    problem: Problem, identity: Identity, answer: object, own: Case, hidden: Iterable[Case]
) -> tuple[str, bool]:
    """Why an identity does not hold, "" where it does; and whether it fails in the student's own case."""
    message = _message(problem, identity, answer, own)
    if message or identity.personal:
        return message, True
    fitting = [case for case in hidden if case.T >= identity.least]
    for case in fitting[: identity.trials]:
        if message := _message(problem, identity, answer, case):
            return message, False
    return "", True


def _message(problem: Problem, identity: Identity, answer: Callable | object, case: Case) -> str:
    """Why the identity does not hold; "" where it does."""
    try:
        with alarm.limit():
            if identity.equation:
                run(equation(identity.equation), identity.measure(examined(answer), case))
            else:
                run(problem.trial(identity, case), answer if callable(answer) else lambda: answer)
    except alarm.TooLong:
        return lines(f"It was stopped after {alarm.LIMIT} seconds: look for a loop without an end.")
    except AssertionError as failure:
        cause = failure.__cause__
        if isinstance(cause, NotImplementedError):
            return "It is not written yet."
        if isinstance(cause, alarm.TooLong):
            return lines(f"It was stopped after {alarm.LIMIT} seconds: look for a loop without an end.")
        return str(failure)
    return ""


def _whose(problem: Problem, identity: Identity, answer: object) -> str:
    """The other student of the class for whose numbers a wrong answer is right; "" if it is right for many ids."""

    def right(who: str) -> bool:
        return not _message(problem, identity, answer, given(who))

    others = [who for who in os.environ.get("DDPM_CLASS", "").split(",") if who and who != numbers.student()]
    found = next(filter(right, others), "")
    return "" if found and any(right(f"invented {i}") for i in range(INVENTED)) else found


def _is_number(answer: object) -> bool:
    try:
        return math.isfinite(float(answer))
    except (TypeError, ValueError):
        return False
