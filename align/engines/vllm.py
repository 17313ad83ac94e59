"""vLLM as a rollout engine: in an environment, and on machines, of its own.

A server takes token ids and gives token ids with the log-prob of each (``/inference/v1/generate``). New weights are
written as a model directory into shared memory, the server reads them in place, forgets its prefix cache and is told
their version, which then comes back with every response (Kwon et al. 2023; vLLM's documentation, "RLHF").
"""

import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Literal

import torch

from align.engines.engine import Asked, Crew, Engine, EngineError, OnProgress, OpenEngine, Sampling, Weights
from align.engines.probe import response_logprobs
from align.engines.vllm_client import Background, VLLMClient
from align.engines.vllm_server import VLLMServer, guarded
from align.generation.generate import Samples
from align.generation.responses import Responses
from align.generation.sampled_ids import SampledIds
from align.generation.sampling_config import SamplingConfig
from align.io.directory import save_network
from align.io.families import why_no_twin
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.tokenizer import Tokenizer

_SHARED_MEMORY = Path("/dev/shm")

_POLL = 0.1
"""Seconds between two looks at responses that are being sampled"""

_PROBE = 8
"""Tokens whose log-probs are compared after each loading of weights"""

_LARGEST_GAP, _LARGEST_GAP_IN_16_BITS = 0.01, 0.3
"""Nats by which they may differ on average: in float32, and where engine or trainer compute in fewer bits"""

_NEVER = -100.0
"""Added to the logits of ids that are no tokens: the most that vLLM takes off"""


@dataclass(frozen=True)
class VLLM(Engine):
    """vLLM (0.32 or later): on each node a server that the run starts, or servers that run already.

    Its log-probs differ from the trainer's by more than rounding, so the trainer recomputes old log-probs in every
    iteration and weights the policy loss by rollout.importance_cap.

    Raises:
        ValueError: a setting is invalid.
    """

    exact = False

    python: str | None = None
    """Python of an environment with vLLM; null: the one that runs align"""
    addresses: tuple[str, ...] = ()
    """Servers that run already, such as http://node1:8000; docs/engines.md says how to start them; empty: one on each
    node, started and ended by the run"""
    weights_folder: str | None = None
    """Folder in which weights travel, which trainer and engines can read; null: shared memory, for engines on the same
    machine"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the engine; auto: rollout.dtype if set, else that of the trainer's weights"""
    tensor_parallel: int = 1
    """Devices that share the engine's weights"""
    gpu_memory: float = 0.4
    """Share of a GPU's memory that the engine takes, for weights and cache; a CPU's cache is VLLM_CPU_KVCACHE_SPACE, in
    GiB"""
    max_sequences: int = 256
    """Responses that the engine samples at the same time"""
    eager: bool | None = None
    """Without CUDA graphs and compilation, which take minutes at the start; null: on a CPU only"""
    arguments: dict[str, Any] | None = None
    """Further arguments of servers that the run starts, such as {block-size: 32}"""
    environment: dict[str, str] | None = None
    """Environment variables of servers that the run starts"""
    start_timeout: float = 600.0
    """Seconds within which a server must be ready"""
    timeout: float = 600.0
    """Seconds within which new weights must be loaded, or the next of the responses must be finished"""

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        rules = {
            "tensor_parallel": (self.tensor_parallel >= 1, "at least 1"),
            "gpu_memory": (0 < self.gpu_memory <= 1, "in (0, 1]"),
            "max_sequences": (self.max_sequences >= 1, "at least 1"),
            "start_timeout": (self.start_timeout > 0, "above 0"),
            "timeout": (self.timeout > 0, "above 0"),
        }
        for name, (valid, right) in rules.items():
            if not valid:
                raise ValueError(f"engine.{name} is {getattr(self, name)}: it must be {right}")
        for address in self.addresses:
            if not address.startswith(("http://", "https://", "unix:")):
                raise ValueError(f"engine.addresses has {address!r}: it must begin with http://, https:// or unix:")

    @property
    def identity(self) -> dict[str, str]:
        """See ``Engine.identity``."""
        return {**super().identity, "engine_dtype": self.dtype}

    def open(self, tokenizer: Tokenizer, *, crew: Crew = Crew(), log: Path | None = None) -> OpenEngine:  # noqa: B008
        """See ``Engine.open``; a server is started with the first weights."""
        return _OpenVLLM(self, tokenizer, crew, log)


