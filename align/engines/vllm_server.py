"""A vLLM server that a run starts for itself, under ``guard.py``."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")

_MODULE = "vllm.entrypoints.openai.api_server"

_ERROR = re.compile(r"\b(?!EngineDeadError)\w*(Error|Exception): .+")

_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # the calls that load weights
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

_DEFAULTS = {
    # On a CPU vLLM would take cores that are the trainer's, and 4 GiB or more for its cache.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


class VLLMServer:
    """A process of vLLM's server for as long as the object is open.

    Args:
        python: of an environment with vLLM.
        arguments: of the server.
        environment: variables for it.
        log: file for what it prints.
        folders: to delete when it has ended, however it ends; its first is the server's working directory.

    Raises:
        FileNotFoundError: there is no such Python.
    """

    def __init__(
        self,
        python: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        folders: Sequence[Path],
    ) -> None:
        """Start it."""
        if not Path(python).is_file():
            raise FileNotFoundError(2, "no such Python", python)
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._begin = log.stat().st_size if log.exists() else 0  # a resumed run's log has the last engine's words
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                guarded([python, "-m", _MODULE, *arguments], folders),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**_DEFAULTS, **os.environ, **_ENVIRONMENT, **environment},
                cwd=folders[0],
                start_new_session=True,
            )

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """Why it ended: the first error in its log, which caused the others; or else the last line."""
        with self.log.open("rb") as file:
            file.seek(self._begin)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [found[0] for line in lines if "WARNING" not in line and (found := _ERROR.search(line))]
        return (errors or lines[-1:] or ["it printed nothing"])[0][:300]

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def guarded(command: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The command line that runs ``command``, or nothing, until this process ends, and then deletes ``folders``."""
    return [sys.executable, str(_GUARD), str(os.getpid()), ":".join(map(str, folders)), *command]
