"""The data sets by name: what the real files hold, and the ways in which files can be missing, cut short or damaged."""

import gzip
import hashlib
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.images import datasets as module
from ddpm_lib.images.data import check_images
from ddpm_lib.images.datasets import celeba, cifar10, fashion, folder, mnist, resized, stl10
from ddpm_lib.images.image_files import ImageFiles

SOURCE = Path(os.environ.get("DDPM_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
IDX = {f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")}
FILES = {
    "MNIST": {f"MNIST/raw/{name}" for name in IDX},
    "FashionMNIST": {f"FashionMNIST/raw/{name}" for name in IDX},
    "CIFAR10": {f"cifar-10-batches-py/{n}" for n in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]}
    | {"cifar-10-batches-py/batches.meta"},
}
LOADER = {"MNIST": mnist, "FashionMNIST": fashion, "CIFAR10": cifar10}
GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
HASHED = {}
EVERY_FILE = sorted((name, file) for name, files in FILES.items() for file in files)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory):
    """A function: the name of a data set → a folder in which its real files lie, unpacked once."""
    if not SOURCE.is_dir():
        pytest.skip(f"needs the real data: no folder {SOURCE} (set DDPM_DATA to one)")
    root = tmp_path_factory.mktemp("data") if (SOURCE / "unpack.py").exists() else SOURCE

    def unpack(name):
        if root != SOURCE and not all((root / file).exists() for file in FILES[name]):
            subprocess.run([sys.executable, SOURCE / "unpack.py", root, name], check=True, capture_output=True)
        if not all((root / file).exists() for file in FILES[name]):
            pytest.skip(f"needs the real data: {name} is not in {SOURCE}")
        return root

    yield unpack
    if root != SOURCE:
        shutil.rmtree(root)  # 300 MB, which pytest would keep for three runs


@pytest.fixture
def linked(unpacked, tmp_path, monkeypatch):
    """A function: the name of a data set → a folder with links to its files, of which some may be replaced.

    What is still a link is hashed once in all tests: it is the same file.
    """

    def file_digest(file, kind):
        real = Path(file.name).resolve()
        if not Path(file.name).is_symlink():
            return digest(file, kind)
        if real not in HASHED:
            HASHED[real] = digest(file, kind)
        return HASHED[real]

    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", file_digest)

    def link(name):
        for file in FILES[name]:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).symlink_to(unpacked(name) / file)
        return tmp_path

    return link


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


# The real files


