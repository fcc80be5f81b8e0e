"""Sampling from a trained model in batches: the same images whatever the batch, and how many go through at once."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lib import __main__ as command_line
from ddpm_lib import plot
from ddpm_lib.__main__ import main
from ddpm_lib.runs.model import TrainedModel, sample_grid
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.samplers import ancestral
from ddpm_lib.samplers.ancestral import image_seeds

TINY = override(
    recipe("digits"),
    "size=8 classes=3 width=16 multipliers=1,2 blocks=1 groups=4 attention=4 head_channels=8 T=50 sample_steps=4 "
    "eta=0.5 batch=5".split(),
)
LABELS = [0, 1, 2, 1, 1, 0, 2, 2, 0, 1, 2]
BATCHES = [1, 2, 5, 10, 11, 900]


class PixelByPixel(nn.Module):
    """A network whose answer for one pixel depends on that pixel, t and the label alone: exact in every batch."""

    null = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.2, 0.4, 0.6, 0.8]))

    def forward(self, x_t, t, labels=None):
        labels = torch.full_like(t, self.null) if labels is None else labels
        return (self.weight[labels] + 0.001 * t)[:, None, None, None] * x_t


def model(network=None, **changes):
    """A model with random weights, none of them zero, in evaluation mode."""
    chosen = dataclasses.replace(TINY, **changes)
    torch.manual_seed(0)
    network = chosen.network() if network is None else network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return TrainedModel(network.eval(), chosen.diffusion(), chosen)


@pytest.fixture
def seen(monkeypatch):
    """How many images the network was given at once, call by call."""
    sizes, forward = [], PixelByPixel.forward

    def noted(self, x_t, t, labels=None):
        sizes.append(len(x_t))
        return forward(self, x_t, t, labels)

    monkeypatch.setattr(PixelByPixel, "forward", noted)
    return sizes


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("labels", [LABELS, torch.tensor(LABELS), 11], ids=["list", "tensor", "count"])
def test_the_batch_changes_no_image(labels, eta):
    exact, real = (
        model(PixelByPixel()),
        model(schedule="linear"),
    )  # cosine's first step makes rounding 1000 times larger
    ones, twos = (m.sample(labels, eta=eta, seed=3, batch=11) for m in (exact, real))
    assert ones.shape == twos.shape == (11, 1, 8, 8) and twos.std() > 0.1
    assert len(twos.flatten(1).unique(dim=0)) == 11
    for batch in BATCHES:
        assert torch.equal(exact.sample(labels, eta=eta, seed=3, batch=batch), ones)
    for batch in (2, 10):  # a network's own sums round in another order in every batch
        assert (real.sample(labels, eta=eta, seed=3, batch=batch) - twos).abs().max() < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_an_image_is_the_same_alone_and_among_others(eta):
    m = model(PixelByPixel())
    together = m.sample(LABELS, eta=eta, seed=3)
    seeds = image_seeds(3, 11)
    for i in (0, 1, 7, 10):
        assert torch.equal(m.sample([LABELS[i]], eta=eta, seed=seeds[i]), together[i : i + 1])
    assert torch.equal(m.sample(LABELS[4:], eta=eta, seed=seeds[4]), together[4:])
    assert torch.equal(m.sample(LABELS[:3], eta=eta, seed=3), together[:3])
    other = m.sample(LABELS, eta=eta, seed=4)
    assert not (other.flatten(1)[:, None] == together.flatten(1)).all(-1).any(), "two seeds share an image"


def test_a_scale_for_each_label_stays_with_its_label():
    m, scale = model(PixelByPixel()), torch.linspace(0, 3, 11)
    expected = torch.cat(
        [m.sample([LABELS[i]], scale=float(scale[i]), seed=seed) for i, seed in enumerate(image_seeds(0, 11))]
    )
    for batch in BATCHES:
        assert (m.sample(LABELS, scale=scale, batch=batch) - expected).abs().max() < 1e-6
    assert torch.equal(m.sample(LABELS, scale=torch.tensor(1.5), batch=4), m.sample(LABELS, scale=1.5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": [0] * 10 + [3]}, r"expected labels in 0\.\.2, got 3"),
        ({"labels": LABELS, "scale": torch.ones(12)}, r"labels \(11,\) and scale \(12,\)"),
        ({"labels": LABELS, "scale": torch.ones(5)}, r"labels \(11,\) and scale \(5,\)"),
        ({"labels": LABELS, "batch": 0}, "a batch of at least 1, got 11 and 0"),
        ({"labels": LABELS, "batch": -3}, "got 11 and -3"),
        ({"labels": []}, "at least one label or image and a batch of at least 1, got 0 and 5"),
        ({"labels": 0}, "got 0 and 5"),
    ],
)
def test_what_is_wrong_anywhere_is_said_before_the_first_batch(seen, options, said):
    with pytest.raises(ValueError, match=said):
        model(PixelByPixel()).sample(**options)
    assert not seen


def test_no_more_than_a_batch_goes_through_the_network_at_once(seen):
    m = model(PixelByPixel())
    for labels, options, most in (
        (LABELS, {}, 2 * TINY.batch),  # guided: with the label and without
        (11, {}, TINY.batch),
        (LABELS, {"scale": 1.0, "batch": 4}, 4),
        (LABELS, {"batch": 3}, 6),
    ):
        m.sample(labels, **options)
        assert max(seen) == most and len(seen) == 4 * -(-11 // (options.get("batch", TINY.batch)))
        seen.clear()
    sample_grid(m, rows=6)
    assert max(seen) == 2 * TINY.batch and sum(seen) == 4 * 2 * 18


def test_every_step_of_every_batch_is_told_once_and_the_images_with_it():
    m, steps = model(PixelByPixel()), []
    images = m.sample(LABELS, on_step=lambda *step: steps.append(step))
    assert [len(x_t) for _, x_t, _ in steps] == [5] * 8 + [1] * 4
    times = [t for t, _, _ in steps]
    assert times[:4] == times[4:8] == times[8:] == sorted(times[:4], reverse=True) and times[3] == 0
    assert torch.equal(torch.cat([x_t for t, x_t, _ in steps if t == 0]), images)
    told = []
    m.sample(LABELS, batch=11, on_step=lambda *step: told.append(step))
    for i, (t, x_t, x_0_hat) in enumerate(told):
        assert t == times[i]
        assert torch.equal(torch.cat([steps[i + k][1] for k in (0, 4, 8)]), x_t)
        assert torch.equal(torch.cat([steps[i + k][2] for k in (0, 4, 8)]), x_0_hat)


def test_one_progress_bar_counts_the_steps_of_all_batches(monkeypatch):
    bars = []

    class Noted(ancestral.tqdm):
        def __init__(self, steps, **options):
            super().__init__(steps, **options)
            bars.append((self, options))

        def update(self, n=1):
            self.steps = getattr(self, "steps", 0) + n
            return super().update(n)

    monkeypatch.setattr(ancestral, "tqdm", Noted)
    for progress in (True, False):
        model(PixelByPixel()).sample(LABELS, progress=progress)
        shown = [bar for bar, options in bars if not options["disable"]]
        assert len(shown) == progress
        for bar in shown:
            assert bar.total == bar.steps == 12
        bars.clear()


@pytest.fixture
def sampled(monkeypatch, tmp_path, capsys):
    """What the command line writes and says, for a model that need not be loaded."""

    def call(m, *words):
        monkeypatch.setattr(command_line, "load", lambda *_, **__: m)
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        assert main(["sample", "run", *map(str, words), "--out", str(out)]) == 0
        return plot.plt.imread(out), np.load(out.with_suffix(".npz")), capsys.readouterr().out

    return call


def test_the_command_line_draws_in_batches_and_any_image_again_by_its_seed(sampled, seen):
    m = model(PixelByPixel())
    _, stored, _ = sampled(m, "--labels", 2, 0, "--count", 4, "--seed", 7, "--batch", 3)
    assert max(seen) == 6 and stored["labels"].tolist() == [2, 0] * 4
    assert stored["seeds"].tolist() == image_seeds(7, 8) and stored["seed"] == 7
    for i in (0, 5):
        _, again, _ = sampled(m, "--labels", stored["labels"][i], "--seed", stored["seeds"][i])
        assert np.array_equal(again["images"], stored["images"][i : i + 1])


def test_many_images_make_a_picture_that_can_be_looked_at_and_all_are_stored(sampled, monkeypatch):
    m = model(PixelByPixel(), classes=0)
    picture, stored, said = sampled(m, "--count", 30)  # three rows of ten
    assert picture.shape[1] > 3 * picture.shape[0] and "shows" not in said
    picture, stored, said = sampled(m, "--count", 400)
    assert abs(picture.shape[0] - picture.shape[1]) < 3 and len(stored["images"]) == 400
    monkeypatch.setattr(command_line, "ROWS", 4)
    picture, stored, said = sampled(model(PixelByPixel()), "--count", 6)  # six rows of three, of which four are shown
    assert picture.shape[0] < 4 * 63 + 63 and len(stored["images"]) == 18
    assert ", which shows the first 12 of 18 images, and " in said


def test_the_images_are_stored_before_the_picture_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "load", lambda *_, **__: model(PixelByPixel()))
    monkeypatch.setattr(command_line.plot, "grid", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["sample", "run", "--out", str(tmp_path / "a.png")])
    assert len(np.load(tmp_path / "a.npz")["images"]) == 3


class Product(PixelByPixel):
    """A network of one matrix product, which autocast computes in lower precision."""

    def forward(self, x_t, t, labels=None):
        torch.manual_seed(1)
        rows = torch.nn.functional.linear(x_t.flatten(1), torch.randn(64, 64) / 8)
        self.dtypes = {*getattr(self, "dtypes", ()), rows.dtype}
        return rows.reshape(x_t.shape)


def test_the_network_alone_computes_in_the_precision_that_is_asked_for():
    found = {}
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        network, steps = Product(), []
        images = model(network).sample(
            [0, 1], precision=precision, seed=2, on_step=lambda t, x_t, x_0_hat, s=steps: s.append(x_t.dtype)
        )
        assert network.dtypes == {dtype} and set(steps) == {torch.float32} and images.dtype == torch.float32
        found[precision] = images
    assert 0 < (found["bf16"] - found["float32"]).abs().max() < 0.1
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, fp16; got 'half'"):
        model().sample([0], precision="half")


class Half(PixelByPixel):
    """Answers in bf16, as a layer under autocast does."""

    def forward(self, x_t, t, labels=None):
        return super().forward(x_t, t, labels).bfloat16()


def test_guidance_is_computed_in_float32_from_a_network_in_lower_precision(monkeypatch):
    x_t, t, found = torch.randn(2, 1, 8, 8), torch.full((2,), 9), []
    monkeypatch.setattr("ddpm_lib.runs.model.ddim_sample", lambda m, s, x_T, **_: found.append(m(x_t, t)) or x_T)
    chosen = model(Half())
    chosen.sample([0, 1], scale=7.3, precision="bf16")
    conditional, none = (chosen.network(x_t, t, torch.tensor(y)).float() for y in ([0, 1], [3, 3]))
    assert torch.allclose(found[0], none + 7.3 * (conditional - none), atol=1e-6)


@pytest.mark.parametrize("labels", [[0], 1])
def test_a_network_in_training_mode_is_refused(labels):
    chosen = model(PixelByPixel())
    chosen.network.train()
    with pytest.raises(ValueError, match="training mode"):
        chosen.sample(labels)


def test_guidance_can_be_told_where_how_and_away_from_what(monkeypatch):
    """Independent route: the estimate combined by hand from the network's two answers."""
    chosen, estimates = model(PixelByPixel()), []
    x_t, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])

    def noted(eps_model, schedule, x_T, **options):
        estimates.append({t: eps_model(x_t, torch.full((2,), t)) for t in (10, 25, 40)})
        return x_T

    monkeypatch.setattr("ddpm_lib.runs.model.ddim_sample", noted)
    for asked in ({}, {"negative": 2}, {"interval": (20, 30)}, {"rescale": 1.0}):
        chosen.sample([0, 1], scale=3.0, **asked)
    for t in (10, 25, 40):
        at = torch.full((2,), t)
        none, two = (chosen.network(x_t, at, torch.full_like(y, k)) for k in (3, 2))
        conditional = chosen.network(x_t, at, y)
        plain = none + 3 * (conditional - none)
        rescaled = plain * (conditional.flatten(1).std(1) / plain.flatten(1).std(1))[:, None, None, None]
        by_hand = [plain, two + 3 * (conditional - two), plain if t == 25 else conditional, rescaled]
        for estimate, expected in zip(estimates, by_hand, strict=True):
            assert torch.allclose(estimate[t], expected, atol=1e-5)
    for asked in ({"interval": (1, 9)}, {"negative": 0}, {"rescale": 0.5}):
        with pytest.raises(ValueError, match="nothing to guide by"):
            chosen.sample(2, **asked)
    with pytest.raises(ValueError, match="labels"):
        chosen.sample([0], negative=9)
