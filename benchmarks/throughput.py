"""Ours beside diffusers and denoising-diffusion-pytorch: one step, the whole trainer, sampling. See README.md.

python benchmarks/throughput.py                       # on a GPU where there is one, else a CPU
python benchmarks/throughput.py --size tiny --part a  # seconds: to see it run
"""

import argparse
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library of this checkout, whatever is installed

from benchmarks import sampling, step, whole
from benchmarks.networks import CONFIGS, INSTALLED, PACKAGES, Contestant, Options, own_defaults
from benchmarks.peak import ABOUT, peak_gb
from benchmarks.picture import picture
from benchmarks.timing import Times, alternate, busy, matrix_rate, ratio, spread
from ddpm_lib import plot
from ddpm_lib.devices import default_device
from ddpm_lib.runs.records import describe_record, write_record
from ddpm_lib.training.fast import PRECISIONS
from ddpm_lib.training.fastest import Way

PARTS: dict[str, ModuleType] = {"a": step, "b": whole, "c": sampling}
OUT = "runs/throughput.json"
SIDES = {("full", "cuda"): 8192, ("full", "cpu"): 2048, ("tiny", "cuda"): 1024, ("tiny", "cpu"): 256}  # of matrices
RATIOS, NAME = ("times_rival", "times_rival_by_processor"), 52  # columns of the table, and the width of its first


def measure(
    part: ModuleType, options: Options, args: argparse.Namespace, way: Way, rates: dict[str, float]
) -> dict[str, Any]:
    """The rows of one part's table, and what does not take part. rates: of matrix products, for each precision."""
    device = torch.device(options.device)
    listed = part.contestants(args.compile, way)
    racing = [contestant for contestant in listed if INSTALLED[contestant.who]]
    peaks = {c: peak_gb(part.__name__, c, options) if args.memory else None for c in racing}
    calls = {str(c): part.build(c, options) for c in racing}
    times = alternate(calls, args.rounds, device, args.seconds)
    cost = {c.who: None if part is sampling else step.operations(c.who, options) for c in racing}
    rows = []
    for c in racing:
        rate = rates[c.way.precision if c.way else options.precision]
        work = cost[c.who] and cost[c.who] * part.images(options)
        rows.append(_row(c, times, part.images(options), peaks[c], work, rate, device))
    return {"title": part.TITLE, "missing": sorted({c.who for c in listed} - {c.who for c in racing}), "rows": rows}


def _row(
    contestant: Contestant,
    times: dict[str, Times],
    images: int,
    peak: float | None,
    work: int | None,
    rate: float,
    device: torch.device,
) -> dict[str, Any]:
    """work: floating-point operations a call, where they were counted."""
    mine, rival = times[str(contestant)], times.get(str(contestant.rival))
    row = {"name": str(contestant), "who": contestant.who, "peak_gb": peak}
    row |= {"images_per_s": spread([images / seconds for seconds in mine.seconds])}
    row |= {"seconds": mine.seconds, "processor_seconds": mine.processor}
    if work is not None:
        row |= {"gigaflop_an_image": work / images / 1e9}
        row |= {"share_of_matrix_rate": work / statistics.median(busy(mine, device)) / rate}
    if rival is not None:
        row |= {"rival": str(contestant.rival), "times_rival": ratio(mine, rival)}
        row |= {"times_rival_by_processor": ratio(mine, rival, processor=True)}
    return row


