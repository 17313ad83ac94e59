"""Advantage estimators: how much better a token or a response was than expected. Nothing here is differentiable.

An estimator is a frozen dataclass. Its fields are its settings, its class attributes say what it needs, and its one
method turns ``ScoredResponses`` into an ``Estimate``.

Legend: B responses, N tokens of the longest response, G prompts, K responses to each prompt (B = G K).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from align.objectives.averages import Average, ConstantLength, TokenMean
from align.objectives.kl import KLUse
from align.objectives.masked import Total, masked_whiten, one_process


class ScoredResponses(NamedTuple):
    """The responses of a rollout as an estimator reads them; the K responses to a prompt are neighbours.

    Attributes:
        scores: ``[B]`` reward of each whole response, without the KL penalty.
        penalties: ``[B, N]`` KL penalty of each token, in units of reward; 0 where the KL is in the loss.
        values: ``[B, N]`` value before each token; 0 without a value model.
        mask: ``[B, N]`` bool, True on the tokens of the response; of several turns, on those of the model's.
        group_size: K.
        turn_rewards: ``[B, N]`` the part of the scores that was given within a response, at the tokens that it was
            given for; None: none was.
    """

    scores: torch.Tensor
    penalties: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    group_size: int = 1
    turn_rewards: torch.Tensor | None = None

    def token_rewards(self) -> torch.Tensor:
        """Reward of each token ``[B, N]``: what it was given, minus its penalty; the rest of the score at the last."""
        positions = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = (self.mask * positions).amax(1, keepdim=True)
        rewards, rest = -self.penalties, self.scores
        if self.turn_rewards is not None:
            rewards, rest = rewards + self.turn_rewards, rest - self.turn_rewards.sum(1)
        return rewards.scatter_add(1, last, rest[:, None].to(rewards.dtype))

    def group_rewards(self) -> torch.Tensor:
        """Reward of each response ``[G, K]``: its score minus the penalties of its tokens."""
        return (self.scores - self.penalties.sum(1)).view(-1, self.group_size)


class Estimate(NamedTuple):
    """What the update learns from.

    Attributes:
        advantages: ``[B, N]`` weights of the tokens in the policy loss; 0 where the mask is False.
        returns: ``[B, N]`` targets of the value model; 0 for an estimator without one.
    """

    advantages: torch.Tensor
    returns: torch.Tensor

    def check(self, mask: torch.Tensor, name: str) -> None:
        """Refuse what an update cannot learn from.

        Args:
            mask: ``[B, N]`` bool, True on the tokens of the response.
            name: of the estimator.

        Raises:
            ValueError: a tensor has another shape than the mask, or a number on a response that is not finite.
        """
        for field, tensor in self._asdict().items():
            if tensor.shape != mask.shape:
                raise ValueError(
                    f"estimator {name} returned {field} {tuple(tensor.shape)}: it must be {tuple(mask.shape)}, one for "
                    "each token"
                )
            if not bool(tensor[mask].isfinite().all()):
                bad = tensor[mask][~tensor[mask].isfinite()][0].item()
                raise ValueError(f"estimator {name} returned {field} with {bad}: all must be finite")


class AdvantageEstimator(ABC):
    """Base of all advantage estimators.

    Attributes:
        needs_value: train a value model and pass its values.
        min_group_size: the fewest responses to each prompt.
        default_kl_in: where the KL penalty goes unless the recipe says otherwise.
        default_average: over tokens, unless the recipe or the surrogate names another.
    """

    needs_value: ClassVar[bool] = False
    min_group_size: ClassVar[int] = 1
    default_kl_in: ClassVar[KLUse] = "reward"
    default_average: ClassVar[Average] = TokenMean()

    @abstractmethod
    def estimate(self, responses: ScoredResponses, *, total: Total = one_process) -> Estimate:
        """Advantages and returns of each token.

        Args:
            responses: of this rank.
            total: sums over ranks, for statistics of the whole rollout.
        """


@dataclass(frozen=True)
class GAE(AdvantageEstimator):
    """Generalised advantage estimation on token rewards (Schulman et al. 2016, equation 16), whitened over the rollout.

    Raises:
        ValueError: a factor is outside [0, 1].
    """

    gamma: float = 1.0
    """Discount per token"""
    lam: float = 0.95
    """lambda: 0 trusts the values, 1 the rewards"""

    needs_value = True

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"estimator.{name} is {getattr(self, name)}: it must be in [0, 1]")

    @torch.no_grad()
    def estimate(self, responses: ScoredResponses, *, total: Total = one_process) -> Estimate:
        """Returns are taken before advantages are whitened over all tokens of all ranks."""
        advantages, returns = gae(
            responses.token_rewards(), responses.values, responses.mask, gamma=self.gamma, lam=self.lam
        )
        return Estimate(masked_whiten(advantages, responses.mask, total=total), returns)


@dataclass(frozen=True)
class ReinforcePlusPlus(AdvantageEstimator):
    """The reward to go, whitened over the rollout: REINFORCE++ (Hu et al. 2025, arXiv:2501.03262).

    A token's advantage is the response's score minus the KL penalties from it on; then all tokens of all ranks are
    shifted and scaled together. No value model, and no groups: one response to each prompt is enough.
    """

    @torch.no_grad()
    def estimate(self, responses: ScoredResponses, *, total: Total = one_process) -> Estimate:
        """See ``AdvantageEstimator``."""
        nothing = torch.zeros_like(responses.penalties)
        to_go, _ = gae(responses.token_rewards(), nothing, responses.mask, gamma=1.0, lam=1.0)
        return Estimate(masked_whiten(to_go, responses.mask, total=total), nothing)


class GroupEstimator(AdvantageEstimator):
    """Base of the estimators that compare the responses to a prompt; every token of a response has its advantage."""

    min_group_size = 2

    @abstractmethod
    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards of whole responses ``[G, K]`` to their advantages ``[G, K]``."""

    @torch.no_grad()
    def estimate(self, responses: ScoredResponses, *, total: Total = one_process) -> Estimate:
        """Compare each group, and give every token of a response the response's advantage.

        Raises:
            ValueError: the groups are too small to compare.
        """
        if responses.group_size < self.min_group_size:
            raise ValueError(
                f"group_size is {responses.group_size}: {type(self).__name__} needs at least {self.min_group_size} "
                "responses to each prompt"
            )
        compared = self.compare(responses.group_rewards())
        advantages = compared.view(-1, 1).expand(responses.mask.shape).masked_fill(~responses.mask, 0)
        return Estimate(advantages, torch.zeros_like(advantages))


