"""How a run was trained, in few numbers: what its folder's log and recipe say, for a record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ddpm_lib.runs.folder import LOG, read_recipe
from ddpm_lib.runs.stored import to_json
from ddpm_lib.training.monitor import read_log

POINTS = 60  # of the loss, about


def training_of(folder: str | Path) -> dict[str, Any]:
    """Recipe, steps and images so far, images/s, hours, memory in 10^9 bytes, and the course of both losses.

    hours: those of the steps, without what was spent on saving, sampling and starting; images_per_s: the log's median.
    loss: [step, the mean over all entries since the point before], about POINTS of them; held_out_loss: [step, loss].
    Raises ValueError for a run whose log is empty.
    """
    entries, recipe = read_log(Path(folder) / LOG), read_recipe(Path(folder))
    if not entries:
        raise ValueError(f"the log of {folder} is empty: nothing was trained yet")
    rates, seconds, before = sorted(entry["images_per_s"] for entry in entries), 0.0, 0
    for entry in entries:
        seconds += (entry["step"] - before) * recipe.batch / entry["images_per_s"]
        before = entry["step"]
    some = -(-len(entries) // POINTS)
    parts = [entries[max(0, stop - some) : stop] for stop in range(len(entries), 0, -some)][::-1]
    return {
        "recipe": to_json(replace(recipe, root="data")),
        "steps": before,
        "images": before * recipe.batch,
        "images_per_s": round(rates[len(rates) // 2], 1),
        "hours": round(seconds / 3600, 3),
        "memory_gb": round(max(entry["memory_gb"] for entry in entries), 3),
        "loss": [[part[-1]["step"], round(sum(e["loss"] for e in part) / len(part), 5)] for part in parts],
        "held_out_loss": [[e["step"], round(e["held_out_loss"], 5)] for e in entries if "held_out_loss" in e],
    }
