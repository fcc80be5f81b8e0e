"""Timing on a machine that others use too: contestants take turns, and ratios are taken within a round."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass
class Times:
    """Of one contestant, for each round: seconds a call, by the clock and (on a CPU) of the processor's time."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, at_least: float = 0.0
) -> dict[str, Times]:
    """In every round each contestant has its turn, in an order that is reversed from round to round.

    Each is called twice before, which is not counted: there things are compiled, allocated and chosen. at_least: a turn
    is as many calls as the slowest needs for so many seconds, the same number for all; a GPU is awaited at its end.
    Raises ValueError for less than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    slowest = 0.0
    for call in calls.values():
        call()
        slowest = max(slowest, _turn(call, 1, device)[0])
    number = max(1, round(at_least / slowest))
    times = {name: Times() for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            seconds, processor = _turn(calls[name], number, device)
            times[name].seconds.append(seconds)
            times[name].processor.append(processor)
    return times


def _turn(call: Callable[[], object], number: int, device: torch.device) -> tuple[float, float]:
    """Seconds a call, by the clock and of the processor."""
    _wait(device)
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(number):
        call()
    _wait(device)
    return (time.perf_counter() - clock) / number, (time.process_time() - processor) / number


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile: the values between the quartiles are the middle half."""
    if len(values) == 1:
        return (values[0],) * 3
    low, mid, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, mid, high


def ratio(times: Times, rival: Times, processor: bool = False) -> tuple[float, float, float]:
    """How many times as fast as the rival: quartiles and median of the rounds' own ratios."""
    mine, others = (t.processor if processor else t.seconds for t in (times, rival))
    return spread([b / a for a, b in zip(mine, others, strict=True)])


def matrix_rate(device: torch.device, dtype: torch.dtype | None, side: int) -> float:
    """Floating-point operations a second in the product of two square matrices: what the device can do in practice.

    dtype: None is float32. side: some thousands, or it is not reached. The best of five turns. On a CPU: a second of
    the processor's time, summed over its threads, which others who use the machine do not lengthen.
    """
    a, b = (torch.randn(side, side, device=device).to(dtype or torch.float32) for _ in range(2))
    times = alternate({"product": lambda: a @ b}, 5, device, at_least=side / 40_000)["product"]
    return 2 * side**3 / min(busy(times, device))


def busy(times: Times, device: torch.device) -> list[float]:
    """Seconds a call in which the device worked: on a CPU the processor's own."""
    return times.processor if device.type == "cpu" else times.seconds
