"""How far two states of a trainer are apart: equal where they must be, and on a GPU as near as its sums allow."""

import pytest
import torch

from ddpm_lib.images.data import LabelledImages
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.run import new_trainer
from ddpm_lib.runs.selftest import TOLERANCE, difference

CPU = torch.device("cpu")
TINY = override(
    recipe("digits"),
    "width=16 multipliers=1,2 blocks=1 groups=4 attention=4 head_channels=0 dropout=0.2 batch=8 warmup=0 "
    "ema_decays=0.9999,0.9 label_dropout=0.3".split(),
)
GREY = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
DATA = LabelledImages(GREY.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.arange(32) % 10)


def copied(trainer):
    tensors, about = trainer.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, about


def stepped(state, spoil=lambda trainer: None, rounding=0.0):
    """The state one step later, of a new trainer from which something was taken, or whose gradients are off."""
    trainer = new_trainer(TINY, DATA, CPU)
    trainer.load_state(*state)
    spoil(trainer)
    generator = torch.Generator().manual_seed(7)

    def off(*_):
        for p in trainer.model.parameters():
            p.grad += torch.randn(p.shape, generator=generator) * rounding * p.grad.square().mean().sqrt()

    trainer.optimiser.register_step_pre_hook(off)
    trainer.step()
    return copied(trainer)


@pytest.fixture(scope="module", params=[3, 12])
def states(request):
    """A trainer's state after some steps, and one step later."""
    trainer = new_trainer(TINY, DATA, CPU)
    for _ in range(request.param):
        trainer.step()
    before = copied(trainer)
    trainer.step()
    return before, copied(trainer)


def test_the_same_step_is_no_difference(states):
    before, after = states
    assert difference(after, stepped(before)) == 0
    assert difference(after, stepped(before), before) == 0


@pytest.mark.parametrize("rounding", [1e-7, 1e-6, 1e-5])
def test_rounding_passes_where_sums_have_no_fixed_order_and_nowhere_else(states, rounding):
    before, after = states
    off = difference(after, stepped(before, rounding=rounding), before)
    assert 0 < off < TOLERANCE / 5
    with pytest.raises(ArithmeticError, match="by up to"):
        difference(after, stepped(before, rounding=rounding))


def moments(*parts, factor=0.0):
    def spoil(trainer):
        for kept in trainer.optimiser.state.values():
            for part in parts:
                kept[part].mul_(factor)

    return spoil


def first_average(trainer):
    """As it is in a new trainer, which loads no averages."""
    trainer.ema.model.load_state_dict(new_trainer(TINY, DATA, CPU).ema.model.state_dict())


FAULTS = {
    "no optimiser state": lambda trainer: trainer.optimiser.state.clear(),
    "no moments": moments("exp_avg", "exp_avg_sq"),
    "no first moment": moments("exp_avg"),
    "no second moment": moments("exp_avg_sq"),
    "twice the second moment": moments("exp_avg_sq", factor=2.0),
    "no step of the optimiser": moments("step"),
    "other weights": lambda trainer: trainer.model.load_state_dict(new_trainer(TINY, DATA, CPU).model.state_dict()),
    "no average": first_average,
    "an average that is the weights": lambda trainer: trainer.emas[1].model.load_state_dict(trainer.model.state_dict()),
    "no steps of an average": lambda trainer: setattr(trainer.emas[1], "steps", 0),
    "another step": lambda trainer: setattr(trainer, "steps", trainer.steps + 1),
    "other t": lambda trainer: trainer.host.manual_seed(9),
    "other noise": lambda trainer: trainer.noise.manual_seed(9),
    "other dropout": lambda trainer: torch.manual_seed(9),
    "another rate": lambda trainer: setattr(trainer, "rate", lambda done: 0.9),
    "other images": lambda trainer: (trainer.open(), next(trainer.images)),
    "weights that are not finite": lambda trainer: next(trainer.model.parameters()).data.fill_(float("nan")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_resumed_run_may_forget_is_seen_on_every_device(states, fault):
    before, after = states
    wrong = stepped(before, FAULTS[fault])
    for start in (None, before):
        with pytest.raises(ArithmeticError):
            difference(after, wrong, start)


@pytest.mark.parametrize("name", ["random.host", "random.noise", "random.torch", "optimiser.step.stem.bias"])
def test_what_is_counted_must_be_equal_on_every_device(states, name):
    before, (tensors, about) = states
    changed = tensors[name].clone()
    changed.view(-1)[0] += 1
    with pytest.raises(ArithmeticError, match=f"^{name} by up to 1$"):
        difference((tensors, about), (tensors | {name: changed}, about), before)


@pytest.mark.parametrize("kind", ["model.", "ema.0.9999.", "ema.0.9.", "optimiser.exp_avg.", "optimiser.exp_avg_sq."])
def test_each_kind_of_number_is_measured_by_its_own_step(states, kind):
    before, (tensors, about) = states

    def shifted(part):
        names = [name for name in tensors if name.startswith(kind)]
        assert names
        moved = {name: tensors[name] + part * (tensors[name] - before[0][name]) for name in names}
        return difference((tensors, about), (tensors | moved, about), before)

    assert shifted(TOLERANCE / 2) == pytest.approx(TOLERANCE / 2, rel=0.01)
    with pytest.raises(ArithmeticError, match=rf"^{kind}\* by 0.03 of the step's length$".replace(".", r"\.")):
        shifted(0.03)
    nan = tensors[f"{kind}stem.bias"] * float("nan")
    with pytest.raises(ArithmeticError, match="by nan of the step's length"):
        difference((tensors, about), (tensors | {f"{kind}stem.bias": nan}, about), before)


def test_what_did_not_move_must_be_equal(states):
    before, (tensors, about) = states
    name = "timesteps.past"  # the memory of a sampler that has learned nothing
    start, there = ({**part, name: torch.ones(2)} for part in (before[0], tensors))
    assert difference((there, about), (there, about), (start, before[1])) == 0
    with pytest.raises(ArithmeticError, match=r"timesteps\.\* by"):
        difference((there, about), ({**there, name: torch.tensor([1.0, 1.0001])}, about), (start, before[1]))


def test_another_step_another_device_and_what_is_missing_are_differences(states):
    before, (tensors, about) = states
    fewer = {name: tensor for name, tensor in tensors.items() if name != "random.torch"}
    for other in ((tensors, about | {"step": 99}), (tensors, about | {"device": "cuda"}), (fewer, about)):
        with pytest.raises(ArithmeticError, match="in place of"):
            difference((tensors, about), other, before)
