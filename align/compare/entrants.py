"""Who is compared: named models, each of one or several runs, and what their folders hold."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from align.io.directory import load_network
from align.io.lightning_checkpoint import load_checkpoint
from align.io.manifest import read_manifest, weights_fingerprint
from align.model.gpt import GPT


class Point(NamedTuple):
    """Weights that can be sampled.

    Attributes:
        model: model directory; it has the tokenizer and the network's shape.
        checkpoint: a ``.ckpt`` whose weights are meant instead of the directory's, or None.
        step: optimizer steps taken, or None where nobody wrote it down.
    """

    model: Path
    checkpoint: Path | None
    step: int | None

    @property
    def label(self) -> str:
        """How reports call it."""
        return self.checkpoint.name if self.checkpoint else "model"

    def load(self, device: str = "cpu") -> GPT:
        """The network, in eval mode on a device.

        Raises:
            ValueError: the directory or the checkpoint is damaged or of another kind; the line names the file.
        """
        network = load_checkpoint(self.checkpoint, self.model) if self.checkpoint else load_network(self.model)
        return network.eval().to(device)

    def fingerprint(self) -> str:
        """What the weights are, in hexadecimal."""
        if self.checkpoint is None:
            return weights_fingerprint(self.model)
        with self.checkpoint.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Run(NamedTuple):
    """A trained model.

    Attributes:
        model: its model directory.
        manifest: its align.json; empty for a directory that no stage of align wrote.
    """

    model: Path
    manifest: dict[str, Any]

    @classmethod
    def of(cls, model: Path) -> "Run":
        """Read what a model directory tells of itself."""
        return cls(model, read_manifest(model) if (model / "align.json").is_file() else {})

    @property
    def final(self) -> Point:
        """The weights of the model directory."""
        return Point(self.model, None, self.manifest.get("step"))

    def points(self) -> list[Point]:
        """Every checkpoint beside the model directory, by step, then the model directory.

        ``last.ckpt`` is there to resume from, and is left out, as is a checkpoint of the model directory's own step.
        """
        found = []
        for path in (self.model.parent / "checkpoints").glob("*.ckpt"):
            match = re.search(r"step=(\d+)", path.name)
            if match and int(match[1]) != self.final.step:
                found.append(Point(self.model, path, int(match[1])))
        return [*sorted(found, key=lambda point: point.step or 0), self.final]


class Entrant(NamedTuple):
    """A name and its runs, one a seed.

    Attributes:
        name: of the model in reports.
        runs: at least one.
    """

    name: str
    runs: tuple[Run, ...]


def check_entrants(entrants: Sequence[Entrant]) -> int:
    """How many seeds a comparison has: the most runs that an entrant names.

    Raises:
        ValueError: fewer than two entrants, a name twice, or an entrant with neither one run nor as many as others.
    """
    if len(entrants) < 2:
        raise ValueError(f"{len(entrants)} model to compare: give at least two, the baseline first")
    names = [entrant.name for entrant in entrants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models are called {name!r}: give each a name of its own (NAME=PATH)")
    seeds = max(len(entrant.runs) for entrant in entrants)
    for entrant in entrants:
        if len(entrant.runs) not in (1, seeds):
            raise ValueError(
                f"{entrant.name} has {len(entrant.runs)} runs where another model has {seeds}: run i is compared with "
                f"run i of the others, so give 1 or {seeds}"
            )
    return seeds
