"""Timing for the LaCT benchmark: every contender and the matmul peak in turns, so that drifts hit all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _common import summary

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}


class Peak:
    """The machine's matmul rate: one square product in the dtype measured, in the same run."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        size = PEAK_SIZE[device]
        draw = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.randn(size, size, generator=draw).to(device, dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self.flops = 2.0 * size**3

    def __call__(self) -> None:
        torch.mm(self._a, self._b, out=self._out)

    def onednn(self) -> dict[str, Callable[[], Any]]:
        """The same product through oneDNN, which PyTorch itself does not use for it; empty where there is none."""
        if self._a.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return {}
        product = torch.ops.mkldnn._linear_pointwise
        return {"matmul, oneDNN": lambda: product(self._a, self._b, None, "none", [], "")}


class Times(NamedTuple):
    """Wall-clock seconds, and processor seconds of the whole process."""

    wall: float
    processor: float


def timed_call(call: Callable[[], Any], device: str) -> Times:
    """Time one call, the device idle before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, used = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return Times(time.perf_counter() - start, time.process_time() - used)


def in_turns(
    contenders: dict[str, Callable[[], Any]], peak: Peak, device: str, *, budget: float, repeats: tuple[int, int]
) -> dict[str, list[Times]]:
    """Times per contender and of the peak's matmul, round by round, within `budget` wall-clock seconds if it can be."""
    calls = {**contenders, "matmul": peak, **peak.onednn()}
    for call in calls.values():
        timed_call(call, device)
    out: dict[str, list[Times]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(1, repeats[1] + 1):
        for name, call in calls.items():
            out[name].append(timed_call(call, device))
        if done >= repeats[0] and time.perf_counter() - start > budget:
            break
    return out


def row(times: list[Times], matmul: list[Times], flops: float, peak: Peak) -> dict[str, Any]:
    """Seconds and shares of the peak: by wall clock (median and fastest round) and by processor time (median).

    Processor time leaves out what other work on the machine took; with one thread it is the time the operation needs.
    """
    wall, matmul_wall = [entry.wall for entry in times], [entry.wall for entry in matmul]
    used, matmul_used = [entry.processor for entry in times], [entry.processor for entry in matmul]

    def share(own: float, reference: float) -> float:
        return (flops / own) / (peak.flops / reference)

    return {
        "seconds": summary(wall),
        "seconds_fastest": min(wall),
        "processor_seconds": summary(used),
        "gflops": flops / statistics.median(wall) / 1e9,
        "peak_gflops": peak.flops / statistics.median(matmul_wall) / 1e9,
        "peak_gflops_processor": peak.flops / statistics.median(matmul_used) / 1e9,
        "share_of_peak": share(statistics.median(wall), statistics.median(matmul_wall)),
        "share_of_peak_fastest": share(min(wall), min(matmul_wall)),
        "share_of_peak_processor": share(statistics.median(used), statistics.median(matmul_used)),
    }
