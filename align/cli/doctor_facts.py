"""A recipe as the doctor's checks see it: data, tokenizer, the networks' configurations, settings; no weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import torch

from align.algorithms.module import Stage
from align.algorithms.planning import networks_to_load, stage_settings
from align.algorithms.ppo import PPO
from align.cli.keys import explain
from align.cli.lightning import AlignCLI, make_cli
from align.cli.plan_facts import precision_in, sources
from align.curate.context import Context, Network, Run, Split
from align.curate.doctor import Doctor
from align.curate.reading import kind_of, read_splits
from align.data.data_module import TokenData
from align.io.adapter_directory import base_source
from align.io.directory import is_scalar
from align.io.location import locate, read_config, read_fields
from align.io.manifest import is_adapter
from align.model.config import GPTConfig
from align.plan.flops import flops_per_token
from align.plan.hardware import in_use
from align.plan.job import Job, Volume
from align.plan.memory import memory_of
from align.plan.parameters import count, weights_of
from align.plan.probe import free_bytes
from align.rewards.functions import SHORT_NAMES
from align.tokenizer import Tokenizer


class DoctorCLI(AlignCLI):
    """Reads a recipe and builds its stage and data module, but no Trainer, logger or network."""

    doctor: Doctor

    def find_run(self) -> None:
        """Skip it."""

    def instantiate_classes(self) -> None:
        """Build stage, data module and doctor.

        Raises:
            ValueError: one of them rejects its settings.
        """
        config = self.config.clone()
        for name in ("logger", "callbacks", "plugins", "profiler"):
            config.trainer[name] = None
        config.trainer.strategy = "auto"
        self.parser.add_instantiator(self._instantiate_variant, object)
        try:
            built = self.parser.instantiate_classes(config)
        except ValueError as error:
            raise ValueError(explain(str(error))) from error
        self.model, self.datamodule, self.doctor = built.model, built.data, built.doctor
        if names := getattr(self.model, "add_tokens", ()):
            self.datamodule.tokenizer = self.datamodule.tokenizer.with_added_tokens(names)


def read_recipe(args: list[str]) -> DoctorCLI:
    """The stage, data module and doctor of a command line of ``align fit``.

    Raises:
        UsageError: a key, type or path of the recipe or the command line is wrong.
        ValueError: a class rejects its settings.
    """
    cli = make_cli(args, kind=DoctorCLI)
    assert isinstance(cli, DoctorCLI)
    return cli


def context_of(cli: DoctorCLI, *, name: str = "", others: dict[str, Context] | None = None) -> Context:
    """Read the data of a recipe, and everything else that checks look at.

    Args:
        cli: of the recipe.
        name: of the stage in its pipeline.
        others: contexts of the stages before it.

    Raises:
        ValueError: the doctor can't read the data of such a data module, or there is no such reward.
    """
    data, stage = cli.datamodule, cli.model
    if not isinstance(data, TokenData) or not isinstance(stage, Stage):
        raise ValueError(
            f"align doctor reads align's stages and data, not {type(stage).__name__}, {type(data).__name__}"
        )
    data.ask_for_columns(stage)
    splits = read_splits(data, limit=cli.doctor.records)
    networks = list(_networks(cli, stage))
    return Context(
        stage=type(stage).__name__,
        kind=kind_of(data),
        splits=splits,
        tokenizer=data.tokenizer,
        run=_run(cli, stage, data, splits.get("train"), networks),
        networks=networks,
        others=others or {},
        name=name,
    )


# Networks.


def _networks(cli: DoctorCLI, stage: Stage) -> Iterator[Network]:
    """The networks that the stage would load; those that don't exist yet are left out."""
    gpt = cli.config.model.init_args.get("gpt")
    sources: list[tuple[str, Any]] = [("policy", stage.parent), ("reference", getattr(stage, "reference_source", None))]
    if isinstance(stage, PPO):
        sources += [("reward", stage.reward_name), ("gold", stage.gold_name)]
        sources += [("value", stage.value_config.init_from if stage.value_config else None)]
    if gpt is not None:
        config = GPTConfig(**(gpt.as_dict() if isinstance(gpt, jsonargparse.Namespace) else gpt))
        yield Network("policy", "", config.vocab_size, config.context, count(weights_of(config)))
    for role, source in sources:
        if isinstance(source, str) and source not in SHORT_NAMES and (found := _network(role, source)) is not None:
            yield found


def _network(role: str, source: str) -> Network | None:
    """A network by its files; None for a reward that is a function."""
    if role in ("reward", "gold") and not Path(source).exists() and "/" not in source:
        return None
    directory = locate(base_source(source)) if is_adapter(source) else locate(source)
    config = read_config(directory)
    try:
        tokenizer = Tokenizer.load(source if is_adapter(source) else directory)
    except (OSError, ValueError):
        tokenizer = None
    scores = is_scalar(read_fields(directory)) or is_adapter(source)
    return Network(role, source, config.vocab_size, config.context, count(weights_of(config)), tokenizer, scores=scores)


