"""Graded problem sets: what a student's functions must satisfy, for numbers that differ from student to student."""
