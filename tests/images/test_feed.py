"""Batches in an order that can be resumed, on the device, from memory or from files, and workers that behave."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lib.images import feed as module
from ddpm_lib.images.data import LabelledImages, to_signed
from ddpm_lib.images.feed import batches, feed
from ddpm_lib.images.image_files import ImageFiles, image_folder

CPU, META = torch.device("cpu"), torch.device("meta")  # on "meta" a tensor has a place and a shape, but no numbers


def take(iterator, count):
    return list(itertools.islice(iterator, count))


# The order


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (12, 4), (5, 12), (7, 1), (1, 3), (3, 3)])
def test_each_round_holds_every_index_once_in_a_new_order_and_nothing_is_left_out(n, batch):
    rows = take(batches(n, batch, seed=0), 60)
    assert all(row.shape == (batch,) and row.dtype == torch.int64 for row in rows)
    rounds = torch.cat(rows)[: 60 * batch // n * n].reshape(-1, n)
    assert (rounds.sort(dim=1).values == torch.arange(n)).all()
    assert n < 7 or len({tuple(order.tolist()) for order in rounds}) > 0.9 * len(rounds)


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (12, 4), (5, 12), (1, 3)])
def test_a_batch_depends_on_its_number_alone(n, batch):
    rows = torch.stack(take(batches(n, batch, seed=3), 40))
    for start in (1, 2, 3, 7, 30):
        assert torch.equal(torch.stack(take(batches(n, batch, seed=3, start=start), 10)), rows[start : start + 10])


def test_the_order_of_a_round_comes_from_seed_and_round_alone():
    row = torch.cat(take(batches(10, 4, seed=5), 10)).numpy().reshape(4, 10)
    assert all((row[turn] == np.random.default_rng((5, turn)).permutation(10)).all() for turn in range(4))
    assert not torch.equal(next(batches(1000, 100, seed=0)), next(batches(1000, 100, seed=1)))


def test_a_distant_start_is_reached_at_once():
    first = next(batches(10, 3, seed=0, start=10**12))
    turn, done = divmod(3 * 10**12, 10)
    assert first.tolist() == np.random.default_rng((0, turn)).permutation(10)[done : done + 3].tolist()


@pytest.mark.parametrize("wrong", [(0, 4, 0, 0), (10, 0, 0, 0), (10, 4, 0, -1)])
def test_impossible_batches_are_refused_before_the_first(wrong):
    n, batch, seed, start = wrong
    with pytest.raises(ValueError, match=rf"start >= 0; got {n}, {batch} and {start}"):
        batches(n, batch, seed, start)


# Images in memory


def of_floats(n=20):
    images = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return LabelledImages(images, torch.arange(n) % 4)


def of_bytes(n=20):
    images = torch.randint(256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return LabelledImages(images, torch.arange(n) % 4)


@pytest.mark.parametrize("data", [of_floats(), of_bytes()], ids=["floats", "bytes"])
@pytest.mark.parametrize("budget", [None, 0])
def test_a_batch_is_its_rows_of_the_data_in_minus_one_to_one(data, budget):
    fed = take(feed(data, 6, seed=1, device=CPU, start=2, budget=budget), 12)
    for (x_0, labels), row in zip(fed, take(batches(20, 6, seed=1, start=2), 12), strict=True):
        images = data.images[row]
        assert torch.equal(x_0, to_signed(images) if images.dtype == torch.uint8 else images)
        assert x_0.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(labels, data.labels[row])


def test_images_without_labels_come_without():
    assert next(feed(LabelledImages(of_bytes().images), 6, seed=0, device=CPU))[1] is None


class Host(TorchDispatchMode):
    """Notes what the host asks for as a number, and what is copied from the CPU to "meta"."""

    def __init__(self):
        super().__init__()
        self.asked, self.copied = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.asked.append(args[0])
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") == META:
            self.copied.append((args[0].dtype, tuple(args[0].shape)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("data", [of_floats(), of_bytes()], ids=["floats", "bytes"])
def test_images_move_once_and_then_only_rows_do(data):
    with Host() as host:
        fed = take(feed(data, 6, seed=0, device=META, budget=data.images.nbytes), 3)
    assert host.copied == [(data.images.dtype, (20, 3, 4, 4))] + [(torch.int64, (6,))] * 3
    assert not host.asked
    assert all(x_0.device == META and x_0.dtype == torch.float32 and labels.device == CPU for x_0, labels in fed)


def test_images_that_do_not_fit_move_a_batch_at_a_time_as_bytes():
    data = of_bytes()
    with Host() as host:
        fed = take(feed(data, 6, seed=0, device=META, budget=data.images.nbytes - 1), 3)
    assert host.copied == [(torch.uint8, (6, 3, 4, 4))] * 3
    assert not host.asked
    assert all(x_0.device == META and x_0.dtype == torch.float32 and labels.device == CPU for x_0, labels in fed)


def test_images_that_are_on_the_device_stay_there_whatever_fits():
    data = of_bytes()
    with Host() as host:
        next(feed(LabelledImages(data.images.to(META), data.labels), 6, seed=0, device=META, budget=0))
    assert host.copied[1:] == [(torch.int64, (6,))]


def test_the_default_budget_is_a_quarter_of_what_is_free(monkeypatch):
    data = of_bytes()
    for free, first in ((4 * data.images.nbytes, (20, 3, 4, 4)), (4 * data.images.nbytes - 1, (6, 3, 4, 4))):
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        with Host() as host:
            next(feed(data, 6, seed=0, device=META))
        assert host.copied[0] == (torch.uint8, first)


# Images in files


@pytest.fixture(scope="module")
def files(tmp_path_factory, random_images):
    """A hundred images of 6×6 in two classes, more than one worker decodes at a time."""
    root = random_images(tmp_path_factory.mktemp("files"), 100, ("even", "odd"))
    return image_folder(root, size=6, channels=3)


def by_hand(files, row):
    with_pil = [np.asarray(Image.open(files.paths[i])).transpose(2, 0, 1) for i in row]
    return torch.from_numpy(np.stack(with_pil).astype(np.float64) * 2 / 255 - 1).float()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("budget", [None, 100 * 3 * 36, 100 * 3 * 36 - 1, 0])
def test_files_come_the_same_decoded_once_or_read_as_they_are_needed(files, workers, budget):
    before = torch.get_rng_state()
    fed = feed(files, 30, seed=2, device=CPU, start=5, workers=workers, budget=budget)
    for (x_0, labels), row in zip(take(fed, 6), take(batches(100, 30, seed=2, start=5), 6), strict=True):
        assert torch.equal(x_0, by_hand(files, row)) and x_0.dtype == torch.float32
        assert torch.equal(labels, files.labels[row])
    fed.close()
    assert torch.equal(torch.get_rng_state(), before), "dropout would no longer resume where it was"
    assert not multiprocessing.active_children()


@dataclass(frozen=True, eq=False)
class Counting(ImageFiles):
    def __getitem__(self, i):
        COUNTED.append(i)
        return super().__getitem__(i)


COUNTED = []


@pytest.mark.parametrize(
    ("free", "copied", "decoded"),
    [
        ({META: 4 * 10800, CPU: 4 * 10800}, (torch.int64, (6,)), 100),  # on the device
        ({META: 4 * 10800 - 1, CPU: 4 * 10800}, (torch.uint8, (6, 3, 6, 6)), 100),  # in the machine's memory
        ({META: 4 * 10800 - 1, CPU: 4 * 10800 - 1}, (torch.uint8, (6, 3, 6, 6)), 112),  # nowhere, but all are tried
    ],
    ids=["device", "memory", "nowhere"],
)
def test_files_are_kept_as_near_as_they_fit(files, monkeypatch, free, copied, decoded):
    monkeypatch.setattr(module, "free_memory", free.get)
    COUNTED.clear()
    with Host() as host:
        fed = feed(Counting(files.paths, 6, 3, files.labels), 6, seed=0, device=META, workers=0)
        x_0, labels = next(fed)
        host.asked.clear()
        next(fed)
    assert len(COUNTED) == decoded and len(set(COUNTED)) == 100
    assert host.copied[-1] == copied and x_0.device == META and labels.device == CPU
    assert not host.asked


def test_files_without_labels_come_without(files):
    for budget in (None, 0):
        assert next(feed(ImageFiles(files.paths, 6, 3), 4, seed=0, device=CPU, workers=0, budget=budget))[1] is None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("budget", [None, 0])
def test_a_broken_file_is_named_and_the_workers_end(files, tmp_path, workers, budget):
    (tmp_path / "broken.png").write_bytes(files.paths[0].read_bytes()[:60])
    broken = ImageFiles([*files.paths[:3], tmp_path / "broken.png"], 6, 3)
    with pytest.raises(ValueError, match=r"expected an image in .*broken\.png, got .*Replace it with a whole copy"):
        take(feed(broken, 4, seed=0, device=CPU, workers=workers, budget=budget), 3)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("end", ["close", "forget"])
def test_workers_end_with_the_iterator(files, end):
    fed = feed(files, 10, seed=0, device=CPU, workers=2, budget=0)
    next(fed)
    assert len(multiprocessing.active_children()) == 2
    if end == "close":
        fed.close()
    del fed
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("system", ["this", "one that cannot say who sent a signal"])
def test_a_worker_ends_when_its_parent_says(files, monkeypatch, system):
    if system != "this":
        monkeypatch.delattr(signal, "sigtimedwait", raising=False)
    fed = feed(files, 10, seed=0, device=CPU, workers=1, budget=0)
    next(fed)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join()
    assert worker.exitcode == 0
    fed.close()


PROGRAM = """
import multiprocessing, signal, sys
import torch
from ddpm_lib.images.feed import feed
from ddpm_lib.images.image_files import image_folder

