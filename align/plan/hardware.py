"""Devices: memory, speed and price, from a table with sources, or measured here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from align.plan.precision import Precision
from align.plan.probe import copy_bandwidth, matmul_flops, processor, total_memory

HERE = "this-cpu"
"""The machine that the plan is made on"""

_TABLE = Path(__file__).with_name("hardware.yaml")


@dataclass(frozen=True)
class Hardware:
    """A device."""

    key: str
    """What --hardware names it"""
    name: str
    memory: int | None
    """Bytes; None: unknown"""
    flops: Mapping[str, float | None]
    """Dtype of matrix products -> peak FLOP/s; None: unknown, or not supported"""
    bandwidth: float | None
    """Of its memory, bytes/s"""
    interconnect: float | None
    """Between devices of one machine, bytes/s, both directions together"""
    source: str
    match: tuple[str, ...] = ()
    """Words in the name that CUDA reports"""
    price: float | None = None
    """USD per hour"""
    price_source: str = ""
    price_date: str | None = None
    accelerator: str = "cuda"
    """cpu, cuda or mps"""

    def peak(self, precision: Precision) -> float | None:
        """Peak FLOP/s of a precision's matrix products; None: unknown, or not supported."""
        return self.flops.get(precision.products)

    def supports(self, precision: Precision) -> bool:
        """Whether it multiplies numbers of the precision's dtype."""
        return not precision.narrow or self.flops.get("bfloat16") is not None


def known() -> list[str]:
    """Names of all devices."""
    return [*_table(), HERE]


def find(key: str, *, width: int = 1024, dtype: str = "float32") -> Hardware:
    """A device by name; this machine is measured.

    Args:
        key: one of ``known``.
        width: of the network, for matrix products that are timed.
        dtype: of these products.

    Raises:
        ValueError: there is no such device; the message lists the known ones.
    """
    if key == HERE:
        return replace(this_cpu(width, dtype), bandwidth=copy_bandwidth())
    if key not in _table():
        raise ValueError(f"hardware is {key!r}; it must be one of {', '.join(known())}")
    return _table()[key]


def rented() -> list[Hardware]:
    """The devices of the table."""
    return list(_table().values())


def recognise(name: str) -> Hardware | None:
    """The device of the table that CUDA reports as ``name``, such as NVIDIA H100 80GB HBM3; None: it has none."""
    words = set(name.replace("-", " ").split())
    fitting = (one for one in _table().values() if one.match and set(" ".join(one.match).split()) <= words)
    return next(fitting, None)


def in_use(device: torch.device, precision: Precision, *, width: int = 1024) -> Hardware:
    """The device that a run trains on; its peak is unknown unless it is a CPU, or a GPU of the table.

    Args:
        device: of the run.
        precision: of the run.
        width: of the network, for matrix products that are timed on a CPU.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        unknown = Hardware(name, name, torch.cuda.get_device_properties(device).total_memory, {}, None, None, "")
        return recognise(name) or unknown
    if device.type != "cpu":
        return Hardware(device.type, device.type, None, {}, None, None, "", accelerator=device.type)
    return this_cpu(width, precision.products)


def this_cpu(width: int = 1024, dtype: str = "float32") -> Hardware:
    """This machine's CPU: memory as the system reports it, speed from 0.15 s of matrix products.

    Args:
        width: of the network: speed depends on it.
        dtype: of the products that are timed; the speed of others is unknown.
    """
    return Hardware(
        key=HERE,
        name=processor(),
        memory=total_memory(),
        flops={dtype: matmul_flops("cpu", dtype, width=width)},
        bandwidth=None,
        interconnect=None,
        source="measured here: matrix products of the network's width",
        accelerator="cpu",
    )


@cache
def _table() -> dict[str, Hardware]:
    entries: dict[str, dict[str, Any]] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return {key: _hardware(key, entry) for key, entry in entries.items()}


def _hardware(key: str, entry: Mapping[str, Any]) -> Hardware:
    date = entry["price_date"]
    return Hardware(
        key=key,
        name=entry["name"],
        memory=int(entry["memory"]),
        flops={dtype: entry[dtype] for dtype in ("float32", "bfloat16")},
        bandwidth=entry["bandwidth"],
        interconnect=entry["interconnect"],
        source=f"{entry['source']} (read {entry['read']})",
        match=tuple(entry["match"]),
        price=entry["price"],
        price_source=entry["price_source"],
        price_date=None if date is None else str(date),
        accelerator="mps" if key.startswith("m") else "cuda",
    )
