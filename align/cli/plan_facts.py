"""A recipe as a ``Job`` of ``align.plan``: networks, settings, and how much data there is; no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from pydoc import locate as locate_class
from typing import Any

import jsonargparse
import torch

from align.algorithms.kto import KTO
from align.algorithms.module import Stage
from align.algorithms.planning import (
    Source,
    is_model_parallel,
    networks_to_load,
    reads_reference,
    rollout_of,
    stage_settings,
    with_teacher,
)
from align.algorithms.ppo import PPO
from align.cli.data_sizes import RECORDS, data_sizes
from align.cli.errors import UsageError
from align.cli.keys import explain
from align.cli.lightning import AlignCLI, default_precision, make_cli
from align.data.data_module import TokenData
from align.data.pair_data import PromptData
from align.data.response_data import ResponseData
from align.io.adapter_directory import base_source, read_adapter, read_lora
from align.io.hub import explained
from align.io.location import locate, read_config
from align.io.manifest import is_adapter
from align.model.config import GPTConfig
from align.plan.hardware import Hardware
from align.plan.job import Job, Rollout, Volume
from align.plan.precision import PRECISIONS, Precision, precision_of
from align.plan.strategy import Strategy
from align.plan.volume import DataSizes, rollout_volume, training_volume
from align.rewards.functions import SHORT_NAMES


class PlanCLI(AlignCLI):
    """Reads a recipe and builds its stage; its data module too, if its files are there."""

    datamodule: TokenData | None
    no_data: str | None = None
    """Why the data can't be read; None: they can"""

    chooses_precision = False
    """Whether the recipe leaves the precision to the hardware"""

    def before_instantiate_classes(self) -> None:
        """Choose the precision if the recipe does not."""
        self.chooses_precision = self.config.trainer.precision is None and not self.config.trainer.plugins
        super().before_instantiate_classes()

    def find_run(self) -> None:
        """Skip it."""

    def instantiate_classes(self) -> None:
        """Build the stage, and the data module if it can be.

        Raises:
            UsageError: the stage rejects its settings.
        """
        self.parser.add_instantiator(self._instantiate_variant, object)
        try:
            self.model = self.parser.instantiate_classes(jsonargparse.Namespace(model=self.config.model)).model
        except ValueError as error:
            raise UsageError(explain(str(error))) from error
        self.datamodule, self.no_data = None, _missing(self.config.data.init_args.get("train"))
        if self.no_data is not None:
            return
        try:
            self.datamodule = self.parser.instantiate_classes(jsonargparse.Namespace(data=self.config.data)).data
        except (OSError, ValueError) as error:
            self.no_data = explain(str(error)).splitlines()[0].partition(";")[0]


def _missing(train: Any) -> str | None:
    """The first of the training files that does not exist; None if all do, or may be data sets on the Hub."""
    for entry in [train] if isinstance(train, str) else train or ():
        files = entry if isinstance(entry, str) else entry.get("files")
        for file in [files] if isinstance(files, str) else files or ():
            if Path(file).suffix and not glob(file):
                return f"{file}: no such file"
    return None


def read_job(
    args: list[str],
    *,
    networks: Mapping[str, str] | None = None,
    devices: int | None = None,
    response_tokens: int | None = None,
    on: Hardware | None = None,
    records: int = RECORDS,
) -> Job:
    """The job of a command line of ``align fit``.

    Args:
        args: such as ``--config recipes/tiny/sft.yaml``.
        networks: role -> config.json, or a directory that has one, instead of what the recipe names.
        devices: instead of the recipe's.
        response_tokens: mean length of sampled responses; None: the longest that the recipe allows.
        on: hardware that decides what the recipe leaves to it; None: this machine.
        records: of the training data to read.

    Raises:
        UsageError: a key, type or value of the recipe is wrong, or a network's configuration can't be found.
    """
    cli = make_cli(args, kind=PlanCLI)
    assert isinstance(cli, PlanCLI)
    stage = cli.model
    if not isinstance(stage, Stage):
        raise UsageError(f"align plan reads align's stages, not {type(stage).__name__}")
    settings, trainer = stage_settings(stage), cli.config.trainer
    strategy = _strategy(trainer, devices)
    sizes, assumed = _sizes(cli, stage, records)
    rollout = rollout_of(
        stage,
        prompt_tokens=sizes.prompt,
        longest_prompt=sizes.longest_prompt,
        response_tokens=_response_tokens(stage, response_tokens),
    )
    if rollout is not None and rollout.elsewhere:
        assumed.append("the engine's own memory is not counted; its speed is taken to be align's")
    if rollout is not None and response_tokens is None:
        assumed.append(f"responses have max_new_tokens, {rollout.max_new_tokens}; --response-tokens sets their mean")
    accumulate = trainer.accumulate_grad_batches
    job = Job(
        networks=networks_to_load(stage, sources(cli.config, stage, networks or {}, assumed)),
        rows=_rows(cli, rollout, strategy, accumulate),
        tokens=sizes.longest,
        volume=Volume(None, None, sizes.row),
        precision=_default_precision(on) if cli.chooses_precision and on is not None else precision_in(trainer),
        strategy=strategy,
        accumulate=accumulate,
        accelerator=_accelerator(trainer) if on is None else on.accelerator,
        rollout=rollout,
        **settings,
    )
    if rollout is not None:
        job = replace(job, tokens=rollout.row_positions(micro_batches=accumulate))
    return replace(job, volume=_volume(job, stage, trainer, sizes, tuple(assumed)))


