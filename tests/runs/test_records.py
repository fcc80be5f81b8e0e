"""Records: a measurement comes back as it was, and says where it comes from; the stored ones are fit to be shown."""

import json
import re
import subprocess
import time

import pytest
import torch

from ddpm_lib.runs import records
from ddpm_lib.runs.records import FIELDS, RECORDS, describe_record, device_name, read_record, write_record

CPU = torch.device("cpu")
RESULTS = {"images_per_s": [1.5, 2e-7, -3], "plan": [{"batch": 4, "name": "a [1,  2] b"}], "none": None, "empty": []}


def written(path, **options):
    return write_record(path, "python measure.py --rounds 3", RESULTS, time.perf_counter() - 2, device=CPU, **options)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    before = time.strftime("%Y-%m-%d", time.gmtime())
    record = written(tmp_path / "new" / "a.json", packages=("numpy", "no-such-package"))
    assert read_record(tmp_path / "new" / "a.json") == record and tuple(record) == FIELDS
    assert record["results"] == RESULTS and record["command"] == "python measure.py --rounds 3"
    assert 2 <= record["seconds"] < 60 and before <= record["date"] <= time.strftime("%Y-%m-%d", time.gmtime())
    assert record["versions"].keys() == {"python", "torch", "ddpm_lib", "numpy"}
    assert record["versions"]["torch"] == torch.__version__
    assert "[1.5, 2e-07, -3]" in (tmp_path / "new" / "a.json").read_text()  # not one number a line


def test_what_json_cannot_hold_is_refused_and_an_old_record_stays(tmp_path):
    record = written(tmp_path / "a.json")
    for bad in (float("nan"), torch.ones(2)):
        with pytest.raises((TypeError, ValueError)):
            write_record(tmp_path / "a.json", "command", {"loss": bad}, time.perf_counter(), device=CPU)
    assert read_record(tmp_path / "a.json") == record


def test_a_name_alone_is_that_of_one_of_the_book_s_own(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    record = written(tmp_path / "speed.json")
    assert read_record("speed") == record
    with pytest.raises(FileNotFoundError, match=r"expected a record in .*sped\.json; .* that folder: speed$"):
        read_record("sped")


@pytest.mark.parametrize("content", ["", "3", "[]x", '{"command": "python"}', "{}"])
def test_a_file_that_is_no_record_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is (not JSON|no record)"):
        read_record(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json; the records in that folder: a$"):
        read_record(tmp_path / "b.json")


def test_the_line_names_device_torch_command_commit_and_day(tmp_path):
    record = written(tmp_path / "a.json") | {"commit": "0123456789ab", "date": "2020-02-29", "device": "GPU Z"}
    line = f"GPU Z, torch {torch.__version__}, `python measure.py --rounds 3`, commit 0123456789ab, 2020-02-29"
    assert describe_record(record) == line
    assert describe_record(record | {"commit": None}) == line.replace("commit 0123456789ab", "no commit known")


def test_a_processor_is_named_with_its_threads(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Chip 9 @ 2.0GHz\nflags\t\t: fpu\nmodel name\t: other\n"
    )
    monkeypatch.setattr(records, "CPUS", tmp_path / "cpuinfo")
    for threads, words in ((1, "1 thread"), (7, "7 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert device_name(CPU) == f"Chip 9 @ 2.0GHz, {words}"
    monkeypatch.setattr(records, "CPUS", tmp_path / "none")
    assert device_name(CPU).endswith(", 7 threads")
    assert device_name(torch.device("mps")) == "Apple's GPU (MPS)" and device_name(torch.device("xpu")) == "xpu"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout of a small library, with one commit; a function that runs git there."""
    library = tmp_path / "book" / "ddpm_lib"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("")

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *who, *words], cwd=library.parent, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(records, "LIBRARY", library)
    return git


def test_the_commit_is_that_of_the_checkout_and_says_where_files_differ(checkout, tmp_path):
    clean = checkout("rev-parse", "HEAD")[:12]
    place = records.LIBRARY.parent / "data" / "records" / "a.json"
    assert written(place)["commit"] == clean
    checkout("add", ".")  # a record that is replaced is no other code, nor is a file that git does not know
    (records.LIBRARY.parent / "note.txt").write_text("")
    assert written(place)["commit"] == clean
    (records.LIBRARY / "__init__.py").write_text("changed = True\n")
    assert written(place)["commit"] == f"{clean}-dirty"


def test_outside_git_or_in_a_folder_that_git_ignores_there_is_no_commit(checkout, tmp_path, monkeypatch):
    installed = records.LIBRARY.parent / ".venv" / "ddpm_lib"  # in somebody's checkout, but none of its files
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(records, "LIBRARY", installed)
    assert written(tmp_path / "a.json")["commit"] is None
    monkeypatch.setattr(records, "LIBRARY", tmp_path)
    assert written(tmp_path / "a.json")["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert written(tmp_path / "a.json")["commit"] is None


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_stored_record_is_whole_and_shows_nothing_of_the_machine_s_folders(path):
    text = path.read_text(encoding="utf-8")
    record = read_record(path)
    assert record["commit"] is None or re.fullmatch(r"[0-9a-f]{12}", record["commit"]), "measured with changed files"
    assert len(text) < 100_000 and json.dumps(record, allow_nan=False)
    assert not re.findall(r"(?<![\w.])/(?:home|root|work|tmp)\b\S*", text)
