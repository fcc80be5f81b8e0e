"""The mutants: operators make the slips that they name, children see them everywhere, the list of excuses is true."""

import ast
import os
import re
import sys
import textwrap
import types
from collections import Counter

import pytest

from ddpm_lib import CHAPTER

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytest.importorskip("resource")

from tools.mutants import __main__ as command  # noqa: E402
from tools.mutants import children, judge  # noqa: E402
from tools.mutants.operators import mutants  # noqa: E402

TOY = '''
def f(schedule, x, t, scale: float = 2.0):
    """Docstrings have no 1 + 1."""
    if scale < 0:
        raise ValueError(f"{scale - 1}")
    return scale * schedule.alpha[t].sqrt() - x**2


def g(x, mean):
    return f(mean, x) / -3
'''


TOY_TESTS = """
from ddpm_lib.diffusion.forward import snr
from ddpm_lib.diffusion.schedule import Schedule

def test_a():
    assert snr(Schedule([0.5]), 1) > 0

def test_b():
    assert snr(Schedule([0.5]), 1) == 1
"""


def made(source, **options):
    return [(m.operator, m.before, m.after) for m in mutants("toy", textwrap.dedent(source), **options)]


def test_the_operators_make_every_slip_that_they_name_and_no_other():
    line = "return scale * schedule.alpha[t].sqrt() - x**2"
    assert Counter(made(TOY)) == Counter(
        [
            ("constant", "def f(schedule, x, t, scale: float = 2.0):", "def f(schedule, x, t, scale: float = 2.2):"),
            ("< and ≤", "if scale < 0:", "if scale <= 0:"),
            ("constant", "if scale < 0:", "if scale < 1:"),
            ("sign", line, "return scale * schedule.alpha[t].sqrt() + x**2"),
            ("factor", line, "return scale - x**2"),
            ("factor", line, "return schedule.alpha[t].sqrt() - x**2"),
            ("root or square", line, "return scale * schedule.alpha[t] - x**2"),
            ("α and ᾱ", line, "return scale * schedule.alpha_bar[t].sqrt() - x**2"),
            ("t and t ± 1", line, "return scale * schedule.alpha[t - 1].sqrt() - x**2"),
            ("t and t ± 1", line, "return scale * schedule.alpha[t + 1].sqrt() - x**2"),
            ("root or square", line, "return scale * schedule.alpha[t].sqrt() - x"),
            ("constant", line, "return scale * schedule.alpha[t].sqrt() - x**3"),
            ("arguments", "return f(mean, x) / -3", "return f(x, mean) / -3"),
            ("factor", "return f(mean, x) / -3", "return f(mean, x)"),
            ("factor", "return f(mean, x) / -3", "return 1 / -3"),
            ("sign", "return f(mean, x) / -3", "return f(mean, x) / 3"),
            ("constant", "return f(mean, x) / -3", "return f(mean, x) / -4"),
        ]
    )


@pytest.mark.parametrize(
    ("line", "slips"),
    [
        ("y = a[t - 1]", {"y = a[t]", "y = a[t + 1]", "y = a[t - 2]"}),
        ("y = (t).clamp(b)", {"y = (t - 1).clamp(b)", "y = (t + 1).clamp(b)"}),
        ("y = t.device", set()),
        ("y = isinstance(t, bool)", set()),
        ("y = a * (b + c) / d", {"y = (b + c) / d", "y = a / d", "y = a * (b + c)", "y = a * (b - c) / d"}),
        ("y = torch.sqrt(a)", {"y = (a)"}),
        ("y = (a @ b).square()", {"y = (a @ b)", "y = (a).square()", "y = (b).square()"}),
        ("y = signal_scale(schedule, c)", {"y = step_scale(schedule, c)"}),
        ("y = noise_std(schedule, c)", {"y = forward_var(schedule, c).sqrt()"}),
        ("y = 1 < a <= b", {"y = 1 <= a <= b", "y = 1 < a < b", "y = 2 < a <= b"}),
        ("y += a", {"y -= a"}),
        ("y = f(b, clip=True)", {"y = f(b, clip=False)"}),
        ("y = f(*a, b, c)", {"y = f(*a, c, b)"}),
        ("y: int = a + b  # a sum", {"y: int = a - b"}),
    ],
)
def test_a_slip_leaves_the_rest_of_the_line_as_it_is(line, slips):
    found = {after.replace("y = ((t)", "y = (t") for _, _, after in made(f"def f(): \n    {line}\n    return y\n")}
    assert {re.sub(r"\(\(t ([+-]) 1\)\)", r"(t \1 1)", after) for after in found} == slips


