"""The loss scaler: torch's, step for step, but for its floor; and what it refuses."""

import pytest
import torch

from ddpm_lib.training.scaler import LossScaler


def outcomes(count, share, seed):
    """Whether the gradients of `count` steps are finite, True with this probability."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share


def torchs(finite, start, interval):
    """The scales of torch.amp.GradScaler after each of these steps."""
    theirs = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=interval)
    weight, scales = torch.nn.Parameter(torch.zeros(2)), []
    optimiser = torch.optim.SGD([weight], 0.1)
    for good in finite.tolist():
        scaled = theirs.scale(torch.ones(2))
        weight.grad = scaled if good else torch.tensor([1.0, float("inf")])
        theirs.step(optimiser)
        theirs.update()
        scales.append(theirs.get_scale())
    return scales


@pytest.mark.parametrize(
    ("start", "interval", "share"), [(2.0**16, 3, 0.8), (2.0**10, 1, 0.6), (2.0**125, 2, 0.95), (8.0, 40, 0.97)]
)
def test_the_scale_is_torch_s_step_for_step(start, interval, share):
    mine, scales = LossScaler("cpu", start=start, interval=interval, floor=2.0**-40), []
    finite = outcomes(120, share, seed=interval)
    for good in finite:
        assert bool(mine.update(good)) != bool(good)  # what is not finite is skipped
        scales.append(float(mine.scale))
    assert scales == torchs(finite, start, interval)


def test_at_the_floor_nothing_is_skipped_and_the_scale_stays():
    scaler = LossScaler("cpu", start=8.0, interval=2, floor=2.0)
    seen = [(bool(scaler.update(torch.tensor(False))), float(scaler.scale)) for _ in range(4)]
    assert seen == [(True, 4.0), (True, 2.0), (False, 2.0), (False, 2.0)]
    seen = [(bool(scaler.update(torch.tensor(True))), float(scaler.scale)) for _ in range(4)]
    assert seen == [(False, 2.0), (False, 4.0), (False, 4.0), (False, 8.0)]


def test_gradients_are_divided_in_place():
    scaler, gradients = LossScaler("cpu", start=4.0), [torch.tensor([8.0, -2.0]), torch.tensor(1.0)]
    scaler.unscale(gradients)
    assert [gradient.tolist() for gradient in gradients] == [[2.0, -0.5], 0.25]


def test_a_scaler_goes_on_where_its_state_was_taken():
    finite = outcomes(30, 0.8, seed=1)
    whole, first = LossScaler("cpu", interval=3), LossScaler("cpu", interval=3)
    for good in finite[:17]:
        first.update(good)
    again = LossScaler("cpu", start=2.0, interval=3)
    again.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for i, good in enumerate(finite):
        whole.update(good)
        if i >= 17:
            again.update(good)
    assert again.state() == whole.state()


def test_what_makes_no_sense_is_refused():
    for options in ({"floor": 0.0}, {"start": 1.0, "floor": 2.0}, {"interval": 0}):
        with pytest.raises(ValueError, match="expected 0 < floor <= start and interval >= 1; got "):
            LossScaler("cpu", **options)
    with pytest.raises(ValueError, match="the loss scaler expected its good: the run was not begun with one"):
        LossScaler("cpu").load_state({"scale": torch.tensor(2.0)})
