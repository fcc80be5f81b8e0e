"""The command line's words: its commands and options, their help, and what somebody may have meant."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ddpm_lib.runs.choices import FEATURES
from ddpm_lib.runs.describe import fields_in_words
from ddpm_lib.runs.recipes import RECIPES, meant
from ddpm_lib.runs.run import CHANGEABLE
from ddpm_lib.runs.words import did_you_mean
from ddpm_lib.training.fast import PRECISIONS

PROGRAM = "python -m ddpm_lib"
EXAMPLES = {
    "list": ["list"],
    "check": ["check digits", "check folder root=/my/images size=32 attention=8,16"],
    "train": ["train digits", "train digits --out runs/wide steps=1000 width=48"],
    "resume": ["resume runs/digits", "resume runs/digits steps=1280"],
    "sample": [
        "sample runs/digits --labels 0,1,2 --count 8 --scale 3 --out grid.png",
        "sample runs/fashion --labels bag,sandal --which best --out bags.png",
        "sample fashion --labels bag coat",
    ],
    "evaluate": [
        "evaluate fashion --root data --count 1000",
        "evaluate runs/fashion --scales 1,1.5,2,3 --precision bf16",
    ],
    "export": ["export runs/digits digits.safetensors", "export runs/digits exported --diffusers"],
    "conformance": ["conformance mycode.py", "conformance mypackage.diffusion --float32", "conformance --list"],
}

SOURCE = "a run folder, a checkpoint, an exported file, or the name of a model that the book ships: fashion, digits"
REGISTER = """\
a function is registered by a decorator, or by a dictionary in its file:
  from ddpm_lib.conformance import implements

  @implements("posterior mean")
  def mean(schedule, x_0, x_t, t): ...

  CONFORMANCE = {"posterior variance": variance}
the exit status is 0 only if all functions hold

