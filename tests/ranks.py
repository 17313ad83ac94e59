"""Work done by two processes of a group, as torchrun starts them; but forked, for imports take longer than the work."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch


def on_two_ranks(work: Callable[[], object], log: Path, *, timeout: float = 120) -> None:
    """Do ``work`` in two children with the environment of ranks 0 and 1; what it prints goes to ``log``.

    Raises:
        AssertionError: one of them failed; with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    logs = [log.with_name(f"{log.name}-{rank}.log") for rank in range(2)]
    children = [context.Process(target=_child, args=(work, rank, port, logs[rank])) for rank in range(2)]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(timeout)
    finally:
        for child in children:
            child.kill()
    for child, file in zip(children, logs, strict=True):
        assert child.exitcode == 0, file.read_text()[-4000:]


def _child(work: Callable[[], object], rank: int, port: int, log: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    target = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(target, 1)
    os.dup2(target, 2)
    torch.set_num_threads(1)  # OpenMP's threads did not survive the fork
    work()
