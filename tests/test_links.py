"""The book's links: every reference is one, each leads somewhere, and the tool that writes them is right."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from assignments.grading.course import SETS
from tools import links

ROOT = Path(__file__).parents[1]


def test_the_book_stands_as_the_tool_writes_it():
    book = links.Book()
    book.renew()
    stored = {name: (book.folder / name).read_text(encoding="utf-8") for name in book.notebooks}
    off = [name for name, notebook in book.notebooks.items() if nbformat.writes(notebook) + "\n" != stored[name]]
    assert not off, "run python tools/links.py"


def test_no_link_of_the_book_is_dead():
    assert links.Book().dead() == []


def test_an_appendix_of_another_work_is_no_link():
    made = links.Book()
    appendices = "|".join(re.escape(name) for number, name in made.chapters.items() if not number.isdecimal())
    for name, notebook in made.notebooks.items():
        for line in (line for cell in notebook.cells for line in cell.source.splitlines()):
            cites = re.search(r"arxiv\.org|doi\.org", line)
            linked = appendices and re.search(rf"\((?:\.\./)?(?:{appendices})\)", line)
            assert not (cites and linked), f"{name}: write §B where another work's appendix is meant: {line}"


def test_every_numbered_equation_and_solution_can_be_linked_to():
    places = links.Book().places
    for (kind, number), (name, cell, _) in places.items():
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell), (kind, number)
        if kind == "exercise":
            assert ("solution", number) in places, f"exercise {number} has no solution"
        if kind == "solution":
            assert ("exercise", number) in places and name.startswith("solutions/")


def test_the_exercises_of_every_chapter_lead_to_the_problem_set_that_needs_it():
    made, found = links.Book(), {}
    for number, name in made.chapters.items():
        cells = [cell.source for cell in made.notebooks[name].cells if cell.id == "exercises"]
        leads = [int(n) for n in re.findall(r"\[Problem set (\d)\]\(\.\./assignments/README\.md\)", "".join(cells))]
        assert len(leads) == number.isdecimal(), name
        found |= {int(number): n for n in leads}
    for number, last in SETS.items():
        assert found[last] == number, "each set's last chapter leads to it"
    assert sorted(found) == [chapter for chapter in range(17)]
    assert all(chapter <= SETS[number] for chapter, number in found.items() if chapter <= 9)


@pytest.mark.parametrize("name", ["README.md", "assignments/README.md", "data/README.md", "tools/README.md"])
def test_no_link_of_a_page_to_a_file_is_dead(name):
    path = ROOT / name
    targets = links.LINK.findall(path.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith(("https://", "#"))]
    assert not [target for target in local if not (path.parent / target.replace("\\", "")).exists()]
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ends = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert not [target for target in targets if target.startswith("#") and target[1:] not in ends]


# The tool, on a book of two chapters


def book(tmp_path, first="", second="", solution="", extra=()):
    texts = {
        "00_start.ipynb": ["# 0. Start", "## Contents"],
        "01_one.ipynb": ["# 1. One", "## 1.1 It's first\n\nText.", "**Eq. 1.1 (a name)**\n\n$$x \\tag{1.1}$$", first],
        "02_two.ipynb": ["# 2. Two", "## Exercises", "## 2.1 Second", second, *extra],
        "A_more.ipynb": ["# A. More", "## A.1 Further\n\nSee section A.1 and appendix A."],
        "solutions/02_two.ipynb": ["# Solutions to chapter 2, Two", f"## Solution 2.1\n\n{solution}"],
    }
    folder = tmp_path / "chapters"
    (tmp_path / "assignments").mkdir()
    (tmp_path / "assignments/README.md").touch()
    for name, cells in texts.items():
        notebook = new_notebook(cells=[new_markdown_cell(cell) for cell in cells if cell])
        notebook.cells.append(new_code_cell("x = 1  # Eq. 1.1"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / name)
    made = links.Book(folder)
    made.renew()
    return made


def text_of(made, name, cell=-3):
    return made.notebooks[name].cells[cell].source


AWAY, OWN = "01_one.ipynb#cell-id=eq-1-1", "#Eq.-1.1-(a-name)"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("See Eq. 1.1.", f"See [Eq. 1.1]({AWAY})."),
        ("(section 1.1)", "([section 1.1](01_one.ipynb#cell-id=sec-1-1))"),
        ("Sections 1.1 and 2.1 say", "[Sections 1.1](01_one.ipynb#cell-id=sec-1-1) and [2.1](#2.1-Second) say"),
        ("Eq. 1.1, 1.1 and 1.1", f"[Eq. 1.1]({AWAY}), [1.1]({AWAY}) and [1.1]({AWAY})"),
        ("chapters 1 to 2", "[chapters 1](01_one.ipynb) to 2"),  # no link to where one is
        ("Appendix A, B", "[Appendix A](A_more.ipynb), B"),  # the second is not written yet
        ("appendix A of a book, appendix B", "[appendix A](A_more.ipynb) of a book, appendix B"),
        (
            "appendices A and B; section A.1",
            "[appendices A](A_more.ipynb) and B; [section A.1](A_more.ipynb#cell-id=sec-A-1)",
        ),
        ("Appendix All, section A.12, appendix A.5", "Appendix All, section A.12, appendix A.5"),
        ("Chapter 7 and Eq. 7.1", "Chapter 7 and Eq. 7.1"),  # not written yet
        ("Eq. 7 holds our 1.1", f"Eq. 7 holds [our 1.1]({AWAY})"),  # of a paper
        ("| 1.1 | a name |", f"| [1.1]({AWAY}) | a name |"),
        ("`Eq. 1.1` and $x$ Eq. 1.1", f"`Eq. 1.1` and $x$ [Eq. 1.1]({AWAY})"),
        ("[see Eq. 1.1](https://a.org/x_(y))", "[see Eq. 1.1](https://a.org/x_(y))"),
        ("### After Eq. 1.1", "### After Eq. 1.1"),
        ("```\nEq. 1.1\n```", "```\nEq. 1.1\n```"),
        ("2020, arXiv:2006.11239: a", "2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239): a"),
        ("doi:10.1016/0304(82)90051-5.", "[doi:10.1016/0304(82)90051-5](https://doi.org/10.1016/0304(82)90051-5)."),
    ],
)
def test_a_reference_becomes_a_link_and_nothing_else_does(tmp_path, written, expected):
    made = book(tmp_path, second=written)
    assert text_of(made, "02_two.ipynb") == expected
    assert made.linked("02_two.ipynb", expected) == expected, "a second time changes nothing"
    assert made.dead() == []


def test_within_a_notebook_a_link_leads_to_a_heading(tmp_path):
    made = book(tmp_path, first="Eq. 1.1, section 1.1")
    assert text_of(made, "01_one.ipynb") == f"[Eq. 1.1]({OWN}), [section 1.1](#1.1-It's-first)"


def test_a_section_in_the_middle_of_a_cell_gets_a_cell_of_its_own(tmp_path):
    made = book(tmp_path, first="See section 2.2.", second="Words before.\n\n## 2.2 In the middle\n\nText.")
    assert text_of(made, "01_one.ipynb") == "See [section 2.2](02_two.ipynb#cell-id=sec-2-2)."
    assert "Words before." in [cell.source for cell in made.notebooks["02_two.ipynb"].cells]


def test_from_the_solutions_a_link_leads_a_folder_up(tmp_path):
    made = book(tmp_path, solution="By Eq. 1.1 of chapter 1.")
    expected = f"## Solution 2.1\n\nBy [Eq. 1.1](../{AWAY}) of [chapter 1](../01_one.ipynb)."
    assert text_of(made, "solutions/02_two.ipynb") == expected


@pytest.mark.parametrize("text", ["**2.1 (easy).** Why? ", "**2.1 (easy).** Why?\n\n    code\n\n"])
def test_an_exercise_ends_with_a_link_to_its_solution(tmp_path, text):
    made = book(tmp_path, extra=[text.strip()])
    expected = f"{text}[Solution](solutions/02_two.ipynb#cell-id=solution-2-1)"
    assert text_of(made, "02_two.ipynb") == expected
    made.renew()
    assert text_of(made, "02_two.ipynb") == expected


def test_a_chapter_s_exercises_end_with_the_way_to_its_problem_set(tmp_path):
    made = book(tmp_path)
    expected = "## Exercises\n\n" + links.DEEPER.format(number=2)
    for _ in range(2):
        assert [cell.source for cell in made.notebooks["02_two.ipynb"].cells if cell.id == "exercises"] == [expected]
        made.renew()
    assert links.deeper("A") == links.deeper("17") == ""


def test_an_equation_begins_a_cell_that_has_its_number_for_an_id(tmp_path):
    made = book(tmp_path, second="Before.\n\n**Eq. 2.1 (b)**\n\n$$y \\tag{2.1}$$\n\nAfter.")
    cells = made.notebooks["02_two.ipynb"].cells[4:6]
    assert [cell.source for cell in cells] == ["Before.", "##### **Eq. 2.1 (b)**\n\n$$y \\tag{2.1}$$\n\nAfter."]
    assert cells[1].id == "eq-2-1"


def test_head_and_foot_lead_to_the_chapters_before_and_after(tmp_path):
    made = book(tmp_path)
    contents = "00_start.ipynb#cell-id=contents"
    line = f"[← 0. Start](00_start.ipynb) · [Contents]({contents}) · [2. Two →](02_two.ipynb)"
    assert made.notebooks["01_one.ipynb"].cells[0].source == made.notebooks["01_one.ipynb"].cells[-1].source == line
    listed = made.notebooks["00_start.ipynb"].cells[2].source
    chapters = "- [0. Start](00_start.ipynb)\n- [1. One](01_one.ipynb)\n- [2. Two](02_two.ipynb)"
    assert listed == f"## Contents\n\n{chapters}\n- [A. More](A_more.ipynb)"
    back = f"[← Chapter 2. Two](../02_two.ipynb#cell-id=exercises) · [Contents](../{contents})"
    assert made.notebooks["solutions/02_two.ipynb"].cells[0].source == back


def test_appendices_come_after_the_chapters_under_their_letters(tmp_path):
    made = book(tmp_path)
    contents = "00_start.ipynb#cell-id=contents"
    cells = made.notebooks["A_more.ipynb"].cells
    assert cells[0].source == f"[← 2. Two](02_two.ipynb) · [Contents]({contents})"
    assert cells[2].id == "sec-A-1" and cells[2].source.endswith("See [section A.1](#A.1-Further) and appendix A.")
    assert "[A. More →](A_more.ipynb)" in made.notebooks["02_two.ipynb"].cells[0].source
    names = ["00_start.ipynb", "16_capstone.ipynb", "solutions/A_more.ipynb", "B_check.ipynb"]
    assert [links.chapter(name) for name in names] == ["0", "16", "A", "B"]
    assert [links.place(number) for number in ("0", "16", "A", "B")] == [0, 16, 90, 91]


@pytest.mark.parametrize(
    "target",
    [
        "03_three.ipynb",
        "01_one.ipynb#cell-id=eq-1-2",
        "01_one.ipynb#1.1-It's-first",  # JupyterLab finds no heading in a notebook that is not open yet
        "#Eq.-1.1-(another-name)",
        "#cell-id=sec-2-1",  # nor a cell in the notebook that is
        "../nowhere.png",
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path, target):
    assert [line.partition(": ")[2] for line in book(tmp_path, second=f"[this]({target})").dead()] == [target]
