"""``align fit|validate|test|predict``: the Lightning CLI with our defaults."""

import argparse
import contextlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from pydoc import locate
from types import MappingProxyType
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from align.algorithms.memory_estimate import explain_out_of_memory, out_of_memory
from align.algorithms.memory_report import MemoryReport
from align.algorithms.ppo import PPO
from align.algorithms.prediction import Prediction
from align.callbacks.baseline import Baseline
from align.callbacks.cost import Cost
from align.callbacks.health import Health
from align.callbacks.health_checks import DEFAULT_CHECKS
from align.callbacks.loggers import EventLog, RunLog, Tracking, kept_settings, mark_preempted
from align.callbacks.model_directory import ModelDirectory
from align.callbacks.samples import TextSamples
from align.callbacks.throughput import Throughput
from align.cli.code_settings import code_settings
from align.cli.data_sizes import data_sizes
from align.cli.errors import OutOfMemory, UsageError
from align.cli.keys import check_nulls, explain, keep_nulls, key_of
from align.curate.doctor import Doctor
from align.io.atomic import replacing_file
from align.io.code import search_working_directory
from align.pipeline.recipes import find_configs
from align.pipeline.run_lock import run_lock
from align.training.checkpoint_files import SETTINGS, absence, damage, find_whole, global_step, read_fields
from align.training.checkpointing import FOLDER, Checkpoints
from align.training.preemption import Preempted, forget, interrupted, requeue
from align.training.qlora import WRONG_PLUGIN
from align.training.resume import describe_changes, flat_settings, refuse_changes, settings_changes
from align.training.weight_average import WeightAverage

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

_TRAINER_DEFAULTS = {
    "default_root_dir": "runs/unnamed",
    # Our samplers shard by rank and resume exactly; Lightning's replacement does neither.
    "use_distributed_sampler": False,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    # Stage.setup prints one line instead: Lightning's table shows FLOPs that it does not count.
    "enable_model_summary": False,
    "max_epochs": 1,
}

_NO_SETTINGS = ("config", "ckpt_path")
"""What names files of the command, rather than being a setting of the run"""

_TOO_FEW_BATCHES = re.compile(r"`val_check_interval` \((\d+)\) must be .* number of the training batches \((\d+)\)")


