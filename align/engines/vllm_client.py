"""Calls of a vLLM server, from threads that may do something else meanwhile."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp

from align.engines.engine import EngineError

_Result = TypeVar("_Result")

_CONNECTIONS = 512
"""Requests that are with a server at the same time"""


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        """Start it."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="align-engine", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> "Future[_Result]":
        """Begin some work."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """End it; work that is not done is cancelled."""
        self.run(_cancel_others()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class VLLMClient:
    """Calls of one server.

    Args:
        address: ``http://host:port``, or ``unix:`` and the path of a socket.
        timeout: seconds that a call may take, but for sampling, whose callers watch the time.
    """

    def __init__(self, address: str, *, timeout: float) -> None:
        """Remember them."""
        self.address, self._timeout = address, timeout
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str) -> Any:
        """What the server answers to a GET.

        Raises:
            EngineError: it can't be reached, or refuses.
        """
        return await self._call("GET", path, None, self._timeout)

    async def post(self, path: str, body: dict[str, Any] | None = None, *, timed: bool = True) -> Any:
        """What the server answers to a POST.

        Args:
            path: of the call.
            body: JSON.
            timed: whether it may take no longer than the timeout.

        Raises:
            EngineError: it can't be reached, or refuses.
        """
        return await self._call("POST", path, body, self._timeout if timed else None)

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None, timeout: float | None) -> Any:
        limit = aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._open().request(method, path, json=body, timeout=limit) as answer:
                text = await answer.text()
                if answer.status == 200:
                    return await answer.json(content_type=None) if text else None
        except TimeoutError as error:
            raise EngineError(f"{self.address}{path} did not answer within {timeout:g} s") from error
        except aiohttp.ClientError as error:
            raise EngineError(
                f"{self.address}{path}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from error
        raise EngineError(f"{self.address}{path} answered {answer.status}: {' '.join(text.split())[:300]}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            kind, _, path = self.address.partition(":")
            # A connection for each call: the server closes idle ones, perhaps at the moment of the next call.
            if kind == "unix":
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path, limit=_CONNECTIONS, force_close=True)
                self._session = aiohttp.ClientSession("http://engine", connector=connector)
            else:
                connector = aiohttp.TCPConnector(limit=_CONNECTIONS, force_close=True)
                self._session = aiohttp.ClientSession(self.address, connector=connector)
        return self._session
