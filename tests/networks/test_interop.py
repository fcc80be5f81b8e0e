"""Networks of `diffusers`, written by other people, in our U-Net and back: the same weights give the same output.

Every weight is drawn at random, those that start at zero too: no part may hide behind a zero. The outputs are of
order 1 and compared in float64, with ours(t) = theirs(t − 1).
"""

import copy
import inspect
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.forward import forward_var
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.networks import interop
from ddpm_lib.networks.interop import CONFIG, FIXED, NEWER, SCHEDULER, VARIED, WEIGHTS, load_diffusers, save_diffusers
from ddpm_lib.networks.unet import UNet
from ddpm_lib.samplers.ancestral import ancestral_sample
from ddpm_lib.samplers.guidance import guided

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (make test installs it)")
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: E402

# config.json of the published DDPM for CIFAR-10, word for word: it is older than many of the fields.
PUBLISHED = """{
  "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": null,
  "block_out_channels": [128, 256, 256, 256], "center_input_sample": false,
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
  "flip_sin_to_cos": false, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
  "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
  "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
}"""
PUBLISHED_SCHEDULER = """{
  "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
  "beta_start": 0.0001, "clip_sample": true, "num_train_timesteps": 1000, "trained_betas": null,
  "variance_type": "fixed_large"
}"""
# A small one that speaks of every field that must be there.
SMALL = json.loads(PUBLISHED) | {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
OURS = dict(size=8, channels=2, width=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,))
ARCHITECTURES = {
    "plain": {},
    "deep": dict(size=16, multipliers=(1, 2, 3), blocks=2, attention=(16, 4)),
    "flat": dict(multipliers=(1,), attention=()),
    "attention in the middle only": dict(attention=()),
    "heads": dict(head_channels=4, attention=(8, 4)),
    "scale and shift": dict(scale_shift=True),
    "conditional": dict(classes=3),
    "all at once": dict(blocks=2, head_channels=2, scale_shift=True, classes=3, channels=1, groups=2, dropout=0.3),
}
SCHEDULE = Schedule([0.1, 0.3, 0.02, 0.5, 0.2])


def randomised(network, seed=0):
    """The network in evaluation mode with every weight drawn so that activations stay of order 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (name.endswith("weight")))  # of the norms: around 1
    return network.eval()


def write(folder, config=SMALL, scheduler=PUBLISHED_SCHEDULER, seed=0):
    """Their network with these fields, in a folder with all files side by side; returns it."""
    theirs = randomised(UNet2DModel.from_config({k: v for k, v in config.items() if not k.startswith("_")}), seed)
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / SCHEDULER).write_text(scheduler)
    save_file(theirs.state_dict(), folder / WEIGHTS)
    return theirs


def difference(ours, theirs, t, labels=None, shift=1):
    """The largest one between ours(t) and theirs(t − shift), over their output's spread."""
    channels, side = ours.config["channels"], ours.config["size"]
    x_t = torch.randn(len(t), channels, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    with torch.no_grad():
        expected = theirs(x_t, t - shift, class_labels=labels).sample
        assert 0.05 < expected.std() < 20
        return ((ours(x_t, t, labels) - expected).abs().max() / expected.std()).item()


def labels_for(network):
    return torch.tensor([2, 0, 3, 1]) if network.config["classes"] else None  # 3 is no label


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Theirs, with random weights, in the configuration of Ho et al.'s weights as they are published; and ours."""
    folder = tmp_path_factory.mktemp("published")
    theirs = write(folder, json.loads(PUBLISHED))
    state = torch.random.get_rng_state()
    ours, schedule = load_diffusers(folder)
    assert torch.equal(torch.random.get_rng_state(), state)  # loading draws nothing
    return theirs, ours, schedule


def test_the_published_network_for_cifar_10_gives_what_theirs_gives(published):
    """Independent route: UNet2DModel in the published configuration."""
    theirs, ours, schedule = published
    assert sum(parameter.numel() for parameter in ours.parameters()) == 35_746_307 == theirs.num_parameters()
    assert ours.config | {"dropout": 0.1, "attention": (16,)} == UNet().config  # it says nothing of dropout
    assert not ours.training and torch.equal(schedule.beta, linear_schedule().beta)
    assert difference(ours, theirs, torch.tensor([1, 1000])) < 1e-5  # at 1000 the angles differ by rounding


def test_their_count_of_steps_starts_at_0(tmp_path):
    theirs, t = write(tmp_path), torch.tensor([1, 2, 431, 1000])
    ours, _ = load_diffusers(tmp_path)
    assert difference(ours, theirs, t) < 1e-10
    assert difference(ours, theirs, t, shift=0) > 1e-3


@pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_written_network_gives_the_same_in_diffusers_and_comes_back_bit_for_bit(tmp_path, options):
    """Independent route: UNet2DModel.from_pretrained of the folder, built from the written configuration alone."""
    ours = randomised(UNet(**OURS | options))
    save_diffusers(ours, SCHEDULE, tmp_path / "exported")
    theirs = UNet2DModel.from_pretrained(tmp_path / "exported", subfolder="unet").eval()
    assert theirs.num_parameters() == sum(parameter.numel() for parameter in ours.parameters())
    assert difference(ours, theirs, torch.tensor([1, 2, 5, 1000]), labels_for(ours)) < 1e-10
    back, schedule = load_diffusers(tmp_path / "exported")
    assert back.config == ours.config and torch.equal(schedule.beta, SCHEDULE.beta)
    state = ours.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]