# Networks.


def sources(config: Any, stage: Stage, given: Mapping[str, str], assumed: list[str]) -> dict[str, Source]:
    """The configurations of the networks that a stage would load.

    Args:
        config: the recipe.
        stage: of the recipe, whose networks are not built.
        given: role -> config.json, or a directory that has one, instead of what the recipe names.
        assumed: gets a line for each network that does not exist yet.

    Raises:
        UsageError: a configuration can't be found or read.
    """
    gpt = config.model.init_args.get("gpt")
    names: dict[str, Any] = {"policy": stage.parent, "reference": getattr(stage, "reference_source", None)}
    if hasattr(stage, "teacher_source"):
        names["teacher"] = stage.teacher_source
    if isinstance(stage, PPO):
        names |= {"reward": stage.reward_name, "gold": stage.gold_name}
        names["value"] = stage.value_config.init_from if stage.value_config else None
    found: dict[str, Source] = {}
    for role, name in names.items():
        if role in given:
            found[role] = _read(role, given[role])
        elif role == "policy" and gpt is not None:
            found[role] = Source(GPTConfig(**(gpt.as_dict() if isinstance(gpt, jsonargparse.Namespace) else gpt)))
        elif isinstance(name, str) and name not in SHORT_NAMES and (role not in ("reward", "gold") or "/" in name):
            if role != "policy" and not (Path(name).expanduser().exists() or _is_hub_id(name)):
                # Of the same run, and not trained yet: every stage keeps the shape of what it starts from.
                found[role] = Source(found["policy"].config)
                assumed.append(f"{role} {name} does not exist yet: it has the policy's shape")
            else:
                found[role] = _read(role, name)
    unknown = given.keys() - names.keys()
    if unknown:
        raise UsageError(f"--network names {', '.join(sorted(unknown))}; this stage has {', '.join(names)}")
    return found


def _read(role: str, name: str) -> Source:
    """A network's configuration, by a directory, a Hub id or a config.json.

    Raises:
        UsageError: there is none.
    """
    try:
        path = Path(name).expanduser()
        if is_adapter(name):
            base = locate(base_source(name))
            return Source(read_config(base), read_lora(read_adapter(path), base)[0])
        return Source(read_config(name if path.exists() else _config_of_hub(name)))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the {role}'s configuration can't be read from {name}: {reason}; give a directory with its config.json by "
            f"--network {role}=DIR"
        ) from error


def _is_hub_id(name: str) -> bool:
    """Whether a name that is no local path can be one of the Hub's: owner/name."""
    return name.count("/") == 1 and not name.endswith(".gguf") and not name.startswith((".", "/", "~"))


def _config_of_hub(name: str) -> str | Path:
    """A directory with the config.json of a Hub id, without its weights; of anything else the name itself."""
    if not _is_hub_id(name):
        return name
    import huggingface_hub

    with explained(name):
        return Path(huggingface_hub.hf_hub_download(name, "config.json")).parent


# Settings.


