"""The networks of PPO beside its policy: copies of their own, or with adapters views of one base."""

import torch

from align.adapters.lora import LoraConfig, adapters, copy_adapter, merged_copy, share_base
from align.algorithms.starting_points import load_start, reference_view
from align.io.adapter_directory import Base
from align.io.directory import load_scalar
from align.model.gpt import GPT, ScalarGPT
from align.rewards.base import Reward
from align.rewards.reward_model import RewardModel


def make_reference(policy: GPT, source: str | None, *, adapted: bool) -> GPT:
    """What the KL is measured to.

    Args:
        policy: before anything moved it.
        source: a model or adapter directory, or Hub id; None: the policy's start.
        adapted: adapters learn, not the policy's weights: its start then costs no memory but an adapter's.

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
    policy: GPT, reward: Reward, *, source: str | None, lora: LoraConfig | None, onto: Base | None, adapted: bool
) -> ScalarGPT:
    """A value model: from ``source``, else from the reward model, else from the policy.

    Args:
        policy: before anything moved it.
        reward: of a reward model the value model starts as a copy, whose head gives normalised scores, but for their
            mean.
        source: a model or adapter directory, or Hub id; None: see above.
        lora: the recipe's adapters.
        onto: the policy's base.
        adapted: adapters learn: the value model then stands on the weights of what it starts from, with a copy of
            its adapter where that has one.
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
