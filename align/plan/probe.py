"""What this machine can do: matrix products, copies, memory, and steps of a shortened network."""

import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

_SECONDS = 0.15
"""Of repetitions of a product or a copy"""

_PRODUCT = 2_000_000_000
"""FLOPs of a product that is timed"""

_COPIED = 1 << 26
"""Bytes of a copy: more than caches hold"""


@cache  # once per process
def matmul_flops(device: str, dtype: str, *, width: int = 1024) -> float:
    """FLOP/s of products ``[rows, width] [width, 4 width]``, the best of those that fit into 0.15 s.

    The best, as what else runs on the machine slows only some of them. Rows are such that a product is 2 GFLOP, but
    between 32 and 1024.

    Args:
        device: cpu or cuda.
        dtype: such as float32.
        width: of the network.
    """
    kind, rows = getattr(torch, dtype), min(1024, max(32, _PRODUCT // (8 * width**2)))
    left, right = (torch.ones(shape, dtype=kind, device=device) for shape in ((rows, width), (width, 4 * width)))
    wait = torch.cuda.synchronize if device == "cuda" else None
    return 2.0 * left.numel() * right.shape[1] / best_seconds(lambda: left @ right, wait=wait)


@cache
def copy_bandwidth() -> float:
    """Bytes/s that a copy in this machine's memory reads and writes."""
    source = torch.ones(_COPIED // 4)
    target = torch.empty_like(source)
    return 2 * _COPIED / best_seconds(lambda: target.copy_(source))


def best_seconds(
    work: Callable[[], object], *, seconds: float = _SECONDS, wait: Callable[[], None] | None = None
) -> float:
    """Shortest time of some work, repeated for a while.

    Args:
        work: run at least twice.
        seconds: of all repetitions.
        wait: for the device to finish.
    """
    best, end, done = float("inf"), time.perf_counter() + seconds, 0
    while done < 2 or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        if wait is not None:
            wait()
        best, done = min(best, time.perf_counter() - begun), done + 1
    return best


def processor() -> str:
    """Model and cores of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def total_memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not report it as Linux does."""
    return _kilobytes(Path("/proc/meminfo"), "MemTotal:")


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not report it as Linux does."""
    return _kilobytes(Path("/proc/self/status"), "VmRSS:")


def peak_resident_bytes() -> int | None:
    """Most resident memory of this process since its peak was reset; None where the system does not report it."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM:")


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable:") if device.type == "cpu" else None


def _kilobytes(file: Path, name: str) -> int | None:
    if not file.is_file():
        return None
    lines = (line.split() for line in file.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words and words[0] == name), None)
