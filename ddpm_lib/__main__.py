"""The command line: python -m ddpm_lib list | check | train | resume | sample | evaluate | export | conformance."""

import argparse
import math
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read with torch: else threads that wait take cores from others
import torch

from ddpm_lib import plot
from ddpm_lib.networks.interop import save_diffusers
from ddpm_lib.runs.arguments import class_numbers, parse
from ddpm_lib.runs.describe import recipes_in_words
from ddpm_lib.runs.folder import CURVES, LOG, SAMPLES, command, is_finished, read_recipe
from ddpm_lib.runs.model import CHECKPOINTS, export, load
from ddpm_lib.runs.recipes import Recipe, override, recipe
from ddpm_lib.runs.run import resume, run
from ddpm_lib.runs.selftest import self_test
from ddpm_lib.samplers.ancestral import image_seeds
from ddpm_lib.training.checkpoint import list_checkpoints
from ddpm_lib.training.distributed import by_first, is_first, launched, may_report, started

ROWS = 100  # of a picture of samples: more than that nobody looks at


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a problem that its message names, 130 after Ctrl-C.

    torchrun starts several processes with it, for `train` and `resume`; one of them reports a problem.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.command in SHARED:
            with started(_device(options)) as device:
                return COMMANDS[options.command](options, device)
        if launched():
            raise ValueError(f"{options.command} needs one process alone: call it without torchrun")
        return COMMANDS[options.command](options)
    except KeyboardInterrupt as stop:
        if may_report():
            print("\n" + "; ".join([str(stop) or "stopped", *_notes(stop)]), file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError, RuntimeError, ImportError) as error:
        if may_report():
            if options.traceback:
                traceback.print_exc()
            print("; ".join([f"error: {error}", *_notes(error)]), file=sys.stderr)
        return 1


def _notes(error: BaseException) -> Sequence[str]:
    return getattr(error, "__notes__", ())


def _check(options: argparse.Namespace) -> int:
    chosen = override(recipe(options.recipe), options.fields)
    return 0 if self_test(chosen, device=_device(options), trace=options.traceback) else 1


def _train(options: argparse.Namespace, device: torch.device | None) -> int:
    chosen = override(recipe(options.recipe), options.fields)
    folder = options.out or next(path for path in _numbered(Path("runs") / chosen.name) if not path.exists())
    if is_first():
        _warn_of(chosen.scale)
    print(f"training {chosen.name} for {chosen.steps} steps of {chosen.batch} images into {folder}")
    run(chosen, folder, device=device)
    return _finished(folder, chosen) if is_first() else 0


def _resume(options: argparse.Namespace, device: torch.device | None) -> int:
    if by_first(lambda: _nothing_left(options)):
        return 0
    print(f"resuming {options.run}")
    resume(options.run, options.fields, device=device, other_data=options.other_data)
    return _finished(options.run, override(read_recipe(options.run), options.fields)) if is_first() else 0


def _nothing_left(options: argparse.Namespace) -> bool:
    old = read_recipe(options.run)
    chosen = override(old, options.fields)
    if chosen != old or not is_finished(options.run, chosen):
        return False
    print(f"{options.run} is finished: it has done its {chosen.steps} steps, and nothing was written. To train on:")
    print(_longer(options.run, chosen))
    return True


def _finished(folder: Path, chosen: Recipe) -> int:
    print(f"log      {folder / LOG}\nweights  {list_checkpoints(folder / CHECKPOINTS)[-1]}")
    print(f"curves   {folder / CURVES}\nsamples  {folder / SAMPLES}")
    labels = ("--labels", ",".join(map(str, range(min(chosen.classes, 3)))), "--scale", 3) if chosen.classes else ()
    out = folder / f"grid-{chosen.steps}.png"
    print(f"next     {command('sample', folder, *labels, '--count', 8, '--out', out)}")
    print(f"or       {_longer(folder, chosen)}")
    return 0


def _longer(folder: Path, chosen: Recipe) -> str:
    return command("resume", folder, f"steps={2 * chosen.steps}")


def _warn_of(scale: float) -> None:
    if scale < 0:
        print(
            f"a guidance scale below 0 is unusual: {scale:g} leads away from the class that is asked for; "
            "0 ignores it, 1 follows it, 2 stresses it",
            file=sys.stderr,
        )


def _sample(options: argparse.Namespace) -> int:
    if options.out.suffix == ".npz":
        raise ValueError(f"--out names the picture, and the samples go beside it as .npz: got {options.out}")
    for path in (options.out, options.out.with_suffix(".npz")):
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten: name another --out, or remove it")
    model = load(options.run, weights=options.weights, which=options.which, device=_device(options))
    settings = {"steps": options.steps, "eta": options.eta, "batch": options.batch}
    settings |= {"seed": options.seed, "precision": options.precision, "progress": True}
    if model.recipe.classes:
        asked = options.labels
        distinct = list(range(model.recipe.classes)) if asked is None else class_numbers(asked, model.names)
        labels, columns = distinct * options.count, len(distinct)
        scale = model.recipe.scale if options.scale is None else options.scale
        _warn_of(scale)
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


def _evaluate(options: argparse.Namespace) -> int:
    from ddpm_lib.runs.assess import assess  # SciPy and scikit-learn take a while, and few commands need them

    scales = [float(word) for word in (options.scales or "").split(",") if word]
    names = (
        "out",
        "pictures",
        "count",
        "bits",
        "features",
        "root",
        "weights",
        "which",
        "steps",
        "eta",
        "seed",
        "precision",
    )
    chosen = {name: getattr(options, name) for name in names} | {"device": _device(options)}
    called = shlex.join(["python", "-m", "ddpm_lib", *options.words])  # no path of this machine
    assess(options.run, command=called, scales=scales, progress=True, **chosen)
    return 0


def _export(options: argparse.Namespace) -> int:
    if options.diffusers:
        model = load(options.run, weights=options.weights, which=options.which, device=torch.device("cpu"))
        save_diffusers(model.network, model.schedule, options.out)
    else:
        export(options.run, options.out, weights=options.weights, which=options.which)
    print(f"wrote {options.out}")
    return 0


def _conformance(options: argparse.Namespace) -> int:
    from ddpm_lib.conformance.report import command as examine_all  # SciPy takes a while, and no other command needs it

    return examine_all(options.sources, float32=options.float32, quiet=options.quiet, listing=options.list)


def _list(options: argparse.Namespace) -> int:
    print(recipes_in_words())
    return 0


COMMANDS = {
    "list": _list,
    "check": _check,
    "train": _train,
    "resume": _resume,
    "sample": _sample,
    "evaluate": _evaluate,
    "export": _export,
    "conformance": _conformance,
}


SHARED = ("train", "resume")  # that several processes can do together


def _device(options: argparse.Namespace) -> torch.device | None:
    return torch.device(options.device) if options.device else None


def _numbered(path: Path):
    yield path
    yield from (path.with_name(f"{path.name}-{i}") for i in count(2))


if __name__ == "__main__":
    sys.exit(main())
