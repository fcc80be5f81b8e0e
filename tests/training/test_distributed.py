"""Two processes that train together: the model of one process with the joint batch, and the same in both."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddpm_lib.diffusion.cosine import cosine_schedule
from ddpm_lib.diffusion.timesteps import LossSecondMoment
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.networks.unet import UNet
from ddpm_lib.samplers.guidance import drop_labels
from ddpm_lib.training.distributed import Distributed, by_first, given_to_all, in_turn, may_report, started, wait
from ddpm_lib.training.fast import Fast
from ddpm_lib.training.loop import train
from ddpm_lib.training.trainer import Trainer
from tests.conftest import of_several

CPU, CLASSES, BATCH, STEPS = torch.device("cpu"), 3, 6, 5
IMAGES = torch.rand(14, 1, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
DATA = LabelledImages(IMAGES, torch.arange(14) % CLASSES)
NETWORK = {"size": 4, "channels": 1, "width": 4, "multipliers": (1,), "blocks": 1, "groups": 2, "attention": ()}


def new_trainer(execution, dropout=0.0, start=0, **options):
    """Flips, label dropout, and a timestep sampler that has its memory from the second step on."""
    torch.manual_seed(start)
    schedule, network = cosine_schedule(4), UNet(**NETWORK, dropout=dropout, classes=CLASSES)
    for parameter in network.parameters():  # not at zero, where most gradients vanish
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return Trainer(
        network,
        schedule,
        DATA,
        batch=BATCH,
        learning_rate=1e-3,
        ema_decays=(0.5,),
        flip=True,
        prepare_labels=lambda y, generator: drop_labels(y, 0.3, CLASSES, generator),
        timesteps=LossSecondMoment(schedule, history=1),
        execution=execution,
        **options,
    )


def steps(trainer, count=STEPS):
    """Of some steps: losses, t, gradients' norms, and all gradients of the first; the state after the last."""
    taken, gradients = [], []
    for _ in range(count):
        taken.append(trainer.step())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    names = ("loss", "t", "gradient_norm")
    state = {name: tensor.clone() for name, tensor in trainer.state()[0].items()}
    return {name: torch.stack([getattr(step, name) for step in taken]) for name in names}, gradients[0], state


def buckets(execution):
    """A list that gets an entry for each bucket of gradients that goes to the other process."""
    sent = []

    def hook(_, bucket):
        sent.append(bucket.index())
        total = torch.distributed.all_reduce(bucket.buffer() / 2, async_op=True).get_future()
        return total.then(lambda done: done.value()[0])

    execution.network.register_comm_hook(None, hook)
    return sent


def interrupted(trainer, rank):
    """The step after which `train` ended, where Ctrl-C came to the second process in step 3."""
    step = trainer.step

    def one():
        if rank == 1 and trainer.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    trainer.step = one
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 3 of 9"):
        train(trainer, 9, every=100, progress=False)
    return trainer.steps


def resumed(rank):
    """Dropout at work: four steps in a row, and two, a new trainer with the state of the first process, and two."""
    whole, first, second = (new_trainer(Distributed(CPU), dropout=0.5) for _ in range(3))
    end = steps(whole, 4)[2]
    for _ in range(2):
        first.step()
    tensors, about = first.state()
    torch.manual_seed(rank + 77)  # what a process did meanwhile
    second.load_state(given_to_all(tensors if rank == 0 else {}), by_first(lambda: about))
    return end, steps(second, 2)[2]


def all_of_it(rank):
    """Everything that needs two processes, in one start."""
    found = {}
    with started(CPU):
        found["plain"] = steps(new_trainer(Distributed(CPU), start=rank))
        parts = Distributed(CPU, accumulate=2)
        trainer = new_trainer(parts, start=rank)
        found["parts"] = steps(trainer, 3)
        sent = buckets(parts)
        trainer.step()
        found["sent"] = sent
        found["stops"] = [parts.agree(rank == 1), parts.agree(False), parts.agree(True)]
        found["stopped"] = interrupted(new_trainer(Distributed(CPU)), rank)
        found["resumed"] = resumed(rank)
        dropped = new_trainer(Distributed(CPU), dropout=0.5)
        dropped.execution.begin_step(0, 0)
        found["dropout"] = torch.rand(4)
        with pytest.raises(ValueError, match="a batch of 7 cannot be shared equally by 2 processes"):
            parts.share(7)
        found["shares"] = [parts.share(6)]
        found["by first"] = by_first(lambda: {"rank": rank})
        tensors = {"a": torch.arange(3) + 5 * rank, "b": torch.tensor(2.5 - rank), "c": torch.ones(0, 2)}
        found["given"] = given_to_all(tensors if rank == 0 else {})
        order = []
        with in_turn():
            order.append(torch.tensor(os.times().elapsed))
        found["order"] = order
        print("said by", rank)
        wait()
        found["reports"] = [may_report(), may_report()]
    return found