def precision_in(trainer: Any) -> Precision:
    """The precision of a recipe.

    Raises:
        UsageError: align does not train in it.
    """
    plugins = trainer.plugins if isinstance(trainer.plugins, list) else [trainer.plugins]
    kinds = [str(getattr(plugin, "class_path", "")) for plugin in plugins]
    if any(kind.endswith("FourBit") for kind in kinds):
        return precision_of("", four_bit=True)
    try:
        return precision_of(str(trainer.precision or default_precision(str(trainer.accelerator))))
    except ValueError as error:
        raise UsageError(f"trainer.{error}") from error


def _default_precision(hardware: Hardware) -> Precision:
    """What ``align fit`` chooses on some hardware."""
    wide, narrow = PRECISIONS["32-true"], PRECISIONS["bf16-mixed"]
    return narrow if hardware.supports(narrow) else wide


def _accelerator(trainer: Any) -> str:
    name = str(trainer.accelerator)
    if name in ("gpu", "cuda") or (name == "auto" and torch.cuda.is_available()):
        return "cuda"
    return "mps" if name == "mps" else "cpu"


def _strategy(trainer: Any, devices: int | None) -> Strategy:
    """The strategy of the recipe, on ``devices`` instead of its own."""
    listed = trainer.devices
    own = len(listed) if isinstance(listed, list) else int(listed) if str(listed).isdigit() else 1
    count = own * trainer.num_nodes if devices is None else devices
    path = trainer.strategy.class_path if isinstance(trainer.strategy, jsonargparse.Namespace) else ""
    tensor = 1
    sharded = is_model_parallel(locate_class(path))
    if sharded:
        tensor = (trainer.strategy.get("init_args") or {}).get("tensor_parallel_size") or 1
        if not isinstance(tensor, int) or count % tensor:
            raise UsageError(f"trainer.strategy.tensor_parallel_size is {tensor}: it must divide {count} devices")
    return Strategy(data=count // tensor, tensor=tensor, sharded=sharded and count > tensor)


def _rows(cli: PlanCLI, rollout: Rollout | None, strategy: Strategy, accumulate: int) -> int:
    if rollout is None:
        return int(cli.config.data.init_args.batch_size)
    minibatches = rollout.steps // rollout.passes
    return max(1, rollout.episodes // (minibatches * accumulate * strategy.data))


def _response_tokens(stage: Stage, given: int | None) -> float:
    if not isinstance(stage, PPO):
        return 0.0
    most = stage.rollout_config.max_new_tokens
    return float(most if given is None else min(given, most))


# Data.


def _sizes(cli: PlanCLI, stage: Stage, records: int) -> tuple[DataSizes, list[str]]:
    """Sizes of the data, and what was assumed about them."""
    if cli.datamodule is not None:
        found = data_sizes(cli.datamodule, stage, records=records)
        if isinstance(found, DataSizes):
            return found, []
        cli.no_data = found
    settings = cli.config.data.init_args
    context, kind = int(settings.context), locate_class(cli.config.data.class_path)
    why = f"the data can't be read ({cli.no_data})"
    if isinstance(kind, type) and issubclass(kind, PromptData):
        room = stage.rollout_config.max_new_tokens if isinstance(stage, PPO) else 0
        prompt = max(1, context - room)
        sizes = DataSizes(None, prompt, prompt, prompt + room, prompt, prompt)
        return sizes, [f"{why}: prompts have data.context - max_new_tokens, {prompt} tokens"]
    copies = 2 if isinstance(kind, type) and issubclass(kind, ResponseData) else 1
    return DataSizes(None, copies * context, copies * context, context), [
        f"{why}: every row has data.context, {context} tokens"
    ]


def _limited(batches: int, limit: int | float | None) -> int:
    """Batches of an epoch under trainer.limit_train_batches: a number, or a share."""
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _volume(job: Job, stage: Stage, trainer: Any, sizes: DataSizes, assumed: Sequence[str]) -> Volume:
    """Steps and tokens of the whole run."""
    epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if job.rollout is not None:
        limits += [epochs * job.rollout.steps] if epochs >= 0 else []
        return rollout_volume(job, min(limits, default=None), assumed=assumed)
    if sizes.records is not None and epochs >= 0:
        batches = _limited(-(-sizes.records // (job.rows * job.strategy.data)), trainer.limit_train_batches)
        limits.append(epochs * -(-batches // job.accumulate))
    volume = training_volume(
        job,
        sizes,
        min(limits, default=None),
        reads_reference=reads_reference(stage),
        reads_mismatched=isinstance(stage, KTO),
        assumed=assumed,
    )
    return with_teacher(stage, volume)