# An ε of 1e-5 for 1e-6 hides where features are loud.
def test_the_norms_have_their_epsilon_which_shows_where_features_are_quiet(tmp_path):
    theirs, t = write(tmp_path), torch.tensor([1, 3])
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "conv_in" in name or name.startswith("down_blocks.0.resnets.0.conv2"):
                parameter *= 1e-3
    save_file(theirs.state_dict(), tmp_path / WEIGHTS)
    ours, _ = load_diffusers(tmp_path)
    assert difference(ours, theirs, t) < 1e-10
    for module in ours.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5
    assert difference(ours, theirs, t) > 1e-3


def old_names(state):
    """The state of a network under the names that attention layers had before diffusers 0.13."""
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile("|".join(map(re.escape, renamed)))
    return {pattern.sub(lambda match: renamed[match[0]], name): tensor for name, tensor in state.items()}


def test_weights_under_the_old_names_are_read_as_diffusers_reads_them(tmp_path):
    theirs = write(tmp_path)
    save_file(old_names(theirs.state_dict()), tmp_path / WEIGHTS)
    assert {name.split(".")[-2] for name in load_file(tmp_path / WEIGHTS)} > {"query", "key", "value", "proj_attn"}
    ours, _ = load_diffusers(tmp_path)
    t = torch.tensor([1, 700])
    assert difference(ours, theirs, t) < 1e-10
    assert difference(ours, UNet2DModel.from_pretrained(tmp_path).eval(), t) < 1e-10


@pytest.mark.parametrize("lone", [True, False], ids=["a lone UNet2DModel", "a DDPMPipeline"])
def test_folders_that_diffusers_writes_are_read(tmp_path, lone):
    """Independent route: save_pretrained writes every field and, of a pipeline, subfolders."""
    options = {key: value for key, value in SMALL.items() if not key.startswith("_")}
    theirs = randomised(UNet2DModel(**options, attn_norm_num_groups=4, time_embedding_dim=32, dropout=0.2))
    scheduler = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2")
    (theirs if lone else DDPMPipeline(theirs, scheduler)).save_pretrained(tmp_path / "saved")
    if lone:
        with pytest.raises(ValueError, match=r"expected scheduler_config.json in .*saved; .* schedule=\.\.\."):
            load_diffusers(tmp_path / "saved")
    ours, schedule = load_diffusers(tmp_path / "saved", schedule=SCHEDULE if lone else None)
    assert difference(ours, theirs, torch.tensor([1, 20])) < 1e-10
    assert ours.config["dropout"] == 0.2
    assert torch.equal(schedule.beta, (SCHEDULE if lone else cosine_schedule(20)).beta)


def test_their_pipeline_samples_as_ancestral_sampling_does(tmp_path):
    """Independent route: DDPMPipeline on the written folder, with the same noise."""
    network = randomised(UNet(**OURS))
    save_diffusers(network, SCHEDULE, tmp_path / "exported")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "exported")
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 5, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
    theirs = torch.from_numpy(pipeline(batch_size=4, **options).images).permute(0, 3, 1, 2)  # in [0, 1]
    generator = torch.Generator().manual_seed(3)
    x_T = torch.randn(4, 2, 8, 8, generator=generator)
    ours = ancestral_sample(network, SCHEDULE, x_T, generator=generator)
    assert ours.std() > 0.2
    assert (ours - (2 * theirs - 1)).abs().max() < 1e-4


def test_the_published_model_s_images_are_those_of_its_pipeline(published):
    """Independent route: DDPMPipeline of the published configuration, but for a shorter chain."""
    theirs, ours, _ = published
    scheduler = json.loads(PUBLISHED_SCHEDULER) | {"num_train_timesteps": 3}
    pipeline = DDPMPipeline(theirs, DDPMScheduler(**{k: v for k, v in scheduler.items() if not k.startswith("_")}))
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
    expected = torch.from_numpy(pipeline(batch_size=1, **options).images).permute(0, 3, 1, 2)  # in [0, 1]
    generator = torch.Generator().manual_seed(3)
    x_T = torch.randn(1, 3, 32, 32, generator=generator)
    images = ancestral_sample(ours, linear_schedule(3), x_T, reverse_var=forward_var, generator=generator)
    assert images.std() > 0.2
    assert (images - (2 * expected - 1)).abs().max() < 1e-4
    other = ancestral_sample(ours, linear_schedule(3), x_T, generator=torch.Generator().manual_seed(3))
    assert (other - images).abs().max() > 1e-2  # with the other variance


