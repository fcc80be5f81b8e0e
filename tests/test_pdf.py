"""The printed book: its formulas, its pages, and that nothing is cut."""

import functools
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from ctypes import byref, c_int
from pathlib import Path

import pytest

from ddpm_lib.checks import load_all
from tools.links import Book

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
sys.path.append(str(SITE))

there = functools.cache(lambda name: importlib.util.find_spec(name) is not None)
pytestmark = pytest.mark.skipif(
    not (there("typst") and there("pypandoc") and there("pypdfium2")), reason="make pdf installs what it needs"
)
CENTIMETRE = 72 / 2.54
LEFT, RIGHT, BELOW, ABOVE = 2.2 * CENTIMETRE, 18.8 * CENTIMETRE, 1 * CENTIMETRE, 28.5 * CENTIMETRE
HANGING = 5  # points that a comma at the end of a line stands outside


@pytest.mark.parametrize(
    ("tex", "code"),
    [
        (r"x\operatorname{SNR}(t)", r'x op("SNR") \( t \)'),
        (r"\operatorname*{arg\,min}_{x}", 'op("arg\u2006min", limits: #true)_x'),
        (r"\log[\dots] + \text{const} .", r'log \[ dots.h \] +"const".'),
        (r"2\,\text{nats for } x", '2 thin"nats for "x'),
        (r"a\;b\!\cdot\!c", "a thick b dot.op c"),
        (r"x_1,\dots,x_T\,dx_1\cdots dx_T", r"x_1 \, dots.h \, thin x_T thin d x_1 thin dots.h.c thin d x_T"),
        (r"\|z\|^2", "twobars z twobars^2"),
        (r"a\parallel b", "a parallel b"),
        (r"|z|", "onebar z onebar"),
        (r"\big(x\big)", r'#sized(1.2em, "opening", $\($) x #sized(1.2em, "closing", $\)$)'),
        (r"\Big[x\Big]_0", r'#sized(1.8em, "opening", $\[$) x #sized(1.8em, "closing", $\]$)_0'),
        (r"p\,\big\|\,q", 'p thin #sized(1.2em, "normal", $bar.v.double$) thin q'),
        (r"\begin{aligned} a &= b \\ &+ c \end{aligned}", 'a & = b\\\n & "" + c'),
        (
            r"f = \begin{cases} g(a,b) & a < b\\ 1 & \text{else, or }a\end{cases}.",
            r'f = cases(delim: "{", gap: #0.7em, & g \( a \, b \) && quad  a < b, & 1 && quad "else, or "a) .',
        ),
    ],
)
def test_a_formula_s_signs_and_spaces_are_typst_s(tex, code):
    import formulas

    assert list(formulas.typeset([formulas.plain(tex), "x"]).values()) == [code, "x"]


@pytest.mark.parametrize("tex", [r"\nonsense{x}", r"\frac{1}{", "a\n\nb"])
def test_a_formula_that_pandoc_cannot_read_is_an_error(tex):
    import formulas

    with pytest.raises((RuntimeError, ValueError)):
        formulas.typeset(["x", tex])


def test_a_display_has_its_number_and_what_is_code_stays():
    import printed

    text = printed.with_formulas("Cost `$5` or \\$6, $x_t$:\n\n> $$a\n> = b \\tag{4.6}$$.\n\n```python\n'$y$'\n```")
    assert text.startswith('Cost `$5` or \\$6, `#formula("x_t", $x_t$)`{=typst}:')
    assert '> `#display("(4.6)", "a = b .", $ a = b . $)`{=typst}\n' in text
    assert text.endswith("```python\n'$y$'\n```")


def test_links_lead_to_what_the_print_has_and_labels_are_kept():
    import printed

    text = printed.markdown(
        "(chapter-4)=\n(own)=\n# Four\n\n[a](#eq-4-6) [b](#function-x) [c](https://x.y)", {"eq-4-6"}
    )
    assert text == "# Four {#chapter-4}\n\n`#mark(<own>)`{=typst}\n\n\n\n[a](#eq-4-6) b [c](https://x.y)"


