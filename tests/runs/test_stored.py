"""Recipes in JSON: what old files lack has the value of their time, and what nobody knows is refused by name."""

import dataclasses
import json

import pytest
import torch

from ddpm_lib.runs import run as runs
from ddpm_lib.runs import stored
from ddpm_lib.runs.model import CHECKPOINTS, load
from ddpm_lib.runs.recipes import RECIPES, Recipe, override, recipe
from ddpm_lib.runs.run import resume, run
from ddpm_lib.runs.stored import ADDED, VERSION, from_json, to_json
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")
# A file of the time before there was a version, as it was written then.
FIRST = """{"name": "digits", "data": "digits", "size": 8, "channels": 1, "classes": 10, "root": "data", "flip": false,
"width": 32, "multipliers": [1, 2], "blocks": 1, "groups": 8, "attention": [4], "head_channels": 16,
"scale_shift": false, "learned_resampling": true, "dropout": 0.0, "gradient_checkpointing": false,
"schedule": "cosine", "T": 1000, "steps": 640, "batch": 128, "learning_rate": 0.004, "warmup": 20, "final_rate": 0.0,
"weight_decay": 0.0, "clip_norm": 1.0, "ema_decays": [0.99], "label_dropout": 0.1, "seed": 0, "workers": 4,
"log_every": 20, "save_every": 200, "keep": 2, "sample_every": 0, "sample_steps": 50, "eta": 0.5, "scale": 2.0}"""


def test_a_file_of_the_first_days_is_read_as_it_was_meant():
    old = from_json(json.loads(FIRST))
    then = json.loads(FIRST)
    for name, value in then.items():
        assert getattr(old, name) == (tuple(value) if isinstance(value, list) else value), name
    later = {name: value for fields in ADDED.values() for name, value in fields.items()}
    assert {name: getattr(old, name) for name in later} == later
    missing = {field.name for field in dataclasses.fields(Recipe)} - then.keys() - later.keys()
    assert not missing, f"give ADDED a new version with the value that {missing} had before there was such a field"
    assert list(ADDED) == list(range(1, VERSION + 1))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    chosen = override(recipe(name), ["multipliers=1,2,2", "eta=0.25", "attention=", "ema_decays=0.9999,0.5"])
    text = json.dumps(to_json(chosen))
    assert from_json(json.loads(text)) == chosen
    assert json.loads(text)["version"] == VERSION


@pytest.fixture
def later(monkeypatch):
    """A time in which version 2 brought the field eta, too, and version 3 the field keep."""
    monkeypatch.setattr(stored, "ADDED", {1: {}, 2: stored.ADDED[2] | {"eta": 0.125}, 3: {"keep": 7}})
    monkeypatch.setattr(stored, "VERSION", 3)


def without(*names, **more):
    today = json.loads(FIRST) | {name: value for fields in ADDED.values() for name, value in fields.items()}
    return {name: value for name, value in today.items() if name not in names} | more


def test_a_field_that_an_old_file_lacks_has_the_value_that_it_had_then(later):
    for version in ({}, {"version": 0}, {"version": 1}):
        old = from_json(without("eta", "keep", **version))
        assert (old.eta, old.keep) == (0.125, 7)
    old = from_json(without("keep", version=2))
    assert (old.eta, old.keep) == (0.5, 7)
    assert from_json(without("eta", version=1)).keep == 2  # what a file says is what holds
    with pytest.raises(ValueError, match=r"not a recipe of version 2: missing \['eta'\], unknown \[\]"):
        from_json(without("eta", "keep", version=2))
    with pytest.raises(ValueError, match=r"not a recipe of version 3: missing \['eta', 'keep'\]"):
        from_json(without("eta", "keep", version=3))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (without("steps"), r"version 0: missing \['steps'\], unknown \[\]; the file is not from a newer ddpm_lib"),
        (without(flavour="strong"), r"version 0: missing \[\], unknown \['flavour'\]; the file is not from a newer"),
        (without("eta", flavour="strong", version=1), r"version 1: missing \['eta'\], unknown \['flavour'\]"),
        (
            without(flavour="strong", version=99),
            r"recipe version 99, from a newer one, and .* unknown \['flavour'\]",
        ),
        (without(version=99), "of recipe version 99, from a newer one"),
        (without(version="1"), "its version must be a whole number, got '1'"),
        (without(version=True), "its version must be a whole number, got True"),
        (without(version=-1), "its version must be a whole number, got -1"),
        ([1], "expected fields and their values, got list"),
    ],
)
def test_what_is_missing_or_unknown_is_named_and_whether_the_file_is_of_later_days(fields, said):
    with pytest.raises(ValueError, match=said):
        from_json(fields)


def test_a_run_and_a_checkpoint_of_the_first_days_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: None)
    chosen = override(from_json(json.loads(FIRST)), "width=8 groups=4 batch=4 steps=2 log_every=1 save_every=1".split())
    run(chosen, tmp_path / "run", device=CPU, progress=False)
    old = dataclasses.asdict(chosen)
    assert old.keys() - json.loads(FIRST).keys() == {name for fields in ADDED.values() for name in fields}
    old = {name: old[name] for name in json.loads(FIRST)}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(old))
    for path in list_checkpoints(tmp_path / "run" / CHECKPOINTS):
        tensors, about = load_checkpoint(path)
        assert about["recipe"]["version"] == VERSION
        save_checkpoint(path, tensors, about | {"recipe": old})
    assert load(tmp_path / "run", device=CPU).recipe == chosen
    assert resume(tmp_path / "run", ["steps=3"], device=CPU, progress=False).recipe.steps == 3
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["version"] == VERSION
