"""A run: a recipe trained into a folder, which can be interrupted at any moment and resumed."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ddpm_lib import __version__, plot
from ddpm_lib.devices import default_device
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.fingerprint import check_same
from ddpm_lib.runs.assemble import load_data, new_trainer, trained
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.folder import (
    CURVES,
    LOG,
    SAMPLES,
    beginning,
    bytes_needed,
    check_room,
    locked,
    noting_what_is_saved,
    read_recipe,
    write_recipe,
)
from ddpm_lib.runs.model import CHECKPOINTS, TrainedModel, sample_grid
from ddpm_lib.runs.recipes import Recipe, override
from ddpm_lib.runs.stored import from_json, to_json
from ddpm_lib.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    named,
    prune,
    save_checkpoint,
    step_path,
    sweep,
)
from ddpm_lib.training.distributed import by_first, given_to_all, in_turn, is_first
from ddpm_lib.training.loop import train
from ddpm_lib.training.monitor import append_entry, curves, cut_log, held_out_loss, read_log, tensorboard
from ddpm_lib.training.trainer import Trainer

CHANGEABLE = ("steps", "root", "workers", "log_every", "save_every", "keep", "sample_every", "sample_steps", "eta")
CHANGEABLE += ("scale", "memory_budget_gb", "accumulate", "channels_last", "compile")
Metric = Callable[[TrainedModel], float]


def run(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: torch.device | None = None,
    metric: Metric | None = None,
    progress: bool = True,
) -> TrainedModel:
    """Train a recipe into a new folder. `resume` goes on after any interruption, a crash or SIGKILL included.

    The folder gets recipe.json, log.jsonl, checkpoints/ (all that the next step depends on: the last `keep` and the
    best stay), loss.png, samples.png, samples/ and, where TensorBoard is installed, tensorboard/.
    metric: lower is better; None takes the held-out loss of the averaged weights.
    Raises FileExistsError if the folder exists: a run is never overwritten. One that ended before its first checkpoint
    has nothing to lose: there the new run begins, with its own recipe in place of the old one, and a message says so.
    Raises BlockingIOError where another process trains in the folder, OSError where the disk has too little room for
    the run. Ctrl-C saves the last step before KeyboardInterrupt goes on; a loss that is not finite raises
    FloatingPointError and saves nothing. An error on the way carries a note: what is saved, and how to go on.
    Of several processes (`training.distributed.started`) the first alone touches the folder; all return the model.
    """
    folder = Path(folder)
    with beginning(folder) if is_first() else nullcontext() as begin:
        with in_turn():
            data, held_out = load_data(recipe)
        recipe = _decided(recipe, device, progress)
        trainer = new_trainer(recipe, data, device)
        by_first(lambda: check_room(folder, bytes_needed(trainer, recipe)[1]))
        with in_turn():
            trainer.open()  # a broken file shall leave no folder behind
        by_first(lambda: check_room(folder, bytes_needed(trainer, recipe)[1]))  # now decoded images may lie there, too
        by_first(lambda: begin(recipe))
        with noting_what_is_saved(folder):
            return _go_on(trainer, recipe, folder, held_out, metric, progress)


def _decided(recipe: Recipe, device: torch.device | None, progress: bool) -> Recipe:
    say = print if progress else None
    return from_json(by_first(lambda: to_json(decided(recipe, device or default_device(), say))))


def resume(
    folder: str | Path,
    changes: Sequence[str] = (),
    *,
    device: torch.device | None = None,
    metric: Metric | None = None,
    progress: bool = True,
    other_data: bool = False,
) -> TrainedModel:
    """Go on with a run from its last whole checkpoint, or from its beginning if none was saved yet.

    On a CPU the weights at the end are those of a run that was never interrupted, bit for bit. changes: "field=value"
    for fields that do not decide the steps already done, `steps` among them (the learning rate then follows the new
    course). No checkpoint is overwritten; what the log says of steps after the checkpoint is forgotten, for they come
    again. other_data: go on, with a warning, although the images are not those that the run was trained on.
    Raises FileNotFoundError where there is no run, ValueError for another field or other images, and OSError as `run`.
    """
    folder = Path(folder)
    by_first(lambda: to_json(read_recipe(folder)))  # raises where there is no run, before a lock is left there
    with locked(folder) if is_first() else nullcontext(), noting_what_is_saved(folder):
        return _resume(folder, changes, device, metric, progress, other_data)


def _resume(
    folder: Path,
    changes: Sequence[str],
    device: torch.device | None,
    metric: Metric | None,
    progress: bool,
    other_data: bool,
) -> TrainedModel:
    old = from_json(by_first(lambda: to_json(read_recipe(folder))))
    recipe = override(old, changes)
    for field in dataclasses.fields(recipe):
        if getattr(recipe, field.name) != getattr(old, field.name) and field.name not in CHANGEABLE:
            raise ValueError(
                f"{field.name} decides the steps already done and cannot change in a run; {', '.join(CHANGEABLE)} can"
            )
    with in_turn():
        data, held_out = load_data(recipe)
    recipe = _decided(recipe, device, progress)  # changes may leave things open
    trainer = new_trainer(recipe, data, device)
    _load_last(trainer, folder, other_data)
    if recipe.steps < trainer.steps:
        raise ValueError(f"{folder} has done {trainer.steps} steps: steps must be at least that, got {recipe.steps}")
    if is_first():
        check_room(folder, bytes_needed(trainer, recipe, len(list_checkpoints(folder / CHECKPOINTS)))[1])
        cut_log(folder / LOG, trainer.steps)
        write_recipe(folder, recipe)
    with in_turn():
        trainer.open()
    return _go_on(trainer, recipe, folder, held_out, metric, progress)


def _load_last(trainer: Trainer, folder: Path, other_data: bool) -> None:
    """Load the last whole checkpoint, if there is one; nothing of what was read is kept."""
    tensors, about, origin = _last(trainer, folder, other_data) if is_first() else ({}, None, "")
    tensors, about = given_to_all(tensors), by_first(lambda: about)
    if about is not None:
        trainer.load_state(tensors, about, origin)


def _last(trainer: Trainer, folder: Path, other_data: bool) -> tuple[dict, dict | None, str]:
    """What `load_state` needs of the last whole checkpoint, if there is one; what is damaged is set aside."""
    for place in (folder, folder / CHECKPOINTS):
        sweep(place)
    for path in reversed(list_checkpoints(folder / CHECKPOINTS)):
        try:
            tensors, about = load_checkpoint(path)
        except ValueError as error:  # a disk's fault, for files are written whole
            print(f"{error}; going back to the one before it", file=sys.stderr)
            path.rename(path.with_suffix(".damaged"))
            continue
        check_same(about.get("data"), trainer.fingerprint, path, other_data=other_data)
        return tensors, about, str(path)
    return {}, None, ""


def _go_on(
    trainer: Trainer,
    recipe: Recipe,
    folder: Path,
    held_out: LabelledImages,
    metric: Metric | None,
    progress: bool,
) -> TrainedModel:
    log, model, first = folder / LOG, trained(trainer, recipe), is_first()
    history, board = (read_log(log), tensorboard(folder / "tensorboard", trainer.steps)) if first else ([], None)
    before = trainer.steps

    def on_entry(entry: dict) -> None:
        nonlocal before
        step, last = entry["step"], before
        before = step
        due = step == recipe.steps or step // recipe.save_every > last // recipe.save_every
        try:
            if due:
                entry["held_out_loss"] = held_out_loss(model.network, model.schedule, held_out)
                entry["metric"] = entry["held_out_loss"] if metric is None else float(metric(model))
            history.append(entry)
            append_entry(log, entry)
        finally:  # a metric that fails, or a log that cannot be written, costs no weights
            if due:
                save(trainer, recipe, folder / CHECKPOINTS, entry.get("metric"))
        if due:
            _draw(curves(history), folder / CURVES)
        if recipe.sample_every and step // recipe.sample_every > last // recipe.sample_every:
            (folder / "samples").mkdir(exist_ok=True)
            _draw(sample_grid(model), folder / "samples" / f"step-{step:08d}.png")
        if board is not None:
            board(entry)

    try:
        entries = {"every": recipe.log_every, "on_entry": on_entry if first else None}
        train(trainer, recipe.steps, **entries, progress=progress and first)
    except KeyboardInterrupt as stop:
        if stop.args:  # it came between two steps; a second Ctrl-C may cut one in two, and then nothing is saved
            by_first(lambda: save(trainer, recipe, folder / CHECKPOINTS))
        raise
    by_first(lambda: _draw(sample_grid(model, progress=progress), folder / SAMPLES))
    return model


def _draw(figure: Figure, path: Path) -> None:
    with named(path):
        plot.save(figure, path)


def save(trainer: Trainer, recipe: Recipe, folder: Path, metric: float | None = None) -> None:
    """Write the checkpoint of the trainer's step, unless it is there, and remove those that need not be kept."""
    path = step_path(folder, trainer.steps)
    if not path.exists():
        folder.mkdir(exist_ok=True)
        tensors, about = trainer.state()
        about |= {"recipe": to_json(recipe), "names": trainer.data.names, "metric": metric}
        save_checkpoint(path, tensors, about | {"version": __version__, "torch": torch.__version__})
    prune(folder, recipe.keep)
