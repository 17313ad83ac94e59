"""What a program may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a program may use; one that wants more fails.

    Raises:
        ValueError: a limit is not above 0.
    """

    cpu_seconds: int = 10
    """CPU time, seconds"""
    wall_seconds: float = 20.0
    """Time from start to end, seconds"""
    memory_mib: int = 1024
    """Address space, MiB"""
    file_mib: int = 16
    """Largest file that it may write, and most of what it may print, MiB"""
    disk_mib: int = 64
    """All its files together, MiB; held where the kernel lets a process mount a file system of its own"""

    def __post_init__(self) -> None:
        """Reject limits that let nothing run."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
