"""Sphinx extension: a button that opens a page's notebook in Binder, where conf.py names the book's repository.

Binder installs what the book's environment.yml names. A problem set is in no repository: it is written on release.
"""

from sphinx.application import Sphinx
from sphinx.config import Config


def options(app: Sphinx, config: Config) -> None:
    if config.book_repository:
        config.html_theme_options |= {
            "repository_url": config.book_repository,
            "repository_branch": config.book_branch,
            "path_to_docs": "",
            "launch_buttons": {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"},
        }


def without(app: Sphinx, page: str, template: str, context: dict, document: object) -> None:
    """No button on a page whose notebook is not in the repository; called after the theme's own handler."""
    if not page.startswith("chapters/"):
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [one for one in buttons if one.get("label") != "launch-buttons"]


def setup(app: Sphinx) -> dict:
    app.add_config_value("book_repository", "", "html")
    app.add_config_value("book_branch", "main", "html")
    app.connect("config-inited", options)
    app.connect("html-page-context", without, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
