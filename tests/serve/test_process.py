"""The engine in a process of its own: the same answers, cancellation, and ends that are not its own choice."""

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import openai
import pytest
from serving_parts import Heard, ThreadForProcess, ask_for, load_slow, until

from align.cli.chat_model import load_chat_model
from align.generation.open_decoder import OpenDecoder
from align.generation.sampling_config import SamplingConfig
from align.serve.engine import Engine
from align.serve.process import EngineProcess
from align.serve.requests import EngineFailed, EngineFull, Request


async def heard(answer):
    """Wait for the end of an answer, on the event loop that brings it."""
    async with asyncio.timeout(30):
        while not answer.over.is_set():
            await asyncio.sleep(0.002)
    return answer


def test_it_answers_as_an_engine_does_and_leaves_no_process(network, tokenizer, model):
    """Twelve requests in three rows; text, counts, reasons and the order of pieces, and the limit on who waits."""
    asked = [Request([seed, 7], SamplingConfig(max_new_tokens=5 + 3 * seed), seed) for seed in range(12)]
    expected = [Heard() for _ in asked]
    with Engine(network, tokenizer, max_rows=3) as engine:
        for request, answer in zip(asked, expected, strict=True):
            engine.submit(request, answer)
        assert all(answer.over.wait(30) for answer in expected)

    async def ask(engine):
        answers = [Heard() for _ in asked]
        async with engine.connected():
            for request, answer in zip(asked, answers, strict=True):
                engine.submit(request, answer)
            with pytest.raises(EngineFull, match="3 requests are being answered and 9 wait"):
                engine.submit(asked[0], Heard())
            with pytest.raises(ValueError, match="has 128 tokens"):
                engine.submit(Request([1] * 128, SamplingConfig()), Heard())
            for answer in answers:
                await heard(answer)
            assert (engine.running, engine.waiting) == (0, 0)
        return answers

    with EngineProcess(partial(load_chat_model, model), max_rows=3, max_waiting=9) as engine:
        answers = asyncio.run(ask(engine))
    assert [answer.pieces for answer in answers] == [answer.pieces for answer in expected]
    assert multiprocessing.active_children() == []
    with pytest.raises(EngineFailed, match="closed"):
        engine.submit(asked[0], Heard())


def test_who_is_cancelled_leaves_by_the_next_step(model):
    """One row, steps of 0.1 s: the answer would take 10 s, the one behind it has the row within 2."""

    async def ask(engine):
        async with engine.connected():
            first, waiting, last = Heard(), Heard(), Heard()
            sampling = SamplingConfig(max_new_tokens=100)
            numbers = [engine.submit(Request([1], sampling, 1), one) for one in (first, waiting)]
            engine.submit(Request([1], SamplingConfig(max_new_tokens=1)), last)
            async with asyncio.timeout(30):
                while not first.pieces:
                    await asyncio.sleep(0.002)
            for number in (*numbers, *numbers):
                engine.cancel(number)
            come, begin = len(first.pieces), time.monotonic()
            await heard(last)
            assert time.monotonic() - begin < 2
            assert (len(first.pieces), waiting.pieces) == (come, [])
            assert (engine.running, engine.waiting) == (0, 0)

    with EngineProcess(partial(load_slow, model, 0.1), max_rows=1) as engine:
        asyncio.run(ask(engine))


def test_requests_are_told_when_the_process_dies(served, model):
    """Stopped before it gets them, so that it dies while it owes answers."""
    started = served(load=partial(load_chat_model, model))
    os.kill(started.engine.pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        create = started.client().chat.completions.create
        asked = [threads.submit(create, **ask_for(stream=streamed)) for streamed in (True, False)]
        until(lambda: started.engine.running == 2)
        os.kill(started.engine.pid, signal.SIGKILL)
        for one in asked:
            with pytest.raises(openai.InternalServerError, match="was killed by SIGKILL") as refused:
                one.result()
            assert refused.value.status_code == 500
    started.thread.join(10)
    assert not started.thread.is_alive()


@pytest.mark.parametrize(
    ("load", "kind", "message"),
    [
        (partial(load_chat_model, "nowhere"), FileNotFoundError, "nowhere"),
        (partial(os._exit, 3), EngineFailed, r"ended unasked \(exit code 3\) while it loaded the model"),
    ],
)
def test_what_ends_loading_is_told(load, kind, message):
    with pytest.raises(kind, match=message):
        EngineProcess(load, max_rows=1)
    assert multiprocessing.active_children() == []


def test_an_engine_whose_parent_does_not_read_waits(network, tokenizer, monkeypatch):
    """100 tokens each; the line has room for the news of a few rounds, and the event loop is busy elsewhere."""
    steps, step = [], OpenDecoder.step
    monkeypatch.setattr(OpenDecoder, "step", lambda decoder, ids: (steps.append(len(ids)), step(decoder, ids))[1])
    monkeypatch.setattr("align.serve.process._SPAWN", SimpleNamespace(Process=NarrowLine))

    async def ask(engine):
        async with engine.connected():
            answers = [Heard() for _ in range(8)]
            for seed, answer in enumerate(answers):
                engine.submit(Request([1], SamplingConfig(max_new_tokens=100), seed), answer)
            await asyncio.sleep(0)
            before = -1
            while len(steps) > before:
                before = len(steps)
                time.sleep(0.5)
            assert 0 < before < 60
            for answer in answers:
                await heard(answer)

    with EngineProcess(lambda: (network, tokenizer), max_rows=8) as engine:
        asyncio.run(ask(engine))


class NarrowLine(ThreadForProcess):
    """Its line takes the least that the system allows."""

    def __init__(self, *, args, **settings):
        args[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        super().__init__(args=args, **settings)
