"""A set-up self-test: the whole way of a recipe, in small, before days of training depend on it."""

import dataclasses
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ddpm_lib.training.checkpoint import load_checkpoint
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.runs.recipes import Recipe
from ddpm_lib.runs.run import load_data, new_trainer, save, trained
from ddpm_lib.devices import default_device
from ddpm_lib.training.trainer import Step, Trainer

FILES = 256  # that are read, of a data set in files
SMALL_BATCH = 4  # on a CPU; a GPU takes the recipe's own, which must fit its memory


def self_test(
    recipe: Recipe, folder: str | Path = ".", device: torch.device | None = None, say: Callable[[str], None] = print
) -> bool:
    """Load a batch, take steps, save, resume, sample; say what was found, line by line. True if all of it works.

    folder: where runs are to be stored: its free space is compared with what the run will write, and the test's own
    checkpoint is written there and removed. The network has its full size; on a CPU the batch is cut to four images.
    """
    device = device or default_device()
    batch = recipe.batch if device.type == "cuda" else min(recipe.batch, SMALL_BATCH)
    small = dataclasses.replace(recipe, batch=batch, warmup=0)
    say(f"device   {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    try:
        data, held_out = load_data(small)
        classes = f"{recipe.classes} classes" if recipe.classes else "without labels"
        shape = f"{recipe.channels}x{recipe.size}x{recipe.size}"
        say(f"data     {len(data)} images, {shape}, {classes}; {len(held_out)} held out")
        if isinstance(data, ImageFiles):  # some of them: a trainer may decode all that it gets before its first step
            data = dataclasses.replace(data.subset(range(min(FILES, len(data)))), root=None)
        trainer = new_trainer(small, data, device)
        _say_size(trainer, recipe, Path(folder), say)
        _say_steps(trainer, recipe, say)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".selftest-") as place:
            _say_resume(trainer, small, Path(place), say)
        model = trained(trainer, small)
        images = model.sample([0, recipe.classes - 1] if recipe.classes else 2, steps=2)
        if not images.isfinite().all():
            raise ArithmeticError("the samples hold NaN or infinity")
        say(f"sample   {len(images)} images in 2 steps, all finite")
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        say(f"FAILED   {error}")
        return False
    say(f"ready    python -m ddpm_lib train {recipe.name}")
    return True


def _say_size(trainer: Trainer, recipe: Recipe, folder: Path, say: Callable[[str], None]) -> None:
    count = sum(p.numel() for p in trainer.model.parameters())
    one = 4 * count * (3 + len(trainer.emas)) / 1e9  # weights, two moments and the averages, 4 bytes each
    need, free = one * (recipe.keep + 2), shutil.disk_usage(folder).free / 1e9  # the best, and the next being written
    say(f"network  {count / 1e6:.2f} M parameters; a checkpoint takes {one:.2f} GB, a run up to {need:.2f} GB")
    if need > free:
        raise OSError(
            f"the disk of {folder} has {free:.2f} GB free and the run needs {need:.2f} GB: set keep=1, or move"
        )


def _say_steps(trainer: Trainer, recipe: Recipe, say: Callable[[str], None]) -> None:
    loss, norm = _numbers(trainer.step())
    if not (0.5 < loss < 1.5 and 0 < norm < float("inf")):
        raise ArithmeticError(
            f"expected a first loss near 1, the variance of the noise, and a finite gradient; got {loss:g} and {norm:g}"
        )
    began = time.perf_counter()
    _numbers(trainer.step())
    seconds = time.perf_counter() - began
    say(f"step     loss {loss:.3f}, gradient norm {norm:.3g}; {trainer.batch / seconds:.3g} images/s")
    if trainer.batch == recipe.batch:
        say(f"         at this speed the recipe takes {seconds * recipe.steps / 3600:.1f} hours")
    if trainer.device.type == "cuda":
        say(f"         {torch.cuda.max_memory_allocated(trainer.device) / 1e9:.1f} GB of GPU memory at the peak")


def _say_resume(trainer: Trainer, recipe: Recipe, place: Path, say: Callable[[str], None]) -> None:
    save(trainer, recipe, place)
    (path,) = place.glob("*.safetensors")
    trainer.step()  # before another trainer touches torch's own generator
    uninterrupted, _ = trainer.state()
    again = new_trainer(recipe, trainer.data, trainer.device)
    again.load_state(*load_checkpoint(path))
    again.step()
    resumed, _ = again.state()
    off = float(torch.stack([(t.double() - uninterrupted[name].double()).abs().max() for name, t in resumed.items()]).max())
    if not math.isfinite(off) or (trainer.device.type == "cpu" and off != 0):
        raise ArithmeticError(f"a resumed step differs from an uninterrupted one by {off:g}")
    say(f"resume   from a {path.stat().st_size / 1e9:.2f} GB checkpoint; the next step differs by {off:.2g}")


def _numbers(step: Step) -> tuple[float, float]:
    return float(step.loss.mean()), float(step.gradient_norm)