@dataclass(frozen=True)
class GRPO(GroupEstimator):
    """Reward minus the group's mean, over its standard deviation (Shao et al. 2024, section 4.1.2).

    The deviation is the unbiased one (divided by K - 1), as in TRL. Scaling amplifies the noise of groups whose rewards
    are nearly equal.

    Raises:
        ValueError: eps is not above 0.
    """

    scale_by_std: bool = True
    """Divide by the group's standard deviation"""
    eps: float = 1e-4
    """Added to the standard deviation, in units of reward"""

    default_kl_in = "loss"

    def __post_init__(self) -> None:
        """Reject invalid settings."""
        if not self.eps > 0:
            raise ValueError(f"estimator.eps is {self.eps}: it must be above 0, or equal rewards would divide by 0")

    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Advantages ``[G, K]``; they sum to 0 in each group."""
        centred = centre(rewards)
        return centred / (centred.std(1, keepdim=True) + self.eps) if self.scale_by_std else centred


@dataclass(frozen=True)
class RLOO(GroupEstimator):
    """Reward minus the mean of the prompt's other responses (Ahmadian et al. 2024, equation 5)."""

    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Advantages ``[G, K]``; they sum to 0 in each group."""
        size = rewards.shape[1]
        return centre(rewards) * (size / (size - 1))


@dataclass(frozen=True)
class DrGRPO(GroupEstimator):
    """Reward minus the group's mean (Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2).

    Neither GRPO's scaling by the standard deviation nor a division by response lengths: the loss is divided by a
    constant (``ConstantLength``), unless the recipe says otherwise.
    """

    default_kl_in = "loss"
    default_average = ConstantLength()

    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Advantages ``[G, K]``; they sum to 0 in each group."""
        return centre(rewards)