def main():
    seen, every = [], []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: seen.append(number))
    files = image_folder(sys.argv[1], size=6, channels=3)
    for method, workers in zip(sys.argv[2::2], sys.argv[3::2]):
        multiprocessing.set_start_method(method, force=True)
        fed = feed(files, 10, seed=0, device=torch.device("cpu"), workers=int(workers), budget=0)
        print("starting", method, flush=True)
        every.append([fed, sum(float(next(fed)[0].double().sum()) for _ in range(20))])
    print("running", flush=True)
    sys.stdin.readline()
    for one in every:
        one[1] += sum(float(next(one[0])[0].double().sum()) for _ in range(20))
    print(len(multiprocessing.active_children()), *sorted(set(map(int, seen))), *(total for _, total in every))
    return every

if __name__ == "__main__":
    kept = main()  # the interpreter ends with its workers running
"""


@contextmanager
def started(folder, files, *methods):
    """A process that reads `files` with workers of each of these methods, (name, how many), one after the other."""
    (folder / "program.py").write_text(PROGRAM)
    words = [str(word) for method in methods for word in method]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, str(folder / "program.py"), str(files.root), *words]
    with subprocess.Popen(command, start_new_session=True, text=True, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # there is nothing left of it where the test passed
                os.killpg(process.pid, signal.SIGKILL)


needs_sigtimedwait = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs sigtimedwait")


@needs_sigtimedwait
def test_workers_outlive_signals_to_the_whole_job_and_end_with_their_parent(files, tmp_path):
    with started(tmp_path, files, ("fork", 2), ("spawn", 1), ("forkserver", 1)) as process:
        assert process.stdout.readline() == "starting fork\n"
        os.killpg(process.pid, signal.SIGINT)  # while the workers start
        assert process.stdout.readline() == "starting spawn\n"
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "starting forkserver\n"  # whose server is not deaf while it starts
        assert process.stdout.readline() == "running\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.killpg(process.pid, number)
        out, error = process.communicate("go on\n")  # until the last of its processes has ended
    assert (process.returncode, error) == (0, "")
    alive, interrupted, terminated, *sums = map(float, out.split())
    assert (alive, interrupted, terminated) == (4, signal.SIGINT, signal.SIGTERM)
    expected = sum(float(by_hand(files, row).double().sum()) for row in take(batches(100, 10, seed=0), 40))
    assert sums == pytest.approx([expected] * 3)


@needs_sigtimedwait
def test_workers_that_were_not_forked_end_with_a_parent_that_was_killed(files, tmp_path):
    with started(tmp_path, files, ("forkserver", 1)) as process:
        assert process.stdout.readline() == "starting forkserver\n"
        assert process.stdout.readline() == "running\n"
        process.kill()
        assert process.stdout.read() == ""  # comes to an end when the last of its processes does


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_never_waits_and_gets_the_same_batches(files, budget, workers):
    device = torch.device("cuda", 0)
    for data in (of_floats(), of_bytes(), files):
        fed = feed(data, 8, seed=0, device=device, workers=workers, budget=budget)
        expected = take(feed(data, 8, seed=0, device=CPU, workers=0), 6)
        found = [next(fed)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            found += take(fed, 5)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            fed.close()
        for (x_0, labels), (as_it_is, as_labelled) in zip(found, expected, strict=True):
            assert x_0.device == device and torch.allclose(x_0.cpu(), as_it_is, atol=1e-6)
            assert torch.equal(labels, as_labelled)
