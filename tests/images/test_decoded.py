"""Files decoded once: the same bytes, kept whole or not at all, never stale; broken ones all named before training."""

import itertools
import multiprocessing
import os
import re
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.images import decoded as module
from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.decoded import FOLDER, DecodedImages, decode, kept, some_of
from ddpm_lib.images.feed import feed
from ddpm_lib.images.image_files import ImageFiles, image_folder

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path, random_images):
    """Seventy images of 6×6, more than one worker decodes at a time, in two classes."""
    return random_images(tmp_path / "images", 70, ("even", "odd"))


def opened(root):
    return image_folder(root, 6, 3)


def by_hand(files):
    return torch.stack([files[i] for i in range(len(files))])


def below(root):
    return sorted(path.name for path in (root / FOLDER).iterdir())


def content(path, files):
    return torch.from_numpy(np.fromfile(path, np.uint8)).view(len(files), 3, 6, 6)


# All of them


@pytest.mark.parametrize("workers", [0, 2])
def test_all_images_come_in_order_in_parts_that_fit_a_small_shared_memory(root, monkeypatch, workers):
    files = opened(root)
    assert [len(part) for part in decode(files, workers)] == [64, 6]
    monkeypatch.setattr(module, "PART", 1000)
    parts = list(decode(files, workers))
    assert all(part.dtype == torch.uint8 and part.nbytes <= 1000 for part in parts)
    assert torch.equal(torch.cat(parts), by_hand(files))
    monkeypatch.setattr(module, "PART", 1)
    assert len(list(decode(files, workers))) == 70


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_files_are_named_at_once(root, workers):
    files = opened(root)
    for i in (3, 40, 69):
        files.paths[i].write_bytes(files.paths[i].read_bytes()[:60])
    with pytest.raises(ValueError) as error:
        list(decode(files, workers))
    first, *lines, last = str(error.value).splitlines()
    assert first == "3 of 70 image files are broken:"
    for line, i in zip(lines, (3, 40, 69), strict=True):
        assert re.fullmatch(rf"  expected an image in {files.paths[i]}, got \w+: [^.]*", line)
    assert last == "Replace it with a whole copy, or take it out of the folder."
    assert not multiprocessing.active_children()


def test_of_very_many_broken_files_the_first_are_named_and_all_are_counted(root):
    files = opened(root)
    for path in files.paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError) as error:
        list(decode(files, 0))
    assert str(error.value).startswith("70 of 70 image files are broken:")
    assert str(error.value).count("\n  ") == 21 and "\n  and 50 more\n" in str(error.value)


