"""Loss-second-moment sampling: in a trainer, through a checkpoint, and with losses that are no numbers."""

import pytest
import torch
from torch import nn

from ddpm_lib.diffusion.schedule import Schedule, linear_schedule
from ddpm_lib.diffusion.timesteps import LossSecondMoment, UniformTimesteps
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.training.trainer import Trainer

FOUR = Schedule([0.1, 0.2, 0.3, 0.4])
EVERY = torch.arange(1, 5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def warm(losses=(1.0, 2.0, 3.0, 4.0), schedule=FOUR, **options):
    sampler = LossSecondMoment(schedule, **options)
    for _ in range(sampler.losses.shape[1]):
        sampler.update(EVERY, torch.as_tensor(losses))
    return sampler


def test_steps_are_drawn_as_often_as_their_losses_are_large_and_a_thousandth_anyhow():
    p = warm((1.0, 2.0, 3.0, 4.0)).probabilities()
    assert p.tolist() == pytest.approx([0.999 * x / 10 + 0.00025 for x in (1, 2, 3, 4)], rel=1e-6)
    assert warm((0.0, 0.0, 0.0, 0.0)).probabilities().tolist() == [0.25] * 4
    assert warm(uniform=1.0).probabilities().tolist() == pytest.approx([0.25] * 4)


def test_the_mean_loss_keeps_its_expectation_and_loses_variance():
    """Losses of very different size, as the bound's terms are: the variance by exact sums, and measured."""
    sizes = torch.tensor([100.0, 5.0, 1.0, 0.2])
    sampler, uniform = warm(sizes), UniformTimesteps(FOUR)
    means = {}
    for name, one in {"second moment": sampler, "uniform": uniform}.items():
        t, factor = one.draw(400_000, seeded())
        losses = sizes[t - 1] * (1 if factor is None else factor)
        means[name] = losses.mean().item(), losses.var().item()
    exact = sizes.mean().item()
    for mean, var in means.values():
        assert abs(mean - exact) < 5 * (var / 400_000) ** 0.5 + 1e-3
    p = sampler.probabilities()
    expected = (sizes.double() ** 2 / (16 * p)).sum().item() - exact**2
    assert means["second moment"][1] == pytest.approx(expected, rel=0.1, abs=1.0)
    assert means["second moment"][1] < means["uniform"][1] / 20


def test_losses_that_are_no_numbers_are_not_remembered():
    sampler = warm()
    before = sampler.probabilities()
    sampler.update(EVERY, torch.tensor([float("nan"), float("inf"), -float("inf"), float("nan")]))
    assert torch.equal(sampler.probabilities(), before)


def test_it_remembers_no_graph_and_no_live_tensor():
    sampler, loss = LossSecondMoment(FOUR, history=1), torch.tensor([1.0, 1.0, 1.0, 1.0], requires_grad=True)
    sampler.update(EVERY, loss * 2)
    assert not sampler.losses.requires_grad and not sampler.state()["losses"].requires_grad
    t, told = EVERY.clone(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    sampler.update(t, told)
    told.fill_(9.0)  # as code that puts the factors into the losses does
    t.fill_(1)
    assert sampler.state()["losses"][:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.1]]))

    def forward(self, x_t, t, labels):
        return self.w * x_t + 0.5 * t[:, None, None, None]


def trainer(seed=0, **options):
    images = torch.rand(16, 1, 2, 2, generator=seeded(1)) * 2 - 1
    data = LabelledImages(images, torch.arange(16) % 4)
    schedule = linear_schedule(6, 0.01, 0.5)
    sampler = LossSecondMoment(schedule, history=3)
    return Trainer(Small(), schedule, data, batch=16, learning_rate=0.01, seed=seed, timesteps=sampler, **options)


def test_a_trainer_takes_it_and_it_learns_which_steps_cost_most():
    one = trainer()
    seen = [one.step() for _ in range(60)]
    assert seen[0].factor is None and seen[-1].factor is not None
    assert seen[-1].factor.dtype == torch.float32 and seen[-1].factor.shape == (16,)
    assert one.timesteps.probabilities().argmax() == 5  # its noise estimate is wrong by 0.5·t, at T most of all
    late = torch.cat([step.t for step in seen[20:]]).double().mean()
    assert late > 3.7  # uniform t would be 3.5 on average


@pytest.mark.parametrize("stop", [1, 5, 40])
def test_a_resumed_run_goes_on_bit_for_bit(stop):
    whole, first = trainer(), trainer()
    for _ in range(50):
        whole.step()
    for _ in range(stop):
        first.step()
    tensors, about = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    second = trainer(seed=3)
    second.load_state(tensors, about)
    second.seed = first.seed  # the order of the images is an option, not a state
    second.images = None
    while second.steps < 50:
        second.step()
    for name, tensor in whole.state()[0].items():
        assert torch.equal(tensor, second.state()[0][name]), name


def test_a_state_of_another_kind_is_refused_by_name():
    sampler = warm()
    for state, got in (
        ({}, "losses of shape (4, 10), got nothing"),
        (warm(history=3).state(), "losses of shape (4, 10), got (4, 3)"),
        ({"losses": torch.zeros(4, 10), "count": torch.zeros(5)}, "count of shape (4,), got (5,)"),
    ):
        with pytest.raises(ValueError) as error:
            sampler.load_state(state)
        assert got in str(error.value) and "the sampler, the history and the number of steps" in str(error.value)


@pytest.mark.parametrize("wrong", [{"history": 0}, {"uniform": 0.0}, {"uniform": 1.5}])
def test_it_asks_for_a_history_and_a_share(wrong):
    with pytest.raises(ValueError, match=r"expected history >= 1 and 0 < uniform <= 1; got"):
        LossSecondMoment(FOUR, **wrong)