def test_a_name_that_a_slip_needs_is_imported():
    (found,) = mutants("toy", "def f(schedule, x):\n    return noise_std(schedule, x)\n")
    names = {}
    exec(found.source, names)
    assert callable(names["forward_var"])


def test_all_mutants_of_the_library_differ_and_can_be_compiled():
    found = command.all_mutants()
    assert len({mutant.key for mutant in found}) == len({(m.module, m.source) for m in found}) == len(found) > 1000
    for mutant in found[::25]:
        ast.parse(mutant.source)


def test_new_modules_of_the_mathematics_are_found_and_elsewhere_only_what_names_an_equation():
    listed = command.modules()
    for module in CHAPTER:
        if module.split(".")[0] in ("gaussian", "diffusion", "exact", "samplers", "evaluation"):
            assert listed[module] is False, module
    assert listed["training.ema"] and "training.checkpoint" not in listed
    source = 'def f(a):\n    """Eq. 1.1 (f)."""\n    return -a\n\n\ndef g(a):\n    return -a\n'
    assert [m.where for m in mutants("toy", source, only_equations=True)] == ["f"]


def test_nobody_is_excused_who_does_not_exist():
    missing = command.equivalent().keys() - {mutant.key for mutant in command.all_mutants()}
    assert not missing, "these stand in tools/mutants/equivalent.toml, and are no mutants any more"
    assert all(len(reason) > 20 for reason in command.equivalent().values())


# Children


def alone(function, task):
    """What it returns in a child, in which nothing of the library is imported yet."""

    def fresh(task):
        for name in [name for name in sys.modules if name.startswith("ddpm_lib.")]:
            del sys.modules[name]
        return function(task)

    ((_, result),) = children.each([task], fresh, lambda _: 60, 1)
    return result


def of_snr():
    found = command.all_mutants(["diffusion.forward"])
    return {mutant.after: mutant for mutant in found if mutant.where == "snr"}


def test_a_mutant_is_seen_wherever_its_function_is_imported_from():
    (slip,) = [m for m in command.all_mutants(["gaussian"]) if m.after.startswith("return 0.55 * (ratio")]

    def seen(task):
        sys.meta_path.insert(0, children.Mutated(slip.module, slip.source))
        import torch

        from ddpm_lib.diffusion import elbo
        from ddpm_lib.exact import vae

        one = torch.ones(())
        return [float(module.kl_divergence(one, 1.0, 0.0, 1.0)) for module in (elbo, vae)]

    assert alone(seen, None) == pytest.approx([0.55, 0.55])


def test_a_check_catches_a_slip_and_passes_what_is_right():
    check = [("signal-to-noise ratio", "ddpm_lib.checks.chapter_03")]
    right, wrong = children.path_of("diffusion.forward").read_text(encoding="utf-8"), of_snr()
    assert alone(judge.first_check, ("diffusion.forward", right, check)) == ""
    slip = wrong["return schedule.alpha_bar[t] / (1 + schedule.alpha_bar[t])"]
    assert alone(judge.first_check, (slip.module, slip.source, check)) == "signal-to-noise ratio"


