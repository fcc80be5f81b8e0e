"""An answer earns what holds: in the student's case and in the hidden ones, and says what does not."""

import threading

import pytest
import torch

from ddpm_lib.checks import apart
from ddpm_lib.homework import alarm, case, hidden, numbers, problem
from ddpm_lib.homework.problem import Problem, check, examine


@pytest.fixture(autouse=True)
def nobody_s(monkeypatch):
    monkeypatch.setattr(numbers, "_SIGNED", {"name": ""})
    monkeypatch.setattr(problem, "PROBLEMS", {})
    for name in ("DDPM_STUDENT", "DDPM_CLASS", "DDPM_SALT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(nobody_s):
    """A problem whose answer is the root of ᾱ_t; a wrong one for T = 1000 holds where the student sees it."""
    made = Problem("0.1", "root", "f(schedule, t): the factor of x_0 in x_t")

    @made.identity("factor", 2, route="products of the steps")
    def factor(f, given):
        for t in given.t.tolist():
            yield apart(f(given.schedule, t), given.schedule.alpha[1 : t + 1].prod().sqrt())

    @made.identity("one at t = 0", 1, least=2)
    def one(f, given):
        return apart(f(given.schedule, 0), 1.0)

    made.book("cumulative alpha", 1, lambda f: lambda beta: torch.cumprod(1 - beta, 0))
    return made


def right(schedule, t):
    return schedule.alpha_bar[t].sqrt()


def test_a_right_answer_has_all_marks_and_nbgrader_reads_a_number(root):
    points = hidden.grade("0.1", right)
    assert points.earned == root.marks == 4
    assert float(repr(points)) == 4 and len(points.results) == 3


def test_each_identity_has_marks_of_its_own(root, capsys):
    points = hidden.grade("0.1", lambda schedule, t: schedule.alpha_bar[t])
    assert [result.holds for result in points.results] == [False, True, True] and points.earned == 2
    check("0.1", lambda schedule, t: schedule.alpha_bar[t])
    said = capsys.readouterr().out
    assert "✗ factor (2 marks)" in said and "✓ one at t = 0 (1 mark)" in said and "2 of 4 marks" in said
    assert "Called:" in said and "is expected" in said
    assert max(map(len, said.splitlines())) <= 96


def test_what_fails_in_a_hidden_case_alone_is_told_apart(root):
    points = hidden.grade("0.1", lambda schedule, t: schedule.alpha_bar[t].sqrt() + (schedule.T == 1000))
    assert [(result.holds, result.shown) for result in points.results[:2]] == [(False, False), (False, False)]
    assert all(result.holds for result in examine("0.1", right).results)


def test_an_answer_that_is_not_written_or_raises_or_leaves_is_told(root, capsys):
    def todo(schedule, t):
        raise NotImplementedError

    check("0.1", todo)
    assert "It is not written yet." in capsys.readouterr().out
    for answer in (lambda schedule: 0, lambda schedule, t: exit(), 3, None):
        assert examine("0.1", answer).earned == 1  # the book's check here asks nothing of the answer


def test_an_endless_loop_is_ended_and_the_next_identity_is_looked_at(root, monkeypatch):
    monkeypatch.setattr(alarm, "LIMIT", 0.2)
    monkeypatch.setattr(alarm.signal, "setitimer", lambda which, first, again=0, real=alarm.signal.setitimer: real(
        which, first, 0.2 if again else 0))  # fmt: skip

    def endless(schedule, t):
        while t:
            pass
        return 1.0

    points = examine("0.1", endless)
    assert [result.holds for result in points.results] == [False, True, True]
    assert "stopped after" in points.results[0].message


def test_where_there_is_no_alarm_the_check_runs_all_the_same(root):
    found = []
    thread = threading.Thread(target=lambda: found.append(examine("0.1", right).earned))
    thread.start()
    thread.join()
    assert found == [4]


def test_an_answer_for_another_student_s_numbers_says_whose(monkeypatch):
    made = Problem("0.2", "number", "a number")

    @made.identity("value", 1, to=1e-3, personal=True, secret=True)
    def value(f, given):
        return apart(f(), numbers.real("x", 0, 1, who=given.who))

    monkeypatch.setenv("DDPM_STUDENT", "Ada ")
    monkeypatch.setenv("DDPM_CLASS", "ada,bob,eve")
    assert hidden.grade("0.2", numbers.real("x", 0, 1)).earned == 1
    (result,) = hidden.grade("0.2", numbers.real("x", 0, 1, who="eve")).results
    assert not result.holds and result.whose == "eve"
    (result,) = hidden.grade("0.2", 7.0).results
    assert not result.holds and result.whose == ""


def test_a_secret_number_is_only_asked_to_be_one(capsys):
    made = Problem("0.3", "number", "a number")
    made.identity("value", 1, secret=True)(lambda f, given: apart(f(), 0.123456))
    for answer in (5, 0.123456):
        check("0.3", answer)
        said = capsys.readouterr().out
        assert "?" in said and "✗" not in said and "0.123" not in said and "of 1 marks" not in said
    check("0.3", None)
    assert "Expected a number, got None." in capsys.readouterr().out


def test_numbers_follow_from_the_id_and_differ(capsys):
    numbers.i_am(" Ada")
    assert numbers.student() == "ada" and "'ada'" in capsys.readouterr().out
    mine = [numbers.whole(f"n{i}", 3, 9) for i in range(200)]
    assert set(mine) == set(range(3, 10))
    assert mine == [numbers.whole(f"n{i}", 3, 9, who="ada") for i in range(200)]
    assert mine != [numbers.whole(f"n{i}", 3, 9, who="bob") for i in range(200)]
    assert all(0.1 <= numbers.real(f"r{i}", 0.1, 0.2, 3) <= 0.2 for i in range(50))
    numbers.i_am(numbers.UNSIGNED)
    assert numbers.signed() == "" and "between the quotation marks" in capsys.readouterr().out


def test_cases_repeat_differ_by_seed_and_reach_the_ends():
    one, same, other = case.given("ada"), case.given("ada"), case.given("bob")
    assert torch.equal(one.normal(), same.normal()) and torch.equal(one.schedule.beta, same.schedule.beta)
    assert not torch.equal(one.normal(), other.normal())
    assert not torch.equal(one.normal(name="a"), one.normal(name="b"))
    assert one.normal().shape == (5, 2, 3, 4) and one.normal().dtype == torch.float64
    tried = hidden.cases("ada")
    assert {1, 2, 1000} <= {given.T for given in tried}
    for given in tried:
        assert given.t.shape == (given.batch,) and given.t.max() == given.T and given.t.min() >= 1
        assert given.batch == 1 or given.t.min() == 1
    assert len({given.seed for given in (*tried, one)}) == len(tried) + 1


def test_the_hidden_cases_depend_on_the_teacher_s_salt(monkeypatch):
    before = hidden.cases("ada")[0].seed
    monkeypatch.setenv("DDPM_SALT", "x")
    assert hidden.cases("ada")[0].seed != before


def test_a_problem_that_there_is_not_is_named(root):
    with pytest.raises(ValueError, match=r"there is no problem '0.9'; there are: 0.1"):
        problem.find("0.9")


def test_no_alarm_is_left_behind(root):
    examine("0.1", right)
    assert alarm.signal.getitimer(alarm.signal.ITIMER_REAL) == (0.0, 0.0)
