"""The command line: python -m ddpm_lib list | check | train | resume | sample | export."""

import argparse
import math
import sys
import traceback
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ddpm_lib import plot
from ddpm_lib.networks.interop import save_diffusers
from ddpm_lib.runs.folder import LOG
from ddpm_lib.runs.model import CHECKPOINTS, export, load
from ddpm_lib.runs.recipes import RECIPES, did_you_mean, override, recipe
from ddpm_lib.runs.run import CHANGEABLE, resume, run
from ddpm_lib.runs.selftest import self_test
from ddpm_lib.samplers.ancestral import image_seeds
from ddpm_lib.training.checkpoint import list_checkpoints

ROWS = 100  # of a picture of samples: more than that nobody looks at


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m ddpm_lib", description="Train and sample denoising diffusion models.")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the recipes there are")
    check = commands.add_parser("check", help="a self-test in seconds: data, a step, a checkpoint, resuming, sampling")
    train = commands.add_parser("train", help="train a recipe into a new run folder")
    for command in (check, train):
        command.add_argument("recipe", help="a name that `list` shows")
        command.add_argument(
            "fields",
            nargs="*",
            metavar="field=value",
            help="override any field of the recipe: steps=100 width=48 attention=4,8",
        )
    train.add_argument(
        "--out",
        type=Path,
        help="the run folder: a new one, or that of a run without a checkpoint (default: the next free runs/RECIPE)",
    )
    resume = commands.add_parser("resume", help="go on with a run that was interrupted, or for longer")
    resume.add_argument("run", type=Path, help="a run folder")
    resume.add_argument("fields", nargs="*", metavar="field=value", help=f"change {', '.join(CHANGEABLE)}")
    resume.add_argument(
        "--other-data", action="store_true", help="go on although the images have changed since the run was started"
    )
    sample = commands.add_parser("sample", help="draw labelled images from a run")
    sample.add_argument("run", type=Path, help="a run folder, a checkpoint or an exported file")
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
    sample.add_argument("--seed", type=int, default=0, help="of the first image; the .npz holds that of every image")
    sample.add_argument("--batch", type=int, help="images that are drawn at once (default: the recipe's batch)")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="a PNG; the samples go beside it as .npz")
    export = commands.add_parser("export", help="write a run's weights alone: one fp16 file, or a folder for diffusers")
    export.add_argument("run", type=Path, help="a run folder or a checkpoint")
    export.add_argument("out", type=Path, help="the new file, or with --diffusers the new folder")
    export.add_argument("--diffusers", action="store_true", help="a folder that diffusers' from_pretrained loads")
    for command in (sample, export):
        command.add_argument(
            "--weights", default="ema", help="ema, another average (ema.0.999, say) or model, the raw weights"
        )
        command.add_argument(
            "--which", choices=["last", "best"], default="last", help="of a folder's checkpoints (default last)"
        )
    for command in (check, train, resume, sample):
        command.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU where there is one)")
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="of a problem, say where in the code it arose")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a problem that its message names, 130 after Ctrl-C."""
    top = parser()
    words = sys.argv[1:] if arguments is None else arguments
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        top.error(f"unknown command {first!r}{did_you_mean(first, COMMANDS)}; there are: {', '.join(COMMANDS)}")
    options, rest = top.parse_known_args(words)  # fields may also stand behind the options
    takes_fields = hasattr(options, "fields")
    if rest and (not takes_fields or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if takes_fields:
        options.fields += rest
    try:
        return COMMANDS[options.command](options)
    except KeyboardInterrupt as stop:
        print("\n" + "; ".join([str(stop) or "stopped", *_notes(stop)]), file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError, RuntimeError) as error:
        if options.traceback:
            traceback.print_exc()
        print("; ".join([f"error: {error}", *_notes(error)]), file=sys.stderr)
        return 1


def _notes(error: BaseException) -> Sequence[str]:
    return getattr(error, "__notes__", ())


def _check(options: argparse.Namespace) -> int:
    chosen = override(recipe(options.recipe), options.fields)
    return 0 if self_test(chosen, device=_device(options), trace=options.traceback) else 1


def _train(options: argparse.Namespace) -> int:
    chosen = override(recipe(options.recipe), options.fields)
    folder = options.out or next(path for path in _numbered(Path("runs") / chosen.name) if not path.exists())
    print(f"training {chosen.name} for {chosen.steps} steps of {chosen.batch} images into {folder}")
    run(chosen, folder, device=_device(options))
    return _finished(folder)


def _resume(options: argparse.Namespace) -> int:
    print(f"resuming {options.run}")
    resume(options.run, options.fields, device=_device(options), other_data=options.other_data)
    return _finished(options.run)


def _finished(folder: Path) -> int:
    print(f"log      {folder / LOG}\nweights  {list_checkpoints(folder / CHECKPOINTS)[-1]}")
    print(f"curves   {folder / 'loss.png'}\nsamples  {folder / 'samples.png'}")
    return 0


def _sample(options: argparse.Namespace) -> int:
    if options.out.suffix == ".npz":
        raise ValueError(f"--out names the picture, and the samples go beside it as .npz: got {options.out}")
    for path in (options.out, options.out.with_suffix(".npz")):
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten: name another --out, or remove it")
    model = load(options.run, weights=options.weights, which=options.which, device=_device(options))
    settings = {"steps": options.steps, "eta": options.eta, "batch": options.batch}
    settings |= {"seed": options.seed, "progress": True}
    if model.recipe.classes:
        distinct = list(range(model.recipe.classes)) if options.labels is None else options.labels
        labels, columns = distinct * options.count, len(distinct)
        scale = model.recipe.scale if options.scale is None else options.scale
        images = model.sample(labels, scale=scale, **settings).cpu()
        names = [model.names[label] if model.names else str(label) for label in distinct]
        words = {"column_labels": names, "title": f"guidance scale {scale:g}"}
    elif options.labels is None and options.scale is None:
        labels, scale, words = [], float("nan"), {}
        images = model.sample(options.count, **settings).cpu()
        columns = min(max(10, math.isqrt(len(images))), len(images))
    else:
        raise ValueError("this network knows no classes: --labels and --scale mean nothing to it; --count is enough")
    stored = options.out.with_suffix(".npz")
    stored.parent.mkdir(parents=True, exist_ok=True)
    about = {"labels": labels, "scale": scale, "seed": options.seed, "seeds": image_seeds(options.seed, len(images))}
    np.savez(stored, images=images.numpy(), **about)
    shown = images[: ROWS * columns]
    plot.save(plot.grid(shown, columns, **words), options.out)
    rest = "" if len(shown) == len(images) else f", which shows the first {len(shown)} of {len(images)} images,"
    print(f"wrote {options.out}{rest} and {stored}")
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.diffusers:
        model = load(options.run, weights=options.weights, which=options.which, device=torch.device("cpu"))
        save_diffusers(model.network, model.schedule, options.out)
    else:
        export(options.run, options.out, weights=options.weights, which=options.which)
    print(f"wrote {options.out}")
    return 0


def _list(options: argparse.Namespace) -> int:
    for name, function in RECIPES.items():
        print(f"{name:13} {function.__doc__}")
    return 0


COMMANDS = {
    "list": _list,
    "check": _check,
    "train": _train,
    "resume": _resume,
    "sample": _sample,
    "export": _export,
}


def _device(options: argparse.Namespace) -> torch.device | None:
    return torch.device(options.device) if options.device else None


def _numbered(path: Path):
    yield path
    yield from (path.with_name(f"{path.name}-{i}") for i in count(2))


if __name__ == "__main__":
    sys.exit(main())
