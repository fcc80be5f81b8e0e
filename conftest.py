"""What every test run needs, set before torch is imported and inherited by workers and notebook kernels."""

import faulthandler
import gc
import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
HANGS = 2400  # seconds: more than a notebook's cell may take (pyproject.toml)

# The workers share the cores, so each computes on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A kernel starts in chapters/: it shall see this checkout, whatever else is installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
# Thirty kernels and the workers import the library: it is compiled once, not each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A job that was started in the background may begin deaf to Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# With another backend a notebook's figures would not be outputs.
os.environ.pop("MPLBACKEND", None)

# What is imported lives to the end. Python would look through all of it for garbage, again and again.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """A test that hangs shows where, and its worker ends. (pytest's own watch is a thread: it does not stand forks.)"""
    alarm = getattr(signal, "alarm", lambda seconds: None)  # not on Windows
    alarm(HANGS)
    try:
        return (yield)
    finally:
        alarm(0)


def pytest_configure(config):
    if hasattr(signal, "SIGALRM"):
        faulthandler.register(signal.SIGALRM, os.dup(2), chain=True)
    if config.getoption("--nbval", False):
        from tools import kernels

        kernels.forked()


def pytest_collection_modifyitems(items):
    """Notebooks first, the longest (the capstone, the last one) before all, then the files that build the website and
    the PDF: then no worker waits for one of them at the end."""
    from tools.links import APPENDIX, chapter, place

    def turn(item):
        if item.path.suffix != ".ipynb":
            return 1, not {"site", "pdf"}.intersection(getattr(item, "fixturenames", ()))
        return 0, -(place(chapter(item.path.name)) % APPENDIX) if "chapters" in item.path.parts else 0

    items.sort(key=turn)
