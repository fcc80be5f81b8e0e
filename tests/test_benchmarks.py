"""The benchmarks: what races is the same network, what is timed takes turns, what is printed was measured."""

import json
import shutil
import statistics
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from benchmarks import hours, ladder, networks, peak, sampling, step, throughput, timing, whole
from benchmarks.networks import DIFFUSERS, GAUSSIAN, OURS, Contestant, Options, as_ours, network_of
from benchmarks.timing import Times, alternate, ratio, spread
from ddpm_lib.networks.unet import UNet
from ddpm_lib.runs.duration import Duration
from ddpm_lib.runs.recipes import override, recipe
from ddpm_lib.runs.records import RECORDS, read_record
from ddpm_lib.training.fastest import Way

GPU = torch.device("cuda", 0)
CPU, TINY = torch.device("cpu"), Options(size="tiny", batch=4, steps=4)
PLAIN, BF16 = Way("float32", False, False), Way("bf16", True, False)
NEEDS_DIFFUSERS = pytest.mark.skipif(not networks.INSTALLED[DIFFUSERS], reason="diffusers is not installed")


# Timing, on a clock that is made up


@pytest.fixture
def clock(monkeypatch):
    state = SimpleNamespace(now=0.0, called=[])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: state.now)
    monkeypatch.setattr(timing.time, "process_time", lambda: state.now / 2)
    return state


def call(clock, name, seconds):
    def one():
        clock.now += seconds
        clock.called.append(name)

    return one


def test_all_take_turns_in_an_order_that_is_reversed_each_round(clock):
    times = alternate({"a": call(clock, "a", 1.0), "b": call(clock, "b", 3.0)}, 3, CPU)
    assert clock.called == [*"aabb", *"ab", *"ba", *"ab"]  # twice each before, not counted
    assert times == {"a": Times([1.0] * 3, [0.5] * 3), "b": Times([3.0] * 3, [1.5] * 3)}
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        alternate({}, 0, CPU)


def test_a_turn_is_as_many_calls_as_the_slowest_needs_for_the_time_asked(clock):
    times = alternate({"a": call(clock, "a", 0.1), "b": call(clock, "b", 0.5)}, 2, CPU, at_least=2.0)
    assert clock.called == [*"aabb", *"aaaabbbb", *"bbbbaaaa"]
    assert times["a"].seconds == pytest.approx([0.1, 0.1]) and times["b"].processor == pytest.approx([0.25, 0.25])


def test_a_ratio_is_taken_within_a_round_so_that_a_slow_one_says_nothing():
    """Wrong version: the ratio of the medians, 3 here."""
    mine, rival = Times([1.0, 10.0, 1.0], [1.0] * 3), Times([2.0, 20.0, 3.0], [1.5] * 3)
    assert ratio(mine, rival) == (2.0, 2.0, 2.5)
    assert ratio(mine, rival, processor=True) == (1.5, 1.5, 1.5)
    assert spread([3.0]) == (3.0, 3.0, 3.0) and spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_the_rate_of_matrix_products_counts_two_operations_a_product_and_sum(monkeypatch):
    monkeypatch.setattr(timing, "alternate", lambda *a, **k: {"product": Times([9.0, 8.0], [4.0, 2.0])})
    assert timing.matrix_rate(CPU, None, side=16) == 2 * 16**3 / 2.0  # the best round, of the processor's time


# Who races


@NEEDS_DIFFUSERS
@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.soak)])
def test_diffusers_gets_the_same_architecture_weights_and_work(size):
    options = Options(size=size, batch=1)
    ours, theirs = network_of(OURS, options), network_of(DIFFUSERS, options)
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    assert ours.config == UNet(**networks.CONFIGS[size]).config and ours.training and theirs.training
    assert step.operations(OURS, options) == step.operations(DIFFUSERS, options) > 0
    x_t, t = torch.randn(2, *networks.image_shape(options)), torch.tensor([1, 700])
    with torch.no_grad():
        a, b = (as_ours(who, network.eval())(x_t, t) for who, network in ((OURS, ours), (DIFFUSERS, theirs)))
    assert a.std() > 0.1 and (a - b).abs().max() < 1e-3 * a.std()
    assert theirs.config.dropout == ours.config["dropout"] == 0.1


def test_the_full_network_is_ddpm_s_for_cifar_10():
    assert sum(p.numel() for p in network_of(OURS, Options()).parameters()) == 35_746_307


