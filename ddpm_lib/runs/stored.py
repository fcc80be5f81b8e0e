"""A recipe in JSON: what a run and its checkpoints store of it, readable for as long as there are such files."""

import dataclasses
from typing import Any

from ddpm_lib.runs.recipes import Recipe

# Version by version: the fields that it brought, each with the value that it had, unsaid, before. Whoever gives Recipe
# a new field adds a version here. Version 0 is that of the files that name none.
ADDED: dict[int, dict[str, Any]] = {
    1: {},  # the version itself
    2: {"memory_budget_gb": 0.0},
    3: {
        **{"course": "linear", "timestep_sampler": "uniform", "precision": "float32"},
        **{"accumulate": 1, "channels_last": "no", "compile": "no"},
    },
}
VERSION = max(ADDED)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """All fields of a recipe and the version of this list, ready for `json.dumps`."""
    return {"version": VERSION, **dataclasses.asdict(recipe)}


def from_json(stored: dict[str, Any]) -> Recipe:
    """The recipe that `to_json` stored, in this version or an earlier one; what a field meant then, it means still.

    Raises ValueError, naming them, for fields that are missing or unknown, and for a file of a later version.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"not a recipe: expected fields and their values, got {type(stored).__name__}")
    version, fields = stored.get("version", 0), {name: value for name, value in stored.items() if name != "version"}
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ValueError(f"not a recipe: its version must be a whole number, got {version!r}")
    for later in range(version + 1, VERSION + 1):
        fields = ADDED[later] | fields
    names = {field.name for field in dataclasses.fields(Recipe)}
    missing, unknown = sorted(names - set(fields)), sorted(set(fields) - names)
    if version > VERSION:
        raise ValueError(
            f"not a recipe that this ddpm_lib knows: the file is of recipe version {version}, from a newer one, and "
            f"this one reads versions up to {VERSION}: update it. Here missing {missing}, unknown {unknown}"
        )
    if missing or unknown:
        raise ValueError(
            f"not a recipe of version {version}: missing {missing}, unknown {unknown}; "
            "the file is not from a newer ddpm_lib, but somebody changed it"
        )
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
