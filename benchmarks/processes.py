"""Starts a script in several processes on this machine, with torchrun's environment variables."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def launch(words: Sequence[str], count: int, *, logs: Path, threads: int = 1, timeout: float = 1200) -> None:
    """Run ``python words...`` as ranks 0 to count - 1, and wait for them.

    Args:
        words: a script and its arguments.
        count: processes; a single one gets no rank variables.
        logs: rank r writes to ``LOGS-r.log``.
        threads: of each.
        timeout: seconds.

    Raises:
        SystemExit: one of them failed; shows the end of the log of the first that did.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "benchmark"}
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(ranks if count > 1 else {})}
        with Path(f"{logs}-{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise SystemExit(f"{logs} ended with {codes}:\n" + Path(f"{logs}-0.log").read_text()[-4000:])
