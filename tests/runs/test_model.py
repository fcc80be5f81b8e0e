"""A trained model from a run, a checkpoint or an exported file: which weights, what it draws, how it is handed on."""

import contextlib
import io

import pytest
import torch

from ddpm_lib.__main__ import main
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.interop import load_diffusers
from ddpm_lib.runs import run as runs
from ddpm_lib.runs.model import CHECKPOINTS, export, load
from ddpm_lib.runs.recipes import DATA, override, recipe
from ddpm_lib.runs.run import new_trainer, run, save
from ddpm_lib.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, step_path

CPU = torch.device("cpu")
TINY = override(
    recipe("digits"),
    "data=mnist size=8 classes=3 width=16 multipliers=1,2 blocks=1 groups=4 attention=4 head_channels=0 batch=8 "
    "steps=9 warmup=0 ema_decays=0.9,0.2 log_every=3 save_every=3 keep=9 sample_steps=3 T=50".split(),
)
BIRDS = ("crow", "daw", "jay")


def made_up(recipe):
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (LabelledImages(images, torch.arange(16) % 3, BIRDS),) * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with checkpoints at 3, 6 and 9, of which the one at 6 is the best."""
    place, metrics = tmp_path_factory.mktemp("runs") / "run", iter([3, 1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "mnist", made_up)
        patch.setattr(runs, "sample_grid", lambda model, **options: None)
        patch.setattr(runs, "curves", lambda history: None)
        patch.setattr(runs.plot, "save", lambda figure, path: None)
        run(TINY, place, device=CPU, metric=lambda model: next(metrics), progress=False)
    return place


def at(folder, step):
    return step_path(folder / CHECKPOINTS, step)


def weights(model):
    return torch.cat([tensor.flatten() for tensor in model.network.state_dict().values()])


def stored(path, prefix):
    """The weights as they lie in the file, in the order of the file's names without the prefix."""
    tensors = load_checkpoint(path)[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def same_content(path, other):
    (tensors, about), (expected, said) = load_checkpoint(path), load_checkpoint(other)
    assert about == said and tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "prefix"), [("ema", "ema.0.9."), ("ema.0.9", "ema.0.9."), ("ema.0.2", "ema.0.2."), ("model", "model.")]
)
def test_the_weights_are_chosen_by_name(folder, name, prefix):
    network = load(folder, weights=name, device=CPU).network
    expected = stored(at(folder, 9), prefix)
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    others = [stored(at(folder, 9), other)["stem.weight"] for other in {"ema.0.9.", "ema.0.2.", "model."} - {prefix}]
    assert not any(torch.equal(network.stem.weight, other) for other in others)
    assert not network.training and next(network.parameters()).device == CPU


def test_of_a_folder_the_last_checkpoint_is_loaded_or_the_best(folder, tmp_path):
    by_step = {step: weights(load(at(folder, step), device=CPU)) for step in (3, 6, 9)}
    assert torch.equal(weights(load(folder, device=CPU)), by_step[9])
    assert torch.equal(weights(load(str(folder), which="best", device=CPU)), by_step[6])
    assert not torch.equal(by_step[6], by_step[9])
    with pytest.raises(ValueError, match='which must be "last" or "best", got \'first\''):
        load(folder, which="first")
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*checkpoints; there is none"):
        load(tmp_path)
    (tmp_path / CHECKPOINTS).mkdir()
    tensors, about = load_checkpoint(at(folder, 3))
    save_checkpoint(at(tmp_path, 3), tensors, about | {"metric": None})  # as Ctrl-C leaves it
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*checkpoints; there is none"):
        load(tmp_path, which="best")
    assert load(tmp_path, device=CPU).names == BIRDS


