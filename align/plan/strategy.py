"""How a run's devices share weights and work: one device, DDP, FSDP2, tensor parallelism, or both."""

from collections.abc import Iterator
from dataclasses import dataclass

from align.plan.parameters import Weight


@dataclass(frozen=True)
class Strategy:
    """Devices of a run.

    Raises:
        ValueError: there is no device.
    """

    data: int = 1
    """Data-parallel ranks, which compute different rows"""
    tensor: int = 1
    """Devices of a tensor-parallel group, which split the matrices of each block and compute the same rows"""
    sharded: bool = False
    """Whether data-parallel ranks shard weights, gradients and optimizer state (FSDP2), rather than copy them (DDP)"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name in ("data", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def devices(self) -> int:
        """Of all groups together."""
        return self.data * self.tensor

    @property
    def shards(self) -> int:
        """Devices over which a tensor that tensor parallelism replicates is spread."""
        return self.data if self.sharded else 1

    @property
    def name(self) -> str:
        """In words, with its degrees."""
        if self.devices == 1:
            return "single"
        parts = []
        if self.data > 1:
            parts.append(f"{'fsdp2' if self.sharded else 'ddp'} x{self.data}")
        if self.tensor > 1:
            parts.append(f"tensor x{self.tensor}")
        return " + ".join(parts)

    def whole(self, weight: Weight) -> int:
        """Elements of a weight that a device needs to compute with it."""
        return -(-weight.numel // self.tensor) if weight.split else weight.numel

    def local(self, weight: Weight) -> int:
        """Elements of a weight that a device keeps."""
        return -(-self.whole(weight) // self.shards)


def strategies(devices: int, *, heads: int, kv_heads: int, ff_width: int) -> Iterator[Strategy]:
    """The ways to use a number of devices: DDP, FSDP2, and tensor parallelism of degrees that divide the network.

    Args:
        devices: in all.
        heads: query heads.
        kv_heads: key/value heads.
        ff_width: width inside the feed-forward.
    """
    if devices == 1:
        yield Strategy()
        return
    yield Strategy(data=devices)
    yield Strategy(data=devices, sharded=True)
    for tensor in range(2, min(devices, 8) + 1):
        if devices % tensor == 0 and all(size % tensor == 0 for size in (heads, kv_heads, ff_width)):
            yield Strategy(data=devices // tensor, tensor=tensor, sharded=devices > tensor)
