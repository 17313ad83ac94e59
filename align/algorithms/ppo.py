"""PPO for language models as ordinary Lightning training; GRPO and RLOO are other advantage estimators of it.

To follow a prompt to its loss, read ``align/data/pair_data.py: PromptData.train_dataloader``, which hands the prompts
to ``PPO.rollout_loader`` here; ``align/algorithms/rollout_buffer.py: RolloutLoader``, which asks ``PPO.roll_out`` for a
rollout once per iteration; then ``PPO.training_step`` and ``align/objectives/policy.py``.

Legend: B responses, N tokens of the longest response, M tokens of all responses, D width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from align.adapters.lora import LoraConfig, adapters, add_adapter
from align.algorithms.dynamic_sampling import Draw, differing, first_groups, joined
from align.algorithms.episode_evaluation import EpisodeEvaluation
from align.algorithms.episodes import check_environment
from align.algorithms.module import Stage
from align.algorithms.policy_evaluation import PolicyEvaluation, PolicyEvaluationConfig
from align.algorithms.ppo_networks import ValueHead, ValueModel, make_reference, make_value, padded, token_values
from align.algorithms.ppo_settings import KLConfig, RolloutConfig, ScoringConfig, UpdateConfig, ValueConfig
from align.algorithms.response_source import CloseEngine, ResponseSource
from align.algorithms.rollout import (
    Responses,
    chosen_of,
    prompts_of,
)
from align.algorithms.rollout_buffer import BatchPlan, Rollout, RolloutBatch, RolloutLoader, TakePrompts, join_ranks
from align.algorithms.scoring import (
    RewardStatistics,
    check_reward,
    model_in,
    sample_metrics,
    score_rollout,
    token_metrics,
)
from align.algorithms.starting_points import base_in_memory, initial_network, refuse_dropout
from align.batches import PromptBatch
from align.environments import Environment
from align.generation.sampled_ids import SampledIds
from align.model.gpt import GPT, ScalarGPT
from align.model.response_states import response_states, response_tokens
from align.objectives import (
    GAE,
    K1,
    AdvantageEstimator,
    ScoredResponses,
    explained_variance,
    policy_loss,
    token_logprobs,
    truncated_importance_weights,
    value_losses,
)
from align.rewards.functions import columns_read, load_reward
from align.rewards.reward import Reward
from align.rewards.weighted_sum import WeightedSum
from align.training.defaults import REINFORCEMENT
from align.training.float64 import wide
from align.training.lightning_internals import skip_batches
from align.training.memory import MemoryConfig, without_dropout
from align.training.optimization import OptimizerConfig, ScheduleConfig
from align.training.sharding import gathered

_IN_PROGRESS_BAR = ("rollout/reward", "rollout/kl")


class PPO(Stage):
    """Trains a policy to raise a reward while it stays near its reference (Ziegler et al. 2019, Stiennon et al. 2020).

    One epoch of the Trainer is one iteration:
        1. sample responses to the next prompts;
        2. score them: reward, normalisation, clipping, penalty for a missing end;
        3. log-probs of their tokens under the reference, where the KL is used, and under the policy that sampled;
        4. values before each token, where the estimator needs them;
        5. KL penalty of each token where it is in the reward, then advantages and returns from the estimator;
           importance weights where the sampler's probabilities are not the trainer's;
        6. the controller moves the KL coefficient for the next iteration;
        7. fill the rollout buffer;
        8. for each micro-batch of each pass, update: the surrogate's policy loss, KL where it is in the loss, clipped
           value loss, averaged over the whole optimizer step;
        9. end the iteration early once the policy has moved too far from the one that sampled.

    Args:
        init_from: model or Hugging Face directory, GGUF file or Hub id that policy and reference start from; or an
            adapter directory, to continue training that adapter.
        reward: directory of a reward model or of a reward model's adapter, module:function of (prompts, responses) ->
            scores, class path of a ``Reward`` (its settings are its init_args), or sandbox; None: sandbox, or what the
            environment gives.
        environment: answers the policy's turns and rewards them, instead of a reward, in episodes of several turns: the
            class path of an ``Environment``.
        reference: model directory to measure the KL to, instead of init_from.
        gold: a second reward, as ``reward``, that is only logged (rollout/gold), to see over-optimisation of the first.
        rollout: sampling.
        scoring: how a reward becomes a score.
        kl: what keeps the policy near the reference.
        update: how the policy learns from a rollout.
        value: the value model of an estimator that needs one.
        policy_evaluation: samples of the policy at validation.
        lora: train adapters on policy and value model, over one base, which is the reference too; None: train the
            weights.
        optimizer: AdamW.
        schedule: learning rate over optimizer steps.
        compile: torch.compile policy and value model; the first step then takes about a minute, and the update reads
            padded rows, each with its prompt.
        memory: trades compute or precision for memory.
        network: a network made in Python, instead of init_from; the reference is a copy of it.

    Raises:
        ValueError: a setting is invalid, or two settings contradict each other.
    """

    network: GPT
    trained_names = ("network", "value")
    frozen_names = ("reference", "reward_network", "gold_network")
    rate_rule = REINFORCEMENT

    def __init__(
        self,
        init_from: str | None = None,
        reward: str | Reward | None = None,
        *,
        environment: Environment | None = None,
        estimator: AdvantageEstimator = GAE(),  # noqa: B008 (frozen)
        reference: str | None = None,
        gold: str | Reward | None = None,
        rollout: RolloutConfig = RolloutConfig(),  # noqa: B008 (frozen)
        scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 (frozen)
        kl: KLConfig = KLConfig(),  # noqa: B008 (frozen)
        update: UpdateConfig = UpdateConfig(),  # noqa: B008 (frozen)
        value: ValueConfig | None = None,
        policy_evaluation: PolicyEvaluationConfig = PolicyEvaluationConfig(),  # noqa: B008 (frozen)
        lora: LoraConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(kind="constant"),  # noqa: B008 (frozen)
        compile: bool = False,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 (frozen)
        network: GPT | None = None,
    ) -> None:
        """Store the settings."""
        refuse_dropout(lora, "PPO")
        load_policy = initial_network("PPO", init_from, network, GPT, lora)
        super().__init__(
            optimizer=optimizer, schedule=schedule, parent=init_from, lora=lora, memory=memory, compile=compile
        )
        name = type(estimator).__name__
        if rollout.group_size < estimator.min_group_size:
            raise ValueError(
                f"rollout.group_size is {rollout.group_size}: {name} needs at least {estimator.min_group_size} "
                "responses to each prompt"
            )
        check_environment(environment, reward, scoring, policy_evaluation)
        if value is not None and not estimator.needs_value:
            raise ValueError(f"value is set, but {name} uses no value model: remove it, or set estimator to GAE")
        self.estimator, self.rollout_config, self.scoring_config = estimator, rollout, scoring
        self.kl_config, self.update_config = kl, update
        self.value_config = (value or ValueConfig()) if estimator.needs_value else None
        self.average = update.average or update.surrogate.default_average or estimator.default_average
        kl_estimators = kl.estimators(estimator.default_kl_in)
        self._kl_in_reward, self._kl_in_loss = kl_estimators.get("reward"), kl_estimators.get("loss")
        self.environment = environment
        self.reward_name = None if environment is not None else "sandbox" if reward is None else reward
        self.gold_name = gold
        self._load_policy, self.reference_source = load_policy, reference
        self.policy_evaluation: PolicyEvaluation | EpisodeEvaluation = (
            PolicyEvaluation(policy_evaluation)
            if environment is None
            else EpisodeEvaluation(policy_evaluation, rollout, environment)
        )
        self._loader: RolloutLoader | None = None
        self._moved: list[torch.Tensor] = []
        # What outlives an iteration; see rollout_state.
        self.controller, self.statistics = kl.controller(), RewardStatistics()
        self.source = ResponseSource(self, rollout, environment, steps=update.epochs * update.minibatches)
        self.recompute_logprobs: bool | None = True if rollout.recomputes else None
        self.work = dict.fromkeys(("samples", "tokens_sampled", "tokens_read"), 0)

    # Networks.

    def build(self) -> None:
        """Set the policy, its value model, and the frozen reference and reward."""
        self.network = self._load_policy()
        adapted = self.lora is not None or bool(adapters(self.network))
        onto = base_in_memory(self.network, self.parent) if adapted else None
        self.reference = make_reference(self.network, self.reference_source, adapted=adapted)
        self.reward = None if self.reward_name is None else load_reward(self.reward_name, onto=onto)
        self.gold = None if self.gold_name is None else load_reward(self.gold_name, onto=onto)
        models = model_in(self.reward), model_in(self.gold)
        self.reward_network, self.gold_network = (None if model is None else model.network for model in models)
        self.value: ValueModel | None = None
        if self.value_config is not None and self.value_config.shared_trunk:
            self.value = ValueHead(self.network.config.width)
        elif self.value_config is not None:
            source = self.value_config.init_from
            self.value = make_value(
                self.network, self.reward, source=source, lora=self.lora, onto=onto, adapted=adapted
            )
        without_dropout(self)

    def sources(self) -> dict[str, object]:
        """See ``Stage.sources``."""
        value = None if self.value_config is None else self.value_config.init_from
        summed = self.reward_name.parts if isinstance(self.reward_name, WeightedSum) else {}
        return {
            **super().sources(),
            "reference": self.reference_source,
            "reward": self.reward_name,
            **{f"reward.parts.{name}": part.reward for name, part in summed.items()},
            "value.init_from": value,
        }

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
                f"the reward model {self.reward_name} has its own copy of the weights in memory; an adapter over the "
                "policy's base, as the Reward stage writes it with lora, would share the policy's"
            )

    def setup(self, stage: str) -> None:
        """Check that data, policy and reward fit together.

        Raises:
            ValueError: they don't; see ``Stage.setup``; or the reward reads another tokenizer's ids.
        """
        super().setup(stage)
        mesh = self.device_mesh
        engine = self.rollout_config.engine
        if not engine.exact and mesh is not None and mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                f"rollout.engine is {type(engine).__name__}, where two requests may round differently, but "
                "tensor-parallel devices must train on the same: set tensor_parallel_size to 1, or "
                "rollout.engine to Ours"
            )
        if isinstance(self.value, ScalarGPT) and self.value.config.context < self.network.config.context:
            raise ValueError(
                f"the value model's context is {self.value.config.context}, the policy's "
                f"{self.network.config.context}: set value.init_from to a model of at least that context"
            )
        for reward in (self.reward, self.gold):
            if reward is not None and self._tokenizer is not None:
                check_reward(reward, self._tokenizer)

    def reward_columns(self, split: str) -> tuple[str, ...]:
        """Of reward and gold in training, of the judge of policy evaluation in validation; see ``Stage``."""
        rewards = {
            "train": (self.reward_name, self.gold_name),
            "validation": (self.policy_evaluation.config.judge,),
        }
        environment = () if self.environment is None else self.environment.columns
        return tuple(dict.fromkeys((*environment, *columns_read(rewards.get(split, ())))))

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
        optimizer = self.optimizer_of(self.network, self.optimizer_config)
        if self.value is not None and self.value_config is not None:
            config = replace(self.optimizer_config, lr=self.optimizer_config.peak * self.value_config.lr_factor)
            for group in self.optimizer_of(self.value, config).param_groups:
                if group["params"]:
                    optimizer.add_param_group(group)
        return optimizer

    # The rollout: steps 1 to 7.

    def rollout_loader(self, prompts: Iterable[PromptBatch]) -> RolloutLoader:
        """The train loader, which rolls out at the start of each pass; called by the data module.

        Raises:
            ValueError: the responses of an iteration can't be split as asked, or the Trainer would truncate iterations.
        """
        trainer = self.trainer
        if trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                f"trainer.limit_train_batches is {trainer.limit_train_batches}: it would truncate an iteration; "
                "set update.epochs and update.minibatches, or trainer.max_epochs (iterations), instead"
            )
        plan = BatchPlan(
            episodes=self.rollout_config.episodes,
            group_size=self.rollout_config.group_size,
            epochs=self.update_config.epochs,
            minibatches=self.update_config.minibatches,
            micro_batches=trainer.accumulate_grad_batches,
            ranks=self.sharing.ranks,
            rank=self.sharing.rank,
        )
        self._loader = RolloutLoader(prompts, self._next_rollout, plan, seed=lambda: self._seed)
        return self._loader

    def _next_rollout(self, take: TakePrompts, iteration: int) -> tuple[Rollout | None, dict[str, float]]:
        """``roll_out`` in the precision of the update, since otherwise the first ratio is not 1; joined over ranks.

        Raises:
            Preempted: the run was preempted; the rollout starts again when it resumes.
        """
        if self._tokenizer is None:
            raise ValueError("PPO needs a data module with a tokenizer: it decodes, and knows what ends a response")
        before = self.rollout_state()
        try:
            with self.trainer.precision_plugin.forward_context():
                rollout, metrics = self.roll_out(take, iteration)
        except BaseException:
            self.load_rollout_state(before)
            raise
        self.source.end()
        if rollout is None:
            rank_zero_info(
                f"the KL of iteration {iteration} is {metrics['rollout/kl']:.3g} nats per response, above kl.stop_kl "
                f"{self.kl_config.stop_kl}: the run ends here"
            )
            self.trainer.should_stop = True
        elif self.sharing.ranks > 1:
            rollout = join_ranks(rollout, self.rollout_config.group_size, self.over_ranks)
        return rollout, metrics

    @torch.no_grad()
    def roll_out(self, take: TakePrompts, iteration: int) -> tuple[Rollout | None, dict[str, float]]:
        """Steps 1 to 7 of an iteration, on this rank.

        ``no_grad`` and not ``inference_mode``: the update differentiates expressions of what is stored here.

        Args:
            take: the next prompts to respond to.
            iteration: from 0.

        Returns:
            tuple: the rollout to train on, None where its KL is above ``kl.stop_kl``; and what to log, over all ranks.

        Raises:
            ValueError: the reward failed, or the estimator returned what an update cannot learn from.
        """
        group_size = self.rollout_config.group_size
        # 1. Sample, and 2. score.
        (responses, scores), metrics = self._draw(take, iteration)
        # 3. Log-probs under the reference, and under the policy that sampled.
        reference_logprobs = kl = None
        if self.kl_config.needs_reference:
            reference_logprobs, _ = self._logprobs(self.reference, responses)
        logprobs, states, gaps = self._old_logprobs(responses)
        # 4. Values.
        values = self._values(responses, states)
        # 5. KL penalty and advantages.
        penalties, kl_coef = torch.zeros_like(logprobs), self.controller.value
        if reference_logprobs is not None:
            kl = K1().estimate(logprobs, reference_logprobs)
            if self._kl_in_reward is not None:
                penalties = kl_coef * self._kl_in_reward.estimate(logprobs, reference_logprobs)
        scored = ScoredResponses(scores.scores, penalties, values, responses.mask, group_size, responses.rewards)
        estimate = self.estimator.estimate(scored, total=self._total)
        estimate.check(responses.mask, type(self.estimator).__name__)
        advantages, returns = estimate
        if self.recompute_logprobs and not self._defers_logprobs:
            advantages = self._weighted(advantages, logprobs, responses.logprobs)
        metrics |= token_metrics(kl, logprobs, responses.mask, total=self._total)
        metrics |= {"rollout/kl_coef": kl_coef, **gaps}
        if self.rollout_config.ahead:
            metrics["rollout/staleness"] = self.source.staleness
        if self.value is not None:
            critic, targets = wide(values), wide(returns)
            mask = responses.mask.to(critic.device)
            explained = explained_variance(critic, targets, mask, total=self._total)
            metrics["rollout/explained_variance"] = float(explained)
        # 6. Controller.
        if kl is not None:
            if iteration == 0:
                self._check_start(metrics["rollout/kl"], responses)
            self.controller.update(metrics["rollout/kl"], self.rollout_config.episodes)
            if self.kl_config.stop_kl is not None and metrics["rollout/kl"] > self.kl_config.stop_kl:
                return None, metrics
        # 7. Fill the buffer.
        device = responses.ids.device
        rollout = Rollout(
            ids=responses.ids,
            prompt_lengths=torch.tensor(responses.prompt_lengths, device=device),
            lengths=torch.tensor(responses.lengths, device=device),
            mask=responses.mask,
            logprobs=logprobs,
            reference_logprobs=reference_logprobs,
            values=values,
            advantages=advantages,
            returns=returns,
            scores=scores.scores,
            kl_coef=kl_coef,
        )
        return rollout, metrics

    def _draw(self, take: TakePrompts, iteration: int) -> tuple[Draw, dict[str, float]]:
        """Scored responses to train on, and what to log of all that were sampled for it.

        With `rollout.refills`, prompts are drawn until every rank has its groups of differing scores.
        """
        config, draws = self.rollout_config, list[Draw]()
        source, wanted = self.source, self.rollout_config.episodes // (config.group_size * self.sharing.ranks)
        source.begin()
        for _ in range(1 + config.refills):
            responses = source.respond(take, iteration, self._tokenizer, seed=self._seed)
            with source.breaking_off():
                scores = score_rollout(
                    self.reward,
                    self.gold,
                    responses,
                    self.scoring_config,
                    longest=config.max_new_tokens,
                    statistics=self.statistics,
                    total=self._total,
                )
            draws.append(Draw(responses, scores))
            if not config.refills:
                break
            found = sum(differing(draw.scores.scores, config.group_size).sum() for draw in draws)
            missing = torch.as_tensor(wanted - found, device=responses.ids.device)
            if self.reduce(missing, "max") <= 0:
                break
        sampled = joined(draws)
        metrics = sample_metrics(*sampled, group_size=config.group_size, total=self._total)
        if not config.refills:
            kept = sampled
        else:
            metrics["rollout/draws"] = len(draws)
            kept = first_groups(sampled, wanted, config.group_size)
        self._count_work(sampled.responses, kept.responses)
        return kept, metrics

    def _logprobs(self, network: GPT, responses: Responses) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs ``[B, N]`` of the sampled tokens under a network, and the hidden states ``[M, D]`` before them."""
        targets, own = response_tokens(*responses.rows), responses.chosen
        with gathered(network) as whole:
            states = response_states(whole, *responses.rows, group_size=self.rollout_config.group_size)
            states, targets = chosen_of(states, own), chosen_of(targets, own)
            flat = self._token_logprobs(whole, states, targets)
        return padded(flat, responses.mask), states

    def _token_logprobs(self, network: GPT, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probs ``[M]`` of ``targets`` at the temperature and over the vocabulary of the sampler."""
        sampled = SampledIds.of(self._tokenizer)
        weight, targets = sampled.rows(network.output_weight), sampled.indices(targets, network.config.vocab_size)
        temperature = self.rollout_config.temperature
        return token_logprobs(states, weight, targets, temperature=temperature, softcap=network.softcap)

    def _old_logprobs(self, responses: Responses) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, float]]:
        """Log-probs ``[B, N]`` under the policy that sampled; its hidden states and the sampler's gaps if computed."""
        if self.recompute_logprobs is False or self._defers_logprobs:
            return responses.logprobs, None, {}
        ours, states = self._logprobs(self.network, responses)
        distances = (ours - responses.logprobs).abs()
        gap = float(self.reduce(distances.max(), "max"))
        gaps = {"rollout/logprob_gap": gap}
        if self.recompute_logprobs is None:
            tolerance = self.rollout_config.logprob_tolerance
            self.recompute_logprobs = not gap <= tolerance
            rank_zero_info(
                f"old log-probs: sampler and trainer differ by at most {gap:.2g} nats per token "
                f"(rollout.logprob_tolerance {tolerance:g}): "
                + ("the trainer recomputes them" if self.recompute_logprobs else "the sampler's are used")
            )
        if not self.recompute_logprobs:
            return responses.logprobs, states, gaps
        added, tokens = self._total(torch.stack([distances.sum(), responses.mask.sum()])).tolist()
        return ours, states, gaps | {"rollout/logprob_gap_mean": added / tokens}

    @property
    def _defers_logprobs(self) -> bool:
        """Whether the update recomputes old log-probs: in the only step of an iteration they are its own.

        Not where the rollout needs them: for the KL, or for hidden states that a value model reads.
        """
        return (
            self.rollout_config.recomputes
            and self.update_config.epochs * self.update_config.minibatches == 1
            and not self.kl_config.needs_reference
            and self.value_config is None
        )

    def _weighted(self, advantages: torch.Tensor, logprobs: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        """Advantages with importance weights; the policy loss is proportional to them for any positive weight.

        Args:
            advantages: of the tokens, of any shape.
            logprobs: under the trainer, nats.
            sampled: under the sampler, nats.
        """
        cap = self.rollout_config.importance_cap
        return advantages if cap is None else advantages * truncated_importance_weights(logprobs, sampled, cap=cap)

    def _values(self, responses: Responses, states: torch.Tensor | None) -> torch.Tensor:
        """Value ``[B, N]`` before each token; 0 without a value model.

        Args:
            responses: B of them.
            states: ``[M, D]`` of the policy, if they are computed already.
        """
        group_size = self.rollout_config.group_size
        if self.value is None:
            return torch.zeros_like(responses.logprobs)
        if states is None and isinstance(self.value, ValueHead):
            with gathered(self.network) as policy:
                states = response_states(policy, *responses.rows, group_size=group_size)
                states = chosen_of(states, responses.chosen)
        with gathered(self.value) as value:
            values = token_values(value, states, *responses.rows, group_size, responses.chosen)
            return padded(values, responses.mask)

    def _count_work(self, sampled: Responses, kept: Responses) -> None:
        """Add to ``work``: responses, tokens sampled, and tokens read without a backward pass, over all ranks."""
        scorers = sum(network is not None for network in (self.reward_network, self.gold_network))
        readers = isinstance(self.value, ScalarGPT) + self.kl_config.needs_reference
        readers += bool(self.recompute_logprobs) and not self._defers_logprobs
        read = scorers * sum(sampled.lengths) + readers * sum(kept.lengths)
        here = [len(sampled.lengths), int(sampled.mask.sum()), read]
        totals = self._total(torch.tensor(here, device=sampled.ids.device)).tolist()
        self.work = {name: done + int(new) for (name, done), new in zip(self.work.items(), totals, strict=True)}

    def _check_start(self, kl: float, responses: Responses) -> None:
        """Warn if the policy does not start from the reference."""
        # Rounding adds up over a response's tokens.
        least = 1e-3 if self.reference.output_weight.dtype != torch.bfloat16 else 1e-2
        slack = (
            10 * max(self.rollout_config.logprob_tolerance, least) * max(1.0, responses.mask.sum(1).max().item() / 8)
        )
        if abs(kl) > slack:
            rank_zero_warn(
                f"the reference is not what the policy starts from: their KL is {kl:.3g} nats per response before the "
                "first step; remove reference to use init_from, unless you are continuing an earlier run"
            )

    def _total(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.reduce(tensor, "sum")

    # The update: steps 8 and 9.

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> torch.Tensor:
        """Step 8: loss of a micro-batch.

        Raises:
            FloatingPointError: the loss is not finite.
            RuntimeError: the policy is not the one that sampled at the first minibatch.
        """
        warming_up = self._warming_up(batch.iteration)
        rows = batch.ids, batch.prompt_lengths, batch.lengths
        lengths = batch.counts
        weights = self.average.weights(lengths)
        count = self.average.count(lengths, self.rollout_config.max_new_tokens)
        loss, states = torch.zeros((), device=batch.ids.device), None
        metrics: dict[str, torch.Tensor] = {}
        # Policy loss, and the KL where it is in the loss.
        if not warming_up or isinstance(self.value, ValueHead):
            with torch.set_grad_enabled(not warming_up):
                states = response_states(self.network, *rows, group_size=batch.group_size)
                states = chosen_of(states, batch.chosen)
        if not warming_up:
            assert states is not None
            loss, metrics = self._policy_loss(batch, states, weights, count)
        # Value loss.
        if self.value is not None and self.value_config is not None:
            values = token_values(self.value, states, *rows, batch.group_size, batch.chosen)
            clip = self.value_config.value_clip_range
            losses, clipped = value_losses(values, batch.values, batch.returns, clip=clip)
            value_loss = (losses * weights).sum()
            loss = loss + self.value_config.value_coef * value_loss
            metrics |= {"train/value_loss": value_loss.detach() / count, "train/value_clip_fraction": clipped}
        if warming_up and self.sharing.ranks > 1 and self.device_mesh is None:
            # DDP waits for every gradient.
            loss = loss + 0 * sum(parameter.sum() for parameter in self.network.parameters() if parameter.requires_grad)
        largest = {name: metrics.pop(name) for name in ("train/ratio_max", "rollout/logprob_gap") if name in metrics}
        means = self.mean_over_ranks({"train/loss": loss / count, **metrics}, count)
        mean = means.pop("train/loss")
        self.log("train/loss", mean, prog_bar=True)
        self.log_dict(means)
        for name, value in largest.items():
            self.log(name, self.reduce(value, "max"))
        self._log_rollout()
        self.refuse_nonfinite(mean)
        return self.weighted(loss, count)

    def _policy_loss(
        self, batch: RolloutBatch, states: torch.Tensor, weights: torch.Tensor, count: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the policy's losses, its KL in the loss included, and what to log of it."""
        logprobs = self._token_logprobs(self.network, states, batch.targets)
        old, advantages, metrics = batch.logprobs, batch.advantages, {}
        if self._defers_logprobs:
            old = logprobs.detach()
            advantages = self._weighted(advantages, old, batch.logprobs)
            gaps = (old - batch.logprobs).abs()
            metrics = {"rollout/logprob_gap": gaps.max(), "rollout/logprob_gap_mean": gaps.mean()}
        policy = policy_loss(self.update_config.surrogate, logprobs, old, advantages, batch.counts)
        self._check_first(batch, policy.approx_kl, policy.ratio_max)
        tokens = batch.counts.sum()
        self._moved.append(torch.stack([policy.approx_kl * tokens, tokens]))
        loss = (policy.losses * weights).sum()
        metrics |= {"train/policy_loss": loss.detach() / count, "train/clip_fraction": policy.clip_fraction}
        metrics |= {"train/approx_kl": policy.approx_kl, "train/ratio_max": policy.ratio_max}
        if self._kl_in_loss is None or batch.reference_logprobs is None:
            return loss, metrics
        kl = self._kl_in_loss.estimate(logprobs, batch.reference_logprobs)
        return loss + batch.kl_coef * (kl * weights).sum(), metrics

    def _check_first(self, batch: RolloutBatch, approx_kl: torch.Tensor, ratio_max: torch.Tensor) -> None:
        """Before the first update of an iteration the policy must be the one that sampled: KL 0 and ratio 1.

        Raises:
            RuntimeError: they differ by more than rounding.
        """
        if batch.position:
            return
        kl, ratio = self.reduce(torch.stack([approx_kl, ratio_max]), "max").tolist()
        precision, weights = str(self.trainer.precision), self.network.output_weight.dtype
        exact = precision.startswith(("32-true", "64-true")) and weights != torch.bfloat16
        kl_bound, ratio_bound = (1e-4, 1.02) if exact else (1e-2, 1.5)
        if not (kl <= kl_bound and ratio <= ratio_bound):
            raise RuntimeError(
                f"the first minibatch of iteration {batch.iteration} has KL(old || new) {kl:.3g} and largest ratio "
                f"{ratio:.4g}, but before any update they are 0 and 1: the policy being trained is not the one that "
                "sampled; lower rollout.logprob_tolerance to recompute old log-probs"
            )

    def _warming_up(self, iteration: int) -> bool:
        """Whether only the value model trains in this iteration."""
        return self.value_config is not None and iteration < self.value_config.warmup_iterations

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient; freeze the policy while the value model warms up; step 9."""
        super().on_before_optimizer_step(optimizer)
        assert self._loader is not None
        if self._warming_up(self._loader.iteration):
            for parameter in self.network.parameters():
                parameter.grad = None
        moved, self._moved = self._moved, []
        target = self.update_config.target_kl
        if target is None or not moved:
            return
        added, tokens = self.reduce(torch.stack(moved).sum(0), "sum")
        if added / tokens > target:
            self._end_iteration()

    def _end_iteration(self) -> None:
        """Make this micro-batch the iteration's last.

        The Trainer's count of batches in this epoch jumps to the end, as if the rest had passed, so that validation,
        checkpoints and resuming see an ordinary end; its totals and ``global_step`` count only what was done.
        """
        assert self._loader is not None
        left = self._loader.skip_rest()
        skip_batches(self.trainer, left)

    # Logging, validation and checkpoints.

    def teardown(self, stage: str) -> None:
        """Close the engine."""
        super().teardown(stage)
        self.source.close()

    def configure_callbacks(self) -> list[Callback]:
        """Closes the engine when the run fails."""
        return [CloseEngine(self.source)]

    def on_train_epoch_end(self) -> None:
        """Log a rollout that ended the run."""
        if self._loader is not None and self._loader.rollout is None:
            self._log_rollout()

    def _log_rollout(self) -> None:
        """Log the rollout's metrics, the same with every batch: an epoch gets one row, resumed or not."""
        assert self._loader is not None
        for name, number in self._loader.metrics.items():
            shown = name in _IN_PROGRESS_BAR
            self.log(name, number, on_step=False, on_epoch=True, prog_bar=shown, batch_size=1, sync_dist=True)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample responses to validation prompts, or play episodes from them."""
        if isinstance(self.policy_evaluation, EpisodeEvaluation):
            with gathered(self.network) as policy:
                self.policy_evaluation.update(policy, prompts_of(batch), self._tokenizer, ranks=self.sharing.ranks)
            return
        rows = zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
        prompts = [ids[:length] for ids, length in rows]
        self.policy_evaluation.update(
            self.network, self.reference, prompts, batch.prompts, self._tokenizer, columns=batch.columns
        )

    def on_validation_epoch_end(self) -> None:
        """Log ``policy/*``."""
        values = self.policy_evaluation.compute()
        self.policy_evaluation.reset()
        self.log_dict({f"policy/{name}": value for name, value in values.items()}, prog_bar=True)

    def rollout_state(self) -> dict[str, Any]:
        """KL coefficient, reward statistics, whether old log-probs are recomputed, and the work so far."""
        return {
            "controller": self.controller.state_dict(),
            "statistics": self.statistics.state_dict(),
            "recompute_logprobs": self.recompute_logprobs,
            "work": dict(self.work),
        }

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        """Restore ``rollout_state``."""
        self.controller.load_state_dict(state["controller"])
        self.statistics.load_state_dict(state["statistics"])
        self.recompute_logprobs = self.rollout_config.recomputes or state["recompute_logprobs"]
        self.work = dict(state["work"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save ``rollout_state``; the loader saves the rollout itself."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollout"] = self.rollout_state()
        checkpoint["ahead"] = self.source.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore ``rollout_state``; see ``Stage.on_load_checkpoint`` for the loader."""
        super().on_load_checkpoint(checkpoint)
        self.load_rollout_state(checkpoint["rollout"])
        self.source.load_state_dict(checkpoint.get("ahead"), pad=getattr(self._tokenizer, "pad_id", None) or 0)
