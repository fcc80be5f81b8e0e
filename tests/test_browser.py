"""What tools.browser looks for, without a browser: its first function, its wrong version, and the words of a check."""

import ast

import pytest

from assignments.grading.course import SETS, Course
from tools.browser import first, helpful, right

WRITTEN = [number for number in SETS if Course().notebook(number).exists()]
LOST = """1.1 between
  ✗ factor (2 marks)
      1.1 (factor) does not hold: off by 0.5.
      Called: between(schedule (T=12), 1, 3)
  ✓ one at s = t (1 mark)
"""


@pytest.mark.parametrize("number", WRITTEN)
def test_the_first_function_has_a_solution_and_a_slip_in_it(number):
    task = first(number)
    assert task.slip != task.solution
    for text in filter(None, (task.solution, task.slip)):
        assert "SOLUTION" not in text
        assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(text).body)


def test_a_check_is_helpful_if_it_shows_the_call():
    assert helpful(LOST) and not right(LOST)
    assert not helpful(LOST.replace("Called:", "")) and not helpful(LOST.replace("✗", "✓"))


def test_a_check_is_right_if_all_holds():
    assert right(LOST.replace("✗", "✓"))
    assert not right("") and not right("✓ Traceback (most recent call last)")