@pytest.mark.skipif(not networks.INSTALLED[GAUSSIAN], reason="denoising-diffusion-pytorch is not installed")
def test_the_third_network_has_about_as_many_parameters():
    ours, third = (sum(p.numel() for p in network_of(who, Options()).parameters()) for who in (OURS, GAUSSIAN))
    assert abs(third / ours - 1) < 0.05


def test_operations_are_those_of_a_convolution_counted_by_hand(monkeypatch):
    """Independent route: 2·9·3·4·H·W operations a pass, one forward, one backward: images need no gradient."""
    monkeypatch.setattr(step, "network_of", lambda who, options: torch.nn.Conv2d(3, 4, 3, padding=1))
    monkeypatch.setattr(step, "as_ours", lambda who, network: lambda x_t, t: network(x_t))
    assert step.operations(OURS, TINY) == 2 * (2 * 9 * 3 * 4 * 8 * 8)


def test_eager_is_measured_against_eager_and_compiled_against_compiled():
    listed = step.contestants(True, BF16)
    assert [str(c) for c in listed] == [
        *["ddpm_lib", "ddpm_lib, own defaults: bf16, channels-last", "diffusers", "denoising-diffusion-pytorch"],
        *["ddpm_lib, compiled", "diffusers, compiled", "denoising-diffusion-pytorch, compiled"],
    ]
    assert [str(c.rival) for c in listed] == ["diffusers"] * 4 + ["diffusers, compiled"] * 3
    assert [str(c) for c in step.contestants(False, BF16)] == [str(c) for c in listed[:4]]
    execution = listed[1].execution(TINY)
    assert (execution.dtype, execution.channels_last, execution.compile) == (torch.bfloat16, True, False)
    execution = listed[4].execution(TINY)
    assert (execution.dtype, execution.channels_last, execution.compile) == (None, False, True)


# The parts


def parameters(call):
    """The network's parameters that a contestant's function holds on to."""
    cells = [cell.cell_contents for cell in (call.__closure__ or ())]
    (optimiser,) = [cell for cell in cells if isinstance(cell, torch.optim.Optimizer)]
    return [p for group in optimiser.param_groups for p in group["params"]]


@NEEDS_DIFFUSERS
@pytest.mark.parametrize("contestant", [Contestant(OURS), Contestant(OURS, way=BF16), Contestant(DIFFUSERS)], ids=str)
def test_a_network_step_moves_every_parameter_by_the_learning_rate(contestant):
    one = step.build(contestant, TINY)
    before = [p.detach().clone() for p in parameters(one)]
    one()
    for p, was in zip(parameters(one), before, strict=True):
        assert 0 < (p - was).abs().max() < 3e-5


@NEEDS_DIFFUSERS
def test_the_whole_trainers_read_the_same_images_and_learn(monkeypatch):
    seen, stored = [], whole.stored_images(TINY)[0]
    monkeypatch.setattr(whole, "stored_images", lambda options: (stored[:4], "random images"))
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda net, x_t, *a: seen.append(x_t.shape) or forward(net, x_t, *a))
    trained = whole.build(Contestant(OURS), TINY)
    result = trained()
    assert result.loss.shape == (4,) and trained.__self__.steps == 1 and trained.__self__.flip
    assert seen == [(4, 3, 8, 8)]
    pictures = whole._Pictures(stored[:4])
    picture, plain = pictures[2]["input"], stored[2] / 127.5 - 1
    assert any((picture - x).abs().max() < 1e-6 for x in (plain, plain.flip(-1)))  # mirrored, or not
    theirs = whole.build(Contestant(DIFFUSERS), TINY)
    assert all(0 < theirs() < 10 for _ in range(2))


def test_images_are_cifar_10_where_it_lies_and_else_random_which_is_said(tmp_path, monkeypatch):
    there, options = torch.zeros(3, 3, 32, 32, dtype=torch.uint8), Options(data=str(tmp_path))
    monkeypatch.setattr(whole, "cifar10", lambda root: (SimpleNamespace(images=there), None))
    assert whole.stored_images(options)[1] == "random images"  # and nothing is downloaded
    (tmp_path / "cifar-10-python.tar.gz").touch()
    images, what = whole.stored_images(options)
    assert images is there and what == "CIFAR-10"


@NEEDS_DIFFUSERS
def test_both_sample_the_same_images():
    ours, theirs = (sampling.build(contestant, TINY)() for contestant in sampling.contestants(False, PLAIN))
    assert ours.shape == theirs.shape == (4, 3, 8, 8) and ours.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-3
    other = sampling.build(Contestant(OURS), Options(size="tiny", batch=4, steps=5))()
    assert (ours - other).abs().max() > 0.05  # one step more, and one sees it
    with pytest.raises(ValueError, match="steps must divide 1000"):
        sampling.build(Contestant(OURS), Options(size="tiny", steps=3))


