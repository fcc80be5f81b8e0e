"""A run's folder: its files, one process at a time, room on the disk, and how an error tells what is saved."""

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ddpm_lib.runs.model import CHECKPOINTS
from ddpm_lib.runs.recipes import Recipe, assignments
from ddpm_lib.runs.stored import from_json, to_json
from ddpm_lib.training.checkpoint import (
    amount,
    list_checkpoints,
    load_checkpoint,
    named,
    step_path,
    sweep,
    write_atomically,
)
from ddpm_lib.training.trainer import Trainer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

RECIPE, LOG, LOCK = "recipe.json", "log.jsonl", ".lock"
CURVES, SAMPLES = "loss.png", "samples.png"
ENTRY, PICTURE, HEADER = 1000, 500_000, 115  # bytes, rather too many: of a log's entry, a picture, a tensor's name


def command(*words: object) -> str:
    """A call of the command line, quoted for a shell, in which `python` is this one if PATH leads to it."""
    return shlex.join([_python(), "-m", "ddpm_lib", *map(str, words)])


def _python() -> str:
    found, this = shutil.which("python"), Path(sys.executable)
    if found and Path(found).parent == this.parent:
        return "python"
    return str(this.relative_to(Path.cwd()) if this.is_relative_to(Path.cwd()) else this)


# One process at a time

_held: set[TextIO] = set()
if hasattr(os, "register_at_fork"):  # a process that reads files must not hold the lock longer than the run lives
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, this process has the folder to itself. The system unlocks it when the process ends, however it ends.

    Raises BlockingIOError, naming the process, where another one has it. On a disk that knows no locks, only a warning
    is printed.
    """
    with named(folder / LOCK):
        file = open(folder / LOCK, "a+", encoding="utf-8")
    with file:
        if not _lock(file):
            file.seek(0)
            raise BlockingIOError(
                f"{folder} is in use by process {file.read() or '(unknown)'}, and two at once would spoil it: "
                "wait until that one ends, or stop it"
            )
        _held.add(file)
        try:
            with suppress(OSError):  # a full disk: then nobody learns who it is
                os.truncate(file.fileno(), 0)
                os.write(file.fileno(), f"{os.getpid()} on {platform.node()}".encode())
            yield
        finally:
            _held.discard(file)


def _lock(file: TextIO) -> bool:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(1 << 30)  # there nobody reads: on Windows what is locked cannot be
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        print(f"{file.name} cannot be locked ({error.strerror}): start no second run in its folder", file=sys.stderr)
    return True


# A new run


@contextmanager
def beginning(folder: Path) -> Iterator[Callable[[Recipe], None]]:
    """For a new run: within, the function that this yields gives the run its folder, which stays locked to the end.

    The folder appears with its recipe in it. One that a run left before its first checkpoint is used again.
    Raises FileExistsError for any other folder that is there.
    """
    with ExitStack() as stack:
        _refuse_used(folder)
        if again := folder.exists():
            stack.enter_context(locked(folder))
            _refuse_used(folder)  # its own process may have got further before the lock was ours

        def begin(recipe: Recipe) -> None:
            if again:
                _begin_again(folder, recipe)
            else:
                _create(folder, recipe)
                stack.enter_context(locked(folder))

        yield begin


def _refuse_used(folder: Path) -> None:
    unsaved = (folder / RECIPE).is_file() and not any((folder / CHECKPOINTS).glob("step-*"))
    if folder.exists() and not unsaved:
        raise FileExistsError(f"{folder} exists, and a run is never overwritten: name another folder, or resume it")


def _create(folder: Path, recipe: Recipe) -> None:
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        write_recipe(partial, recipe)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            raise FileExistsError(f"{folder} exists: another process has just begun a run there") from error
        raise


def _begin_again(folder: Path, recipe: Recipe) -> None:
    try:
        old = read_recipe(folder)
        changed = " ".join(assignments(recipe, old))
    except ValueError:
        changed = "the old one cannot be read"
    for place in (folder, folder / CHECKPOINTS):
        sweep(place)
    pictures = [folder / CURVES, folder / SAMPLES, *(folder / "samples").glob("step-*.png")]
    for path in [folder / LOG, *pictures]:
        path.unlink(missing_ok=True)
    write_recipe(folder, recipe)
    replaced = f" Its recipe is replaced: {changed}." if changed else ""
    print(f"{folder} holds a run that ended before its first checkpoint; it begins again.{replaced}", file=sys.stderr)


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write, or replace in one step, the recipe of a run."""
    write_atomically(folder / RECIPE, json.dumps(to_json(recipe), indent=2).encode())


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run. Raises FileNotFoundError where there is no run, ValueError for a file that is not ours."""
    path = folder / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"expected a run in {folder}; there is no {RECIPE}")
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a run has nothing left to do: the checkpoint of its last step is there, whole, and so are its samples."""
    last = step_path(folder / CHECKPOINTS, recipe.steps)
    try:
        return load_checkpoint(last, ())[1]["step"] == recipe.steps and (folder / SAMPLES).exists()
    except (FileNotFoundError, ValueError):
        return False


# Room on the disk


def bytes_needed(trainer: Trainer, recipe: Recipe, there: int = 0) -> tuple[int, int]:
    """Bytes of one checkpoint, and all that the run will still write while `there` checkpoints lie in its folder.

    At most `keep` checkpoints and the best stay, and the next one is written before any is removed.
    """
    sizes = [tensor.nbytes for name, tensor in trainer.state()[0].items() if not name.startswith("optimiser.")]
    moments = [size for p in trainer.model.parameters() for size in (p.nbytes, p.nbytes, 4)]
    checkpoint = sum(sizes) + sum(moments) + HEADER * len(sizes + moments)
    saves, entries, pictures = (_left(trainer.steps, recipe.steps, n) for n in _every(recipe))
    more = min(max(1, recipe.keep + 2 - there), saves)
    return checkpoint, more * checkpoint + entries * ENTRY + (pictures + 2) * PICTURE


def _every(recipe: Recipe) -> tuple[int, int, int]:
    return recipe.save_every, recipe.log_every, recipe.sample_every


def _left(done: int, steps: int, every: int) -> int:
    """How many multiples of `every` lie in done + 1..steps, and the last step itself; none where every is 0."""
    return 0 if not every or done >= steps else steps // every - done // every + bool(steps % every)


def check_room(folder: Path, need: int) -> None:
    """Raises OSError if the disk on which a folder lies, or will lie, has fewer bytes free than that."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise OSError(
            f"the disk of {folder} has {amount(free)} free and the run needs {amount(need)}: "
            "make room, set keep=1, or name a folder elsewhere"
        )


# What is saved


@contextmanager
def noting_what_is_saved(folder: Path) -> Iterator[None]:
    """What stops a run within (a full disk, an error, Ctrl-C) carries a note: the last checkpoint, and how to go on."""
    try:
        yield
    except (OSError, RuntimeError, KeyboardInterrupt) as stop:
        kept = list_checkpoints(folder / CHECKPOINTS)
        what = f"the last checkpoint is {kept[-1]}" if kept else "no checkpoint was saved yet"
        stop.add_note(f"{what}; go on with {command('resume', folder)}")
        raise
