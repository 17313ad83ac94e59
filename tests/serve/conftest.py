"""A tiny chat model: every byte is a token, so characters beyond ASCII are always split across tokens."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.generation.sampling_config import SamplingConfig
from align.io.directory import save_network
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.serve.app import Service
from align.serve.engine import Engine
from align.serve.process import EngineProcess
from align.serve.protocol import Limits
from align.serve.requests import Request
from align.serve.server import Server, bind
from align.tokenizer import train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from serving_parts import Heard, Served, ThreadForProcess

CONTEXT = 128


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["ab ab"], vocab_size=256 + 7)


@pytest.fixture(scope="session")
def network(tokenizer):
    """Untrained, so it seldom ends by itself."""
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, layers=2, heads=2, width=32, ff_width=32, context=CONTEXT, init_std=0.3,
        embedding_std=0.5,
    )  # fmt: skip
    return GPT(config).eval()


@pytest.fixture(scope="session")
def model(network, tokenizer, tmp_path_factory):
    """The same as a directory."""
    directory = tmp_path_factory.mktemp("run") / "sft" / "model"
    directory.mkdir(parents=True)
    tokenizer.save(directory)
    save_network(
        network, directory, bos_id=tokenizer.bos_id, eos_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id
    )  # fmt: skip
    return directory


@pytest.fixture(scope="session")
def parrot(tokenizer):
    """A network that says a text over and over, whatever the prompt: learned positions alone decide the next token.

    The token after position p is the one of the text's byte p; give prompts of known length.
    """

    def build(text, *, stop_after=None):
        data = text.encode()
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, layers=1, heads=1, width=CONTEXT, ff_width=1, context=CONTEXT,
            positions="learned", norm="layernorm", tied_embeddings=False,
        )  # fmt: skip
        network = GPT(config).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm" not in name:
                    parameter.zero_()
            network.model.embed_positions.weight.copy_(torch.eye(CONTEXT) * 10)
            for position in range(CONTEXT):
                token = tokenizer.encode(data[position % len(data) : position % len(data) + 1])[0]
                if position == stop_after:
                    token = tokenizer.eos_id
                network.lm_head.weight[token, position] = 10
        return network

    return build


@pytest.fixture
def ask():
    """Ask an engine for an answer."""

    def submit(engine, prompt, *, seed=0, stop=(), **sampling):
        heard = Heard()
        heard.ticket = engine.submit(Request(prompt, SamplingConfig(**sampling), seed, tuple(stop)), heard)
        return heard

    return submit


@pytest.fixture
def engine(network, tokenizer):
    with Engine(network, tokenizer, max_rows=8, max_waiting=100) as engine:
        yield engine


@pytest.fixture
def served(network, tokenizer):
    """Serve the tiny model within given limits; server and engine are threads of this process."""
    yield from _serving(network, tokenizer)


@pytest.fixture(scope="module")
def shared(network, tokenizer):
    """One server for requests that it refuses."""
    for start in _serving(network, tokenizer):
        yield start()


def _serving(network, tokenizer):
    """Yields the function that starts a server, and stops what it started afterwards."""
    started = []

    def start(
        network=network, *, max_rows=4, max_waiting=8, max_body_bytes=20_000, api_key=None, limits=None, load=None
    ):
        with pytest.MonkeyPatch.context() as patch:
            if load is None:
                patch.setattr("align.serve.process._SPAWN", SimpleNamespace(Process=ThreadForProcess))
            load = load or (lambda: (network, tokenizer))
            engine = EngineProcess(load, max_rows=max_rows, max_waiting=max_waiting)
        service = Service(engine, "tiny", limits or Limits(100, 20), max_body_bytes=max_body_bytes, api_key=api_key)
        listening = bind("127.0.0.1", 0)
        server = Server(service, grace_s=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        started.append((engine, server, thread))
        return Served(engine, f"http://127.0.0.1:{listening.getsockname()[1]}", thread)

    yield start
    for engine, server, thread in started:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        engine.close()
