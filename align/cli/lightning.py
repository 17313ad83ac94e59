"""``align fit|validate|test|predict``: the Lightning CLI with our defaults."""

import argparse
import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from pydoc import locate
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from align.algorithms.memory_estimate import explain_out_of_memory, out_of_memory
from align.algorithms.ppo import PPO
from align.callbacks.cost import Cost
from align.callbacks.health import Health
from align.callbacks.loggers import EventLog, RunLog, Tracking, kept_settings, mark_preempted
from align.callbacks.model_directory import ModelDirectory
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput
from align.cli.errors import OutOfMemory, UsageError
from align.cli.keys import check_nulls, explain, keep_nulls
from align.pipeline.recipes import find_configs
from align.pipeline.run_lock import run_lock
from align.training.checkpoint_files import absence, damage, find_whole, global_step
from align.training.checkpointing import FOLDER, Checkpoints
from align.training.preemption import Preempted, forget, requeue
from align.training.qlora import WRONG_PLUGIN
from align.training.weight_average import WeightAverage

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
            help="Checkpoint to go on from or to look at: a file, or last for the run's newest whole one, if any",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
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
            for group in ("model", "data"):
                check_nulls(group, self.config[group])
        except (argparse.ArgumentError, OmegaConfBaseException, TypeError, ValueError) as error:
            raise UsageError(explain(str(error))) from error

    def before_instantiate_classes(self) -> None:
        """Choose the precision that nothing else chose, and find what to go on from."""
        trainer = self.config.trainer
        if trainer.precision is None and not _brings_precision(trainer.plugins):
            trainer.precision = default_precision(str(trainer.accelerator))
        self.find_run()

    def find_run(self) -> None:
        """Find the checkpoint, and have the loggers go on with its run."""
        run = Path(self.config.trainer.default_root_dir)
        # Lightning hands the path of the first rank to the others: they need not read all of what it found whole.
        follows = _rank() > 0 and _is_sharded(self.config.trainer.strategy)
        self.ckpt_path = _find_checkpoint(self.config.ckpt_path, run, judge=absence if follows else damage)
        loggers = self.config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if self.ckpt_path is not None and hasattr(logger, "class_path"):
                for name, value in kept_settings(run, logger.class_path).items():
                    if logger.init_args.get(name) is None or name == "resume":
                        logger.init_args[name] = value

    def instantiate_classes(self) -> None:
        """Build data, stage and Trainer; what they refuse is a mistake of the recipe."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(explain(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that logs into the run folder: metrics.csv, and TensorBoard unless the recipe names loggers."""
        run, given = self.config.trainer.default_root_dir, self.config_init.trainer.logger
        if given in (None, True):
            begun = None if self.ckpt_path is None else global_step(self.ckpt_path)
            kwargs["logger"] = [RunLog(run), EventLog(run, purge_step=begun)]
        elif given is not False:
            # metrics.csv is what align export and align compare read.
            loggers = given if isinstance(given, list) else [given]
            kwargs["logger"] = [RunLog(run), *(logger for logger in loggers if not isinstance(logger, RunLog))]
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for number, callback in enumerate(callbacks):
            if isinstance(callback, ModelDirectory):
                callback.recipe = {key: self.config_dump[key] for key in ("seed_everything", "model", "data")}
                # Behind it, as it adds to its manifest, and before checkpoints, which keep its counts.
                callbacks.insert(number + 1, Cost())
                break
        if trainer.loggers:
            callbacks += [Tracking(), LearningRateMonitor("step")]
        return trainer


def _brings_precision(plugins: Any) -> bool:
    """Whether a plugin of the recipe decides the precision: Lightning refuses two that do.

    Raises:
        UsageError: it is one that our stages can't train with.
    """
    listed = plugins if isinstance(plugins, list) else [plugins]
    kinds = [kind for plugin in listed if isinstance(kind := locate(getattr(plugin, "class_path", "")), type)]
    if any(issubclass(kind, BitsandbytesPrecision) for kind in kinds):
        raise UsageError(WRONG_PLUGIN)
    return any(issubclass(kind, Precision) for kind in kinds)


def _is_sharded(strategy: Any) -> bool:
    """Whether the strategy takes up checkpoints by the first rank's path."""
    kind = locate(getattr(strategy, "class_path", ""))
    return isinstance(kind, type) and issubclass(kind, ModelParallelStrategy)


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
        int: exit code; 0 also for a run that was asked to leave and can be taken up again.

    Raises:
        UsageError: a key, type, path or value of the recipe or the command line is wrong.
        OutOfMemory: what a step holds is too large.
        ValueError: the checkpoint is damaged, or another process is at work in the run folder.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    args, notes = find_configs(args)
    for note in notes if _rank() == 0 else []:
        print(note, file=sys.stderr, flush=True)
    cli = make_cli(args)
    run = Path(cli.config.trainer.default_root_dir)
    if verb == "fit":
        # The other ranks are processes of the first one's making.
        with run_lock(run) if _rank() == 0 else contextlib.nullcontext():
            _fit(cli)
        return 0
    result = getattr(cli.trainer, verb)(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
    if verb == "predict":
        _write_predictions(run / "predictions.jsonl", result)
    return 0


def _fit(cli: "AlignCLI") -> None:
    """Train; leave in good order when asked to."""
    forget()
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        batch_size = None if isinstance(cli.model, PPO) else getattr(cli.datamodule, "batch_size", None)
        raise OutOfMemory(explain_out_of_memory(cli.model, batch_size=batch_size)) from error
    except Preempted as end:
        mark_preempted(cli.trainer.loggers)
        if _rank() == 0:
            for line in (f"{end}; the same command with --ckpt_path last, or the same align run, goes on", requeue()):
                if line:
                    print(line, file=sys.stderr, flush=True)


def _rank() -> int:
    """This process's, as its launcher tells; known before the Trainer is."""
    return int(getattr(rank_zero_only, "rank", 0))


def _warn(line: str) -> None:
    if _rank() == 0:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _find_checkpoint(asked: str | None, run: Path, *, judge: Callable[[Path], str | None] = damage) -> Path | None:
    """The checkpoint that --ckpt_path means; ``judge`` says what is wrong with one.

    Raises:
        ValueError: it is damaged; of a run's checkpoints, all are.
    """
    if asked is None:
        return None
    if asked == "last":
        found = find_whole(run / FOLDER, _warn, judge)
        if found is None and _rank() == 0:
            print(f"{run / FOLDER} has no checkpoint yet: starting anew", file=sys.stderr)
        return found
    reason = judge(Path(asked))
    if reason is not None:
        raise ValueError(f"--ckpt_path {asked}: {reason}; last takes the newest whole one of the run")
    return Path(asked)


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
    args = keep_nulls(args)
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
    # peft imports torchao where it is installed, which tells of its kernels for other machines.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


class _ParseOnly(AlignCLI):
    """Reads a recipe and stops."""

    def find_run(self) -> None:
        """Look for nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""
