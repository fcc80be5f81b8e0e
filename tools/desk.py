"""JupyterLab on a desk of its own, and the hands at its keys: what tools.browser does its work with."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

CELL, PLACE = ".jp-Notebook .jp-Cell.jp-mod-active", "data-windowed-list-index"  # the chosen cell, and its number
IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
OUTPUT = f"{CELL} .jp-OutputArea-output"
RED = ":is([data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr'])"
WIDE = f"""s => [...s.querySelectorAll("mjx-container")].map(formula => [formula, formula.closest("[{PLACE}]")])
    .filter(([formula, cell]) => cell && formula.firstElementChild.getBoundingClientRect().width
        > formula.closest(".jp-RenderedHTMLCommon").clientWidth)
    .map(([formula, cell]) => `cell ${{cell.getAttribute("{PLACE}")}} (from 0): ` + formula.textContent.slice(0, 60))"""
LONGEST = 120_000  # milliseconds for a cell, and for JupyterLab to open
NBGRADER = ("formgrader", "validate_assignment", "assignment_list", "course_list")  # a student has none of it


class Unexpected(Exception):
    """What a student should not see."""


def must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Unexpected(otherwise)


def root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


@contextlib.contextmanager
def jupyter(folder: Path, home: Path) -> Iterator[tuple[str, str]]:
    """JupyterLab in a folder, on a free port, with settings of its own in `home`; gives address and token."""
    config = home / "config"
    (config / "labconfig").mkdir(parents=True)
    (config / "labconfig" / "page_config.json").write_text(
        '{"disabledExtensions": {"@jupyter/nbgrader": true}}', encoding="utf-8"
    )
    off = {f"nbgrader.server_extensions.{name}": False for name in NBGRADER}
    settings = {"ServerApp": {"jpserver_extensions": off}}
    (config / "jupyter_server_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the zip has its library
    for what in ("config", "runtime", "data"):
        environment[f"JUPYTER_{what.upper()}_DIR"] = str(home / what)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", *["--allow-root"] * root()]
    address, log = f"http://127.0.0.1:{port}", home / "server.txt"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}") from None
                    time.sleep(0.2)
            yield address, token
        finally:
            server.terminate()  # it ends its kernels
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


class Desk:
    """A notebook open in JupyterLab, and the hands at its keys. out: where the photographs go."""

    def __init__(self, page, out: Path):
        self.page, self.out, self.taken = page, out, 0

    def photograph(self, name: str) -> None:
        self.taken += 1
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.page.screenshot(path=self.out / f"{self.taken:02}_{name}.png")

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector(".jp-Notebook .jp-MarkdownCell .jp-RenderedHTMLCommon h1", timeout=LONGEST)
        self.page.wait_for_selector(IDLE, timeout=LONGEST)
        self.page.locator(CELL).focus()

    def choose(self, place: int) -> None:
        """Goes to a cell with the arrow keys."""
        self.page.keyboard.press("Escape")
        while (now := int(self.page.locator(CELL).get_attribute(PLACE))) != place:
            self.page.keyboard.press("ArrowDown" if place > now else "ArrowUp")
            self.page.wait_for_function(
                f"now => document.querySelector('{CELL}')?.getAttribute('{PLACE}') != now", arg=now
            )

    def write(self, text: str) -> None:
        """Puts a text into the chosen cell, in place of what was there."""
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector(f"{CELL} .cm-focused")
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.insert_text(text)

    def run(self, place: int) -> tuple[str, bool]:
        """Runs a cell; what is seen below it, and whether some of it is an error or a warning."""
        self.choose(place)
        prompt = f"{CELL} .jp-InputPrompt"
        before = self.page.locator(prompt).inner_text()
        self.page.keyboard.press("ControlOrMeta+Enter")
        self.page.wait_for_function(
            "([where, before]) => { const now = document.querySelector(where)?.innerText;"
            " return now && now != before && /[0-9]/.test(now); }",
            arg=[prompt, before],
            timeout=LONGEST,
        )
        self.page.wait_for_selector(IDLE, timeout=LONGEST)
        text = "\n".join(self.page.locator(OUTPUT).all_inner_texts())
        red = self.page.locator(f"{OUTPUT}{RED}, {OUTPUT} {RED}")
        self.page.locator(CELL).evaluate("cell => cell.scrollIntoView({block: 'end'})")
        return text, red.count() > 0 or "Traceback" in text

    def save(self) -> None:
        with self.page.expect_response(lambda got: got.request.method == "PUT" and "/api/contents/" in got.url) as got:
            self.page.keyboard.press("ControlOrMeta+s")
        must(got.value.ok, f"the notebook was not saved: {got.value.status}")

    def leaf(self, last: int) -> set[str]:
        """Photographs the notebook up to cell `last` in a narrow window, one windowful after another.

        Returns what is wider than its place there: formulas, each as "cell 12 (from 0): what it reads".
        """
        wide: set[str] = set()
        self.page.keyboard.press("ControlOrMeta+b")  # away with the list of files
        self.page.set_viewport_size({"width": 800, "height": 1400})
        self.choose(0)
        scroller = self.page.locator(".jp-Notebook .jp-WindowedPanel-outer")
        end = f"s => s.querySelector('[{PLACE}=\"{last}\"]')?.getBoundingClientRect().bottom <= innerHeight"
        while True:
            self.photograph("800px")
            must(not self.page.locator("mjx-merror").count(), "a formula cannot be set")
            must(scroller.evaluate("s => s.scrollWidth <= s.clientWidth + 2"), "the notebook scrolls sideways")
            wide.update(scroller.evaluate(WIDE))
            if scroller.evaluate(end):
                return wide
            scroller.evaluate("s => s.scrollBy(0, s.clientHeight - 100)")