@pytest.mark.soak
def test_peak_memory_is_that_of_a_process_of_its_own():
    """Independent route: 16 more tensors of the first level's size, at least, for the backward pass."""
    small, large = (
        peak.peak_gb("benchmarks.step", Contestant(OURS), Options(size="tiny", batch=batch)) for batch in (1, 2048)
    )
    assert 0 <= small < 0.5 and large - small > 16 * 2047 * 16 * 8 * 8 * 4 / 1e9


def test_peak_memory_is_what_two_calls_add_and_of_what_a_cpu_compiles_nobody_can_tell(monkeypatch):
    grown, called = iter([1.0, 1.5]), []
    monkeypatch.setattr(peak, "peak_memory", lambda device: next(grown))
    monkeypatch.setattr(step, "build", lambda *a: lambda: called.append(a))
    assert peak._alone("benchmarks.step", Contestant(OURS), TINY) == 0.5
    assert called == [(Contestant(OURS), TINY)] * 2
    assert peak.peak_gb("benchmarks.step", Contestant(OURS, compiled=True), TINY) is None


# The command


@NEEDS_DIFFUSERS
def test_the_command_measures_prints_and_stores(tmp_path, capsys):
    out = tmp_path / "speed.json"
    words = ["--size", "tiny", "--batch", "2", "--steps", "2", "--rounds", "3", "--compile", "no", "--memory", "no"]
    record = throughput.main([*words, "--data", str(tmp_path), "--device", "cpu", "--out", str(out)])
    assert read_record(out) == json.loads(json.dumps(record)) and out.with_suffix(".png").stat().st_size > 5000
    parts, lines = record["results"]["parts"], capsys.readouterr().out.splitlines()
    assert list(parts) == ["a", "b", "c"] and "random images" in lines[1] and "--size tiny" in record["command"]
    for part in parts.values():
        names = [row["name"] for row in part["rows"]]
        assert {"ddpm_lib", "diffusers"} <= set(names)
        for row in part["rows"]:
            low, mid, high = row["images_per_s"]
            assert 0 < low <= mid <= high and len(row["seconds"]) == 3
            assert mid == pytest.approx(2 / sorted(row["seconds"])[1])
            assert any(line.startswith(row["name"]) and f"{mid:.4g}" in line for line in lines)
            assert row["times_rival"][1] == 1 or row["name"] != "diffusers"
    assert all(row["share_of_matrix_rate"] > 0 for row in parts["a"]["rows"])
    assert "share_of_matrix_rate" not in parts["c"]["rows"][0]


def test_what_is_not_installed_is_left_out_and_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(networks.INSTALLED, DIFFUSERS, False)
    monkeypatch.setattr(throughput, "own_defaults", lambda options: PLAIN)
    words = ["--size", "tiny", "--batch", "2", "--rounds", "1", "--part", "a", "--memory", "no", "--device", "cpu"]
    record = throughput.main([*words, "--compile", "no", "--out", str(tmp_path / "a.json")])
    printed = capsys.readouterr().out
    assert DIFFUSERS in record["results"]["parts"]["a"]["missing"]
    assert "diffusers is not installed and was left out" in printed and "nothing is compiled: as asked for" in printed
    assert "times_rival" not in record["results"]["parts"]["a"]["rows"][0]


def test_without_a_compiler_nothing_is_compiled_and_it_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    args = throughput._arguments(["--device", "cpu"])
    assert not args.compile and args.why == "no compiler was found"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    assert throughput._arguments(["--device", "cpu"]).compile
    assert not throughput._arguments(["--device", "cpu", "--compile", "no"]).compile


def test_a_gpu_gets_its_own_defaults():
    options = throughput._arguments(["--device", "cuda"]).options
    assert (options.precision, options.batch, options.steps, options.workers) == ("bf16", 128, 50, 4)
    options = throughput._arguments(["--device", "cpu", "--precision", "bf16"]).options
    assert (options.precision, options.batch, options.steps, options.workers) == ("bf16", 8, 10, 0)


# Hours


