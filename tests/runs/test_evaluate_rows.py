"""The rows of an evaluation, by an independent route: of which images a number is, and how they were drawn."""

import dataclasses

import pytest
import torch
from scipy import stats

from ddpm_lib.diffusion.schedule import linear_schedule
from ddpm_lib.evaluation.features import pixels
from ddpm_lib.evaluation.intervals import jackknife_std
from ddpm_lib.evaluation.kernel import kernel_distance
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.runs import evaluate
from ddpm_lib.runs.evaluate import Reference, bits_row, evaluate_scale, settings_of
from ddpm_lib.runs.examiner import Examiner
from ddpm_lib.runs.model import TrainedModel
from ddpm_lib.runs.recipes import recipe

LABELS = torch.arange(60) % 3


def noise(seed):
    images = torch.randint(0, 256, (60, 1, 2, 2), generator=torch.Generator().manual_seed(seed))
    return LabelledImages(images.to(torch.uint8), LABELS)


def signed(data):
    return to_signed(data.images)


def some_held_out(count=30):
    return signed(noise(2))[torch.randperm(60, generator=torch.Generator().manual_seed(60))[:count]]


def reference(judge=None):
    return Reference(noise(1), noise(2), pixels(), judge, 30)


@pytest.fixture
def model():
    chosen = dataclasses.replace(recipe("digits"), classes=3)
    return TrainedModel(torch.nn.Linear(1, 1), linear_schedule(10), chosen)


def test_each_number_is_of_its_own_two_sets_and_of_its_own_neighbours():
    """Independent route: all pairs of distances at once."""
    images = signed(noise(3))[:30]
    numbers = reference().numbers(images, LABELS[:30], fixed=True)
    some, fake = (x.flatten(1).double() for x in (some_held_out(), images))
    between, train = torch.cdist(some, fake), signed(noise(1)).flatten(1).double()

    def radius(x, k):
        return torch.cdist(x, x).kthvalue(k + 1).values

    within = between <= radius(some, 5)[:, None]
    (x, y) = (torch.cdist(points, train).min(1).values for points in (fake, some))
    expected = {
        "precision": (between <= radius(some, 3)[:, None]).any(0).double().mean(),
        "recall": (between <= radius(fake, 3)).any(1).double().mean(),
        "density": within.sum() / (5 * 30),
        "coverage": within.any(1).double().mean(),
        "kernel distance": kernel_distance(some, fake),
        "near to training": (x < y.quantile(0.05)).double().mean(),
        "nearer than held-out": (x[:, None] < y).double().mean(),
    }
    for name, value in expected.items():
        assert numbers[name].value == pytest.approx(float(value), abs=1e-6), name
        assert numbers[name].real == numbers[name].fake == 30
    nearer = numbers["nearer than held-out"]
    assert nearer.high - nearer.value == pytest.approx(1.96 * (61 / (12 * 900)) ** 0.5)


def test_an_interval_leaves_out_how_many_of_each_class_there_were_where_that_was_fixed():
    images, some = signed(noise(3))[:30], some_held_out().flatten(1)
    for fixed, groups, strata in ((True, 10, LABELS[:30]), (False, 20, None)):
        found = reference().numbers(images, LABELS[:30], fixed)["kernel distance"]
        std = jackknife_std(lambda f: kernel_distance(some, f), images.flatten(1), groups, strata=strata)
        assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, groups - 1) * std)


def test_the_examiner_sees_what_the_features_see(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate, "accuracy", lambda c, x, y: seen.append(x) or 0.5)
    images = 3 * signed(noise(3))[:30]
    reference(Examiner(None, 1.0, "noise")).numbers(images, LABELS[:30])
    assert torch.equal(seen[0], images.clamp(-1, 1))


def test_the_rows_to_compare_with_are_of_training_images_with_their_own_labels(monkeypatch):
    asked = []
    monkeypatch.setattr(Reference, "numbers", lambda self, x, y, fixed=False: asked.append((x, y, fixed)) or {})
    drawn = torch.zeros(30, 1, 2, 2)
    monkeypatch.setattr(evaluate, "gaussian_per_class", lambda x, y, wanted, g: asked.append((x, y, wanted)) or drawn)
    list(reference().rows())
    (images, labels, fixed), (fitted, classes, wanted), gaussian = asked
    same = (images[:, None] == signed(noise(1))).flatten(2).all(2)
    assert same.any(1).all() and torch.equal(LABELS[same.int().argmax(1)], labels)
    assert labels.bincount().tolist() == [10] * 3 and torch.equal(wanted, labels)
    assert torch.equal(fitted, signed(noise(1))) and torch.equal(classes, LABELS)
    assert gaussian[0] is drawn and torch.equal(gaussian[1], labels) and fixed and gaussian[2]


def test_a_scale_s_row_is_drawn_as_its_settings_say_and_shown_with_the_nearest_training_images(model, monkeypatch):
    asked, shown, images = [], [], signed(noise(1))[-30:]
    monkeypatch.setattr(TrainedModel, "sample", lambda _, labels, **o: asked.append((labels.tolist(), o)) or images)
    monkeypatch.setattr(evaluate.plot, "grid", lambda x, *_, **__: shown.append(x))
    options = {"steps": 7, "eta": 0.25, "seed": 9, "precision": "bf16"}
    settings, found = settings_of(model, 2.5, **options, weights="model"), reference()
    row, _ = evaluate_scale(model, found, settings)
    assert asked == [([0, 1, 2] * 10, options | {"scale": 2.5, "progress": False})]
    assert {name: row[name] for name in settings} == settings
    assert row["numbers"] == {
        name: dataclasses.asdict(number) for name, number in found.numbers(images, LABELS[:30], fixed=True).items()
    }
    assert torch.equal(shown[0], torch.cat([images[:3], images[:3], images[3:6], images[3:6]]))


@pytest.mark.parametrize(("data", "levels"), [("digits", 17), ("mnist", 256)])
def test_bits_are_of_held_out_images_with_their_labels_in_their_own_grey_levels(model, monkeypatch, data, levels):
    asked = []
    monkeypatch.setattr(evaluate, "measured_bits", lambda n, s, x, g, **options: asked.append((x, options)) or {})
    model = dataclasses.replace(model, recipe=dataclasses.replace(model.recipe, data=data))
    row = bits_row(model, reference(), 12)
    images, options = asked[0]
    assert torch.equal(images, some_held_out(12)) and options["levels"] == levels and row["count"] == 12
    same = (images[:, None] == signed(noise(2))).flatten(2).all(2)
    assert torch.equal(LABELS[same.int().argmax(1)], options["labels"])