def test_loading_draws_nothing_from_the_generator_that_a_run_in_progress_uses(folder):
    before = torch.get_rng_state()
    load(folder, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_not_there_are_refused_and_those_that_are_listed(folder, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of model, ema, ema\.0\.9, ema\.0\.2; got 'ema\.0\.99'"):
        load(folder, weights="ema.0.99")
    raw = export(folder, tmp_path / "raw", weights="model")
    with pytest.raises(ValueError, match=r"raw does not hold the weights 'ema'; it holds: model$"):
        load(raw)


def test_a_file_of_another_version_names_the_version_that_wrote_it(folder, tmp_path):
    tensors, about = load_checkpoint(at(folder, 9))
    about["recipe"]["flavour"], about["version"] = "strong", "9.9"
    save_checkpoint(tmp_path / "new", tensors, about)
    with pytest.raises(ValueError, match=r"new \(written by ddpm_lib 9\.9\): not a recipe .* unknown \['flavour'\]"):
        load(tmp_path / "new")


def test_a_sample_depends_on_its_seed_and_not_on_what_else_was_drawn(folder):
    model = load(folder, device=CPU)
    first = model.sample([0, 1, 2], seed=3)
    torch.rand(5)
    before = torch.get_rng_state()
    assert torch.equal(model.sample([0, 1, 2], seed=3), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.abs().max() <= 1 and not torch.equal(first[0], first[1])
    for wrong, error in (([], ValueError), (0, ValueError), ([0.5], TypeError), ([True], TypeError), ([3], ValueError)):
        with pytest.raises(error, match=r"expected|labels"):
            model.sample(wrong)


@pytest.mark.parametrize(("name", "prefix", "decays"), [("ema", "ema.0.9.", (0.9,)), ("ema.0.2", "ema.0.2.", (0.2,))])
def test_an_exported_file_holds_one_average_in_half_the_bytes_and_samples_the_same(
    folder, tmp_path, name, prefix, decays
):
    out = export(folder, tmp_path / "out.safetensors", weights=name)
    tensors, _ = load_checkpoint(out)
    original, expected = load(folder, weights=name, device=CPU), stored(at(folder, 9), prefix)
    assert tensors.keys() == {f"{prefix}{key}" for key in expected}
    assert all(torch.equal(tensors[f"{prefix}{key}"], tensor.half()) for key, tensor in expected.items())
    assert 0 < out.stat().st_size - 2 * sum(tensor.numel() for tensor in expected.values()) < 20_000  # the header
    again = load(out, device=CPU)  # by default the average that there is
    assert again.recipe.ema_decays == decays and again.names == BIRDS and again.recipe.T == TINY.T
    assert again.network.stem.weight.dtype == torch.float32
    ours, theirs = (model.sample([0, 1, 2], seed=1) for model in (again, original))
    assert 0 < (ours - theirs).abs().max() < 5e-3
    with pytest.raises(ValueError, match=r"must be one of model, ema, ema\.0\.\d; got 'ema\.0\.5'"):
        load(out, weights="ema.0.5")


def test_an_export_chooses_its_checkpoint_and_its_weights(folder, tmp_path):
    for which, step in (("best", 6), ("last", 9)):
        export(folder, tmp_path / which, which=which, weights="model")
        expected = stored(at(folder, step), "model.")["stem.weight"].half()
        assert torch.equal(load_checkpoint(tmp_path / which)[0]["model.stem.weight"], expected)
    again = export(tmp_path / "last", tmp_path / "again", weights="model")  # what was exported can be exported
    same_content(again, tmp_path / "last")


def test_an_export_overwrites_nothing_and_refuses_what_fp16_cannot_hold(folder, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="mine exists and is not overwritten"):
        export(folder, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    tensors, about = load_checkpoint(at(folder, 9))
    tensors["ema.0.9.stem.bias"][0] = 1e5
    save_checkpoint(tmp_path / "large", tensors, about)
    with pytest.raises(FloatingPointError, match=r"ema\.0\.9\.stem\.bias holds NaN or infinity: not saved"):
        export(tmp_path / "large", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_makes_the_folders_that_are_missing(folder, tmp_path):
    out = tmp_path / "new/deep/out.safetensors"
    same_content(export(folder, out), export(folder, tmp_path / "expected"))
    assert command("export", folder, tmp_path / "other/deep", "--diffusers")[0] == 0
    load_diffusers(tmp_path / "other/deep")


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin", ".PT"])
def test_an_export_is_not_named_as_if_it_were_pickled(folder, tmp_path, ending):
    status, said = command("export", folder, tmp_path / f"new/my.weights{ending}")
    better = tmp_path / "new/my.weights.safetensors"
    assert status == 1 and f"error: what is written is a safetensors file, no {ending}: name it {better}" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fashion_small", "cifar10_small"])
def test_the_small_recipes_export_to_less_than_8_mb(tmp_path, name):
    chosen = override(recipe(name), ["precision=float32", "channels_last=no", "compile=no"])  # tries no ways to compute
    images = torch.rand(2, chosen.channels, chosen.size, chosen.size) * 2 - 1
    trainer = new_trainer(chosen, LabelledImages(images, torch.tensor([0, 9])), CPU)
    save(trainer, chosen, tmp_path / CHECKPOINTS)
    (path,) = list_checkpoints(tmp_path / CHECKPOINTS)
    size = export(path, tmp_path / "out").stat().st_size
    assert 6e6 < size <= 8e6


def command(*words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([str(word) for word in words])
    return status, said.getvalue()


def test_the_command_line_exports_one_file(folder, tmp_path):
    out = tmp_path / "out"
    assert command("export", folder, out, "--weights", "ema.0.2", "--which", "best") == (0, f"wrote {out}\n")
    same_content(out, export(folder, tmp_path / "expected", weights="ema.0.2", which="best"))
    status, said = command("export", folder, out)
    assert status == 1 and f"error: {out} exists and is not overwritten" in said
    status, said = command("export", tmp_path / "none", tmp_path / "new")
    assert status == 1 and f"there is no {tmp_path / 'none'}" in said


def test_the_command_line_exports_a_folder_for_diffusers(folder, tmp_path):
    out = tmp_path / "out"
    words = ("--diffusers", "--weights", "model", "--which", "best")
    assert command("export", folder, out, *words) == (0, f"wrote {out}\n")
    network, schedule = load_diffusers(out)
    model = load(folder, weights="model", which="best", device=CPU)
    assert torch.equal(schedule.beta, model.schedule.beta)
    x_t, t = torch.randn(4, 1, 8, 8), torch.tensor([1, 7, 30, 50])
    labels = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        assert (network(x_t, t, labels) - model.network(x_t, t, labels)).abs().max() < 1e-5
        assert model.network(x_t, t, labels).abs().max() > 1e-3
    status, said = command("export", folder, out, "--diffusers")
    assert status == 1 and str(out) in said