class _OpenVLLM(OpenEngine):
    def __init__(self, settings: VLLM, tokenizer: Tokenizer, crew: Crew, log: Path | None) -> None:
        self._settings, self._tokenizer, self._crew = settings, tokenizer, crew
        self._token = f"align-{crew.token or uuid.uuid4().hex[:12]}"
        shared = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        self._weights_folder = Path(settings.weights_folder or shared) / self._token
        self._folder = Path(tempfile.gettempdir()) / self._token
        self._log = log or Path(tempfile.gettempdir()) / f"{self._token}.log"
        self._forgets_log = log is None
        self._leads = crew.leads if not settings.addresses else crew.rank == 0
        self._background = Background()
        self._server: VLLMServer | None = None
        self._cleaner: Popen[bytes] | None = None
        self._clients: list[VLLMClient] = []
        self._version: str | None = None
        self._context, self._dtype = 0, ""
        self._served: GPTConfig | None = None

    def submit(self, weights: Weights, asked: Asked, on_progress: OnProgress | None = None) -> Sampling:
        sampled = SampledIds.of(self._tokenizer)
        bodies = _requests(asked, sampled, self._tokenizer.stop_ids, weights.network.config)
        version = f"{self._token}/{weights.version}"
        if version != self._version:
            self._load(weights.network, version, asked, sampled)
        return _Waiting(self, bodies, version, weights.network.output_weight.device)

    def close(self) -> None:
        """End the server, if the run started it, and delete the weights."""
        if self._background.loop.is_closed():
            return
        self._stop()
        self._background.close()
        if self._forgets_log:
            self._log.unlink(missing_ok=True)
        if self._cleaner is not None:
            self._cleaner.terminate()
            self._cleaner.wait()
        if self._leads:  # the guard may have ended before it was ready to
            for folder in (self._folder, self._weights_folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _stop(self) -> None:
        """End the server, if the run started it."""
        for client in self._clients:
            self._background.run(client.close()).result()
        self._clients = []
        if self._server is not None:
            self._server.stop()
            self._server = None

    # Weights.

    def _load(self, network: GPT, version: str, asked: Asked, sampled: SampledIds) -> None:
        """Give the engines new weights, when no process waits for responses, and let all processes wait for that."""
        self._crew.wait()
        if self._leads:
            if self._server is not None and network.config != self._served:
                self._stop()
            directory = self._weights_folder / f"weights-{uuid.uuid4().hex[:8]}"
            self._write(network, directory, asked, sampled)
            first, self._served = not self._clients, network.config
            if first:
                self._start(directory, network.config.context)
            for client in self._clients:
                self._send(client, directory, version, reload=not first or self._server is None)
            self._probe(network, version, asked.prompts[0], sampled)
            for old in self._weights_folder.glob("weights-*"):
                if old != directory:
                    shutil.rmtree(old)
        self._crew.wait()
        if not self._clients:
            self._connect(network.config.context)
        self._version = version

    def _write(self, network: GPT, directory: Path, asked: Asked, sampled: SampledIds) -> None:
        """The weights as a model directory, in the precision of the engine and without rows that are no tokens."""
        if reason := why_no_twin(network.config):
            raise ValueError(f"rollout.engine is VLLM, which does not have this architecture: {reason}")
        for folder in (self._folder, self._weights_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        chosen: str = self._settings.dtype
        if chosen == "auto":
            chosen = asked.sampling.dtype or str(network.output_weight.dtype).removeprefix("torch.")
        self._dtype = chosen
        save_network(
            network,
            directory,
            bos_id=self._tokenizer.bos_id,
            eos_ids=self._tokenizer.stop_ids,
            pad_id=self._tokenizer.pad_id,
            dtype=getattr(torch, chosen),
            rows=sampled.count(network.config.vocab_size),
            # vLLM 0.32 reloads an embedding, but not the output matrix that is tied to it.
            untied=why_no_twin(replace(network.config, tied_embeddings=False)) is None,
        )

    def _send(self, client: VLLMClient, directory: Path, version: str, *, reload: bool) -> None:
        async def send() -> None:
            if reload:
                body = {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}}
                await client.post("/collective_rpc", body)
            await client.post("/update_weight_version", {"new_version": version})
            answer = await client.post("/reset_prefix_cache")
            if not (answer or {}).get("success", True):
                raise EngineError(f"{client.address} did not forget its prefix cache: another program is using it")

        self._call(send())

    def _probe(self, network: GPT, version: str, prompt: Sequence[int], sampled: SampledIds) -> None:
        """Compare some log-probs of each engine with the network's.

        Raises:
            EngineError: they differ by more than rounding: an engine may answer that it has loaded weights which it has
                loaded in part.
        """
        asked = Asked([prompt] * len(self._clients), SamplingConfig(max_new_tokens=_PROBE), range(len(self._clients)))
        bodies = _requests(asked, sampled, self._tokenizer.stop_ids, network.config)
        probed = _Waiting(self, bodies, version, torch.device("cpu")).result()
        exact = self._dtype == "float32" and all(weight.dtype == torch.float32 for weight in network.parameters())
        allowed = _LARGEST_GAP if exact else _LARGEST_GAP_IN_16_BITS
        for client, ids, logprobs in zip(self._clients, probed.ids, probed.samples.logprobs, strict=True):
            gap = float((response_logprobs(network, prompt, ids, sampled) - logprobs[: len(ids)]).abs().mean())
            if not gap <= allowed:
                raise EngineError(
                    f"the engine at {client.address} does not sample with the weights that it was sent: its log-probs "
                    f"of {len(ids)} tokens differ from the trainer's by {gap:.3g} nats on average, more than rounding "
                    f"in {self._dtype} ({allowed}); nothing was trained on its responses"
                )

    def _call(self, work: Any) -> Any:
        """The result of some work; names the death of the engine as the reason of its failure."""
        try:
            return self._background.run(work).result()
        except EngineError as error:
            raise self.reason(error) from error

    def reason(self, error: EngineError) -> EngineError:
        """The error, or the death of the server that explains it."""
        if self._server is None:
            return error
        self._forgets_log = False
        deadline = time.monotonic() + 2  # the guard looks every 0.2 s
        while self._server.status() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if (status := self._server.status()) is None:
            return error
        return EngineError(
            f"the engine ended with exit code {status} ({self._server.last_words()}); its log is {self._server.log}: "
            "resume the run from its last checkpoint"
        )

    # Servers.

    def _start(self, directory: Path, context: int) -> None:
        """Start this node's server with these weights, or find those that run."""
        settings, folders = self._settings, (self._folder, self._weights_folder)
        if settings.addresses:
            # If this process is killed, the weights must not stay in memory.
            self._cleaner = Popen(guarded([], folders), stdin=DEVNULL, start_new_session=True)
        else:
            self._server = VLLMServer(
                settings.python or sys.executable,
                self._arguments(directory, context),
                environment=settings.environment or {},
                log=self._log,
                folders=folders,
            )
        self._connect(context)

    def _connect(self, context: int) -> None:
        own = self._settings.addresses or (f"unix:{self._folder / 'engine.sock'}",)
        own = own if self._leads else own[self._crew.rank :: self._crew.ranks] or (own[self._crew.rank % len(own)],)
        self._clients = [VLLMClient(address, timeout=self._settings.timeout) for address in own]
        for client in self._clients:
            self._await_start(client)
        limits = [self._call(client.get("/v1/models"))["data"][0]["max_model_len"] for client in self._clients]
        self._context = min(context, *limits)

    def _await_start(self, client: VLLMClient) -> None:
        """Wait until a server is ready.

        Raises:
            EngineError: it ends, is not ready in time, or is not a vLLM that takes weights.
        """
        deadline = time.monotonic() + self._settings.start_timeout
        while True:
            try:
                self._background.run(client.get("/health")).result()
                break
            except EngineError as error:
                if self._server is not None and self._server.status() is not None:
                    self._forgets_log = False
                    raise EngineError(
                        f"vLLM did not start: {self._server.last_words()} (its log is {self._server.log})"
                    ) from error
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the engine at {client.address} was not ready within engine.start_timeout "
                        f"{self._settings.start_timeout:g} s: {error}"
                    ) from error
            time.sleep(_POLL)
        try:
            self._background.run(client.get("/weight_info")).result()
        except EngineError as error:
            raise EngineError(
                f"the engine at {client.address} takes no weights: it must be vLLM 0.32 or later, started with "
                "VLLM_SERVER_DEV_MODE=1 (docs/engines.md)"
            ) from error

    def _arguments(self, directory: Path, context: int) -> list[str]:
        settings = self._settings
        eager = not torch.cuda.is_available() if settings.eager is None else settings.eager
        named = {
            "model": directory,
            "uds": self._folder / "engine.sock",
            "served-model-name": "align",
            "dtype": self._dtype,  # vLLM's own "auto" halves float32
            "max-model-len": context,
            "max-num-seqs": settings.max_sequences,
            "tensor-parallel-size": settings.tensor_parallel,
            "gpu-memory-utilization": settings.gpu_memory,
            "logprobs-mode": "processed_logprobs",
            "uvicorn-log-level": "warning",
        } | (settings.arguments or {})
        flags = ["skip-tokenizer-init", "enable-scale-out", "disable-log-stats"] + ["enforce-eager"] * eager
        return [*(f"--{name}={value}" for name, value in named.items()), *(f"--{name}" for name in flags)]

    # Sampling.

    def rooms(self, body: dict[str, Any]) -> int:
        """The most tokens that the engine may sample after a prompt."""
        return int(min(body["sampling_params"]["max_tokens"], self._context - len(body["token_ids"])))

    def begin(self, bodies: Sequence[dict[str, Any]]) -> "list[Future[Any]]":
        """Requests on their way, spread over the engines."""
        futures = []
        for number, body in enumerate(bodies):
            client = self._clients[number % len(self._clients)]
            body["sampling_params"]["max_tokens"] = self.rooms(body)
            futures.append(self._background.run(client.post("/inference/v1/generate", body, timed=False)))
        return futures

    def responses(self, answers: Sequence[Any], version: str, device: torch.device) -> Responses:
        """The answers as responses.

        Raises:
            EngineError: one was sampled with other weights, or is incomplete.
        """
        choices = [_choice(answer, version) for answer in answers]
        ids = [list(choice["token_ids"]) for choice in choices]
        finished = [choice["finish_reason"] == "stop" for choice in choices]
        logprobs = [[token["logprob"] for token in choice["logprobs"]["content"]] for choice in choices]
        longest = max(map(len, ids))
        pad = self._tokenizer.pad_id or 0
        samples = Samples(
            ids=torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids], device=device),
            logprobs=torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in logprobs], device=device),
            mask=torch.tensor([[n < len(row) for n in range(longest)] for row in ids], device=device),
            finished=torch.tensor(finished, device=device),
        )
        return Responses(ids, [self._tokenizer.decode(row) for row in ids], finished, samples)

    @property
    def timeout(self) -> float:
        """Seconds within which the next response must be finished."""
        return self._settings.timeout