def test_a_test_catches_a_slip_and_one_that_reaches_it_may_not(tmp_path):
    slip = of_snr()["return schedule.alpha_bar[t - 1] / (1 - schedule.alpha_bar[t])"]
    file = tmp_path / "test_of_two_steps.py"
    file.write_text(TOY_TESTS, encoding="utf-8")
    assert alone(judge.first_test, (slip.module, slip.source, [f"{file}::test_a"])) == ""
    noticed = alone(judge.first_test, (slip.module, slip.source, [f"{file}::test_a", f"{file}::test_b"]))
    assert noticed.endswith("test_b")
    reached = alone(judge.cover_tests, (str(file), ["diffusion.forward"]))
    assert sorted(name.rpartition("::")[2] for name in reached) == ["test_a", "test_b"]
    assert all(slip.line in one["reached"]["diffusion.forward"] for one in reached.values())


def test_tests_that_cannot_be_collected_together_are_no_catch(tmp_path):
    files = [tmp_path / folder / "test_of_one_name.py" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text("def test_it():\n    pass\n", encoding="utf-8")
    names = [f"{file}::test_it" for file in files]
    assert alone(judge.collect, names[:1]) is None
    with pytest.raises(children.Broken, match="have two files one name"):
        alone(judge.collect, names)


def test_what_a_check_reaches_includes_what_runs_when_it_is_imported():
    task = ("posterior variance", "ddpm_lib.checks.chapter_04", ["diffusion.schedule", "diffusion.posterior"])
    reached = alone(judge.cover_check, task)["reached"]
    source = children.path_of("diffusion.schedule").read_text(encoding="utf-8").splitlines()
    assert source.index("        self.alpha = 1 - self.beta") + 1 in reached["diffusion.schedule"]
    assert reached["diffusion.posterior"]


def test_a_child_that_never_ends_is_killed_and_what_the_tool_itself_does_wrong_is_no_catch():
    def spin(task):
        while task:
            pass

    def slip(task):
        raise KeyError("of the tool")

    assert list(children.each([True], spin, lambda _: 0, 1)) == [(True, None)]
    with pytest.raises(children.Broken, match="of the tool"):
        list(children.each([True], slip, lambda _: 60, 1))


# Results


def test_a_stopped_run_goes_on_and_what_rests_on_other_files_is_forgotten(tmp_path):
    path = tmp_path / "kept" / "results.jsonl"
    results = command.Results(path)
    results.judged("by a check", "posterior variance", "")
    results.judged("by a test", "", "tests/exact/test_vae.py::test_it")
    results.judged("survived", "", "")
    assert command.Results(path).known == results.known and len(results.known) == 3
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(results.everything, "of other tests"), encoding="utf-8")
    assert command.Results(path).known.keys() == {"by a check", "by a test"}
    path.write_text(text.replace(results.files["tests/exact/test_vae.py"], "of another test_vae.py"), encoding="utf-8")
    assert command.Results(path).known.keys() == {"by a check", "survived"}
    path.write_text(text.replace(results.library, "of another library"), encoding="utf-8")
    assert command.Results(path).known.keys() == {"by a test", "survived"}  # whose stamps hold the library's


@pytest.mark.parametrize(("caught", "listed", "code"), [(20, 0, 0), (19, 1, 0), (18, 2, 1), (20, 1, 1)])
def test_the_report_counts_and_ends_with_the_total(caught, listed, code, monkeypatch, capsys):
    slips = command.all_mutants(["diffusion.posterior"])[:20]
    excused = {mutant.key: "because it is equivalent" for mutant in slips[len(slips) - listed :]}
    monkeypatch.setattr(command, "equivalent", lambda: excused)
    known = {
        m.key: {"check": "a check" if i < 10 else "", "test": "a test" * (10 <= i < caught)}
        for i, m in enumerate(slips)
    }
    assert command.report(slips, types.SimpleNamespace(known=known)) == code
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(f"{caught / 20:.1%}")
    assert re.search(
        rf"^diffusion.posterior +20 +10 \(50.0%\) +{caught} \({caught / 20:.1%}\) +{20 - caught}$", printed, re.M
    )
    for mutant in slips[caught:]:
        assert f"ddpm_lib/diffusion/posterior.py:{mutant.line} ({mutant.operator})" in printed
        assert f" -> {mutant.after}" in printed
    assert printed.count("because it is equivalent") == 20 - caught
    assert ("but caught" in printed) == (caught == 20 and listed == 1)
