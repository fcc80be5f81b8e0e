"""Courses of the learning rate, by name; that they are right stands in the checks of chapter 12."""

import pytest

from ddpm_lib.training.rates import COURSES, cosine_rate, inverse_sqrt_rate


@pytest.mark.parametrize("name", COURSES)
def test_every_course_rises_to_1_and_is_defined_for_ever(name):
    rate = COURSES[name](4, 20, 0.1)
    assert [rate(done) for done in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rate(4) == 1
    later = [rate(done) for done in (*range(4, 30), 10**6)]
    assert later == sorted(later, reverse=True) and later[-1] == pytest.approx(0.1)
    assert COURSES[name](0, 20, 0.1)(0) == 1  # no warm-up


def test_a_final_rate_of_1_is_a_constant_rate():
    for course in (cosine_rate(3, 9, 1.0), inverse_sqrt_rate(3, 9, 1.0)):
        assert [course(done) for done in range(3, 20)] == pytest.approx([1.0] * 17)
