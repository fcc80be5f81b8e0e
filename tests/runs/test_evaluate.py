"""The evaluation of a model: its rows, what each number is, that none is measured twice, and what it refuses."""

import dataclasses
import json
import sys

import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.evaluation.features import Features, pixels
from ddpm_lib.evaluation.metrics import frechet_distance
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.classifier import Classifier
from ddpm_lib.runs import assess as assessing
from ddpm_lib.runs import evaluate as evaluating
from ddpm_lib.runs import examiner as examiners
from ddpm_lib.runs.evaluate import Reference, _balanced, find, fingerprint, in_words, settings_of
from ddpm_lib.runs.examiner import examiner, load_examiner, save_examiner
from ddpm_lib.runs.folder import write_recipe
from ddpm_lib.runs.logbook import training_of
from ddpm_lib.runs.model import TrainedModel, export
from ddpm_lib.runs.recipes import DATA, override, recipe
from ddpm_lib.runs.records import write_record
from ddpm_lib.runs.run import new_trainer, save
from ddpm_lib.training.classify import accuracy
from ddpm_lib.training.monitor import append_entry

TINY = override(
    recipe("digits"),
    "data=mnist size=8 classes=3 width=16 multipliers=1 blocks=1 groups=4 attention= head_channels=0 batch=8 steps=1 "
    "warmup=0 log_every=1 save_every=1 sample_steps=2 T=10 scale=1.5".split(),
)
BIRDS = ("crow", "daw", "jay")
METRICS = ["Fréchet distance", "kernel distance", "precision", "recall", "density", "coverage"]
ABOUT = {"seed": 3, "precision": "float32", "weights": "ema"}


def birds(seed, n=60):
    """Bytes: a class is a bright row, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels, images = torch.arange(n) % 3, torch.randint(0, 120, (n, 1, 8, 8), generator=generator)
    images[torch.arange(n), 0, 2 * labels] += 130
    return LabelledImages(images.to(torch.uint8), labels, BIRDS)


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setitem(DATA, "mnist", lambda recipe: (birds(1), birds(2)))
    network, course = {"width": 16, "groups": 4}, {"steps": 30, "batch": 16, "learning_rate": 1e-2}
    monkeypatch.setitem(examiners.SETTINGS, "mnist", (network, course))
    monkeypatch.chdir(tmp_path)


def trained(folder, **changes):
    """A run's folder with one checkpoint of random weights, and its model."""
    chosen = dataclasses.replace(TINY, **changes)
    trainer = new_trainer(chosen, birds(1), torch.device("cpu"))
    for module in (trainer.model, trainer.ema.model):
        for parameter in module.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    trainer.steps = 1
    (folder / "checkpoints").mkdir(parents=True)
    save(trainer, chosen, folder / "checkpoints")
    return TrainedModel(trainer.ema.model.eval(), trainer.schedule, chosen, BIRDS)


def reference(features=None, count=24, judge=None):
    return Reference(birds(1), birds(2), features or pixels(), judge, count)


def test_a_run_is_evaluated_from_the_shell_and_nothing_is_measured_twice(tmp_path, capsys, monkeypatch):
    trained(run := tmp_path / "run")
    words = ["evaluate", str(run), "--count", "24", "--bits", "6", "--scales", "0,1.5", "--device", "cpu"]
    assert main(words) == 0
    out = capsys.readouterr().out
    record = json.loads((run / "evaluation.json").read_text())
    assert record["command"] == "python -m ddpm_lib " + " ".join(words)
    rows = record["results"]["rows"]
    assert [row["what"] for row in rows] == ["training images", "Gaussian per class", "bits", "samples", "samples"]
    assert [row["scale"] for row in rows[3:]] == [0, 1.5] and rows[3]["sampler"] == "DDIM" and rows[3]["steps"] == 2
    for row in rows[:2] + rows[3:]:
        assert set(METRICS) < row["numbers"].keys() and row["count"] == 24
        assert row["features"] == "penultimate layer of " + row["numbers"]["accuracy"]["features"]
        assert all(n["low"] <= n["value"] <= n["high"] and n["how"] for n in row["numbers"].values())
    assert "guidance scale 1.5: DDIM, 2 steps, eta 0.5, seed 0, float32, weights: ema, 24 images" in out
    assert {p.name for p in run.glob("evaluation*.png")} == {"evaluation-s0.png", "evaluation-s1.5.png"}
    with monkeypatch.context() as patch:
        patch.setattr(TrainedModel, "sample", None)
        patch.setattr(assessing, "bits_row", None)
        assert main(words) == 0
    assert json.loads((run / "evaluation.json").read_text())["results"]["rows"] == rows
    assert main([*words, "--seed", "7", "--scales", "1.5", "--weights", "model"]) == 0
    more = json.loads((run / "evaluation.json").read_text())["results"]["rows"][len(rows) :]
    assert [(row["what"], row.get("weights"), row.get("seed")) for row in more] == [
        ("bits", None, None),
        ("samples", "model", 7),
    ]


