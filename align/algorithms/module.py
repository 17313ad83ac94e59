"""The base class of the stages: building networks, gradients that do not depend on micro-batches or ranks, resuming."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from align.adapters.lora import LoraConfig, adapters
from align.algorithms.starting_points import adapt, adapter_record, check_record, content_of
from align.io.adapter_directory import base_source
from align.model.config import GPTConfig
from align.model.four_bit import replace_matrices
from align.model.gpt import GPT, ScalarGPT
from align.training.defaults import FINE_TUNING, RateRule
from align.training.lightning_internals import attached_trainer, batch_index, stored_data_position
from align.training.memory import (
    MemoryConfig,
    check_precision,
    check_sharded_memory,
    compile_blocks,
    recompute_activations,
)
from align.training.muon import block_matrices
from align.training.optimization import OptimizerConfig, ScheduleConfig, build_optimizer, build_schedule
from align.training.qlora import FourBit, four_bit_plugin
from align.training.sharding import clip_gradients, local, shard
from align.training.strategy import check_accumulation, index_optimizer_state

_RECORD = "stage"
"""Key of a checkpoint: what the stage compares when it resumes"""

_GROUP_SETTINGS = ("lr", "weight_decay", "betas", "eps", "momentum")
"""Settings of parameter groups that a resumed run takes from the recipe; momentum is Muon's"""


class Sharing(NamedTuple):
    """How data is divided over processes.

    Attributes:
        ranks: number of data-parallel ranks; a tensor-parallel group counts as one.
        rank: index of this one.
        group: the processes that hold different data; None: all processes.
    """

    ranks: int
    rank: int
    group: Any