def test_hours_are_those_of_the_recipe_s_steps_at_its_batch(tmp_path, monkeypatch, capsys):
    clocks = []
    monkeypatch.setattr(hours, "time_steps", lambda trainer, clock: clocks.append(clock) or 0.25 * trainer.batch)
    answer = lambda chosen, data, device, trainer, seconds, clock: Duration(9 * seconds, (4, 8))  # noqa: E731
    monkeypatch.setattr(hours, "duration", answer)
    plain = ["width=4", "groups=2", "head_channels=4", "steps=7200"]
    monkeypatch.setattr(hours, "recipe", lambda name: override(recipe(name), plain))
    words = ["digits", "--device", "cpu", "--out", str(tmp_path / "hours.json")]
    record = hours.main(words)
    row = record["results"]["recipes"]["digits"]
    assert (row["hours"], row["seconds"], row["estimated"], row["batch"]) == (18.0, 9.0, True, 96)
    printed = capsys.readouterr().out
    assert "digits         about 18.0 hours" in printed and "timed: 4 and 8" in printed
    assert "python benchmarks/hours.py digits --device cpu" in record["command"]
    hours.main([*words, "--processor"])
    assert clocks == [time.perf_counter, time.process_time]
    with pytest.raises(ValueError, match="unknown recipe 'digit'"):
        monkeypatch.setattr(hours, "recipe", recipe)
        hours.main(["digit", "--out", str(tmp_path / "none.json")])


def test_the_table_of_hours_has_a_column_a_record_and_a_row_a_recipe():
    def record(device, processor, **found):
        recipes = {name: {"hours": h, "estimated": estimated} for name, (h, estimated) in found.items()}
        return {"device": device, "results": {"processor": processor, "recipes": recipes}}

    first, second = (
        record("GPU", False, mnist=(2.0, False)),
        record("CPU", True, cifar10=(800.0, True), mnist=(9, True)),
    )
    assert hours.table([first, second]) == "\n".join(
        [
            *["| recipe | GPU | CPU, alone on its core |", "| --- | --- | --- |"],
            *["| `mnist` | 2.0 hours | about 9.0 hours |", "| `cifar10` |  | about 800 hours (33.3 days) |"],
        ]
    )


def test_the_front_page_s_hours_are_those_of_the_records():
    records = [read_record(path) for path in sorted(RECORDS.glob("hours_*.json"))]
    assert hours.table(records) in (RECORDS.parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_front_page_s_comparison_is_that_of_the_record():
    parts = read_record(RECORDS / "throughput_cpu.json")["results"]["parts"]
    rows = [row for part in parts.values() for row in part["rows"] if not row["name"].startswith("diffusers")]
    times = [f"{statistics.median(row['times_rival']):.2f}" for row in rows]
    step, step_bf16, other, compiled, other_compiled, whole, whole_bf16, sampling = times
    said = (RECORDS.parents[1] / "README.md").read_text(encoding="utf-8")
    float32 = [row for row in parts["a"]["rows"] if row["name"] in ("ddpm_lib", "diffusers")]
    assert [round(row["share_of_matrix_rate"], 1) for row in float32] == [0.9, 0.9]  # "nine tenths"
    assert f"our step is {step} times as fast in float32 " in said and f"{step_bf16} times with these defaults" in said
    assert f"the whole trainer {whole} and {whole_bf16} times, and sampling {sampling} times" in said
    assert f"compiled against compiled, our step is {compiled} times as fast" in said
    assert f"is at {other} times, compiled at {other_compiled} (" in said


# The ladder of chapter 12


def test_each_rung_switches_on_one_thing_more_and_the_record_says_what_it_took(tmp_path, capsys):
    path = tmp_path / "ladder.json"
    ladder.main([*"--recipes digits --batch 2 --rounds 1 --out".split(), str(path)])
    record = read_record(path)
    assert record["command"] == "python -m benchmarks.ladder --recipes digits --batch 2 --rounds 1"
    (result,) = record["results"]
    names = [rung["name"] for rung in result["rungs"]]
    assert names == ["float32, tensor by tensor", "+ fused AdamW, foreach average", "+ bf16", "+ channels-last"]
    assert all(rung["seconds"] == [rung["median"]] and rung["median"] > 0 for rung in result["rungs"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["digits"] * 4
    changed = [dict(options.items() - before.items()) for before, options in pairwise(ladder.rungs(GPU, True).values())]
    assert changed == [
        {"slow": False},
        {"budget": None},
        {"precision": "bf16"},
        {"channels_last": True},
        {"compile": True},
    ]


def test_the_lowest_rung_is_the_same_trainer(tmp_path):
    options = ladder.rungs(CPU, False)
    low, high = (ladder.new_trainer(recipe("digits"), 4, CPU, options[name]) for name in list(options)[:2])
    for _ in range(2):
        assert torch.allclose(low.step().loss, high.step().loss, atol=1e-5)
    averages = zip(low.ema.model.parameters(), high.ema.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in averages)
