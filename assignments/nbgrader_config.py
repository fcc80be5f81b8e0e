"""nbgrader's settings: `nbgrader formgrader` and the exchange read them when they start in this folder."""

c = get_config()  # noqa: F821  (nbgrader puts it there)

c.CourseDirectory.course_id = "ddpm"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"
