"""The flag of the verbs that sample whole batches: with what."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.cli.errors import UsageError

if TYPE_CHECKING:
    from align.engines import Engine


@dataclass(frozen=True)
class EngineFlag:
    """What samples responses."""

    engine: str | None = None
    """What samples: VLLM, {class_path: VLLM, init_args: {NAME: VALUE}} of one with settings (docs/engines.md), or a
    YAML file with the same; null: align itself"""

    def load(self) -> "Engine":
        """The engine.

        Raises:
            UsageError: there is none of that name.
        """
        from align.engines.loading import load_engine

        try:
            return load_engine(self.engine)
        except ValueError as error:
            raise UsageError(f"--engine: {error}") from error
