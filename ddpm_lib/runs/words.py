"""Words that look like known ones: what a message suggests."""

import difflib
from collections.abc import Iterable, Mapping

SHORT = {  # what other programs call a field
    **{"lr": "learning_rate", "wd": "weight_decay", "bs": "batch", "batch_size": "batch", "epochs": "steps"},
    **{"iters": "steps", "iterations": "steps", "timesteps": "T", "ema": "ema_decays", "image_size": "size"},
    **{"resolution": "size", "clip": "clip_norm", "cfg": "scale", "guidance": "scale", "dataset": "data"},
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message, " (did you mean …?)", for a word that looks like a known one; else ""."""
    return f" (did you mean {found}?)" if (found := nearest(word, known)) else ""


def nearest(word: str, known: Iterable[str], short: Mapping[str, str] | None = None) -> str | None:
    """The known word that this one looks like, or is short for; None where there is none."""
    lower = {name.lower(): name for name in known}
    word = word.strip("-").replace("-", "_").lower()
    return (short or {}).get(word) or next((lower[name] for name in difflib.get_close_matches(word, lower, 1)), None)
