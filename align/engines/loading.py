"""An engine by name, for commands."""

from align.engines.engine import Engine
from align.engines.ours import Ours
from align.io.described import described


def load_engine(name: str | None) -> Engine:
    """An engine.

    Args:
        name: see ``described``; None: our own.

    Raises:
        ValueError: there is no such engine, or a setting of it is invalid.
    """
    return Ours() if name is None else described(name, Engine, what="engine", example="VLLM")  # type: ignore[type-abstract]
