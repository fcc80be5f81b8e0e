"""A trainer that is stopped, stored and loaded into a new one goes on as if nothing had been, bit for bit."""

import itertools
import warnings

import pytest
import torch

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.timesteps import UniformTimesteps
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.feed import feed
from ddpm_lib.networks.unet import UNet
from ddpm_lib.samplers.guidance import drop_labels
from ddpm_lib.training.checkpoint import load_checkpoint, save_checkpoint
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.loop import linear_rate
from ddpm_lib.training.scaler import LossScaler
from ddpm_lib.training.trainer import Trainer

CLASSES, STEPS = 3, 7
SCHEDULE = cosine_schedule(40)
DATA = LabelledImages(  # ten images in batches of four: a round ends in the middle of a batch
    torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1, torch.arange(10) % CLASSES
)


class Attentive:
    """Draws a t of the early or of the late half more often where the losses were large: it has a history."""

    def __init__(self):
        self.past = torch.ones(2)  # the mean loss of each half, forgotten slowly

    def draw(self, batch, generator):
        late = torch.multinomial(self.past, batch, replacement=True, generator=generator)
        t = late * 20 + 1 + torch.multinomial(torch.ones(20), batch, replacement=True, generator=generator)
        return t, (self.past.mean() / self.past)[late]

    def update(self, t, loss):
        for half in (0, 1):
            if (here := (t > 20) == half).any():
                self.past[half] = 0.5 * self.past[half] + 0.5 * loss[here].mean()

    def state(self):
        return {"past": self.past.clone()}

    def load_state(self, state):
        self.past = state["past"].clone()


def new_trainer(width=4, **options):
    """All that there is to remember: dropout, flips, label dropout, two averages, weight decay, a sampler of t."""
    torch.manual_seed(0)
    network = UNet(
        size=4,
        channels=1,
        width=width,
        multipliers=(1,),
        blocks=1,
        groups=2,
        attention=(),
        dropout=0.3,
        classes=CLASSES,
    )

    def prepare(labels, generator):
        return drop_labels(labels, 0.3, CLASSES, generator)

    chosen = {"batch": 4, "learning_rate": 0.01, "rate": linear_rate(2, 20), "weight_decay": 0.1, "seed": 3}
    chosen |= {"ema_decays": (0.9, 0.2), "flip": True, "prepare_labels": prepare, "timesteps": Attentive()}
    return Trainer(network, SCHEDULE, DATA, **{**chosen, **options})


def steps(trainer, end):
    """What each step up to the end saw, in numbers."""
    taken = ((trainer.step(), trainer.learning_rate) for _ in range(end - trainer.steps))
    return [(step.loss.tolist(), step.t.tolist(), rate) for step, rate in taken]


def differences(a, b):
    """The names of the tensors in which two trainers differ."""
    (a, about), (b, same) = a.state(), b.state()
    assert a.keys() == b.keys() and about == same
    return {name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])}


@pytest.fixture(scope="module")
def whole():
    """A trainer that nobody interrupted, and what its steps saw."""
    trainer = new_trainer()
    return trainer, steps(trainer, STEPS)


def interrupted(path, splits):
    """A trainer that was stored in a file at each of these steps and read from there into a new one."""
    trainer, seen = new_trainer(), []
    for split in splits:
        seen += steps(trainer, split)
        save_checkpoint(path, *trainer.state())
        trainer = new_trainer()
        torch.rand(7)  # whatever else happens in a new process
        trainer.load_state(*load_checkpoint(path))
    return trainer, seen


@pytest.mark.parametrize("splits", [*((split,) for split in range(STEPS + 1)), (1, 2, 5), (3, 3, 4)])
def test_a_resumed_trainer_ends_where_one_that_was_never_interrupted_does(whole, tmp_path, splits):
    trainer, seen = interrupted(tmp_path / "state", splits)
    seen += steps(trainer, STEPS)
    assert seen == whole[1]
    assert differences(trainer, whole[0]) == set()
    assert trainer.steps == STEPS


def spoil(trainer, part):
    """Forget one part of the state of a trainer that was just loaded."""
    other = torch.Generator().manual_seed(99)
    if part in ("exp_avg", "exp_avg_sq", "step"):
        for moments in trainer.optimiser.state.values():
            moments[part].fill_(0)
    elif part in ("host", "noise"):
        getattr(trainer, part).set_state(other.get_state())
    elif part == "torch":
        torch.manual_seed(99)
    elif part == "ema steps":
        trainer.emas[1].steps = 0
    elif part == "ema":
        trainer.emas[1].model.load_state_dict(trainer.model.state_dict())
    elif part == "position":
        trainer.images = feed(DATA, 4, seed=3, device=trainer.device, start=0)
    elif part == "timesteps":
        trainer.timesteps.past = torch.ones(2)
    elif part == "rate":
        trainer.rate = lambda done: linear_rate(2, 20)(done - 3)


