"""The report and the command: a line for each function, the help, and an exit status of 0 only if all hold."""

import subprocess
import sys

import pytest

from ddpm_lib.__main__ import main
from ddpm_lib.checks import load_all
from ddpm_lib.checks.message import WIDTH
from ddpm_lib.conformance import NotLoaded
from ddpm_lib.conformance.report import conformance, in_words, near, table
from ddpm_lib.diffusion.posterior import posterior_mean, posterior_var

RIGHT = """
from ddpm_lib.conformance import implements
from ddpm_lib.diffusion.posterior import posterior_mean
mean = implements("posterior mean")(posterior_mean)
"""
WRONG = "CONFORMANCE = {'posterior variance': lambda schedule, t: schedule.beta[t]}\n"
SINGLE = "import torch\nCONFORMANCE = {'cumulative alpha': lambda beta: torch.cumprod(1 - beta.float(), 0)}\n"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """A function that writes files and runs the command on them: status, what it said, and what went wrong."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*texts, options=()):
        paths = [tmp_path / f"code_{i}.py" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        status = main(["conformance", *map(str, paths), *options])
        return status, *capsys.readouterr()

    return call


def test_the_status_is_0_only_if_all_functions_of_all_files_hold(run):
    status, out, _ = run(RIGHT)
    assert (status, out.splitlines()[-1]) == (0, "1 function: 1 holds")
    assert out.splitlines()[0] == "holds    posterior mean  to 1e-9: Bayes' rule on a grid"
    assert run(RIGHT, WRONG)[0] == run(WRONG, RIGHT)[0] == 1
    assert run(RIGHT, RIGHT)[0] == 0


def test_a_wrong_function_is_told_with_the_known_mistake_on_its_line_and_the_help_below(run):
    status, out, _ = run(RIGHT + WRONG)
    first, second, _, *help_text = out.splitlines()
    assert status == 1 and first.startswith("off      posterior variance  β_t, the variance of the forward step; from")
    assert second.startswith("holds    posterior mean ")
    assert help_text[0].startswith("Eq. 4.3 (posterior variance) does not hold: off by")
    assert "Called: <lambda>" in out or "Called: f(schedule (T=4), t (4,))" in out
    assert "Ho et al. 2020" in out and out.splitlines()[-1] == "2 functions: 1 holds, 1 is off"
    quiet = run(RIGHT + WRONG, options=["--quiet"])[1].splitlines()
    assert len(quiet) == 3 and quiet[0] == first


def test_float32_is_accepted_where_it_is_asked_for(run):
    status, out, _ = run(SINGLE)
    assert status == 1 and out.startswith("float32  cumulative alpha  to float32 (")
    assert out.splitlines()[-1].endswith("--float32, in Python float32=True, accepts it.")
    status, out, _ = run(SINGLE, options=["--float32"])
    assert status == 0 and out.splitlines()[-1] == "1 function: 1 holds to float32's precision alone"
    assert "does not hold" not in out, "no help is needed"
    assert run(WRONG, options=["--float32"])[0] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0", "code_0.py raised ZeroDivisionError: division by zero, line 1 of code_0.py: `1 / 0`"),
        ("x = 1", 'code_0.py registers no function: write @implements("posterior mean") above a function, or'),
    ],
)
def test_a_file_that_cannot_be_examined_is_an_error(run, text, said):
    status, out, error = run(text)
    assert status == 1 and out == "" and error.startswith("error: ") and said in error
    assert "Traceback" in run(text, options=["--traceback"])[2]


def test_nothing_to_examine_is_an_error_too(run):
    assert run()[2] == "error: name a Python file that registers functions, or --list the equations\n"


def test_an_unknown_name_leaves_the_others_examined(run):
    status, out, _ = run("CONFORMANCE = {'posterior men': abs}\n" + RIGHT)
    assert status == 1
    assert out.splitlines()[:2] == [
        "unknown  posterior men   did you mean 'posterior mean'?",
        "holds    posterior mean  to 1e-9: Bayes' rule on a grid",
    ]
    assert out.splitlines()[-1] == "2 functions: 1 holds, 1 has a name that no equation has"


def test_the_list_shows_every_equation_with_its_arguments(run):
    status, out, _ = run(options=["--list"])
    assert status == 0 and out.strip() == in_words()
    for found in load_all().values():
        assert f"\n{found.name}  [Eq. {found.number}, " in out
    assert "t runs from 1 to T" in out and "f(schedule, x_0, x_t, t) returns the mean." in out
    assert max(map(len, out.splitlines())) <= WIDTH


def test_in_python_it_takes_a_dictionary_and_returns_what_it_found(capsys):
    report = conformance(
        {"posterior mean": lambda *given: 2 * posterior_mean(*given), "posterior variance": posterior_var}
    )
    assert not report.holds and report["posterior mean"].status == "off"
    assert report["posterior variance"].status == "holds"
    assert "Everything is 2 times what is expected" in capsys.readouterr().out
    with pytest.raises(KeyError):
        report["velocity"]
    with pytest.raises(NotLoaded, match="the dictionary registers no function"):
        conformance({})


def test_libraries_stand_side_by_side(capsys):
    right, wrong = {"posterior variance": posterior_var}, {"posterior variance": lambda s, t: s.beta[t], "x": abs}
    shown = table({"A": conformance(right), "Library": conformance(wrong, explain=False)})
    assert shown.splitlines() == [
        "                     A       Library",
        "posterior variance   holds   off",
        "x                            unknown",
    ]
    assert [near(x) for x in (0.0, 1e-9, 3e-7, 0.0162)] == ["equal", "equal", "float32", "0.016"]


def test_no_line_is_longer_than_the_page(capsys):
    conformance({"L_simple": lambda *a: 1 / 0, "posterior variance": lambda s, t: s.beta[t], "x" * 60: abs})
    assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH


def test_the_decorator_imports_nothing_but_python_s_own():
    program = "import sys, ddpm_lib.conformance; print({'torch', 'numpy', 'scipy', 'pytest'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
