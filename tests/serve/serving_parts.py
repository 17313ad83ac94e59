"""What the tests of serving share: listeners, waiting, a running server."""

import threading
import time
from typing import NamedTuple

import openai

from align.serve.engine import Engine


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

    engine: Engine
    url: str

    def client(self, **settings):
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0} | settings)


def ask_for(content="hello", **settings):
    """The arguments of a chat completion."""
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **settings}
