"""What every stage shares: building networks under the Trainer, exact gradients over micro-batches, seeds, NaN."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torchmetrics import Metric

from align.adapters.lora import LoraConfig, adapters
from align.algorithms.starting_points import adapt, adapter_record, base_source, check_record
from align.model.config import GPTConfig
from align.model.four_bit import replace_matrices
from align.model.gpt import GPT, ScalarGPT
from align.training.lightning_internals import attached_trainer, batch_index, stored_data_position
from align.training.memory import (
    MemoryConfig,
    check_precision,
    check_sharded_memory,
    compile_blocks,
    recompute_activations,
)
from align.training.optimization import OptimizerConfig, ScheduleConfig, build_optimizer, build_schedule
from align.training.qlora import FourBit, four_bit_plugin
from align.training.sharding import clip_gradients, local, shard
from align.training.strategy import check_accumulation, index_optimizer_state


class Sharing(NamedTuple):
    """How the data is shared out.

    Attributes:
        ranks: data-parallel processes; those of one tensor-parallel group count as one.
        rank: which of them this is.
        group: of the processes that hold different data; None: all there are.
    """

    ranks: int
    rank: int
    group: Any


class Stage(pl.LightningModule):
    """A LightningModule that trains ``network`` and may hold frozen networks beside it.

    Losses are sums and come with a weight (tokens, pairs): the loss, or with accumulation the gradient, is divided by
    the weight of the whole optimizer step, over all micro-batches and ranks, so that accumulation and data parallelism
    give the gradient of one big batch, however unevenly the weight is spread.

    Frozen networks are submodules, so that they move with the stage, and stay out of checkpoints: they are rebuilt
    from where they came from. So is the base under an adapter.
    """

    network: Any
    """What is trained, and what ModelDirectory writes"""
    trained_names: tuple[str, ...] = ("network",)
    """Submodules that are trained"""
    frozen_names: tuple[str, ...] = ()
    """Submodules that are never trained nor saved"""
    adapter_record: dict[str, Any] | None = None
    """What adapters stand on; None where whole networks learn"""

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
        """Keep the settings.

        Args:
            optimizer: AdamW.
            schedule: learning rate over optimizer steps.
            parent: where the network comes from, for the manifest.
            memory: what is given up for memory.
            compile: torch.compile what is trained.
            lora: train adapters on it instead of its weights.
        """
        super().__init__()
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.memory_config, self.compile_network = memory, compile
        self.parent, self.lora = parent, lora
        self.strict_loading = not self.frozen_names
        self.batch_shape: tuple[int, int] | None = None  # rows and tokens of the micro-batch that was trained on last
        self._four_bit: str | None = None
        self._step_weight: torch.Tensor | None = None
        self._place_in_data: Any = None

    # What a stage has to say.

    def build(self) -> None:
        """Set ``network`` and the frozen networks; called once, under the Trainer's strategy."""
        raise NotImplementedError

    def manifest_extras(self) -> dict[str, Any]:
        """Fields of the manifest that only this stage knows; called on rank 0 when the model directory is written."""
        return {}

    # Lightning's hooks.

    def configure_model(self) -> None:
        """Build the networks once."""
        if hasattr(self, "network"):
            return
        self.build()
        for name in self.frozen_names:
            frozen = getattr(self, name)
            if frozen is not None:
                self._freeze(frozen)
        self._keep_in_four_bits()
        self.add_adapters()
        self._save_memory()
        self._shard()

    def _freeze(self, network: nn.Module) -> None:
        """Make ``network`` one that is never trained, in ``memory.frozen_dtype`` unless the weights are shared."""
        network.requires_grad_(False).eval()
        if self.memory_config.frozen_dtype == "bfloat16" and not self._stands_on_trained(network):
            network.bfloat16()

    def _stands_on_trained(self, network: nn.Module) -> bool:
        """Whether weights of ``network`` are those below an adapter, whose type is ``lora.base_dtype``."""
        ours = {id(parameter) for parameter in self.network.parameters()}
        return any(id(parameter) in ours for parameter in network.parameters())

    def _keep_in_four_bits(self) -> None:
        """QLoRA: the matrices that adapters are to stand on in 4 bits, where the Trainer's plugin says so.

        Before fresh adapters come, whose start depends on them (DoRA).

        Raises:
            ValueError: nothing learns beside the matrices, or the Trainer would shard them.
        """
        if attached_trainer(self) is None:  # built in Python, before there is one: setup looks again
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
        """Freeze what learns and give it adapters, where the recipe asks for them.

        Raises:
            ValueError: they can't be what the recipe says.
        """
        adapt(self.network, self.lora, source=self.parent, seed=self.run_seed())
        self.adapter_record = adapter_record(self.network, base_source(self.parent), self._four_bit)
        if self.adapter_record is not None:
            self.strict_loading = False

    def run_seed(self) -> int:
        """The run's (``seed_everything``), or where ranks were given others the first one's."""
        seed = torch.initial_seed() % 2**31
        return seed if attached_trainer(self) is None else self.trainer.strategy.broadcast(seed)

    def _save_memory(self) -> None:
        """Activation checkpointing and compiling, of every network that is trained.

        Raises:
            ValueError: they can't go together with how the Trainer shards.
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
        """Cut the networks up, where the strategy says over how many devices."""
        if self.device_mesh is None:
            return
        for name in (*self.trained_names, *self.frozen_names):
            module = getattr(self, name)
            if module is not None:
                shard(module.to(self.trainer.strategy.root_device), self.device_mesh)

    def setup(self, stage: str) -> None:
        """Check that the network can read what the data writes.

        Raises:
            ValueError: the tokenizer has more ids than the network, rows are longer than its context, or the Trainer's
                precision or accumulation is none to train with.
        """
        if stage == "fit":
            check_precision(str(self.trainer.precision), self.memory_config)
            check_accumulation(self.trainer.strategy, self.trainer.accumulate_grad_batches)
        self.configure_model()
        if self._four_bit is None and isinstance(self.trainer.precision_plugin, FourBit):
            raise ValueError(
                "trainer.plugins has align.training.FourBit, but configure_model ran before the Trainer did"
            )
        data: Any = getattr(self.trainer, "datamodule", None)
        network: Any = self.network
        config: GPTConfig = network.config
        tokenizer = getattr(data, "tokenizer", None)
        self._introduce()
        self._measure_once()
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids but the network's vocab_size is {config.vocab_size}: "
                f"set vocab_size to at least {tokenizer.vocab_size}"
            )
        if getattr(data, "context", 0) > config.context:
            raise ValueError(
                f"data.context is {data.context} tokens but the network's context is {config.context}: "
                f"set data.context to at most {config.context}"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, stepped per optimizer step."""
        optimizer = self.build_optimizer()
        schedule = build_schedule(optimizer, self.schedule_config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_optimizer(self) -> Optimizer:
        """An optimizer of what is trained."""
        return build_optimizer(self.trained(), self.optimizer_config)

    def trained(self) -> Iterable[nn.Parameter]:
        """The parameters that the optimizer moves."""
        return (parameter for parameter in self.network.parameters() if parameter.requires_grad)

    def on_fit_start(self) -> None:
        """Remember the run's seed."""
        self._seed = self.run_seed()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which base an adapter stands on."""
        if self.adapter_record is not None:
            checkpoint["adapter"] = self.adapter_record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse an adapter over another base, remember the train loader's place, number what has names.

        Lightning itself gives it back only to loaders made after the checkpoint was read, and asking for the number of
        steps (``configure_optimizers``) makes them before; nor does it at an epoch's end.
        """
        if hasattr(self, "network"):
            check_record(checkpoint.get("adapter"), self.adapter_record)
        self._place_in_data = stored_data_position(checkpoint)
        if self.device_mesh is None and hasattr(self, "network") and checkpoint.get("optimizer_states"):
            names = {parameter: name for name, parameter in self.named_parameters()}
            optimizer = self.build_optimizer()
            states = checkpoint["optimizer_states"]
            checkpoint["optimizer_states"] = [index_optimizer_state(state, optimizer, names) for state in states]

    def on_train_start(self) -> None:
        """Go on in the data where the checkpoint was made."""
        place, self._place_in_data = self._place_in_data, None
        loader: Any = self.trainer.train_dataloader
        if place is not None and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(place)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make a batch's random draws a function of its number, so that nothing has to be saved to resume."""
        self.batch_shape = tuple(batch.ids.shape)
        number = batch_index(self.trainer)
        torch.manual_seed((self._seed * 1_000_003 + number) * 4_099 + self.sharing.rank)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by the weight of the whole optimizer step, where its loss was not."""
        weight, self._step_weight = self._step_weight, None
        if weight is not None:
            # Lightning divided by the accumulation and the ranks, as if every micro-batch weighed as much.
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
        """Clip by the norm over all devices."""
        if self.device_mesh is None or not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_gradients(self.trained(), gradient_clip_val)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Everything but the frozen networks, and of networks with adapters only what learns."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefixes = tuple(f"{name}." for name in self.frozen_names)
        if prefixes:
            state = {key: value for key, value in state.items() if not key.startswith(prefixes)}
        if self.adapter_record is not None:
            learning = {name for name, tensor in self.named_parameters(remove_duplicate=False) if tensor.requires_grad}
            kept = learning | {name for name, _ in self.named_buffers()}
            state = {key: value for key, value in state.items() if key in kept}
        return state

    # What stages use.

    @property
    def sharing(self) -> Sharing:
        """How many processes share the data, and which this is."""
        dealt = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        mesh = self.device_mesh
        group = None if mesh is None else mesh["data_parallel"].get_group()
        return Sharing(dealt["num_replicas"], dealt["rank"], group)

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        """A tensor's "sum" or "max" over the processes that share the data."""
        return self.trainer.strategy.reduce(tensor, group=self.sharing.group, reduce_op=how)

    def mean_over_ranks(self, means: Mapping[str, torch.Tensor], weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Means ``[]`` of this micro-batch, of weight ``[]``, over the micro-batches of all ranks; detached.

        All ranks log the same numbers, and stop together at one that is not finite.
        """
        if self.sharing.ranks == 1:
            return {name: mean.detach() for name, mean in means.items()}
        added = self.reduce(torch.stack([*(mean.detach() * weight for mean in means.values()), weight]), "sum")
        return dict(zip(means, added[:-1] / added[-1].clamp(min=1), strict=True))

    def over_ranks(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """A tensor of each of the processes that share the data; of one shape everywhere."""
        ranks, _, group = self.sharing
        parts = [torch.empty_like(tensor) for _ in range(ranks)]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        return parts

    def weighted(self, loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What a training step returns.

        Args:
            loss: ``[]`` sum over what counts in this micro-batch.
            weight: ``[]`` how much counts in it.

        Returns:
            ``[]``: to differentiate; ``on_before_optimizer_step`` does the rest.
        """
        if self.trainer.accumulate_grad_batches == 1:
            # The weight of the step is known now. Gradients are averaged over ranks, so each counts for as many.
            ranks = self.sharing.ranks
            whole = weight if ranks == 1 else self.reduce(weight, "sum") / ranks
            return loss / whole.clamp(min=1 / ranks)
        self._step_weight = weight if self._step_weight is None else self._step_weight + weight
        return loss

    def refuse_nonfinite(self, loss: torch.Tensor) -> None:
        """Stop on NaN or infinity; a GPU is asked only when its numbers are fetched for the log anyway.

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
                f"the training loss is {loss.item()} at optimizer step {step} (learning rate {lr:.3g}): the last "
                "checkpoint is from before it; lower optimizer.lr, lengthen schedule.warmup_steps or look at the data"
            )

    def _measure_once(self) -> None:
        """Let devices that compute one batch together count it once."""
        for module in self.modules():
            if isinstance(module, Metric) and self.device_mesh is not None:
                module.process_group = self.sharing.group

    def _introduce(self) -> None:
        """Say in one line what is trained."""
        network: Any = self.network
        config: GPTConfig = network.config
        line = f"network: {network.num_parameters():,} parameters, {config.layers} layers of width {config.width}, "
        line += f"context {config.context}"
        if self.adapter_record is not None:
            learning = sum(parameter.numel() for parameter in self.trained())
            line += f"; frozen: {learning:,} more in adapters and heads learn"
        if isinstance(network, GPT):
            line += f", {network.flops_per_token(config.context) / 1e6:.1f} MFLOP a training token"
        rank_zero_info(line)