def test_the_numbers_are_those_of_the_metrics_on_named_features_and_copies_are_seen():
    judge = examiner("mnist", birds(1), birds(2))
    found = reference(judge=judge)
    copies = birds(1).images[:24].float() / 127.5 - 1
    numbers = found.numbers(copies, birds(1).labels[:24])
    held_out = birds(2).images.float() / 127.5 - 1
    assert list(numbers)[:1] == ["accuracy"] and list(numbers)[1:7] == METRICS
    expected = frechet_distance(held_out.flatten(1), copies.flatten(1))
    assert numbers["Fréchet distance"].value == pytest.approx(expected, rel=1e-5)
    assert numbers["Fréchet distance"].features == "raw pixels" and numbers["Fréchet distance"].real == 60
    assert numbers["accuracy"].value == 1 and "classifier of mnist (100.0% right" in numbers["accuracy"].features
    assert numbers["near to training"].value == 1 and numbers["nearer than held-out"].value == 1
    swapped = found.numbers(copies, (birds(1).labels[:24] + 1) % 3)
    assert swapped["accuracy"].value == 0
    new = found.numbers(birds(3).images[:24].float() / 127.5 - 1, birds(3).labels[:24])
    assert new["near to training"].value < 0.4 and new["nearer than held-out"].low < 0.5
    named = reference(Features("twice", lambda x: 2 * x, frechet="FID"), judge=judge).numbers(copies, None)
    assert named["FID"].features == "twice" and "accuracy" not in named


def test_what_samples_are_compared_with_are_training_images_and_gaussians():
    real, gaussian = reference(judge=examiner("mnist", birds(1), birds(2))).rows()
    assert (real["what"], gaussian["what"]) == ("training images", "Gaussian per class")
    for row in (real, gaussian):
        assert row["count"] == 24 and row["features"] == "raw pixels"
        assert row["numbers"]["accuracy"]["value"] > 0.9  # each was drawn for its own label
    labels = torch.tensor([2] * 50 + [0] * 9 + [1] * 8)
    chosen = _balanced(labels, 10)
    assert labels[chosen].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] and len(chosen.unique()) == 10
    with pytest.raises(ValueError, match="9 training images of each class, there are 8 of one"):
        _balanced(labels, 25)
    assert real["numbers"]["near to training"]["value"] == 1
    one = {name: n["value"] for name, n in real["numbers"].items()}
    assert one != {name: n["value"] for name, n in gaussian["numbers"].items()}


def test_settings_tell_models_scales_seeds_and_weights_apart(tmp_path):
    model, other = trained(tmp_path / "one"), trained(tmp_path / "two", seed=5)
    settings = settings_of(model, 1.5, steps=None, eta=None, **ABOUT)
    assert settings == {
        **{"scale": 1.5, "sampler": "DDIM", "steps": 2, "eta": 0.5, "seed": 3, "precision": "float32"},
        **{"weights": "ema", "weights_are": fingerprint(model)},
    }
    assert settings_of(model, 1.5, steps=7, eta=0.0, **ABOUT) == settings | {"steps": 7, "eta": 0.0}
    assert fingerprint(model) != fingerprint(other) and len(fingerprint(model)) == 12
    rows = [{"what": "samples", **settings, "count": 24}]
    assert find(rows, "samples", settings | {"count": 24}) is rows[0]
    changes = {"seed": 4, "scale": 1, "steps": 7, "eta": 1.0, "precision": "bf16", "count": 25}
    for name, value in (changes | {"weights_are": fingerprint(other)}).items():
        assert find(rows, "samples", settings | {"count": 24} | {name: value}) is None
    assert in_words(settings | {"scale": None}).startswith("no labels: DDIM")


