"""Episodes from validation prompts: what the environment gives, and how long they take."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from align.algorithms.episodes import sample_episodes
from align.algorithms.policy_evaluation import PolicyEvaluationConfig
from align.algorithms.ppo_settings import RolloutConfig
from align.algorithms.rollout import RolloutPrompt
from align.algorithms.scoring import turns
from align.environments import Environment
from align.model.gpt import GPT
from align.training.float64 import WideMetric, wide

_MOST = 64
"""Prompts that are played at most, over all ranks, where the recipe sets no number"""


class EpisodeEvaluation(WideMetric):
    """Sums over episodes since the last reset, added over ranks; one episode from each prompt.

    Update it with every validation batch: it plays the first prompts, the same at each validation and with the same
    seeds, so that only the policy changes.
    """

    full_state_update = False
    reward: torch.Tensor
    tokens: torch.Tensor
    turns: torch.Tensor
    ended: torch.Tensor
    episodes: torch.Tensor

    def __init__(self, config: PolicyEvaluationConfig, rollout: RolloutConfig, environment: Environment) -> None:
        """No episodes yet."""
        super().__init__()
        self.config, self.environment = config, environment
        self.rollout = replace(
            rollout, episodes=1, group_size=1, refills=0, temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
        self.wanted = _MOST if config.prompts is None else config.prompts
        self._played = 0
        self.add_state("reward", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("tokens", "turns", "ended", "episodes"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, policy: GPT, prompts: Sequence[RolloutPrompt], tokenizer: Any, *, ranks: int) -> None:
        """Play an episode from each prompt that is still wanted.

        Args:
            policy: plays.
            prompts: of this rank.
            tokenizer: see ``sample_episodes``.
            ranks: that share the wanted prompts.
        """
        chosen = prompts[: max(0, -(-self.wanted // ranks) - self._played)]
        self._played += len(chosen)
        if not chosen:
            return
        played = sample_episodes(
            policy,
            chosen,
            self.environment,
            self.rollout,
            tokenizer=tokenizer,
            seed=self.config.seed,
            iteration=0,
            earlier=[0] * len(chosen),
        )
        assert played.rewards is not None
        self.reward += wide(played.rewards.sum()).to(self.device)
        self.tokens += int(played.mask.sum())
        self.turns += int(turns(played.mask).sum())
        self.ended += int(played.finished.sum())
        self.episodes += len(played.texts)

    def compute(self) -> dict[str, torch.Tensor]:
        """Means since the last reset.

        Returns:
            dict: ``reward`` and ``turns`` per episode, ``length`` tokens of the model per episode, ``eos_rate`` share
            that did not end for lack of tokens. Empty where nothing was played.
        """
        if not self.episodes:
            return {}
        sums = {"reward": self.reward, "turns": self.turns, "length": self.tokens, "eos_rate": self.ended}
        return {name: (value / self.episodes).float() for name, value in sums.items()}

    def reset(self) -> None:
        """Forget all episodes."""
        super().reset()
        self._played = 0
