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

from jupyter_client.manager import KernelManager
from nbformat import NotebookNode
from nbformat.v4 import new_output, output_from_msg

SANDBOX = Path(__file__).with_name("sandbox.py")
KEPT_TEXT, KEPT_DATA = 20_000, 2_000_000  # characters of a cell's text and of one picture that are kept
RESTARTS = 10
# What a kernel gets to know of the teacher's environment: no words that open other doors.
KNOWN = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE",
         "APPDATA", "LOCALAPPDATA", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "JUPYTER_RUNTIME_DIR")  # fmt: skip
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
        self.manager = KernelManager(kernel_name="python3")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        known = {name: os.environ[name] for name in KNOWN if name in os.environ}
        self.manager.start_kernel(cwd=str(self.folder), env=known | self.environment, **quiet)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
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

    def stop(self) -> None:
        if self.manager is not None:
            if self.client is not None:
                self.client.stop_channels()
            if self.manager.has_kernel:
                self.manager.shutdown_kernel(now=True)
            self.manager = self.client = None
            end_all(self.mark)

    def run(self, code: str, where: str, replay: bool = True) -> list[NotebookNode]:
        """The outputs of a cell. After a crash or a stop they are one error, and the next cell has a new kernel.

        replay: whether the cell, if it passes, runs again in a new kernel.
        """
        told = ""
        try:
            if self.manager is None:
                if self.restarts > RESTARTS:
                    return [failed("NotRun", "the kernel was started too often before this cell")]
            if time.monotonic() > self.deadline:
                self.note(f"time for the whole notebook was up at cell {where}")
                return [failed("NotRun", "the time for the whole notebook was up before this cell")]
            if self.manager is None:
                self.restarts += 1
                self.start()
            outputs = self.send(code, quiet=not replay)  # what an answer prints while it is tested is not kept
        except RuntimeError as error:
            if self.restarts <= 1:
                raise
            self.stop()
            self.note(f"no new kernel could be started at cell {where}: {error}")
            return [failed("NotRun", "no new kernel could be started for this cell")]
        except Died:
            told, outputs = f"cell {where} ended the kernel", []
        except TooLong as late:
            stuck = ", and did not heed the interrupt" if late.stuck else ""
            told, outputs = f"cell {where} took longer than {self.limits.cell:g} s{stuck}", []
            if not late.stuck:
                self.note(told)
                return [failed("Stopped", f"{told}: it was stopped; what comes after it was run all the same")]
        if told:
            self.note(f"{told}: a new kernel was started, and the cells that had passed were run in it again")
            self.stop()
            return [failed("Stopped", f"{told}; what comes after it was run in a new kernel, without this cell")]
        if replay and not any(output.output_type == "error" for output in outputs):
            self.passed.append(code)
        return outputs

    def note(self, flag: str) -> None:
        if flag not in self.flags:
            self.flags.append(flag)

    def send(self, code: str, silent: bool = False, limit: float = 0, quiet: bool = False) -> list[NotebookNode]:
        """The outputs of code. Raises Died or TooLong.

        limit: seconds, if not the usual ones; quiet: say nothing of long output.
        """
        now = time.monotonic()
        end = now + (limit or max(1.0, min(self.limits.cell, self.deadline - now)))
        sent = self.client.execute(
            code,
            silent=silent,
            store_history=False,
            allow_stdin=False,
            stop_on_error=False,
        )
        outputs = Outputs()
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
                outputs.add(message)
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
        if outputs.dropped and not quiet:
            self.note("a cell wrote more than is kept of its output")
        return outputs.kept


class Outputs:
    """A cell's outputs as far as they are kept: streams joined, and not more than is fit to be read."""

    def __init__(self):
        self.kept: list[NotebookNode] = []
        self.size, self.dropped = 0, False

    def add(self, message: dict) -> None:
        if message["msg_type"] not in ("stream", "display_data", "execute_result", "error"):
            return
        output = output_from_msg(message)
        if output.output_type == "stream":
            room = max(0, KEPT_TEXT - self.size)
            self.size += len(output.text)
            self.dropped |= len(output.text) > room
            if len(output.text) > room:
                output.text = output.text[:room] + ("\n[…]\n" if room else "")
            last = self.kept[-1] if self.kept else None
            if last is not None and last.output_type == "stream" and last.name == output.name:
                last.text += output.text
            elif output.text:
                self.kept.append(output)
        elif output.output_type == "error":
            output.traceback = [line[:2000] for line in output.traceback[-12:]]
            output.evalue = output.evalue[:2000]
            self.kept.append(output)
        else:
            for kind, data in list(output.data.items()):
                if len(str(data)) > (KEPT_DATA if kind.startswith("image/") else KEPT_TEXT):
                    del output.data[kind]
                    self.dropped = True
            if len(self.kept) < 200:
                self.kept.append(output)
            else:
                self.dropped = True


def end_all(mark: str) -> None:
    """Ends what a kernel started and left behind, where the system tells the environment of a process (Linux)."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
        except OSError:  # it has ended, or is somebody else's
            continue


def failed(name: str, text: str) -> NotebookNode:
    """An error that the grader itself reports."""
    return new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])