def test_a_model_without_labels_is_evaluated_without_an_examiner(tmp_path, capsys):
    trained(run := tmp_path / "run", classes=0)
    words = ["--count", "24", "--bits", "0", "--features", "pixels", "--device", "cpu", "--out", "found.json"]
    assert main(["evaluate", str(run), *words]) == 0
    *_, row = json.loads((tmp_path / "found.json").read_text())["results"]["rows"]
    assert row["scale"] is None and "accuracy" not in row["numbers"] and row["features"] == "raw pixels"
    assert (tmp_path / "found.png").is_file() and "no labels: DDIM" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_an_exported_file_is_evaluated_where_one_is(tmp_path):
    trained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "birds.safetensors")
    words = ["--count", "24", "--bits", "0", "--features", "pixels", "--device", "cpu"]
    assert main(["evaluate", str(tmp_path / "birds.safetensors"), *words]) == 0
    assert (tmp_path / "evaluation-birds.json").is_file() and (tmp_path / "evaluation-birds-s1.5.png").is_file()


def test_the_checkpoint_and_the_weights_that_are_asked_for_are_loaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(assessing, "load", lambda path, **options: asked.append(options) or sys.exit())
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path), "--which", "best", "--weights", "model", "--device", "cpu"])
    assert asked == [{"which": "best", "weights": "model", "device": torch.device("cpu")}]


def test_what_cannot_be_evaluated_is_refused(tmp_path, capsys):
    trained(run := tmp_path / "run")
    for words, message in (
        (["--count", "61"], "expected a count in 20..60, the held-out images; got 61"),
        (["--features", "inception"], "torch-fidelity"),
        (["--bits", "1"], "expected bits of two held-out images at least, or of none; got 1"),
        (["--bits", "-2"], "got -2"),
        (["--steps", "0", "--count", "24", "--bits", "0", "--features", "pixels"], "steps must lie in 1..10"),
    ):
        assert main(["evaluate", str(run), "--device", "cpu", *words]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="features must be one of auto, classifier"):
        assessing.chosen_features("clip", None, torch.device("cpu"))
    with pytest.raises(ValueError, match="without labels there is no classifier"):
        assessing.chosen_features("classifier", None, torch.device("cpu"))


