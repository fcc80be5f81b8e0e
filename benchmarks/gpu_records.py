"""Trains the book's larger models on a GPU, and measures them: in pieces, each of which leaves valid records.

    make gpu-records                                              # until all is done
    python -m benchmarks.gpu_records --root data --minutes 9      # a piece; the next call goes on where this one ended
    python -m benchmarks.gpu_records --tiny                       # everything in small, to see it run

The data sets lie in `data/` (or --root). In this order: the small model of CIFAR-10 and its curve against the guidance
scale, that of Fashion-MNIST and its curve, and DDPM's own network for CIFAR-10. Of each, `train-NAME.json` in
`data/records/` says how it was trained, and `evaluate-NAME.json` what it is worth; runs lie in `runs/gpu/`. The small
models' weights, in fp16, go to `data/NAME.safetensors`. How many steps fit into a stage's minutes is measured before
its first one.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddpm_lib.devices import default_device
from ddpm_lib.runs.assemble import load_data, new_trainer
from ddpm_lib.runs.assess import assess
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.duration import time_steps, wait
from ddpm_lib.runs.evaluate import find, settings_of
from ddpm_lib.runs.folder import is_finished, read_recipe
from ddpm_lib.runs.logbook import training_of
from ddpm_lib.runs.model import CHECKPOINTS, export, load
from ddpm_lib.runs.recipes import Recipe, override, recipe
from ddpm_lib.runs.records import read_record, write_record
from ddpm_lib.runs.run import resume, run
from ddpm_lib.training.checkpoint import list_checkpoints

COMMAND = "python -m benchmarks.gpu_records"
SCALES = (0.0, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
SHORT = "learning_rate=8e-4 warmup=500 final_rate=0 ema_decays=0.999,0.9995 sample_every=0 keep=1 accumulate=0"
LEFT = 60.0  # seconds that a piece must have left for another part to begin
TINY = "size=8 width=16 multipliers=1 blocks=1 groups=4 attention= head_channels=0 batch=8 T=20 sample_steps=2"


@dataclass(frozen=True)
class Stage:
    """A model: its recipe, the minutes it may train, what is changed in the recipe, and the curve that is measured."""

    recipe: str
    minutes: float
    changes: str
    scales: tuple[float, ...] = SCALES
    ships: bool = True


STAGES = (
    Stage("cifar10_small", 10, f"batch=512 {SHORT}"),
    Stage("fashion_small", 10, f"batch=512 {SHORT}"),
    Stage("cifar10", 30, f"batch=512 {SHORT} learning_rate=4e-4", (1.0, 1.5, 2.0), ships=False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one piece; the exit status is 0 whether or not all is done, which the last line says."""
    options = parser().parse_args(arguments)
    places = [Path("runs/tiny")] * 3 if options.tiny else [Path("runs/gpu"), Path("data/records"), Path("data")]
    for name, place in zip(("runs", "out", "weights"), places, strict=True):
        setattr(options, name, getattr(options, name) or place)
    device = torch.device(options.device) if options.device else default_device()
    until = time.monotonic() + 60 * options.minutes
    for stage in STAGES:
        for part in (train_piece, measure_piece):
            if not part(stage, options, device, until):
                print(f"the time is over; to go on: {called(options)}")
                return 0
    print(f"all is done: the records lie in {options.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    parser.add_argument("--root", default="data", help="where the data sets lie (default data)")
    parser.add_argument("--minutes", type=float, default=1e4, help="of this piece (default: until all is done)")
    parser.add_argument("--runs", type=Path, help="where the runs lie (default runs/gpu)")
    parser.add_argument("--out", type=Path, help="where records go (default data/records)")
    parser.add_argument("--weights", type=Path, help="where weights go (default data)")
    parser.add_argument("--count", type=int, default=10_000, help="samples of each scale (default 10000)")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny networks and few samples, in runs/tiny, to see it run"
    )
    return parser


def called(options: argparse.Namespace) -> str:
    """The command of a piece, as a record tells it."""
    words = [COMMAND, f"--root {options.root}"] + [f"--minutes {options.minutes:g}"] * (options.minutes < 1e4)
    return " ".join(words + ["--tiny"] * options.tiny)


def train_piece(stage: Stage, options: argparse.Namespace, device: torch.device, until: float) -> bool:
    """Train until the stage is done (True) or the time is over (False); its record is written either way."""
    folder = options.runs / stage.recipe
    started, device_options = time.perf_counter(), {"device": device, "progress": sys.stderr.isatty()}
    if (begun := bool(list_checkpoints(folder / CHECKPOINTS))) and is_finished(folder, read_recipe(folder)):
        if not is_recorded(stage, options):  # the piece that finished it was killed before it could say so
            record_training(stage, options, device, started)
        return True
    if until - time.monotonic() < LEFT:
        return False
    try:
        chosen = None if begun else planned(stage, options, device)
        with stopped_at(until - LEFT / 2):
            if begun:
                resume(folder, [f"root={options.root}"], **device_options)
            else:
                folder.parent.mkdir(parents=True, exist_ok=True)
                run(chosen, folder, **device_options)
    except KeyboardInterrupt:
        pass  # the last step is saved
    if not list_checkpoints(folder / CHECKPOINTS):
        return False
    if not begun:  # what is there is of another run of this name
        for kind in ("train", "evaluate"):
            (options.out / f"{kind}-{stage.recipe}.json").unlink(missing_ok=True)
    record_training(stage, options, device, started)
    return is_finished(folder, read_recipe(folder))