@pytest.fixture(scope="module")
def two(together):
    ends, outcomes = together(all_of_it)
    assert ends == [0, 0], outcomes[0].err + outcomes[1].err
    return outcomes


@pytest.fixture(scope="module")
def found(two):
    return [outcome.result for outcome in two]


@pytest.mark.parametrize(("key", "count", "options"), [("plain", STEPS, {}), ("parts", 3, {"accumulate": 2})])
def test_two_processes_take_the_steps_of_one_with_the_joint_batch(found, key, count, options):
    alone = steps(new_trainer(Fast(CPU, **options)), count)
    for results in found:
        seen, gradient, state = results[key]
        assert torch.equal(seen["t"], alone[0]["t"])
        torch.testing.assert_close(seen["loss"], alone[0]["loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen["gradient_norm"], alone[0]["gradient_norm"], rtol=1e-4, atol=0)
        torch.testing.assert_close(gradient, alone[1], rtol=1e-4, atol=1e-6)
        for name, tensor in alone[2].items():
            if not name.startswith("random.torch"):
                torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("key", ["plain", "parts"])
def test_both_have_the_same_state_bit_for_bit_the_timestep_sampler_s_memory_with_it(found, key):
    (seen, gradient, state), (other_seen, other_gradient, other_state) = (results[key] for results in found)
    assert torch.equal(gradient, other_gradient)
    assert all(torch.equal(seen[name], other_seen[name]) for name in seen)
    same = {name for name in state if torch.equal(state[name], other_state[name])}
    assert set(state) - same == {"random.torch"}
    assert state["timesteps.count"].sum() == len(seen["t"]) * BATCH


def test_the_steps_are_steps(found):
    """What the other tests compare moves: the sampler is no longer uniform, and the weights are not the first ones."""
    seen, _, state = found[0]["plain"]
    assert (state["timesteps.count"] > 0).all()
    start = new_trainer(Fast(CPU)).state()[0]
    assert max(float((state[n] - start[n]).abs().max()) for n in start if n.startswith("model.")) > 1e-3
    assert seen["loss"].shape == (STEPS, BATCH)


def test_gradients_travel_once_a_step_with_the_last_part(found):
    for results in found:
        assert results["sent"] and len(results["sent"]) == len(set(results["sent"]))


def test_one_that_wants_to_stop_stops_both_after_the_same_step(found):
    for results in found:
        assert results["stops"] == [True, False, True]
        assert results["stopped"] == 3


def test_a_resumed_run_draws_the_same_dropout_in_each_process(found):
    for results in found:
        whole, resumed = results["resumed"]
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(found[0]["dropout"], found[1]["dropout"])


def test_dropout_is_another_one_in_every_step_and_seed():
    class Two(Distributed):
        def __init__(self, rank):
            self.processes, self.rank = 2, rank

    draws = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            for step in range(3):
                for rank in range(2):
                    Two(rank).begin_step(seed, step)
                    draws.append(torch.rand(3))
    assert len(torch.stack(draws).unique(dim=0)) == 12


def test_the_shares_are_the_batch(found):
    assert [results["shares"][0] for results in found] == [slice(0, 3), slice(3, 6)]


def test_what_the_first_knows_all_know_and_only_it_speaks(two, found):
    for results in found:
        assert results["by first"] == {"rank": 0}
        given = results["given"]
        assert given["a"].tolist() == [0, 1, 2] and float(given["b"]) == 2.5 and given["c"].shape == (0, 2)
    assert found[0]["order"][0] <= found[1]["order"][0]
    assert [outcome.out for outcome in two] == ["said by 0\n", ""]
    assert [results["reports"] for results in found] == [[True, False], [False, False]]


def test_alone_nothing_is_asked_of_others():
    with started(CPU) as device:
        assert device is CPU
        assert by_first(lambda: (1, 2)) == (1, 2)
        assert may_report() and given_to_all({"a": np.ones(1)}).keys() == {"a"}
        with in_turn():
            wait()


AT_ONCE = """
import os, signal, sys, time
import torch
from torch import distributed, nn
from ddpm_lib.training.distributed import Distributed, started, wait

os.environ["RANK"] = os.environ["LOCAL_RANK"] = rank = str(int(os.fork() == 0))
signal.alarm(600)  # seconds: what hangs ends, and fails
sys.setswitchinterval(100)  # no thread gets the interpreter's lock before it is given up
with started(torch.device("cpu")):
    model = Distributed(torch.device("cpu")).prepare(nn.Linear(3, 4))
    wait()
    for _ in range(COUNT):
        distributed.all_reduce(torch.ones(1), async_op=True)  # only Gloo's thread holds it
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
del model
if rank == "0":
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
@pytest.mark.parametrize("count", [1, 200])  # so few that only the model waits for them; so many that Python's end does
def test_a_model_may_be_let_go_after_its_group(count):
    program = [sys.executable, "-c", AT_ONCE.replace("COUNT", str(count))]
    end = subprocess.run(program, env=os.environ | of_several(2), capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
