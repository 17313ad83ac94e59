"""The HTTP side: routes, the API key, limits on bodies, and clients that hang up."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from align.serve.answer import Answer
from align.serve.process import EngineProcess
from align.serve.protocol import ApiError, ChatRequest, Completion, Limits, failure_event, parse_chat
from align.serve.requests import EngineFailed, EngineFull, Piece

_RETRY_AFTER = 1  # seconds
_BODY_SECONDS = 30.0


@dataclass(frozen=True)
class Service:
    """What is served, and within which limits."""

    engine: EngineProcess
    name: str
    """The model's name in requests"""
    limits: Limits
    max_body_bytes: int
    """Largest request"""
    api_key: str | None = None
    """What clients must send as their bearer token; None: nothing"""


def make_app(service: Service) -> Starlette:
    """The application.

    Args:
        service: what is served.
    """
    started = int(time.time())
    engine = service.engine

    async def chat(request: Request) -> Response:
        _check_key(request, service.api_key)
        body = await _read_body(request, service.max_body_bytes)
        parsed = parse_chat(body, model=service.name, tokenizer=engine.tokenizer, limits=service.limits)
        answer = _submit(engine, parsed)
        completion = Completion(service.name, prompt_tokens=len(parsed.request.prompt))
        if parsed.stream:
            return _Stream(answer, completion, include_usage=parsed.include_usage)
        return _Whole(answer, completion)

    async def models(request: Request) -> Response:
        _check_key(request, service.api_key)
        return JSONResponse({"object": "list", "data": [_model(service.name, started)]})

    async def model(request: Request) -> Response:
        _check_key(request, service.api_key)
        if (name := request.path_params["name"]) != service.name:
            raise ApiError(404, f"no model {name!r}; this server has {service.name!r}", code="model_not_found")
        return JSONResponse(_model(service.name, started))

    async def health(request: Request) -> Response:
        state = {"status": engine.failure or "ok", "running": engine.running, "waiting": engine.waiting}
        return JSONResponse(state, 503 if engine.failure else 200)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        lifespan=lambda app: engine.connected(),
        exception_handlers={ApiError: _refuse, HTTPException: _refuse, ClientDisconnect: _gone, Exception: _refuse},
    )


def _model(name: str, started: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": started, "owned_by": "align"}


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        where = f"{request.method} {request.url.path}"
        error = ApiError(error.status_code, f"{where}: {error.detail}", headers=error.headers)
    if not isinstance(error, ApiError):
        error = ApiError(500, f"{type(error).__name__} in the server", code="internal_error")
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def _check_key(request: Request, key: str | None) -> None:
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise ApiError(
            401, "the API key is missing or wrong: send it as `Authorization: Bearer KEY`", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


async def _read_body(request: Request, limit: int) -> bytes:
    # A form of any web page can send other types to this machine without asking; this one it cannot.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is {kind[:80]!r}; it must be application/json")
    too_large = ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {_BODY_SECONDS:g} seconds") from None
    return bytes(body)


def _submit(engine: EngineProcess, parsed: ChatRequest) -> Answer:
    try:
        return Answer(engine, parsed.request)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
    except EngineFull as error:
        raise ApiError(
            429, f"too many requests: {error}; try again", code="too_many_requests",
            headers={"Retry-After": str(_RETRY_AFTER)},
        ) from None  # fmt: skip
    except EngineFailed as error:
        raise _engine_error(503, str(error)) from None


def _engine_error(status: int, message: str) -> ApiError:
    return ApiError(status, message, code="engine_failed")


def _failed(piece: Piece) -> Response:
    error = _engine_error(500, piece.error)
    return JSONResponse(error.body(), error.status)


class _Whole(Response):
    """An answer in one JSON object; given up when the client hangs up."""

    def __init__(self, answer: Answer, completion: Completion) -> None:
        super().__init__(media_type="application/json")
        self.answer, self.completion = answer, completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def respond(next_piece: Callable[[], Awaitable[Piece]]) -> None:
            text = []
            while True:
                piece = await next_piece()
                text.append(piece.text)
                if piece.reason is not None:
                    break
            if piece.reason == "failed":
                whole = _failed(piece)
            else:
                whole = JSONResponse(self.completion.whole("".join(text), tokens=piece.tokens, reason=piece.reason))
            await whole(scope, receive, send)

        await _while_connected(receive, self.answer, respond)


class _Stream(Response):
    """An answer as server-sent events; given up when the client hangs up."""

    def __init__(self, answer: Answer, completion: Completion, *, include_usage: bool) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.answer, self.completion, self.include_usage = answer, completion, include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def respond(next_piece: Callable[[], Awaitable[Piece]]) -> None:
            piece = await next_piece()
            if piece.reason == "failed":  # before the status is sent, which then is the error's
                await _failed(piece)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            body = self.completion.opening()
            while True:
                reason = piece.reason
                if piece.text:
                    body += self.completion.text(piece.text)
                if reason == "failed":
                    body += failure_event(_engine_error(500, piece.error))
                elif reason is not None:
                    body += self.completion.end(reason, tokens=piece.tokens, include_usage=self.include_usage)
                await send({"type": "http.response.body", "body": body, "more_body": reason is None})
                if reason is not None:
                    return
                await self.answer.pause()
                piece, body = await next_piece(), b""

        await _while_connected(receive, self.answer, respond)


async def _while_connected(
    receive: Receive, answer: Answer, respond: Callable[[Callable[[], Awaitable[Piece]]], Awaitable[None]]
) -> None:
    """Respond until done, or until the client has hung up; either way the answer is over then."""

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    responding = asyncio.ensure_future(respond(answer.next))
    listening = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((responding, listening), return_when=asyncio.FIRST_COMPLETED)
        if responding.done():
            responding.result()
    finally:
        answer.cancel()
        responding.cancel()
        listening.cancel()
