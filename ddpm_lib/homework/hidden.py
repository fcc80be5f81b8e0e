"""What only the grader tries: other seeds, schedules and sizes. No student has a copy of this module."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable

from ddpm_lib.homework import numbers
from ddpm_lib.homework.case import Case
from ddpm_lib.homework.problem import Points, examine, find

SIZES = [  # T, batch, shape: the ends of what is allowed, sizes that are equal, and sizes that are not
    (7, 4, (3, 4, 4)),
    (1000, 3, (1, 2, 5)),
    (2, 2, (2, 1, 3)),
    (1, 1, (1, 1, 2)),
    (25, 6, (1, 6, 6)),
]


def cases(who: str) -> list[Case]:
    """The hidden cases of a student. Their seeds depend on the teacher's salt too, so that nobody can foresee them."""
    salt = os.environ.get("DDPM_SALT", "")
    return [Case(numbers.seed(f"{salt}|{i}", who), who, *sizes) for i, sizes in enumerate(SIZES)]


def answer(number: str, to: float, route: str = "an independent route") -> Callable[[Callable], Callable]:
    """Decorator: measure(f, case) is the check of the secret identity of this problem."""

    def register(measure: Callable) -> Callable:
        identities = find(number).identities
        (place,) = [i for i, identity in enumerate(identities) if identity.secret]
        identities[place] = dataclasses.replace(identities[place], measure=measure, to=to, route=route)
        return measure

    return register


def grade(number: str, given: Callable | object) -> Points:
    """The marks for an answer: an identity's are earned where it holds in the student's case and in all hidden ones."""
    answers = f"{__package__}.answers_{number.partition('.')[0]}"
    if importlib.util.find_spec(answers):  # a problem set without secret numbers has none
        importlib.import_module(answers)
    return examine(number, given, cases(numbers.student()))