def table(results: dict[str, Any]) -> list[str]:
    """The lines that are printed."""
    lines = []
    for letter, part in results["parts"].items():
        lines += ["", f"({letter}) {part['title']}"]
        head = (
            f"{'images/s':>9} {'middle half':>14} {'x diffusers':>12} {'(processor)':>12} {'peak GB':>8} {'share':>6}"
        )
        lines += [f"{'':{NAME}}{head}"]
        for row in part["rows"]:
            low, mid, high = row["images_per_s"]
            cells = [f"{mid:9.4g}", f"{f'{low:.4g}–{high:.4g}':>14}"]
            cells += [f"{row[key][1]:12.2f}" if key in row else f"{'':12}" for key in RATIOS]
            cells += [f"{row['peak_gb']:8.2f}" if row["peak_gb"] is not None else f"{'':8}"]
            share = row.get("share_of_matrix_rate")
            lines += [(f"{row['name']:{NAME}}" + " ".join([*cells, f"{100 * share:4.0f} %" if share else ""])).rstrip()]
        lines += [f"{name} is not installed and was left out" for name in part["missing"]]
    return lines


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the record and the picture; returns the record."""
    started, args = time.perf_counter(), _arguments(words)
    options, device = args.options, torch.device(args.options.device)
    way = own_defaults(options)
    side = SIDES[options.size, device.type]
    rates = {name: matrix_rate(device, PRECISIONS[name], side) for name in sorted({options.precision, way.precision})}
    results: dict[str, Any] = {"options": asdict(options) | {"rounds": args.rounds, "compile": args.compile}}
    results["own_defaults"], results["matrix_rates"] = str(way), rates
    results["images"], results["memory"] = whole.stored_images(options)[1], ABOUT[device.type]
    results["parts"] = {letter: measure(PARTS[letter], options, args, way, rates) for letter in args.part}
    threads = os.environ.get("OMP_NUM_THREADS")
    command = shlex.join([f"OMP_NUM_THREADS={threads}"] * bool(threads) + ["python", *args.words])
    record = write_record(args.out, command, results, started, device=device, packages=PACKAGES)
    print(describe_record(record))
    print(f"batch {options.batch}, {options.precision}, {args.rounds} rounds, {results['images']}")
    fast = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in rates.items())
    print(f"share: of the rate at which this device multiplies large matrices, {fast}")
    print("x diffusers: how many times as fast, the median of the rounds' own ratios; compiled against compiled")
    print(results["memory"])
    print(*[f"nothing is compiled: {args.why}"] * (not args.compile), *table(results), sep="\n")
    plot.save(picture(results, record["device"]), Path(args.out).with_suffix(".png"))
    print(f"\nwritten to {args.out}, and a picture beside it")
    return record


def _compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: Triton for a GPU, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "cl"))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=CONFIGS, default="full", help="full: DDPM's network for CIFAR-10; tiny: for tests")
    add("--part", choices=PARTS, nargs="+", default=list(PARTS), help="a: network step; b: whole trainer; c: sampling")
    add(
        "--precision", choices=["auto", "float32", "bf16"], default="auto", help="auto: bf16 on a GPU, float32 on a CPU"
    )
    add("--rounds", type=int, default=5, help="in which everybody has a turn")
    add("--batch", type=int, help="images (128 on a GPU, 8 on a CPU)")
    add("--steps", type=int, help="of DDIM, a divisor of 1000 (50 on a GPU, 10 on a CPU)")
    add("--seconds", type=float, help="a turn takes the slowest at least (1 on a GPU, 0 on a CPU)")
    add(
        "--workers", type=int, help="that read images in diffusers' loop (4 on a GPU, 0 on a CPU; its own default is 0)"
    )
    add("--compile", choices=["auto", "yes", "no"], default="auto", help="auto: where a compiler is there")
    add("--memory", choices=["yes", "no"], default="yes", help="measure peak memory, in processes of their own")
    add("--device", choices=["cpu", "cuda"], help="(a GPU where there is one)")
    add("--data", default="data", help="the folder where CIFAR-10 may lie")
    add("--out", default=OUT, help=f"record ({OUT}); the picture lies beside it")
    args = parser.parse_args(words)
    args.words = ["benchmarks/throughput.py", *(sys.argv[1:] if words is None else words)]
    device = torch.device(args.device) if args.device else default_device()
    gpu = device.type == "cuda"
    args.why = "no compiler was found" if args.compile == "auto" else "as asked for"
    args.compile = args.compile == "yes" or (args.compile == "auto" and _compiler(device))
    args.memory, args.seconds = args.memory == "yes", (1.0 if gpu else 0.0) if args.seconds is None else args.seconds
    precision = ("bf16" if gpu else "float32") if args.precision == "auto" else args.precision
    batch, steps = args.batch or (128 if gpu else 8), args.steps or (50 if gpu else 10)
    workers = (4 if gpu else 0) if args.workers is None else args.workers
    args.options = Options(args.size, batch, precision, device.type, steps, workers, args.data)
    return args


if __name__ == "__main__":
    main()
