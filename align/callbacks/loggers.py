"""metrics.csv in the run folder, continued when a run is resumed.

Loggers continue the run of the checkpoint that is resumed instead of beginning another.
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from align.io.atomic import replacing_file


class RunLog(CSVLogger):
    """Writes ``metrics.csv`` directly into the run folder.

    Rows of an earlier attempt stay up to the first row that is logged again, so a resumed run continues its file and a
    fresh run replaces it. A step may have several rows (of training, of its validation), distinguished by their
    columns.

    Args:
        run: the run folder.
    """

    def __init__(self, run: str | Path) -> None:
        """Flush every row: a killed run keeps what it logged."""
        super().__init__(save_dir=str(run), name="", version="", flush_logs_every_n_steps=1)

    @property
    @override
    def log_dir(self) -> str:
        """The run folder itself."""
        return self.save_dir

    @property
    @override
    def experiment(self) -> Any:
        """The writer, made on first use on rank 0."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _ContinuingWriter(self.log_dir)
        return self._experiment


class _ContinuingWriter(ExperimentWriter):
    """An ExperimentWriter that keeps the rows before the first step it is given."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        self._earlier: list[dict[str, Any]] | None = None
        if path.is_file():
            with path.open(newline="") as file:
                self._earlier = list(csv.DictReader(file))

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        if self._earlier is None:
            return
        first, columns = int(self.metrics[-1]["step"]), {*self.metrics[-1]} - {"step", "epoch"}
        again = (
            n for n, row in enumerate(self._earlier) if int(row["step"]) >= first and _of_same(row, first, columns)
        )
        kept = self._earlier[: next(again, len(self._earlier))]
        self._earlier = None
        Path(self.metrics_file_path).unlink()
        if kept:
            self.metrics_keys = list(kept[0])
            self._rewrite(kept)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with Path(self.metrics_file_path).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def _of_same(row: dict[str, Any], step: int, columns: set[str]) -> bool:
    """Whether an earlier row is of a later step, or has the same columns at this one."""
    return int(row["step"]) > step or any(row.get(name) for name in columns)


_FILE = "tracking.json"

_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "WandbLogger": ("id", {"resume": "allow"}),
    "MLFlowLogger": ("run_id", {}),
}
"""The setting of a logger that names its run, and further settings for resuming it"""


class Tracking(pl.Callback):
    """Keeps the ids that W&B and MLflow gave the run in ``tracking.json`` of the run folder."""

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them, if there are any; an MLflow run that ended with an earlier attempt is running again."""
        for logger in _of_mlflow(trainer.loggers):
            logger.experiment.update_run(logger.run_id, status="RUNNING")
        ids = {type(logger).__name__: str(_id(logger)) for logger in trainer.loggers if _id(logger) is not None}
        file = Path(trainer.default_root_dir) / _FILE
        if ids:
            with replacing_file(file) as stream:
                stream.write(json.dumps(ids) + "\n")


def _of_mlflow(loggers: Iterable[Any]) -> list[Any]:
    return [logger for logger in loggers if type(logger).__name__ == "MLFlowLogger"]


@rank_zero_only
def mark_preempted(loggers: Iterable[Logger]) -> None:
    """Mark a run as preempted: Lightning has reported a failure to MLflow; W&B has no such state."""
    for logger in _of_mlflow(loggers):
        logger.finalize("KILLED")


def _id(logger: Logger) -> Any:
    """The run's id, an attribute with the setting's name; W&B's is its version."""
    kind = type(logger).__name__
    if kind not in _SETTINGS:
        return None
    return logger.version if kind == "WandbLogger" else logger.run_id  # type: ignore[attr-defined]


def kept_settings(run: Path, class_path: str) -> dict[str, Any]:
    """Settings with which a recipe's logger continues the run of a folder.

    Args:
        run: the run folder.
        class_path: of the logger.

    Returns:
        dict: settings of the logger; empty if it has no runs, or if none was kept.
    """
    kind = class_path.rpartition(".")[2]
    file = run / _FILE
    if kind not in _SETTINGS or not file.is_file():
        return {}
    ids = json.loads(file.read_text())
    setting, more = _SETTINGS[kind]
    return {setting: ids[kind], **more} if kind in ids else {}


class EventLog(TensorBoardLogger):
    """TensorBoard events in ``RUN/tensorboard``, each step once.

    Args:
        run: the run folder.
        purge_step: the step that is resumed from: later events of an earlier attempt are not shown.
    """

    def __init__(self, run: str | Path, purge_step: int | None = None) -> None:
        """Open nothing yet."""
        super().__init__(str(run), name="tensorboard", version="", purge_step=purge_step, default_hp_metric=False)
