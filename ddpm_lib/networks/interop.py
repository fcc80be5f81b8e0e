"""Folders in the form of `diffusers`: published DDPM weights into a UNet and a Schedule, and ours out again."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.networks.blocks import Layer
from ddpm_lib.networks.unet import UNet

CONFIG, SCHEDULER, WEIGHTS = "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"

# Fields of their UNet2DModel for which our UNet has one value. (A padding of 0 is theirs for right and bottom only.)
FIXED = dict(center_input_sample=False, time_embedding_type="positional", flip_sin_to_cos=False, freq_shift=1)
FIXED |= dict(downsample_padding=0, downsample_type="conv", upsample_type="conv", act_fn="silu", norm_eps=1e-6)
FIXED |= dict(mid_block_type="UNetMidBlock2D", mid_block_scale_factor=1, add_attention=True, class_embed_type=None)
# The fields that vary. (The last is read by a time embedding that we do not have.)
VARIED = ["sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"]
VARIED += ["layers_per_block", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups", "dropout"]
VARIED += ["resnet_time_scale_shift", "num_class_embeds", "time_embedding_dim", "num_train_timesteps"]
# What a configuration means that is older than one of these fields.
NEWER = dict(mid_block_type="UNetMidBlock2D", downsample_type="conv", upsample_type="conv", add_attention=True)
NEWER |= dict(dropout=0.0, resnet_time_scale_shift="default", class_embed_type=None, num_class_embeds=None)
NEWER |= dict(attn_norm_num_groups=None, time_embedding_dim=None, num_train_timesteps=None)

# Our modules and theirs: of the whole, and of a Layer (whose number within its level goes where {} stands).
WHOLE = {"time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2", "label": "class_embedding"}
WHOLE |= {"stem": "conv_in", "head.0": "conv_norm_out", "head.2": "conv_out"}
LAYER = {"residual.norm_1": "resnets.{}.norm1", "residual.conv_1": "resnets.{}.conv1"}
LAYER |= {"residual.norm_2": "resnets.{}.norm2", "residual.conv_2": "resnets.{}.conv2"}
LAYER |= {"residual.embedding": "resnets.{}.time_emb_proj", "residual.shortcut": "resnets.{}.conv_shortcut"}
LAYER |= {"attention.norm": "attentions.{}.group_norm", "attention.out": "attentions.{}.to_out.0"}
# Where theirs are several, ours holds their rows one after the other.
LAYER |= {"attention.qkv": "attentions.{}.to_q attentions.{}.to_k attentions.{}.to_v"}
# The first checkpoints name the attention's otherwise.
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_diffusers(
    source: str | Path, *, schedule: Schedule | None = None, null_is_last: bool = False
) -> tuple[UNet, Schedule]:
    """The network (on the CPU, in evaluation mode, float32) and the schedule of a folder in the form of diffusers.

    source: the folder of a DDPMPipeline (subfolders unet and scheduler, or their files side by side) or of a lone
    UNet2DModel; or a repository's name, "owner/name", which the package huggingface_hub fetches.
    schedule: taken instead of the folder's; needed where that has none. null_is_last: says that the last class of a
    class-conditional network stands for "no label", as ours does, where the file does not say so itself.
    The output is theirs, with ours(t) = theirs(t − 1). Which variance to sample with, and whether to clip, is no part
    of a schedule: tell the sampler. Raises ValueError for whatever cannot be reproduced exactly, FileNotFoundError for
    a missing file. Needs no diffusers. Pickled weights (.bin) are never loaded: they can run code.
    """
    folder = _local(source)
    home = folder / "unet" if (folder / "unet" / CONFIG).is_file() else folder
    options = _options(_read(home / CONFIG)[0])
    if schedule is None:
        at = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
        if not (at / SCHEDULER).is_file():
            raise ValueError(f"expected {SCHEDULER} in {at}; there is none: give the schedule as schedule=...")
        schedule = _schedule(_read(at / SCHEDULER)[0])
    tensors, about = _read(home / WEIGHTS)
    if options["classes"] and not (null_is_last or about.get("null_label") == "last"):
        expected = "null, or, if the last class stands for no label, null_is_last=True"
        raise ValueError(f"num_class_embeds: expected {expected}; got {options['classes'] + 1}")
    with torch.device("meta"):  # shapes only: no weights are drawn
        network = UNet(**options)
    network.to_empty(device="cpu").load_state_dict(_ours(network, tensors))
    return network.eval(), schedule


def save_diffusers(network: UNet, schedule: Schedule, folder: str | Path) -> None:
    """Write a new folder that diffusers loads: unet/ (UNet2DModel) and scheduler/ (DDPMScheduler, on the same β).

    An unconditional one is a DDPMPipeline. That one takes no labels: a conditional folder is loaded part by part, and
    its last class stands for "no label". Their scheduler then steps as `ancestral_sample` does with its defaults.
    Written whole or not at all. Raises FileExistsError if it exists, ValueError for learned_resampling = False.
    """
    folder, c = Path(folder), network.config
    if folder.exists():
        raise FileExistsError(f"{folder} exists and is never overwritten: name another folder, or remove it")
    if not c["learned_resampling"]:
        raise ValueError("expected learned_resampling=True, as diffusers' UNet2DModel resamples; got False")
    attends = ["Attn" * (c["size"] // 2**level in c["attention"]) for level in range(len(c["multipliers"]))]
    widths, classes = [c["width"] * multiplier for multiplier in c["multipliers"]], c["classes"]
    unet = dict(sample_size=c["size"], in_channels=c["channels"], out_channels=c["channels"])
    unet |= dict(block_out_channels=widths, layers_per_block=c["blocks"], dropout=c["dropout"])
    unet |= dict(down_block_types=[f"{attn}DownBlock2D" for attn in attends])
    unet |= dict(up_block_types=[f"{attn}UpBlock2D" for attn in reversed(attends)])
    # without attn_norm_num_groups their middle attention has no norm where blocks scale and shift
    unet |= dict(norm_num_groups=c["groups"], attn_norm_num_groups=c["groups"])
    unet |= dict(attention_head_dim=c["head_channels"] or None, num_class_embeds=classes + 1 if classes else None)
    unet |= dict(resnet_time_scale_shift="scale_shift" if c["scale_shift"] else "default")
    ddpm = dict(num_train_timesteps=schedule.T, trained_betas=schedule.beta[1:].tolist(), prediction_type="epsilon")
    ddpm |= dict(variance_type="fixed_small", clip_sample=True, clip_sample_range=1.0, timestep_spacing="leading")
    parts = dict(unet=["diffusers", "UNet2DModel"], scheduler=["diffusers", "DDPMScheduler"])
    files = {f"unet/{CONFIG}": dict(_class_name="UNet2DModel") | NEWER | FIXED | unet}
    files |= {f"scheduler/{SCHEDULER}": dict(_class_name="DDPMScheduler") | ddpm}
    files |= {} if classes else {"model_index.json": dict(_class_name="DDPMPipeline") | parts}
    about = {"format": "pt"} | ({"null_label": "last"} if classes else {})
    tensors, partial = _theirs(network), folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, partial / "unet" / WEIGHTS, metadata=about)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def paired_names(network: UNet) -> Iterator[tuple[str, list[str]]]:
    """(our tensor, their tensors) for all of a network: ("stem.weight", ["conv_in.weight"]), ..."""
    pairs = [(ours, [theirs]) for ours, theirs in WHOLE.items()]
    layers = [("middle.0", "mid_block", 0), ("middle.1", "mid_block", 1)]
    for way in ("down", "up"):
        level = number = 0
        for index, module in enumerate(getattr(network, way)):
            if isinstance(module, Layer):
                layers.append((f"{way}.{index}", f"{way}_blocks.{level}", number))
                number += 1
            else:
                pairs.append((f"{way}.{index}.conv", [f"{way}_blocks.{level}.{way}samplers.0.conv"]))
                level, number = level + 1, 0
    for ours, block, number in layers:
        for part, theirs in LAYER.items():
            pairs.append((f"{ours}.{part}", [f"{block}.{name.format(number)}" for name in theirs.split()]))
    state = network.state_dict()
    for ours, names in pairs:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in state:
                yield f"{ours}.{kind}", [f"{name}.{kind}" for name in names]


def _ours(network: UNet, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names. Linear layers of their attention are 1×1 convolutions of ours."""
    left = {".".join(OLD.get(part, part) for part in name.split(".")): tensor for name, tensor in theirs.items()}
    expected, ours = network.state_dict(), {}
    for our_name, names in paired_names(network):
        rows, *rest = expected[our_name].shape
        shape, parts = (rows // len(names), *rest), []
        for name in names:
            part = left.pop(name, torch.empty(0))
            if part.ndim == 2 and len(shape) == 4:
                part = part[:, :, None, None]  # (out, in, 1, 1)
            if part.shape != shape:
                raise ValueError(f"expected {name} of shape {shape} in {WEIGHTS}; got {tuple(part.shape)} (0: nothing)")
            parts.append(part)
        ours[our_name] = torch.cat(parts)
    if left:
        raise ValueError(f"expected nothing in {WEIGHTS} that {CONFIG} does not ask for; got {', '.join(sorted(left))}")
    return ours


def _theirs(network: UNet) -> dict[str, Tensor]:
    """Our tensors under their names, on the CPU."""
    left, theirs = network.state_dict(), {}
    for our_name, names in paired_names(network):
        tensor = left.pop(our_name).cpu()
        if ".attention." in our_name and tensor.ndim == 4:
            tensor = tensor.flatten(1)  # (out, in)
        theirs |= {name: part.clone() for name, part in zip(names, tensor.chunk(len(names)), strict=True)}
    if left:
        raise ValueError(f"expected a UNet as it was built; diffusers has no place for {', '.join(sorted(left))}")
    return theirs


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of our UNet. Raises ValueError for what it cannot be."""
    c = NEWER | config
    _expect(c, "_class_name", ["UNet2DModel"])
    if missing := {*FIXED, *VARIED} - c.keys():
        raise ValueError(f"{min(missing)}: expected in {CONFIG}; there is none")
    for field in sorted(field for field in c.keys() - VARIED if not field.startswith("_")):
        _expect(c, field, [FIXED.get(field)])  # null, if it is unknown here
    size, width, groups = c["sample_size"], c["block_out_channels"][0], c["norm_num_groups"]
    attends = [kind.startswith("Attn") for kind in c["down_block_types"]]
    for way in ("Down", "Up"):
        _expect(c, f"{way.lower()}_block_types", [[f"{'Attn' * a}{way}Block2D" for a in attends]])
        attends.reverse()
    multipliers = [wide // width for wide in c["block_out_channels"]]
    _expect(c, "block_out_channels", [[width * multiplier for multiplier in multipliers]])
    _expect(c, "sample_size", [size] if isinstance(size, int) else ["one side of square images"])
    _expect(c, "out_channels", [c["in_channels"]])  # ε and no learned variance
    _expect(c, "time_embedding_dim", [None, 4 * width])
    _expect(c, "resnet_time_scale_shift", ["default", "scale_shift"])
    scale_shift = c["resnet_time_scale_shift"] == "scale_shift"
    _expect(c, "attn_norm_num_groups", [groups] if scale_shift else [groups, None])
    sides = tuple(size // 2**level for level, attending in enumerate(attends) if attending)
    options = dict(size=size, channels=c["in_channels"], width=width, multipliers=tuple(multipliers), attention=sides)
    options |= dict(blocks=c["layers_per_block"], groups=groups, head_channels=c["attention_head_dim"] or 0)
    return options | dict(scale_shift=scale_shift, dropout=c["dropout"], classes=(c["num_class_embeds"] or 1) - 1)


def _schedule(config: dict[str, Any]) -> Schedule:
    """Their β, in float64."""
    c = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", trained_betas=None)
    c |= dict(prediction_type="epsilon", rescale_betas_zero_snr=False, variance_type="fixed_small") | config
    _expect(c, "_class_name", ["DDPMScheduler", "DDIMScheduler"])
    _expect(c, "prediction_type", ["epsilon"])
    _expect(c, "rescale_betas_zero_snr", [False])
    _expect(c, "variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
    T, start, end, beta = (c[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "trained_betas"))
    if beta is not None:
        _expect(c, "num_train_timesteps", [len(beta)])  # one β for each
        return Schedule(beta)
    _expect(c, "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
    if c["beta_schedule"] == "scaled_linear":
        return Schedule(torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2)
    return linear_schedule(T, start, end) if c["beta_schedule"] == "linear" else cosine_schedule(T)


def _expect(config: dict[str, Any], field: str, allowed: list[Any]) -> None:
    if config.get(field) not in allowed:
        expected = " or ".join(json.dumps(value) for value in allowed)
        raise ValueError(f"{field}: expected {expected}, no other is ours; got {json.dumps(config.get(field))}")


def _local(source: str | Path) -> Path:
    """The folder itself, or a fetched copy of the repository of that name."""
    if Path(source).is_dir():
        return Path(source)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of many types
        hint = "give a folder; or, to fetch a repository, its owner/name, with a network and huggingface_hub installed"
        raise FileNotFoundError(f"{source} is no folder here and was not fetched ({error}): {hint}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a JSON or safetensors file holds, and what the latter's header says."""
    if not path.is_file():
        why = "diffusers' save_pretrained writes it; pickled weights (.bin) are never loaded, as they can run code"
        raise FileNotFoundError(f"expected {path.name} in {path.parent}; there is none: {why}")
    try:
        if path.suffix == ".json":
            return dict(json.loads(path.read_text(encoding="utf-8"))), {}
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path} is truncated or not what its name says ({error})") from error
