"""The command line's own words: what it says of a problem, and what somebody may have meant."""

import pytest

from ddpm_lib import __main__ as module
from ddpm_lib.__main__ import COMMANDS, main


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
        (["digits"], "unknown command 'digits'; there are: list, check, train, resume, sample, export"),
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
        (["train", "digits", "lr=1e-3"], "error: unknown field 'lr' (did you mean learning_rate?); a recipe has: "),
        (["train", "digits", "learning_rat=1e-3"], "error: unknown field 'learning_rat' (did you mean learning_rate?)"),
    ],
)
def test_a_misspelt_recipe_or_field_is_recognised(capsys, words, said):
    assert main(words) == 1
    assert capsys.readouterr().err.startswith(said)


def test_every_command_of_the_parser_is_there_and_no_other():
    (commands,) = [action for action in module.parser()._actions if action.dest == "command"]
    assert commands.choices.keys() == COMMANDS.keys()
