"""How long a recipe takes: its own batch is timed where that is short, else two smaller ones say, and it is told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ddpm_lib.images.data import digits
from ddpm_lib.runs import duration as module
from ddpm_lib.runs.assemble import new_trainer
from ddpm_lib.runs.duration import duration, in_words, on_the_line
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.selftest import SMALL_BATCH, self_test
from ddpm_lib.training.trainer import Step, Trainer

CPU = torch.device("cpu")
CHOSEN = override(recipe("digits"), ["width=4", "groups=2", "head_channels=4", "precision=float32", "channels_last=no"])


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a step of B images takes a + b·B seconds; the batches of its steps in `taken`."""
    state = SimpleNamespace(now=0.0, a=0.0, b=0.0, taken=[])

    def step(trainer):
        trainer.open()
        state.now += state.a + state.b * trainer.batch
        state.taken.append(trainer.batch)
        return Step(torch.ones(trainer.batch), None, None, torch.tensor(1.0))

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(module.time, "perf_counter", lambda: state.now)
    return state


def found(machine, batch, a, b):
    machine.a, machine.b = a, b
    machine.taken.clear()
    chosen = replace(CHOSEN, batch=batch, compile="no")
    trainer = new_trainer(replace(chosen, batch=min(batch, 4)), digits()[0], CPU)
    return duration(chosen, digits()[0], CPU, trainer, a + b * trainer.batch)


def test_a_batch_whose_step_is_short_is_timed_itself(machine):
    assert found(machine, 64, 0.05, 0.01) == (pytest.approx(0.69), (64,))
    assert set(machine.taken) == {64}
    assert not found(machine, 64, 0.05, 0.01).estimated


def test_a_batch_that_the_trainer_has_itself_is_not_timed_again(machine):
    assert found(machine, 4, 0.5, 1.0) == (4.5, (4,)) and not machine.taken
    assert found(machine, 3, 0.5, 1.0) == (3.5, (3,)) and not machine.taken


@pytest.mark.parametrize(
    ("a", "b", "larger"),
    [(0.0, 0.25, 20), (1.0, 0.25, 10), (0.0, 1.0, 8), (0.0, 30.0, 8)],
    ids=["five seconds long", "with a part that no image makes longer", "twice the small one", "slow"],
)
def test_of_two_smaller_ones_the_line_is_read_at_the_recipe_s_batch(machine, a, b, larger):
    """Independent route: the machine's own a + b·128."""
    estimate = found(machine, 128, a, b)
    assert estimate == (pytest.approx(a + 128 * b), (4, larger)) and estimate.estimated
    assert machine.taken == [larger, *[4, larger] * module.ROUNDS]  # in turns, after one that is not timed


def test_a_larger_batch_that_would_be_the_recipe_s_own_is_that(machine):
    assert found(machine, 8, 0.0, 3.0) == (pytest.approx(24.0), (8,))


def test_a_disturbed_round_moves_no_estimate(machine, monkeypatch):
    step = Trainer.step

    def disturbed(trainer):
        machine.now += 50.0 if len(machine.taken) == 3 else 0.0
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", disturbed)
    assert found(machine, 128, 1.0, 1.0).seconds == pytest.approx(129.0)


def test_noise_cannot_make_the_line_begin_below_0_or_fall():
    assert on_the_line(4, 1.0, 8, 1.5, 128) == pytest.approx(0.5 + 0.125 * 128)
    assert on_the_line(4, 1.0, 8, 3.0, 128) == pytest.approx(3.0 * 16)  # not -1 + 0.5·128
    assert on_the_line(4, 3.0, 8, 2.0, 128) == pytest.approx(2.0)  # not 4 - 0.25·128


def test_what_workers_read_ahead_is_not_timed(machine):
    machine.b = 0.01
    chosen = replace(CHOSEN, batch=8, compile="no")
    trainer = new_trainer(replace(chosen, batch=4), digits()[0], CPU)
    began = []
    module.time.perf_counter = lambda: began.append(len(machine.taken)) or machine.now  # monkeypatch restores it
    duration(chosen, digits()[0], CPU, trainer, 0.04, ahead=6)
    assert began[0] == 1 + 6


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0.4, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7199, "120 minutes"), (7200, "2.0 hours")],
        *[(72000, "20.0 hours"), (71.9 * 3600, "71.9 hours"), (310 * 3600, "310 hours (12.9 days)")],
    ],
)
def test_a_length_of_time_is_said_in_its_unit(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("b", "line"),
    [
        (0.01, "         at this speed the recipe takes 20.0 hours"),
        (1.0, "         the recipe takes about 2000 hours (83.3 days), by an estimate from steps of 4 and 8 images"),
    ],
    ids=["timed", "estimated"],
)
def test_the_self_test_on_a_cpu_says_hours_and_whether_they_are_an_estimate(machine, monkeypatch, tmp_path, b, line):
    machine.b = b
    monkeypatch.setattr("ddpm_lib.runs.selftest._say_resume", lambda *a: None)
    chosen, said = replace(CHOSEN, batch=100, steps=72_000, compile="no"), []
    assert self_test(chosen, tmp_path, CPU, said.append)
    assert SMALL_BATCH == 4 and line in said


def test_a_real_step_is_timed_with_its_batch():
    """The other tests' machine is made up: here nothing is."""
    chosen = replace(CHOSEN, batch=24, compile="no")
    trainer = new_trainer(replace(chosen, batch=4), digits()[0], CPU)
    before = trainer.steps
    result = duration(chosen, digits()[0], CPU, trainer, 0.02)
    assert result.batches == (24,) and 0 < result.seconds < 60 and trainer.steps == before