class _Waiting(Sampling):
    """Responses that the engine is sampling."""

    def __init__(self, engine: _OpenVLLM, bodies: Sequence[dict[str, Any]], version: str, device: torch.device) -> None:
        self._engine, self._version, self._device = engine, version, device
        self._futures = engine.begin(bodies)

    def result(self, on_progress: OnProgress | None = None) -> Responses:
        try:
            self._wait(on_progress)
            answers = [future.result() for future in self._futures]
        except BaseException as error:
            for future in self._futures:
                future.cancel()  # closes the connection, and the engine drops the request
            if isinstance(error, EngineError):
                raise self._engine.reason(error) from error
            raise
        return self._engine.responses(answers, self._version, self._device)

    def _wait(self, on_progress: OnProgress | None) -> None:
        """Until all are finished, or one has failed."""
        finished, since = 0, time.monotonic()
        for future in self._futures:
            while not future.done():
                done = sum(other.done() for other in self._futures)
                if done > finished:
                    finished, since = done, time.monotonic()
                if time.monotonic() - since > self._engine.timeout:
                    raise EngineError(
                        f"the engine has finished no response for engine.timeout {self._engine.timeout:g} s, "
                        f"{finished} of {len(self._futures)} before"
                    )
                if on_progress is not None:
                    on_progress(done / len(self._futures))
                try:
                    future.result(_POLL)
                except TimeoutError:
                    continue
            future.result()


