"""The arena's HTTP server: the page, rounds, votes, the table.

Only the arena's own page may start rounds and vote. Requests with a foreign Host are refused (DNS rebinding), and so
are POSTs from pages of another origin and POSTs that are not JSON (cross-site request forgery).
"""

import asyncio
import base64
import hashlib
import ipaddress
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from align.arena.rounds import Arena, Refused, Round
from align.arena.votes import CHOICES

_PAGE = Path(__file__).with_name("page.html")
_TICK = 0.1
"""Seconds between two updates of the responses on the page"""
_BODY = 1 << 20
"""Bytes of a request"""
_ARENA = web.AppKey("arena", Arena)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(arena: Arena, *, host: str) -> web.Application:
    """The application.

    Args:
        arena: what it serves.
        host: that it listens on; as a Host header it is accepted beside IP addresses and this machine's names.
    """
    page = _PAGE.read_text(encoding="utf-8")
    headers = _headers(page)
    names = {host.lower(), "localhost", socket.gethostname().lower()}

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not _is_ours(request.host, names):
            return _error(403, f"this server is not {request.host}: open the address that `align arena` printed")
        if request.method == "POST" and (reason := _foreign(request)):
            return _error(403, reason)
        try:
            response = await handler(request)
        except Refused as error:
            return _error(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"the prompt is too long: a request has at most {_BODY} bytes")
        if not response.prepared:
            response.headers.update(headers)
        return response

    async def index(request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def close(app: web.Application) -> None:
        await asyncio.to_thread(arena.close)

    app = web.Application(middlewares=[guard], client_max_size=_BODY)
    app[_ARENA] = arena
    app.add_routes(
        [
            web.get("/", index),
            web.get("/suggestion", _suggestion),
            web.get("/table.json", _table),
            web.post("/rounds", _start),
            web.get("/rounds/{name}/events", _events),
            web.post("/rounds/{name}/vote", _vote),
            web.post("/rounds/{name}/drop", _drop),
        ]
    )
    app.on_shutdown.append(close)
    return app


async def _suggestion(request: web.Request) -> web.Response:
    return web.json_response(request.app[_ARENA].suggestion())


async def _table(request: web.Request) -> web.Response:
    return web.json_response(request.app[_ARENA].table())


async def _start(request: web.Request) -> web.Response:
    arena = request.app[_ARENA]
    fields = await _fields(request)
    text, suggestion = fields.get("prompt"), fields.get("suggestion")
    if not isinstance(text, str):
        raise Refused(f"prompt is {text!r}; it must be a text")
    if suggestion is not None and type(suggestion) is not int:
        raise Refused(f"suggestion is {suggestion!r}; it must be an index or null")
    name = arena.start(text, suggestion)
    for dropped in arena.crowded():
        await asyncio.to_thread(dropped.cancel)
    return web.json_response({"round": name})


async def _events(request: web.Request) -> web.StreamResponse:
    """Both responses while they grow, as server-sent events; each has the whole texts so far."""
    shown = request.app[_ARENA].round(request.match_info["name"])
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    with suppress(ConnectionResetError):  # the page was closed
        async for progress in _growing(shown):
            await response.write(f"data: {json.dumps(progress)}\n\n".encode())
    for reply in shown.replies:
        if reply.reason == "failed":  # the message may name the model, so the page does not get it
            print(f"round {shown.number}: a response failed: {reply.error}", file=sys.stderr, flush=True)
    return response


async def _growing(shown: Round) -> AsyncIterator[dict[str, Any]]:
    last: dict[str, Any] = {}
    while not last.get("over"):
        if (now := shown.progress()) != last:
            yield now
            last = now
        if not last["over"]:
            await asyncio.sleep(_TICK)


async def _vote(request: web.Request) -> web.Response:
    arena = request.app[_ARENA]
    choice = (await _fields(request)).get("vote")
    if choice not in CHOICES:
        raise Refused(f"vote is {choice!r}; it must be {', '.join(CHOICES)}")
    try:
        vote = arena.vote(request.match_info["name"], choice)
    except OSError as error:
        print(f"a vote was not written: {error}", file=sys.stderr, flush=True)
        return _error(500, f"the vote was not written ({error.strerror or error}): correct that, then vote again")
    return web.json_response({"left": vote.left.model, "right": vote.right.model, "table": arena.table()})


async def _drop(request: web.Request) -> web.Response:
    dropped = request.app[_ARENA].drop(request.match_info["name"])
    await asyncio.to_thread(dropped.cancel)
    return web.json_response({})


async def _fields(request: web.Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except ValueError:
        raise Refused("the request is not JSON") from None
    if not isinstance(found, dict):
        raise Refused(f"the request is a JSON {type(found).__name__}; it must be an object")
    return found


def _is_ours(host: str, names: set[str]) -> bool:
    """Whether a Host header names this server; rebinding takes a name, so every IP address passes."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return True


def _foreign(request: web.Request) -> str | None:
    """Why a POST may come from a page of another site; None if it does not."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        return f"requests from pages of {origin} are refused"
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        return "requests from pages of other sites are refused"
    if request.content_type != "application/json":
        return f"the content type is {request.content_type}; it must be application/json"
    return None


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _headers(page: str) -> dict[str, str]:
    """Headers of every response: the page's own style and script alone run, and no other page may frame it."""
    policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    policy.append("frame-ancestors 'none'")
    for tag in ("style", "script"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        policy.append(f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'")
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
