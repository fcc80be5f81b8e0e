"""What a recipe leaves to the machine: decided by measuring, before the run begins, and stored with it."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ddpm_lib.runs.recipes import Recipe
from ddpm_lib.training.fastest import Way, candidates, fastest, tried

TRIED_ON_CPU, TRIED_ON_GPU = 2, 64  # images


def decided(recipe: Recipe, device: torch.device, say: Callable[[str], None] | None = None) -> Recipe:
    """The recipe with nothing left open: "auto" replaced by what was fastest here, and right.

    A recipe without an "auto" comes back as it is, and nothing is measured. say: is told, in a line, what was found.
    torch's generators are left as they were.
    """
    if "auto" not in (recipe.precision, recipe.channels_last, recipe.compile):
        return recipe
    given = {"yes": True, "no": False, "auto": None}
    ways = candidates(device, recipe.precision, given[recipe.channels_last], given[recipe.compile])
    if len(ways) == 1:
        chosen = ways[0]
    else:
        found = measured(recipe, device, ways)
        chosen = fastest(found)
        if say is not None:
            others = (f"{way}: {way.error or f'{way.seconds:.2g} s'}" for way in found if way != chosen)
            say(f"chosen   {chosen}: {chosen.seconds:.2g} s a pass of {_count(recipe, device)} ({'; '.join(others)})")
    word = {True: "yes", False: "no"}
    formats = {"channels_last": word[chosen.channels_last], "compile": word[chosen.compile]}
    return replace(recipe, precision=chosen.precision, **formats)


def measured(recipe: Recipe, device: torch.device, ways: list[Way]) -> list[Way]:
    """The ways with seconds and cosines, for the recipe's network on a few random images."""
    count = _count(recipe, device)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = recipe.network().to(device)
    images = torch.randn(count, recipe.channels, recipe.size, recipe.size, generator=generator).to(device)
    labels = (torch.arange(count) % recipe.classes).to(device) if recipe.classes else None
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # others may use the cores meanwhile
    return tried(network, images, labels, ways, clock)


def _count(recipe: Recipe, device: torch.device) -> int:
    return min(recipe.batch, TRIED_ON_CPU if device.type == "cpu" else TRIED_ON_GPU)
