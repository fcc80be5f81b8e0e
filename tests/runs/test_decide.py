"""What a recipe leaves open: decided by measuring where something is open, and stored with the run."""

import re

import torch

from ddpm_lib.runs import decide
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.decide import decided
from ddpm_lib.runs.folder import read_recipe
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.run import resume, run

CPU = torch.device("cpu")
TINY = "width=4 head_channels=0 groups=2 multipliers=1 attention= batch=4 steps=1 log_every=1 save_every=1".split()


def tiny(*changes):
    return override(recipe("digits"), [*TINY, *changes])


def chosen_by(seconds):
    """In place of the measurement: seconds by (precision, channels_last)."""

    def measured(recipe, device, ways):
        return [way._replace(seconds=seconds[way[:2]], cosine=1.0) for way in ways]

    return measured


def test_a_closed_recipe_comes_back_untouched_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(decide, "measured", None)  # calling it would be an error
    closed = tiny("precision=bf16", "channels_last=yes")
    assert decided(closed, CPU) is closed
    assert decided(tiny("compile=auto"), CPU) == tiny("compile=no")  # on a CPU there is one way


def test_what_is_open_is_decided_by_a_measurement_that_leaves_no_trace():
    open_, said = tiny("precision=auto", "channels_last=auto"), []
    before = torch.get_rng_state()
    closed = decided(open_, CPU, said.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert closed.precision in ("float32", "bf16") and closed.channels_last in ("no", "yes")
    assert override(closed, ["precision=auto", "channels_last=auto"]) == open_
    (line,) = said
    assert re.match(r"chosen   \S+(, channels-last)?: \S+ s a pass of 4 \(", line)
    assert len(re.findall(r"\d s\b", line)) == 4  # what was chosen, and the other three


def test_what_is_given_is_kept(monkeypatch):
    seconds = {("float32", False): 4.0, ("bf16", False): 3.0, ("float32", True): 1.0, ("bf16", True): 2.0}
    monkeypatch.setattr(decide, "measured", chosen_by(seconds))
    for given, expected in (
        (("auto", "auto"), ("float32", "yes")),
        (("auto", "no"), ("bf16", "no")),
        (("bf16", "auto"), ("bf16", "yes")),
    ):
        closed = decided(tiny(f"precision={given[0]}", f"channels_last={given[1]}"), CPU)
        assert (closed.precision, closed.channels_last) == expected


def test_a_run_stores_what_was_decided_and_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: None)
    monkeypatch.setattr(decide, "measured", chosen_by({("float32", False): 2.0, ("bf16", False): 1.0}))
    model = run(tiny("precision=auto", "accumulate=3"), tmp_path / "run", device=CPU, progress=False)
    stored = read_recipe(tmp_path / "run")
    assert stored == model.recipe == tiny("precision=bf16", "accumulate=3")
    monkeypatch.setattr(decide, "measured", None)
    assert resume(tmp_path / "run", ["steps=2"], device=CPU, progress=False).recipe.precision == "bf16"
