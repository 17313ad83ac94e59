"""The metadata of a GGUF file, read with errors that name file, key and value."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_UNSET: Any = object()


class Metadata:
    """Metadata of one file; keys of the architecture go without its name.

    Attributes:
        path: the file.
        values: by key, as Python values.
        architecture: ``general.architecture``.
        embedding: shape ``(V, D)`` of the token embedding.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], *, embedding: tuple[int, ...] = ()) -> None:
        """Wrap the metadata of ``path``.

        Raises:
            ValueError: there is no architecture.
        """
        self.path = path
        self.values = values
        self.embedding = embedding
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise ValueError(f"{path}: general.architecture is missing")
        self.architecture = architecture

    def get(self, key: str, default: Any = _UNSET) -> Any:
        """The value of ``ARCHITECTURE.key``; a list of equal values, one for each block, is one value.

        Raises:
            ValueError: the key is absent and has no default, or blocks differ.
        """
        value = self.values.get(f"{self.architecture}.{key}")
        if value is None:
            if default is _UNSET:
                raise ValueError(f"{self.path}: {self.architecture}.{key} is missing")
            return default
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.unsupported(key, value, "the same value for all blocks")
            return value[0]
        return value

    def only(self, key: str, supported: Any) -> None:
        """Require a value, if the key is there.

        Raises:
            ValueError: it has another one.
        """
        if (value := self.get(key, supported)) != supported:
            raise self.unsupported(key, value, repr(supported))

    def unsupported(self, key: str, value: Any, supported: str) -> ValueError:
        """The error for a key that asks for something our network does not support."""
        return ValueError(f"{self.path}: {self.architecture}.{key} is {value!r}; supported: {supported}")
