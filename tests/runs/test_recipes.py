"""Recipes: fields that can be overridden by name, what is refused, and what is suggested instead."""

import dataclasses
import inspect
import re
from types import SimpleNamespace

import pytest
import torch

from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs.describe import GROUPS, describe, fields_in_words, recipes_in_words
from ddpm_lib.runs.recipes import NETWORK, RECIPES, SHORT, assignments, meant, override, recipe


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
        ("flavour=7", "unknown field 'flavour'; a recipe has: name, data, size, .*steps, .*scale"),
        ("stepps=7", r"unknown field 'stepps' \(did you mean steps=7\?\)"),
        ("lr=0.1", r"unknown field 'lr' \(did you mean learning_rate=0\.1\?\)"),
        ("learning-rate=0.1", r"unknown field 'learning-rate' \(did you mean learning_rate=0\.1\?\)"),
        ("WD=0.1", r"unknown field 'WD' \(did you mean weight_decay=0\.1\?\)"),
        ("bs=8", r"unknown field 'bs' \(did you mean batch=8\?\)"),
        ("t=10", r"unknown field 't' \(did you mean T=10\?\)"),
        ("steps", r"expected field=value, got 'steps' \(did you mean steps=VALUE\?\)"),
        ("--flip", r"expected field=value, got '--flip' \(did you mean flip=true\?\)"),
        ("flavour", "expected field=value, got 'flavour'$"),
        ("steps=many", "field steps expects a whole number, got 'many'"),
        ("steps=1.5", r"field steps expects a whole number, got '1\.5'"),
        ("learning_rate=fast", "field learning_rate expects a number, got 'fast'"),
        ("multipliers=1;2", "field multipliers expects whole numbers and commas, got '1;2'"),
        ("schedule=sigmoid", "schedule must be one of linear, cosine; got 'sigmoid'$"),
        ("schedule=cosin", r"schedule must be one of linear, cosine; got 'cosin' \(did you mean cosine\?\)"),
        ("data=faces", "data must be one of digits.*; got 'faces'$"),
        ("data=fasion", r"data must be one of digits.*; got 'fasion' \(did you mean fashion\?\)"),
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
    with pytest.raises(ValueError, match=r"unknown recipe 'didgits' \(did you mean digits\?\); there are: digits"):
        recipe("didgits")
    with pytest.raises(ValueError, match=r"unknown recipe 'imagenet'; there are: digits"):
        recipe("imagenet")


def test_what_is_suggested_for_a_short_name_is_a_field():
    fields = {field.name for field in dataclasses.fields(recipe("digits"))}
    assert set(SHORT.values()) <= fields and not set(SHORT) & fields
    assert [meant([f"{word}=1"]) for word in SHORT] == [f" (did you mean {SHORT[word]}=1?)" for word in SHORT]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_described_in_groups_and_columns_and_whole(name):
    chosen = override(recipe(name), ["root=/a folder/" + "with a long name/" * 9])
    lines = describe(chosen).splitlines()
    assert max(map(len, lines)) <= 96
    titles = [line[:12].strip() for line in lines if line[0] != " "]
    assert titles == ["data", "network", "diffusion", "training", "run folder", "sampling"]
    for line in lines:
        assert all(line[at - 1] == " " for at in (12, 40, 68) if at < len(line) and "long name" not in line)
    words = " ".join(line[12:].strip() for line in lines)
    assert all(each in words for each in assignments(chosen, blank(chosen)))
    assert {line[:12].strip(): line[12:].split("=")[0] for line in lines if line[0] != " "} == GROUPS


def blank(chosen):
    """A stand-in that differs from a recipe in every field."""
    return SimpleNamespace(**{field.name: object() for field in dataclasses.fields(chosen)})


def test_every_field_says_in_a_short_line_what_it_is():
    lines = fields_in_words().splitlines()
    names = [field.name for field in dataclasses.fields(recipe("digits"))]
    assert [line.split()[0] for line in lines] == names
    assert max(map(len, lines)) <= 100
    (place,) = {re.match(r"  \S+ +\S+ +", line).end() for line in lines}
    about = [line[place:] for line in lines]
    assert len(set(about)) == len(about) and min(len(text.split()) for text in about) >= 2
    chosen = recipe("digits")
    shown = ["=".join(line.split()[:2]) for line in fields_in_words(chosen).splitlines()]
    assert shown == assignments(chosen, blank(chosen))


def test_the_recipes_are_listed_in_columns():
    lines = recipes_in_words().splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if line[0] != " "] == list(RECIPES)
    assert len({re.match(r"\S* +", line).end() for line in lines}) == 1
    texts = " ".join(" ".join(lines).split())
    assert all(" ".join(function.__doc__.split()) in texts for function in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_told_by_what_it_changes_in_another(name):
    assert assignments(recipe(name), recipe(name)) == []
    changes = "flip=true eta=0.25 attention= ema_decays=0.9999,0.5 learning_rate=1e-05 multipliers=1,2 name=x"
    chosen = override(recipe(name), [*changes.split(), "root=/my data/a=b", "sample_steps=7", "schedule=linear"])
    for base in RECIPES:
        assert override(recipe(base), assignments(chosen, recipe(base))) == chosen
    shown = assignments(override(recipe(name), ["width=2", "width=64"]), override(recipe(name), ["width=64"]))
    assert shown == []
