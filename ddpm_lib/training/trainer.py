"""The state of a training run, and its one step: everything that a checkpoint must hold, in one place."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_lib.devices import to_device
from ddpm_lib.diffusion.forward import noise_like
from ddpm_lib.diffusion.loss import l_simple
from ddpm_lib.diffusion.schedule import Schedule
from ddpm_lib.diffusion.timesteps import TimestepSampler, UniformTimesteps
from ddpm_lib.images.data import LabelledImages, check_images
from ddpm_lib.images.feed import feed
from ddpm_lib.images.fingerprint import fingerprint
from ddpm_lib.images.image_files import ImageFiles
from ddpm_lib.training.checkpoint import load_weights
from ddpm_lib.training.ema import EMA
from ddpm_lib.training.execution import Execution


class Step(NamedTuple):
    """What one step saw: tensors that nobody has waited for."""

    loss: Tensor  # (B,), on the device: L_simple of each image, per pixel
    t: Tensor  # (B,), on the CPU
    factor: Tensor | None  # (B,), on the CPU: the timestep sampler's, None where all are 1
    gradient_norm: Tensor  # (), on the device, before clipping
    skipped: Tensor | None = None  # (), on the device: whether a loss scaler let the weights be; None without one


class Trainer:
    """A training run: AdamW on L_simple, gradient clipping, and averages of the weights in `emas` (`ema` is the first).

    The network decides the device; `feed` brings the images there. rate: the factor of learning_rate before each step,
    a function of the steps done (`linear_rate`, say; None is constant). weight_decay acts on matrices and kernels, not
    on biases and norms. flip: mirror each image left to right with probability 1/2.
    prepare_labels: turns a batch's labels, (B,) on the CPU, into what the network sees (label dropout, say, or None).
    timesteps: draws t (None: uniform). execution: how a step is computed (None: at once, in the network's dtype).
    workers: processes that read files. memory_budget: bytes that the images may
    take on the device, or else in the machine's memory (None: a quarter of what is free there).
    On a CPU the same seed, network, data and number of threads give the same weights, however often the run was
    interrupted; on a GPU nearly, for some of its gradients add in no fixed order. Apple's GPU (MPS) is provided for,
    and its generator saved like CUDA's, but nothing has been run on one yet.
    Raises ValueError or TypeError for options or data that cannot be trained on.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        data: LabelledImages | ImageFiles,
        *,
        batch: int,
        learning_rate: float,
        rate: Callable[[int], float] | None = None,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        ema_decays: Sequence[float] = (0.9999,),
        seed: int = 0,
        flip: bool = False,
        workers: int = 4,
        memory_budget: int | None = None,
        prepare_labels: Callable[[Tensor, torch.Generator], Tensor | None] | None = None,
        timesteps: TimestepSampler | None = None,
        execution: Execution | None = None,
    ):
        if batch < 1 or learning_rate <= 0 or clip_norm <= 0 or weight_decay < 0 or not ema_decays:
            raise ValueError(
                "expected batch >= 1, learning_rate > 0, clip_norm > 0, weight_decay >= 0 and at least one EMA decay; "
                f"got {batch}, {learning_rate:g}, {clip_norm:g}, {weight_decay:g} and {tuple(ema_decays)}"
            )
        if isinstance(data, LabelledImages):
            check_images(data, tuple(data.images.shape[1:]), getattr(model, "null", 0) or None)
        self.fingerprint = fingerprint(data)  # now, for files may change while the run goes on
        self.device = next(model.parameters()).device
        self.model, self.schedule, self.data = model.train(), schedule, data
        self.execution = execution or Execution()
        self.share, self.network = self.execution.share(batch), self.execution.prepare(model)
        self.emas = [EMA(model, decay) for decay in dict.fromkeys(ema_decays)]
        self.batch, self.clip_norm, self.flip = batch, clip_norm, flip
        self.workers, self.memory_budget = workers, memory_budget
        self.prepare_labels, self.timesteps = prepare_labels, timesteps or UniformTimesteps(schedule)
        kernels = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=True)
        self.rate, self.base_rate = rate or (lambda done: 1.0), learning_rate
        self.steps, self.learning_rate, self.seed = 0, learning_rate, seed  # the learning rate of the last step
        self.host = torch.Generator().manual_seed(seed)  # t, flips, label dropout
        self.noise = torch.Generator(self.device).manual_seed(seed + 1)
        torch.manual_seed(seed + 2)  # dropout takes no generator
        self.images = None  # opened by `open` or the first step, at the step it is

    @property
    def ema(self) -> EMA:
        """The first of the averages."""
        return self.emas[0]

    def open(self) -> None:
        """Get the images ready, which is long where files are decoded; the first step does it where nobody did."""
        if self.images is None:
            options = {"seed": self.seed, "device": self.device, "workers": self.workers, "budget": self.memory_budget}
            self.images = feed(self.data, self.batch, start=self.steps, share=self.share, **options)

    def step(self) -> Step:
        """One step of the optimiser and of every average."""
        self.open()
        self.execution.begin_step(self.seed, self.steps)
        x_0, labels = next(self.images)  # the images of this process; all else is drawn for the joint batch
        share, of_all = self.share, (self.batch, *x_0.shape[1:])
        if self.flip:
            mirrored = (torch.rand(self.batch, generator=self.host) < 0.5)[share]
            x_0 = torch.where(to_device(mirrored, self.device)[:, None, None, None], x_0.flip(-1), x_0)
        y = labels if labels is None or self.prepare_labels is None else self.prepare_labels(labels, self.host)
        y = y if y is None else to_device(y[share], self.device)
        t, factor = self.timesteps.draw(self.batch, self.host)
        eps = noise_like(x_0.new_empty(1).expand(of_all), self.noise)[share]
        x_0, eps, mine = self.execution.arrange(x_0), self.execution.arrange(eps), t[share]

        def losses(part: slice) -> Tensor:
            def model(x_t: Tensor, t: Tensor) -> Tensor:
                return self.network(x_t, t, y if y is None else y[part])

            return l_simple(model, self.schedule, x_0[part], eps[part], mine[part])

        self.learning_rate = self.base_rate * self.rate(self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.execution.backward(losses, factor if factor is None else factor[share], len(x_0))
        norm, skipped = self.execution.update(self.optimiser, list(self.model.parameters()), self.clip_norm)
        for ema in self.emas:
            ema.update(self.model)
        loss = self.execution.gather(loss)
        self.timesteps.update(t, loss)
        self.steps += 1
        return Step(loss, t, factor, norm, skipped)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and a JSON-able description: all that the next step depends on, besides options and data.

        Weights are "model.…", averages "ema.DECAY.…", AdamW's moments "optimiser.…", generators "random.…", the
        timestep sampler's memory "timesteps.…", the execution's "execution.…". They are the live tensors: save or
        clone them before the next step. The description says by a fingerprint which data it were; `load_state` takes
        any (see `check_same`).
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for ema in self.emas:
            tensors |= {f"{ema_name(ema.decay)}{name}": tensor for name, tensor in ema.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{kind}.{name}": tensor for kind, tensor in moments.items()}
        tensors |= {f"random.{name}": state for name, state in self._generators().items()}
        tensors |= {f"timesteps.{name}": tensor for name, tensor in self.timesteps.state().items()}
        tensors |= {f"execution.{name}": tensor for name, tensor in self.execution.state().items()}
        return tensors, {"step": self.steps, "device": self.device.type, "data": self.fingerprint}

    def load_state(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], origin: str = "the state") -> None:
        """Go on where `state` was taken: the next step is the one that would have come. origin: named in errors.

        On another kind of device the noise cannot be continued: it gets a new seed, made from seed and step, and a
        warning says so. Raises ValueError where a part is missing or is that of another network.
        """
        load_weights(self.model, tensors, "model.", origin)
        for ema in self.emas:
            load_weights(ema.model, tensors, ema_name(ema.decay), origin)
            ema.steps = about["step"]
        self.optimiser.state.clear()  # before the first step it is empty
        for name, parameter in self.model.named_parameters():
            kinds = ("step", "exp_avg", "exp_avg_sq")
            if about["step"] and any(f"optimiser.{kind}.{name}" not in tensors for kind in kinds):
                raise ValueError(f"{origin} has no moments of the optimiser for {name}: it can be sampled, not resumed")
            if about["step"]:
                moments = {kind: tensors[f"optimiser.{kind}.{name}"].to(self.device) for kind in kinds}
                like = {"step": moments["step"], "exp_avg": parameter, "exp_avg_sq": parameter}  # its memory format
                copies = {kind: torch.empty_like(like[kind]).copy_(moments[kind]) for kind in kinds}
                self.optimiser.state[parameter] = {kind: copy.detach() for kind, copy in copies.items()}
        random = _under(tensors, "random.")
        same_kind = about["device"] == self.device.type
        needed = self._generators().keys() if same_kind else {"host", "noise", "torch"}
        if missing := ", ".join(sorted(needed - random.keys())):
            raise ValueError(f"{origin} has no state of the random generator {missing}: it can be sampled, not resumed")
        self.timesteps.load_state(_under(tensors, "timesteps."))
        self.execution.load_state(_under(tensors, "execution."))
        if self.images is not None:
            self.images.close()
        self.steps, self.images = about["step"], None
        self.host.set_state(random["host"])
        torch.set_rng_state(random["torch"])
        if same_kind:
            self.noise.set_state(random["noise"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"], self.device)
            elif self.device.type == "mps":
                torch.mps.set_rng_state(random["mps"])
            return
        fresh = int(np.random.SeedSequence((self.seed, self.steps)).generate_state(1)[0])
        self.noise.manual_seed(fresh)
        torch.manual_seed(fresh + 1)
        warnings.warn(
            f"{origin} was saved on {about['device']} and goes on on {self.device.type}: with other noise from here on",
            stacklevel=2,
        )

    def _generators(self) -> dict[str, Tensor]:
        states = {"host": self.host.get_state(), "noise": self.noise.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            states["mps"] = torch.mps.get_rng_state()
        return states


def ema_name(decay: float) -> str:
    """The prefix of an average's tensors in a checkpoint, "ema.0.9999." for instance."""
    return f"ema.{float(decay)}."  # all its digits


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
