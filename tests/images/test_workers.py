"""Signals that come while processes are started: none is lost, none is heard too early."""

import os
import signal
import threading
import time
import warnings

import pytest
import torch

from ddpm_lib.images.workers import _signals_come_later, loaded

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signals that can be blocked")


@pytest.fixture
def another_thread():
    """One that blocks no signal, like a progress bar's: the system may hand it those that the main thread blocks."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.mark.parametrize("handler", ["Python's", "ours", "none"])
def test_ctrl_c_comes_after_the_start_of_processes_and_not_within(another_thread, handler):
    heard = []
    handlers = {"Python's": signal.default_int_handler, "ours": lambda *of: heard.append("C"), "none": signal.SIG_IGN}
    before = signal.signal(signal.SIGINT, handlers[handler])
    try:
        if handler == "Python's":
            with pytest.raises(KeyboardInterrupt):
                within(heard)
        else:
            within(heard)
        assert signal.getsignal(signal.SIGINT) is handlers[handler]
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["all of it", *(["C"] if handler == "ours" else [])]


def within(heard):
    with _signals_come_later():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            while signal.SIGINT in signal.sigpending():  # until another thread takes it
                time.sleep(0.001)
        time.sleep(0.01)
        sum(range(100_000))  # time for a handler to run, were there one
        heard.append("all of it")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        sum(range(100_000))


def test_outside_the_main_thread_no_handler_is_touched():
    before, seen = signal.getsignal(signal.SIGINT), []

    def start():
        with _signals_come_later():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert seen == [before]


def test_more_workers_than_cores_are_no_matter_for_a_warning():
    rows = [torch.tensor([i]) for i in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with loaded(torch.arange(3), rows, 1 + (os.cpu_count() or 1), torch.stack) as read:
            assert [part.tolist() for part in read] == [[0], [1], [2]]