WAYS = list(itertools.product(("float32", "bf16", "fp16"), (1, 3), (False, True), (UniformTimesteps, Attentive)))


@pytest.mark.parametrize(("precision", "parts", "last", "sampler"), WAYS)
def test_every_way_to_compute_a_step_is_resumed_bit_for_bit(tmp_path, precision, parts, last, sampler):
    def begun():
        execution = Fast(torch.device("cpu"), precision=precision, accumulate=parts, channels_last=last)
        if precision == "fp16":
            execution.scaler = LossScaler("cpu", start=2.0**18 * parts, interval=2)  # skips first
        timesteps = Attentive() if sampler is Attentive else UniformTimesteps(SCHEDULE)
        return new_trainer(batch=5, execution=execution, timesteps=timesteps, ema_decays=(0.9,))

    whole = begun()
    expected = steps(whole, 4)
    trainer = begun()
    seen = steps(trainer, 2)
    save_checkpoint(tmp_path / "state", *trainer.state())
    again = begun()
    again.load_state(*load_checkpoint(tmp_path / "state"))
    assert seen + steps(again, 4) == expected
    assert differences(again, whole) == set()
    if precision == "fp16":
        count = next(iter(whole.optimiser.state.values()))["step"]
        assert 0 < count < 4, "none or all of the steps were skipped"
    for parameter, moments in again.optimiser.state.items():
        assert all(moments[kind].stride() == parameter.stride() for kind in ("exp_avg", "exp_avg_sq"))


def test_a_run_that_was_begun_without_a_loss_scaler_does_not_go_on_with_one():
    state = new_trainer().state()
    with pytest.raises(ValueError, match="the loss scaler expected its scale: the run was not begun with one"):
        new_trainer(execution=Fast(torch.device("cpu"), precision="fp16")).load_state(*state)


PARTS = ["exp_avg", "exp_avg_sq", "step", "host", "noise", "torch", "ema steps", "ema", "position", "timesteps", "rate"]


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_the_state_is_needed(whole, tmp_path, part):
    trainer, _ = interrupted(tmp_path / "state", (3,))
    spoil(trainer, part)
    steps(trainer, STEPS)
    kept = {"ema steps": ("model.", "ema.0.9."), "ema": ("model.", "ema.0.9.")}.get(part, ())
    different = differences(trainer, whole[0])
    weights = {name for name in different if name.startswith(("model.", "ema."))}
    assert weights and not any(name.startswith(kept) for name in different if kept)


def test_a_state_is_a_copy_or_is_stored_before_the_next_step(tmp_path):
    trainer = new_trainer()
    steps(trainer, 2)
    save_checkpoint(tmp_path / "state", *trainer.state())
    tensors, about = load_checkpoint(tmp_path / "state")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    again = new_trainer()
    again.load_state(tensors, about)
    steps(again, 4)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())  # what was loaded is not written


def test_a_trainer_that_has_stepped_can_go_back_to_any_state_the_first_included(whole):
    trainer = new_trainer()
    (start, at), middle = trainer.state(), None
    start = {name: tensor.clone() for name, tensor in start.items()}
    seen = steps(trainer, 4)
    middle, there = trainer.state()
    middle = {name: tensor.clone() for name, tensor in middle.items()}
    seen += steps(trainer, STEPS)
    trainer.load_state(middle, there)
    assert steps(trainer, STEPS) == seen[4:] and not differences(trainer, whole[0])
    trainer.load_state(start, at)
    assert steps(trainer, STEPS) == seen and not differences(trainer, whole[0])


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        (
            "optimiser.exp_avg.stem.bias",
            "has no moments of the optimiser for stem.bias: it can be sampled, not resumed",
        ),
        ("optimiser.exp_avg_sq.", "has no moments of the optimiser for .*: it can be sampled, not resumed"),
        ("optimiser.step.head.2.weight", "has no moments of the optimiser for head.2.weight"),
        ("model.", "holds another architecture: for .* the file has nothing"),
        ("ema.0.2.", "holds another architecture: for .* the file has nothing"),
        ("random.host", "has no state of the random generator host"),
        ("random.noise", "has no state of the random generator noise"),
        ("random.torch", "has no state of the random generator torch"),
    ],
)
def test_a_part_that_is_missing_is_named_and_so_is_the_file(missing, complaint):
    trainer = new_trainer()
    steps(trainer, 2)
    tensors, about = trainer.state()
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(missing)}
    assert len(kept) < len(tensors)
    with pytest.raises(ValueError, match=f"run/step-2 {complaint}"):
        new_trainer().load_state(kept, about, "run/step-2")


