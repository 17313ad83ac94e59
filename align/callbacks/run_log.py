"""metrics.csv in the run folder, continued when a run is resumed."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from typing_extensions import override


class RunLog(CSVLogger):
    """Writes ``metrics.csv`` straight into the run folder.

    Rows of an earlier try stay up to the first row that is logged again, so a resumed run continues its file and a
    fresh run replaces it. A step may have several rows (of training, of its validation): they are told apart by their
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
    """Whether an earlier row is of a later step, or tells the same of this one."""
    return int(row["step"]) > step or any(row.get(name) for name in columns)
