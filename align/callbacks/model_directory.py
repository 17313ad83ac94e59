"""Writes the model directory, the only input and output that stages share."""

import math
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from align.adapters.lora import adapters
from align.callbacks.model_card import model_card
from align.io.adapter_directory import base_source, save_adapter
from align.io.atomic import replacing_directory
from align.io.directory import save_network
from align.io.generation_config import add_sampling_defaults, sampling_defaults
from align.io.location import as_directory, locate
from align.io.manifest import read_manifest, weights_fingerprint, write_manifest
from align.training.checkpointing import Checkpoints
from align.training.sharding import gathered, is_sharded, whole_copy
from align.training.trainer_state import begins, validating_in_fit
from align.training.weight_average import WeightAverage


class ModelDirectory(pl.Callback):
    """Writes ``model/`` into the run folder atomically, with the average of the weights where there is one.

    Where adapters are trained, ``model/`` has the merged weights, and ``adapter/`` the adapter in peft's format.

    Args:
        which: ``best``: the network of the lowest monitor, written whenever it improves; ``last``: the final one.
        monitor: the metric that decides ``best``; lower is better.
    """

    recipe: dict[str, Any] | None = None
    """The resolved recipe, for the manifest; the CLI sets it."""

    def __init__(self, which: Literal["best", "last"] = "best", monitor: str = "val/loss") -> None:
        """Nothing written yet."""
        self.which = which
        self.monitor = monitor
        self.best: float | None = None
        self._sampling: dict[str, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the sampling defaults of the model that training starts from."""
        source: Any = getattr(pl_module, "parent", None)
        if trainer.is_global_zero and source is not None:
            self._sampling = sampling_defaults(locate(base_source(source)))

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and what it is a value of."""
        return {"best": self.best, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far, unless it is of another metric."""
        self.best = state_dict["best"] if state_dict["monitor"] == self.monitor else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget a best value without its model: that is in another folder, or was deleted."""
        if not trainer.strategy.broadcast((Path(trainer.default_root_dir) / "model").exists()):
            self.best = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write if the monitor improved."""
        # Before training there is nothing to write: the initial network is where it was loaded from.
        if self.which != "best" or not validating_in_fit(trainer) or begins(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"model_directory.monitor is {self.monitor!r}, which is not logged: "
                f"it is one of {', '.join(sorted(trainer.callback_metrics))}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or value < self.best:
            self.best = value
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final network, unless the best one was written."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.which == "last" or self.best is None:
            self._write(trainer, pl_module)

    def write_missing(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Write the network of a finished run if its ``model/`` is gone; returns whether there is one now.

        After the run only, when sharded weights can no longer be gathered.
        """
        target = Path(trainer.default_root_dir) / "model"
        if not target.exists() and not is_sharded(pl_module.network):  # type: ignore[arg-type]
            self._write(trainer, pl_module)
        return target.exists()

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        extras = getattr(pl_module, "manifest_extras", dict)
        network: Any = pl_module.network
        if is_sharded(network):
            # All ranks together: each has a part of the weights.
            with gathered(network):
                gathered_extras: dict[str, Any] = extras()
            network, extras = whole_copy(network), lambda: gathered_extras
        if not trainer.is_global_zero:
            return
        target = Path(trainer.default_root_dir) / "model"
        data = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = getattr(data, "tokenizer", None)
        with ExitStack() as stack:
            for average in _averages(trainer):
                stack.enter_context(average.applied(pl_module))
            with replacing_directory(target) as directory:
                if tokenizer is not None:
                    tokenizer.save(directory)
                save_network(
                    network,
                    directory,
                    bos_id=tokenizer.bos_id if tokenizer is not None else None,
                    eos_ids=tokenizer.stop_ids if tokenizer is not None else (),
                    pad_id=tokenizer.pad_id if tokenizer is not None else None,
                )
                add_sampling_defaults(directory, self._sampling)
                # The manifest measures the weights that are written, so it comes within the same context.
                write_manifest(directory, self._manifest(trainer, pl_module) | extras())
                (directory / "README.md").write_text(model_card(read_manifest(directory), network))
            if adapters(network):
                self._write_adapter(target, pl_module, network)
        rank_zero_info(f"wrote {target} (step {trainer.global_step})")

    def _write_adapter(self, model: Path, pl_module: Any, network: Any) -> None:
        """The adapter by itself, after ``model/``: a kill between the two leaves an adapter of an earlier step."""
        record = pl_module.adapter_record or {"base": None, "weights": None}
        with replacing_directory(model.with_name("adapter")) as directory:
            save_adapter(network, directory, base=record["base"])
            for path in model.iterdir():
                if path.name.startswith(("tokenizer", "chat_template", "generation_config")):
                    shutil.copyfile(path, directory / path.name)
            base = record["base"]
            parent = None if base is None else {"directory": base, "weights": record["weights"], "stage": _stage(base)}
            write_manifest(directory, read_manifest(model) | {"parent": parent})

    def _manifest(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = getattr(data, "tokenizer", None)
        return {
            "stage": type(pl_module).__name__.lower(),
            "step": trainer.global_step,
            "recipe": _with_resolved(self.recipe, pl_module),
            "parent": _parent(getattr(pl_module, "parent", None)),
            "tokenizer": None if tokenizer is None else tokenizer.fingerprint,
            "data": dict(getattr(data, "fingerprints", {})),
            "metrics": {name: _json_number(float(value)) for name, value in trainer.callback_metrics.items()},
            **{key: value for part in _describing(trainer) for key, value in part.manifest().items()},
        }


def _with_resolved(recipe: dict[str, Any] | None, pl_module: Any) -> dict[str, Any] | None:
    """The recipe with the values that the run determined for settings of None."""
    settings = (recipe or {}).get("model", {}).get("init_args", {})
    optimizer = getattr(pl_module, "optimizer_config", None)
    if recipe is None or optimizer is None or "optimizer" not in settings:
        return recipe
    settings = settings | {"optimizer": settings["optimizer"] | {"lr": optimizer.lr}}
    return recipe | {"model": recipe["model"] | {"init_args": settings}}


def _averages(trainer: pl.Trainer) -> list[WeightAverage]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAverage)]


def _describing(trainer: pl.Trainer) -> list[WeightAverage | Checkpoints]:
    """The callbacks that add to the manifest."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAverage | Checkpoints)]


def _json_number(value: float) -> float | str:
    """JSON has no infinity: an early perplexity may be one."""
    return value if math.isfinite(value) else str(value)


def _parent(source: str | None) -> dict[str, Any] | None:
    """The network's source, with the hash of its weights if it is a local directory."""
    if source is None:
        return None
    source = as_directory(source)
    directory = Path(source)
    if not directory.is_dir():
        return {"directory": source, "weights": None, "stage": None}
    return {"directory": source, "weights": weights_fingerprint(directory), "stage": _stage(source)}


def _stage(directory: str) -> str | None:
    """The stage that wrote a directory; None if none of ours did."""
    path = Path(directory)
    return read_manifest(path)["stage"] if (path / "align.json").is_file() else None
