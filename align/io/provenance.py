"""What others call a model or a data set: its id on the Hub or its own name, instead of a path on one machine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from align.io.manifest import MANIFEST, read_manifest

_SNAPSHOT = re.compile(r"models--([\w.\-]+?)--([\w.\-]+)/snapshots/")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_OF_A_STAGE = ("model", "adapter")
"""Folders in which a stage writes"""


class Origin(NamedTuple):
    """A model as others know it.

    Attributes:
        name: to show.
        hub_id: ``owner/name``; None if it is not known to be on the Hub.
    """

    name: str
    hub_id: str | None


def origin_of(source: str | Path) -> Origin:
    """The name of a model.

    Args:
        source: a Hub id, or a directory: a snapshot of the Hub's cache, a converted GGUF file, a stage's ``model/``, or
            another, which may no longer exist.
    """
    text = str(source)
    if found := _SNAPSHOT.search(text):
        return Origin(found[2], f"{found[1]}/{found[2]}")
    path = Path(text).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(text) and path.name not in _OF_A_STAGE:
        return Origin(path.name, text)
    gguf = (read_manifest(path).get("gguf") if (path / MANIFEST).is_file() else None) or {}
    if gguf.get("name"):
        return Origin(gguf["name"], None)
    resolved = path.resolve()
    return Origin(resolved.parent.name if resolved.name in _OF_A_STAGE else resolved.name, None)


def first_ancestor(parent: Mapping[str, Any] | None) -> Origin | None:
    """The model that a chain of stages began with, as far as their directories exist.

    Args:
        parent: ``parent`` of a manifest; None: the model is new.
    """
    found, seen = None, set()
    while parent is not None and parent["directory"] not in seen:
        found = parent["directory"]
        seen.add(found)
        path = Path(found)
        parent = read_manifest(path)["parent"] if (path / MANIFEST).is_file() else None
    return None if found is None else origin_of(found)


def hub_datasets(data: Mapping[str, str]) -> list[str]:
    """Hub ids among the ``data`` of a manifest, without configuration and split."""
    return sorted({re.split("[@:]", name)[0] for name, digest in data.items() if digest.startswith("hub:")})


def front_matter(fields: Mapping[str, str | list[str] | None]) -> str:
    """The metadata header of a card in YAML; fields of None and empty lists are left out."""
    lines = [
        f"{name}: {'[' + ', '.join(value) + ']' if isinstance(value, list) else value}"
        for name, value in fields.items()
        if value
    ]
    return "\n".join(["---", *lines, "---"])
