"""A fake vLLM that samples with our own network, in a thread; and the settings of one that is a process."""

import asyncio
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from fake_server import FakeVLLM

from align.engines import VLLM
from align.generation.generate import generate
from align.generation.sampling_config import SamplingConfig
from align.io.directory import load_network

FAKE = Path(__file__).parent / "fake"
"""Folder of a package `vllm`; on the path of the fake's process alone, since trl looks whether there is one"""


def with_our_network(model, prompt, sampling):
    """What align samples with the weights in ``model``."""
    samples = generate(
        load_network(model).eval(),
        [prompt],
        SamplingConfig(temperature=sampling["temperature"], max_new_tokens=sampling["max_tokens"]),
        stop_ids=sampling["stop_token_ids"],
        seeds=[sampling["seed"]],
    )
    count = int(samples.mask.sum())
    return samples.ids[0, :count].tolist(), samples.logprobs[0, :count].tolist(), bool(samples.finished[0])


@contextmanager
def serving(sample=with_our_network, **settings) -> Iterator[tuple[FakeVLLM, str]]:
    """A fake server and its address."""
    server = FakeVLLM("", sample, **settings)
    loop, ready, runner = asyncio.new_event_loop(), threading.Event(), web.AppRunner(server.app(), shutdown_timeout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/engine.sock"

        async def start():
            await runner.setup()
            await web.UnixSite(runner, socket).start()
            ready.set()

        def run():
            loop.run_until_complete(start())
            loop.run_forever()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield server, f"unix:{socket}"
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)


def process(failure: str = "", **settings) -> VLLM:
    """Settings of an engine that starts the fake as a process of its own."""
    environment = {"PYTHONPATH": str(FAKE), "FAKE_FAILURE": failure} | settings.pop("environment", {})
    return VLLM(python=sys.executable, environment=environment, **settings)
