"""Who works here, and the numbers that are theirs: each student has other ones, so a copied answer shows."""

import hashlib
import os

UNSIGNED = "your id"  # what stands in a problem set that is handed out
_SIGNED = {"name": ""}


def i_am(name: str) -> None:
    """Sign the work: the tasks' numbers follow from this id. Capitals and surrounding blanks do not matter."""
    _SIGNED["name"] = "" if name == UNSIGNED else name.strip().lower()
    if not signed():
        print("Put the id that you hand in under between the quotation marks, and run this cell again.")
        return
    print(f"Signed by {_SIGNED['name']!r}. Your numbers follow from this id: sign with the one you hand in under.")


def signed() -> str:
    """The id that the work is signed with; "" before `i_am` is called."""
    return _SIGNED["name"]


def student() -> str:
    """Whose numbers are used: of the signature, else of who handed it in (the grader knows), else "nobody"."""
    return signed() or os.environ.get("DDPM_STUDENT", "").strip().lower() or "nobody"


def seed(what: str, who: str | None = None) -> int:
    """A whole number, 0 to 2^48 − 1, that follows from a student's id and a word."""
    text = f"{student() if who is None else who}|{what}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def whole(what: str, low: int, high: int, who: str | None = None) -> int:
    """The student's whole number of this name, low to high, both included."""
    return low + seed(what, who) % (high - low + 1)


def real(what: str, low: float, high: float, digits: int = 2, who: str | None = None) -> float:
    """The student's number of this name, between low and high, with this many decimal places."""
    return round(low + (high - low) * seed(what, who) / 2**48, digits)


def choice(what: str, options: list, who: str | None = None):
    """The student's one of several."""
    return options[seed(what, who) % len(options)]
