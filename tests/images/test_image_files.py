"""Image files: found and labelled by their folders, seen as they are meant, brought to one size, or refused by name."""

import os
import pickle
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lib.images.image_files import SUFFIXES, ImageFiles, image_folder, key


def picture(height=8, width=8, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(path, array=None, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture() if array is None else array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def read(path, size=8, channels=3):
    """(S, S, C), or (S, S) where C = 1, as PIL and numpy have it."""
    image = ImageFiles([path], size, channels)[0]
    assert image.shape == (channels, size, size) and image.dtype == torch.uint8 and image.is_contiguous()
    return image.permute(1, 2, 0).numpy() if channels > 1 else image[0].numpy()


# What there is


def test_subfolders_are_classes_and_all_images_below_are_theirs_in_order(tmp_path):
    for name in ("cat/b.png", "cat/old/a.PNG", "ant/z.Jpg", "ant/c.webp", "bee/deep/er/x.gif", "bee/y.TIFF"):
        put(tmp_path / name)
    for name in (".hidden/a.png", "cat/.a.png", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = image_folder(str(tmp_path), 8, 3)
    found = [path.relative_to(tmp_path).as_posix() for path in files.paths]
    assert found == ["ant/c.webp", "ant/z.Jpg", "bee/deep/er/x.gif", "bee/y.TIFF", "cat/b.png", "cat/old/a.PNG"]
    assert files.names == ("ant", "bee", "cat")
    assert files.labels.tolist() == [0, 0, 1, 1, 2, 2] and files.labels.dtype == torch.int64
    assert len(files) == 6 and torch.stack([files[i] for i in torch.arange(6)]).shape == (6, 3, 8, 8)


def test_every_suffix_is_found_and_images_directly_in_the_folder_have_no_labels(tmp_path):
    for number, suffix in enumerate(SUFFIXES):
        put(tmp_path / f"{number:02d}{suffix}")
    files = image_folder(tmp_path, 8, 3)
    assert [path.suffix for path in files.paths] == list(SUFFIXES)
    assert files.labels is None and files.names == ()
    assert all(files[i].shape == (3, 8, 8) for i in range(len(files)))


def test_links_to_folders_and_files_are_followed(tmp_path):
    put(tmp_path / "elsewhere/a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    files = image_folder(tmp_path / "root", 8, 3)
    assert len(files) == 1 and files.names == ("linked",)


def test_a_mixture_of_loose_images_and_subfolders_is_refused_with_the_way_out(tmp_path):
    for name in ("a.png", "cat/b.png", "cat/c.png", "ant/d.png"):
        put(tmp_path / name)
    with pytest.raises(ValueError, match=r"got 1 directly in it, a\.png for one, and 3 below ant and the like: move"):
        image_folder(tmp_path, 8, 3)


def test_what_is_left_out_is_counted_by_kind_and_empty_classes_are_named(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        put(tmp_path / name)
    for name in ("cat/1.heic", "cat/2.HEIC", "cat/list.txt", "cat/plain", "wasp/3.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    (tmp_path / "bee/inner").mkdir(parents=True)
    with pytest.warns(UserWarning) as said:
        files = image_folder(tmp_path, 8, 3)
    left_out, empty = (str(warning.message) for warning in said)
    assert left_out.startswith(
        f"5 of the 7 files below {tmp_path} are left out (1 without a suffix, 3 .heic, 1 .txt): "
    )
    assert empty.startswith(f"no image in bee, wasp below {tmp_path}")
    assert files.names == ("cat", "dog") and len(files) == 2


def test_empty_subfolders_of_a_folder_without_classes_are_no_classes(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "old").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_folder(tmp_path, 8, 3).labels is None


def test_a_folder_without_images_is_named_with_the_suffixes_looked_for_and_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"images below {tmp_path}, it is empty$"):
        image_folder(tmp_path, 8, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"images below {tmp_path}, found .* in \.png, \.jpg, .*\.avif$"):
        image_folder(tmp_path, 8, 3)
    for name in ("notes.txt", "a.heic", "b.heic"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"there are others: 2 \.heic, 1 \.txt$"):
        image_folder(tmp_path, 8, 3)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_none_is_named(tmp_path, there):
    if there:
        (tmp_path / "x").write_text("a file")
    said = "that is a file" if there else "there is no such folder"
    with pytest.raises(FileNotFoundError, match=rf"a folder of images at {tmp_path / 'x'}; {said}$"):
        image_folder(tmp_path / "x", 8, 3)


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch):
    for name in ("ant/a.png", "cat/b.png"):
        put(tmp_path / name)
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path / 'cat'}"):
        image_folder(tmp_path, 8, 3)


def test_links_that_lead_back_end_nowhere_and_add_nothing(tmp_path):
    for name in ("root/ant/a.png", "root/cat/b.png", "other/c.png"):
        put(tmp_path / name)
    links = {"root/ant/up": "root", "root/cat/self": "root/cat", "root/dog": "other", "other/back": "root"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(tmp_path / target, target_is_directory=True)
    assert image_folder(tmp_path / "root", 8, 3).keys() == ["ant/a.png", "cat/b.png", "dog/c.png"]


def test_a_name_is_spelt_in_one_way_on_every_system(tmp_path):
    assert key(PureWindowsPath("cat\\caf\u00e9.png")) == key(PurePosixPath("cat/cafe\u0301.png")) == "cat/caf\u00e9.png"
    for name in ("cafe\u0301/b.png", "cafz/a.png", "caf\u00e9s/a.png"):  # by their bytes, the first comes first
        put(tmp_path / name)
    files = image_folder(tmp_path, 8, 3)
    assert files.names == ("cafz", "caf\u00e9", "caf\u00e9s")
    assert files.keys() == ["cafz/a.png", "caf\u00e9/b.png", "caf\u00e9s/a.png"]
    assert files.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("root", ["", ".", "images", "images/"])
def test_keys_are_paths_from_the_root(tmp_path, monkeypatch, root):
    put(tmp_path / root / "cat/a.png")
    monkeypatch.chdir(tmp_path)
    assert image_folder(root, 8, 3).keys() == ["cat/a.png"]
    assert ImageFiles([Path("cat/a.png")], 8, 3).keys() == ["cat/a.png"]


@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([2, 0]), range(2, -1, -2)])
def test_a_subset_is_these_rows_with_their_labels(tmp_path, rows):
    for name in ("ant/a.png", "bee/b.png", "cat/c.png"):
        put(tmp_path / name)
    part = image_folder(tmp_path, 8, 3).subset(rows)
    assert part.keys() == ["cat/c.png", "ant/a.png"] and part.labels.tolist() == [2, 0]
    assert part.names == ("ant", "bee", "cat")


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2), (8, 4)])
def test_sizes_and_channels_that_no_image_has_are_refused(size, channels):
    with pytest.raises(ValueError, match=rf"1 or 3 channels and size >= 1; got {channels} and {size}"):
        ImageFiles([], size, channels)


