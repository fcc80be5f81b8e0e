"""What a recipe leaves to the machine: decided by measuring, before the run begins, and stored with it."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddpm_lib.devices import free_memory
from ddpm_lib.runs.recipes import Recipe
from ddpm_lib.training.checkpoint import amount
from ddpm_lib.training.distributed import processes
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.fastest import Way, candidates, fastest, tried
from ddpm_lib.training.memory import memory_of_step, parts_that_fit

TRIED_ON_CPU, TRIED_ON_GPU = 4, 64  # images


def decided(recipe: Recipe, device: torch.device, say: Callable[[str], None] | None = None) -> Recipe:
    """The recipe with nothing left open: "auto" replaced by what was fastest here, and right, 0 parts by what fits.

    What is not left open is not measured. say: is told, in a line each, what was found. torch's generators are left as
    they were. Raises ValueError where memory is too small for a step of one image at a time.
    """
    recipe = _with_way(recipe, device, say)
    return recipe if recipe.accumulate else _with_parts(recipe, device, say)


def _with_way(recipe: Recipe, device: torch.device, say: Callable[[str], None] | None) -> Recipe:
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
    return tried(*_trial(recipe, device, _count(recipe, device)), ways)


def _count(recipe: Recipe, device: torch.device) -> int:
    return min(recipe.batch, TRIED_ON_CPU if device.type == "cpu" else TRIED_ON_GPU)


def _trial(recipe: Recipe, device: torch.device, count: int) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The recipe's network, and so many random images and labels."""
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = recipe.network().to(device)
    images = torch.randn(count, recipe.channels, recipe.size, recipe.size, generator=generator).to(device)
    labels = (torch.arange(count) % recipe.classes).to(device) if recipe.classes else None
    return network, images, labels


def _with_parts(recipe: Recipe, device: torch.device, say: Callable[[str], None] | None) -> Recipe:
    """Of the share of one process, of those of a machine that use its memory together, if it is a CPU's."""
    everywhere, here = processes()
    free = free_memory(device) // (1 if device.type == "cuda" else here)
    share = -(-recipe.batch // everywhere)
    execution = Fast(device, precision=recipe.precision, channels_last=recipe.channels_last == "yes")
    memory = memory_of_step(*_trial(recipe, device, 2), execution, len(recipe.ema_decays))
    parts = parts_that_fit(memory, share, free)
    if say is not None:
        step = f"weights and all that belongs to them take {amount(memory.fixed)}, an image {amount(memory.image)}"
        say(f"memory   {step}; of {share} images {-(-share // parts)} at once, in {parts} part{'s' * (parts > 1)}")
    return replace(recipe, accumulate=parts)