# Settings.


def _run(cli: DoctorCLI, stage: Stage, data: TokenData, train: Split | None, networks: list[Network]) -> Run:
    trainer = cli.config.trainer
    device, ranks = _device(trainer), _ranks(trainer)
    policy = next((network for network in networks if network.role == "policy"), None)
    adapters = stage.lora is not None or (stage.parent is not None and is_adapter(stage.parent))
    facts: dict[str, Any] = {}
    if policy is not None:
        facts["default_lr"] = stage.rate_rule.lr(policy.parameters, adapters=adapters)
        if train is not None and train.samples:
            facts |= _costs(cli, stage, data, train, device)
    if isinstance(stage, PPO):
        rollout = stage.rollout_config
        facts |= {
            "rollout_tokens": rollout.max_new_tokens,
            "rollout_prompts": rollout.episodes // rollout.group_size,
            "rollout_steps": stage.update_config.epochs * stage.update_config.minibatches,
            "rollout_passes": stage.update_config.epochs,
            "rollout_episodes": rollout.episodes,
        }
    given = data._given
    return Run(
        context=data.context,
        batch_size=data.batch_size,
        ranks=ranks,
        accumulate=trainer.accumulate_grad_batches,
        max_epochs=-1 if trainer.max_epochs is None else trainer.max_epochs,
        max_steps=trainer.max_steps,
        val_check_interval=1.0 if trainer.val_check_interval is None else trainer.val_check_interval,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
        warmup_steps=stage.schedule_config.warmup_steps,
        lr=stage.optimizer_config.lr,
        adapters=adapters,
        on_bad_record=data.on_bad_record,
        has_validation=bool(given.get("validation")) or data.val_fraction > 0,
        max_new_tokens=dict(_response_limits(cli, stage)),
        other_reference=bool(getattr(stage, "other_reference", False)),
        device=device or str(trainer.accelerator),
        **facts,
    )


def _response_limits(cli: DoctorCLI, stage: Stage) -> Iterator[tuple[str, int]]:
    """Settings that limit sampled responses, with their values."""
    init = cli.config.model.init_args
    if isinstance(stage, PPO):
        yield "rollout.max_new_tokens", stage.rollout_config.max_new_tokens
    evaluation = init.get("policy_evaluation")
    if evaluation is not None and evaluation.get("prompts"):
        yield "policy_evaluation.max_new_tokens", evaluation["max_new_tokens"]


def _device(trainer: Any) -> str | None:
    """The device of the recipe; None if this machine lacks it."""
    accelerator = str(trainer.accelerator)
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "cpu" if accelerator in ("auto", "cpu") else None


def _ranks(trainer: Any) -> int:
    """Ranks that share the data, where the recipe gives a number of devices."""
    devices = trainer.devices
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    strategy = trainer.strategy
    settings = strategy.get("init_args") if isinstance(strategy, jsonargparse.Namespace) else None
    parallel = (settings or {}).get("tensor_parallel_size") or 1
    return max(1, count * trainer.num_nodes // (parallel if isinstance(parallel, int) else 1))


# Memory and time.


def _costs(cli: DoctorCLI, stage: Stage, data: TokenData, train: Split, device: str | None) -> dict[str, Any]:
    rows, tokens = _micro_batch(stage, data, train, cli.config.trainer.accumulate_grad_batches)
    mean = max(1, round(train.tokens / max(1, sum(len(sample.rows) for sample in train.samples))))
    job = Job(
        networks=networks_to_load(stage, sources(cli.config, stage, {}, [])),
        rows=rows,
        tokens=tokens,
        volume=Volume(None, None, mean),
        precision=precision_in(cli.config.trainer),
        accelerator=device or "cpu",
        **stage_settings(stage),
    )
    context = min(mean, data.context)
    speed = None
    if device is not None:
        speed = in_use(torch.device(device), job.precision, width=job.policy.config.width).peak(job.precision)
    return {
        "memory": memory_of(job).peak_parts(),
        "free_memory": None if device is None else free_bytes(torch.device(device)),
        "flops_per_token": sum(flops_per_token(network, context).total for network in job.trained),
        "flops_per_second": speed,
    }


def _micro_batch(stage: Stage, data: TokenData, train: Split, accumulate: int) -> tuple[int, int]:
    """Rows and tokens of the largest micro-batch."""
    longest = min(int(train.lengths.max()), data.context)
    if isinstance(stage, PPO):
        rows = stage.rollout_config.episodes // (stage.update_config.minibatches * accumulate)
        return max(1, rows), longest + stage.rollout_config.max_new_tokens
    rows = data.batch_size * len(train.samples[0].rows)
    return rows, data.context if kind_of(data) == "texts" or getattr(data, "packing", "none") != "none" else longest
