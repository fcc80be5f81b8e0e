"""Runs a notebook cell by cell, with a time limit for each and for all, and goes on after a crash."""

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager
from nbformat import NotebookNode

from assignments.grading.outputs import Outputs, failed

SANDBOX = Path(__file__).with_name("sandbox.py")
RESTARTS = 10
# What a kernel sees of the grader's environment (what else is in it is nobody's business)
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "USER", "SYSTEMROOT", "APPDATA", "TEMP")
STOP = threading.Event()  # set when somebody pressed Ctrl-C: every kernel is ended


class Cancelled(BaseException):
    """Grading was ended from outside."""


class Died(Exception):
    """The kernel ended."""


class TooLong(Exception):
    """The cell took longer than it may. stuck: it did not heed the interrupt either."""

    def __init__(self, stuck: bool):
        self.stuck = stuck


@dataclass
class Limits:
    """Seconds for a cell, for what a cell does after an interrupt, and for all; bytes of memory (0: no limit)."""

    cell: float = 300
    grace: float = 5
    total: float = 900
    memory: int = 8_000_000_000


@dataclass
class Runner:
    """One submission's kernel. environment: of the kernel; setup: code that runs first in every new kernel.

    folder: what the student's code may write; fresh: called before each start, puts back what it should not have
    written; mark: a word in the environment of this kernel and of what it starts, and of nothing else.
    """

    folder: Path
    environment: dict[str, str]
    setup: str
    fresh: Callable[[], None]
    mark: str
    limits: Limits = field(default_factory=Limits)
    flags: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)  # the code of cells that ran, for a new kernel
    restarts: int = 0

    def __post_init__(self):
        self.deadline = time.monotonic() + self.limits.total
        self.manager = self.client = None

    def start(self) -> None:
        """A new kernel; the cells that passed run in it again, those left out that now fail."""
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fresh()
        for patience in (60, 120, 240):  # two kernels that start at once may choose the same port: try again
            self.launch()
            try:
                self.client.wait_for_ready(timeout=patience)
                break
            except RuntimeError:
                if patience == 240:
                    raise
                self.stop()
        try:
            outputs = self.send(self.setup, limit=300)
        except (Died, TooLong) as error:
            raise RuntimeError("the grader could not prepare the kernel") from error
        if error := next((o for o in outputs if o.output_type == "error"), None):
            raise RuntimeError(f"the grader could not prepare the kernel: {error.ename}: {error.evalue}")
        for code in list(self.passed):
            try:
                self.send(code, silent=True)
            except (Died, TooLong):  # it passed once: whatever it is, it must not stop the rest
                self.passed.remove(code)
                self.note("a cell that had passed ended the new kernel: it was left out")
                return self.start()
        return None

    def launch(self) -> None:
        self.manager = KernelManager(kernel_name="python3")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | self.environment
        self.manager.start_kernel(cwd=str(self.folder), env=environment, **quiet)
        self.client = self.manager.blocking_client()
        self.client.start_channels()

    def stop(self) -> None:
        if self.manager is not None:
            if self.client is not None:
                self.client.stop_channels()
            if self.manager.has_kernel:
                self.manager.shutdown_kernel(now=True)
            self.manager = self.client = None
            end_all(self.mark)

    def run(self, code: str, where: str) -> list[NotebookNode]:
        """The outputs of a cell. After a crash or a stop they are one error, and the next cell has a new kernel."""
        outputs, error = self.guarded(lambda: self.send(code), where)
        if error:
            return [failed("Stopped", error)]
        if not any(output.output_type == "error" for output in outputs):
            self.passed.append(code)
        return outputs

    def grade(self, problem: str, answer: str, where: str) -> dict:
        """What the kernel's sandbox says of an answer: {"results": [...]}, or {"error": why there are none}."""
        told, error = self.guarded(lambda: self.request({"problem": problem, "answer": answer}), where)
        return {"error": error} if error else told

    def guarded(self, action: Callable[[], Any], where: str) -> tuple[Any, str]:
        """What action() gives, in a kernel that lives; and what went wrong, or ""."""
        try:
            if self.manager is None and self.restarts > RESTARTS:
                return None, "the kernel was started too often before this cell"
            if time.monotonic() > self.deadline:
                self.note(f"time for the whole notebook was up at cell {where}")
                return None, "the time for the whole notebook was up before this cell"
            if self.manager is None:
                self.restarts += 1
                self.start()
            return action(), ""
        except RuntimeError as error:
            self.stop()
            if self.restarts <= 1:
                raise
            self.note(f"no new kernel could be started at cell {where}: {error}")
            return None, "no new kernel could be started for this cell"
        except Died:
            told = f"cell {where} ended the kernel"
        except TooLong as late:
            told = f"cell {where} took longer than {self.limits.cell:g} s"
            if not late.stuck:
                self.note(told)
                return None, f"{told}: it was stopped; what comes after it was run all the same"
            told += ", and did not heed the interrupt"
        self.note(f"{told}: a new kernel was started, and the cells that had passed were run in it again")
        self.stop()
        return None, f"{told}; what comes after it was run in a new kernel, without this cell"

    def note(self, flag: str) -> None:
        if flag not in self.flags:
            self.flags.append(flag)

    def send(self, code: str, silent: bool = False, limit: float = 0) -> list[NotebookNode]:
        """The outputs of code. limit: seconds, if not the usual ones. Raises Died or TooLong."""
        sent = self.client.execute(code, silent=silent, store_history=False, allow_stdin=False, stop_on_error=False)
        outputs = Outputs()
        self.wait(sent, limit, outputs.add)
        if outputs.dropped:
            self.note("a cell wrote more than is kept of its output")
        return outputs.kept

    def request(self, content: dict[str, str]) -> dict:
        """The sandbox's answer to a request. No name of the notebook is used on the way. Raises Died or TooLong."""
        message = self.client.session.msg("grade_request", content)
        self.client.shell_channel.send(message)
        found: list[dict] = []

        def read(reply: dict) -> None:
            if reply["msg_type"] == "grade_result":
                found.append(reply["content"])

        self.wait(message["header"]["msg_id"], 0, read)
        return found[0] if len(found) == 1 else {"error": "The test ended early."}

    def wait(self, sent: str, limit: float, read: Callable[[dict], None]) -> None:
        """Reads what the kernel says of a request until it is done."""
        now = time.monotonic()
        end = now + (limit or max(1.0, min(self.limits.cell, self.deadline - now)))
        interrupted = False
        while True:
            if STOP.is_set():
                raise Cancelled
            try:
                message = self.client.get_iopub_msg(timeout=0.25)
            except queue.Empty:
                message = None
            if message is not None and message["parent_header"].get("msg_id") == sent:
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    break
                read(message)
            if message is None and not self.manager.is_alive():
                raise Died
            if time.monotonic() > end:
                if interrupted:
                    self.stop()
                    raise TooLong(stuck=True)
                self.manager.interrupt_kernel()
                interrupted, end = True, time.monotonic() + self.limits.grace
        if interrupted:
            raise TooLong(stuck=False)


def end_all(mark: str) -> None:
    """Ends what a kernel started and left behind, where the system tells the environment of a process (Linux)."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
        except OSError:  # it has ended, or is somebody else's
            continue
