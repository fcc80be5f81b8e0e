"""A reader's copy of the book: it follows the book until the reader changes it, and no change is ever lost."""

from pathlib import Path

import pytest

from tools import reading_copy

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folders(tmp_path):
    book, copy = tmp_path / "chapters", tmp_path / "reading"
    for name in ("01_one.ipynb", "02_two.ipynb", "solutions/01_one.ipynb", ".ipynb_checkpoints/01_one.ipynb"):
        (book / name).parent.mkdir(parents=True, exist_ok=True)
        (book / name).write_text(f"first edition of {name}")
    assert reading_copy.renew(book, copy) == []
    return book, copy


def test_all_chapters_and_solutions_are_copied(folders):
    book, copy = folders
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*.ipynb")}
    assert found == {"01_one.ipynb", "02_two.ipynb", "solutions/01_one.ipynb"}
    assert all((copy / name).read_text() == (book / name).read_text() for name in found)


def test_an_untouched_chapter_follows_the_book_and_a_new_one_is_added(folders):
    book, copy = folders
    (book / "01_one.ipynb").write_text("second edition")
    (book / "03_three.ipynb").write_text("new")
    assert reading_copy.renew(book, copy) == []
    assert (copy / "01_one.ipynb").read_text() == "second edition"
    assert (copy / "03_three.ipynb").read_text() == "new"


def test_a_changed_chapter_stays_and_is_named_only_where_the_book_has_a_newer_one(folders):
    book, copy = folders
    (copy / "01_one.ipynb").write_text("mine")
    assert reading_copy.renew(book, copy) == []
    (book / "01_one.ipynb").write_text("second edition")
    for _ in range(2):
        assert reading_copy.renew(book, copy) == ["01_one.ipynb"]
        assert (copy / "01_one.ipynb").read_text() == "mine"


def test_after_the_changed_one_is_renamed_the_newer_one_comes(folders):
    book, copy = folders
    (copy / "01_one.ipynb").write_text("mine")
    (book / "01_one.ipynb").write_text("second edition")
    (copy / "01_one.ipynb").rename(copy / "mine.ipynb")
    assert reading_copy.renew(book, copy) == []
    assert (copy / "01_one.ipynb").read_text() == "second edition"
    assert (copy / "mine.ipynb").read_text() == "mine"


def test_a_file_that_was_there_before_the_first_copy_is_not_overwritten(tmp_path):
    book, copy = tmp_path / "chapters", tmp_path / "reading"
    for folder, text in ((book, "the book's"), (copy, "mine")):
        folder.mkdir()
        (folder / "01_one.ipynb").write_text(text)
    assert reading_copy.renew(book, copy) == ["01_one.ipynb"]
    assert (copy / "01_one.ipynb").read_text() == "mine"


def test_git_sees_nothing_of_it():
    assert "/reading/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
