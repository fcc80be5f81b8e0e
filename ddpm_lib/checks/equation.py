"""The check of one numbered equation: its name, its route, and the wrong versions that it must reject."""

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ddpm_lib import CHAPTER

NO_SOURCE = "no public source"


@dataclass(frozen=True)
class Wrong:
    """A wrong version: what is wrong with it, where it is in circulation, and the function itself.

    seen: a public place (owner/repository with the number of a thread, a paper, a library's default), or a text that
    begins with NO_SOURCE, where none is known and the slip is only plausible.
    """

    what: str
    seen: str
    function: Callable


@dataclass
class Check:
    """The check of one numbered equation.

    measure(f) returns how far f is from an independent route: the largest absolute difference, or |z| of a
    statistical test. f passes up to `passes`; a wrong version counts as rejected from `rejects` on.
    `statement` is the book's own side of an identity; an implementation has none, it is a function of the library.
    """

    number: str
    name: str
    kind: str
    route: str
    measure: Callable[[Callable], float]
    passes: float
    rejects: float
    precision: str
    statement: Callable | None = None
    wrong_versions: list[Wrong] = field(default_factory=list)

    def states(self, function: Callable) -> Callable:
        """Decorator: this function is what the book states (identities and definitions)."""
        self.statement = function
        return function

    def wrong(self, what: str, seen: str) -> Callable[[Callable], Callable]:
        """Decorator: this function is a wrong version, seen there."""

        def register(function: Callable) -> Callable:
            self.wrong_versions.append(Wrong(what, seen, function))
            return function

        return register

    @property
    def title(self) -> str:
        return f"Eq. {self.number} ({self.name})"

    @property
    def own(self) -> Callable | None:
        """What the book itself computes: the statement, or the library's function that names this equation."""
        if self.statement is not None:
            return self.statement
        for module, chapter in CHAPTER.items():
            if chapter == int(self.number.partition(".")[0]) and not module.startswith("checks"):
                for value in vars(importlib.import_module(f"ddpm_lib.{module}")).values():
                    if (getattr(value, "__doc__", None) or "").startswith(f"{self.title}."):
                        return value
        return None

    @property
    def contract(self) -> str:
        """What is asked of the function: the check's docstring, in one line."""
        return "Asked for: " + " ".join((self.measure.__doc__ or f"what agrees with {self.route}").split())

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments by place, as the check's docstring gives them: "f(x, eps, beta) mixes"."""
        documented = re.search(r"\bf\(([^()]*)\)", self.measure.__doc__ or "")
        if documented:
            return [name for name in documented[1].split(", ") if not name.endswith("=")]
        return list(inspect.signature(self.statement).parameters) if self.statement else []
