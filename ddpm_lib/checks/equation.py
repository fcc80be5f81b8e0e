"""The check of one numbered equation: its name, its route, and the wrong versions that it must reject."""

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ddpm_lib import CHAPTER

NO_SOURCE = "no public source"
IDEAS = {  # what a person got wrong, the root of it
    "power": "a root, a square or a logarithm too few or too many",
    "sign": "a sign or a direction",
    "time": "a time, an index or a count off by one",
    "term": "a term, a factor or a bracket missing, twice, or of the wrong size",
    "exchange": "one quantity in the place of another",
    "axis": "sums and means over the wrong numbers, axes and examples mixed up",
    "noise": "what is random: its law, its independence, its generator",
    "edge": "clamps and an ε “for stability”, precision, and the ends",
    "gradient": "detached, or flowing where it must not",
    "state": "kept between calls, written into, forgotten, or begun wrongly",
    "claim": "a statement that is not so",
}


@dataclass(frozen=True)
class Wrong:
    """A wrong version: what is wrong with it, where it is in circulation, and the function itself.

    seen: a public place (owner/repository with the number of a thread, a paper, a library's default), or a text that
    begins with NO_SOURCE, where none is known and the slip is only plausible.
    idea: one of IDEAS.
    """

    what: str
    seen: str
    idea: str
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

    def wrong(self, what: str, seen: str, idea: str) -> Callable[[Callable], Callable]:
        """Decorator: this function is a wrong version, seen there; idea is one of IDEAS."""
        if idea not in IDEAS:
            raise ValueError(f"idea must be one of {', '.join(IDEAS)}; got {idea!r}")

        def register(function: Callable) -> Callable:
            self.wrong_versions.append(Wrong(what, seen, idea, function))
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
