"""What tells one set of training images from another, and what is said where a run finds other ones."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ddpm_lib.images.data import LabelledImages
from ddpm_lib.images.fingerprint import check_same, fingerprint
from ddpm_lib.images.image_files import ImageFiles, image_folder


def in_memory(n=12):
    images = torch.randint(256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return LabelledImages(images, torch.arange(n) % 3, ("ant", "bee", "cat"))


@pytest.fixture
def root(tmp_path, random_images):
    """A folder of six images in two classes, no two files of one size."""
    return random_images(tmp_path / "here", 6, ("bee", "ant"), size=lambda i: (4 + i, 4))


def of_folder(root, **changes):
    return fingerprint(replace(image_folder(root, 4, 3), **changes))


def other_pixel(data):
    images = data.images.clone()
    images[-1, -1, -1, -1] ^= 1
    return replace(data, images=images)


MEMORY_CHANGES = {
    "a pixel": other_pixel,
    "a label": lambda data: replace(data, labels=data.labels.roll(1)),
    "no labels": lambda data: replace(data, labels=None),
    "the order": lambda data: replace(data, images=data.images.flip(0), labels=data.labels.flip(0)),
    "fewer": lambda data: replace(data, images=data.images[:-1], labels=data.labels[:-1]),
    "the shape": lambda data: replace(data, images=data.images.view(-1, 3, 2, 8)),
    "the type": lambda data: replace(data, images=data.images.view(torch.int8)),
    "a class's name": lambda data: replace(data, names=("ant", "bee", "cow")),
}


def test_the_same_images_in_memory_have_the_same_fingerprint():
    assert fingerprint(in_memory()) == fingerprint(in_memory())
    strided = replace(in_memory(), images=in_memory().images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    assert fingerprint(strided) == fingerprint(in_memory()), "how they lie in memory is not what they are"
    assert fingerprint(LabelledImages(torch.zeros(2, 1, 4, 4)))["counts"] == {}


@pytest.mark.parametrize("change", MEMORY_CHANGES)
def test_whatever_changes_in_memory_changes_the_fingerprint(change):
    assert fingerprint(MEMORY_CHANGES[change](in_memory())) != fingerprint(in_memory())


def test_a_fingerprint_survives_json_and_says_what_there_is():
    about = fingerprint(in_memory())
    assert json.loads(json.dumps(about)) == about
    assert (about["images"], about["shape"], about["names"]) == (12, [3, 4, 4], ["ant", "bee", "cat"])
    assert about["counts"] == {"ant": 4, "bee": 4, "cat": 4}
    assert fingerprint(replace(in_memory(), names=(), labels=in_memory().labels - 1))["counts"] == {
        **{"-1": 4, "0": 4, "1": 4}
    }


def test_a_folder_may_move_and_be_copied_but_not_change(root, tmp_path):
    first = of_folder(root)
    shutil.copytree(root, tmp_path / "elsewhere")  # with new times
    (tmp_path / "linked").symlink_to(root, target_is_directory=True)
    assert of_folder(tmp_path / "elsewhere") == of_folder(tmp_path / "linked") == first
    (root / "ant/01.png").rename(root / "ant/09.png")
    assert of_folder(root) != first, "renamed"
    (root / "ant/09.png").rename(root / "bee/01.png")
    assert of_folder(root) != first, "in another class"
    (root / "bee/01.png").rename(root / "ant/01.png")
    assert of_folder(root) == first
    shutil.copy(root / "ant/03.png", root / "ant/01.png")
    assert of_folder(root) != first, "replaced by a file of another size"


@pytest.mark.parametrize("change", [{"size": 5}, {"channels": 1}, {"names": ("a", "b")}, {"labels": None}])
def test_what_is_made_of_files_belongs_to_their_fingerprint(root, change):
    assert of_folder(root, **change) != of_folder(root)


def test_a_file_that_is_not_there_leaves_the_complaint_to_whoever_reads_it(root):
    files = image_folder(root, 4, 3)
    files.paths[0].unlink()
    assert fingerprint(files) != of_folder(root)


def test_the_same_is_accepted_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(json.loads(json.dumps(fingerprint(in_memory()))), fingerprint(in_memory()), "run/step-2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("fewer", r"images: 11, then 12; of class cat: 3, then 4\. Put back what was there .* root=PATH\), or start"),
        ("a pixel", "as many as then, but some are others, or have another name or label"),
        ("a label", "as many as then, but some are others"),
        ("the shape", r"shape: \[3, 2, 8\], then \[3, 4, 4\]"),
        ("a class's name", "of class cat: 0, then 4; of class cow: 4, then 0"),
    ],
)
def test_what_has_changed_is_named_and_refused_or_accepted_with_a_warning(change, said):
    then, now = fingerprint(in_memory()), fingerprint(MEMORY_CHANGES[change](in_memory()))
    with pytest.raises(ValueError, match="^the images are not those that run/step-2 was trained on: " + said):
        check_same(then, now, "run/step-2")
    with pytest.warns(UserWarning, match=said.split(r"\. Put")[0] + r".*Training goes on with those that are here"):
        check_same(then, now, "run/step-2", other_data=True)


def test_of_many_classes_that_changed_the_first_are_named():
    names = tuple(f"c{i}" for i in range(9))
    twice = LabelledImages(torch.zeros(18, 1, 2, 2), torch.arange(18) % 9, names)
    once = LabelledImages(twice.images[:9], twice.labels[:9], names)
    with pytest.raises(ValueError, match=r"of class c4: 1, then 2; and 4 more classes\. Put"):
        check_same(fingerprint(twice), fingerprint(once), "x")


@pytest.mark.parametrize("then", [None, {"version": 0, "hash": "of something else"}])
def test_where_nothing_is_known_a_warning_says_so(then):
    with pytest.warns(UserWarning, match=r"x does not say which images .* some that are held out now may have been"):
        check_same(then, fingerprint(in_memory()), "x")


def test_names_are_spelt_in_one_way_on_every_system(tmp_path):
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    prints = []
    for name in (composed, decomposed):
        root = tmp_path / str(len(prints))
        root.mkdir()
        Image.new("L", (4, 4)).save(root / name)
        prints.append(fingerprint(ImageFiles([root / name], 4, 1, root=root)))
    assert prints[0] == prints[1]
