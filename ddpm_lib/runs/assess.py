"""The whole evaluation of a run: what is measured is written at once, and not measured again."""

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ddpm_lib import plot
from ddpm_lib.devices import default_device
from ddpm_lib.evaluation.features import EFFICIENTNET, Features, classifier_features, efficientnet, inception, pixels
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.decoded import some_of
from ddpm_lib.images.fingerprint import fingerprint as of_data
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.runs.choices import DATA, FEATURES
from ddpm_lib.runs.evaluate import Reference, Row, bits_row, evaluate_scale, find, fingerprint, settings_of, table
from ddpm_lib.runs.examiner import SETTINGS, Examiner, examiner
from ddpm_lib.runs.folder import LOG
from ddpm_lib.runs.logbook import training_of
from ddpm_lib.runs.model import load
from ddpm_lib.runs.recipes import override
from ddpm_lib.runs.records import read_record, write_record
from ddpm_lib.runs.shipped import located
from ddpm_lib.training.monitor import read_log

FILES = 10_000  # images that are looked at, of a data set in files


def assess(
    source: str | Path,
    *,
    command: str,
    out: str | Path | None = None,
    pictures: str | Path | None = None,
    scales: Sequence[float] = (),
    count: int = 1000,
    bits: int = 100,
    features: str = "auto",
    examine: bool = True,
    root: str | None = None,
    weights: str = "ema",
    which: str = "last",
    device: torch.device | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
    go_on: Callable[[], bool] = lambda: True,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a run folder, a checkpoint, an exported file or a shipped model; returns the record that it wrote.

    command: what was typed, for the record. out: the record's file, `evaluation.json` in the run's folder where None (a
    file's is evaluation-NAME.json here). pictures: the folder for one of each scale's samples, out's where None.
    scales: () for the recipe's; several give a curve. count: samples of each scale. bits: held-out images whose bits
    per dimension are bounded, if there are so many; 0 for none. features: "auto" takes those of the data set's
    classifier, without labels EfficientNet's where it is installed, else pixels. root: where the data lie, if not where
    the recipe says; of a data set in files, 10,000 images are looked at. examine: whether a classifier judges labels,
    which it must be trained for where none is at hand. go_on: asked before each scale; where it says
    no, those left are left out. options: steps, eta, seed, precision, see `settings_of`.
    Rows that the file holds already are not measured again, so a call that was interrupted is simply repeated.
    Raises what `load` and the data sets raise, ValueError for counts that the data do not allow, for scales where
    there are no labels, and for a file that holds something else than an evaluation of this model on these data.
    """
    started, device = time.perf_counter(), device or default_device()
    path = located(source)
    model = load(path, weights=weights, which=which, device=device)
    settings_of(model, None, weights=weights, **options)  # a wrong word is said before anything is measured
    recipe = override(model.recipe, [f"root={root}"] if root else [])
    train, held_out = (_decoded(part, recipe.workers) for part in DATA[recipe.data](recipe))
    if bits < 0 or bits == 1:
        raise ValueError(f"expected bits of two held-out images at least, or of none; got {bits}")
    bits = min(bits, len(held_out))
    if scales and not recipe.classes:
        raise ValueError("this network knows no classes: there is no guidance whose scale could be chosen")
    out = Path(out) if out else (path / "evaluation.json" if path.is_dir() else Path(f"evaluation-{path.stem}.json"))
    about = {"model": recipe.name, "data": recipe.data, "train": len(train), "held_out": len(held_out)}
    about["parameters"] = sum(p.numel() for p in model.network.parameters())
    before = read_record(out) if out.is_file() else {"results": about | {"rows": []}, "seconds": 0.0}
    rows = _rows_of(before["results"], about, out)
    judge = _judge(recipe.data, train, held_out, device, progress) if recipe.classes and examine else None
    reference = Reference(train, held_out, chosen_features(features, judge, device), judge, count)
    if path.is_dir() and read_log(path / LOG):
        about["training"] = training_of(path)

    def keep(row: Row) -> None:
        rows.append(row)
        say(table([row]))
        write_record(out, command, about | {"rows": rows}, started - before["seconds"], device=device)

    for row in reference.rows([one["what"] for one in rows if find([one], one["what"], reference.about)]):
        keep(row)
    if bits and find(rows, "bits", {"count": bits, "weights_are": fingerprint(model)}) is None:
        keep(bits_row(model, reference, bits))
    asked = [None] if not recipe.classes else list(scales or [recipe.scale])
    for scale in asked:
        settings = settings_of(model, scale, weights=weights, **options)
        if (known := find(rows, "samples", settings | reference.about)) is not None:
            say(table([known]))
            continue
        if not go_on():
            break
        row, picture = evaluate_scale(model, reference, settings, progress)
        name = f"{out.stem}{'' if scale is None else f'-s{scale:g}'}{'' if weights == 'ema' else f'-{weights}'}.png"
        plot.save(picture, Path(pictures or out.parent) / name)
        keep(row)
    return read_record(out)


def chosen_features(name: str, judge: Examiner | None, device: torch.device) -> Features:
    """The features of this name, see `assess`."""
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}; got {name!r}")
    if name == "auto":
        name = "classifier" if judge else "efficientnet" if all(map(find_spec, EFFICIENTNET)) else "pixels"
    if name == "classifier":
        if judge is None:
            raise ValueError("without labels there is no classifier whose features one could take")
        return classifier_features(judge.classifier, judge.name)
    return {"efficientnet": efficientnet, "inception": inception, "pixels": pixels}[name](device)


def _decoded(data: LabelledImages | ImageFiles, workers: int) -> LabelledImages:
    return some_of(data, FILES, workers) if isinstance(data, ImageFiles) else data


def _rows_of(results: Any, about: Row, out: Path) -> list[Row]:
    """The rows of an evaluation that goes on. Raises ValueError where a file's results are of something else."""
    if not (isinstance(results, dict) and "rows" in results):
        raise ValueError(f"{out} is no evaluation, and is not overwritten: name another file")
    if other := [f"{name} {results.get(name)}" for name in about if results.get(name) != about[name]]:
        raise ValueError(f"{out} holds the evaluation of something else ({', '.join(other)}): name another file")
    return results["rows"]


def _judge(
    data: str, train: LabelledImages, held_out: LabelledImages, device: torch.device, progress: bool
) -> Examiner:
    known = data if data in SETTINGS else f"{data}-{of_data(train)['hash'][:8]}"  # of other images, another classifier
    return examiner(known, train, held_out, device=device, progress=progress)
