"""The networks of PPO beside its policy: copies of their own or, with adapters, views of one base.

Legend: B responses, N tokens of the longest response, M tokens of all responses, D width.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from align.adapters.lora import LoraConfig, adapters, copy_adapter, merged_copy, share_base
from align.algorithms.rollout import chosen_of
from align.algorithms.starting_points import load_start, reference_view
from align.io.adapter_directory import Base
from align.io.directory import load_scalar
from align.model.gpt import GPT, ScalarGPT
from align.model.response_states import response_states
from align.rewards.reward import Reward
from align.rewards.reward_model import RewardModel


class ValueHead(nn.Module):
    """A value model on the policy's own trunk: one value per hidden state."""

    def __init__(self, width: int) -> None:
        """Initialise the head: normal with std 1 / sqrt(width + 1), from seed 0."""
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        generator = torch.Generator(device=self.score.weight.device).manual_seed(0)
        with torch.no_grad():
            self.score.weight.normal_(0.0, (width + 1) ** -0.5, generator=generator)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` to ``[...]``, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.score.weight.float()).squeeze(-1)


ValueModel: TypeAlias = ScalarGPT | ValueHead


def token_values(
    value: ValueModel,
    policy_states: torch.Tensor | None,
    ids: torch.Tensor,
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    group_size: int,
    chosen: torch.Tensor | None,
) -> torch.Tensor:
    """The value ``[M]`` before each token of each response.

    Args:
        value: a head reads the policy's hidden states, a network its own.
        policy_states: ``[M, D]``; only a head needs them.
        ids: as for ``response_states``.
        prompt_lengths: the same.
        lengths: the same.
        group_size: the same.
        chosen: which of the tokens after the prompts are those of the responses; None: all.
    """
    if isinstance(value, ScalarGPT):
        states = response_states(value, ids, prompt_lengths, lengths, group_size=group_size)
        return value.scores(chosen_of(states, chosen))
    assert policy_states is not None
    return value.scores(policy_states)


def padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Numbers of response tokens ``[M]`` to ``[B, N]`` float32, 0 where the mask is False."""
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, flat.float())


def make_reference(policy: GPT, source: str | None, *, adapted: bool) -> GPT:
    """The network that the KL is measured to.

    Args:
        policy: at its start, before training.
        source: a model or adapter directory, or Hub id; None: the policy's start.
        adapted: adapters are trained, not the policy's weights: the reference then shares its base.

    Raises:
        ValueError: it has another vocabulary.
    """
    if source is not None:
        reference = load_start(source, GPT, None)
        if reference.config.vocab_size != policy.config.vocab_size:
            raise ValueError(
                f"reference {source} has {reference.config.vocab_size} ids, the policy "
                f"{policy.config.vocab_size}: they must share a tokenizer"
            )
        return reference
    if adapted:
        return reference_view(policy)
    reference = GPT(policy.config)
    reference.load_state_dict(policy.state_dict())
    return reference


def make_value(
    policy: GPT, reward: Reward | None, *, source: str | None, lora: LoraConfig | None, onto: Base | None, adapted: bool
) -> ScalarGPT:
    """A value model: from ``source``, else from the reward model, else from the policy.

    Args:
        policy: at its start, before training.
        reward: the value model starts as a copy of a reward model, its head divided by the reward's std: its values
            are normalised scores plus a constant.
        source: a model or adapter directory, or Hub id; None: see above.
        lora: the recipe's adapters.
        onto: the policy's base.
        adapted: adapters are trained: the value model then shares the weights of the network it starts from, with a
            copy of that network's adapter if it has one.
    """
    if source is not None:
        return load_start(source, ScalarGPT, lora, onto=onto)
    start: GPT | ScalarGPT = reward.network if isinstance(reward, RewardModel) else policy
    if adapted:
        value = share_base(start, ScalarGPT)
        if adapters(start):
            copy_adapter(start, value, trained=True)
    elif isinstance(reward, RewardModel):
        value = load_scalar(reward.name) if not adapters(reward.network) else _merged(reward.network)
    else:
        value = ScalarGPT(policy.config)
        value.model.load_state_dict(policy.model.state_dict())
    if isinstance(reward, RewardModel):
        with torch.no_grad():
            value.score.weight /= reward.std
    return value


def _merged(network: ScalarGPT) -> ScalarGPT:
    whole = merged_copy(network)
    assert isinstance(whole, ScalarGPT)
    return whole.requires_grad_(True).train()