@pytest.fixture(scope="module")
def pdf(tmp_path_factory):
    """The book as a document of pypdfium2's, with the text of its pages."""
    import pypdfium2

    out = tmp_path_factory.mktemp("pdf")
    done = subprocess.run([sys.executable, str(SITE / "pdf.py"), "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    document = pypdfium2.PdfDocument(out / "book.pdf")
    yield document, [" ".join(page.get_textpage().get_text_range().split()) for page in document]
    document.close()


def test_the_printed_book_is_whole(pdf):
    """Every chapter, solution and problem set is in the contents, at its page; every equation has its number there."""
    document, texts = pdf
    book = Book()
    marks = [
        (mark.level, " ".join(mark.get_title().split()), mark.get_dest().get_index()) for mark in document.get_toc()
    ]
    titles = [re.sub(r"[*`]", "", book.title(number)) for number in book.chapters]
    listed = [title for level, title, _ in marks if level == 1]
    assert listed[: len(titles)] == titles
    assert sum(title.startswith("Problem set ") for title in listed) == 6
    assert sum(title.startswith("Solutions to ") for title in listed) == sum("/" in name for name in book.notebooks)
    pages = [page for _, _, page in marks]
    assert pages == sorted(pages)
    equations = {title.split()[1]: page for _, title, page in marks if title.startswith("Eq. ")}
    assert set(equations) == {check.number for check in load_all().values()}
    for number, page in equations.items():
        assert f"({number})" in "".join(texts[page : page + 2]), f"Eq. {number}, page {page + 1}"
    for i, text in enumerate(texts[1:], 2):
        assert text.endswith(str(i)), f"page {i} has no number"
        assert len(text.replace(" .", "")) < 6000, f"page {i} has more text than room"


def links(document, page):
    """What each link of a page leads from and to: its words, and the index of a page (None: out of the book)."""
    import pypdfium2.raw as raw

    link, position, box, words = raw.FPDF_LINK(), c_int(0), raw.FS_RECTF(), page.get_textpage()
    while raw.FPDFLink_Enumerate(page, byref(position), byref(link)):
        raw.FPDFLink_GetAnnotRect(link, byref(box))
        target = raw.FPDFLink_GetDest(document, link)
        index = raw.FPDFDest_GetDestPageIndex(document, target) if target else None
        yield words.get_text_bounded(box.left, box.bottom, box.right, box.top), index


def test_a_link_to_an_equation_leads_to_its_page(pdf):
    document, texts = pdf
    found = Counter()
    for page, text in zip(document, texts, strict=True):
        for words, target in links(document, page):
            words = " ".join(words.split())
            assert target is None or 0 <= target < len(document), words
            if words.isdecimal() and text.startswith("Index of equations"):
                assert int(words) == target + 1, f"page {words} leads to page {target + 1}"
            if number := re.fullmatch(r"Eq\. (\d+\.\d+)|(\d+\.\d+) [a-zA-Z](?!.* \. \.).*", words):
                number = number[1] or number[2]
                assert f"Eq. {number} (" in texts[target], f"{words}: page {target + 1}"
                found[number] += 1
    assert set(found) >= {check.number for check in load_all().values()}, "the index of equations leads to all"
    assert found.total() > 3 * len(found), "the text cites them, too"


def test_nothing_is_cut_at_a_margin(pdf):
    document, _ = pdf
    for number, page in enumerate(document, 1):
        for thing in page.get_objects():
            left, below, right, above = thing.get_bounds()
            inside = LEFT - 2 < left and right < RIGHT + HANGING and BELOW < below and above < ABOVE
            assert inside, f"page {number}: something at {[round(side) for side in thing.get_bounds()]}"
