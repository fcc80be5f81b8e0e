"""The memory of a step: what is foretold from one image and two is what a step of eight takes; and parts that fit."""

import pytest
import torch

from ddpm_lib.networks.unet import UNet
from ddpm_lib.training.fast import Fast, microbatches
from ddpm_lib.training.memory import USABLE, Memory, memory_of_step, parts_that_fit, peak_bytes, step_memory

CPU = torch.device("cpu")
SMALL = {"size": 16, "channels": 2, "width": 16, "multipliers": (1, 2), "blocks": 1, "groups": 8, "attention": (8,)}


def built(**options):
    torch.manual_seed(0)
    return UNet(**SMALL | options)


def foretold(network, averages=1, **options):
    labels = torch.zeros(2, dtype=torch.int64) if network.null else None
    return memory_of_step(network, torch.randn(2, 2, 16, 16), labels, Fast(CPU, **options), averages)


def whole_step(network, images, averages, **options):
    """Bytes of a step that really is taken: of all tensors, as the profiler of torch sees them come and go."""
    x, t, execution = torch.randn(images, 2, 16, 16), torch.ones(images, dtype=torch.int64), Fast(CPU, **options)
    labels = torch.zeros(images, dtype=torch.int64) if network.null else None
    kept = []

    def step():
        kept.extend(p.detach().clone() for p in network.parameters() for _ in range(1 + averages))  # and the weights
        optimiser = torch.optim.AdamW(network.parameters(), fused=True)
        for _ in range(2):  # from the second on, the moments are there
            execution.backward(lambda part: (x - network(x, t, labels)).square().flatten(1).mean(1), None, images)
            optimiser.step()

    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("network", "options", "averages"),
    [({"classes": 3}, {}, 1), ({"gradient_checkpointing": True}, {}, 2), ({}, {"precision": "bf16"}, 1)],
    ids=["plain", "checkpointing", "bf16"],
)
def test_what_one_image_and_two_foretell_is_what_a_step_takes(network, options, averages):
    memory = foretold(built(**network), averages, **options)
    assert memory.of(8) == pytest.approx(whole_step(built(**network), 8, averages, **options), rel=0.12)


def test_more_images_wider_networks_and_more_averages_take_more_and_checkpointing_less():
    memory, wide, checkpointed = (
        foretold(built()),
        foretold(built(width=32)),
        foretold(built(gradient_checkpointing=True)),
    )
    assert 0 < memory.of(1) < memory.of(2) < memory.of(3)
    assert wide.fixed > 3 * memory.fixed and wide.image > 1.5 * memory.image
    assert checkpointed.image < 0.6 * memory.image and checkpointed.fixed == pytest.approx(memory.fixed, rel=0.05)
    parameters = sum(p.numel() for p in built().parameters())
    assert foretold(built(), averages=3).fixed - memory.fixed == 2 * 4 * parameters
    assert memory.fixed == pytest.approx(step_memory(parameters, 0, 0), rel=0.05)


def test_the_peak_is_of_what_is_there_at_once():
    def work():
        for _ in range(3):
            a = torch.zeros(1000)
            b = a.view(10, 100)[1:] + 1  # a view takes nothing
            b += 1  # neither does this
            del a
            torch.zeros(500)

    assert peak_bytes(work) == 4 * (900 + 1000 + 900)  # b of the turn before, beside the new a and b
    assert peak_bytes(lambda: None) == 0
    x = torch.ones(1000, requires_grad=True)
    assert peak_bytes(lambda: (x.exp() ** 2).sum().backward()) >= 2 * 4000


def test_parts_are_so_few_as_fit():
    memory = Memory(1000, 100)
    for batch in (1, 2, 7, 32, 33, 100):
        for room in range(1100, 6000, 100):
            parts = parts_that_fit(memory, batch, -int(-room // USABLE))
            assert 1 <= parts <= batch
            assert memory.of(max(p.stop - p.start for p in microbatches(batch, parts))) <= room
            if parts > 1:
                assert memory.of(-(-batch // (parts - 1))) > room


def test_what_cannot_fit_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"take 4\.00 GB, one image 2\.00 GB, and of 9\.00 GB .* 5\.40 GB may be used"):
        parts_that_fit(Memory(4 * 10**9, 2 * 10**9), 8, 9 * 10**9)
