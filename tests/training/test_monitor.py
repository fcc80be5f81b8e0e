"""Watching a run: the log and what a crash does to it, curves, memory and TensorBoard."""

import itertools
import json
import math
import os
import random
import resource
import sys
import types

import matplotlib.pyplot as plt
import pytest
import torch

from ddpm_lib.training.monitor import append_entry, curves, cut_log, log_ticks, peak_memory, read_log, tensorboard

# The log


@pytest.fixture
def log(tmp_path):
    for step in (10, 20, 30):
        append_entry(tmp_path / "log.jsonl", entry(step))
    return tmp_path / "log.jsonl"


def entry(step, **more):
    by_t = [None, *(1 / (step + i) for i in range(9))]
    return {"step": step, "loss": 1 / step, "loss_by_t": by_t, "gradient_norm": 2.0, "learning_rate": 1e-3, **more}


def test_a_log_is_read_as_it_was_written(log, tmp_path):
    assert read_log(log) == [entry(10), entry(20), entry(30)]
    assert len(log.read_text().splitlines()) == 3
    assert read_log(tmp_path / "none") == [] and not (tmp_path / "none").exists()


def test_a_last_line_that_a_crash_cut_anywhere_is_left_out(log):
    whole = log.read_text()
    for length in range(len(whole) - len(whole.splitlines()[-1]) - 1, len(whole)):
        log.write_text(whole[:length])
        assert read_log(log) == [entry(10), entry(20)], "an entry without its newline was never finished"
    log.write_text(whole)
    assert len(read_log(log)) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    size = len(json.dumps(entry(10))) + 1
    with pytest.raises(OSError, match=rf"No space left on device: cannot write .*log\.jsonl, which takes {size} B; "):
        append_entry(tmp_path / "log.jsonl", entry(10))


@pytest.mark.parametrize("rubbish", ["{'step': 20}", '{"step": 20, "lo', "", "loss 0.3"])
def test_rubbish_is_refused_with_the_number_of_its_line(log, rubbish):
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], rubbish, lines[2]]) + "\n")
    with pytest.raises(ValueError) as refused:
        read_log(log)
    assert str(refused.value) == f"{log}, line 2: expected JSON, got {rubbish!r}"


@pytest.mark.parametrize(("step", "left"), [(0, []), (9, []), (10, [10]), (29, [10, 20]), (30, [10, 20, 30]), (99, 3)])
def test_a_log_is_cut_after_a_step(log, step, left):
    with open(log, "a") as unfinished:
        unfinished.write('{"step": 40')
    cut_log(log, step)
    assert read_log(log) == [entry(s) for s in (left if isinstance(left, list) else (10, 20, 30))]
    append_entry(log, entry(50))  # and goes on in a line of its own
    assert read_log(log)[-1] == entry(50)
    cut_log(log.with_name("none"), step)  # a run that died before its first entry
    assert read_log(log.with_name("none")) == []


# Curves


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_the_curves_are_labelled_and_show_what_the_log_holds():
    history = [entry(10), entry(20, held_out_loss=0.7), entry(30, held_out_loss=0.6)]
    figure = curves(history)
    loss, by_t, rest = figure.axes
    assert [axis.get_xlabel() for axis in figure.axes] == ["step", "t / T", "step"]
    assert loss.get_ylabel() == by_t.get_ylabel() == "loss per pixel"
    assert all(axis.get_title() and axis.get_yscale() == "log" for axis in figure.axes)
    drawn = lines(loss)
    assert drawn["training"].get_xydata().tolist() == [[step, 1 / step] for step in (10, 20, 30)]
    assert drawn["held out"].get_xydata().tolist() == [[20, 0.7], [30, 0.6]]
    assert lines(rest)["gradient norm"].get_ydata().tolist() == [2.0] * 3
    assert lines(rest)["learning rate"].get_ydata().tolist() == [1e-3] * 3
    assert loss.get_legend() and rest.get_legend()
    (line,) = by_t.get_lines()  # that of the last entry, at the middles of the tenths; nothing where no t fell
    assert line.get_xdata() == pytest.approx([0.05 + 0.1 * i for i in range(10)])
    assert math.isnan(line.get_ydata()[0]) and line.get_ydata()[1:] == pytest.approx([1 / (30 + i) for i in range(9)])
    plt.close(figure)
    figure = curves(history[:1])
    assert figure.axes[0].get_legend() is None and list(lines(figure.axes[0])) == ["training"]
    plt.close(figure)


RANGES = {
    "within a power of ten": (0.03, 0.2),
    "a power of ten": (0.11, 0.9),
    "two": (0.011, 0.98),
    "three": (1e-3, 0.9),
    "six": (1e-6, 1.0),
    "eighteen": (1e-12, 1e6),
    "nearly constant": (0.0301, 0.0302),
    "constant": (0.03, 0.03),
}


