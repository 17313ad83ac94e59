"""Running the application: one port, and an orderly end."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn

from align.serve.app import Service, make_app
from align.serve.requests import EngineFailed

LOCAL = ("127.0.0.1", "::1", "localhost")


class Server(uvicorn.Server):
    """Ends with an exit code, not by the signal that told it to end; ends when the engine has failed."""

    def __init__(self, service: Service, *, grace_s: int) -> None:
        """Take the application; ``grace_s`` as in ``serve``."""
        super().__init__(
            uvicorn.Config(
                make_app(service), log_level="warning", access_log=False, timeout_graceful_shutdown=grace_s,
                lifespan="on",
            )
        )  # fmt: skip
        self._engine = service.engine

    async def on_tick(self, counter: int) -> bool:
        """Whether to end."""
        if self._engine.failure is not None:
            self.config.timeout_graceful_shutdown = 1  # second, to read what failed
            return True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM while serving: the first ends orderly, a second SIGINT at once."""
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        former = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        host: name or address.
        port: 0 takes any that is free.

    Raises:
        OSError: the address is not of this machine, or the port is taken; in one line.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    bound.listen(2048)
    return bound


def serve(service: Service, listening: socket.socket, *, grace_s: int) -> None:
    """Serve until SIGINT or SIGTERM; answers under way may end first.

    Args:
        service: what is served.
        listening: where.
        grace_s: seconds that answers under way get to end.

    Raises:
        EngineFailed: the engine has, and with it every answer under way.
    """
    Server(service, grace_s=grace_s).run(sockets=[listening])
    if service.engine.failure is not None:
        raise EngineFailed(service.engine.failure)
