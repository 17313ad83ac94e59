"""OpenAI's chat completions as far as we answer them: what is asked, what is refused and why, and how answers look."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, NamedTuple

from align.generation.sampling_config import SamplingConfig
from align.serve.requests import Reason, Request
from align.tokenizer import Tokenizer

MAX_STOPS = 16
MAX_STOP_CHARS = 1000

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What clients send along and what has no bearing on an answer.
_IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"
}  # fmt: skip
# The only values of what we do not do.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_OWN = {"max_completion_tokens", "max_tokens", "messages", "model", "seed", "stop", "stream", "stream_options"}


class ApiError(Exception):
    """A request that is refused, as OpenAI's clients expect to be told."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Refuse.

        Args:
            status: of HTTP.
            message: what is wrong and what would be right.
            param: the field that is wrong.
            code: for programs.
            headers: of the response.
        """
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_new_tokens: int = 1024
    """Longest answer, tokens"""
    default_new_tokens: int = 256
    """Longest answer where the request does not say, tokens"""


class ChatRequest(NamedTuple):
    """A checked request.

    Attributes:
        request: for the engine.
        stream: answer in pieces.
        include_usage: end a stream with the token counts.
    """

    request: Request
    stream: bool
    include_usage: bool


def parse_chat(body: bytes, *, model: str, tokenizer: Tokenizer, limits: Limits) -> ChatRequest:
    """Check a request.

    Args:
        body: JSON.
        model: the name of the only model here.
        tokenizer: the model's own.
        limits: of one request.

    Raises:
        ApiError: something is wrong, with status 400 or 404; names the field and what would be right.
    """
    asked = _json(body)
    _check_names(asked)
    _check_model(asked.get("model"), model)
    stream = _typed(asked, "stream", bool, "true or false") or False
    options = _typed(asked, "stream_options", dict, "an object") or {}
    if options and not stream:
        raise ApiError(400, "stream_options goes with stream: true only", param="stream_options")
    seed = _typed(asked, "seed", int, "a whole number")
    if seed is not None and not -(1 << 63) <= seed < 1 << 63:
        raise ApiError(400, f"seed is {seed}; it must fit in 64 bits", param="seed")
    request = Request(
        prompt=_prompt(asked.get("messages"), tokenizer),
        sampling=_sampling(asked, limits),
        seed=secrets.randbits(63) if seed is None else seed,
        stop=_stops(asked.get("stop")),
    )
    return ChatRequest(request, stream, bool(options.get("include_usage")))


def _json(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="bad_json") from None
    if not isinstance(asked, dict):
        raise ApiError(400, f"the body is a JSON {type(asked).__name__}; it must be an object", code="bad_json")
    return asked


def _check_names(asked: Mapping[str, Any]) -> None:
    known = {*_OWN, *_SAMPLING, *_NEUTRAL, *_IGNORED}
    for name, value in asked.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ApiError(400, f"unknown field {_shown(name)}{hint}", param=name[:80], code="unknown_field")
        if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            right = " or ".join(json.dumps(neutral) for neutral in _NEUTRAL[name])
            raise ApiError(
                400, f"{name} is {_shown(value)}; this server only takes {right}", param=name, code="unsupported"
            )


def _check_model(asked: object, model: str) -> None:
    if asked is None:
        raise ApiError(400, f"model is missing; this server has {model!r}", param="model")
    if asked != model:
        raise ApiError(
            404, f"no model {_shown(asked)}; this server has {model!r}", param="model", code="model_not_found"
        )


def _typed(asked: Mapping[str, Any], name: str, kind: type, right: str) -> Any:
    value = asked.get(name)
    # JSON's true is an int to Python.
    if value is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be {right}", param=name)
    return value


def _prompt(messages: object, tokenizer: Tokenizer) -> list[int]:
    if messages is None:
        raise ApiError(400, "messages is missing; it must be a list of messages", param="messages")
    plain = [_plain(message) for message in messages] if isinstance(messages, list) else messages
    try:
        return tokenizer.render_chat(plain, add_generation_prompt=True).ids  # type: ignore[arg-type]
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from None


def _plain(message: object) -> object:
    """A message whose content is one text; what is wrong with it otherwise is for the tokenizer to say."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    # OpenAI's newer name of the same role.
    role = "system" if message.get("role") == "developer" else message.get("role")
    return {key: value for key, value in {"role": role, "content": content}.items() if key in message}


def _sampling(asked: Mapping[str, Any], limits: Limits) -> SamplingConfig:
    kinds = {field.name: field.type for field in fields(SamplingConfig)}
    settings: dict[str, Any] = {}
    for name in _SAMPLING:
        whole = kinds[name] in (int, "int")
        value = _typed(asked, name, int if whole else int | float, "a whole number" if whole else "a number")  # type: ignore[arg-type]
        if value is not None:
            settings[name] = value
    longest = limits.default_new_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        value = _typed(asked, name, int, "a whole number")
        if value is None:
            continue
        if not 1 <= value <= limits.max_new_tokens:
            raise ApiError(
                400, f"{name} is {value}; this server gives between 1 and {limits.max_new_tokens}", param=name
            )
        longest = value
    try:
        return SamplingConfig(**settings, max_new_tokens=longest)
    except (ValueError, OverflowError) as error:
        raise ApiError(400, str(error), param=str(error).split()[0]) from None


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise ApiError(400, f"stop is {_shown(stop)}; it must be a text or a list of texts, none empty", param="stop")
    if len(stops) > MAX_STOPS or any(len(text) > MAX_STOP_CHARS for text in stops):
        raise ApiError(
            400, f"stop takes at most {MAX_STOPS} texts of at most {MAX_STOP_CHARS} characters", param="stop"
        )
    return tuple(stops)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# -- answers -----------------------------------------------------------------------------------------------------------


class Completion:
    """The JSON of one answer, whole or in chunks."""

    def __init__(self, model: str, *, prompt_tokens: int) -> None:
        """Give it a name and a time."""
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._prompt_tokens = prompt_tokens

    def whole(self, text: str, *, tokens: int, reason: Reason) -> dict[str, Any]:
        """An answer in one."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(tokens)}

    def opening(self) -> bytes:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def text(self, text: str) -> bytes:
        """A chunk of text."""
        return self._chunk({"content": text}, None)

    def end(self, reason: Reason, *, tokens: int, include_usage: bool) -> bytes:
        """The last chunks."""
        usage = b""
        if include_usage:
            counts = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(tokens)}
            usage = _event(counts)
        return self._chunk({}, reason) + usage + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: Reason | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self._prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def failure_event(error: ApiError) -> bytes:
    """An error in the middle of a stream, whose status has been sent."""
    return _event(error.body()) + b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