def test_one_broken_file_is_one_line(root):
    files = opened(root)
    files.paths[5].unlink()
    with pytest.raises(ValueError, match=rf"^expected an image in {files.paths[5]}, got File[^\n]*Replace it with a"):
        list(decode(files, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_decoders_remark_names_its_file_and_comes_once(root, monkeypatch, workers):
    files = opened(root)
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    for i in (2, 50):
        Image.open(files.paths[i]).save(files.paths[i], exif=exif.tobytes()[:-15])  # Pillow warns, and names no file
    Image.open(files.paths[60]).save(files.paths[60], exif=b"Exif\0\0garbage!")
    with pytest.warns(UserWarning) as said:
        parts = list(decode(files, workers))
    (message,) = [str(warning.message) for warning in said]
    assert message.startswith("3 remarks on 70 image files:")
    for line, i in zip(message.splitlines()[1:], (2, 50, 60), strict=True):
        assert line.count(str(files.paths[i])) == 1
    assert len(torch.cat(parts)) == 70


@dataclass(frozen=True, eq=False)
class Slow(ImageFiles):
    """The first images come at once, and the others not while anybody waits."""

    def __getitem__(self, i):
        if i >= 8:
            time.sleep(3600)
        return super().__getitem__(i)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("end", ["Ctrl-C", "close"])
def test_workers_end_in_the_middle_of_a_part(root, monkeypatch, end):
    files = opened(root)
    monkeypatch.setattr(module, "PART", 108 * 4)
    parts, workers = decode(Slow(files.paths, 6, 3), 2), []
    next(parts)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    shut = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._shutdown_workers

    def patient(loader):
        for worker in workers:
            worker.join(60)  # a second would do; torch waits for five, and then kills them
        ended.extend(worker.exitcode for worker in workers)
        shut(loader)

    ended = []
    monkeypatch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter, "_shutdown_workers", patient)
    if end == "close":
        parts.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            parts.throw(KeyboardInterrupt)
    assert ended[:2] == [0, 0], "nobody told them"


# Some of them


def test_some_are_spread_evenly_and_come_in_memory(root):
    files = opened(root)
    part = some_of(files, 7, 0)
    assert torch.equal(part.images, by_hand(files)[::10]) and torch.equal(part.labels, files.labels[::10])
    assert part.names == files.names
    assert torch.equal(some_of(files, 100, 0).images, by_hand(files))
    images = torch.rand(10, 1, 2, 2)
    assert torch.equal(some_of(LabelledImages(images), 5, 0).images, images[::2])


# Kept


@dataclass(frozen=True, eq=False)
class Counting(ImageFiles):
    def __getitem__(self, i):
        COUNTED.append(int(i))
        return super().__getitem__(i)


COUNTED = []


def counting(root):
    COUNTED.clear()
    files = opened(root)
    return Counting(files.paths, 6, 3, files.labels, files.names, root)


@pytest.mark.parametrize("budget", [None, 0])
def test_the_second_start_decodes_nothing_and_trains_on_the_same(root, budget):
    batches = []
    for start in range(2):
        files = counting(root)
        fed = feed(files, 20, seed=0, device=CPU, workers=0, budget=budget)
        batches.append(torch.cat([next(fed)[0] for _ in range(7)]))
        assert sorted(COUNTED) == ([] if start else list(range(70)))
    assert torch.equal(*batches)
    assert (root / FOLDER / ".gitignore").read_text() == "*\n"
    (name,) = [name for name in below(root) if name != ".gitignore"]
    assert re.fullmatch(r"3x6x6-[0-9a-f]{16}\.bytes", name)
    assert len(image_folder(root, 6, 3)) == 70, "what is kept is no class of the folder"


def test_what_is_kept_is_every_image_in_order(root):
    files = opened(root)
    path = kept(files, 2)
    assert torch.equal(content(path, files), by_hand(files))
    images = DecodedImages(files, path)
    assert len(images) == 70 and torch.equal(torch.stack([images[i] for i in range(70)]), by_hand(files))


def test_images_without_a_root_are_kept_nowhere(root):
    assert kept(replace(opened(root), root=None), 0) is None
    assert not (root / FOLDER).exists()


def touched(root):
    at = (root / "odd/01.png").stat()
    os.utime(root / "odd/01.png", ns=(at.st_atime_ns, at.st_mtime_ns + 1))


CHANGES = {
    "another file": lambda root: Image.new("RGB", (6, 6)).save(root / "odd/new.png"),
    "a file less": lambda root: (root / "odd/01.png").unlink(),
    "a file renamed": lambda root: (root / "odd/01.png").rename(root / "odd/0.png"),
    "a file written again": touched,
    "a file of another size": lambda root: Image.new("RGB", (7, 7)).save(root / "odd/01.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stale_is_decoded_again_and_removed(root, change):
    first = kept(opened(root), 0)
    CHANGES[change](root)
    files = opened(root)
    second = kept(files, 0)
    assert second != first and below(root) == [".gitignore", second.name]
    assert torch.equal(content(second, files), by_hand(files))


def test_other_code_or_another_decoder_decodes_again(root, monkeypatch):
    first = kept(opened(root), 0)
    with monkeypatch.context() as patch:
        patch.setattr(module.PIL, "__version__", "99.0")
        assert kept(opened(root), 0) != first
    with monkeypatch.context() as patch:
        patch.setattr(module.inspect, "getsource", lambda of: "square() in another way")
        assert kept(opened(root), 0) != first


def test_every_size_is_kept_beside_the_others(root):
    sizes = [image_folder(root, size, channels) for size, channels in ((6, 3), (4, 3), (6, 1))]
    names = {kept(files, 0).name for files in sizes}
    assert len(names) == 3 and set(below(root)) == names | {".gitignore"}


def test_a_file_of_another_length_is_not_trusted(root):
    path = kept(opened(root), 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert kept(opened(root), 0) == path and path.read_bytes() == whole


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_what_is_half_written_is_never_found_and_does_not_stay(root, monkeypatch, stop):
    def stops(data, workers):
        yield from itertools.islice(decode(data, 0), 1)
        assert [name for name in below(root) if name.endswith(".partial")]
        raise stop

    monkeypatch.setattr(module, "decode", stops)
    with pytest.raises(stop):
        kept(opened(root), 0)
    assert below(root) == [".gitignore"]


def test_a_folder_with_a_broken_file_is_not_kept(root):
    (root / "odd/01.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"odd/01\.png"):
        kept(opened(root), 0)
    assert below(root) == [".gitignore"]


def test_what_killed_processes_left_goes_and_what_others_are_writing_stays(root):
    (root / FOLDER).mkdir()
    old, new = (root / FOLDER / f".3x6x6-0.bytes.{number}.partial" for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * module.FORGOTTEN))
    kept(opened(root), 0)
    assert new.exists() and not old.exists()


def test_a_run_whose_kept_images_are_removed_goes_on(root):
    files = opened(root)
    fed = feed(files, 70, seed=0, device=CPU, workers=0, budget=0)
    first = float(next(fed)[0].double().sum())
    for path in (root / FOLDER).glob("*.bytes"):
        path.unlink()
    assert float(next(fed)[0].double().sum()) == pytest.approx(first, abs=1e-6)


# Where nothing can be kept


def full(*arguments, **options):
    raise OSError(28, "No space left on device")


WHY = {
    "the folder cannot be written": ("pathlib.Path.mkdir", full, "No space left on device"),
    "the disk is full": ("os.fsync", full, "No space left on device"),
    "more than half of what is free": (
        "shutil.disk_usage",
        lambda path: type("Usage", (), {"free": 2 * 70 * 108 - 2}),
        r"it takes 0\.00 GB, and of 0\.00 GB that are free only half are used",
    ),
}


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("why", WHY)
def test_where_nothing_can_be_kept_a_warning_says_so_and_training_goes_on(root, monkeypatch, why, budget):
    what, instead, said = WHY[why]
    files = counting(root)
    monkeypatch.setattr(what, instead)
    with pytest.warns(UserWarning, match=rf"cannot be kept in .*{FOLDER} \(.*{said}\): they are decoded again at each"):
        fed = feed(files, 70, seed=0, device=CPU, workers=0, budget=budget)
    assert set(COUNTED) == set(range(70)), "a broken file would be found now"
    expected = next(feed(replace(files, root=None), 70, seed=0, device=CPU, workers=0))[0]
    assert torch.equal(next(fed)[0], expected)
    monkeypatch.undo()
    if (root / FOLDER).exists():
        assert set(below(root)) <= {".gitignore"}


def test_exactly_half_of_what_is_free_will_do(root, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2 * 70 * 108}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(kept(opened(root), 0), Path)


@pytest.mark.parametrize("budget", [None, 0])
def test_a_broken_file_is_named_before_the_first_batch_wherever_images_are_kept(root, budget):
    files = replace(opened(root), root=None)
    for i in (1, 60):
        files.paths[i].write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 70 image files are broken"):
        feed(files, 4, seed=0, device=CPU, workers=0, budget=budget)
