"""The command line: python -m ddpm_lib train | sample | list."""

import argparse
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ddpm_lib import plot
from ddpm_lib.recipes import RECIPES, override, recipe
from ddpm_lib.runs import CHECKPOINT, load, run


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m ddpm_lib", description="Train and sample denoising diffusion models.")
    commands = top.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a recipe into a new run folder")
    train.add_argument("recipe", help="a name that `list` shows")
    train.add_argument(
        "fields",
        nargs="*",
        metavar="field=value",
        help="override any field of the recipe: steps=100 width=48 attention=4,8",
    )
    train.add_argument(
        "--out", type=Path, help="the run folder, which must not exist (default: the next free runs/RECIPE)"
    )
    sample = commands.add_parser("sample", help="draw labelled images from a run")
    sample.add_argument("run", type=Path, help="a run folder or a checkpoint")
    sample.add_argument("--labels", type=int, nargs="+", help="one image each (default: every class once)")
    sample.add_argument("--count", type=int, default=1, help="how many images of each label (default 1)")
    sample.add_argument(
        "--scale",
        type=float,
        help="guidance: 0 unconditional, 1 conditional, above 1 guided (default: the recipe's)",
    )
    sample.add_argument("--steps", type=int, help="DDIM steps (default: the recipe's)")
    sample.add_argument(
        "--eta", type=float, help="fresh noise: 0 none, 1 as ancestral sampling (default: the recipe's)"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument(
        "--weights", choices=["ema", "model"], default="ema", help="averaged or raw weights (default ema)"
    )
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="a PNG; the samples go beside it as .npz")
    for command in (train, sample):
        command.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    commands.add_parser("list", help="the recipes there are")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a problem that its message names, 130 after Ctrl-C."""
    top = parser()
    options, rest = top.parse_known_args(arguments)  # fields may also stand behind the options
    if rest and (options.command != "train" or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "train":
        options.fields += rest
    try:
        return {"train": _train, "sample": _sample, "list": _list}[options.command](options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _train(options: argparse.Namespace) -> int:
    chosen = override(recipe(options.recipe), options.fields)
    folder = options.out or next(path for path in _numbered(Path("runs") / chosen.name) if not path.exists())
    print(f"training {chosen.name} for {chosen.steps} steps of {chosen.batch} images into {folder}")
    try:
        run(chosen, folder, device=_device(options))
    except KeyboardInterrupt as stop:
        kept = folder / CHECKPOINT
        what = f"the weights so far are in {kept}" if kept.exists() else "nothing was saved yet"
        print(f"\n{stop or 'stopped'}: {what}", file=sys.stderr)
        return 130
    print(f"log      {folder / 'log.jsonl'}\nweights  {folder / CHECKPOINT}\nsamples  {folder / 'samples.png'}")
    return 0


def _sample(options: argparse.Namespace) -> int:
    if options.out.suffix == ".npz":
        raise ValueError(f"--out names the picture, and the samples go beside it as .npz: got {options.out}")
    for path in (options.out, options.out.with_suffix(".npz")):
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten: name another --out, or remove it")
    model = load(options.run, weights=options.weights, device=_device(options))
    scale = model.recipe.scale if options.scale is None else options.scale
    distinct = list(range(model.recipe.classes)) if options.labels is None else options.labels
    labels = distinct * options.count
    images = model.sample(
        labels, scale=scale, steps=options.steps, eta=options.eta, seed=options.seed, progress=True
    ).cpu()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    names = [str(label) for label in distinct]
    plot.save(plot.grid(images, len(distinct), column_labels=names, title=f"guidance scale {scale:g}"), options.out)
    np.savez(
        options.out.with_suffix(".npz"),
        images=images.numpy(),
        labels=np.array(labels),
        scale=scale,
        seed=options.seed,
    )
    print(f"wrote {options.out} and {options.out.with_suffix('.npz')}")
    return 0


def _list(options: argparse.Namespace) -> int:
    for name, function in RECIPES.items():
        print(f"{name:10} {function.__doc__}")
    return 0


def _device(options: argparse.Namespace) -> torch.device | None:
    return torch.device(options.device) if options.device else None


def _numbered(path: Path):
    yield path
    yield from (path.with_name(f"{path.name}-{i}") for i in count(2))


if __name__ == "__main__":
    sys.exit(main())
