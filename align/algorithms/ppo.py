"""PPO from human (or any) feedback, and its critic-free kin GRPO and RLOO, as ordinary Lightning training."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from align.adapters.lora import LoraConfig, adapters, add_adapter
from align.algorithms.collecting import Collector, Settings, ValueHead, ValueModel, token_values
from align.algorithms.estimation import check_first_minibatch
from align.algorithms.module import Stage
from align.algorithms.policy_evaluation import Probe, ProbeConfig
from align.algorithms.ppo_networks import make_reference, make_value
from align.algorithms.ppo_settings import Algorithm, KLConfig, RolloutConfig, ScoringConfig, UpdateConfig, ValueConfig
from align.algorithms.rollout import Prompt, check_reward
from align.algorithms.rollout_buffer import BatchPlan, Collected, ExperienceBatch, ExperienceLoader, join_ranks
from align.algorithms.starting_points import base_in_memory, load_start, refuse_dropout
from align.batches import PromptBatch
from align.model.gpt import GPT, ScalarGPT
from align.model.response_states import response_states
from align.objectives import kl_estimate, ppo_policy_loss, ppo_value_loss, token_logprobs
from align.rewards.base import Reward
from align.rewards.functions import load_reward
from align.rewards.reward_model import RewardModel
from align.training.memory import MemoryConfig, without_dropout
from align.training.optimization import OptimizerConfig, ScheduleConfig, build_optimizer
from align.training.preemption import breaking_off

_IN_PROGRESS_BAR = ("rollout/reward", "rollout/kl")


class PPO(Stage):
    """Trains a policy to please a reward without leaving its reference (Ziegler et al. 2019, Stiennon et al. 2020).

    One epoch of the Trainer is one iteration:
        1. sample responses to the next prompts;
        2. score them: reward, normalisation, clipping, penalty for not ending;
        3. log-probs of their tokens under the sampling policy and the reference;
        4. values before each token (ppo);
        5. token rewards: minus the KL's cost, plus the score at the last token; advantages and returns from them;
        6. log, and steer the KL coefficient;
        then for each micro-batch of each epoch:
        7. log-probs under the policy now, and the clipped policy loss;
        8. the KL, where it is in the loss;
        9. values now, and the clipped value loss (ppo);
        10. the loss is divided by the tokens of the whole optimizer step; clip, AdamW, schedule: the Trainer's;
        11. the iteration ends early once the policy moved too far from the one that sampled.

    Args:
        init_from: model directory, Hugging Face directory or Hub id that policy and reference start from; or an adapter
            directory, whose adapter learns on.
        reward: directory of a reward model or of one's adapter, module:function of (prompts, responses) -> scores, or
            sandbox.
        algorithm: ppo: GAE with a value model; grpo, rloo: each response against the others to its prompt.
        reference: model directory to measure the KL to, instead of init_from.
        gold: a second reward, only logged (rollout/gold), to see the first one being fooled.
        rollout: sampling.
        scoring: from reward to score.
        kl: what holds the policy near the reference.
        update: how it learns from an iteration.
        value: the value model.
        probe: samples of the policy's own at validation.
        lora: train adapters of these settings on policy and value model, over one base, which is the reference too;
            None: train the weights.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        compile: torch.compile policy and value model; the first step then takes about a minute, and the update reads
            padded rows, each with its prompt.
        memory: what is given up for memory.
        network: a network made in Python, instead of init_from; the reference is a copy of it.

    Raises:
        ValueError: settings that can't be, or can't be together.
    """

    network: GPT
    trained_names = ("network", "value")
    frozen_names = ("reference", "reward_network", "gold_network")

    def __init__(
        self,
        init_from: str | None = None,
        reward: str | Reward = "sandbox",
        *,
        algorithm: Algorithm = "ppo",
        reference: str | None = None,
        gold: str | None = None,
        rollout: RolloutConfig = RolloutConfig(),  # noqa: B008 (frozen)
        scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 (frozen)
        kl: KLConfig = KLConfig(),  # noqa: B008 (frozen)
        update: UpdateConfig = UpdateConfig(),  # noqa: B008 (frozen)
        value: ValueConfig = ValueConfig(),  # noqa: B008 (frozen)
        probe: ProbeConfig = ProbeConfig(),  # noqa: B008 (frozen)
        lora: LoraConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5, weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(kind="constant"),  # noqa: B008 (frozen)
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Keep the settings."""
        refuse_dropout(lora, "PPO")
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        if (init_from is None) == (network is None):
            raise ValueError("PPO needs init_from: a model directory, a Hugging Face directory or a Hub id")
        if algorithm != "ppo" and rollout.group_size < 2:
            raise ValueError(
                f"{algorithm} compares responses to one prompt, and rollout.group_size is {rollout.group_size}: "
                "it must be at least 2"
            )
        self.kl_estimator = kl.estimator(algorithm)
        kl.control()
        self.settings = Settings(algorithm, rollout, scoring, kl, update)
        self.value_config, self.reward_name, self.gold_name = value, reward, gold
        self._sources = (init_from, reference, network)
        self.probe = Probe(probe)
        self._collector: Collector | None = None
        self._loader: ExperienceLoader | None = None
        self._moved: list[torch.Tensor] = []

    # Networks.

    def build(self) -> None:
        """Set the policy, its value model, and the frozen reference and reward."""
        init_from, reference, given = self._sources
        self.network = given if given is not None else load_start(str(init_from), GPT, self.lora)
        adapted = self.lora is not None or bool(adapters(self.network))
        onto = base_in_memory(self.network, self.parent) if adapted else None
        self.reference = make_reference(self.network, reference, adapted=adapted)
        self.reward = load_reward(self.reward_name, onto=onto)
        self.gold = load_reward(self.gold_name, onto=onto) if self.gold_name else None
        self.reward_network = self.reward.network if isinstance(self.reward, RewardModel) else None
        self.gold_network = self.gold.network if isinstance(self.gold, RewardModel) else None
        self.value: ValueModel | None = None
        if self.settings.algorithm == "ppo" and self.value_config.shared_trunk:
            self.value = ValueHead(self.network.config.width)
        elif self.settings.algorithm == "ppo":
            source = self.value_config.init_from
            self.value = make_value(
                self.network, self.reward, source=source, lora=self.lora, onto=onto, adapted=adapted
            )
        without_dropout(self)

    def add_adapters(self) -> None:
        """Adapters for policy and value model; see ``Stage.add_adapters``."""
        super().add_adapters()
        if self.adapter_record is None or not isinstance(self.value, ScalarGPT):
            return
        if not adapters(self.value):
            lora = self.lora or next(iter(adapters(self.network).values()))
            add_adapter(self.value, lora, seed=self.run_seed() + 1)
        if self.reward_network is not None and not self._stands_on_trained(self.reward_network):
            rank_zero_info(
                f"the reward model {self.reward_name} has weights of its own in memory: an adapter over the policy's "
                "base, as the Reward stage writes it with lora, would share the policy's"
            )

    def setup(self, stage: str) -> None:
        """Check that data, policy and reward fit together.

        Raises:
            ValueError: they don't; see ``Stage.setup``; or the reward reads another tokenizer's ids.
        """
        super().setup(stage)
        if isinstance(self.value, ScalarGPT) and self.value.config.context < self.network.config.context:
            raise ValueError(
                f"the value model's context is {self.value.config.context}, the policy's "
                f"{self.network.config.context}: set value.init_from to a model of at least that context"
            )
        for reward in (self.reward, self.gold):
            if reward is not None and self._tokenizer is not None:
                check_reward(reward, self._tokenizer)

    @property
    def _tokenizer(self) -> Any:
        return getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)

    def trained(self) -> Iterator[nn.Parameter]:
        """The policy's parameters, and the value model's."""
        both = chain(self.network.parameters(), self._value_parameters())
        return (parameter for parameter in both if parameter.requires_grad)

    def _value_parameters(self) -> Iterable[nn.Parameter]:
        return () if self.value is None else self.value.parameters()

    def build_optimizer(self) -> Optimizer:
        """One optimizer with groups for policy and value."""
        optimizer = build_optimizer(self.network.parameters(), self.optimizer_config)
        config = replace(self.optimizer_config, lr=self.optimizer_config.lr * self.value_config.lr_factor)
        if self.value is not None:
            for group in build_optimizer(self._value_parameters(), config).param_groups:
                if group["params"]:
                    optimizer.add_param_group(group)
        return optimizer

    # Experience.

    def experience_loader(self, prompts: Iterable[PromptBatch]) -> ExperienceLoader:
        """The train loader that turns prompts into experience; called by the data module.

        Raises:
            ValueError: the responses of an iteration can't be cut as asked, or the Trainer would cut iterations.
        """
        trainer, config = self.trainer, self.settings.rollout
        if trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                f"trainer.limit_train_batches is {trainer.limit_train_batches}: it would cut an iteration short; "
                "set update.epochs and update.minibatches, or trainer.max_epochs (iterations), instead"
            )
        plan = BatchPlan(
            episodes=config.episodes,
            group_size=config.group_size,
            epochs=self.settings.update.epochs,
            minibatches=self.settings.update.minibatches,
            micro_batches=trainer.accumulate_grad_batches,
            ranks=self.sharing.ranks,
            rank=self.sharing.rank,
        )
        self._loader = ExperienceLoader(prompts, self._collect, plan, seed=lambda: self._seed)
        return self._loader

    def _collect(self, prompts: list[Prompt], iteration: int) -> Collected:
        """Steps 1 to 6, in the precision that the update trains in: otherwise the first ratio is not 1.

        Raises:
            Preempted: the run was asked to leave; what was collected so far is to be collected again.
        """
        if self._tokenizer is None:
            raise ValueError("PPO needs a data module with a tokenizer: it decodes, and knows what ends a response")
        before = self.collector.state_dict()
        try:
            with self.trainer.precision_plugin.forward_context():
                collected = self.collector.collect(prompts, iteration, self._seed)
        except BaseException:
            self.collector.load_state_dict(before)
            raise
        if collected.experience is None:
            rank_zero_info(
                f"the KL of iteration {iteration} is {collected.metrics['rollout/kl']:.3g} nats per response, above "
                f"kl.stop_kl {self.settings.kl.stop_kl}: the run ends here"
            )
            self.trainer.should_stop = True
        elif self.sharing.ranks > 1:
            whole = join_ranks(collected.experience, self.settings.rollout.group_size, self.over_ranks)
            return collected._replace(experience=whole)
        return collected

    @property
    def collector(self) -> Collector:
        """What collects experience; made when it is first asked for, under the Trainer."""
        if self._collector is None:
            self._collector = Collector(
                self.settings,
                policy=self.network,
                reference=self.reference,
                value=self.value,
                reward=self.reward,
                gold=self.gold,
                tokenizer=self._tokenizer,
                reduce=self.reduce,
                breaking_off=self._breaking_off,
            )
        return self._collector

    def _breaking_off(self) -> AbstractContextManager[Callable[[], None]]:
        """Devices that split matrices compute each token together: none of them may stop where it likes."""
        mesh = self.device_mesh
        return breaking_off(self.trainer, alone=mesh is None or mesh["tensor_parallel"].size() == 1)

    @property
    def work(self) -> dict[str, int]:
        """Responses and tokens that were sampled and read so far; see ``Collector``."""
        return self.collector.work

    # The update.

    def training_step(self, batch: ExperienceBatch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch: steps 7 to 9 of the class.

        Raises:
            FloatingPointError: the loss is not finite.
            RuntimeError: the policy is not the one that sampled at the first minibatch.
        """
        assert self._loader is not None
        config = self.value_config
        warming_up = self.value is not None and batch.iteration < config.warmup_iterations
        rows = batch.ids, batch.prompt_lengths, batch.lengths
        mask = torch.ones_like(batch.logprobs, dtype=torch.bool)
        tokens = mask.sum()
        loss, states = torch.zeros((), device=batch.ids.device), None
        metrics: dict[str, torch.Tensor] = {}
        if not warming_up or config.shared_trunk:
            with torch.set_grad_enabled(not warming_up):
                states = response_states(self.network, *rows, group_size=batch.group_size)
        if not warming_up:
            assert states is not None
            loss, metrics = self._policy_loss(batch, states, mask)
        # 9. The value's loss.
        if self.value is not None:
            values = token_values(self.value, states, *rows, batch.group_size)
            value_loss, clipped = ppo_value_loss(
                values, batch.values, batch.returns, mask, clip=config.value_clip_range
            )
            loss = loss + config.value_coef * value_loss
            metrics |= {"train/value_loss": value_loss.detach() / tokens, "train/value_clip_fraction": clipped}
        if warming_up and self.sharing.ranks > 1 and self.device_mesh is None:
            # DDP waits for every gradient.
            loss = loss + 0 * sum(parameter.sum() for parameter in self.network.parameters() if parameter.requires_grad)
        largest = metrics.pop("train/ratio_max", None)
        means = self.mean_over_ranks({"train/loss": loss / tokens, **metrics}, tokens)
        mean = means.pop("train/loss")
        self.log("train/loss", mean, prog_bar=True)
        self.log_dict(means)
        if largest is not None:
            self.log("train/ratio_max", self.reduce(largest, "max"))
        self._log_rollout()
        self.refuse_nonfinite(mean)
        return self.weighted(loss, tokens)

    def _policy_loss(
        self, batch: ExperienceBatch, states: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Steps 7 and 8: the summed loss of the policy, and what to log of it."""
        assert self._loader is not None
        settings, tokens = self.settings, mask.sum()
        # 7. The policy's loss.
        temperature = settings.rollout.temperature
        logprobs = token_logprobs(states, self.network.output_weight, batch.targets, temperature=temperature)
        policy = ppo_policy_loss(logprobs, batch.logprobs, batch.advantages, mask, clip=settings.update.clip_range)
        self._check_first(batch, policy.approx_kl, policy.ratio_max)
        self._moved.append(torch.stack([policy.approx_kl * tokens, tokens]))
        metrics = {"train/policy_loss": policy.loss.detach() / tokens, "train/clip_fraction": policy.clip_fraction}
        metrics |= {"train/approx_kl": policy.approx_kl, "train/ratio_max": policy.ratio_max}
        # 8. The KL to the reference.
        if settings.kl.place(settings.algorithm) == "reward":
            return policy.loss, metrics
        kl = kl_estimate(logprobs, batch.reference_logprobs, self.kl_estimator)
        return policy.loss + self._loader.metrics["rollout/kl_coef"] * kl.sum(), metrics

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient; hold the policy still while the value model warms up; step 11."""
        super().on_before_optimizer_step(optimizer)
        assert self._loader is not None
        if self._loader.iteration < self.value_config.warmup_iterations and self.value is not None:
            for parameter in self.network.parameters():
                parameter.grad = None
        moved, self._moved = self._moved, []
        target = self.settings.update.target_kl
        if target is None or not moved:
            return
        added, tokens = self.reduce(torch.stack(moved).sum(0), "sum")
        if added / tokens > target:
            self._end_iteration()

    def _end_iteration(self) -> None:
        """Let this micro-batch be the iteration's last.

        The Trainer's count of batches in this epoch jumps to the end, as if the rest had passed, so that validation,
        checkpoints and resuming see an ordinary end; its totals and ``global_step`` count what was really done.
        """
        assert self._loader is not None
        left = self._loader.skip_rest()
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress.current, name, getattr(progress.current, name) + left)
        progress.is_last_batch = True

    def _check_first(self, batch: ExperienceBatch, approx_kl: torch.Tensor, ratio_max: torch.Tensor) -> None:
        """Before the first update of an iteration the policy is still the one that sampled."""
        if batch.position:
            return
        approx_kl, ratio_max = self.reduce(torch.stack([approx_kl, ratio_max]), "max")
        exact = (
            str(self.trainer.precision).startswith(("32-true", "64-true"))
            and self.network.output_weight.dtype != torch.bfloat16
        )
        check_first_minibatch(batch.iteration, approx_kl.item(), ratio_max.item(), exact=exact)

    # What is logged and kept.

    def on_train_epoch_end(self) -> None:
        """Log the rollout of an iteration that was not learned from."""
        if self._loader is not None and self._loader.experience is None:
            self._log_rollout()

    def _log_rollout(self) -> None:
        """Log the iteration's rollout: the same with every batch, so that an epoch gets one row, resumed or not."""
        assert self._loader is not None
        for name, number in self._loader.metrics.items():
            shown = name in _IN_PROGRESS_BAR
            self.log(name, number, on_step=False, on_epoch=True, prog_bar=shown, batch_size=1, sync_dist=True)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Let the policy answer held-out prompts."""
        rows = zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
        prompts = [ids[:length] for ids, length in rows]
        self.probe.update(self.network, self.reference, prompts, batch.prompts, self._tokenizer)

    def on_validation_epoch_end(self) -> None:
        """Log ``policy/*``."""
        values = self.probe.compute()
        self.probe.reset()
        self.log_dict({f"policy/{name}": value for name, value in values.items()}, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the KL coefficient and the reward statistics; the loader keeps the experience."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["collector"] = self.collector.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from ``on_save_checkpoint``; see ``Stage.on_load_checkpoint`` for the loader."""
        super().on_load_checkpoint(checkpoint)
        self.collector.load_state_dict(checkpoint["collector"])