def test_what_was_interrupted_is_gone_on_with_at_the_row_where_it_ended(tmp_path, monkeypatch):
    trained(run := tmp_path / "run")
    options = {"command": "c", "count": 24, "bits": 100, "features": "pixels", "device": torch.device("cpu")}
    with monkeypatch.context() as patch:
        patch.setattr("ddpm_lib.runs.evaluate.gaussian_per_class", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            assessing.assess(run, **options, say=lambda _: None)
    asked = []
    for _ in range(2):
        record = assessing.assess(run, **options, say=lambda _: None, go_on=lambda: asked.append(1) or len(asked) > 1)
    rows = record["results"]["rows"]
    assert [row["what"] for row in rows] == ["training images", "Gaussian per class", "bits", "samples"]
    assert rows[2]["count"] == rows[2]["numbers"]["rate"]["real"] == 60  # all that there are
    (run / "evaluation.json").write_text(json.dumps(record | {"seconds": 1000.0}))
    for change in ({"count": 30}, {"features": "classifier"}):  # of neither is anything known
        more = assessing.assess(run, **options | {"bits": 0} | change, say=lambda _: None)["results"]["rows"]
        assert [row["what"] for row in more[len(rows) :]] == ["training images", "Gaussian per class", "samples"]
        rows = more
    assert json.loads((run / "evaluation.json").read_text())["seconds"] > 1000  # of all calls together
    with pytest.raises(TypeError, match="sede"):
        assessing.assess(run, **options, sede=3)


def test_a_record_of_something_else_is_neither_overwritten_nor_gone_on_with(tmp_path, capsys):
    trained(run := tmp_path / "run")
    trained(other := tmp_path / "other", classes=0)
    words = ["--count", "24", "--bits", "0", "--features", "pixels", "--device", "cpu", "--out", "found.json"]
    assert main(["evaluate", str(other), *words, "--scales", "1"]) == 1
    assert "knows no classes" in capsys.readouterr().err
    assert main(["evaluate", str(other), *words]) == 0
    before = (tmp_path / "found.json").read_text()
    assert main(["evaluate", str(run), *words]) == 1
    assert "found.json holds the evaluation of something else (parameters " in capsys.readouterr().err
    assert (tmp_path / "found.json").read_text() == before
    write_record(tmp_path / "found.json", "c", {"seconds": [1]}, 0.0)
    assert main(["evaluate", str(run), *words]) == 1
    assert "found.json is no evaluation" in capsys.readouterr().err


def test_images_of_one_s_own_have_an_examiner_of_their_own(monkeypatch):
    names = []
    monkeypatch.setattr(assessing, "examiner", lambda name, *_, **__: names.append(name))
    for data, seed in (("folder", 1), ("folder", 1), ("folder", 2), ("mnist", 2)):
        assessing._judge(data, birds(seed), birds(2), torch.device("cpu"), False)
    assert names[0] == names[1] != names[2] and names[0].startswith("folder-") and names[3] == "mnist"


def test_a_covariance_of_large_images_is_never_made(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluating, "WIDE", 15)
    monkeypatch.setattr(evaluating, "gaussian_per_class", lambda x, y, *_: seen.append((x, y)) or x[:24].clamp(-1, 1))
    list(reference().rows(["training images"]))
    assert seen[0][0].shape == (45, 1, 8, 8) and seen[0][1].bincount().tolist() == [15] * 3


def test_an_examiner_is_trained_once_kept_in_half_precision_and_a_shipped_one_comes_first(tmp_path, monkeypatch):
    state = torch.random.get_rng_state()
    first = examiner("mnist", birds(1), birds(2), folder="kept")
    assert torch.equal(torch.random.get_rng_state(), state) and first.accuracy > 0.9
    assert all(torch.equal(p, p.half().float()) for p in first.classifier.parameters())
    path = tmp_path / "kept" / "mnist-8.safetensors"
    assert load_examiner(path).accuracy == first.accuracy and path.is_file()
    monkeypatch.setattr(examiners, "train_classifier", None)
    again = examiner("mnist", birds(1), birds(2), folder="kept")
    assert again.name == first.name == f"the book's classifier of mnist ({first.accuracy:.1%} right on held-out images)"
    (tmp_path / "kept").rename(tmp_path / "shipped")
    monkeypatch.setattr(examiners, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "elsewhere").mkdir()
    save_examiner(Classifier(**first.classifier.config).eval(), "mnist", birds(2), tmp_path / "elsewhere" / path.name)
    assert examiner("mnist", birds(1), birds(2), folder="elsewhere").accuracy == first.accuracy
    with pytest.raises(ValueError, match="has no labels"):
        examiner("mnist", LabelledImages(birds(1).images), birds(2))


def test_an_examiner_s_accuracy_is_that_of_the_weights_in_the_file(tmp_path):
    """Full weights find the second label everywhere; in half precision the two are equal, and the first is taken."""
    network = Classifier(size=8, channels=1, classes=3, width=16, groups=4).eval()
    network.head.bias.data = torch.tensor([1.0, 1.0001, 0.0])
    images, labels = birds(2).images, torch.tensor([0, 1, 1]).repeat(20)
    assert accuracy(network, images, labels) == pytest.approx(2 / 3)
    save_examiner(network, "mnist", LabelledImages(images, labels), tmp_path / "mnist-8.safetensors")
    found = load_examiner(tmp_path / "mnist-8.safetensors")
    assert found.accuracy == accuracy(found.classifier, images, labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("size", "levels"), [(12, 3), (10, 2), (9, 1)])
def test_an_examiner_has_as_many_levels_as_the_size_allows(size, levels, monkeypatch):
    network = {"width": 8, "groups": 2, "multipliers": (1, 1, 1)}
    monkeypatch.setitem(examiners.SETTINGS, "cifar10", (network, {"steps": 1, "batch": 4}))
    images = LabelledImages(torch.zeros(6, 3, size, size), torch.tensor([0, 1, 2] * 2))
    found = examiner("folder-1", images, images, folder="kept").classifier
    assert found.config["multipliers"] == [1] * levels and found.classes == 3


def test_a_file_of_a_denoiser_is_no_examiner(tmp_path):
    trained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no classifier"):
        load_examiner(tmp_path / "model.safetensors")


def test_a_run_s_log_tells_how_it_was_trained(tmp_path):
    write_recipe(tmp_path, dataclasses.replace(TINY, batch=8, root="/my/data"))
    with pytest.raises(ValueError, match="nothing was trained yet"):
        training_of(tmp_path)
    for step in range(1, 131):
        entry = {"step": 2 * step, "loss": float(step), "images_per_s": 16.0 if step % 2 else 4.0, "memory_gb": 1.5}
        append_entry(tmp_path / "log.jsonl", entry | ({"held_out_loss": 0.25} if step == 130 else {}))
    found = training_of(tmp_path)
    assert found["recipe"]["root"] == "data" and found["steps"] == 260 and found["images"] == 2080
    assert found["hours"] == pytest.approx(65 * (1 + 4) / 3600, abs=1e-3)  # 16 images at 16/s, then 16 at 4/s
    assert found["loss"][-1] == [260, 129.0] and found["loss"][0] == [2, 1.0] and len(found["loss"]) == 44
    assert found["held_out_loss"] == [[260, 0.25]] and found["memory_gb"] == 1.5
