"""The kernels of the tests' notebooks, forked from a process that has imported what is large already.

A kernel of its own imports PyTorch, its optimisers, SciPy and Matplotlib for three seconds; a chapter's tests take ten.
`make stored` and the soak tests run notebooks as readers do, in new interpreters.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCHER = "ipykernel_launcher"
# PyTorch's first optimiser imports torch._dynamo. ipykernel reads its environment when imported: it is none of these.
LARGE = ("torch", "torch._dynamo", "scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_agg", "IPython")
_server = None


def forked() -> None:
    """From now on jupyter_client forks the kernels that this interpreter would run, where it can (on Linux)."""
    if not hasattr(os, "pidfd_open"):
        return
    from jupyter_client.provisioning import local_provisioner

    launch = local_provisioner.launch_kernel

    def launch_kernel(cmd: Sequence[str], *, env: dict[str, str], cwd: str | None = None, **options):
        if cmd[0] != sys.executable or LAUNCHER not in cmd or "DDPM_STUDENT" in env:  # a grader's has its own library
            return launch(cmd, env=env, cwd=cwd, **options)
        return Kernel(_ask(words=cmd[cmd.index(LAUNCHER) + 1 :], env=dict(env), cwd=str(cwd or Path.cwd())))

    local_provisioner.launch_kernel = launch_kernel


class Kernel:
    """Of a forked kernel, what jupyter_client asks of a subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid, self._end = pid, os.fdopen(os.pidfd_open(pid), "rb", 0)

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        return 0 if select.select([self._end], [], [], timeout)[0] else None

    def send_signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._end.fileno(), number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _ask(**order) -> int:
    """The process number of a new kernel, from the one server of this process."""
    global _server
    if _server is None:
        command = [sys.executable, "-P", "-m", "tools.kernels"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        # it ends with us, at the end of its input, and hears no Ctrl-C
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        _server = subprocess.Popen(command, env=environment, **options)
    print(json.dumps(order), file=_server.stdin, flush=True)
    return int(_server.stdout.readline())


def _serve() -> None:
    gc.disable()
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # which a kernel sets before its imports
    for name in LARGE:
        with contextlib.suppress(ImportError):  # where one is missing, a cell says so
            importlib.import_module(name)
    gc.freeze()  # a kernel need not look for garbage in what lives to its end
    gc.enable()
    for line in sys.stdin:
        while _ended():
            pass
        if not os.fork():
            return _become(**json.loads(line))
    os._exit(0)  # there is nothing to tidy up


def _ended() -> bool:
    """Whether there was a kernel that has ended and was not waited for."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _become(words: list[str], env: dict[str, str], cwd: str) -> None:
    """In a new process: be the kernel, and the head of a group, to which jupyter_client sends its signals."""
    os.setsid()
    print(os.getpid(), flush=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))  # with whom it ends
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    sys.argv = [LAUNCHER, *words]
    runpy.run_module(LAUNCHER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
