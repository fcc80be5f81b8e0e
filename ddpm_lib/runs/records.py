"""Records: what a measurement gave, in one JSON file with its command, commit, device, versions, date and duration."""

import datetime
import json
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ddpm_lib import __version__
from ddpm_lib.devices import default_device
from ddpm_lib.training.checkpoint import write_atomically

LIBRARY = Path(__file__).parents[1]
RECORDS = LIBRARY.parent / "data" / "records"  # the book's own, in its checkout
CPUS = Path("/proc/cpuinfo")
FIELDS = ("command", "commit", "date", "device", "versions", "seconds", "results")


def write_record(
    path: str | Path,
    command: str,
    results: Any,
    started: float,
    *,
    device: torch.device | None = None,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """Write, or replace, the record of a measurement that is done; returns it. It has the FIELDS:

    command: what one types to repeat it; commit: of the library's checkout, with "-dirty" where its files differ from
    it, None outside git; date: today's, in UTC; device: its name; versions: of Python, torch, ddpm_lib and `packages`
    (those installed); seconds: since `started`, a value of time.perf_counter(); results: whatever JSON can hold.
    Raises TypeError or ValueError for results that JSON cannot hold (NaN and infinity among them).
    """
    device = device or default_device()
    record = {
        "command": command,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device_name(device),
        "versions": _versions(device, packages),
        "seconds": round(time.perf_counter() - started, 1),
        "results": results,
    }
    content = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (_inner_lists_in_one_line(content) + "\n").encode())
    return record


def read_record(source: str | Path) -> dict[str, Any]:
    """The record in a file, or, for a name without folder and ending, the book's own: `data/records/NAME.json`.

    Raises FileNotFoundError, saying which there are, and ValueError for a file that is no record.
    """
    path = Path(source)
    if path.name == str(source) and not path.suffix:
        path = RECORDS / f"{source}.json"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in path.parent.glob("*.json"))) or "none"
        raise FileNotFoundError(f"expected a record in {path}; the records in that folder: {there}")
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not JSON, or no object: {error}") from error
    if missing := [name for name in FIELDS if name not in record]:
        raise ValueError(f"{path} is no record: it has no {', '.join(missing)}")
    return record


def describe_record(record: dict[str, Any]) -> str:
    """Where the numbers come from, in one line: device, torch, command, commit and date."""
    commit = f"commit {record['commit']}" if record["commit"] else "no commit known"
    return f"{record['device']}, torch {record['versions']['torch']}, `{record['command']}`, {commit}, {record['date']}"


def device_name(device: torch.device) -> str:
    """A GPU's name; of a CPU the processor's, and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return {"mps": "Apple's GPU (MPS)"}.get(device.type, device.type)
    found = re.search(r"^model name\s*:\s*(.+)$", CPUS.read_text(), re.M) if CPUS.exists() else None
    threads = torch.get_num_threads()
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def _versions(device: torch.device, packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "ddpm_lib": __version__}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", LIBRARY, *words], check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it lies in somebody else's checkout, in a .venv say
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)data/records")
        return git("rev-parse", "--short=12", "HEAD") + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def _inner_lists_in_one_line(content: str) -> str:
    """Indented JSON in which a list of numbers takes one line, not one for each."""
    return re.sub(r"\[\n[\d\s,.eE+-]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", content)
