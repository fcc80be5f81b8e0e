"""What students get wrong: slips in the reference solutions, one at a time, each with the identity it must lose."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wrong:
    """A slip: in the solution cell that holds `old` (once), `new` stands in its place; `identity` of `problem` is lost.

    what: the slip in words; idea: one of ddpm_lib.checks.equation.IDEAS; seen: a public place, if there is one.
    """

    problem: str
    identity: str
    what: str
    old: str
    new: str
    idea: str
    seen: str = "no public source"
