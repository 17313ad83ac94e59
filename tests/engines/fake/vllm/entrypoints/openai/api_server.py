"""Stands for vLLM's server in tests: ``python -m vllm.entrypoints.openai.api_server`` with this folder on the path."""

import math
import os
import subprocess
import sys
from pathlib import Path

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[4]))

from fake_server import FakeVLLM  # noqa: E402


def main() -> None:
    given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if "=" in word)
    failure = os.environ.get("FAKE_FAILURE", "")
    if failure == "does not start":
        sys.exit("ValueError: no memory for the cache")
    if marker := os.environ.get("FAKE_CHILD"):
        # As vLLM's workers: a process in a session of its own that ignores SIGTERM.
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        Path(marker).write_text(str(child.pid))
    if os.environ.get("FAKE_NETWORK"):
        from fake_engines import with_our_network

        web.run_app(FakeVLLM(given["model"], with_our_network).app(), path=given["uds"], print=None)
        return
    uniform = -math.log(12)  # the tests' network gives all of 12 ids the same probability
    server = FakeVLLM(given["model"], lambda model, prompt, sampling: ([5, 1], [uniform] * 2, True), failure=failure)
    web.run_app(server.app(), path=given["uds"], print=None, handle_signals=True)


if __name__ == "__main__":
    main()