def test_the_state_of_another_network_or_another_average_is_refused():
    state = new_trainer().state()
    with pytest.raises(ValueError, match=r"run/x holds another architecture: for .* the network expects"):
        new_trainer(width=8).load_state(*state, "run/x")
    with pytest.raises(ValueError, match=r"run/x holds another architecture: for .* the file has nothing"):
        new_trainer(ema_decays=(0.9, 0.3)).load_state(*state, "run/x")


def test_two_averages_of_nearly_one_decay_are_stored_apart():
    trainer = new_trainer(ema_decays=(0.99999991, 0.99999992))
    names = trainer.state()[0].keys()
    assert {"ema.0.99999991.stem.bias", "ema.0.99999992.stem.bias"} <= names


class Mac:
    """What torch.mps offers, on a machine without it."""

    def __init__(self, monkeypatch):
        self.state = torch.arange(16, dtype=torch.uint8)
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: self.state.clone())
        monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: setattr(self, "state", state.clone()))


def on(kind, **options):
    """A trainer that believes to be on this kind of device, whose tensors are on the CPU."""
    trainer = new_trainer(**options)
    trainer.device = torch.device(kind)
    return trainer


def test_the_generator_of_apple_s_gpu_is_saved_and_continued(tmp_path, monkeypatch):
    mac = Mac(monkeypatch)
    save_checkpoint(tmp_path / "state", *on("mps").state())
    tensors, about = load_checkpoint(tmp_path / "state")
    assert about["device"] == "mps" and torch.equal(tensors["random.mps"], mac.state)
    then, mac.state = mac.state, torch.zeros(16, dtype=torch.uint8)  # somebody drew from it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on("mps").load_state(tensors, about, "run/x")
    assert torch.equal(mac.state, then)
    with pytest.warns(UserWarning, match="run/x was saved on mps and goes on on cpu: with other noise"):
        new_trainer().load_state(tensors, about, "run/x")
    with pytest.warns(UserWarning, match="run/x was saved on cpu and goes on on mps: with other noise"):
        on("mps").load_state(*new_trainer().state(), "run/x")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_on_a_gpu_the_generator_that_dropout_draws_from_is_needed(monkeypatch, kind):
    Mac(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    tensors, about = on(kind).state()
    del tensors[f"random.{kind}"]
    with pytest.raises(ValueError, match=f"run/x has no state of the random generator {kind}: it can be sampled"):
        on(kind).load_state(tensors, about, "run/x")


def noise_after(trainer):
    """What the next step would draw on the device: its noise, and dropout's."""
    return [torch.rand(8, generator=trainer.noise).tolist(), torch.rand(8).tolist()]


def test_on_another_kind_of_device_the_noise_is_new_and_a_warning_says_so():
    trainer, drawn = new_trainer(), []
    for end in (3, 5):
        steps(trainer, end)
        tensors, about = trainer.state()
        assert about["device"] == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            same = new_trainer()
            same.load_state(tensors, about, "run/x")  # on the same kind of device nothing is said
        drawn += noise_after(same)
        for seed in (3, 3, 4):
            moved = new_trainer(seed=seed)
            # a generator of a GPU has a state of another size
            elsewhere = tensors | {"random.noise": torch.zeros(16, dtype=torch.uint8), "random.cuda": torch.zeros(16)}
            with pytest.warns(UserWarning, match="run/x was saved on cuda and goes on on cpu: with other noise"):
                moved.load_state(elsewhere, about | {"device": "cuda"}, "run/x")
            drawn += noise_after(moved)
            assert torch.equal(moved.host.get_state(), tensors["random.host"])  # t and labels go on as they were
        assert drawn[-4:-2] == drawn[-6:-4]  # the new noise is the same in every attempt
        del drawn[-4:-2]
    drawn += noise_after(new_trainer())  # what the seed gave first
    for one, other in itertools.combinations(drawn, 2):
        assert not set(one) & set(other), "noise is replayed"
