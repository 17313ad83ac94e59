"""Loggers with the names and settings of W&B's and MLflow's, that keep what they are told."""

from types import SimpleNamespace

from lightning.pytorch.loggers import Logger

TOLD: dict[str, list[tuple]] = {}
"""What each run was told, by its id"""


class _StandIn(Logger):
    def __init__(self, run: str | None, kind: str) -> None:
        self.run = run or f"{kind}-{len(TOLD)}"
        self.told = TOLD.setdefault(self.run, [])

    @property
    def name(self):
        return "stand-in"

    @property
    def version(self):
        return self.run

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.told.append(("step", step, *sorted(metrics)))

    def finalize(self, status):
        self.told.append(("status", status))


class WandbLogger(_StandIn):
    def __init__(self, id: str | None = None, resume: str | None = None) -> None:
        super().__init__(id, "wandb")
        self.told.append(("begun", resume))


class MLFlowLogger(_StandIn):
    def __init__(self, run_id: str | None = None) -> None:
        super().__init__(run_id, "mlflow")
        self.run_id = self.run
        self.experiment = SimpleNamespace(update_run=lambda run, status: self.told.append(("status", run, status)))
