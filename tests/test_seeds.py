"""The tool behind the record of chapter 15's seeds, made tiny: what it writes, and that it goes on where it stopped."""

import torch

from ddpm_lib.evaluation.intervals import seed_variances
from ddpm_lib.runs.records import read_record
from tools import seeds

TINY = (
    "steps=2",
    "save_every=20",
    "sample_steps=2",
    "width=8",
    "groups=4",
    "batch=16",
    "attention=",
    "head_channels=0",
)


def test_each_training_is_measured_once_and_the_record_holds_all(tmp_path, monkeypatch):
    options = {"changes": TINY, "draws": 2, "each": 1, "classifier_steps": 2}
    seeds.run(tmp_path, tmp_path / "first.json", seeds=[0], **options)
    first = seeds.measure
    monkeypatch.setattr(seeds, "measure", lambda seed, *rest: first(seed, *rest) if seed else 1 / 0)  # 0 is done
    seeds.run(tmp_path, tmp_path / "record.json", seeds=[0, 1], **options)
    results = read_record(tmp_path / "record.json")["results"]
    assert [training["seed"] for training in results["trainings"]] == [0, 1] and results["samples"] == 10
    values = torch.tensor([[one["coverage"] for one in training["sets"]] for training in results["trainings"]])
    assert values.shape == (2, 2) and seed_variances(values)
    one, other = (training["sets"][0] for training in results["trainings"])
    assert one.keys() == other.keys() and one != other
