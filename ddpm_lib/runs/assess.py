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
    root: str | None = None,
    weights: str = "ema",
    which: str = "last",
    device: torch.device | None = None,
    say: Callable[[str], None] = print,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a run folder, a checkpoint, an exported file or a shipped model; returns the record that it wrote.

    command: what was typed, for the record. out: the record's file, `evaluation.json` in the run's folder where None (a
    file's is evaluation-NAME.json here). pictures: the folder for one of each scale's samples, out's where None.
    scales: () for the recipe's; several give a curve. count: samples of each scale. bits: held-out images whose bits
    per dimension are bounded, 0 for none. features: "auto" takes those of the data set's classifier, without labels
    EfficientNet's where it is installed, else pixels. root: where the data lie, if not where the recipe says; of a data
    set in files, 10,000 images are looked at. options: steps, eta, seed, precision.
    Rows that the file holds already are not measured again, so a call that was interrupted is simply repeated.
    Raises what `load` and the data sets raise, ValueError for a count that the data do not allow.
    """
    started, device = time.perf_counter(), device or default_device()
    path = located(source)
    model = load(path, weights=weights, which=which, device=device)
    recipe = override(model.recipe, [f"root={root}"] if root else [])
    train, held_out = (_decoded(part, recipe.workers) for part in DATA[recipe.data](recipe))
    judge = _judge(recipe.data, train, held_out, path, device, progress) if recipe.classes else None
    reference = Reference(train, held_out, chosen_features(features, judge, device), judge, count)
    out = Path(out) if out else (path / "evaluation.json" if path.is_dir() else Path(f"evaluation-{path.stem}.json"))
    before = read_record(out) if out.is_file() else {"results": {"rows": []}, "seconds": 0.0}
    rows: list[Row] = before["results"]["rows"]
    about = {"model": recipe.name, "data": recipe.data, "train": len(train), "held_out": len(held_out)}
    about["parameters"] = sum(p.numel() for p in model.network.parameters())

    if path.is_dir() and read_log(path / LOG):
        about["training"] = training_of(path)

    def keep(row: Row) -> None:
        rows.append(row)
        say(table([row]))
        write_record(out, command, about | {"rows": rows}, started - before["seconds"], device=device)

    if find(rows, "Gaussian per class", reference.about) is None:
        for row in reference.rows():
            keep(row)
    if bits and find(rows, "bits", {"count": bits, "weights_are": fingerprint(model)}) is None:
        keep(bits_row(model, reference, bits))
    asked = [None] if not recipe.classes else list(scales or [recipe.scale])
    for scale in asked:
        settings = settings_of(model, scale, weights=weights, **options)
        if (known := find(rows, "samples", settings | reference.about)) is not None:
            say(table([known]))
            continue
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


def _judge(
    data: str, train: LabelledImages, held_out: LabelledImages, path: Path, device: torch.device, progress: bool
) -> Examiner:
    known = data if data in SETTINGS else f"{path.stem}-images"  # of another folder, another classifier
    return examiner(known, train, held_out, device=device, progress=progress)
