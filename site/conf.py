"""How Sphinx makes the site. The sources are written by build.py; nothing is executed, no other host is asked."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "Denoising diffusion models"
author = ""
copyright = ""
language = "en"
extensions = ["myst_nb", "sphinx_copybutton", "figures", "entries", "launch"]
exclude_patterns = ["_build", "notebooks"]
numfig = False

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_dmath_double_inline = True
myst_heading_anchors = 0
myst_html_meta = {
    "description": "Denoising diffusion models, derived from the first equation up, every equation checked by machine.",
}

mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {
    "chtml": {"matchFontHeight": False, "scale": 1.1},  # the same on every machine, whatever its fonts
    "options": {
        "menuOptions": {"settings": {"inTabOrder": False}},  # hundreds of formulas would be hundreds of stops
        "lazyMargin": "1500px",  # sets what is near; all of a chapter at once would keep a phone busy for seconds
    },
    "loader": {"load": ["a11y/assistive-mml", "ui/lazy"]},
}

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static", "_mathjax"]
html_css_files = ["book.css"]
html_js_files = ["book.js", ("search.js", {"defer": "defer"})]
html_favicon = "static/favicon.svg"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-light",
    "pygments_dark_style": "a11y-dark",
    "navbar_persistent": [],
}
html_context = {"default_mode": "auto"}
# The book's public repository, as "https://...": with it, chapters get a button that opens them in Binder.
book_repository = ""
book_branch = "main"

copybutton_prompt_text = ""
suppress_warnings = ["myst.mathjax"]