"""


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of a call. words: the call's, of which a recipe's name decides which values its help shows."""
    top = argparse.ArgumentParser(prog=PROGRAM, description="Train and sample denoising diffusion models.")
    commands = top.add_subparsers(dest="command", required=True)

    def add(name: str, about: str, more: str = "") -> argparse.ArgumentParser:
        examples = "\n".join(f"  {PROGRAM} {example}" for example in EXAMPLES[name])
        epilog = f"{more}examples:\n{examples}" if len(EXAMPLES[name]) > 1 else f"{more}example:\n{examples}"
        form = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=about, description=about, epilog=epilog, formatter_class=form)

    named = next((word for word in words if word in RECIPES), None)
    whose = (
        f"their values in {named}" if named else "their defaults (`train RECIPE --help` shows a recipe's own values)"
    )
    fields = f"fields, {whose}:\n{fields_in_words(RECIPES[named]() if named else None)}\n\n"
    changeable = f"fields that can change in a run, and their defaults:\n{fields_in_words(names=CHANGEABLE)}\n\n"
    several = f"by several processes: torchrun --nproc-per-node 4 {PROGRAM.removeprefix('python ')} ...\n\n"
    add("list", "the recipes there are")
    check = add("check", "a self-test in seconds: data, a step, a checkpoint, resuming, sampling", fields)
    train = add("train", "train a recipe into a new run folder", fields + several)
    for command in (check, train):
        command.add_argument("recipe", help="a name that `list` shows")
        command.add_argument(
            "fields",
            nargs="*",
            metavar="field=value",
            help="override any field of the recipe, see below: steps=100 width=48 attention=4,8",
        )
    train.add_argument(
        "--out",
        type=Path,
        help="the run folder: a new one, or that of a run without a checkpoint (default: the next free runs/RECIPE)",
    )
    resume = add("resume", "go on with a run that was interrupted, or for longer", changeable + several)
    resume.add_argument("run", type=Path, help="a run folder")
    resume.add_argument("fields", nargs="*", metavar="field=value", help="change a field, see below: steps=2000")
    resume.add_argument(
        "--other-data", action="store_true", help="go on although the images have changed since the run was started"
    )
    sample = add("sample", "draw labelled images from a run")
    sample.add_argument("run", type=Path, help=SOURCE)
    sample.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="one image each: classes by number, from 0, or by name: 0,1,2 or 0 1 2 or bag,shirt (default: all)",
    )
    sample.add_argument("--count", type=int, default=1, help="how many images of each label (default 1)")
    sample.add_argument(
        "--scale",
        type=float,
        help="guidance: 0 unconditional, 1 conditional, above 1 guided (default: the recipe's)",
    )
    sample.add_argument("--seed", type=int, default=0, help="of the first image; the .npz holds that of every image")
    sample.add_argument("--batch", type=int, help="images that are drawn at once (default: the recipe's batch)")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="a PNG; the samples go beside it as .npz")
    evaluate = add("evaluate", "measure how good a model's samples are, each number with its interval")
    evaluate.add_argument("run", type=Path, help=SOURCE)
    evaluate.add_argument("--scales", help="of guidance: 1,1.5,2 (default: the recipe's alone); several give a curve")
    evaluate.add_argument("--count", type=int, default=1000, help="samples of each scale (default 1000)")
    evaluate.add_argument("--bits", type=int, default=100, help="held-out images whose bits are counted (default 100)")
    evaluate.add_argument(
        "--features", choices=FEATURES, default="auto", help="what distances look at (default: what there is)"
    )
    evaluate.add_argument("--root", help="where the data lie (default: where the recipe says)")
    evaluate.add_argument("--seed", type=int, default=0, help="of the first sample")
    evaluate.add_argument("--out", type=Path, help="the record, a .json (default: evaluation.json in the run's folder)")
    evaluate.add_argument("--pictures", type=Path, help="the folder for pictures (default: where the record lies)")
    export = add("export", "write a run's weights alone: one fp16 file, or a folder for diffusers")
    export.add_argument("run", type=Path, help="a run folder or a checkpoint")
    export.add_argument("out", type=Path, help="the new file (NAME.safetensors), or with --diffusers the new folder")
    export.add_argument("--diffusers", action="store_true", help="a folder that diffusers' from_pretrained loads")
    conformance = add("conformance", "check functions of your own by the book's checks", REGISTER)
    conformance.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="a Python file, or a module's dotted name, that registers functions",
    )
    conformance.add_argument("--list", action="store_true", help="the equations' names, arguments and conventions")
    conformance.add_argument("--float32", action="store_true", help="accept what holds to float32's precision")
    conformance.add_argument("--quiet", action="store_true", help="a line for each function, and no help below")
    for command in (sample, evaluate):
        command.add_argument("--steps", type=int, help="DDIM steps (default: the recipe's)")
        command.add_argument(
            "--eta", type=float, help="fresh noise: 0 none, 1 as ancestral sampling (default: the recipe's)"
        )
        command.add_argument(
            "--precision", choices=list(PRECISIONS), default="float32", help="of the network (default float32)"
        )
    for command in (sample, evaluate, export):
        command.add_argument(
            "--weights", default="ema", help="ema, another average (ema.0.999, say) or model, the raw weights"
        )
        command.add_argument(
            "--which", choices=["last", "best"], default="last", help="of a folder's checkpoints (default last)"
        )
    for command in (check, train, resume, sample, evaluate):
        command.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU where there is one)")
    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="of a problem, say where in the code it arose")
    return top


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of a call; fields may also stand behind them. A call that makes no sense ends with exit status 2."""
    top = parser(words)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in EXAMPLES:
        top.error(f"unknown command {first!r}{did_you_mean(first, EXAMPLES)}; there are: {', '.join(EXAMPLES)}")
    options, rest = top.parse_known_args(words)
    takes_fields = hasattr(options, "fields")
    wrong = next((word for word in rest if word.startswith("-") or not takes_fields), None)
    if wrong is not None:
        hint = meant(words[list(words).index(wrong) :]) if takes_fields else ""
        top.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if takes_fields:
        options.fields += rest
    options.words = list(words)
    return options


def class_numbers(words: Sequence[str], names: Sequence[str]) -> list[int]:
    """Classes by number, or by name in capitals or not; where a word holds several, commas stand between them.

    Raises ValueError for a name that is none of these.
    """
    numbers = {name.lower(): i for i, name in enumerate(names)} | {name: i for i, name in enumerate(names)}
    parts = [part.strip() for word in words for part in ([word] if word.lower() in numbers else word.split(","))]
    found = []
    for part in filter(None, parts):
        number = int(part) if part.removeprefix("-").isdecimal() else numbers.get(part, numbers.get(part.lower()))
        if number is None:
            known = f"there are: {', '.join(names)}" if names else "the classes of this model have numbers alone"
            raise ValueError(f"unknown class {part!r}{did_you_mean(part, names)}; {known}")
        found.append(number)
    return found