class AlignCLI(LightningCLI):
    """LightningCLI plus ``--run``, ``--ckpt_path`` and the callbacks of every run.

    Args:
        *args: of LightningCLI.
        verb: fit, validate, test or predict; only fit writes into the run folder itself.
        **kwargs: of LightningCLI.
    """

    ckpt_path: Path | None = None
    settings: Mapping[str, Any] = MappingProxyType({})
    """Every setting by its key, and the hash of the code of each class of a user by ``KEY.code``"""

    def __init__(self, *args: Any, verb: str = "fit", **kwargs: Any) -> None:
        """Parse and build."""
        self.verb = verb
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our arguments."""
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
            help="Checkpoint to resume or to evaluate: a file, or last for the run's newest intact one, if any",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        # First, so that it stops a run before the others write values that are not finite.
        parser.add_lightning_class_args(Health, "health")
        parser.set_defaults({"health.checks": [{"class_path": f"{c.__module__}.{c.__name__}"} for c in DEFAULT_CHECKS]})
        parser.add_lightning_class_args(ModelDirectory, "model_directory")
        parser.add_lightning_class_args(TextSamples, "samples")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(Baseline, "baseline")
        # Last, so that the others write the average before the trained weights are restored.
        parser.add_lightning_class_args(WeightAverage, "average")
        # Read by `align doctor` and by `align run` before it trains.
        parser.add_class_arguments(Doctor, "doctor")
        _refuse_sub_configs(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with a mistake reported in one line."""
        try:
            super().parse_arguments(parser, args)
            check_nulls(self.config, parser)
        except (argparse.ArgumentError, OmegaConfBaseException, TypeError, ValueError) as error:
            raise UsageError(explain(str(error))) from error

    def before_instantiate_classes(self) -> None:
        """Choose the precision if the recipe does not, and find the checkpoint."""
        trainer = self.config.trainer
        if trainer.precision is None and not _brings_precision(trainer.plugins):
            trainer.precision = default_precision(str(trainer.accelerator))
        given = self.config.as_dict()
        settings = flat_settings({name: given[name] for name in given if name not in _NO_SETTINGS})
        self.settings = settings | code_settings(settings)
        self.find_run()
        if self.verb == "fit" and self.ckpt_path is not None:
            self.compare_settings(self.ckpt_path)

    def find_run(self) -> None:
        """Find the checkpoint, and have the loggers continue its run."""
        run = Path(self.config.trainer.default_root_dir)
        # Lightning hands the first rank's path to the others, so they need not verify the whole checkpoint again.
        follows = _rank() > 0 and _is_sharded(self.config.trainer.strategy)
        self.ckpt_path = _find_checkpoint(self.config.ckpt_path, run, judge=absence if follows else damage)
        loggers = self.config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if self.ckpt_path is not None and hasattr(logger, "class_path"):
                for name, value in kept_settings(run, logger.class_path).items():
                    if logger.init_args.get(name) is None or name == "resume":
                        logger.init_args[name] = value

    def compare_settings(self, checkpoint: Path) -> None:
        """Say which settings differ from the checkpoint's.

        Raises:
            UsageError: one of them must not.
        """
        stored = read_fields(checkpoint)
        if SETTINGS not in stored:
            _warn(f"{checkpoint} records no settings, so they are not compared with those of this run")
        changes = settings_changes(stored.get(SETTINGS, self.settings), self.settings)
        try:
            refuse_changes(changes, f"{checkpoint} (step {stored.get('global_step')})")
        except ValueError as error:
            raise UsageError(str(error)) from error
        effect, warnings = describe_changes(changes)
        if effect and _rank() == 0:
            print(f"resuming from {checkpoint} with changed settings: {effect}", file=sys.stderr, flush=True)
        for line in warnings:
            _warn(f"resuming from {checkpoint} with {line}")

    def instantiate_classes(self) -> None:
        """Build data, stage and Trainer; a setting that they reject is a mistake of the recipe."""
        # After Lightning's instantiators of stage and data, which take precedence.
        self.parser.add_instantiator(self._instantiate_variant, object)
        try:
            super().instantiate_classes()
            if names := getattr(self.model, "add_tokens", ()):
                self.datamodule.tokenizer = self.datamodule.tokenizer.with_added_tokens(names)
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(explain(str(error))) from error

    def _instantiate_variant(self, kind: type, /, *args: Any, **kwargs: Any) -> Any:
        """An instance of a class that a setting names; an error of its own names the setting.

        Raises:
            ValueError: the class rejects its settings.
        """
        try:
            return kind(*args, **kwargs)
        except ValueError as error:
            key = key_of(kind, self.config.as_dict())
            raise (ValueError(f"{key}: {error}") if key else error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that logs into the run folder: metrics.csv, and TensorBoard unless the recipe names loggers.

        Other verbs than fit log into a folder of their own below it: metrics.csv and config.yaml of the training stay.
        """
        run, given = Path(self.config.trainer.default_root_dir), self.config_init.trainer.logger
        if self.verb != "fit":
            kwargs["logger"] = RunLog(run / self.verb)
        elif given in (None, True):
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
                # After ModelDirectory, because Cost adds to its manifest; before checkpoints, which keep Cost's counts.
                callbacks[number + 1 : number + 1] = [
                    Cost(),
                    Prediction(partial(data_sizes, self.datamodule, self.model)),
                ]
                break
        for callback in callbacks:
            if isinstance(callback, Checkpoints):
                callback.settings = self.settings
        callbacks.append(MemoryReport())
        if trainer.loggers and self.verb == "fit":
            callbacks += [Tracking(), LearningRateMonitor("step")]
        return trainer


def _refuse_sub_configs(parser: LightningArgumentParser) -> None:
    """Have settings take a path as it is.

    Where a setting can be a class or a list of classes, jsonargparse reads the file that its value names as YAML:
    ``train: alpaca.json`` would become a list with one entry for each record.
    """
    actions: list[Any] = parser._actions
    for action in actions:
        if hasattr(action, "sub_add_kwargs"):
            action._enable_path = False
            action.sub_add_kwargs["sub_configs"] = False


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` once training begins: a run that is refused or has nothing to do keeps the old one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it for other verbs than fit, into their own folder."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().setup(trainer, pl_module, "fit")


def _brings_precision(plugins: Any) -> bool:
    """Whether a plugin of the recipe decides the precision; Lightning rejects a second setting of it.

    Raises:
        UsageError: our stages cannot train with the plugin.
    """
    listed = plugins if isinstance(plugins, list) else [plugins]
    kinds = [kind for plugin in listed if isinstance(kind := locate(getattr(plugin, "class_path", "")), type)]
    if any(issubclass(kind, BitsandbytesPrecision) for kind in kinds):
        raise UsageError(WRONG_PLUGIN)
    return any(issubclass(kind, Precision) for kind in kinds)


def _is_sharded(strategy: Any) -> bool:
    """Whether all ranks load checkpoints from the first rank's path."""
    kind = locate(getattr(strategy, "class_path", ""))
    return isinstance(kind, type) and issubclass(kind, ModelParallelStrategy)


def default_precision(accelerator: str) -> str:
    """bf16-mixed on a GPU with bfloat16 units, float32 elsewhere: a CPU without them is four times slower in bfloat16.

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
        int: exit code; 0 also for a run that was preempted and can be resumed.

    Raises:
        UsageError: a key, type, path or value of the recipe or the command line is wrong.
        OutOfMemory: a training step needs more memory than the device has.
        ValueError: the checkpoint is damaged, or another process uses the run folder.
    """
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    args, notes = find_configs(args)
    for note in notes if _rank() == 0 else []:
        print(note, file=sys.stderr, flush=True)
    cli = make_cli(args, verb=verb)
    run = Path(cli.config.trainer.default_root_dir)
    # The first rank starts the others, so its lock covers them. Other verbs than fit write into a folder of their own.
    with run_lock(run if verb == "fit" else run / verb) if _rank() == 0 else contextlib.nullcontext():
        if verb == "fit":
            _fit(cli)
            return 0
        result = getattr(cli.trainer, verb)(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
        if verb == "predict" and (rows := _rows_of_all_ranks(cli.trainer, result)) is not None:
            _write_predictions(run / "predictions.jsonl", rows)
    return 0


def _fit(cli: "AlignCLI") -> None:
    """Train; when preempted, return after the checkpoint is saved.

    Raises:
        KeyboardInterrupt: the run was interrupted with Ctrl-C, whether a checkpoint could be saved or not.
    """
    forget()
    trainer = cli.trainer
    if not (trainer.max_epochs and trainer.max_steps):
        raise UsageError(
            f"trainer.max_epochs is {trainer.max_epochs} and trainer.max_steps is {trainer.max_steps}: no step "
            "can be made; set both above 0, or the one that is not the limit to -1"
        )
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path)
    except ValueError as error:
        if found := _TOO_FEW_BATCHES.search(str(error)):
            raise UsageError(
                f"trainer.val_check_interval is {found[1]}, but an epoch has {found[2]} batches; lower it, or set "
                "trainer.check_val_every_n_epoch to null, which counts batches across epochs"
            ) from error
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        batch_size = None if isinstance(cli.model, PPO) else getattr(cli.datamodule, "batch_size", None)
        raise OutOfMemory(explain_out_of_memory(cli.model, batch_size=batch_size)) from error
    except Preempted as end:
        mark_preempted(cli.trainer.loggers)
        if _rank() == 0:
            for line in (
                f"{end}; to resume, repeat the command with --ckpt_path last, or the same align run",
                requeue(),
            ):
                if line:
                    print(line, file=sys.stderr, flush=True)
        if interrupted():
            raise KeyboardInterrupt from None
    except SystemExit as end:
        # Lightning exits with 1 on Ctrl-C before training, when no checkpoint can be saved.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    else:
        if not any(isinstance(each, Checkpoints) and each.began for each in trainer.callbacks):  # type: ignore[attr-defined]
            _explain_idle(cli)


def _explain_idle(cli: "AlignCLI") -> None:
    """Say why no step was made: the run is finished, and its model is there; or it is a mistake.

    Raises:
        UsageError: the settings leave no step to make, or the checkpoint is that of another, finished run.
    """
    trainer, run = cli.trainer, Path(cli.config.trainer.default_root_dir)
    step, limits = trainer.global_step, f"trainer.max_steps {trainer.max_steps}, max_epochs {trainer.max_epochs}"
    if cli.ckpt_path is None:
        raise UsageError(
            f"no step can be made with trainer.limit_train_batches {trainer.limit_train_batches}, max_time "
            f"{cli.config.trainer.max_time}, {limits}; raise what is 0"
        )
    if 0 <= trainer.max_steps < step:
        raise UsageError(
            f"trainer.max_steps is {trainer.max_steps}, but {cli.ckpt_path} is at step {step}; set it above"
        )
    if Path(cli.ckpt_path).resolve().parent != (run / FOLDER).resolve():
        raise UsageError(
            f"{cli.ckpt_path} belongs to a finished run (step {step}; {limits}), so nothing is left to train here: "
            "raise trainer.max_steps or max_epochs, or set model.init_args.init_from to the model directory of that run"
        )
    writers = [each for each in trainer.callbacks if isinstance(each, ModelDirectory)]  # type: ignore[attr-defined]
    written = all([writer.write_missing(trainer, cli.model) for writer in writers])
    if _rank() == 0:
        model = f"its model is {run / 'model'}" if written else f"{run / 'model'} is missing; use align export"
        print(
            f"{run} is finished (step {step}; {limits}): {model}; to train on, raise trainer.max_steps or max_epochs",
            file=sys.stderr,
        )


def _rank() -> int:
    """This process's rank, from its launcher's environment, so that it is known before the Trainer exists."""
    return int(getattr(rank_zero_only, "rank", 0))


def _warn(line: str) -> None:
    if _rank() == 0:
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _find_checkpoint(asked: str | None, run: Path, *, judge: Callable[[Path], str | None] = damage) -> Path | None:
    """The checkpoint that --ckpt_path names; ``judge`` gives the damage of one, if any.

    Raises:
        ValueError: it is damaged, or with ``last`` all of the run's checkpoints are.
    """
    if asked is None:
        return None
    if asked == "last":
        found = find_whole(run / FOLDER, _warn, judge)
        if found is None and _rank() == 0:
            print(f"{run / FOLDER} has no checkpoint yet; starting from scratch", file=sys.stderr)
        return found
    reason = judge(Path(asked))
    if reason is not None:
        raise ValueError(f"--ckpt_path {asked}: {reason}; give --ckpt_path last for the run's newest intact one")
    return Path(asked)


def _rows_of_all_ranks(trainer: Trainer, batches: list[list[dict[str, float]]]) -> list[dict[str, float]] | None:
    """Rows of predictions in the order of the file, on rank 0; None on the others.

    Each rank takes a strided slice of every global batch, so the rows of one are interleaved.
    """
    module: Any = trainer.lightning_module
    gathered = [(module.sharing.rank, batches)]
    if trainer.world_size > 1:
        gathered *= trainer.world_size
        torch.distributed.all_gather_object(gathered, (module.sharing.rank, batches))
    if not trainer.is_global_zero:
        return None
    # Devices of a tensor-parallel group have the same rows.
    ranks = [rows for _, rows in sorted(dict(gathered).items())]
    interleaved = (row for parts in zip(*ranks, strict=True) for rows in zip_longest(*parts) for row in rows)
    return [row for row in interleaved if row is not None]


def _write_predictions(file: Path, rows: list[dict[str, float]]) -> None:
    with replacing_file(file) as stream:
        stream.writelines(json.dumps({"row": number} | row) + "\n" for number, row in enumerate(rows))
    print(f"wrote {file} ({len(rows)} rows)")


def make_cli(
    args: list[str], *, verb: str = "fit", parse_only: bool = False, kind: type[AlignCLI] = AlignCLI
) -> AlignCLI:
    """The Lightning CLI with our defaults; the caller runs its Trainer.

    The verb is not one of LightningCLI's subcommands, because below a subcommand ``${run}`` would need its name.

    Args:
        args: the command line after the verb.
        verb: fit, validate, test or predict.
        parse_only: read the recipe without building anything.
        kind: class of the CLI.

    Returns:
        AlignCLI: with ``config``, and with ``model``, ``datamodule`` and ``trainer`` unless parse_only.

    Raises:
        UsageError: a key, type, path or value of the recipe or the command line is wrong.
    """
    _hush()
    args = keep_nulls(args)
    search_working_directory()  # for the class paths of a recipe
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        return (_ParseOnly if parse_only else kind)(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=_TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={
                "prog": f"align {verb}",
                "usage": f"align {verb} --config RECIPE [--config OVERLAY ...] [--KEY VALUE ...]",
                "description": f"Example: align {verb} --config recipes/tiny/sft.yaml --trainer.max_steps 10. "
                "`align recipes` lists recipes; --model.help CLASS and --data.help CLASS print the settings of a stage "
                "and of a data module.",
                "parser_mode": "omegaconf+",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            args=args,
            run=False,
            verb=verb,
        )


def _hush() -> None:
    """Silence Lightning's advertising, and deprecation warnings that only Lightning's code can fix."""
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Validation data is optional.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # Baseline logs the first step of every run.
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval")
    # Only their callers can follow them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torchao)\b")
    warnings.formatwarning = _one_line
    # Our metrics are reduced over ranks before they are logged.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # Frozen networks are in eval mode on purpose.
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    for name in ("pytorch.utilities.rank_zero", "pytorch.trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.{name}").addFilter(_is_news)
    # peft imports bitsandbytes if it is installed, which logs a kernel that it lacks on this machine.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # peft imports torchao if it is installed, which logs kernels that it lacks on this machine.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a user reads it: where in the source it was raised helps only with those of other libraries."""
    ours = {"align", "lightning"} & {*Path(filename).parts}
    return f"warning: {message}\n" if ours else f"{filename}:{lineno}: {category.__name__}: {message}\n"


_NO_NEWS = ("litlogger", "`weights_only` was not set", "Loading `train_dataloader` to estimate", "TPU available")
"""Parts of what Lightning logs that tell a user nothing"""


def _is_news(record: logging.LogRecord) -> bool:
    return not any(part in str(record.msg) for part in _NO_NEWS)


class _ParseOnly(AlignCLI):
    """Reads a recipe and stops."""

    def find_run(self) -> None:
        """Skip it."""

    def instantiate_classes(self) -> None:
        """Skip it."""