class Stage(pl.LightningModule):
    """A LightningModule that trains ``network`` and may hold frozen networks.

    Losses are sums with a weight, such as a number of tokens or pairs. The loss (with gradient accumulation, the
    gradient) is divided by the weight of the whole optimizer step, over all micro-batches and ranks. Accumulation and
    data parallelism thus give the gradient of one large batch, even if their parts differ in weight.

    Frozen networks are submodules, so that Lightning moves them between devices. They are not saved in checkpoints, but
    loaded from their source again, and so are the base weights of adapters.
    """

    network: Any
    """The network that is trained, and that ModelDirectory writes."""
    trained_names: tuple[str, ...] = ("network",)
    """Submodules that are trained."""
    frozen_names: tuple[str, ...] = ()
    """Submodules that are neither trained nor saved."""
    adapter_record: dict[str, Any] | None = None
    """Record of the base of the adapters; None if there are none."""
    rate_rule: RateRule = FINE_TUNING
    """The learning rate where the recipe sets none."""

    def __init__(
        self,
        *,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        parent: str | None,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        compile: bool = False,
        lora: LoraConfig | None = None,
    ) -> None:
        """Store the settings.

        Args:
            optimizer: AdamW.
            schedule: learning rate over optimizer steps.
            parent: source of the network, for the manifest.
            memory: settings that save memory.
            compile: torch.compile the trained networks.
            lora: settings of adapters to train instead of the weights.
        """
        super().__init__()
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.memory_config, self.compile_network = memory, compile
        self.parent, self.lora = parent, lora
        self.strict_loading = not self.frozen_names
        self.batch_shape: tuple[int, int] | None = None  # rows and tokens of the latest training micro-batch
        self._four_bit: str | None = None
        self._step_weight: torch.Tensor | None = None
        self._data_position: Any = None
        self._contents: dict[str, str] = {}
        self._stored: Mapping[str, Any] = {}
        # What a stage did beside training on the batches, for the manifest's cost; see align/callbacks/cost.py.
        self.work: dict[str, Any] = {}

    # To be implemented by stages.

    def build(self) -> None:
        """Set ``network`` and the frozen networks. Called once, under the Trainer's strategy."""
        raise NotImplementedError

    def manifest_extras(self) -> dict[str, Any]:
        """Additional fields for the manifest. Called on rank 0 when the model directory is written."""
        return {}

    def sources(self) -> dict[str, object]:
        """What a run must not change when it resumes, by setting: models, reward models and other rewards; or None."""
        return {"init_from": self.parent}

    # Hooks of Lightning.

    def configure_model(self) -> None:
        """Build the networks, once."""
        if hasattr(self, "network"):
            return
        self.build()
        for name in self.frozen_names:
            frozen = getattr(self, name)
            if frozen is not None:
                self._freeze(frozen)
        self._quantize_base()
        self.add_adapters()
        self._choose_rate()
        self._save_memory()
        self._shard()

    def _freeze(self, network: nn.Module) -> None:
        """Freeze ``network``, and convert it to ``memory.frozen_dtype`` unless it shares weights with a trained one."""
        network.requires_grad_(False).eval()
        if self.memory_config.frozen_dtype == "bfloat16" and not self._stands_on_trained(network):
            network.bfloat16()

    def _stands_on_trained(self, network: nn.Module) -> bool:
        """Whether ``network`` shares the base of trained adapters, whose dtype is ``lora.base_dtype``."""
        ours = {id(parameter) for parameter in self.network.parameters()}
        return any(id(parameter) in ours for parameter in network.parameters())

    def _quantize_base(self) -> None:
        """QLoRA: quantize the base matrices of adapters to 4 bits, if the Trainer has the plugin for it.

        This precedes new adapters, whose initial values depend on the matrices (DoRA).

        Raises:
            ValueError: there are no adapters, or the Trainer shards the weights.
        """
        if attached_trainer(self) is None:  # built in Python before there is a Trainer; setup checks again
            return
        adapted = self.lora is not None or bool(adapters(self.network))
        precision = self.trainer.precision_plugin
        plugin = four_bit_plugin(precision, adapters=adapted, sharded=self.device_mesh is not None)
        if plugin is None:
            return
        self._four_bit = plugin.mode
        networks = [getattr(self, name) for name in self.trained_names]
        device = self.trainer.strategy.root_device
        replace_matrices(
            self,
            [network for network in networks if isinstance(network, GPT | ScalarGPT)],
            lambda layer: plugin.quantized(layer, device),
        )

    def add_adapters(self) -> None:
        """Freeze the trained networks and add the recipe's adapters, if it has any.

        Raises:
            ValueError: the network has other adapters, or lacks a target.
        """
        adapt(self.network, self.lora, source=self.parent, seed=self.run_seed())
        base = None if self.parent is None else base_source(self.parent)
        self.adapter_record = adapter_record(self.network, base, self._four_bit)
        if self.adapter_record is not None:
            self.strict_loading = False

    def _choose_rate(self) -> None:
        """Replace a learning rate of None by the stage's default."""
        if self.optimizer_config.lr is None:
            lr = self.rate_rule.lr(self.network.num_parameters(), adapters=self.adapter_record is not None)
            self.optimizer_config = replace(self.optimizer_config, lr=lr)
            trained = "adapters" if self.adapter_record is not None else "all weights"
            rank_zero_info(f"optimizer.lr is {lr:g}, the default of {type(self).__name__} for {trained} at this size")

    def run_seed(self) -> int:
        """The run's seed (``seed_everything``); rank 0's if ranks differ."""
        seed = torch.initial_seed() % 2**31
        return seed if attached_trainer(self) is None else self.trainer.strategy.broadcast(seed)

    def _save_memory(self) -> None:
        """Apply activation checkpointing and compilation to the trained networks.

        Raises:
            ValueError: they do not work with the Trainer's sharding.
        """
        check_sharded_memory(
            self.memory_config,
            state_bits=self.optimizer_config.state_bits,
            compile=self.compile_network,
            devices=(1, 1) if self.device_mesh is None else tuple(self.device_mesh.shape),
        )
        trained = [network for network in self.children() if isinstance(network, GPT | ScalarGPT)]
        for network in trained:
            if not any(parameter.requires_grad for parameter in network.parameters()):
                continue
            recompute_activations(network, self.memory_config.activation_checkpointing)
            if self.compile_network:
                compile_blocks(network, self.memory_config.compile_widths)

    def _shard(self) -> None:
        """Shard the networks, if the strategy has a device mesh."""
        if self.device_mesh is None:
            return
        for name in (*self.trained_names, *self.frozen_names):
            module = getattr(self, name)
            if module is not None:
                shard(module.to(self.trainer.strategy.root_device), self.device_mesh)

    def setup(self, stage: str) -> None:
        """Check that data, network and Trainer fit together.

        Raises:
            ValueError: the tokenizer has more ids than the network, rows are longer than its context, or the Trainer's
                precision or accumulation is not supported.
        """
        if stage == "fit":
            check_precision(str(self.trainer.precision), self.memory_config)
            check_accumulation(self.trainer.strategy, self.trainer.accumulate_grad_batches)
        self.configure_model()
        if self._four_bit is None and isinstance(self.trainer.precision_plugin, FourBit):
            raise ValueError(
                "trainer.plugins has align.training.FourBit, but configure_model was called before the Trainer was set"
            )
        if stage == "fit":
            self._contents = self._read_contents()
        data: Any = getattr(self.trainer, "datamodule", None)
        network: Any = self.network
        config: GPTConfig = network.config
        tokenizer = getattr(data, "tokenizer", None)
        self._log_size()
        self._count_groups_once()
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, but the network's vocab_size is {config.vocab_size}; "
                f"set vocab_size to at least {tokenizer.vocab_size}"
            )
        if getattr(data, "context", 0) > config.context:
            raise ValueError(
                f"data.context is {data.context} tokens, but the network's context is {config.context}; "
                f"set data.context to at most {config.context}"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, and its schedule per optimizer step."""
        optimizer = self.build_optimizer()
        # Copied: the schedule changes a rate that is a tensor in place.
        self._recipe_groups = [
            {name: group[name] for name in _GROUP_SETTINGS if name in group} | {"lr": float(group["lr"])}
            for group in optimizer.param_groups
        ]
        schedule = build_schedule(optimizer, self.schedule_config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_optimizer(self) -> Optimizer:
        """The optimizer of the trained parameters."""
        return self.optimizer_of(self.network, self.optimizer_config)

    def optimizer_of(self, network: nn.Module, config: OptimizerConfig) -> Optimizer:
        """The optimizer of one of the stage's networks.

        Raises:
            ValueError: Muon can't update its matrices.
        """
        if config.matrices == "muon" and (self.adapter_record is not None or self.device_mesh is not None):
            trained = "adapters train, which are halves of a matrix" if self.adapter_record else "weights are sharded"
            raise ValueError(f"optimizer.matrices is muon, which needs whole matrices, but {trained}: set it to adamw")
        return build_optimizer(network.parameters(), config, blocks=block_matrices(network))

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return (parameter for parameter in self.network.parameters() if parameter.requires_grad)

    def on_fit_start(self) -> None:
        """Remember the run's seed."""
        self._seed = self.run_seed()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what a resumed run is compared with, and the base of the adapters."""
        checkpoint[_RECORD] = {
            "class": _class_of(self),
            "contents": self._contents,
            "files": dict(getattr(getattr(self.trainer, "datamodule", None), "fingerprints", {})),
            "steps": int(self.trainer.estimated_stepping_batches),
        }
        checkpoint["work"] = dict(self.work)
        if self.adapter_record is not None:
            checkpoint["adapter"] = self.adapter_record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that it is the same run, keep the train loader's position, convert the optimizer state of sharded runs.

        Lightning restores the position only in loaders created after the checkpoint is read, but
        ``configure_optimizers`` creates them before, and not at all if the epoch has ended.

        Raises:
            ValueError: another stage wrote the checkpoint, or one that started from, or was rewarded by, other weights.
        """
        self._stored = checkpoint.get(_RECORD, {})
        self.work = dict(checkpoint.get("work", self.work))
        trainer = attached_trainer(self)
        if trainer is not None and trainer.training:
            self._check_same_run()
        if hasattr(self, "network"):
            check_record(checkpoint.get("adapter"), self.adapter_record)
        self._data_position = stored_data_position(checkpoint)
        if self.device_mesh is None and hasattr(self, "network") and checkpoint.get("optimizer_states"):
            names = {parameter: name for name, parameter in self.named_parameters()}
            optimizer = self.build_optimizer()
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [index_optimizer_state(state, optimizer, names) for state in states]

    def _read_contents(self) -> dict[str, str]:
        """What ``sources`` stand for, read by rank 0."""
        contents: dict[str, str] = {}
        if self.trainer.is_global_zero:
            contents = {name: content_of(source) for name, source in self.sources().items() if source is not None}
        return self.trainer.strategy.broadcast(contents)

    def _check_same_run(self) -> None:
        """Compare stage and contents with those of the checkpoint; warn about files of data that have changed."""
        path = self.trainer.ckpt_path
        if not self._stored:
            raise ValueError(
                f"{path} was not saved by a stage of align, so it can't be resumed; start a new run, with init_from "
                "set to a model directory"
            )
        then, now = self._stored["class"], _class_of(self)
        if then != now:
            raise ValueError(
                f"{path} is a checkpoint of {then}, and can't be resumed by {now}; start a new run, with init_from set "
                "to the model directory of that run"
            )
        before = self._stored["contents"]
        for name in dict.fromkeys((*before, *self._contents)):
            if before.get(name) != self._contents.get(name):
                raise ValueError(
                    f"model.init_args.{name} is {self.sources().get(name) or 'null'}, which now holds "
                    f"{_short(self._contents.get(name))}, but {path} was trained with {_short(before.get(name))}; "
                    "restore what it was, or start a new run in another trainer.default_root_dir"
                )
        files = getattr(getattr(self.trainer, "datamodule", None), "fingerprints", {})
        for file, digest in files.items():
            if self._stored["files"].get(file, digest) != digest:
                rank_zero_warn(f"{file} has changed since {path} was saved: figures before and after don't compare")

    def on_train_start(self) -> None:
        """Resume the data from the checkpoint's position, and log the settings whose values the run determined."""
        position, self._data_position = self._data_position, None
        loader: Any = self.trainer.train_dataloader
        if position is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(position)
        if self.trainer.ckpt_path is not None:
            self._take_recipe_settings()
        for logger in self.trainer.loggers:
            logger.log_hyperparams(self.resolved_settings())

    def _take_recipe_settings(self) -> None:
        """Resume with the recipe's optimizer settings and schedule where they differ from the checkpoint's.

        The schedule is a function of the step, so a changed one takes the learning rate that it has at this step.
        """
        groups, schedule = self.trainer.optimizers[0].param_groups, self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(schedule, LambdaLR)
        step, rate = schedule.last_epoch, float(groups[0]["lr"])
        # The schedule's rates: an optimizer state from a sharded checkpoint has no initial_lr.
        stored = [
            {name: _plain(group[name]) for name in _GROUP_SETTINGS if name in group} | {"lr": _plain(base)}
            for group, base in zip(groups, schedule.base_lrs, strict=True)
        ]
        recipes = self._recipe_groups
        for number, (group, recipe) in enumerate(zip(groups, recipes, strict=True)):
            group |= {name: value for name, value in recipe.items() if name != "lr"}
            if stored[number]["lr"] != _plain(recipe["lr"]):
                group["initial_lr"] = schedule.base_lrs[number] = recipe["lr"]
            now = recipe["lr"] * schedule.lr_lambdas[number](step)
            # A rate that was not changed must stay bitwise identical; 8-bit optimizers have it as a float32 tensor.
            if not math.isclose(group["lr"], now, rel_tol=1e-6):
                group["lr"] = group["lr"].fill_(now) if isinstance(group["lr"], torch.Tensor) else now
        changes = [
            f"optimizer.{name} {stored[0].get(name)} -> {_plain(recipes[0][name])}"
            for name in recipes[0]
            if stored[0].get(name) != _plain(recipes[0][name])
        ]
        steps, total = self._stored.get("steps"), int(self.trainer.estimated_stepping_batches)
        changes += [f"optimizer steps of the run {steps} -> {total}"] if steps not in (None, total) else []
        if float(groups[0]["lr"]) != rate:
            changes.append(f"learning rate at step {step} {_plain(rate)} -> {_plain(groups[0]['lr'])}")
        if changes:
            rank_zero_warn(f"resuming with the recipe's settings instead of the checkpoint's: {', '.join(changes)}")

    def resolved_settings(self) -> dict[str, float]:
        """Settings that follow from the network and the length of the run, by their keys; once training has begun."""
        group = self.trainer.optimizers[0].param_groups[0]
        return {
            "optimizer.lr": float(group.get("initial_lr", group["lr"])),
            "schedule.warmup_steps": self.schedule_config.warmup(int(self.trainer.estimated_stepping_batches)),
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed with the batch number: a resumed run draws the same random numbers without saved generator states."""
        self.batch_shape = tuple(batch.ids.shape)
        number = batch_index(self.trainer)
        torch.manual_seed((self._seed * 1_000_003 + number) * 4_099 + self.sharing.rank)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by the weight of the whole optimizer step, unless the loss was."""
        weight, self._step_weight = self._step_weight, None
        if weight is not None:
            # Lightning has divided by micro-batches and ranks, as if all had the same weight.
            micro_batches = self.trainer.accumulate_grad_batches * self.sharing.ranks
            weight = self.reduce(weight, "sum")
            gradients = [local(p.grad) for p in self.trained() if p.grad is not None]
            torch._foreach_mul_(gradients, micro_batches / weight.clamp(min=1))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the gradient norm over all devices."""
        if self.device_mesh is None or not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_gradients(self.trained(), gradient_clip_val)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Everything but frozen networks; of networks with adapters only what is trained."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefixes = tuple(f"{name}." for name in self.frozen_names)
        if prefixes:
            state = {key: value for key, value in state.items() if not key.startswith(prefixes)}
        if self.adapter_record is not None:
            trained = {name for name, tensor in self.named_parameters(remove_duplicate=False) if tensor.requires_grad}
            kept = trained | {name for name, _ in self.named_buffers()}
            state = {key: value for key, value in state.items() if key in kept}
        return state

    def reward_columns(self, split: str) -> tuple[str, ...]:
        """Columns of the records of a split that rewards and judges read; the data module stores them with the prompts.

        Args:
            split: "train", "validation" or "test".

        Raises:
            ValueError: there is no such reward.
        """
        return ()

    # To be used by stages.

    @property
    def sharing(self) -> Sharing:
        """How data is divided over processes."""
        sampler = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        mesh = self.device_mesh
        group = None if mesh is None else mesh["data_parallel"].get_group()
        return Sharing(sampler["num_replicas"], sampler["rank"], group)

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        """A tensor's "sum" or "max" over data-parallel ranks."""
        return self.trainer.strategy.reduce(tensor, group=self.sharing.group, reduce_op=how)

    def mean_over_ranks(self, means: Mapping[str, torch.Tensor], weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Means over the micro-batches of all ranks, detached: all ranks log the same values, and stop together on NaN.

        Args:
            means: ``[]`` each, over this rank's micro-batch.
            weight: ``[]`` weight of this rank's micro-batch.
        """
        if self.sharing.ranks == 1:
            return {name: mean.detach() for name, mean in means.items()}
        added = self.reduce(torch.stack([*(mean.detach() * weight for mean in means.values()), weight]), "sum")
        return dict(zip(means, added[:-1] / added[-1].clamp(min=1), strict=True))

    def over_ranks(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensor of every data-parallel rank; shapes must be equal."""
        ranks, _, group = self.sharing
        parts = [torch.empty_like(tensor) for _ in range(ranks)]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return parts

    def weighted(self, loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The return value of a training step: the loss divided by the weight of the optimizer step.

        With gradient accumulation that weight is not known yet; ``on_before_optimizer_step`` divides the gradient.

        Args:
            loss: ``[]`` sum over this micro-batch.
            weight: ``[]`` number of tokens or pairs that the sum runs over.

        Returns:
            ``[]``, to be differentiated.
        """
        if self.trainer.accumulate_grad_batches == 1:
            # DDP averages gradients over ranks, so divide by the mean weight of a rank.
            ranks = self.sharing.ranks
            whole = weight if ranks == 1 else self.reduce(weight, "sum") / ranks
            return loss / whole.clamp(min=1 / ranks)
        self._step_weight = weight if self._step_weight is None else self._step_weight + weight
        return loss

    def refuse_nonfinite(self, loss: torch.Tensor) -> None:
        """Stop on NaN or infinity. On a GPU check only in steps that are logged, which synchronise anyway.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        step = self.trainer.global_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if loss.device.type != "cpu" and step % every:
            return
        if not torch.isfinite(loss):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise FloatingPointError(
                f"the training loss is {loss.item()} at optimizer step {step} (learning rate {lr:.3g}); resume from "
                "the last checkpoint with a lower optimizer.lr or a longer schedule.warmup_steps, or inspect the data"
            )

    def _count_groups_once(self) -> None:
        """Count a batch once in metrics if several devices compute it together."""
        for module in self.modules():
            if isinstance(module, Metric) and self.device_mesh is not None:
                module.process_group = self.sharing.group

    def _log_size(self) -> None:
        """Log the network's size in one line."""
        network: Any = self.network
        config: GPTConfig = network.config
        line = f"network: {network.num_parameters():,} parameters, {config.layers} layers of width {config.width}, "
        line += f"context {config.context}"
        if self.adapter_record is not None:
            trained = sum(parameter.numel() for parameter in self.trained())
            line += f"; frozen, except {trained:,} in adapters and heads"
        rank_zero_info(line)


def _class_of(stage: Stage) -> str:
    return f"{type(stage).__module__}.{type(stage).__qualname__}"


def _short(content: str | None) -> str:
    """Content for an error: names as they are, hashes by their first digits."""
    return "nothing" if content is None else re.sub(r"[0-9a-f]{13,}", lambda found: found[0][:12], content)


def _plain(value: Any) -> str:
    """A number in six digits, so that a float32 of a fused optimizer equals the recipe's; or a tuple of them."""
    return " ".join(map(_plain, value)) if isinstance(value, tuple | list) else f"{float(value):.6g}"