def test_files_can_be_sent_to_a_process_that_was_not_forked(tmp_path):
    put(tmp_path / "cat/a.png")
    files = image_folder(tmp_path, 8, 3)
    again = pickle.loads(pickle.dumps(files))
    assert torch.equal(again[0], files[0]) and again.names == files.names and torch.equal(again.labels, files.labels)


def test_an_index_beyond_the_files_is_an_index_error(tmp_path):
    with pytest.raises(IndexError):
        image_folder(put(tmp_path / "a.png").parent, 8, 3)[1]


# How it is meant

TURNED = {  # what the eight EXIF orientations ask to do with the stored rows and columns (H, W, C)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_an_image_is_turned_as_its_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture()
    path = put(tmp_path / "a.png", stored, exif=exif)
    assert (read(path) == TURNED[orientation](stored)).all()


def test_a_photograph_that_was_held_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(8, 20)
    path = put(tmp_path / "a.jpg", stored.repeat(8, 0).repeat(8, 1), exif=exif, quality=100, subsampling=0)
    difference = read(path, 8).astype(int) - np.rot90(stored[:, 6:14], -1)
    assert abs(difference).mean() < 25  # the filter reaches into neighbouring blocks; any other turn differs by 85


def malformed():
    """Blocks of EXIF data that are none, from one that asks to turn the image (orientation 6), and what they lack."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    whole = exif.tobytes()
    assert whole.startswith(b"Exif\0\0MM\0*\0\0\0\x08")
    return {"no TIFF header": b"Exif\0\0garbage!", "half a header": whole[:11]}


@pytest.mark.parametrize("what", malformed())
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_malformed_exif_block_harms_no_pixel_and_its_file_is_named(tmp_path, suffix, what):
    stored = picture()
    path = put(
        tmp_path / f"a.{suffix}", stored, exif=malformed()[what], **({"lossless": True} if suffix == "webp" else {})
    )
    with pytest.warns(UserWarning, match=rf"{path}: its EXIF block is malformed \(.*\), so it is read without turning"):
        assert (read(path) == stored).all()


@pytest.mark.parametrize("error", [SyntaxError, ValueError, KeyError, AssertionError, OSError, IndexError])
def test_whatever_reading_the_exif_block_raises_harms_no_pixel(tmp_path, monkeypatch, error):
    path = put(tmp_path / "a.png", picture())

    def fails(image):
        raise error("malformed")

    monkeypatch.setattr(Image.Image, "getexif", fails)
    with pytest.warns(UserWarning, match=rf"{path}: its EXIF block is malformed \({error.__name__}: .*malformed"):
        assert (read(path) == picture()).all()


def test_an_exif_block_that_cannot_be_written_again_still_says_how_to_turn(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x8769] = 6, {0x9003: "2020"}
    block = bytearray(exif.tobytes())
    at = block.index(bytes([0x87, 0x69]))
    block[at + 2 : at + 4] = 0, 2  # the place of more tags, as text: Pillow reads it, and fails to write it
    path = put(tmp_path / "a.png", picture(), exif=bytes(block))
    assert (read(path) == TURNED[6](picture())).all()


def test_a_jpeg_by_another_name_and_an_avif_are_read(tmp_path):
    for suffix in (".jfif", ".avif"):
        assert suffix in SUFFIXES
        flat = np.full((8, 8, 3), 200, np.uint8)
        assert abs(read(put(tmp_path / f"a{suffix}", flat)).astype(int) - 200).max() <= 3


def test_only_what_this_pillow_reads_is_an_image():
    assert all(suffix in Image.registered_extensions() for suffix in SUFFIXES)


def test_grey_colour_and_one_bit_become_what_is_asked_for(tmp_path):
    grey, colour = picture(channels=1), picture()
    assert (read(put(tmp_path / "g.png", grey)) == grey[:, :, None]).all()
    assert (read(put(tmp_path / "g.png", grey), channels=1) == grey).all()
    luma = colour @ [0.299, 0.587, 0.114]
    assert abs(read(put(tmp_path / "c.png", colour), channels=1) - luma).max() <= 1
    bits = put(tmp_path / "b.png", grey // 128 * 255, "1")
    assert (read(bits, channels=1) == grey // 128 * 255).all()
    few = put(tmp_path / "p.png", grey // 64 * 64, "P")
    assert (read(few) == (grey // 64 * 64)[:, :, None]).all()
    assert abs(read(put(tmp_path / "k.tif", np.full((8, 8, 3), 200, np.uint8), "CMYK")) - 200).max() <= 1


def test_what_is_clear_becomes_white(tmp_path):
    colour, alpha = picture(), picture(channels=1, seed=1)
    alpha[0], alpha[1] = 0, 255
    share = alpha[:, :, None] / 255
    on_white = colour * share + 255 * (1 - share)
    found = read(put(tmp_path / "rgba.png", np.dstack([colour, alpha])))
    assert abs(found - on_white).max() <= 1 and (found[0] == 255).all() and (found[1] == colour[1]).all()
    grey = np.dstack([colour[:, :, 0], alpha])
    put(tmp_path / "la.png", grey)
    assert Image.open(tmp_path / "la.png").mode == "LA"
    assert abs(read(tmp_path / "la.png", channels=1) - on_white[:, :, 0]).max() <= 1
    flat = np.zeros((8, 8), np.uint8)
    flat[2:5] = 1
    image = Image.fromarray(flat)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "p.png", transparency=0)
    assert (read(tmp_path / "p.png") == np.where(flat[:, :, None], [40, 50, 60], [255, 255, 255])).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_high_eight(tmp_path, suffix, channels):
    deep = np.random.default_rng(0).integers(0, 2**16, (8, 8), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    found = read(put(tmp_path / f"d.{suffix}", deep), channels=channels)
    assert (found.reshape(8, 8, -1) == (deep >> 8)[:, :, None]).all()


def test_an_older_pillow_s_sixteen_bits_are_no_32(tmp_path, monkeypatch):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    path, opened = put(tmp_path / "d.png", deep), Image.open

    def open_as_before(path):
        image = opened(path).convert("I")
        image.format = "PNG"
        return image

    monkeypatch.setattr(Image, "open", open_as_before)
    assert (read(path, channels=1) == deep >> 8).all()


def test_numbers_whose_white_nobody_knows_are_refused(tmp_path):
    for array in (picture(channels=1).astype(np.int32), picture(channels=1).astype(np.float32)):
        with pytest.raises(ValueError, match=r"in .*a\.tif, got .* numbers of 32 bits \(mode [IF]\), whose white"):
            read(put(tmp_path / "a.tif", array))


def test_of_a_moving_picture_the_first_frame_comes(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "a.gif") == [255, 0, 0]).all()


# One size


def resampling(length, size):
    """The (size, length) matrix of the bicubic filter (a = −1/2), as wide as the scale asks and normalised."""
    scale = max(length / size, 1)
    centres = (np.arange(size) + 0.5) * length / size
    x = abs((np.arange(length) + 0.5 - centres[:, None]) / scale)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("length", [5, 8, 13, 32, 100])
def test_resizing_is_the_antialiased_bicubic_filter(tmp_path, length):
    image = picture(length, length) // 2 + 64  # nothing is clipped; the first of two passes may be rounded
    matrix = resampling(length, 8)
    expected = np.einsum("ah,hwc,bw->abc", matrix, image, matrix)
    assert abs(read(put(tmp_path / "a.png", image)) - expected).max() <= 1.2


def test_fine_stripes_become_grey_and_not_other_stripes(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (50, 25))
    assert abs(read(put(tmp_path / "a.png", stripes), size=7, channels=1).astype(int) - 128).max() <= 6


@pytest.mark.parametrize(("height", "width"), [(8, 20), (21, 8), (8, 9), (8, 8)])
def test_the_middle_is_cut_out_exactly(tmp_path, height, width):
    image = picture(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    assert (read(put(tmp_path / "a.png", image)) == image[top : top + 8, left : left + 8]).all()


def test_nothing_from_outside_the_square_reaches_it(tmp_path):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 16:48] = 200
    assert (read(put(tmp_path / "a.png", image)) == 200).all()


@pytest.mark.parametrize("length", [260, 800])
def test_a_large_jpeg_decoded_small_is_nearly_the_whole_one_resized(tmp_path, monkeypatch, length):
    smooth = np.asarray(Image.fromarray(picture(20, 20)).resize((length, length), Image.Resampling.BICUBIC))
    path = put(tmp_path / "a.jpg", smooth, quality=95)
    quick = read(path, size=32)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda image, mode, size: None)
    whole = read(path, size=32)
    assert 0 < abs(quick.astype(int) - whole).mean() < 1 and abs(quick.astype(int) - whole).max() <= 6


# What cannot be read


def broken(path, kind):
    whole = put(path, picture(40, 40)).read_bytes()
    changed = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>" * 20}
    path.write_bytes(changed[kind])


@pytest.mark.parametrize("kind", ["half", "empty", "text"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_broken_file_is_named_with_what_to_do(tmp_path, suffix, kind):
    path = tmp_path / f"sub/photo{suffix}"
    broken(path, kind)
    with pytest.raises(
        ValueError, match=rf"expected an image in {path}, got .*\. Replace it with a whole copy, or take"
    ):
        image_folder(tmp_path, 8, 3)[0]


@pytest.mark.parametrize("missing", [1, 10, 100])
def test_a_photograph_that_lacks_its_last_bytes_is_refused(tmp_path, missing):
    path = put(tmp_path / "photo.jpg", picture(80, 80))
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match=r"photo\.jpg, got OSError: .*truncated"):
        image_folder(tmp_path, 8, 3)[0]


def test_a_file_that_went_away_is_named(tmp_path):
    files = image_folder(put(tmp_path / "photo.png").parent, 8, 3)
    files.paths[0].unlink()
    with pytest.raises(ValueError, match=r"photo\.png, got FileNotFoundError"):
        files[0]