@dataclass(frozen=True)
class ReinforcePlusPlusBaseline(GroupEstimator):
    """Reward minus the group's mean, whitened over the rollout: REINFORCE++ with baseline (Hu et al. 2025).

    GRPO divides by the deviation of few responses, which depends on the reward that it scales; here all tokens of the
    rollout share one deviation.
    """

    default_kl_in = "loss"

    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Advantages ``[G, K]`` before they are whitened; they sum to 0 in each group."""
        return centre(rewards)

    @torch.no_grad()
    def estimate(self, responses: ScoredResponses, *, total: Total = one_process) -> Estimate:
        """See ``GroupEstimator``."""
        advantages, returns = super().estimate(responses, total=total)
        return Estimate(masked_whiten(advantages, responses.mask, total=total), returns)


@dataclass(frozen=True)
class MaxRL(GroupEstimator):
    """Reward minus the group's mean, over that mean: maximum-likelihood RL (Tajwar et al. 2026, arXiv:2602.02710).

    For rewards of 0 and 1 the expected update is the gradient of -sum_k (1 - p)^k / k up to k = K - 1, where p is the
    probability of success: the beginning of the series of log p. K = 2 is the policy gradient; with more responses a
    prompt's weight grows towards 1 / p. A group without a success has advantages of 0.
    """

    default_kl_in = "loss"

    def compare(self, rewards: torch.Tensor) -> torch.Tensor:
        """Advantages ``[G, K]``; they sum to 0 in each group.

        Raises:
            ValueError: a reward is negative: its mean would not be a probability.
        """
        if bool((rewards < 0).any()):
            raise ValueError(
                f"MaxRL needs rewards of at least 0, such as 0 or 1 for a check; one is {rewards.min().item():g}: set "
                "scoring.missing_eos_penalty to 0 and kl.kl_in to loss, or use another estimator"
            )
        mean = rewards.mean(1, keepdim=True)
        return centre(rewards) / mean.masked_fill(mean == 0, 1)


def centre(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards ``[G, K]`` minus their group's mean; exactly 0 in a group of equal rewards."""
    # The mean of eight 0.7 is not 0.7 in float32. Above the group's least reward, equal rewards are all 0.
    above = rewards - rewards.amin(1, keepdim=True)
    return above - above.mean(1, keepdim=True)


@torch.no_grad()
def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recursion of generalised advantage estimation (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = sum_k (gamma lam)^k delta_{t+k}, up to the last token that counts. A
    response is a whole episode, truncated or not, so the value after its last token is 0. Tokens that don't count, such
    as those that an environment wrote between two turns, are no steps: the last token of a turn is followed by the
    first of the next.

    Args:
        rewards: ``[B, N]`` of each token.
        values: ``[B, N]`` expected return before each token was chosen.
        mask: ``[B, N]`` bool, True on the tokens that the policy chose.
        gamma: discount per token, in [0, 1].
        lam: 0 trusts the values, 1 the rewards, in [0, 1].

    Returns:
        tuple: ``advantages [B, N]``, not whitened, and ``returns [B, N]`` = advantages + values, the targets of the
        value model; both 0 where the mask is False.

    Raises:
        ValueError: the shapes differ.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} must be alike"
        )
    # The tokens that count first, in their order.
    order = torch.argsort(~mask, dim=1, stable=True)
    back, counted = torch.argsort(order, dim=1), mask.gather(1, order)
    rewards, values = (x.masked_fill(~mask, 0).gather(1, order) for x in (rewards, values))
    # Values outside the mask are now 0, and so is the one after the last token.
    after = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    deltas = (rewards + gamma * after - values).masked_fill(~counted, 0)
    advantages = torch.empty_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    advantages.masked_fill_(~counted, 0)
    return advantages.gather(1, back), (advantages + values).gather(1, back)