@contextmanager
def stopped_at(moment: float) -> Iterator[None]:
    """Within, SIGTERM comes at this value of time.monotonic(): training ends its step, all else KeyboardInterrupt."""

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    wait_for = max(0.0, moment - time.monotonic())
    timer = threading.Timer(wait_for, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # if it rings now, then here
        signal.signal(signal.SIGTERM, before)


def planned(stage: Stage, options: argparse.Namespace, device: torch.device) -> Recipe:
    """The stage's recipe with nothing left open, and with so many steps as its minutes hold on this device."""
    chosen = override(recipe(stage.recipe), [*stage.changes.split(), f"root={options.root}"])
    if options.tiny:
        chosen = override(chosen, TINY.split())
    chosen = decided(chosen, device, print)
    if options.tiny:
        steps = 6
    else:
        trainer = new_trainer(chosen, load_data(chosen)[0], device)
        for _ in range(10):
            wait(trainer.step())
        steps = max(100, int(0.95 * 60 * stage.minutes / time_steps(trainer)))
    every = max(1, min(100, steps // 3))
    return replace(
        chosen, steps=steps, warmup=min(500, steps // 10), log_every=every, save_every=max(every, steps // 6)
    )


def record_training(stage: Stage, options: argparse.Namespace, device: torch.device, started: float) -> None:
    """What the log says of a run so far, and how long its pieces took. A finished one's weights are written first."""
    folder = options.runs / stage.recipe
    if stage.ships and is_finished(folder, read_recipe(folder)):
        shipped = options.weights / f"{stage.recipe}.safetensors"
        shipped.unlink(missing_ok=True)
        export(folder, shipped)
    path = options.out / f"train-{stage.recipe}.json"
    pieces = read_record(path)["results"]["pieces_s"] if path.is_file() else []
    pieces = [*pieces, round(time.perf_counter() - started, 1)]
    results = training_of(folder) | {"pieces_s": pieces}
    write_record(path, called(options), results, time.perf_counter() - sum(pieces), device=device)


def is_recorded(stage: Stage, options: argparse.Namespace) -> bool:
    """Whether the record tells of the last step of this very run."""
    path, now = options.out / f"train-{stage.recipe}.json", training_of(options.runs / stage.recipe)
    return path.is_file() and read_record(path)["results"]["loss"] == now["loss"]


def measure_piece(stage: Stage, options: argparse.Namespace, device: torch.device, until: float) -> bool:
    """The curve, scale by scale, then the raw weights at the scale with the smallest Fréchet distance."""
    out, folder = options.out / f"evaluate-{stage.recipe}.json", options.runs / stage.recipe
    scales = stage.scales[:2] if options.tiny else stage.scales
    count, bits = (24, 4) if options.tiny else (options.count, 500)
    settings = {"seed": 0, "precision": "bf16" if device.type == "cuda" else "float32"}
    about = {"out": out, "count": count, "bits": bits, "device": device, "pictures": folder, "root": options.root}

    if options.tiny:  # a classifier of photographs takes long on a CPU
        about |= {"features": "pixels", "examine": False}

    def go_on() -> bool:
        return until - time.monotonic() >= LEFT

    def stored(weights: str, scales: Sequence[float]) -> list[dict | None]:
        rows = read_record(out)["results"]["rows"] if out.is_file() else []
        model = load(folder, weights=weights, device=torch.device("cpu"))
        wanted = [settings_of(model, scale, weights=weights, **settings) | {"count": count} for scale in scales]
        return [find(rows, "samples", one) for one in wanted]

    def measured(weights: str, scales: Sequence[float]) -> list[dict | None]:
        if not all(stored(weights, scales)) and go_on():
            options_of = about | settings | {"command": called(options), "go_on": go_on}
            assess(folder, scales=scales, weights=weights, **options_of)
        return stored(weights, scales)

    rows = measured("ema", scales)
    if not all(rows):
        return False
    best = min(rows, key=lambda row: next(iter(_distances(row)))["value"])["scale"]
    shutil.copy(folder / f"{out.stem}-s{best:g}.png", out.with_suffix(".png"))
    return all(measured("model", [best]))


def _distances(row: dict) -> list[dict]:
    return [number for name, number in row["numbers"].items() if name in ("Fréchet distance", "FID")]


if __name__ == "__main__":
    sys.exit(main())
