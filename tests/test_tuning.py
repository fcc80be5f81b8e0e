"""The tuning guide's sweeps: a run changes one thing, a break breaks what it says, what was stopped goes on."""

import base64
import dataclasses
import json

import pytest
import torch

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.images.data import digits
from ddpm_lib.runs.model import TrainedModel
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.records import read_record
from tools import tuning

TINY = ("width=16", "groups=4", "batch=4", "steps=2", "sample_steps=2", "ema_decays=0.99,0.9", "multipliers=1")
TINY += ("attention=",)


def of(assignments):
    return override(recipe("digits"), assignments)


@pytest.mark.parametrize("run", tuning.RUNS, ids=lambda run: f"{run.what} {run.value}")
def test_a_run_changes_one_thing(run):
    base, changed = of(tuning.BASE), of([*tuning.BASE, *run.changes])
    names = {f.name for f in dataclasses.fields(base) if getattr(base, f.name) != getattr(changed, f.name)}
    assert len(names) == int(run.what != "base" and run.value not in tuning.DATA)


def test_a_run_that_was_stopped_goes_on_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "SCALES", (1.0, 2.0))
    options = {"base": TINY, "runs": [tuning.RUNS[0], tuning.RUNS[1]], "seeds": (0,), "each": 1}
    first = tuning.tune(tmp_path, tmp_path / "first.json", **options)
    log = tmp_path / "runs.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    log.write_text(lines[0])  # the second run was not finished
    again = tuning.tune(tmp_path, tmp_path / "again.json", **options)
    clock = ("cpu_seconds",)
    plain = [[{k: v for k, v in run.items() if k not in clock} for run in r["results"]["runs"]] for r in (first, again)]
    assert plain[0] == plain[1]
    assert log.read_text().splitlines(keepends=True)[0] == lines[0] and log.read_text().count("\n") == 2
    assert first["seconds"] >= json.loads(lines[0])["seconds"]
    base, unit = first["results"]["runs"]
    assert [p["what"] for p in base["points"]].count("broken") == 4
    for point in [*base["points"], *unit["points"]]:
        assert len(base64.b64decode(point["strips"]["2"])) == 640
    assert base["loss"] != unit["loss"]


def test_the_data_s_breaks_do_what_they_say():
    train, _ = digits()
    unit, mixed = tuning.unit_range(train, 0), tuning.shuffled(train, 0)
    assert float(unit.images.min()) == 0 and float(unit.images.max()) == 1
    assert torch.equal(unit.labels, train.labels) and torch.equal(mixed.images, train.images)
    assert torch.equal(mixed.labels.bincount(), train.labels.bincount())
    assert (mixed.labels == train.labels).double().mean() < 0.2


class Told(torch.nn.Module):
    """A network that notes the times that it is told, and sees no noise."""

    def __init__(self):
        super().__init__()
        self.weight, self.null, self.times = torch.nn.Parameter(torch.zeros(())), 10, []
        self.eval()

    def forward(self, x_t, t, y):
        self.times += t.tolist()
        return torch.zeros_like(x_t)


def test_the_sampler_s_breaks_do_what_they_say():
    chosen = of([*tuning.BASE, "sample_steps=4", "eta=0"])
    for value, times in {"t - 1 for t": [999, 749, 499, 249], "the step's number for t": [4, 3, 2, 1]}.items():
        told, retime = Told(), tuning.RETIMED[value]
        network = tuning.Retimed(told, lambda t, retime=retime: retime(t, 250))
        TrainedModel(network, cosine_schedule(), chosen).sample(torch.tensor([3]), scale=1)
        assert told.times == times
    labels = torch.zeros(100, dtype=torch.long)
    clean, noisy = (kind(Told(), cosine_schedule(), chosen) for kind in (TrainedModel, tuning.NoisyEnd))
    z = noisy.sample(labels, scale=1.0) - clean.sample(labels, scale=1.0)
    std = (1 - float(cosine_schedule().alpha_bar[250])) ** 0.5  # 6,400 draws: a standard error of 0.9 %
    assert float(z.std()) == pytest.approx(std, rel=0.05) and abs(float(z.mean())) < 0.07 * std


def test_the_record_holds_the_runs_of_this_file():
    results = read_record("tuning")["results"]
    wanted = [(run.what, run.value, seed) for run in tuning.RUNS for seed in tuning.SEEDS]
    assert [(run["what"], run["value"], run["seed"]) for run in results["runs"]] == wanted
    assert results["base"] == list(tuning.BASE) and results["samples"] == 10 * tuning.EACH
