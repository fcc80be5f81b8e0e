"""How long the recipes take on this machine, as `python -m ddpm_lib check` says it, in one record.

python benchmarks/hours.py                    # on a GPU where there is one, else a CPU
OMP_NUM_THREADS=1 python benchmarks/hours.py --processor digits mnist   # as on a free core, on a busy machine

A step takes as long whatever the images show, so they are random ones, of the recipe's size.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library of this checkout, whatever is installed

from ddpm_lib.devices import default_device
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.runs.assemble import new_trainer
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.duration import duration, in_words, time_steps, wait
from ddpm_lib.runs.recipes import RECIPES, Recipe, recipe
from ddpm_lib.runs.records import describe_record, write_record
from ddpm_lib.runs.selftest import SMALL_BATCH

NAMES = ("digits", "mnist", "fashion_small", "fashion", "cifar10_small", "cifar10")
OUT = "runs/hours.json"
WAY = ("precision", "channels_last", "compile", "accumulate")


def measured(chosen: Recipe, device: torch.device, processor: bool = False) -> dict[str, Any]:
    """Hours, whether they are estimated from smaller batches, and what was measured of this recipe.

    processor: count the processor's time.
    """
    clock = time.process_time if processor else time.perf_counter
    chosen = replace(decided(chosen, device), warmup=0)
    small = replace(chosen, batch=min(chosen.batch, SMALL_BATCH) if device.type == "cpu" else chosen.batch)
    generator = torch.Generator().manual_seed(0)
    shape = (max(256, chosen.batch), chosen.channels, chosen.size, chosen.size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    data = LabelledImages(images, torch.arange(len(images)) % chosen.classes if chosen.classes else None)
    trainer = new_trainer(small, data, device)
    wait(trainer.step())
    found = duration(chosen, data, device, trainer, time_steps(trainer, clock), clock=clock)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    result = {"hours": found.seconds * chosen.steps / 3600, "estimated": found.estimated, "seconds": found.seconds}
    result |= {"batches": found.batches, "batch": chosen.batch, "steps": chosen.steps, "parameters": parameters}
    return result | {name: getattr(chosen, name) for name in WAY}


def line(name: str, row: dict[str, Any]) -> str:
    """What is printed of a recipe."""
    way = (
        row["precision"]
        + ", channels-last" * (row["channels_last"] == "yes")
        + ", compiled" * (row["compile"] == "yes")
    )
    of = " and ".join(map(str, row["batches"]))
    return f"{name:14} {told(row):30} {row['steps']:7} steps of {row['batch']:3} images ({way}; timed: {of})"


def told(row: dict[str, Any]) -> str:
    """A recipe's time in words, with "about" where it is an estimate."""
    return "about " * row["estimated"] + in_words(3600 * row["hours"])


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a recipe, a column a record."""
    names = [name for name in NAMES if any(name in record["results"]["recipes"] for record in records)]
    head = ["recipe", *(f"{r['device']}{', alone on its core' * r['results']['processor']}" for r in records)]
    rows = [head, ["---"] * len(head)]
    for name in names:
        found = [record["results"]["recipes"].get(name) for record in records]
        rows.append([f"`{name}`", *(told(row) if row else "" for row in found)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the record, which is returned."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(NAMES), metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--device", choices=["cpu", "cuda"], help="(a GPU where there is one)")
    parser.add_argument("--out", default=OUT, help=f"record ({OUT})")
    parser.add_argument(
        "--processor",
        action="store_true",
        help="count the processor's time: with OMP_NUM_THREADS=1, what a core of its own would take, on a busy machine",
    )
    args = parser.parse_args(words)
    device = torch.device(args.device) if args.device else default_device()
    chosen = {name: recipe(name) for name in args.recipes}  # an unknown name fails before anything is measured
    recipes: dict[str, Any] = {}
    for name, one in chosen.items():
        recipes[name] = measured(one, device, args.processor)
        print(line(name, recipes[name]), flush=True)
    threads = os.environ.get("OMP_NUM_THREADS")
    given = sys.argv[1:] if words is None else words
    command = shlex.join([*[f"OMP_NUM_THREADS={threads}"] * bool(threads), "python", "benchmarks/hours.py", *given])
    record = write_record(args.out, command, {"processor": args.processor, "recipes": recipes}, started, device=device)
    print(describe_record(record))
    return record


if __name__ == "__main__":
    main()