def _requests(asked: Asked, sampled: SampledIds, stop_ids: Sequence[int], config: Any) -> list[dict[str, Any]]:
    """The body of a request for each prompt.

    Raises:
        ValueError: a prompt is empty, has an id that is none of the network's, or leaves no room in the context.
    """
    limit, sampling = sampled.count(config.vocab_size), asked.sampling
    for number, prompt in enumerate(asked.prompts):
        if not 1 <= len(prompt) < config.context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens; it must have at least 1 and at most {config.context - 1}"
            )
        if not 0 <= min(prompt) <= max(prompt) < limit:  # which would end the server
            raise ValueError(f"prompt {number} has an id outside the vocabulary of {limit}")
    settings = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # only those
        "logprobs": 0,  # that of the sampled token
        "detokenize": False,
    }
    if sampled.missing:
        settings["logit_bias"] = {str(number): _NEVER for number in sampled.missing}
    return [
        {"token_ids": list(prompt), "sampling_params": {**settings, "seed": seed}}
        for prompt, seed in zip(asked.prompts, asked.seeds, strict=True)
    ]


def _choice(answer: Any, version: str) -> dict[str, Any]:
    """The response in an answer."""
    choice: dict[str, Any] = answer["choices"][0]
    spans = choice.get("weight_versions")
    if spans is None:
        raise EngineError("the engine does not say which weights it sampled with: it must be vLLM 0.32 or later")
    if others := {span["version"] for span in spans} - {version}:
        raise EngineError(
            f"the engine sampled with weights {', '.join(sorted(others))} instead of {version}: another program is "
            "sending it weights; nothing was trained on these responses"
        )
    if choice["finish_reason"] not in ("stop", "length"):
        raise EngineError(f"the engine ended a response with {choice['finish_reason']!r}")
    return choice