@pytest.mark.parametrize("kind", RANGES)
def test_each_axis_has_labels_that_can_be_read_and_do_not_overlap(kind):
    low, high = RANGES[kind]
    tenths = [low * (high / low) ** (i / 9) for i in range(10)]
    loss = {"loss_by_t": tenths, "gradient_norm": high, "learning_rate": low}
    figure = curves([entry(10) | {"loss": high, **loss}, entry(20) | {"loss": low, **loss, "held_out_loss": high}])
    figure.canvas.draw()
    for axis in figure.axes:
        shown = axis.get_yticklabels(which="both")
        boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.y0)
        assert len(boxes) >= 2 and all(label.get_text() for label in shown)
        assert all(lower.y1 < upper.y0 for lower, upper in itertools.pairwise(boxes))
        bottom, top = axis.get_ylim()
        assert all(bottom <= label.get_position()[1] <= top for label in shown)
        firsts = {f"{label.get_position()[1]:e}"[0] for label in shown}
        assert firsts <= set("125") or "constant" in kind or axis is figure.axes[2]
    plt.close(figure)


def test_a_single_entry_of_a_rate_of_zero_is_drawn():
    figure = curves([entry(10) | {"loss_by_t": [None] * 9 + [0.5], "learning_rate": 0.0}])
    figure.canvas.draw()
    plt.close(figure)


def test_the_ticks_of_an_axis_are_few_and_never_fewer_than_two():
    generator = random.Random(0)
    for _ in range(5000):
        low = 10 ** generator.uniform(-13, 8)
        high = low * (1 + 10 ** generator.uniform(-6, 15))
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 9 and low <= ticks[0] and ticks[-1] <= high and ticks == sorted(set(ticks))
    assert log_ticks(0.04, 0.3) == pytest.approx([0.05, 0.1, 0.2])
    assert log_ticks(0.9e-3, 1.1) == pytest.approx([1e-3, 1e-2, 1e-1, 1])
    assert log_ticks(0.0301, 0.0309, 9) == pytest.approx([0.0302, 0.0304, 0.0306, 0.0308])


# Memory


def test_the_peak_of_memory_rises_when_memory_is_taken_and_does_not_fall():
    cpu, (read, write) = torch.device("cpu"), os.pipe()
    child = os.fork()  # a process whose peak is not that of the tests before
    if child == 0:
        try:
            before = peak_memory(cpu)
            taken = bytearray(b"x") * int(before * 1e9 / 2)
            during = peak_memory(cpu)
            del taken
            os.write(write, f"{before} {during} {peak_memory(cpu)}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    before, during, after = map(float, os.read(read, 1000).split())
    assert 1.3 < during / before < 1.7
    assert 1 <= after / during < 1.1


def test_a_system_that_does_not_tell_its_memory_gives_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) is None


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_billions_of_bytes_whatever_the_system_counts_in(monkeypatch, platform, unit):
    monkeypatch.setattr(resource, "getrusage", lambda who: types.SimpleNamespace(ru_maxrss=3_000_000))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory(torch.device("cpu")) == pytest.approx(3_000_000 * unit / 1e9)


# TensorBoard


@pytest.fixture
def writers(monkeypatch):
    """A TensorBoard that notes what it is told."""
    made = []

    class SummaryWriter:
        def __init__(self, folder, **options):
            self.folder, self.options, self.scalars, self.flushed = folder, options, [], 0
            made.append(self)

        def add_scalar(self, *arguments):
            self.scalars.append(arguments)

        def flush(self):
            self.flushed += 1

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


def test_without_tensorboard_there_is_no_board_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tensorboard(tmp_path / "board", 0) is None
    assert not list(tmp_path.iterdir())


def test_the_numbers_of_an_entry_arrive_with_their_step_and_at_once(tmp_path, writers):
    write = tensorboard(tmp_path / "board", 30)
    write(entry(40, memory_gb=None))
    write(entry(50, memory_gb=1))
    (writer,) = writers
    assert writer.folder == str(tmp_path / "board")
    assert writer.options == {"purge_step": 31}  # steps up to 30 stay, what came after the checkpoint is hidden
    expected = [("loss", 1 / 40, 40), ("gradient_norm", 2.0, 40), ("learning_rate", 1e-3, 40)]
    expected += [("loss", 1 / 50, 50), ("gradient_norm", 2.0, 50), ("learning_rate", 1e-3, 50), ("memory_gb", 1, 50)]
    assert writer.scalars == expected
    assert writer.flushed == 2