def test_a_conditional_folder_is_no_pipeline_and_says_that_its_last_class_is_no_label(tmp_path):
    network = randomised(UNet(**OURS, classes=3))
    save_diffusers(network, SCHEDULE, folder := tmp_path / "exported")
    assert not (folder / "model_index.json").exists()
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert torch.equal(scheduler.betas.double(), SCHEDULE.beta[1:].float().double())
    x_t, t = torch.randn(2, 2, 8, 8), torch.tensor([1, 4])
    theirs = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    with torch.no_grad():
        expected = theirs(x_t, t - 1, class_labels=torch.full((2,), theirs.config.num_class_embeds - 1)).sample
        assert (network(x_t, t) - expected).abs().max() < 1e-5
    with safe_open(folder / "unet" / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "null_label": "last"}
    theirs.save_pretrained(folder / "unet")  # which drops that remark: now it could be a network without null label
    with pytest.raises(ValueError, match=r"num_class_embeds: expected null, or, .* null_is_last=True; got 4"):
        load_diffusers(folder)
    back, _ = load_diffusers(folder, null_is_last=True)
    assert back.null == 3 and difference(back, theirs, torch.tensor([1, 2, 3, 4]), labels_for(back)) < 1e-10


def test_the_readme_s_sampler_for_diffusers_draws_what_ours_draws(tmp_path, monkeypatch):
    """Independent route: `guided` and `ancestral_sample` on the same noise."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (program,) = [b for b in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "UNet2DModel" in b]
    network = randomised(UNet(**OURS, classes=10))
    save_diffusers(network, SCHEDULE, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    exec(compile(program, "README.md", "exec"), names := {})
    labels, scale = names["labels"], names["scale"]
    torch.manual_seed(5)
    ours = ancestral_sample(guided(network, labels, scale, null=10), SCHEDULE, torch.randn(len(labels), 2, 8, 8))
    assert scale not in (0, 1) and ours.std() > 0.2
    assert (names["x"] - ours).abs().max() < 1e-4


BETAS = {
    "silent": {},
    "linear": dict(beta_schedule="linear", beta_start=0.001, beta_end=0.3, num_train_timesteps=7),
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "squaredcos_cap_v2": dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=30),
    "trained_betas": dict(trained_betas=[0.25, 0.125, 0.5], num_train_timesteps=3),
}


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("fields", BETAS.values(), ids=BETAS)
def test_the_schedule_is_that_of_their_scheduler(tmp_path, name, fields):
    """Independent route: their tables, in float32."""
    write(tmp_path, scheduler=json.dumps({"_class_name": name} | fields))
    _, schedule = load_diffusers(tmp_path)
    theirs = getattr(diffusers, name)(**fields)
    assert schedule.T == len(theirs.betas)
    torch.testing.assert_close(schedule.beta[1:].float(), theirs.betas, rtol=1e-4, atol=0)
    torch.testing.assert_close(schedule.alpha_bar[1:].float(), theirs.alphas_cumprod, rtol=1e-4, atol=0)


def test_a_silent_configuration_means_what_diffusers_takes_it_for():
    fields = {name: p.default for name, p in inspect.signature(UNet2DModel.__init__).parameters.items()}
    del fields["self"]
    assert sorted({*FIXED, *VARIED}) == sorted(fields) and not FIXED.keys() & VARIED
    assert {name: fields[name] for name in NEWER} == NEWER


OTHER = {
    "_class_name": "UNet2DConditionModel",
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": None,
    "mid_block_scale_factor": 1.41,
    "downsample_padding": 1,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "act_fn": "relu",
    "norm_eps": 1e-5,
    "add_attention": False,
    "class_embed_type": "timestep",
    "num_class_embeds": 5,
    "out_channels": 4,
    "time_embedding_dim": 64,
    "resnet_time_scale_shift": "spatial",
    "attn_norm_num_groups": 2,
    "sample_size": [8, 16],
    "block_out_channels": [8, 12],
    "down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "a_field_of_the_future": 0.5,
}


@pytest.mark.parametrize("field", OTHER)
def test_a_network_that_ours_cannot_be_is_refused_by_the_field_s_name(tmp_path, field):
    write(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(SMALL | {field: OTHER[field]}))
    with pytest.raises(ValueError, match=rf"^{field}: expected .*; got {re.escape(json.dumps(OTHER[field]))}"):
        load_diffusers(tmp_path)


def test_scale_and_shift_needs_a_norm_in_the_middle_attention(tmp_path):
    write(tmp_path)
    for groups, complaint in ((None, "expected 4, .* got null"), (2, "expected 4, .* got 2")):
        changed = SMALL | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": groups}
        (tmp_path / CONFIG).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"^attn_norm_num_groups: {complaint}"):
            load_diffusers(tmp_path)


@pytest.mark.parametrize("field", sorted({*FIXED, *VARIED} - NEWER.keys()))
def test_a_field_that_every_version_writes_must_be_there(tmp_path, field):
    write(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({key: value for key, value in SMALL.items() if key != field}))
    with pytest.raises(ValueError, match=f"^{field}: expected .* there is none"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "ScoreSdeVeScheduler"),
        ("prediction_type", "v_prediction"),
        ("prediction_type", "sample"),
        ("rescale_betas_zero_snr", True),
        ("variance_type", "learned_range"),
        ("beta_schedule", "laplace"),
    ],
)
def test_a_scheduler_that_ours_cannot_be_is_refused_by_the_field_s_name(tmp_path, field, value):
    write(tmp_path, scheduler=json.dumps(json.loads(PUBLISHED_SCHEDULER) | {field: value}))
    with pytest.raises(ValueError, match=rf"^{field}: expected .*; got {json.dumps(value)}"):
        load_diffusers(tmp_path)


def test_trained_betas_of_another_length_are_refused(tmp_path):
    write(tmp_path, scheduler=json.dumps(json.loads(PUBLISHED_SCHEDULER) | {"trained_betas": [0.1, 0.2]}))
    with pytest.raises(ValueError, match=r"^num_train_timesteps: expected 2, .* got 1000"):
        load_diffusers(tmp_path)


def resaved(change):
    """A way to damage a folder: its tensors changed in place by `change`."""

    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "complaint"),
    [
        (resaved(lambda t: t.pop("conv_in.bias")), ValueError, r"expected conv_in.bias of shape \(8,\)"),
        (resaved(lambda t: t.update(more=torch.ones(1))), ValueError, "does not ask for; got more"),
        (
            resaved(lambda t: t.update({"mid_block.attentions.0.to_k.weight": torch.ones(16, 8)})),
            ValueError,
            r"to_k.weight of shape \(16, 16, 1, 1\) .*; got \(16, 8, 1, 1\)",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x08\0\0\0\0\0\0\0{"), ValueError, "truncated or not"),
        (lambda folder: (folder / CONFIG).write_text("{"), ValueError, "config.json is truncated or not"),
        (
            lambda folder: (folder / SCHEDULER).write_text("[3]"),
            ValueError,
            "scheduler_config.json is truncated or not",
        ),
        (lambda folder: (folder / CONFIG).unlink(), FileNotFoundError, "expected config.json in"),
        (
            lambda folder: (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin"),
            FileNotFoundError,
            r"expected diffusion_pytorch_model.safetensors .*save_pretrained.*\.bin\) are never loaded",
        ),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, error, complaint):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=complaint):
        load_diffusers(tmp_path)


def test_what_diffusers_does_not_have_is_not_written_and_nothing_is_overwritten(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"learned_resampling=True.*got False"):
        save_diffusers(UNet(**OURS, learned_resampling=False), SCHEDULE, tmp_path / "exported")
    network = UNet(**OURS)
    network.more = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"no place for more\.bias, more\.weight"):
        save_diffusers(network, SCHEDULE, tmp_path / "exported")
    with pytest.raises(FileExistsError, match="never overwritten"):
        save_diffusers(UNet(**OURS), SCHEDULE, tmp_path)

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(interop, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_diffusers(UNet(**OURS), SCHEDULE, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_nothing_of_diffusers_is_needed_to_read_or_write(tmp_path, monkeypatch):
    for package in ("diffusers", "huggingface_hub", "accelerate"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    save_diffusers(UNet(**OURS), SCHEDULE, tmp_path / "of" / "mine")
    load_diffusers(str(tmp_path / "of" / "mine"))


def test_a_repository_is_fetched_without_its_pickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs, asked = write(tmp_path / "cached"), []

    def snapshot_download(name, allow_patterns):
        asked.append((name, sorted(allow_patterns)))
        if name != "owner/name":
            raise ConnectionError("no route to it")
        return str(tmp_path / "cached")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    ours, _ = load_diffusers("owner/name")
    assert asked == [("owner/name", ["*.json", "*.safetensors"])]
    assert difference(ours, theirs, torch.tensor([1, 2])) < 1e-10
    with pytest.raises(FileNotFoundError, match=r"owner/other is no folder .*\(no route to it\): give a folder"):
        load_diffusers("owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"owner/name is no folder here.*huggingface_hub installed"):
        load_diffusers("owner/name")
