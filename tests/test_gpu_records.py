"""The records of a GPU, in small: what a piece leaves behind, and that the next one goes on."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_records
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.runs.folder import read_recipe, write_recipe
from ddpm_lib.runs.model import load
from ddpm_lib.runs.recipes import DATA
from ddpm_lib.runs.records import FIELDS, read_record
from ddpm_lib.training.trainer import Trainer


def noise(recipe):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (100, recipe.channels, 8, 8), dtype=torch.uint8, generator=generator)
    return (LabelledImages(images, torch.arange(100) % 10, tuple("abcdefghij")),) * 2


@pytest.fixture
def words(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_records, "LEFT", 0.0)
    for name in ("cifar10", "fashion"):
        monkeypatch.setitem(DATA, name, noise)
    (tmp_path / "data").mkdir()
    places = ["--runs", "runs/gpu", "--out", "data/records", "--weights", "data"]
    return ["--tiny", "--device", "cpu", "--root", "elsewhere", *places]


def test_in_small_everything_runs_and_each_part_leaves_a_record(words, tmp_path, capsys, monkeypatch):
    assert [stage.recipe for stage in gpu_records.STAGES] == ["cifar10_small", "fashion_small", "cifar10"]
    monkeypatch.setattr(gpu_records, "STAGES", gpu_records.STAGES[1:])
    assert gpu_records.main([*words, "--minutes", "0"]) == 0
    assert "the time is over; to go on: python -m benchmarks.gpu_records --root elsewhere" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert gpu_records.main(words) == 0
    assert "all is done" in capsys.readouterr().out
    for name, ships in (("fashion_small", True), ("cifar10", False)):
        training = read_record(tmp_path / f"data/records/train-{name}.json")
        results = training["results"]
        assert results["steps"] == 6 and results["images"] == 48 and results["recipe"]["root"] == "data"
        assert results["held_out_loss"][-1][0] == 6 and len(results["pieces_s"]) == 1
        assert training["command"] == "python -m benchmarks.gpu_records --root elsewhere --tiny"
        rows = read_record(tmp_path / f"data/records/evaluate-{name}.json")["results"]["rows"]
        samples = [row for row in rows if row["what"] == "samples"]
        assert [row["weights"] for row in samples] == ["ema", "ema", "model"]
        best = min(samples[:2], key=lambda row: row["numbers"]["Fréchet distance"]["value"])
        assert samples[2]["scale"] == best["scale"] and (tmp_path / f"data/records/evaluate-{name}.png").is_file()
        assert (tmp_path / f"data/{name}.safetensors").exists() == ships
    assert load(tmp_path / "data/fashion_small.safetensors").recipe.name == "fashion_small"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", None)
        assert gpu_records.main(words) == 0  # nothing is left to do


def test_a_piece_that_ends_in_the_middle_of_training_is_gone_on_with(words, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_records, "STAGES", gpu_records.STAGES[1:2])
    planned, step = gpu_records.planned, Trainer.step
    monkeypatch.setattr(gpu_records, "planned", lambda *a: replace(planned(*a), steps=1000, log_every=1))

    def stopped(trainer):
        if trainer.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # as the piece's own timer does
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stopped)
    assert gpu_records.main(words) == 0
    path = tmp_path / "data/records/train-fashion_small.json"
    assert read_record(path)["results"]["steps"] == 4
    assert not (tmp_path / "data/fashion_small.safetensors").exists()
    folder = tmp_path / "runs/gpu/fashion_small"
    write_recipe(folder, replace(read_recipe(folder), steps=7))
    assert gpu_records.main(words) == 0
    results = read_record(path)["results"]
    assert results["steps"] == 7 and len(results["pieces_s"]) == 2
    assert json.loads(path.read_text())["seconds"] >= sum(results["pieces_s"])


def test_the_piece_s_timer_stops_whatever_runs_at_its_time_planning_included(words, monkeypatch, capsys):
    monkeypatch.setattr(gpu_records, "STAGES", gpu_records.STAGES[1:2])
    monkeypatch.setattr(gpu_records, "planned", lambda *_: time.sleep(0.7))
    monkeypatch.setattr(gpu_records, "run", lambda *_, **__: time.sleep(20))  # a run that is not yet at its first step
    intervals, timer, handler = [], threading.Timer, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(threading, "Timer", lambda *args: intervals.append(args[0]) or timer(*args))
    assert gpu_records.main([*words, "--minutes", "0.015"]) == 0
    assert intervals[0] <= 0.9 - 0.7 and signal.getsignal(signal.SIGTERM) is handler
    assert "the time is over" in capsys.readouterr().out


def test_what_a_killed_piece_left_out_the_next_one_makes_up_for(words, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_records, "STAGES", gpu_records.STAGES[1:2])
    monkeypatch.setattr(gpu_records, "measure_piece", lambda *_: False)
    (tmp_path / "data/records").mkdir()
    record = tmp_path / "data/records/train-fashion_small.json"
    former = {name: None for name in FIELDS} | {"results": {"pieces_s": [1000.0], "loss": []}}
    for kind in ("train", "evaluate"):
        record.with_name(f"{kind}-fashion_small.json").write_text(json.dumps(former))
    with monkeypatch.context() as patch:
        patch.setattr(gpu_records, "record_training", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            gpu_records.main(words)
    assert [path.name for path in record.parent.iterdir()] == []  # those were of another run
    for broken in (lambda: None, lambda: record.write_text(json.dumps(former))):
        broken()
        assert gpu_records.main(words) == 0
        assert load(tmp_path / "data/fashion_small.safetensors").recipe.name == "fashion_small"
        assert read_record(record)["results"]["steps"] == 6


def test_the_data_are_read_once_for_a_curve_and_not_at_all_where_it_is_known(words, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_records, "STAGES", gpu_records.STAGES[1:2])
    monkeypatch.setattr(gpu_records, "TINY", gpu_records.TINY + " T=2 sample_steps=1")
    calls, assess = [], gpu_records.assess

    def stopped(*args, go_on, **options):
        calls.append((options["weights"], len(options["scales"])))
        asked = iter([True] * (len(calls) > 1) + [True, False])  # a scale, then two, then what is left
        return assess(*args, go_on=lambda: next(asked), **options)

    monkeypatch.setattr(gpu_records, "assess", stopped)
    path = tmp_path / "data/records/evaluate-fashion_small.json"
    for scales in (1, 3, 3):
        assert gpu_records.main(words) == 0
        rows = [row for row in read_record(path)["results"]["rows"] if row["what"] == "samples"]
        assert len(rows) == scales
    assert calls == [("ema", 2), ("ema", 2), ("model", 1)]


def test_in_small_nothing_of_the_book_s_is_written_over(words, tmp_path):
    short = words[: words.index("--runs")]
    assert gpu_records.main([*short, "--minutes", "0.02"]) == 0
    assert not list((tmp_path / "data").rglob("*")) and list((tmp_path / "runs/tiny").rglob("*.json"))
