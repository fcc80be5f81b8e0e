"""A set-up self-test: the whole way of a recipe, in small, before days of training depend on it."""

import dataclasses
import re
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_lib.devices import default_device
from ddpm_lib.images.feed import decoded_home
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.runs.assemble import load_data, new_trainer, trained
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.duration import duration, in_words, time_steps
from ddpm_lib.runs.folder import bytes_needed, check_room, command
from ddpm_lib.runs.recipes import RECIPES, Recipe, assignments
from ddpm_lib.runs.recipes import recipe as named_recipe
from ddpm_lib.runs.records import device_name
from ddpm_lib.runs.run import save
from ddpm_lib.training.checkpoint import amount, load_checkpoint
from ddpm_lib.training.trainer import Step, Trainer

FILES = 256  # that are decoded, of a data set in files, all of which training decodes before its first step
AFTER = ", after it has decoded its files, which finds any that is broken"
SMALL_BATCH = 4  # on a CPU; a GPU takes the recipe's own, which must fit its memory
TOLERANCE = 0.02  # of a step's length, see `difference`
State = tuple[Mapping[str, Tensor], Mapping[str, Any]]  # what Trainer.state returns


def self_test(
    recipe: Recipe,
    folder: str | Path = ".",
    device: torch.device | None = None,
    say: Callable[[str], None] = print,
    trace: bool = False,
) -> bool:
    """Load a batch, take steps, save, resume, sample; say what was found, line by line. True if all of it works.

    folder: where runs are to be stored: its free space is compared with what the run will write, and the test's own
    checkpoint is written there and removed. The network has its full size; on a CPU the batch is cut to four images,
    but how long the recipe takes is timed at its own batch if a step of that is short, and else estimated: `duration`.
    trace: say also where in the code it failed.
    """
    asked, device = device, device or default_device()
    batch = min(recipe.batch, SMALL_BATCH) if device.type == "cpu" else recipe.batch
    small = dataclasses.replace(recipe, batch=batch, warmup=0)
    say(f"device   {device_name(device)}, torch {torch.__version__}")
    try:
        data, held_out = load_data(small)
        classes = f"{recipe.classes} classes" if recipe.classes else "without labels"
        shape = f"{recipe.channels}x{recipe.size}x{recipe.size}"
        say(f"data     {len(data)} images, {shape}, {classes}; {len(held_out)} held out")
        small = decided(small, device, say)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".selftest-") as place:
            streamed, decoding = False, ""
            if isinstance(data, ImageFiles):  # all are decoded before the first step: here some of them are
                streamed, decoding = decoded_home(data, device, recipe.memory_budget()) is None, AFTER
                small = dataclasses.replace(small, memory_budget_gb=1e-9 if streamed else 0.0)
                count = min(FILES, len(data))
                data = dataclasses.replace(data.subset(torch.arange(count) * len(data) // count), root=Path(place))
            trainer = new_trainer(small, data, device)
            one, need = bytes_needed(trainer, recipe)
            million = sum(p.numel() for p in trainer.model.parameters()) / 1e6
            say(f"network  {million:.2f} M parameters; a checkpoint takes {amount(one)}, a run up to {amount(need)}")
            check_room(Path(folder), need)
            ahead = 2 * small.workers if streamed else 0
            seconds = _say_steps(trainer, ahead, say)
            whole = dataclasses.replace(small, batch=recipe.batch)
            found = duration(whole, data, device, trainer, seconds, ahead)
            length = in_words(found.seconds * recipe.steps)
            if found.estimated:
                of = " and ".join(map(str, found.batches))
                say(f"         the recipe takes about {length}, by an estimate from steps of {of} images{decoding}")
            else:
                say(f"         at this speed the recipe takes {length}{decoding}")
            _say_resume(trainer, small, Path(place), say)
        model = trained(trainer, small)
        images = model.sample([0, recipe.classes - 1] if recipe.classes else 2, steps=2)
        if not images.isfinite().all():
            raise ArithmeticError("the samples hold NaN or infinity")
        say(f"sample   {len(images)} images in 2 steps, all finite")
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        if trace:
            say(traceback.format_exc())
        say(f"FAILED   {error}")
        return False
    say(f"ready    {train_command(recipe, asked)}")
    return True


def train_command(recipe: Recipe, device: torch.device | None = None) -> str:
    """The call of the command line that trains this recipe: a named one, and all in which this one differs from it."""
    names = [recipe.name] if recipe.name in RECIPES else RECIPES
    base = min(names, key=lambda name: len(assignments(recipe, named_recipe(name))))
    where = () if device is None else ("--device", device)
    return command("train", base, *assignments(recipe, named_recipe(base)), *where)


def difference(expected: State, got: State, before: State | None = None) -> float:
    """How far two states of a trainer are apart, 0 where they are equal; ArithmeticError where it cannot be rounding.

    before = None: they must be equal, bit for bit. With the state from which both took a step, on a GPU, whose sums
    have no fixed order: the step's number, the generators and all else that is counted must be equal, and each kind of
    numbers (weights, each average, each moment) may differ by TOLERANCE of the length of the step that it took, by
    Euclid's norm over all of its tensors. In trials with two networks, gradients that were off by 1e-5 of their size
    moved no kind by more than 0.001, and by 1e-4 by no more than 0.008; what a resumed run may forget (moments, noise,
    an average or its steps, the position in the data) moved at least one kind by 0.046.
    """
    (want, said), (have, says) = expected, got
    if said != says or want.keys() != have.keys():
        raise ArithmeticError(f"{says}, {len(have)} tensors in place of {said}, {len(want)} tensors")
    off, length = Counter(), Counter()
    for name in want:
        a, b = want[name].cpu(), have[name].cpu()
        if before is None or not a.is_floating_point() or name.startswith("optimiser.step."):
            if not torch.equal(a, b):
                raise ArithmeticError(f"{name} by up to {float((a.double() - b.double()).abs().max()):g}")
            continue
        kind = KIND.match(name)[0]
        off[kind] += float((a.double() - b.double()).square().sum())
        length[kind] += float((a.double() - before[0][name].cpu().double()).square().sum())
    apart = {kind: (off[kind] / max(length[kind], 1e-300)) ** 0.5 for kind in off}
    for kind, part in apart.items():
        if not part <= TOLERANCE:  # NaN is not
            raise ArithmeticError(f"{kind}* by {part:.2g} of the step's length")
    return max(apart.values(), default=0.0)


KIND = re.compile(r"ema\.\d+(\.\d+)?(e-\d+)?\.|optimiser\.\w+\.|\w+\.")


def _say_steps(trainer: Trainer, ahead: int, say: Callable[[str], None]) -> float:
    """Seconds that a step takes, its batch included. ahead: batches that workers may have read while nobody waited."""
    loss, norm = _numbers(trainer.step())
    if not (0.5 < loss < 1.5 and 0 < norm < float("inf")):
        raise ArithmeticError(
            f"expected a first loss near 1, the variance of the noise, and a finite gradient; got {loss:g} and {norm:g}"
        )
    for _ in range(ahead):
        _numbers(trainer.step())
    seconds = time_steps(trainer)
    say(f"step     loss {loss:.3f}, gradient norm {norm:.3g}; {trainer.batch / seconds:.3g} images/s")
    if trainer.device.type == "cuda":
        say(f"         {torch.cuda.max_memory_allocated(trainer.device) / 1e9:.1f} GB of GPU memory at the peak")
    return seconds


def _say_resume(trainer: Trainer, recipe: Recipe, place: Path, say: Callable[[str], None]) -> None:
    save(trainer, recipe, place)
    (path,) = place.glob("*.safetensors")
    trainer.step()  # before another trainer touches torch's own generator
    uninterrupted = trainer.state()
    saved = load_checkpoint(path)
    saved = saved[0], {name: saved[1][name] for name in uninterrupted[1]}
    again = new_trainer(recipe, trainer.data, trainer.device)
    again.load_state(*saved)
    try:
        difference(saved, again.state())
    except ArithmeticError as error:
        raise ArithmeticError(f"what was loaded is not what was saved: it differs in {error}") from error
    again.step()
    try:
        off = difference(uninterrupted, again.state(), None if trainer.device.type == "cpu" else saved)
    except ArithmeticError as error:
        raise ArithmeticError(f"a resumed step differs from an uninterrupted one in {error}") from error
    by = f"{off:.1g} of its length" if off else "0"
    say(f"resume   from a checkpoint of {amount(path.stat().st_size)}; the next step differs by {by}")


def _numbers(step: Step) -> tuple[float, float]:
    return float(step.loss.mean()), float(step.gradient_norm)
