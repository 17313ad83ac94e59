"""W&B and MLflow are handed the id of the run they began; TensorBoard hides what is logged again."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from align.callbacks.loggers import EventLog, Tracking, kept_settings


class WandbLogger:
    version = "abc123"


class MLFlowLogger:
    run_id = "0123456789abcdef"
    experiment = SimpleNamespace(update_run=lambda run, status: None)


class CometLogger:
    version = "x"


def test_ids_are_kept_and_handed_back(tmp_path: Path):
    assert kept_settings(tmp_path, "lightning.pytorch.loggers.WandbLogger") == {}
    trainer = SimpleNamespace(loggers=[WandbLogger(), MLFlowLogger(), CometLogger()], default_root_dir=str(tmp_path))
    Tracking().on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert kept_settings(tmp_path, "lightning.pytorch.loggers.WandbLogger") == {"id": "abc123", "resume": "allow"}
    assert kept_settings(tmp_path, "lightning.pytorch.loggers.MLFlowLogger") == {"run_id": "0123456789abcdef"}
    assert kept_settings(tmp_path, "lightning.pytorch.loggers.CometLogger") == {}


def test_without_such_loggers_nothing_is_written(tmp_path: Path):
    trainer = SimpleNamespace(loggers=[CometLogger()], default_root_dir=str(tmp_path))
    Tracking().on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["WandbLogger", "MLFlowLogger"])
def test_the_names_are_settings_of_lightnings_loggers(kind: str):
    import inspect

    from lightning.pytorch import loggers

    setting = {"WandbLogger": "id", "MLFlowLogger": "run_id"}[kind]
    assert setting in inspect.signature(getattr(loggers, kind).__init__).parameters


def test_tensorboard_shows_each_step_once(tmp_path: Path):
    """Logged to step 5, killed, gone on from step 3: 0, 1, 2 of the first try, 3 to 7 of the second."""
    for first, last, purge in ((0, 6, None), (3, 8, 3)):
        log = EventLog(tmp_path, purge)
        for step in range(first, last):
            log.log_metrics({"loss": float(10 * first + step)}, step)
        log.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(n, n) for n in range(3)] + [
        (n, 30 + n) for n in range(3, 8)
    ]
