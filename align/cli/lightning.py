"""``align fit|validate|test|predict``: the Lightning CLI with our defaults."""

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from align.callbacks import Cost, Health, ModelDirectory, RunLog, TextSamples, Throughput, WeightAverage
from align.cli.errors import OutOfMemory, UsageError
from align.cli.keys import explain
from align.stages import PPO
from align.stages.footprint import explain_out_of_memory, out_of_memory

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

_TRAINER_DEFAULTS = {
    "default_root_dir": "runs/unnamed",
    # Our samplers shard by rank and resume exactly; Lightning's replacement does neither.
    "use_distributed_sampler": False,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    # One line of ours instead (Stage.setup): Lightning's table counts FLOPs it does not know.
    "enable_model_summary": False,
    "max_epochs": 1,
}
_CHECKPOINT_DEFAULTS = {
    "checkpoint.save_last": True,
    "checkpoint.save_top_k": 0,
    "checkpoint.every_n_train_steps": 100,
    "checkpoint.save_on_train_epoch_end": True,
    "checkpoint.enable_version_counter": False,
}


class AlignCLI(LightningCLI):
    """LightningCLI plus ``--run``, ``--ckpt_path`` and the callbacks every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is ours."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Folder of the whole pipeline's runs; recipes refer to it as ${run}",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to go on from or to look at: a file, or last for the run's newest",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(_CHECKPOINT_DEFAULTS)
        # First, so that it stops a run before the others write what is not finite.
        parser.add_lightning_class_args(Health, "health")
        parser.add_lightning_class_args(ModelDirectory, "model_directory")
        parser.add_lightning_class_args(TextSamples, "samples")
        parser.add_lightning_class_args(Throughput, "throughput")
        # Last, so that the others have written the average before it goes.
        parser.add_lightning_class_args(WeightAverage, "average")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with a mistake told in one line."""
        try:
            super().parse_arguments(parser, args)
        except (argparse.ArgumentError, OmegaConfBaseException, TypeError, ValueError) as error:
            raise UsageError(explain(str(error))) from error

    def before_instantiate_classes(self) -> None:
        """Choose the precision that nothing else chose."""
        trainer = self.config.trainer
        if trainer.precision is None:
            trainer.precision = default_precision(str(trainer.accelerator))

    def instantiate_classes(self) -> None:
        """Build data, stage and Trainer; what they refuse is a mistake of the recipe."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(explain(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that logs into the run folder, unless the recipe names its own loggers."""
        settings = self.config.trainer
        if settings.logger in (None, True):
            run = settings.default_root_dir
            kwargs["logger"] = [RunLog(run), TensorBoardLogger(run, name="tensorboard", version="")]
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for number, callback in enumerate(callbacks):
            if isinstance(callback, ModelDirectory):
                callback.recipe = {key: self.config_dump[key] for key in ("seed_everything", "model", "data")}
                # Behind it, as it adds to its manifest, and before checkpoints, which keep its counts.
                callbacks.insert(number + 1, Cost())
                break
        if trainer.loggers:
            callbacks.append(LearningRateMonitor("step"))
        return trainer


def default_precision(accelerator: str) -> str:
    """bf16-mixed on a GPU that has bfloat16, float32 elsewhere: CPUs without its units are four times slower in it.

    Args:
        accelerator: the Trainer's setting.
    """
    on_gpu = accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def main(verb: str, args: list[str]) -> int:
    """Run one of the Lightning verbs.

    Args:
        verb: fit, validate, test or predict.
        args: the rest of the command line.

    Returns:
        int: exit code.

    Raises:
        UsageError: a key, type, path or value of the recipe or the command line is wrong.
        OutOfMemory: what a step holds is too large.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    cli = make_cli(args)
    run = getattr(cli.trainer, verb)
    try:
        result = run(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path)
    except (RuntimeError, MemoryError) as error:
        if verb != "fit" or not out_of_memory(error):
            raise
        batch_size = None if isinstance(cli.model, PPO) else getattr(cli.datamodule, "batch_size", None)
        raise OutOfMemory(explain_out_of_memory(cli.model, batch_size=batch_size)) from error
    if verb == "predict":
        _write_predictions(Path(cli.config.trainer.default_root_dir) / "predictions.jsonl", result)
    return 0


def _write_predictions(file: Path, batches: list[list[dict[str, float]]]) -> None:
    rows = [json.dumps({"row": number} | row) for number, row in enumerate(row for batch in batches for row in batch)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n")
    print(f"wrote {file} ({len(rows)} rows)")


def make_cli(args: list[str], *, parse_only: bool = False) -> AlignCLI:
    """The Lightning CLI with our defaults; the caller runs its Trainer.

    The verb is ours, not one of LightningCLI's subcommands: below a subcommand ``${run}`` could not be written so.

    Args:
        args: the command line after the verb.
        parse_only: read the recipe and build nothing.

    Returns:
        AlignCLI: with ``config``, and with ``model``, ``datamodule`` and ``trainer`` unless parse_only.

    Raises:
        UsageError: a key, type, path or value of the recipe or the command line is wrong.
    """
    _hush()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        return (_ParseOnly if parse_only else AlignCLI)(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False},
            args=args,
            run=False,
        )


def _hush() -> None:
    """Leave out what Lightning says of its own affairs: advertising, and torch's deprecations inside it."""
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # What our metrics log has been added up over ranks already.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # Frozen networks are in eval mode, and are meant to be.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)


class _ParseOnly(AlignCLI):
    """Reads a recipe and stops."""

    def instantiate_classes(self) -> None:
        """Build nothing."""
