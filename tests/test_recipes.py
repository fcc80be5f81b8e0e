"""Recipes: fields that can be overridden by name, what is refused, and the way through JSON."""

import dataclasses
import json

import pytest

from ddpm_lib.recipes import RECIPES, from_json, override, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_network_and_schedule(name):
    chosen = recipe(name)
    assert chosen.name == name
    assert chosen.diffusion().T == chosen.T
    network = chosen.network()
    assert (network.null, network.channels, network.width) == (chosen.classes, chosen.channels, chosen.width)


def test_fields_are_overridden_by_name_in_their_own_types():
    changed = override(recipe("digits"), ["T=500", "learning_rate=1e-3", "multipliers=1,2,2", "schedule=linear"])
    expected = {"T": 500, "learning_rate": 0.001, "multipliers": (1, 2, 2), "schedule": "linear"}
    assert dataclasses.asdict(changed) == dataclasses.asdict(recipe("digits")) | expected
    assert changed.diffusion().T == 500 and changed.diffusion().beta[1] == 1e-4  # the linear schedule
    assert override(recipe("digits"), ["attention="]).attention == ()


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
    ],
)
def test_what_is_no_field_or_no_value_is_refused(assignment, complaint):
    with pytest.raises(ValueError, match=complaint):
        override(recipe("digits"), [assignment])


def test_an_unknown_recipe_is_refused_and_the_names_are_listed():
    with pytest.raises(ValueError, match="unknown recipe 'didgits'; there are: digits"):
        recipe("didgits")


def test_a_recipe_survives_json():
    chosen = override(recipe("digits"), ["multipliers=1,2,2", "eta=0.25"])
    assert from_json(json.loads(json.dumps(dataclasses.asdict(chosen)))) == chosen


def test_a_recipe_of_another_version_is_refused_and_the_difference_named():
    fields = dataclasses.asdict(recipe("digits"))
    del fields["eta"]
    with pytest.raises(ValueError, match=r"missing \['eta'\], unknown \[\]"):
        from_json(fields)
    with pytest.raises(ValueError, match=r"missing \['eta'\], unknown \['flavour'\]"):
        from_json(fields | {"flavour": "strong"})
