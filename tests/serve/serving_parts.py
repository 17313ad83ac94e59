"""What the tests of serving share: listeners, waiting, a running server, engines that other processes can load."""

import threading
import time
from typing import NamedTuple

from align.serve.process import EngineProcess


def until(holds):
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Heard:
    """Collects the pieces of an answer."""

    def __init__(self):
        self.pieces = []
        self.over = threading.Event()

    def __call__(self, piece):
        self.pieces.append(piece)
        if piece.reason is not None:
            self.over.set()

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces)

    @property
    def last(self):
        assert self.over.wait(30)
        return self.pieces[-1]


class Served(NamedTuple):
    """A running server."""

    engine: EngineProcess
    url: str
    thread: threading.Thread

    def client(self, **settings):
        import openai  # not in the processes that import this module to load a model

        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0} | settings)


def ask_for(content="hello", **settings):
    """The arguments of a chat completion."""
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **settings}


class ThreadForProcess:
    """Stands in for multiprocessing.Process where a test is not about processes: it need not import torch again."""

    pid = exitcode = None

    def __init__(self, *, target, args, name, daemon):
        load, line, settings = args
        self._thread = threading.Thread(target=target, args=(load, line.dup(), settings), name=name, daemon=daemon)
        self.start, self.join, self.kill = self._thread.start, self._thread.join, lambda: None


def load_slow(directory, seconds):
    """A model each of whose steps takes so many seconds more; to be loaded in a process of its own."""
    from align.cli.chat_model import load_chat_model
    from align.generation.open_decoder import OpenDecoder

    step = OpenDecoder.step
    OpenDecoder.step = lambda decoder, ids: (time.sleep(seconds), step(decoder, ids))[1]
    return load_chat_model(directory)
