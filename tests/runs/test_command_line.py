"""The command line's own words: what it says of a problem, and what somebody may have meant."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_lib.__main__ import COMMANDS, main
from ddpm_lib.runs.arguments import EXAMPLES, PROGRAM, class_numbers, parse, parser
from ddpm_lib.runs.recipes import Recipe, override, recipe
from ddpm_lib.runs.run import CHANGEABLE

GARMENTS = ("T-shirt/top", "Trouser", "Ankle boot", "Shirt", "Bag")


def failing(error):
    def command(options):
        raise error

    return command


@pytest.mark.parametrize("kind", [ValueError, TypeError, OSError, FloatingPointError, RuntimeError])
def test_a_problem_is_one_line_and_where_it_arose_can_be_asked_for(monkeypatch, capsys, kind):
    monkeypatch.setitem(COMMANDS, "list", failing(kind("it broke")))
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "error: it broke\n"
    assert main(["list", "--traceback"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and any("in command" in line for line in lines)
    assert lines[-1] == "error: it broke"


@pytest.mark.parametrize("words", ["check x", "train x", "resume x", "sample x", "export x y"])
def test_every_command_can_be_asked_for_it(monkeypatch, capsys, words):
    monkeypatch.setitem(COMMANDS, words.split()[0], failing(ValueError("it broke")))
    assert main([*words.split(), "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_another_kind_is_not_hidden(monkeypatch):
    monkeypatch.setitem(COMMANDS, "list", failing(KeyError("a bug")))
    with pytest.raises(KeyError):
        main(["list"])


def test_notes_stand_behind_the_message(monkeypatch, capsys):
    problems = (OSError("full"), 1, "error: full; go on"), (KeyboardInterrupt(), 130, "stopped; go on")
    for error, status, said in problems:
        error.add_note("go on")
        monkeypatch.setitem(COMMANDS, "list", failing(error))
        assert main(["list"]) == status
        assert capsys.readouterr().err.strip() == said
    monkeypatch.setitem(COMMANDS, "list", failing(KeyboardInterrupt()))
    assert main(["list"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "digits"], "unknown command 'trian' (did you mean train?); there are: list, check, train, resume"),
        (["resmue"], "unknown command 'resmue' (did you mean resume?)"),
        (["Sample", "runs/x"], "unknown command 'Sample' (did you mean sample?)"),
        (["digits"], "unknown command 'digits'; there are: list, check, train, resume, sample, evaluate, export"),
    ],
)
def test_a_misspelt_command_is_recognised(capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "cifar10-small"],
            "error: unknown recipe 'cifar10-small' (did you mean cifar10_small?); ",
        ),
        (["check", "fasion"], "error: unknown recipe 'fasion' (did you mean fashion?); there are: "),
        (["train", "digits", "lr=0.1"], "error: unknown field 'lr' (did you mean learning_rate=0.1?); a recipe has: "),
        (["train", "digits", "batsh=8"], "error: unknown field 'batsh' (did you mean batch=8?); a recipe has: "),
    ],
)
def test_a_misspelt_recipe_or_field_is_recognised(capsys, words, said):
    assert main(words) == 1
    assert capsys.readouterr().err.startswith(said)


def test_every_command_of_the_parser_is_there_and_no_other():
    (commands,) = [action for action in parser()._actions if action.dest == "command"]
    assert commands.choices.keys() == COMMANDS.keys() == EXAMPLES.keys()


@pytest.mark.parametrize(
    "words", ["--steps 10", "--steps=10", "step=10", "steps 10", "width=48 --steps 10", "--Steps=10"]
)
@pytest.mark.parametrize("command", ["train digits", "check digits"])
def test_whoever_spells_a_field_another_way_is_told_how(capsys, command, words):
    try:
        status = main([*command.split(), *words.split()])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status in (1, 2) and error.count("(did you mean steps=10?)") == 1 and "Traceback" not in error


def test_what_looks_like_nothing_known_is_refused_without_a_guess(capsys):
    for words in (["train", "digits", "--xyzzy"], ["sample", "runs/x", "--xyzzy"], ["export", "x", "y", "z=1"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and f"unrecognized arguments: {words[-1]}\n" in error


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "check", "resume"])
def test_the_help_has_a_line_for_every_field(capsys, command):
    lines = help_of(capsys, command).splitlines()
    shown = [line.split() for line in lines[lines.index(next(x for x in lines if x.startswith("fields"))) + 1 :]]
    shown = shown[: shown.index([])]
    fields = [f for f in dataclasses.fields(Recipe) if command != "resume" or f.name in CHANGEABLE]
    assert [words[0] for words in shown] == [field.name for field in fields]
    for words, field in zip(shown, fields, strict=True):
        if field.default is dataclasses.MISSING:
            assert words[1] == "-"
        else:
            assert override(recipe("digits"), [f"{words[0]}={words[1]}"]) == dataclasses.replace(
                recipe("digits"), **{field.name: field.default}
            )
        assert " ".join(words[2:]) == field.metadata["about"]


def test_the_help_for_a_recipe_shows_its_values(capsys):
    rows = [line.split() for line in help_of(capsys, "train", "digits").splitlines()]
    values = {words[0]: words[1] for words in rows if len(words) > 2}
    assert (values["steps"], values["multipliers"], values["data"]) == ("640", "1,2", "digits")


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_examples_of_the_help_are_calls_that_make_sense(capsys, command):
    shown = help_of(capsys, command)
    for example in EXAMPLES[command]:
        assert f"\n  {PROGRAM} {example}\n" in shown
        options = parse(shlex.split(example))
        assert options.command == command
        base = recipe(getattr(options, "recipe", "digits"))
        assert override(base, getattr(options, "fields", [])).network().null == base.classes
        fashion = [0, 1] if "runs" in example else [0, 2]
        names, numbers = (("Bag", "Sandal", "Coat"), fashion) if "fashion" in example else ((), [0, 1, 2])
        if command == "sample":
            assert class_numbers(options.labels, names) == numbers


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("0,1,2", [0, 1, 2]),
        ("0 1 2", [0, 1, 2]),
        ("0,1 2,", [0, 1, 2]),
        ("shirt,bag", [3, 4]),
        ("SHIRT 0 Bag", [3, 0, 4]),
        ("'ankle boot' t-shirt/top", [2, 0]),
        ("'bag, ankle boot, 1'", [4, 2, 1]),
        ("-1", [-1]),  # which sampling refuses
    ],
)
def test_classes_are_named_by_number_or_by_name(words, numbers):
    assert class_numbers(shlex.split(words), GARMENTS) == numbers
    assert parse(["sample", "runs/x", "--labels", *shlex.split(words)]).labels == shlex.split(words)


def test_a_class_whose_name_holds_a_comma_or_differs_in_capitals_alone_can_be_named():
    assert class_numbers(["red, green", "A", "a"], ("a", "red, green", "A")) == [1, 2, 0]


def test_an_unknown_class_is_refused_and_a_likely_one_suggested():
    with pytest.raises(ValueError, match=r"unknown class 'shrit' \(did you mean Shirt\?\); there are: T-shirt"):
        class_numbers(["bag,shrit"], GARMENTS)
    with pytest.raises(ValueError, match="unknown class 'shirt'; the classes of this model have numbers alone"):
        class_numbers(["shirt"], ())


@pytest.mark.parametrize("folder", ["missing", "empty", "file", "texts"])
def test_check_says_what_is_wrong_with_a_folder(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "texts"):
        Path(name).mkdir()
    Path("file").touch()
    Path("texts/a.txt").touch()
    said = {
        "missing": "expected a folder of images at missing; there is no such folder",
        "empty": "expected images below empty, it is empty",
        "file": "expected a folder of images at file; that is a file",
        "texts": "expected images below texts, found no file whose name ends in .png",
    }
    assert main(["check", "folder", f"root={folder}", "--device", "cpu"]) == 1
    assert f"\nFAILED   {said[folder]}" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP, which PyTorch has on Linux")
@pytest.mark.parametrize(("given", "sleeps"), [({}, True), ({"OMP_WAIT_POLICY": "ACTIVE"}, False)])
def test_threads_that_wait_sleep_at_once_unless_the_user_says_otherwise(given, sleeps):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_lib", "list"],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert counts and all((count == "0") == sleeps for count in counts)
