"""The trained models that the book ships, by name."""

from pathlib import Path

from ddpm_lib.runs.words import did_you_mean

DATA = Path(__file__).parents[2] / "data"  # of the book's checkout; a library installed without it ships none


def shipped() -> dict[str, Path]:
    """The weights that lie in the book's `data/`: name → file, for `load` and the command line."""
    return {path.stem: path for path in sorted(DATA.glob("*.safetensors"))}


def located(path: str | Path) -> Path:
    """The path itself where there is something, else the shipped model of that name.

    Raises FileNotFoundError, saying which names there are, where there is neither.
    """
    path, known = Path(path), shipped()
    if path.exists():
        return path
    if str(path) in known:
        return known[str(path)]
    there = f"the book ships: {', '.join(known)}" if known else "no models of the book are at hand"
    raise FileNotFoundError(
        f"expected a run folder, a checkpoint or an exported file; there is no {path}{did_you_mean(str(path), known)}; "
        f"{there}"
    )
