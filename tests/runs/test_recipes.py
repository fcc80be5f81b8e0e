"""Recipes: fields that can be overridden by name, what is refused, and the way through JSON."""

import dataclasses
import inspect
import json

import pytest
import torch

from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs.recipes import NETWORK, RECIPES, from_json, override, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_network_and_schedule(name):
    chosen = recipe(name)
    assert chosen.name == name
    assert chosen.diffusion().T == chosen.T
    with torch.device("meta"):  # shapes alone
        network = chosen.network()
    assert (network.null, network.channels, network.width) == (chosen.classes, chosen.channels, chosen.width)
    out = network(
        torch.empty(2, chosen.channels, chosen.size, chosen.size, device="meta"), torch.ones(2, device="meta").long()
    )
    assert out.shape == (2, chosen.channels, chosen.size, chosen.size)


def test_every_field_of_the_network_reaches_it():
    changes = "width=24 multipliers=1,3 blocks=3 groups=6 attention=4,8 head_channels=12 scale_shift=true dropout=0.25"
    changes += " learned_resampling=false gradient_checkpointing=true classes=7 size=8 channels=2"
    chosen = override(recipe("digits"), changes.split())
    assert NETWORK == tuple(inspect.signature(UNet).parameters)
    assert chosen.network().config == {name: getattr(chosen, name) for name in NETWORK}
    assert all(getattr(chosen, name) != getattr(recipe("digits"), name) for name in set(NETWORK) - {"size"})


def test_cifar10_is_ddpm_s_network_and_course_with_labels():
    published = override(recipe("cifar10"), ["classes=0", "schedule=linear"])
    with torch.device("meta"):
        assert sum(p.numel() for p in published.network().parameters()) == 35_746_307
        assert sum(p.numel() for p in recipe("cifar10").network().parameters()) == 35_746_307 + 11 * 512
    assert (published.batch, published.learning_rate, published.warmup, published.steps) == (128, 2e-4, 5000, 800_000)
    assert published.flip and published.dropout == 0.1 and published.ema_decays[0] == 0.9999
    assert published.diffusion().beta[[1, -1]].tolist() == pytest.approx([1e-4, 0.02])


def test_fields_are_overridden_by_name_in_their_own_types():
    changed = override(recipe("digits"), ["T=500", "learning_rate=1e-3", "multipliers=1,2,2", "schedule=linear"])
    expected = {"T": 500, "learning_rate": 0.001, "multipliers": (1, 2, 2), "schedule": "linear"}
    assert dataclasses.asdict(changed) == dataclasses.asdict(recipe("digits")) | expected
    assert changed.diffusion().T == 500 and changed.diffusion().beta[1] == 1e-4  # the linear schedule
    assert override(recipe("digits"), ["attention="]).attention == ()
    assert override(recipe("digits"), ["ema_decays=0.9,0.5"]).ema_decays == (0.9, 0.5)
    assert [override(recipe("digits"), [f"flip={word}"]).flip for word in ("true", "false")] == [True, False]


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe("digits").steps = 7


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("stepps=7", "unknown field 'stepps'; a recipe has: name, data, size, .*steps, .*scale"),
        ("steps", "expected field=value, got 'steps'"),
        ("steps=many", "field steps expects a whole number, got 'many'"),
        ("steps=1.5", r"field steps expects a whole number, got '1\.5'"),
        ("learning_rate=fast", "field learning_rate expects a number, got 'fast'"),
        ("multipliers=1;2", "field multipliers expects whole numbers and commas, got '1;2'"),
        ("schedule=sigmoid", "schedule must be one of linear, cosine; got 'sigmoid'"),
        ("data=faces", "data must be one of digits.*; got 'faces'"),
        ("steps=0", "steps must be at least 1, got 0"),
        ("batch=-4", "batch must be at least 1, got -4"),
        ("log_every=0", "log_every must be at least 1, got 0"),
        ("save_every=0", "save_every must be at least 1, got 0"),
        ("keep=0", "keep must be at least 1, got 0"),
        ("seed=-1", "seed must be at least 0, got -1"),
        ("flip=yes", "field flip expects true or false, got 'yes'"),
        ("ema_decays=0.9;0.99", "field ema_decays expects numbers and commas, got '0.9;0.99'"),
        ("sample_steps=0", "sample_steps must be at least 1, got 0"),
        ("sample_steps=1001", r"sample_steps must lie in 1\.\.1000, the schedule's T; got 1001"),
        ("T=0", "T must be at least 1, got 0"),
        ("warmup=-1", "warmup must be at least 0, got -1"),
        ("workers=-1", "workers must be at least 0, got -1"),
        ("sample_every=-1", "sample_every must be at least 0, got -1"),
        ("classes=-1", "classes must be at least 0, got -1"),
        ("label_dropout=1.5", r"label_dropout must lie in \[0, 1\], got 1\.5"),
        ("label_dropout=nan", r"label_dropout must lie in \[0, 1\], got nan"),
        ("eta=-0.1", r"eta must lie in \[0, 1\], got -0\.1"),
        ("learning_rate=nan", "learning_rate must be finite, got nan"),
        ("final_rate=inf", "final_rate must be finite, got inf"),
        ("clip_norm=nan", "clip_norm must be finite, got nan"),
        ("weight_decay=inf", "weight_decay must be finite, got inf"),
        ("scale=-inf", "scale must be finite, got -inf"),
        ("save_every=19", "save_every must be at least log_every, 20; got 19"),
    ],
)
def test_what_is_no_field_or_no_value_is_refused(assignment, complaint):
    with pytest.raises(ValueError, match=complaint):
        override(recipe("digits"), [assignment])


def test_an_unknown_recipe_is_refused_and_the_names_are_listed():
    with pytest.raises(ValueError, match="unknown recipe 'didgits'; there are: digits"):
        recipe("didgits")


def test_a_recipe_survives_json():
    chosen = override(recipe("cifar10"), ["multipliers=1,2,2", "eta=0.25", "attention=", "ema_decays=0.9999,0.5"])
    assert from_json(json.loads(json.dumps(dataclasses.asdict(chosen)))) == chosen


def test_a_recipe_of_another_version_is_refused_and_the_difference_named():
    fields = dataclasses.asdict(recipe("digits"))
    del fields["eta"]
    with pytest.raises(ValueError, match=r"missing \['eta'\], unknown \[\]"):
        from_json(fields)
    with pytest.raises(ValueError, match=r"missing \['eta'\], unknown \['flavour'\]"):
        from_json(fields | {"flavour": "strong"})