def idx_by_hand(raw, part):
    images = np.fromfile(raw / f"{part}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 1, 28, 28)
    return images, np.fromfile(raw / f"{part}-labels-idx1-ubyte", np.uint8)[8:]


def cifar_by_hand(folder, names):
    parts = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
    pixels = np.concatenate([part[b"data"] for part in parts])
    return pixels.reshape(-1, 3, 32, 32), np.concatenate([part[b"labels"] for part in parts])


@pytest.mark.parametrize(
    ("name", "names", "mean", "counts"),
    [
        ("MNIST", "0123456789", 0.1307, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("FashionMNIST", GARMENTS, 0.2860, 6000),
    ],
)
def test_mnist_and_its_sibling_are_what_their_files_hold(unpacked, name, names, mean, counts):
    root = unpacked(name)
    train, held_out = LOADER[name](root)
    for part, prefix, count in ((train, "train", 60_000), (held_out, "t10k", 10_000)):
        images, labels = idx_by_hand(root / name / "raw", prefix)
        assert part.images.shape == (count, 1, 28, 28) and part.images.dtype == torch.uint8
        assert (part.images.numpy() == images).all() and (part.labels.numpy() == labels).all()
        assert part.names == tuple(names)
        check_images(part, (1, 28, 28), 10)
    assert float(train.images.double().mean() / 255) == pytest.approx(mean, abs=5e-5)
    assert (train.labels.bincount() == torch.tensor(counts)).all()


def test_cifar10_is_what_its_files_hold(unpacked):
    root = unpacked("CIFAR10")
    train, held_out = cifar10(str(root))
    source = root / "cifar-10-batches-py"
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    for part, files, count in ((train, batches, 5000), (held_out, ["test_batch"], 1000)):
        images, labels = cifar_by_hand(source, files)
        assert part.images.shape == (10 * count, 3, 32, 32) and part.images.dtype == torch.uint8
        assert (part.images.numpy() == images).all() and (part.labels.numpy() == labels).all()
        assert part.names == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
        assert (part.labels.bincount() == count).all()
        assert part.images.is_contiguous()
        check_images(part, (3, 32, 32), 10)
    mean = train.images.numpy().mean((0, 2, 3), dtype=np.float64) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


def test_another_size_is_asked_for_and_comes(unpacked):
    train, held_out = fashion(unpacked("FashionMNIST"), size=32)
    assert train.images.shape == (60_000, 1, 32, 32) and held_out.images.shape == (10_000, 1, 32, 32)
    assert train.images.dtype == torch.uint8
    rows = [0, 5000, 59_999]
    whole = fashion(unpacked("FashionMNIST"))[0].images
    for row in rows:
        alone = Image.fromarray(whole[row, 0].numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert abs(np.asarray(alone).astype(int) - train.images[row, 0].numpy()).max() <= 1


# Files that are missing, cut short or damaged


@pytest.mark.parametrize(("name", "file"), EVERY_FILE)
def test_one_wrong_byte_in_any_file_is_found_and_the_file_named(linked, name, file):
    root = linked(name)
    content = bytearray((root / file).read_bytes())
    content[len(content) // 2] ^= 1
    replace(root / file, content)
    with pytest.raises(ValueError, match=rf"{root / file} is damaged \(expected MD5 .*: remove it and run again where"):
        LOADER[name](root)


@pytest.mark.parametrize(("name", "file"), EVERY_FILE)
def test_a_file_cut_short_is_named_with_its_bytes(linked, name, file):
    root = linked(name)
    content = (root / file).read_bytes()
    replace(root / file, content[:-5])
    complaint = rf"{root / file} has {len(content) - 5:,} of {len(content):,} bytes: remove it and run again"
    with pytest.raises(ValueError, match=complaint):
        LOADER[name](root)


def test_a_file_with_more_bytes_than_it_should_have_is_named(linked):
    root = linked("MNIST")
    path = root / "MNIST/raw/t10k-labels-idx1-ubyte"
    replace(path, path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=rf"{path} has 10,009 bytes, not 10,008"):
        mnist(root)


@pytest.mark.parametrize(("name", "file"), EVERY_FILE)
def test_a_missing_file_is_named_where_there_is_no_network(linked, name, file):
    root = linked(name)
    (root / file).unlink()
    complaint = (
        rf"missing under {root}: {re.escape(file)}\. The download failed \(.*no network in tests.*\)\. Put what "
    )
    with pytest.raises(FileNotFoundError, match="(?s)" + complaint + ".*or name another root that holds it"):
        LOADER[name](root)


@pytest.mark.parametrize("name", LOADER)
def test_where_nothing_lies_all_files_are_named_as_they_should_lie(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        LOADER[name](tmp_path / "nowhere")
    assert all(file in str(error.value) for file in FILES[name])
    assert (".gz" if "MNIST" in name else "cifar-10-python.tar.gz") in str(error.value)


def test_what_is_damaged_is_told_before_anything_is_downloaded(linked, monkeypatch):
    root = linked("CIFAR10")
    (root / "cifar-10-batches-py/data_batch_1").unlink()
    replace(root / "cifar-10-batches-py/test_batch", b"damaged")
    monkeypatch.setattr(module.datasets.CIFAR10, "download", lambda self: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match=r"test_batch has 7 of 31,035,526 bytes"):
        cifar10(root)


@pytest.mark.parametrize("file", ["batches.meta", "test_batch"])
def test_an_archive_in_the_root_is_unpacked(linked, monkeypatch, file):
    root, source = linked("CIFAR10"), module.datasets.CIFAR10
    missing = root / source.base_folder / file
    with tarfile.open(root / source.filename, "w:gz", compresslevel=0, dereference=True) as archive:
        archive.add(missing, missing.relative_to(root))
    missing.unlink()
    monkeypatch.setattr(source, "tgz_md5", md5((root / source.filename).read_bytes()).hexdigest())
    assert len(cifar10(root)[0]) == 50_000


# MNIST's files as they are published, packed


@pytest.fixture
def packed(tmp_path):
    """A root that holds MNIST packed, as it is downloaded."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in IDX:
        if not (SOURCE / f"MNIST/{name}.gz").exists():
            pytest.skip(f"needs the real data: no {name}.gz in {SOURCE / 'MNIST'} (DDPM_DATA names another folder)")
        shutil.copy(SOURCE / f"MNIST/{name}.gz", raw)
        (raw / f"{name}.gz").chmod(0o644)
    return tmp_path


def test_packed_files_are_unpacked_and_each_alone_will_do(packed):
    raw = packed / "MNIST/raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(gzip.decompress((raw / "train-labels-idx1-ubyte.gz").read_bytes()))
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    train, held_out = mnist(packed)
    assert (len(train), len(held_out)) == (60_000, 10_000)
    assert (train.labels.numpy() == idx_by_hand(raw, "train")[1]).all()


def test_a_damaged_packed_file_is_named_and_not_unpacked(packed):
    path = packed / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replace(path, content)
    with pytest.raises(ValueError, match=rf"{path} is damaged"):
        mnist(packed)
    assert not path.with_suffix("").exists()


def test_what_an_old_version_of_torchvision_left_is_not_read(linked):
    root = linked("MNIST")
    (root / "MNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3)), root / "MNIST/processed" / name)
    assert len(mnist(root)[0]) == 60_000


@pytest.fixture
def server(monkeypatch):
    """Answers downloads from the packed files; .wrong: a file that comes damaged; .limits: the time limits seen."""

    class Server:
        wrong, limits = None, []

    def retrieve(url, path, *rest):
        name = Path(path).name
        content = (SOURCE / "MNIST" / name).read_bytes()
        Path(path).write_bytes(content[:-100] if name == Server.wrong else content)
        Server.limits.append(socket.getdefaulttimeout())

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    return Server


def test_missing_files_are_downloaded_with_a_limit_on_waiting(packed, server):
    shutil.rmtree(packed / "MNIST")
    train, held_out = mnist(packed)
    assert (len(train), len(held_out)) == (60_000, 10_000)
    assert server.limits == [60] * 4 and socket.getdefaulttimeout() is None


def test_a_download_that_comes_damaged_is_no_download(packed, server):
    shutil.rmtree(packed / "MNIST")
    server.wrong = "t10k-images-idx3-ubyte.gz"
    with pytest.raises(
        FileNotFoundError, match=r"(?s)t10k-images.*The download failed \(RuntimeError: Error downloading"
    ):
        mnist(packed)
    assert socket.getdefaulttimeout() is None


def test_what_was_downloaded_is_checked_too(linked, monkeypatch):
    root = linked("MNIST")
    path = root / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.unlink()
    monkeypatch.setattr(module.datasets.MNIST, "download", lambda self: path.write_bytes(b"x" * 10_008))
    with pytest.raises(ValueError, match=rf"{path} is damaged"):
        mnist(root)


# STL-10, in small


@pytest.fixture
def stl(tmp_path, monkeypatch):
    """Five, three and four images in STL-10's form, each file's rows being the image's columns; and what they hold."""
    random = np.random.default_rng(0)
    held = {part: random.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8) for part, n in PARTS.items()}
    base = tmp_path / "stl10_binary"
    base.mkdir()
    content = {f"{part}_X.bin": images.transpose(0, 1, 3, 2).tobytes() for part, images in held.items()}
    content |= {"train_y.bin": bytes([1, 2, 3, 4, 10]), "test_y.bin": bytes([1, 2, 3, 4])}
    for name, data in content.items():
        (base / name).write_bytes(data)
    for part in ("train_list", "test_list"):
        listed = [[name, md5(content[name]).hexdigest()] for name, _ in getattr(module.datasets.STL10, part)]
        monkeypatch.setattr(module.datasets.STL10, part, listed)
    monkeypatch.setattr(module, "STL10_SIZES", {name: len(data) for name, data in content.items()})
    return tmp_path, held


PARTS = {"train": 5, "unlabeled": 3, "test": 4}


def test_stl10_holds_its_training_and_its_unlabelled_images_without_labels(stl, monkeypatch):
    root, held = stl
    again = "torchvision.datasets.stl10.check_integrity"
    monkeypatch.setattr(again, lambda *file: pytest.fail("three gigabytes were read again to check them"))
    train, held_out = stl10(root)
    assert (train.images.numpy() == np.concatenate([held["train"], held["unlabeled"]])).all()
    assert (held_out.images.numpy() == held["test"]).all()
    for part in (train, held_out):
        assert part.labels is None and part.names == () and part.images.is_contiguous()
        check_images(part, (3, 96, 96), 0)
    small = stl10(root, 64)[0].images
    assert small.shape == (8, 3, 64, 64) and torch.equal(small, resized(train.images, 64))


def test_stl10_is_checked_file_by_file(stl):
    root, _ = stl
    for path in sorted((root / "stl10_binary").iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=rf"{path} has {len(whole) - 1:,} of {len(whole):,} bytes"):
            stl10(root)
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(ValueError, match=rf"{path} is damaged"):
            stl10(root)
        path.unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"STL-10 is not whole: missing under {root}: stl10_binary/{path.name}\."
        ):
            stl10(root)
        path.write_bytes(whole)
    stl10(root)


def test_the_sizes_of_stl10_are_those_of_its_images():
    image, sizes = 3 * 96 * 96, module.STL10_SIZES
    assert sizes["train_X.bin"] == sizes["train_y.bin"] * image == 5_000 * image
    assert sizes["test_X.bin"] == sizes["test_y.bin"] * image == 8_000 * image
    assert sizes["unlabeled_X.bin"] == 100_000 * image
    assert set(sizes) == {name for name, _ in module.datasets.STL10.train_list + module.datasets.STL10.test_list}


# CelebA, in small


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """Six images in CelebA's form, white in the middle 178×178 and dark outside; three to train on."""
    images = tmp_path / "celeba/img_align_celeba"
    images.mkdir(parents=True)
    pixels = np.full((218, 178, 3), 10, np.uint8)
    pixels[20:198] = 255
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    for name in names:
        Image.fromarray(pixels).save(images / name, quality=95)
    partition = "".join(f"{name} {part}\n" for name, part in zip(names, (0, 0, 1, 2, 0, 2), strict=True)).encode()
    (tmp_path / "celeba/list_eval_partition.txt").write_bytes(partition)
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip", "w") as archive:
        for name in names:
            archive.write(images / name, f"img_align_celeba/{name}")
    known = {
        "list_eval_partition.txt": md5(partition).hexdigest(),
        "img_align_celeba.zip": md5((tmp_path / "img_align_celeba.zip").read_bytes()).hexdigest(),
    }
    listed = [(key, known.get(name, old), name) for key, old, name in module.datasets.CelebA.file_list]
    monkeypatch.setattr(module.datasets.CelebA, "file_list", listed)
    monkeypatch.setattr(module, "CELEBA_IMAGES", 6)
    return tmp_path


def test_celeba_is_the_middle_of_the_faces_split_as_published(faces):
    train, held_out = celeba(faces, size=64)
    assert [path.name for path in train.paths] == ["000001.jpg", "000002.jpg", "000005.jpg"]
    assert [path.name for path in held_out.paths] == ["000003.jpg", "000004.jpg", "000006.jpg"]
    for part in (train, held_out):
        assert part.labels is None and part.names == ()
        assert part[0].shape == (3, 64, 64) and part[0].min() > 230
    assert train.size == 64 and train.channels == 3


def test_celeba_s_images_may_lie_there_packed(faces):
    shutil.rmtree(faces / "celeba/img_align_celeba")
    shutil.move(faces / "img_align_celeba.zip", faces / "celeba")
    assert len(celeba(faces)[0]) == 3
    shutil.rmtree(faces / "celeba/img_align_celeba")
    archive = faces / "celeba/img_align_celeba.zip"
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{archive} is damaged"):
        celeba(faces)


def test_celeba_s_missing_parts_are_named(faces):
    (faces / "celeba/img_align_celeba/000004.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"expected 6 images .* 1 of 6 are missing, 000004\.jpg for instance: rem"
    ):
        celeba(faces)
    shutil.rmtree(faces / "celeba/img_align_celeba")
    with pytest.raises(
        FileNotFoundError, match=r"missing under .*: celeba/img_align_celeba\. The.*img_align_celeba\.zip w"
    ):
        celeba(faces)
    partition = faces / "celeba/list_eval_partition.txt"
    partition.write_bytes(partition.read_bytes().replace(b"000002", b"000001"))
    with pytest.raises(ValueError, match=rf"{partition} is damaged"):
        celeba(faces)
    partition.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing under .*: celeba/list_eval_partition\.txt, celeba/img_align"):
        celeba(faces)


def test_a_celeba_of_another_length_is_refused(faces, monkeypatch):
    monkeypatch.setattr(module, "CELEBA_IMAGES", 7)
    with pytest.raises(FileNotFoundError, match=r"expected 7 images in .*; 0 of 6 are missing"):
        celeba(faces)


# Folders


@pytest.fixture
def own(tmp_path):
    """A function: a number → a folder with so many images, of two classes."""

    def make(count):
        for i in range(count):
            path = tmp_path / ("cat" if i % 3 else "ant") / f"{i:03d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (2, 2), i).save(path)
        return tmp_path

    return make


@pytest.fixture
def named(monkeypatch):
    """A function: names → the names of the images to train on and of the held-out ones, without any file."""

    def split(names):
        files = ImageFiles([Path("images", name) for name in names], 2, 1, root=Path("images"))
        monkeypatch.setattr(module, "image_folder", lambda root, size, channels: files)
        return [part.keys() for part in folder("images", 2, 1)]

    return split


@pytest.mark.parametrize("count", [2, 39, 100])
def test_a_folder_is_split_with_its_labels_and_in_order(own, count):
    root = own(count)
    train, held_out = folder(root, size=2, channels=1)
    seen = [int(part[i][0, 0, 0]) for part in (train, held_out) for i in range(len(part))]
    assert sorted(seen) == list(range(count))
    for part in (train, held_out):
        assert part.names == ("ant", "cat") and part.root == root
        assert [part.names[label] for label in part.labels] == [path.parent.name for path in part.paths]
        assert list(part.paths) == sorted(part.paths)
    again = folder(str(root), size=2, channels=1)
    assert [part.paths for part in again] == [train.paths, held_out.paths]


def test_a_folder_that_moves_is_split_in_the_same_way(own, tmp_path):
    before = [part.keys() for part in folder(own(100), 2, 1)]
    (tmp_path / "moved").mkdir()
    for name in ("ant", "cat"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert [part.keys() for part in folder(tmp_path / "moved", 2, 1)] == before


def names_of(numbers):
    return [f"{'cat' if i % 3 else 'ant'}/{i:05d}.png" for i in numbers]


def test_about_a_twentieth_is_held_out_all_over_the_folder(named):
    train, held_out = named(names_of(range(10_000)))
    assert abs(len(held_out) - 500) < 5 * (10_000 * 0.05 * 0.95) ** 0.5 and len(train) + len(held_out) == 10_000
    numbers = np.array([int(name[4:9]) for name in held_out])
    assert abs(numbers.mean() - 5000) < 5 * 10_000 / 12**0.5 / len(held_out) ** 0.5
    assert abs((numbers % 3 == 0).mean() - 1 / 3) < 5 * (2 / 9 / len(held_out)) ** 0.5


def test_no_image_changes_sides_whatever_others_come_or_go(named):
    random = np.random.default_rng(0)
    train, held_out = map(set, named(names_of(range(3000))))
    for low, high in ((1, 0.999), (150, 1500), (0, 3000)):  # a few go, half go, as many more come
        kept = random.permutation(3000)[: high if high > 1 else -low] if low else range(3000)
        more = range(3000, 3000 + (high if not low else 0))
        now, now_held_out = map(set, named(names_of(sorted({*kept, *more}))))
        assert not now & held_out and not now_held_out & train
    for gone in sorted(held_out)[:20]:  # a broken file is taken out
        now, now_held_out = map(set, named(sorted((train | held_out) - {gone})))
        assert (now, now_held_out) == (train, held_out - {gone})


def test_which_side_an_image_is_on_is_pinned():
    """So that no later version moves images of old runs: sha256sum of the name, its first 12 digits over 16^12."""
    assert module._unit_hash("cat/001.png") == 0xA27AEBEC26A4 / 16**12
    assert module._unit_hash("caf\u00e9/\u4e2d.jpg") == 0x9447AB152FDD / 16**12


def test_at_most_a_thousand_images_of_a_folder_are_held_out(named):
    names = names_of(range(30_000))
    train, held_out = map(set, named(names))
    assert len(held_out) == 1000 and train | held_out == set(names) and not train & held_out
    numbers = np.array([int(name[4:9]) for name in held_out])
    assert abs(numbers.mean() - 15_000) < 5 * 30_000 / 12**0.5 / 1000**0.5
    gone = {*sorted(train)[:100], *sorted(held_out)[:7]}
    now, now_held_out = map(set, named(sorted(set(names) - gone)))
    assert len(now_held_out & train) == 7 and not now & held_out, "one for each held-out file that went"
    now, now_held_out = map(set, named(names_of(range(33_000))))
    assert not now_held_out & train, "of files that come none was trained on"


@pytest.mark.parametrize("count", range(2, 60))
def test_however_small_a_folder_is_some_are_held_out_and_some_are_not(named, count):
    for first in range(0, 60 * 8, 60):
        names = names_of(range(first, first + count))
        train, held_out = named(names)
        assert train and held_out and sorted(train + held_out) == sorted(names)
        _, more_held_out = named([*names, "cat/new.png"])
        assert not set(more_held_out) & set(train)


def test_two_images_that_would_both_be_held_out_are_split(named):
    small = [name for name in names_of(range(3000)) if module._unit_hash(name) < 1 / 20]
    train, held_out = named(small[:2])
    assert len(train) == len(held_out) == 1 and module._unit_hash(held_out[0]) < module._unit_hash(train[0])


def test_one_image_cannot_be_split(own):
    with pytest.raises(ValueError, match=r"at least two images below .*, one of which is held out; found 1"):
        folder(own(1), 2, 1)


# Resizing in memory


@pytest.mark.parametrize("length", [24, 96, 100])
def test_images_in_memory_are_resized_as_those_in_files_are(length):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 3, length, length), dtype=np.uint8))
    found = resized(images, 32, part=4)
    assert found.shape == (10, 3, 32, 32) and found.dtype == torch.uint8
    for one, other in zip(images, found, strict=True):
        alone = Image.fromarray(one.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert abs(np.asarray(alone).astype(int) - other.permute(1, 2, 0).numpy()).max() <= 1
    assert resized(images, length) is images
