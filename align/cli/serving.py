"""The servers that `align serve` starts: llama.cpp's or vLLM's, each in its own process."""

import json
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal
from urllib.request import urlopen

from align.export.export_settings import GgufQuantization
from align.export.extra import need

GGUF = ".gguf"
_LONGEST = 4096  # tokens of a request unless --context says more: every slot has its memory from the start
_SECONDS_TO_START = 900  # vLLM compiles
LOCAL = ("127.0.0.1", "::1", "localhost")
"""Hosts that other machines cannot reach"""


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses of this machine"""
    port: int = 8000
    """Port to listen on; 0: any free port"""
    api_key: str | None = None
    """API key that clients must send; null: that of the environment variable ALIGN_API_KEY, if set"""
    name: str | None = None
    """Name of the model in requests; null: that of its folder or file"""
    engine: Literal["auto", "llama", "vllm"] = "auto"
    """llama: llama.cpp, on the CPU; vllm: vLLM, if installed; auto: vllm if it is installed and torch sees a GPU"""
    quantize: GgufQuantization = "none"
    """For llama: precision of the weights; none: as stored"""
    context: int | None = None
    """Longest prompt and response together, tokens; null: the model's context, at most 4096"""
    slots: int = 8
    """Requests decoded at once, while others wait; each takes the memory of ``context`` tokens"""
    threads: int | None = None
    """CPU threads; null: OMP_NUM_THREADS, or one for each CPU that this process may use"""
    cache_dir: Path = Path("~/.cache/align/gguf")
    """For llama: folder of converted models"""

    def __post_init__(self) -> None:
        """Reject invalid numbers and an empty key."""
        for name in ("context", "slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"--port is {self.port}; it must be between 0 (any that is free) and 65535")
        if self.key is not None and not self.key.strip():
            raise ValueError("the API key is empty; give --api_key or ALIGN_API_KEY a value, or unset both")

    @property
    def key(self) -> str | None:
        """The key that clients must send; None if they need none."""
        return os.environ.get("ALIGN_API_KEY") if self.api_key is None else self.api_key

    @property
    def public(self) -> bool:
        """Whether other machines can reach the server."""
        return self.host not in LOCAL

    @property
    def num_threads(self) -> int:
        """CPU threads."""
        named = os.environ.get("OMP_NUM_THREADS", "")
        if self.threads or (named.isdecimal() and int(named)):
            return self.threads or int(named)
        # Not every system tells which CPUs a process may use.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL without a path. A server on all addresses is also reached at the loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def free_address(host: str, port: int) -> Address:
    """Check that an address can be listened on; port 0 becomes a free port.

    Raises:
        OSError: it is not of this machine, or the port is taken; in one line.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            return Address(host, bound.getsockname()[1])
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


class Engine(ABC):
    """A program that computes responses and speaks HTTP, and the command line that starts it."""

    name: ClassVar[str]
    key_variable: ClassVar[str]
    """Environment variable of the key, since every user of a machine can read command lines"""

    @abstractmethod
    def suits(self, model: Path) -> bool:
        """Whether `auto` may pick it."""

    @abstractmethod
    def command(self, model: Path, name: str, address: Address, settings: ServeSettings) -> list[str]:
        """The command line of its server.

        Args:
            model: a model directory of a language model, or a GGUF file.
            name: in requests.
            address: free.
            settings: all others.

        Raises:
            ModuleNotFoundError: the engine is not installed.
            ValueError: it cannot serve the model, or not with these settings.
        """


class LlamaCpp(Engine):
    """llama.cpp's server, for GGUF files and models that can be converted to GGUF."""

    name = "llama.cpp"
    key_variable = "LLAMA_API_KEY"

    def suits(self, model: Path) -> bool:
        """See ``Engine``: always."""
        return True

    def command(self, model: Path, name: str, address: Address, settings: ServeSettings) -> list[str]:
        """See ``Engine``; converts a directory that is not in the cache."""
        for module in ("gguf", "xllamacpp"):
            need(module, "align serve", extra="serve")
        if model.suffix == GGUF and settings.quantize != "none":
            raise ValueError(f"--quantize is {settings.quantize}, but {model} is already converted; leave it out")
        file = model if model.suffix == GGUF else self._converted(model, settings)
        words = {
            "file": str(file),
            "name": name,
            "host": address.host,
            "port": address.port,
            "slots": settings.slots,
            "context": context_of(gguf_context(file), settings),
            "threads": settings.num_threads,
        }
        return [sys.executable, "-m", "align.cli.llama_server", json.dumps(words)]

    def _converted(self, directory: Path, settings: ServeSettings) -> Path:
        from align.export.gguf_cache import cached_gguf

        return cached_gguf(directory, settings.cache_dir.expanduser(), quantize=settings.quantize)


class VLLM(Engine):
    """vLLM's OpenAI-compatible server, for model directories."""

    name = "vLLM"
    key_variable = "VLLM_API_KEY"

    def suits(self, model: Path) -> bool:
        """See ``Engine``: for a directory, if vLLM is installed and torch sees a GPU."""
        if model.suffix == GGUF or find_spec("vllm") is None:
            return False
        import torch

        return torch.cuda.is_available()

    def command(self, model: Path, name: str, address: Address, settings: ServeSettings) -> list[str]:
        """See ``Engine``."""
        from align.io.location import read_config

        if find_spec("vllm") is None:
            raise ModuleNotFoundError("--engine vllm needs vLLM, which is not installed: pip install vllm")
        if model.suffix == GGUF or settings.quantize != "none":
            found = model if model.suffix == GGUF else f"--quantize {settings.quantize}"
            raise ValueError(f"{found}: a GGUF format, which --engine llama serves and vllm does not")
        flags = {
            "model": model,
            "served-model-name": name,
            "host": address.host,
            "port": address.port,
            "max-model-len": context_of(read_config(model).context, settings),
            "max-num-seqs": settings.slots,
            # Requests that name no setting sample from the model's own distribution.
            "generation-config": "vllm",
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]


ENGINES: dict[str, Engine] = {"vllm": VLLM(), "llama": LlamaCpp()}
"""By name, in the order in which ``auto`` prefers them"""


def choose_engine(model: Path, settings: ServeSettings) -> Engine:
    """The engine that the settings name; for `auto` the first that can serve the model."""
    if settings.engine in ENGINES:
        return ENGINES[settings.engine]
    return next(engine for engine in ENGINES.values() if engine.suits(model))


class Server:
    """An engine's server in its own process, which logs to stderr."""

    def __init__(self, engine: Engine, model: Path, name: str, address: Address, settings: ServeSettings) -> None:
        """Start the server, and return once it responds.

        Args:
            engine: whose server.
            model: see ``Engine.command``, as the others.
            name: in requests.
            address: free.
            settings: all others.

        Raises:
            ChildProcessError: it failed to start.
        """
        self._engine = engine
        command = engine.command(model, name, address, settings)
        own = {"OMP_NUM_THREADS": str(settings.num_threads)} | (
            {engine.key_variable: settings.key} if settings.key else {}
        )
        # Nothing is written to its input, whose end tells it that this process is gone. Ctrl-C is ours to pass on.
        self._process = subprocess.Popen(
            command, env=os.environ | own, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True
        )
        try:
            self._wait_until_healthy(f"{address.url}/health")
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait until the server exits.

        Raises:
            ChildProcessError: always; a server exits only when stopped or after a failure.
        """
        code = self._process.wait()
        raise ChildProcessError(f"{self._engine.name} ended with exit code {code}; its log above says why")

    def stop(self) -> None:
        """Stop the server, which has half a minute to finish. Does nothing if it has exited."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_healthy(self, url: str) -> None:
        end = time.monotonic() + _SECONDS_TO_START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                self.wait()
            with suppress(OSError), urlopen(url, timeout=5):  # noqa: S310
                return
            time.sleep(0.1)
        raise ChildProcessError(f"{self._engine.name} did not respond within {_SECONDS_TO_START} s")


def gguf_context(file: Path) -> int:
    """The context of the network in a GGUF file, tokens.

    Raises:
        ValueError: it is no GGUF file, or says nothing of a context.
    """
    gguf = need("gguf", "align serve", extra="serve")
    try:
        fields = gguf.GGUFReader(file).fields
        return int(fields[f"{fields['general.architecture'].contents()}.context_length"].contents())
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{file}: not a GGUF file of a language model ({error})") from None


def context_of(own: int, settings: ServeSettings) -> int:
    """Maximum tokens of a request: from the settings, or else the model's context.

    Args:
        own: the model's context, tokens.
        settings: of the server.

    Raises:
        ValueError: the settings ask for more than the model has.
    """
    if settings.context is None:
        return min(own, _LONGEST)
    if settings.context > own:
        raise ValueError(f"--context is {settings.context}, but the model's is {own}; lower it")
    return settings.context
