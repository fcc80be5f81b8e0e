"""What a recipe asks of a run: its metric, what is kept, pictures on the way, and data with and without labels."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.assemble import HELD_OUT, load_data, new_trainer
from ddpm_lib.runs.model import CHECKPOINTS, load, sample_grid
from ddpm_lib.runs.recipes import DATA, override, recipe
from ddpm_lib.runs.run import resume, run
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint, step_path

CPU = torch.device("cpu")
FIELDS = (
    "data=mnist size=4 classes=3 width=4 multipliers=1 blocks=1 groups=2 attention= head_channels=0 dropout=0.3 "
    "batch=4 steps=8 warmup=2 ema_decays=0.9,0.2 log_every=1 save_every=2 keep=2 sample_steps=2 T=50"
).split()
TINY = override(recipe("digits"), FIELDS)
BIRDS = ("crow", "daw", "jay")


def made_up(labelled=True, names=BIRDS, held_out=6):
    images = torch.rand(14 + held_out, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.arange(len(images)) % 3 if labelled else None
    parts = (slice(0, 14), slice(14, None))
    return tuple(LabelledImages(images[i], labels[i] if labelled else None, names) for i in parts)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setitem(DATA, "mnist", lambda recipe: made_up())
    monkeypatch.setitem(DATA, "stl10", lambda recipe: made_up(labelled=False, names=()))


@pytest.fixture
def drawn(monkeypatch):
    """The names of the pictures that a run saves, and no pictures, which take longer than the training."""
    names = []
    monkeypatch.setattr(runs, "sample_grid", lambda model, **options: None)
    monkeypatch.setattr(runs, "curves", lambda history: names.append(f"curves of {len(history)}"))
    monkeypatch.setattr(runs.plot, "save", lambda figure, path: names.append(path.name))
    return names


def train(folder, *changes, **options):
    return run(override(TINY, changes), folder, device=CPU, progress=False, **options)


def saved(folder):
    return [load_checkpoint(path, ())[1]["step"] for path in list_checkpoints(folder / CHECKPOINTS)]


def test_every_option_of_a_recipe_reaches_its_trainer():
    changes = "batch=5 learning_rate=0.3 weight_decay=0.7 clip_norm=0.6 ema_decays=0.8,0.4 seed=11 flip=true workers=3"
    chosen = override(TINY, f"{changes} warmup=4 steps=20 final_rate=0.25 label_dropout=0.9 schedule=linear".split())
    trainer = new_trainer(chosen, made_up()[0], CPU)
    assert (trainer.batch, trainer.base_rate, trainer.clip_norm) == (5, 0.3, 0.6)
    assert [group["weight_decay"] for group in trainer.optimiser.param_groups] == [0.7, 0]
    assert [ema.decay for ema in trainer.emas] == [0.8, 0.4]
    assert (trainer.seed, trainer.flip, trainer.workers) == (11, True, 3)
    assert [trainer.rate(done) for done in (0, 4, 12, 20)] == pytest.approx([0.2, 1, 0.625, 0.25])
    assert torch.equal(trainer.schedule.beta, chosen.diffusion().beta)
    labels = trainer.prepare_labels(torch.arange(3).repeat(1000), torch.Generator().manual_seed(0))
    assert abs((labels == 3).double().mean() - 0.9) < 5 * (0.09 / 3000) ** 0.5


def test_the_first_weights_are_the_seed_s_alone():
    first = []
    for seed, ambient in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(ambient)
        first.append(new_trainer(override(TINY, [f"seed={seed}"]), made_up()[0], CPU).model.stem.weight)
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def falling_until(step):
    """A metric that is lowest at the checkpoint of this step, and remembers the models it was given."""
    seen = []

    def metric(model):
        seen.append(model)
        return torch.tensor(abs(2.0 * len(seen) - step))  # saved every 2 steps

    return metric, seen


@pytest.mark.parametrize(("keep", "kept"), [(1, [4, 8]), (2, [4, 6, 8]), (3, [4, 6, 8]), (4, [2, 4, 6, 8])])
def test_the_last_checkpoints_stay_and_the_best_by_the_metric_that_was_handed_in(tmp_path, drawn, keep, kept):
    metric, seen = falling_until(4)
    model = train(tmp_path / "run", f"keep={keep}", metric=metric)
    assert saved(tmp_path / "run") == kept
    assert all(each is seen[0] for each in seen) and seen[0].network is model.network and not model.network.training
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry.get("metric") for entry in entries] == [None, 2, None, 0, None, 2, None, 4]
    best, last = (load(tmp_path / "run", which=which, device=CPU).network.state_dict() for which in ("best", "last"))
    expected = load(step_path(tmp_path / "run" / CHECKPOINTS, 4), device=CPU).network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in best.items())
    assert not all(torch.equal(tensor, expected[name]) for name, tensor in last.items())


def test_the_best_of_all_attempts_is_the_best(tmp_path, drawn):
    train(tmp_path / "run", "keep=1", metric=falling_until(4)[0])
    resume(tmp_path / "run", ["steps=12"], device=CPU, progress=False, metric=lambda model: 1)
    assert saved(tmp_path / "run") == [4, 12]


def test_without_a_metric_the_held_out_loss_decides(tmp_path, drawn, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 4.0])
    asked = []
    monkeypatch.setattr(runs, "held_out_loss", lambda *arguments: asked.append(arguments) or next(losses))
    model = train(tmp_path / "run", "keep=1")
    assert saved(tmp_path / "run") == [4, 8]
    network, schedule, images = asked[0]
    assert network is model.network and schedule is model.schedule
    assert torch.equal(images.images, made_up()[1].images) and torch.equal(images.labels, made_up()[1].labels)


def test_pictures_are_drawn_on_the_way_in_every_stretch_that_asks_for_them(tmp_path, drawn):
    train(tmp_path / "run", "sample_every=3", "log_every=2", "save_every=4")
    expected = ["curves of 2", "loss.png", "step-00000004.png", "step-00000006.png", "curves of 4", "loss.png"]
    assert drawn == [*expected, "samples.png"]  # a picture comes with the entry that first reaches its multiple of 3
    assert (tmp_path / "run" / "samples").is_dir()


def test_a_board_gets_every_entry_and_learns_where_the_run_begins(tmp_path, drawn, monkeypatch):
    boards = []

    def tensorboard(folder, step):
        boards.append((folder, step, written := []))
        return lambda entry: written.append(entry["step"])

    monkeypatch.setattr(runs, "tensorboard", tensorboard)
    train(tmp_path / "run")
    resume(tmp_path / "run", ["steps=10"], device=CPU, progress=False)
    place = tmp_path / "run" / "tensorboard"
    assert boards == [(place, 0, list(range(1, 9))), (place, 8, [9, 10])]


def test_a_network_without_classes_trains_and_is_sampled_by_count(tmp_path, drawn, capsys):
    for source in ("mnist", "stl10"):  # data with labels, which are not used, and data without
        folder, out = tmp_path / source, tmp_path / f"{source}.png"
        model = train(folder, "classes=0", f"data={source}")
        assert model.network.label is None
        assert main(["sample", str(folder), "--count", "5", "--device", "cpu", "--out", str(out)]) == 0
        stored = np.load(out.with_suffix(".npz"))
        assert np.array_equal(stored["images"], load(folder, device=CPU).sample(5).numpy())
        assert len(stored["labels"]) == 0 and np.isnan(stored["scale"])
        for words in (["--labels", "1"], ["--scale", "2"]):
            assert main(["sample", str(folder), *words, "--device", "cpu", "--out", str(tmp_path / "no.png")]) == 1
            assert "this network knows no classes" in capsys.readouterr().err
        with pytest.raises(ValueError, match="knows no classes: ask for a number of images, not for labels"):
            model.sample([0, 1])
    both = [load(tmp_path / source, device=CPU).network.state_dict() for source in ("mnist", "stl10")]
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items()), "labels made a difference"


def test_a_network_with_classes_can_be_sampled_by_count_too(tmp_path, drawn):
    model = train(tmp_path / "run")
    nothing = torch.full((4,), model.network.null)
    free = model.sample(4, seed=1)
    assert torch.equal(free, model.sample(4, seed=1)) and not torch.equal(free, model.sample(4, seed=2))
    assert (free - model.sample([0, 1, 2, 0], scale=0.0, seed=1)).abs().max() < 1e-5
    x_t, t = torch.randn(4, 1, 4, 4), torch.full((4,), 7)
    assert torch.equal(model.network(x_t, t), model.network(x_t, t, nothing))


def names_over(figure):
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def test_the_names_of_the_classes_are_kept_and_stand_over_the_pictures(tmp_path, drawn, monkeypatch):
    assert train(tmp_path / "run").names == BIRDS
    assert load_checkpoint(step_path(tmp_path / "run" / CHECKPOINTS, 8), ())[1]["names"] == list(BIRDS)
    model, figures = load(tmp_path / "run", device=CPU), []
    assert model.names == BIRDS
    figure = sample_grid(model, rows=2)
    assert names_over(figure) == list(BIRDS) and figure.axes[0].get_title() == "guidance scale 2"
    monkeypatch.setattr("ddpm_lib.plot.save", lambda figure, path: figures.append(figure))
    words = ["--labels", "2", "0", "--count", "2", "--device", "cpu", "--out", str(tmp_path / "a.png")]
    assert main(["sample", str(tmp_path / "run"), *words]) == 0
    assert names_over(figures[0]) == ["jay", "crow"]


def test_without_names_the_numbers_of_the_classes_and_without_classes_nothing_stands_there(
    tmp_path, drawn, monkeypatch
):
    figure = sample_grid(train(tmp_path / "free", "classes=0"), rows=2)
    assert names_over(figure) == [] and figure.axes[0].get_title() == ""
    assert (
        figure.axes[0].images[0].get_array().shape[1] > 5 * figure.axes[0].images[0].get_array().shape[0]
    )  # ten a row
    monkeypatch.setitem(DATA, "mnist", lambda recipe: made_up(names=()))
    assert names_over(sample_grid(train(tmp_path / "run"), rows=1)) == ["0", "1", "2"]


def test_every_picture_of_the_grid_stands_below_the_name_of_its_class():
    def sample(labels, **options):
        return (torch.tensor(labels) / 2.0 - 1)[:, None, None, None].expand(-1, 1, 4, 4)

    figure = sample_grid(SimpleNamespace(recipe=TINY, names=BIRDS, sample=sample), rows=2)
    rows = figure.axes[0].images[0].get_array()[[0, -1], :, 0]  # of dots: through the upper images, through the lower
    assert [row[[0, len(row) // 2, -1]].tolist() for row in rows] == [[0, 64, 128]] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["classes=4"], r"the data have 3 classes \(crow, daw, jay\) and the recipe 4: set classes=3, or classes=0"),
        (["classes=2"], r"the data have 3 classes \(crow, daw, jay\) and the recipe 2"),
        (["data=stl10"], r"expected labels in 0\.\.2, for the network has 3 classes, got images without labels"),
        (["channels=3"], r"expected images of shape \(N, 3, 4, 4\), got \(14, 1, 4, 4\)"),
    ],
)
def test_data_that_are_not_what_the_recipe_says_are_refused_before_there_is_a_folder(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path / "run", *changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [3, 512, 1000, 3001])
def test_the_held_out_images_are_spread_over_all_that_there_are(monkeypatch, there):
    monkeypatch.setitem(DATA, "mnist", lambda recipe: made_up(held_out=there))
    images = made_up(held_out=there)[1].images
    some = load_data(TINY)[1]
    assert len(some) == min(there, HELD_OUT)
    rows = [int((images == image).flatten(1).all(1).nonzero()[0]) for image in some.images]
    assert [int(label) for label in some.labels] == [(14 + row) % 3 for row in rows]
    gaps = {b - a for a, b in zip([-1, *rows], [*rows, there], strict=True)}
    assert gaps <= {there // len(some), -(-there // len(some)), 1} and rows == sorted(set(rows))


def test_the_held_out_images_that_are_bad_are_refused_as_well(monkeypatch):
    good, bad = made_up()
    bad.images[3, 0, 0, 0] = float("nan")
    monkeypatch.setitem(DATA, "mnist", lambda recipe: (good, bad))
    with pytest.raises(ValueError, match="1 of 6 images hold NaN or infinity, the first is image 3"):
        load_data(TINY)
